package haproxy

import (
	"bytes"
	"context"
	"crypto/sha1" //nolint:gosec // it is how HAProxy names a certificate
	"encoding/pem"
	"errors"
	"fmt"
	"iter"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"berth/proxyctl"
)

// A crt-list is changed at run time like a map. A comment before each certificate describes its current state:
//
//	# <SHA1>/<digest> <file> ...
//	/etc/haproxy/tls/a.com.pem
//
// SHA1 is the fingerprint of the certificate itself, as HAProxy shows it. The digest changes with anything else that HAProxy
// reads with it. The files contain the certificate, its chain and its key. A certificate without such a comment is changed by a
// reload.
//
// No text contains the keys: a file is read when HAProxy is given its content.
const listExt = ".crt-list"

// isList reports whether a path is a crt-list.
func isList(path string) bool { return strings.HasSuffix(path, listExt) }

// loaded is what an entry of a crt-list says about a certificate.
type loaded struct {
	first  bool   // it is the default for clients that ask for none of them
	sha1   string // in upper case; "" = a reload changes it
	digest string
	files  []string
}

const isFirst = "first "

var loadedWords = regexp.MustCompile(`^([0-9A-F]{40})/([0-9a-f]*)( /|$)`)

// parseLoaded parses the value of an entry.
func parseLoaded(value string) (l loaded) {
	value, l.first = strings.CutPrefix(value, isFirst)
	if sub := loadedWords.FindStringSubmatch(value); sub != nil {
		l.sha1, l.digest, l.files = sub[1], sub[2], strings.Fields(value)[1:]
	}
	return l
}

// parseList parses a crt-list. The value of a certificate is the comment before it, and whether it is the first one.
func parseList(content string) entries {
	out := entries{}
	comment := ""
	for line := range strings.Lines(content) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			comment = strings.TrimSpace(strings.TrimPrefix(line, "#"))
			continue
		}
		path, options, _ := strings.Cut(line, " ")
		if options != "" {
			comment = options
		}
		if len(out) == 0 {
			comment = isFirst + comment
		}
		if was, twice := out[path]; twice {
			comment = was + " " + comment // meaningless, except that it differs
		}
		out[strings.Clone(path)] = strings.Clone(comment)
		comment = ""
	}
	return out
}

// compareList plans how to get from one crt-list to another: what to add or change, and what to remove. why is the reason for a
// reload, "" if none is needed. A certificate whose files no longer match the list is left alone: the old files are gone, and a
// list that matches the new ones is on its way.
func compareList(list string, was, is entries) (come, gone []op, why string) {
	for _, path := range slices.Sorted(maps.Keys(is)) {
		old, there := was[path]
		if there && old == is[path] {
			continue
		}
		before, after := parseLoaded(old), parseLoaded(is[path])
		switch {
		case there && after.first == before.first && after.sha1 == before.sha1 && before.digest == "" && after.sha1 != "":
			continue // HAProxy shows nothing more about it
		case after.first != before.first:
			return nil, nil, fmt.Sprintf("certificate %s is now the first in its list", path)
		case after.sha1 == "" || there && before.sha1 == "":
			return nil, nil, fmt.Sprintf("certificate %s: only HAProxy can read it, or it has an .ocsp, .issuer or .sctl file", path)
		}
		text, err := pemText(path, after)
		if errors.Is(err, errOutdated) {
			continue
		}
		if len(text) > mostCertificate {
			return nil, nil, fmt.Sprintf("certificate %s has %d bytes, a command takes at most %d", path, len(text), mostCertificate)
		}
		kind := opCertificateAdd
		if there {
			kind = opCertificateSet
		}
		come = append(come, op{kind: kind, backend: list, name: path, value: is[path]})
	}
	for _, path := range slices.Sorted(maps.Keys(was)) {
		if _, stays := is[path]; stays {
			continue
		}
		if parseLoaded(was[path]).first {
			return nil, nil, fmt.Sprintf("certificate %s was the first in its list", path)
		}
		gone = append(gone, op{kind: opCertificateDelete, backend: list, name: path})
	}
	return come, gone, ""
}

// mostCertificate is the maximum size in bytes of a certificate with its chain and its key. A command must fit in HAProxy's
// buffer, which has 16 kB by default.
const mostCertificate = 14_000

var errOutdated = errors.New("its file has been replaced again")

// pemText reads the certificate of a crt-list entry in the form that a HAProxy command takes: without blank lines, which end the
// command, and without anything between the blocks.
func pemText(path string, is loaded) (string, error) {
	var (
		out   bytes.Buffer
		found string
	)
	for _, file := range is.files {
		text, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("%w: certificate %s: %w: %w", proxyctl.ErrUnexpected, path, errOutdated, err)
		}
		for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
			if block.Type == "CERTIFICATE" && found == "" {
				found = fmt.Sprintf("%X", sha1.Sum(block.Bytes)) //nolint:gosec // it is HAProxy's fingerprint
			}
			if len(block.Headers) > 0 {
				return "", fmt.Errorf("%w: certificate %s: its key needs a password", proxyctl.ErrUnexpected, path)
			}
			if err := pem.Encode(&out, block); err != nil {
				return "", fmt.Errorf("%w: certificate %s: %w", proxyctl.ErrUnexpected, path, err)
			}
		}
	}
	if found != is.sha1 {
		return "", fmt.Errorf("%w: certificate %s: %w", proxyctl.ErrUnexpected, path, errOutdated)
	}
	return out.String(), nil
}

// certificateCommand is a command that changes a certificate or a crt-list.
type certificateCommand struct {
	text string
	said []string // the answer contains one of these after success
}

// certificateCommands returns the commands that carry out a change of a crt-list.
func certificateCommands(o op) ([]certificateCommand, error) {
	if o.kind == opCertificateDelete {
		return []certificateCommand{
			{"del ssl crt-list " + o.backend + " " + o.name, []string{"deleted in crtlist", "does not exist"}},
			{"del ssl cert " + o.name, []string{"deleted!", "doesn't exist", "in use"}}, // because another list uses it
		}, nil
	}
	text, err := pemText(o.name, parseLoaded(o.value))
	if err != nil {
		return nil, err
	}
	out := []certificateCommand{
		{"set ssl cert " + o.name + " <<\n" + text, []string{"Transaction created for certificate " + o.name + "!", "Transaction updated for certificate " + o.name + "!"}},
		{"commit ssl cert " + o.name, []string{"Success!"}},
	}
	if o.kind == opCertificateAdd {
		out = slices.Insert(out, 0, certificateCommand{"new ssl cert " + o.name, []string{"New empty certificate", "already exists"}})
		out = append(out, certificateCommand{"add ssl crt-list " + o.backend + " " + o.name, []string{"Success!"}})
	}
	return out, nil
}

// changeLists changes crt-lists of the worker whose mark has this shape. Each command is a separate exchange: an answer may
// contain blank lines, after which the master loses the last answer of an exchange.
func (m master) changeLists(ctx context.Context, ops []op, shape string) error {
	for _, o := range ops {
		commands, err := certificateCommands(o)
		if err != nil {
			return err
		}
		for _, c := range commands {
			reply, err := m.worker(ctx, "show env "+markName, c.text)
			if err == nil {
				reply, err = checkMark(reply, shape)
			}
			if err != nil {
				return err
			}
			if slices.ContainsFunc(c.said, func(said string) bool { return strings.Contains(reply, said) }) {
				continue
			}
			if o.kind != opCertificateDelete {
				_, _ = m.worker(ctx, "abort ssl cert "+o.name) // otherwise no other certificate could be changed
			}
			return &refusal{string(o.kind), o.name, oneLine(reply)}
		}
	}
	return nil
}

// lists reads the crt-lists of a configuration file from HAProxy. The value of a certificate is its fingerprint, and whether it
// is the first one.
func (m master) lists(ctx context.Context, file string) (map[string]entries, error) {
	reply, err := m.worker(ctx, "show ssl crt-list")
	if err != nil {
		return nil, err
	}
	var paths []string
	for line := range strings.Lines(reply) {
		if path := strings.TrimSpace(line); isList(path) && isBeside(file, path) {
			paths = append(paths, strings.Clone(path))
		}
	}
	out := map[string]entries{}
	for _, path := range paths {
		if out[path], err = m.list(ctx, path); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// mostCertificates is how many certificates one line asks HAProxy for, so that the line does not get too long.
const mostCertificates = 20

// list reads one crt-list.
func (m master) list(ctx context.Context, path string) (entries, error) {
	reply, err := m.worker(ctx, "show ssl crt-list -n "+path)
	if err != nil {
		return nil, err
	}
	var files []string
	for line := range strings.Lines(reply) {
		entry, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		if at := strings.LastIndexByte(entry, ':'); at > 0 && strings.HasPrefix(entry, "/") {
			files = append(files, strings.Clone(entry[:at]))
		}
	}
	out := entries{}
	for some := range slices.Chunk(files, mostCertificates) {
		var commands []string
		for _, file := range some {
			out[file] = ""
			commands = append(commands, "show ssl cert "+file)
		}
		reply, err := m.worker(ctx, commands...)
		if err != nil {
			return nil, err
		}
		maps.Copy(out, fingerprints(reply))
	}
	if len(files) > 0 {
		out[files[0]] = isFirst + out[files[0]]
	}
	return out, nil
}

// fingerprints parses the reply to "show ssl cert".
func fingerprints(reply string) entries {
	out := entries{}
	file := ""
	for line := range strings.Lines(reply) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch name {
		case "Filename":
			file = strings.Clone(value)
		case "SHA1 FingerPrint":
			out[file] = value + "/"
		}
	}
	return out
}

// withFound returns the entries of a crt-list as HAProxy has them, where e are the entries of the text. What HAProxy does not
// show is assumed to be as in the text.
func (e entries) withFound(has entries) entries {
	out := entries{}
	for path, found := range has {
		value, there := e[path]
		is, shown := parseLoaded(value), parseLoaded(found)
		if !there || is.first != shown.first || is.sha1 != "" && shown.sha1 != "" && is.sha1 != shown.sha1 {
			value = found
		}
		out[path] = value
	}
	return out
}

// mergeList returns the content of a crt-list with the certificates in keep as they are in base, if base has them.
func mergeList(base, to string, keep map[string]bool) string {
	before := map[string]string{}
	for path, block := range listBlocks(base) {
		before[path] = block
	}
	var b strings.Builder
	for path, block := range listBlocks(to) {
		if keep[path] {
			block = before[path]
		}
		b.WriteString(block)
	}
	return b.String()
}

// listBlocks yields the lines of a crt-list, each with the comments before it.
func listBlocks(content string) iter.Seq2[string, string] {
	return func(yield func(path, block string) bool) {
		block := ""
		for line := range strings.Lines(content) {
			block += line
			if path, _, _ := strings.Cut(strings.TrimSpace(line), " "); path != "" && path[0] != '#' {
				if !yield(path, block) {
					return
				}
				block = ""
			}
		}
	}
}

// withoutUnfit returns the configuration with certificates that HAProxy does not accept at run time left as in base.
func (d *driver) withoutUnfit(base, to *config) *config {
	var changed []string
	for path, is := range to.maps {
		if was, there := base.maps[path]; there && isList(path) && !maps.Equal(was, is) {
			changed = append(changed, path)
		}
	}
	if len(changed) == 0 {
		return to
	}
	out := *to
	out.maps = maps.Clone(to.maps)
	contents, rest := cutMaps(to.preamble)
	before, _ := cutMaps(base.preamble)
	for _, path := range changed {
		was, is := base.maps[path], to.maps[path]
		come, _, why := compareList(path, was, is)
		keep := map[string]bool{}
		for _, o := range come {
			keep[o.name] = d.unfit([]op{o}, to) != ""
		}
		content := mergeList(before[path], contents[path], keep)
		if why != "" || time.Since(d.suspect[path]) <= suspectFor {
			content = before[path]
		}
		contents[path] = content
		out.maps[path] = parseList(content)
	}
	out.preamble = WithMaps(rest, contents)
	return &out
}

// certificateKey distinguishes a certificate that HAProxy has refused from a new one.
func certificateKey(path, value string) string { return "certificate " + path + " " + value }

// certificate returns what the crt-lists say about a certificate.
func (c *config) certificate(file string) string {
	for path, is := range c.maps {
		if value, there := is[file]; there && isList(path) {
			return value
		}
	}
	return ""
}
