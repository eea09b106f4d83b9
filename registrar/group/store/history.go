package store

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
)

// Header describes a version without its text. It is the first line of the version's entry in the history.
type Header struct {
	Version  uint64    `json:"version"`
	Replaces uint64    `json:"replaces,omitempty"` // version that was current before
	By       string    `json:"by,omitempty"`       // user@host
	At       time.Time `json:"at"`
	Strategy string    `json:"strategy,omitempty"` // "" = each instance's own
	Format   string    `json:"format,omitempty"`   // toml, yaml, json or raw; Removed if the item was removed
	Sum      string    `json:"sum"`                // of the text, by Sum
}

// Removed is the Format of a version that removed a file.
const Removed = "removed"

// Version is a version with its text.
type Version struct {
	Header
	Text   []byte
	ByHand bool   // the current text is not the one applied under this number: another program wrote the key
	Index  uint64 // Consul's ModifyIndex of the current version
}

// same reports whether two headers describe the same version by the same call.
func (h Header) same(other Header) bool {
	at := h.At.Equal(other.At)
	h.At, other.At = time.Time{}, time.Time{}
	return at && h == other
}

// Current returns the current version, or ErrNone. If another program wrote the key, the Header has only the Version and the
// Sum of the present text.
func (s *Store) Current(ctx context.Context, i Item) (Version, error) {
	if err := i.validate(); err != nil {
		return Version{}, err
	}
	pair, err := s.get(ctx, i.Key())
	if err != nil {
		return Version{}, err
	}
	if pair == nil {
		return Version{}, fmt.Errorf("%s: %w", i, ErrNone)
	}
	return s.version(ctx, i, pair)
}

// version describes a current text.
func (s *Store) version(ctx context.Context, i Item, pair *api.KVPair) (Version, error) {
	v := Version{Header: Header{Version: pair.Flags, Sum: Sum(pair.Value)}, Text: pair.Value, ByHand: true, Index: pair.ModifyIndex}
	if pair.Flags == 0 {
		return v, nil
	}
	e, err := s.entry(ctx, i, pair.Flags)
	if err != nil {
		return Version{}, err
	}
	if e.known && e.Sum == v.Sum {
		v.Header, v.ByHand = e.Header, false
	}
	return v, nil
}

// At returns a present or former current version as it was applied. It returns ErrNone if the version never was current or
// is no longer kept.
func (s *Store) At(ctx context.Context, i Item, version uint64) (Version, error) {
	var found Version
	pair, err := s.walk(ctx, i, func(e entry) (more bool) {
		if e.Version == version && e.Format != Removed {
			found = Version{Header: e.Header, Text: e.text}
		}
		return e.Version > version
	})
	switch {
	case err != nil:
		return Version{}, err
	case found.Version == 0 && pair != nil && pair.Flags == version: // written by another program, and never applied
		return s.version(ctx, i, pair)
	case found.Version == 0:
		return Version{}, fmt.Errorf("version %d of %s: %w (the last %d are kept)", version, i, ErrNone, Kept)
	}
	if pair != nil && pair.Flags == version {
		found.Index = pair.ModifyIndex
	}
	return found, nil
}

// Text returns the text of a file listed by Files: the current one, whoever wrote it, or an earlier one that is still kept.
// The error names the file and the version.
func (s *Store) Text(ctx context.Context, i Item, h Header) ([]byte, error) {
	v, err := s.Current(ctx, i)
	if v.Sum != h.Sum { // it has changed since, or is rolled back
		v, err = s.At(ctx, i, h.Version)
	}
	if err == nil && v.Sum != h.Sum {
		err = errors.New("this text is no longer in Consul: berth did not write it")
	}
	if err != nil {
		return nil, fmt.Errorf("file %s, version %d: %w", i.File, h.Version, err)
	}
	return v.Text, nil
}

// History returns the kept versions that are or were current, newest first. Texts by other programs are not included.
func (s *Store) History(ctx context.Context, i Item) ([]Header, error) {
	var out []Header
	_, err := s.walk(ctx, i, func(e entry) (more bool) {
		out = append(out, e.Header)
		return true
	})
	return out, err
}

// Files returns the current versions of a service's files without their texts, by name.
func (s *Store) Files(ctx context.Context, service string) (map[string]Header, error) {
	if err := ValidService(service); err != nil {
		return nil, err
	}
	pairs, err := s.list(ctx, FilesPrefix(service))
	if err != nil {
		return nil, err
	}
	out := map[string]Header{}
	for _, pair := range pairs {
		name := strings.TrimPrefix(pair.Key, FilesPrefix(service))
		if ValidFile(name) != nil { // another program's key
			continue
		}
		v, err := s.version(ctx, Item{Service: service, File: name}, pair)
		if err != nil {
			return nil, err
		}
		out[name] = v.Header
	}
	return out, nil
}

// entry is a version in the history.
type entry struct {
	Header
	text  []byte
	index uint64 // 0 = it does not exist
	known bool   // it could be read
}

// entry reads an entry of the history.
func (s *Store) entry(ctx context.Context, i Item, version uint64) (entry, error) {
	pair, err := s.get(ctx, i.HistoryKey(version))
	if err != nil || pair == nil {
		return entry{}, err
	}
	e := entry{index: pair.ModifyIndex}
	line, text, whole := bytes.Cut(pair.Value, []byte("\n"))
	if whole && json.Unmarshal(line, &e.Header) == nil && e.Version == version {
		e.text, e.known = text, true
	}
	return e, nil
}

// encode returns the value of an entry, or an error if its Header is too long.
func encode(h Header, text []byte) ([]byte, error) {
	line, err := json.Marshal(h)
	if err == nil && len(line) >= maxHeader {
		err = fmt.Errorf("who applies it, the strategy and the format take %d bytes together; at most %d fit", len(line), maxHeader)
	}
	return slices.Concat(line, []byte("\n"), text), err
}

// numbers returns the versions in the history, newest first.
func (s *Store) numbers(ctx context.Context, i Item) ([]uint64, error) {
	keys, err := read(ctx, i.historyPrefix(), func(q *api.QueryOptions) ([]string, *api.QueryMeta, error) {
		return s.consul.KV().Keys(i.historyPrefix(), "/", q)
	})
	var out []uint64
	for _, key := range keys {
		n, err := strconv.ParseUint(strings.TrimPrefix(key, i.historyPrefix()), 10, 64)
		if err == nil && n > 0 && key == i.HistoryKey(n) {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, func(a, b uint64) int { return cmp.Compare(b, a) })
	return out, err
}

// walk calls visit with the current entry of the history, the one that it replaced, and so on, until visit returns false. It
// skips entries that never became current. It returns the current text, or nil.
func (s *Store) walk(ctx context.Context, i Item, visit func(entry) (more bool)) (*api.KVPair, error) {
	if err := i.validate(); err != nil {
		return nil, err
	}
	pair, err := s.get(ctx, i.Key())
	if err != nil {
		return nil, err
	}
	numbers, err := s.numbers(ctx, i)
	if err != nil {
		return nil, err
	}
	return pair, s.walkFrom(ctx, i, pair, numbers, visit)
}

func (s *Store) walkFrom(ctx context.Context, i Item, pair *api.KVPair, numbers []uint64, visit func(entry) (more bool)) error {
	next := uint64(math.MaxUint64) // without a number by berth, the newest entry is the best guess
	if pair != nil && pair.Flags > 0 {
		next = pair.Flags
	}
	for _, n := range numbers {
		if n > next {
			continue
		}
		e, err := s.entry(ctx, i, n)
		if err != nil {
			return err
		}
		if !e.known { // removed meanwhile, or by another program
			continue
		}
		if !visit(e) {
			return nil
		}
		next = e.Replaces
	}
	return nil
}
