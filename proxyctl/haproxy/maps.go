package haproxy

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"berth/proxyctl"
)

// A text may start with the contents of maps and crt-lists, each for a file named after the configuration file. These files are
// berth's, and change together with the running HAProxy, without a reload. Their contents are part of the text, so they are kept,
// compared and restored with it.
const (
	mapsHead  = "# These files are changed in the running HAProxy. Each is beside this one.\n"
	mapsBegin = "#map "
	mapsEntry = "#  "
	mapsEnd   = "#end of maps\n"
)

// WithMaps returns a text preceded by the contents of its maps and crt-lists, by path.
func WithMaps(text string, contents map[string]string) string {
	if len(contents) == 0 {
		return text
	}
	var b strings.Builder
	b.WriteString(mapsHead)
	for _, path := range slices.Sorted(maps.Keys(contents)) {
		b.WriteString(mapsBegin + path + "\n")
		for line := range strings.Lines(contents[path]) {
			b.WriteString(mapsEntry + strings.TrimSuffix(line, "\n") + "\n")
		}
	}
	b.WriteString(mapsEnd)
	b.WriteString(text)
	return b.String()
}

// cutMaps returns the contents of the maps and crt-lists at the start of a text, by path, and the rest of the text.
func cutMaps(text string) (contents map[string]string, rest string) {
	rest, ok := strings.CutPrefix(text, mapsHead)
	if !ok {
		return nil, text
	}
	contents = map[string]string{}
	path := ""
	var content strings.Builder
	end := func() {
		if path != "" {
			contents[path] = content.String()
		}
		content.Reset()
	}
	for {
		line, after, _ := strings.Cut(rest, "\n")
		switch entry, isEntry := strings.CutPrefix(line, mapsEntry); {
		case strings.HasPrefix(line, mapsBegin):
			end()
			path = strings.TrimPrefix(line, mapsBegin)
		case isEntry && path != "":
			content.WriteString(entry + "\n")
		case line+"\n" == mapsEnd:
			end()
			return contents, after
		default: // the text was edited
			return nil, text
		}
		rest = after
	}
}

var besideFile = regexp.MustCompile(`^[A-Za-z0-9_-]+\.(map|crt-list)$`)

// isBeside reports whether a path is a map or a crt-list of a configuration file.
func isBeside(file, path string) bool {
	file, err := filepath.Abs(file)
	name, ok := strings.CutPrefix(path, file+".")
	return err == nil && ok && besideFile.MatchString(name)
}

// Beside implements proxyctl.Grammar. It returns the maps and crt-lists of a text.
func (d *driver) Beside(text string) map[string]string {
	contents, _ := cutMaps(text)
	maps.DeleteFunc(contents, func(path, _ string) bool { return !isBeside(d.opts.File, path) })
	return contents
}

// Between implements proxyctl.Grammar. Maps change together with the backends they lead to, but no two files can be replaced at
// once.
func (d *driver) Between(from, to string) map[string]string {
	before, out := d.Beside(from), d.Beside(to)
	if maps.Equal(before, out) {
		return out
	}
	had, has := backendNames(from), backendNames(to)
	for path, after := range out {
		if was, there := before[path]; there && !isList(path) {
			out[path] = between(was, after, had, has)
		}
	}
	return out
}

// between returns a map that suits two texts with these backends. A key leads to its new backend if both texts have that,
// otherwise to its old one. Entries about a backend exist as long as the backend does. If a key moves from a backend that goes to
// one that comes, no backend is in both texts: the key keeps the one that goes, because without it a shorter key might lead to
// another service.
func between(was, to string, had, has map[string]bool) string {
	before, after := parseEntries(was), parseEntries(to)
	out := maps.Clone(after)
	for key, value := range after {
		if !has[value] || had[value] {
			continue
		}
		delete(out, key)
		if old, there := before[key]; there {
			out[key] = old
		}
	}
	for key, value := range before {
		if _, stays := after[key]; !stays && had[key] && !has[key] {
			out[key] = value
		}
	}
	switch {
	case maps.Equal(out, before):
		return was
	case maps.Equal(out, after):
		return to
	}
	return out.content()
}

// backendNames returns the names of a text's backends.
func backendNames(text string) map[string]bool {
	out := map[string]bool{}
	for line := range strings.Lines(text) {
		if !opensSection(line) {
			continue
		}
		if w, _ := words(line); len(w) > 1 && (section{kind: w[0]}).isProxy() {
			out[w[1]] = true
		}
	}
	return out
}

// entries maps the keys of a map to their values, or the certificates of a crt-list to what is known about them. They never
// change once they are read.
type entries map[string]string

// parseEntries parses a map as HAProxy does: the first of two lines with the same key counts.
func parseEntries(content string) entries {
	out := entries{}
	for line := range strings.Lines(content) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		key, value := line, ""
		if at := strings.IndexAny(line, " \t"); at >= 0 {
			key, value = line[:at], strings.TrimLeft(line[at:], " \t")
		}
		if _, twice := out[key]; !twice {
			out[strings.Clone(key)] = strings.Clone(value)
		}
	}
	return out
}

// readMaps returns the maps at the start of a text. before is the configuration of a similar text, or nil: unchanged maps are
// taken from it.
func readMaps(preamble string, before *config) map[string]entries {
	if before != nil && before.preamble == preamble {
		return before.maps
	}
	contents, _ := cutMaps(preamble)
	out := map[string]entries{}
	for path, content := range contents {
		if isList(path) {
			out[strings.Clone(path)] = parseList(content)
		} else {
			out[strings.Clone(path)] = parseEntries(content)
		}
	}
	return out
}

// mapsError returns what is wrong with the maps and crt-lists of a text, nil if nothing is.
func (d *driver) mapsError(c *config) error {
	for _, path := range slices.Sorted(maps.Keys(c.maps)) {
		if !isBeside(d.opts.File, path) {
			return fmt.Errorf("%w: a map must be in a file named %s.<name>.map, or %[2]s.<name>%s for certificates, not %s", proxyctl.ErrRefused, d.opts.File, listExt, path)
		}
		if isList(path) {
			continue
		}
		for _, key := range slices.Sorted(maps.Keys(c.maps[path])) {
			if c.maps[path][key] == "" {
				return fmt.Errorf("%w: %s: key %.100q has no value", proxyctl.ErrRefused, filepath.Base(path), key)
			}
		}
	}
	return nil
}

// mergeMaps returns the contents of to's maps, to precede a text of base. Entries about backends in keep stay as in base. Entries
// about backends in lacks, which the text does not have, are left out or stay as in base.
func mergeMaps(base, to *config, keep, lacks map[string]bool) string {
	if len(keep)+len(lacks) == 0 {
		return to.preamble
	}
	contents, rest := cutMaps(to.preamble)
	for path, is := range to.maps {
		was, all := base.maps[path], maps.Clone(is)
		for key, value := range was {
			if _, there := all[key]; !there && (keep[key] || keep[value]) {
				all[key] = value
			}
		}
		for key, value := range is {
			if !lacks[key] && !lacks[value] {
				continue
			}
			delete(all, key)
			if old, there := was[key]; there {
				all[key] = old
			}
		}
		if maps.Equal(all, is) {
			continue
		}
		contents[path] = all.content()
	}
	return WithMaps(rest, contents)
}

// content returns a map as the content of a file.
func (e entries) content() string {
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(e)) {
		b.WriteString(key + " " + e[key] + "\n")
	}
	return b.String()
}

// routedTo returns which of these backends the maps lead to.
func routedTo(backends []string, of map[string]entries) (routed []string) {
	if len(backends) == 0 {
		return nil
	}
	values := map[string]bool{}
	for _, is := range of {
		for _, value := range is {
			values[value] = true
		}
	}
	for _, name := range backends {
		if values[name] {
			routed = append(routed, name)
		}
	}
	return routed
}

// inCommands matches a key or value of a map that can be written in a command.
var inCommands = regexp.MustCompile(`^[A-Za-z0-9_.:/*@%+~=,&!?()\[\]{}|^$-][A-Za-z0-9_.:/*@%+~=,&!?()\[\]{}|^$#-]*$`)

// compareMaps plans how to get from one configuration's maps to another's. Other entries about a backend come before the entries
// that lead to it, and go after them.
func compareMaps(before, after *config) plan {
	var come, ops, routes, unrouted, gone []op
	for _, path := range slices.Sorted(maps.Keys(after.maps)) {
		was, known := before.maps[path]
		is := after.maps[path]
		if !known {
			return plan{Reload: "map " + filepath.Base(path) + " added"}
		}
		if isList(path) {
			certificates, removed, why := compareList(path, was, is)
			if why != "" {
				return plan{Reload: why}
			}
			come, gone = append(come, certificates...), append(gone, removed...)
			continue
		}
		if ownMap(path) {
			continue
		}
		for _, key := range slices.Sorted(maps.Keys(is)) {
			old, there := was[key]
			if there && old == is[key] {
				continue
			}
			kind := opMapAdd
			if there {
				kind = opMapSet
			}
			list := &ops
			if _, leads := after.backends[is[key]]; leads {
				list = &routes
			}
			*list = append(*list, op{kind: kind, backend: path, name: key, value: is[key]})
		}
		for _, key := range slices.Sorted(maps.Keys(was)) {
			if _, stays := is[key]; stays {
				continue
			}
			list := &gone
			if _, leads := before.backends[was[key]]; leads {
				list = &unrouted
			}
			*list = append(*list, op{kind: opMapDelete, backend: path, name: key})
		}
	}
	ops = slices.Concat(come, ops, routes, unrouted, gone)
	for _, o := range ops {
		if o.isCertificate() {
			continue
		}
		if !inCommands.MatchString(o.name) || o.value != "" && !inCommands.MatchString(o.value) {
			return plan{Reload: fmt.Sprintf("map %s: the entry of %.100q cannot be written in a command", filepath.Base(o.backend), o.name)}
		}
	}
	return plan{Ops: ops}
}

// heldMap is the name of the map with the driver's own entries: backends whose last server has left, while requests wait for the
// next one. In a text, it is empty.
const heldMap = "held.map"

// ownMap reports whether the entries of a map are the driver's own.
func ownMap(path string) bool { return strings.HasSuffix(path, "."+heldMap) }

// mapNamed returns the path and the entries of the map with this name, or "" and nil if the configuration has no such map.
func (c *config) mapNamed(name string) (path string, is entries) {
	for path, is := range c.maps {
		if strings.HasSuffix(path, "."+name) {
			return path, is
		}
	}
	return "", nil
}

// readEntries parses the reply to "show map" for one map: each line has an address, the key, and the value.
func readEntries(reply string) entries {
	out := entries{}
	for line := range strings.Lines(reply) {
		address, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		key, value, _ := strings.Cut(rest, " ")
		if !strings.HasPrefix(address, "0x") || key == "" {
			continue
		}
		if _, twice := out[key]; !twice {
			out[strings.Clone(key)] = strings.Clone(value)
		}
	}
	return out
}

// loadedMaps finds the paths in the list of "show map": 0 (/etc/haproxy/haproxy.cfg.routes.map) pattern loaded from file ...
var loadedMaps = regexp.MustCompile(`(?m)^-?[0-9]+ \(([^)\n]+)\) `)

// maps reads the maps and crt-lists of a configuration file from HAProxy.
func (m master) maps(ctx context.Context, file string) (map[string]entries, error) {
	reply, err := m.worker(ctx, "show map")
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, sub := range loadedMaps.FindAllStringSubmatch(reply, -1) {
		if isBeside(file, sub[1]) && !slices.Contains(paths, sub[1]) {
			paths = append(paths, strings.Clone(sub[1]))
		}
	}
	out, err := m.entries(ctx, paths)
	if err != nil {
		return nil, err
	}
	lists, err := m.lists(ctx, file)
	maps.Copy(out, lists)
	return out, err
}

// entries reads these maps and crt-lists.
func (m master) entries(ctx context.Context, paths []string) (map[string]entries, error) {
	out := map[string]entries{}
	for _, path := range paths {
		if isList(path) {
			is, err := m.list(ctx, path)
			if err != nil {
				return nil, err
			}
			out[path] = is
			continue
		}
		reply, err := m.worker(ctx, "show map "+path)
		if err != nil {
			return nil, err
		}
		out[path] = readEntries(reply)
	}
	return out, nil
}

// withMaps returns the configuration with its maps and crt-lists as HAProxy has them.
func (c *config) withMaps(has map[string]entries) *config {
	out := *c
	out.maps = maps.Clone(c.maps)
	for path, text := range out.maps {
		is, there := has[path]
		if there && isList(path) {
			is = text.withFound(is)
		}
		if there {
			out.maps[path] = is
		}
	}
	return &out
}

// changedMaps returns the maps and crt-lists that ops change.
func changedMaps(ops []op) (paths []string) {
	for _, o := range ops {
		path := o.backend
		if o.kind == opLinger {
			path = o.value
		}
		if (o.isEntry() || o.kind == opLinger) && !slices.Contains(paths, path) {
			paths = append(paths, path)
		}
	}
	return paths
}
