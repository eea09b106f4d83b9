package haproxy

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"berth/proxyctl"
)

// plan is how to get from one configuration to another: by a reload, or by commands to the running HAProxy. Servers are added
// before others are removed, so no backend is empty in between.
type plan = proxyctl.Plan[op]

// op is a change of one server, one bare backend, or one entry of a map or crt-list.
type op struct {
	kind          opKind
	backend, name string // for a map or crt-list, its path and the key; for a backend, name is empty
	server        server // the desired server
	value         string // for an entry, the desired value; for a lingering server, the path of held.map; for a backend, its defaults section
	again         bool   // the server, or another one of its backend, already lingers
}

type opKind string

const (
	opAdd    opKind = "add"
	opBack   opKind = "put back" // into service, after draining or manual removal
	opMaint  opKind = "take out" // of service
	opMove   opKind = "move"     // to another address or port
	opWeight opKind = "set weight of"
	opRemove opKind = "remove"
	opLinger opKind = "let linger" // while requests wait for another one
	opCheck  opKind = "check"      // again, after lingering

	opCreate    opKind = "add backend"
	opPublish   opKind = "publish backend" // requests may go to it
	opUnpublish opKind = "remove backend"  // requests no longer go to it; it is deleted when it has finished

	opMapAdd    opKind = "add to map"
	opMapSet    opKind = "change in map"
	opMapDelete opKind = "delete from map"

	opCertificateAdd    opKind = "add certificate"
	opCertificateSet    opKind = "renew certificate"
	opCertificateDelete opKind = "remove certificate"
)

// isEntry reports whether op changes an entry of a map or crt-list.
func (o op) isEntry() bool {
	return o.kind == opMapAdd || o.kind == opMapSet || o.kind == opMapDelete || o.isCertificate()
}

// isCertificate reports whether op changes an entry of a crt-list.
func (o op) isCertificate() bool {
	return o.kind == opCertificateAdd || o.kind == opCertificateSet || o.kind == opCertificateDelete
}

// isBackend reports whether op changes a backend itself.
func (o op) isBackend() bool {
	return o.kind == opCreate || o.kind == opPublish || o.kind == opUnpublish
}

func (o op) String() string {
	if o.isBackend() {
		return strings.TrimSuffix(fmt.Sprintf("%s %s from %s", o.kind, o.backend, o.value), " from ")
	}
	if o.isCertificate() {
		return fmt.Sprintf("%s %s", o.kind, o.name)
	}
	if o.isEntry() {
		return fmt.Sprintf("%s %s: %s", o.kind, filepath.Base(o.backend), strings.TrimSpace(o.name+" "+o.value))
	}
	s := fmt.Sprintf("%s %s/%s", o.kind, o.backend, o.name)
	switch o.kind {
	case opMove:
		s += " to " + o.server.address.String()
	case opWeight:
		s += fmt.Sprintf(" to %d", o.server.weight)
	}
	return s
}

// serversOf returns the servers and backends that ops change.
func serversOf(ops []op) (names []serverName) {
	for _, o := range ops {
		if !o.isEntry() {
			names = append(names, serverName{o.backend, o.name})
		}
	}
	return names
}

// compare plans how to get from one configuration to another. Comments, blank lines and the order of servers and of bare backends
// do not count. Any difference other than in servers, bare backends and map entries takes a reload.
func compare(before, after *config) plan {
	if why := difference(before.fixed(), after.fixed()); why != "" {
		return plan{Reload: why}
	}
	p := compareServers(before, after)
	for _, o := range p.Ops {
		if o.kind == opUnpublish && after.refersToBackend(o.backend) {
			return plan{Reload: fmt.Sprintf("backend %s removed, but the configuration seems to refer to it", o.backend)}
		}
		if o.kind == opRemove && after.refersTo(o.backend, o.name) {
			return plan{Reload: fmt.Sprintf("backend %s: server %s removed, but the configuration seems to refer to it", o.backend, o.name)}
		}
	}
	for _, c := range []*config{before, after} {
		if c.reloadReason != "" && (p.Reload != "" || len(p.Ops) > 0) {
			return plan{Reload: c.reloadReason}
		}
	}
	return p
}

// compareServers plans the changes of servers, bare backends and map entries. No backend gets requests before it has servers, and
// none is removed while requests can reach it.
func compareServers(before, after *config) plan {
	come, publish, away, why := compareBare(before.bare, after.bare)
	if why != "" {
		return plan{Reload: why}
	}
	var enter, change, leave []op
	changed := slices.Collect(maps.Keys(after.backends))
	for _, o := range away {
		changed = append(changed, o.backend)
	}
	slices.Sort(changed)
	for _, name := range changed {
		p := compareBackend(name, before.backends[name], after.backends[name])
		if p.Reload != "" {
			return p
		}
		for _, o := range p.Ops {
			switch o.kind {
			case opAdd:
				enter = append(enter, o)
			case opMaint, opRemove:
				leave = append(leave, o)
			default:
				change = append(change, o)
			}
		}
	}
	inMaps := compareMaps(before, after)
	return plan{Reload: inMaps.Reload, Ops: slices.Concat(come, enter, publish, change, inMaps.Ops, away, leave)}
}

func compareBackend(backend string, was, is *backend) plan {
	if was == is {
		return plan{}
	}
	var ops []op
	for _, name := range is.names() {
		new := is.servers[name]
		old, there := was.get(name)
		if there && !old.draining && old.equal(new) {
			continue
		}
		if why := immutable(old, new, there); why != "" {
			return plan{Reload: fmt.Sprintf("backend %s: server %s: %s", backend, name, why)}
		}
		do := func(kind opKind) { ops = append(ops, op{kind: kind, backend: backend, name: name, server: new}) }
		if !there {
			do(opAdd)
			continue
		}
		if old.reloadReason == "" && old.address != new.address {
			do(opMove)
		}
		if old.reloadReason == "" && old.weight != new.weight {
			do(opWeight)
		}
		switch out := old.draining || old.disabled; {
		case out && !new.disabled:
			do(opBack)
		case old.draining && new.disabled, !out && new.disabled:
			do(opMaint)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(was.all())) {
		if _, stays := is.get(name); stays || was.servers[name].draining {
			continue
		}
		ops = append(ops, op{kind: opRemove, backend: backend, name: name})
	}
	for _, o := range ops {
		if !names.MatchString(o.name) || !names.MatchString(backend) {
			return plan{Reload: fmt.Sprintf("backend %s: the name of server %s cannot be written in a command", backend, o.name)}
		}
	}
	if is != nil && is.off && len(ops) > 0 { // HAProxy 3.4.7 crashes when a server is added there
		return plan{Reload: fmt.Sprintf("backend %s is disabled", backend)}
	}
	return plan{Ops: ops}
}

// immutable returns why a server cannot become another one at run time, "" if it can.
func immutable(old, new server, there bool) string {
	switch {
	case there && old.sameLine(new):
		return ""
	case new.reloadReason != "":
		return new.reloadReason
	case !there:
		return ""
	case old.reloadReason != "":
		return "changed: " + old.reloadReason
	case old.unknown:
		return "HAProxy has a server of that name that is not berth's"
	}
	if old.keywords != new.keywords {
		return fmt.Sprintf("%q became %q", old.keywords, new.keywords)
	}
	return ""
}

// difference describes the first difference between two configurations apart from their servers, "" if there is none.
func difference(before, after []section) string {
	heads := func(sections []section) []string {
		var out []string
		for _, s := range sections {
			out = append(out, s.head)
		}
		return out
	}
	if was, is := heads(before), heads(after); !slices.Equal(was, is) {
		return listDifference(was, is, "sections", func(head string) string { return head })
	}
	for i, s := range after {
		if was, is := before[i].raw, s.raw; !slices.Equal(was, is) {
			return s.String() + ": " + listDifference(was, is, "lines", func(line string) string {
				word, _, _ := strings.Cut(line, " ")
				return word + " line"
			})
		}
	}
	return ""
}

// listDifference describes how two unequal lists differ.
func listDifference(before, after []string, what string, name func(string) string) string {
	count := map[string]int{}
	for _, s := range before {
		count[s]--
	}
	for _, s := range after {
		count[s]++
	}
	first := func(list []string, sign int) string {
		for _, s := range list {
			if count[s]*sign > 0 {
				return name(s)
			}
		}
		return ""
	}
	added, removed := first(after, 1), first(before, -1)
	switch {
	case added == "" && removed == "":
		return what + " in another order"
	case added == removed:
		return added + " changed"
	case removed == "":
		return added + " added"
	case added == "":
		return removed + " removed"
	}
	return added + " added, " + removed + " removed"
}
