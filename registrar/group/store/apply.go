package store

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/registrar/retry"
)

// Change is a text to apply.
type Change struct {
	Text     []byte
	Version  uint64 // 0 = the next one
	By       string
	Strategy string
	Format   string
}

// NotNewerError means that a version was refused because a newer one exists.
type NotNewerError struct {
	Asked   uint64
	Current Header // only its Version if the rest is unknown
}

func (e *NotNewerError) Error() string {
	text := fmt.Sprintf("version %d is not newer than %d", e.Asked, e.Current.Version)
	if e.Current.At.IsZero() {
		return text
	}
	return text + ", " + e.Current.applied()
}

// applied says who applied a version, and when.
func (h Header) applied() string {
	what := "applied"
	if h.Format == Removed {
		what = "removed"
	}
	return fmt.Sprintf("%s %s by %s", what, h.At.UTC().Format(time.RFC3339), cmp.Or(h.By, "somebody"))
}

// TooLargeError means that a text does not fit into Consul. Nothing was sent.
type TooLargeError struct{ Size int }

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("the text has %d bytes, and Consul takes at most %d", e.Size, Limit)
}

const (
	// smallText is the length up to which a text and its history entry fit into one transaction: Consul accepts 512 KB for
	// one, with both in base64.
	smallText = 160 << 10
	// maxPruned is how many history entries one call removes: Consul accepts 128 operations in a transaction.
	maxPruned = 60
	// patience is how long a writer of a large text waits for another writer, which may have given up.
	patience = 2 * time.Second
)

// Apply makes a text the current one of an item, if its version is newer than the current one. Otherwise it returns a
// *NotNewerError, and a *TooLargeError for a text above Limit. Two callers cannot both succeed with one version. While
// Consul is away, Apply tries again until ctx is done. If an answer was lost, it looks up the result.
func (s *Store) Apply(ctx context.Context, i Item, c Change) (Header, error) {
	if len(c.Text) > Limit {
		return Header{}, &TooLargeError{len(c.Text)}
	}
	h := Header{By: c.By, At: time.Now().UTC(), Strategy: c.Strategy, Format: c.Format, Sum: Sum(c.Text)}
	return s.carryOut(ctx, &order{Item: i, header: h, text: c.Text, asked: c.Version})
}

// Remove removes a file. Its history stays, and the numbers continue: the removal also has one. It returns ErrNone if the
// file does not exist. It tries again like Apply.
func (s *Store) Remove(ctx context.Context, i Item, by string) error {
	h := Header{By: by, At: time.Now().UTC(), Format: Removed, Sum: Sum(nil)}
	_, err := s.carryOut(ctx, &order{Item: i, header: h, remove: true})
	return err
}

// order is what to write.
type order struct {
	Item
	header Header // without its numbers
	text   []byte
	asked  uint64 // 0 = the next one
	remove bool
	sent   Header // last header sent to Consul: it may have been written

	begun uint64 // number that another writer has begun
	since time.Time
}

func (o *order) small() bool { return len(o.text) <= smallText }

// waitsFor reports whether to let another writer finish, which has begun a number. Of many large texts only one can become
// current, and the others would be sent in vain.
func (o *order) waitsFor(begun uint64) bool {
	if begun != o.begun {
		o.begun, o.since = begun, time.Now()
	}
	return !o.small() && time.Since(o.since) < patience
}

// lostError means that another writer was first.
type lostError struct{ error }

var errLost = &lostError{errors.New("others write at the same time")}

// busyError means that another writer has begun the requested number.
type busyError struct{ error }

func (s *Store) carryOut(ctx context.Context, o *order) (Header, error) {
	if err := o.validate(); err != nil {
		return Header{}, err
	}
	delays := retry.Delays()
	var before error // of the previous attempt
	for {
		h, err := s.try(ctx, o)
		pause := delays.NextBackOff()
		var away *awayError
		if before != nil && errors.As(err, &away) && ctx.Err() != nil {
			err = before // this attempt had no time of its own: the previous error says more
		}
		before = err
		switch err.(type) {
		case *lostError:
			if o.small() {
				pause = rand.N(20 * time.Millisecond)
			}
		case *busyError:
		default:
			if !errors.As(err, &away) { // done, decided or refused
				return h, err
			}
		}
		if !retry.Pause(ctx, pause) {
			if o.sent.Version > 0 && away != nil {
				err = fmt.Errorf("%w (version %d may have been written: check before you try again)", err, o.sent.Version)
			}
			return Header{}, err
		}
	}
}

// try reads, decides and writes once.
func (s *Store) try(ctx context.Context, o *order) (Header, error) {
	pair, err := s.get(ctx, o.Key())
	if err != nil {
		return Header{}, err
	}
	numbers, err := s.numbers(ctx, o.Item)
	if err != nil {
		return Header{}, err
	}
	if o.sent.Version > 0 {
		if came, err := s.cameThrough(ctx, o, pair, numbers); err != nil || came {
			return o.sent, err
		}
	}
	base, numbered, err := s.base(ctx, o, pair, numbers)
	if err != nil {
		return Header{}, err
	}
	if o.sent.Version > 0 && o.sent.Replaces != base { // it can no longer succeed
		removed, err := s.unclaim(ctx, o.Item, o.sent)
		if err != nil {
			return Header{}, err
		}
		if removed {
			numbers = slices.DeleteFunc(numbers, func(n uint64) bool { return n == o.sent.Version })
		}
		o.sent = Header{}
	}
	newest := base
	if len(numbers) > 0 {
		newest = max(base, numbers[0])
	}
	if o.remove && pair == nil {
		return Header{}, fmt.Errorf("%s: %w", o.Item, ErrNone)
	}

	h := o.header
	h.Replaces = base
	var there entry // under the number of h
	switch {
	case o.asked > 0:
		h.Version = o.asked
		if slices.Contains(numbers, o.asked) {
			if there, err = s.entry(ctx, o.Item, o.asked); err != nil {
				return Header{}, err
			}
		}
		// The text of a number that was last current, or begun, can be restored under it if nothing else is there.
		restores := !numbered && o.asked == base && there.known && there.Sum == h.Sum && there.Format != Removed
		if o.asked <= base && !restores {
			return Header{}, s.notNewer(ctx, o, base)
		}
		if restores {
			h = there.Header
		}
	case o.sent.Version > 0: // the answer was lost; its entry may exist
		h = o.sent
		if there, err = s.entry(ctx, o.Item, h.Version); err != nil {
			return Header{}, err
		}
		if there.index > 0 && !there.same(h) {
			h.Version = newest + 1
			there = entry{}
		}
	default:
		if newest > base && o.waitsFor(newest) {
			return Header{}, errLost
		}
		h.Version = newest + 1
	}
	if h.Version == 0 {
		return Header{}, fmt.Errorf("there is no version after %d: remove %s, then choose a lower number", base, o.Key())
	}

	w := write{pair: &api.KVPair{Key: o.Key(), Flags: h.Version, Value: o.text}, over: there.index}
	if pair != nil {
		w.pair.ModifyIndex = pair.ModifyIndex
	}
	begun := there.Header
	if begun.At = h.At; there.known && begun == h { // begun by an earlier call that did not reach the second write
		h, w.claimed = there.Header, true
	} else if there.index > 0 && !o.small() {
		return Header{}, &busyError{fmt.Errorf("version %d is being %s; if that was given up, use another number", h.Version, there.applied())}
	}
	if w.entry, err = encode(h, o.text); err != nil {
		return Header{}, err
	}
	for _, n := range doomed(numbers, base, h.Version, numbered) {
		w.prune = append(w.prune, o.HistoryKey(n))
	}
	o.sent = h
	if o.small() {
		return h, s.writeSmall(ctx, o, w)
	}
	return h, s.writeLarge(ctx, o, w)
}

// doomed returns the versions that the history loses with version next: begun ones that can no longer become current, and
// the oldest ones.
func doomed(numbers []uint64, base, next uint64, numbered bool) []uint64 {
	var out []uint64
	kept := 1 // next
	for _, n := range numbers {
		switch {
		case n >= next:
		case numbered && n > base:
			out = append(out, n)
		case kept < Kept:
			kept++
		default:
			out = append(out, n)
		}
	}
	return out[:min(len(out), maxPruned)]
}

func (s *Store) notNewer(ctx context.Context, o *order, current uint64) error {
	e, err := s.entry(ctx, o.Item, current)
	if err != nil {
		return err
	}
	e.Version = current
	return &NotNewerError{Asked: o.asked, Current: e.Header}
}

// cameThrough reports whether the sent data was written although the answer was lost.
func (s *Store) cameThrough(ctx context.Context, o *order, pair *api.KVPair, numbers []uint64) (came bool, err error) {
	if o.small() { // all or nothing
		e, err := s.entry(ctx, o.Item, o.sent.Version)
		return e.known && e.same(o.sent), err
	}
	if pair == nil || pair.Flags < o.sent.Version {
		return false, nil
	}
	err = s.walkFrom(ctx, o.Item, pair, numbers, func(e entry) (more bool) {
		came = came || e.same(o.sent)
		return e.Version > o.sent.Version
	})
	return came, err
}

// write is a decided write.
type write struct {
	pair    *api.KVPair // the new current text, with the index that it replaces
	entry   []byte      // of the history
	over    uint64      // index of what exists in place of the entry
	claimed bool        // what exists is the entry itself
	prune   []string
}

// writeSmall writes everything or nothing.
func (s *Store) writeSmall(ctx context.Context, o *order, w write) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	current := &api.KVTxnOp{Verb: api.KVCAS, Key: w.pair.Key, Value: w.pair.Value, Flags: w.pair.Flags, Index: w.pair.ModifyIndex}
	if o.remove {
		current = &api.KVTxnOp{Verb: api.KVDeleteCAS, Key: w.pair.Key, Index: w.pair.ModifyIndex}
	}
	ops := api.TxnOps{{KV: current}, {KV: &api.KVTxnOp{Verb: api.KVCAS, Key: o.HistoryKey(o.sent.Version), Value: w.entry, Index: w.over}}}
	for _, key := range w.prune {
		ops = append(ops, &api.TxnOp{KV: &api.KVTxnOp{Verb: api.KVDelete, Key: key}})
	}
	// Not Txn: it hides the status of answers other than 200 and 409.
	_, err := s.consul.Raw().Write("/v1/txn", ops, nil, new(api.WriteOptions).WithContext(ctx))
	var status api.StatusError
	var answer api.TxnResponse
	if !errors.As(err, &status) || status.Code != http.StatusConflict || json.Unmarshal([]byte(status.Body), &answer) != nil {
		return Explain("write "+w.pair.Key, err)
	}
	for _, e := range answer.Errors {
		if !strings.Contains(e.What, "index is stale") {
			key := w.pair.Key
			if e.OpIndex >= 0 && e.OpIndex < len(ops) {
				key = ops[e.OpIndex].KV.Key
			}
			return &refusedError{fmt.Errorf("write %s: Consul refuses it: %s", key, e.What)}
		}
	}
	return errLost
}

// writeLarge writes the entry first, which claims the number, and then the current text, which makes it count. An entry
// without its second write is never listed.
func (s *Store) writeLarge(ctx context.Context, o *order, w write) error {
	if !w.claimed {
		ok, err := s.cas(ctx, &api.KVPair{Key: o.HistoryKey(o.sent.Version), Value: w.entry})
		if err != nil {
			return err
		}
		if !ok {
			return errLost
		}
	}
	ok, err := s.cas(ctx, w.pair)
	var refused *refusedError
	if errors.As(err, &refused) && !w.claimed {
		_, _ = s.unclaim(ctx, o.Item, o.sent) // if that fails, it also stays unlisted
	}
	if err != nil {
		return err
	}
	if !ok { // the next attempt handles the entry, because an earlier one may have succeeded
		return errLost
	}
	for _, key := range w.prune {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		_, err := s.consul.KV().Delete(key, new(api.WriteOptions).WithContext(ctx))
		cancel()
		if err != nil {
			break // the text is applied; the next one prunes again
		}
	}
	return nil
}

// unclaim removes an own entry that did not become current, and reports whether it existed.
func (s *Store) unclaim(ctx context.Context, i Item, h Header) (bool, error) {
	e, err := s.entry(ctx, i, h.Version)
	if err != nil || !e.known || !e.same(h) {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	key := i.HistoryKey(h.Version)
	_, _, err = s.consul.KV().DeleteCAS(&api.KVPair{Key: key, ModifyIndex: e.index}, new(api.WriteOptions).WithContext(ctx))
	return err == nil, Explain("remove "+key, err)
}

// base returns the number that a new version must exceed, and whether the key itself has one. If a key was deleted, or
// written without a number by another program, the numbers do not start over: the newest number of the history counts,
// except the one begun by this call.
func (s *Store) base(ctx context.Context, o *order, pair *api.KVPair, numbers []uint64) (base uint64, numbered bool, err error) {
	if pair == nil || pair.Flags == 0 {
		for _, n := range numbers {
			if n != o.sent.Version {
				return n, false, nil
			}
		}
		return 0, false, nil
	}
	// A writer that found no file may reach its second write when others have put the file and removed it again:
	// check-and-set cannot distinguish the two absences. The numbers used meanwhile stay taken.
	for _, n := range numbers {
		if o.File == "" || n <= pair.Flags {
			break
		}
		if e, err := s.entry(ctx, o.Item, n); err != nil || e.Format == Removed {
			return n, true, err
		}
	}
	return pair.Flags, true, nil
}
