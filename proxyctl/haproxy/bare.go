package haproxy

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"berth/proxyctl"
)

// bare is a backend whose section consists only of its name, the defaults section with all its settings, and servers. HAProxy can
// add and delete such backends while it runs.
type bare struct {
	from    string // the defaults section
	leaving bool   // it gets no requests, and is deleted when it has finished
}

// dynamicBackends is the first HAProxy version that adds and deletes backends at run time.
const dynamicBackends = "3.4"

// findBare marks the sections that are bare backends.
func (p *parser) findBare() {
	p.bare = map[string]bare{}
	times := map[string]int{} // how often a defaults section occurs
	for i, s := range p.sections {
		p.sections[i].bare = false
		if s.kind == "defaults" && s.name != "" {
			times[s.name]++
		}
	}
	if p.reloadReason != "" {
		return
	}
	for i, s := range p.sections {
		if s.kind == "backend" && len(s.raw) == 0 && times[s.from] == 1 && s.head == "backend "+s.name+" from "+s.from &&
			names.MatchString(s.name) && names.MatchString(s.from) {
			p.sections[i].bare = true
			p.bare[s.name] = bare{from: s.from}
		}
	}
}

// fixed returns the sections that cannot come and go at run time.
func (c *config) fixed() (fixed []section) {
	for _, s := range c.sections {
		if !s.bare {
			fixed = append(fixed, s)
		}
	}
	return fixed
}

// compareBare plans which backends to add, to publish and to remove. why is the reason for a reload.
func compareBare(before, after map[string]bare) (come, publish, away []op, why string) {
	for _, name := range slices.Sorted(maps.Keys(after)) {
		is := after[name]
		was, there := before[name]
		switch {
		case there && was.from != is.from:
			return nil, nil, nil, fmt.Sprintf("backend %s: now from %s, was from %s", name, is.from, was.from)
		case there && !was.leaving:
			continue
		case !there:
			come = append(come, op{kind: opCreate, backend: name, value: is.from})
		}
		publish = append(publish, op{kind: opPublish, backend: name})
	}
	for _, name := range slices.Sorted(maps.Keys(before)) {
		if _, stays := after[name]; !stays && !before[name].leaving {
			away = append(away, op{kind: opUnpublish, backend: name})
		}
	}
	return come, publish, away, ""
}

// refersToBackend reports whether a line seems to refer to this backend by name: use_backend, nbsrv(app). HAProxy does not load a
// configuration that refers to a backend it does not have.
func (c *config) refersToBackend(name string) bool {
	for _, s := range c.sections {
		for _, line := range s.raw {
			word, _, _ := strings.Cut(line, " ")
			if (word == "use_backend" || word == "default_backend") && containsName(line, name) ||
				strings.Contains(line, "("+name+")") || strings.Contains(line, "("+name+"/") || strings.Contains(line, "("+name+",") {
				return true
			}
		}
		for _, line := range s.backend.opaqueLines() {
			if strings.Contains(line, name+"/") {
				return true
			}
		}
	}
	return false
}

// sameDefaults reports whether two configurations have the same defaults section of this name. The defaults sections before it
// must be the same, too.
func (c *config) sameDefaults(name string, o *config) bool {
	of := func(c *config) (out []section) {
		for _, s := range c.sections {
			if s.kind == "defaults" {
				out = append(out, s)
			}
			if s.kind == "defaults" && s.name == name {
				return out
			}
		}
		return nil
	}
	was, is := of(c), of(o)
	return len(was) > 0 && difference(was, is) == ""
}

// lacks returns the backends of to that c has no section for.
func (c *config) lacks(to *config) map[string]bool {
	out := map[string]bool{}
	for name := range to.backends {
		out[name] = true
	}
	for _, s := range c.sections {
		if s.isProxy() {
			delete(out, s.name)
		}
	}
	return out
}

// withBackends returns the configuration with the bare backends that HAProxy has: those in the text, and those in own, which are
// in no text and map to the defaults section they were made from. Backends in except stay as they are.
func (c *config) withBackends(has map[string]bool, own map[string]string, except map[string]bool) *config {
	out := c.clone()
	for name, b := range c.bare {
		published, there := has[name]
		switch {
		case except[name]:
		case !there:
			delete(out.bare, name)
			delete(out.backends, name)
		default:
			b.leaving = !published
			out.bare[name] = b
		}
	}
	for name, from := range own {
		if published, there := has[name]; there && c.backends[name] == nil {
			out.bare[name], out.backends[name] = bare{from, !published}, &backend{}
		}
	}
	return out
}

// backends returns which of these backends HAProxy has, or all backends if no names are given, and whether requests may go to
// each.
func (m master) backends(ctx context.Context, names ...string) (map[string]bool, error) {
	if len(names) > mostShown {
		names = nil
	}
	if names == nil {
		names = []string{"-1"} // all
	}
	var lines []string
	for _, name := range names {
		lines = append(lines, "show stat "+name+" 2 -1")
	}
	reply, err := m.worker(ctx, lines...)
	if err != nil {
		return nil, err
	}
	return parseBackends(reply)
}

// parseBackends parses one or more replies to "show stat" for backends.
func parseBackends(reply string) (map[string]bool, error) {
	out := map[string]bool{}
	status := -1
	for line := range strings.Lines(reply) {
		line = strings.TrimSpace(line)
		heads, isHead := strings.CutPrefix(line, "# ")
		switch {
		case line == "" || line == "No such proxy.":
			continue
		case isHead:
			status = slices.Index(strings.Split(heads, ","), "status")
			continue
		}
		fields := strings.SplitN(line, ",", status+2)
		if status < 0 || len(fields) <= status {
			return nil, fmt.Errorf("%w: not a backend state: %s", proxyctl.ErrUnreachable, oneLine(line))
		}
		out[strings.Clone(fields[0])] = !strings.Contains(fields[status], "UNPUB")
	}
	return out, nil
}
