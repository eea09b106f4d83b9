package haproxy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// live is a server as HAProxy has it.
type live struct {
	name     string
	address  netip.AddrPort // invalid if the server has no IP address or port
	weight   int
	disabled bool // in maintenance or draining, by command or configuration
	id       int
	checked  bool // it has health checks
	checking bool // and they are enabled
}

// state is the reply to "show servers state", by backend.
type state map[string][]live

// The bits of srv_admin_state that take a server out of service (HAProxy management guide). 4, disabled by the
// configuration, stays set when the server is enabled later.
const (
	adminForcedMaint = 0x01
	adminForcedDrain = 0x08
)

// The bits of srv_check_state (include/haproxy/check-t.h).
const (
	checkConfigured = 0x02
	checkEnabled    = 0x04
)

// stateColumns are the columns that are read. The others differ between versions.
var stateColumns = []string{"be_name", "srv_id", "srv_name", "srv_addr", "srv_admin_state", "srv_uweight", "srv_port", "srv_check_state"}

// parseState parses one or more replies to "show servers state", for one backend or for all.
func parseState(reply string) (state, error) {
	out := state{}
	var (
		at []int // indexes of stateColumns
		f  []string
	)
	for line := range strings.Lines(reply) {
		f = fields(f[:0], line)
		switch {
		case len(f) == 0 || len(f) == 1 && f[0] == "1":
			continue
		case f[0] == "#":
			at = nil
			for _, name := range stateColumns {
				i := slices.Index(f, name)
				if i < 0 {
					return nil, fmt.Errorf("server state: no column %s: %s", name, oneLine(line))
				}
				at = append(at, i-1)
			}
			continue
		case at == nil || len(f) <= slices.Max(at):
			return nil, fmt.Errorf("not a server state: %s", oneLine(line))
		}
		var n [5]int // id, admin state, weight, port, check state
		for i, column := range []int{1, 4, 5, 6, 7} {
			var err error
			if n[i], err = strconv.Atoi(f[at[column]]); err != nil {
				return nil, fmt.Errorf("not a server state: %s", oneLine(line))
			}
		}
		l := live{name: f[at[2]], id: n[0], weight: n[2]}
		l.disabled = n[1]&(adminForcedMaint|adminForcedDrain) != 0
		l.checked, l.checking = n[4]&checkConfigured != 0, n[4]&checkEnabled != 0
		if ip, err := netip.ParseAddr(f[at[3]]); err == nil && n[3] > 0 && n[3] < 1<<16 {
			l.address = netip.AddrPortFrom(ip, uint16(n[3]))
		}
		out[f[at[0]]] = append(out[f[at[0]]], l)
	}
	return out, nil
}

// fields is like strings.Fields, but appends to an existing slice.
func fields(out []string, line string) []string {
	for {
		line = strings.TrimLeft(line, " \t\r\n")
		if line == "" {
			return out
		}
		end := strings.IndexAny(line, " \t\r\n")
		if end < 0 {
			end = len(line)
		}
		out = append(out, line[:end])
		line = line[end:]
	}
}

// clone returns a copy of the configuration whose backends may be replaced.
func (c *config) clone() *config {
	out := *c
	out.backends, out.bare = maps.Clone(c.backends), maps.Clone(c.bare)
	return &out
}

// withState returns the configuration with the servers that HAProxy has in these backends, according to st. Servers that are only
// in st are unknown, and draining if they are in maintenance. Backends without servers in st have none. Servers of a
// server-template line are ignored.
func (c *config) withState(st state, backends []string) *config {
	out := c.clone()
	for _, name := range backends {
		if b := c.backends[name]; !b.matches(st[name]) {
			out.backends[name] = b.withState(st[name], c.templates(name))
		}
	}
	return out
}

// matches reports whether HAProxy has exactly these servers.
func (b *backend) matches(list []live) bool {
	if len(list) != b.count() {
		return false
	}
	for _, l := range list {
		if s, known := b.servers[l.name]; !known || s.withState(l) != s {
			return false
		}
	}
	return true
}

func (b *backend) withState(list []live, templates bool) *backend {
	servers := map[string]server{}
	for _, l := range list {
		s, known := b.servers[l.name]
		switch {
		case !known && templates:
			continue
		case !known:
			s = server{unknown: true, draining: l.disabled, checked: l.checked}
		}
		servers[strings.Clone(l.name)] = s.withState(l)
	}
	return b.withServers(servers)
}

// withState returns the server as read back from HAProxy.
func (s server) withState(l live) server {
	if s.agent {
		return s
	}
	if s.reloadReason == "" {
		s.address, s.weight = l.address, l.weight
	}
	s.disabled = l.disabled
	s.draining = s.draining && l.disabled // a server that was enabled does not drain
	return s
}

// withDraining returns the configuration plus the servers and bare backends that only before has, as draining.
func (c *config) withDraining(before *config) *config {
	out := c.clone()
	for name, b := range before.bare {
		if c.backends[name] != nil {
			continue
		}
		servers := maps.Clone(before.backends[name].all())
		for server, s := range servers {
			s.draining = true
			servers[server] = s
		}
		b.leaving = true
		out.bare[name], out.backends[name] = b, before.backends[name].withServers(servers)
	}
	for name, was := range before.backends {
		is := c.backends[name]
		if is == nil || is == was {
			continue
		}
		for server, s := range was.servers {
			if _, stays := is.servers[server]; stays {
				continue
			}
			if out.backends[name] == is {
				out.backends[name] = is.withServers(maps.Clone(is.servers))
			}
			s.draining = true
			out.backends[name].servers[server] = s
		}
	}
	return out
}

// assume returns the configuration with those backends of to that are the same in alike.
func (c *config) assume(alike, to *config) *config {
	out := c.clone()
	for name, b := range to.backends {
		if alike.backends[name] == b && c.backends[name] != nil {
			out.backends[name] = b
		}
	}
	return out
}

// without returns the configuration without the draining servers and leaving backends that were deleted.
func (c *config) without(deleted []serverName) *config {
	out := c.clone()
	for _, n := range deleted {
		if n.isBackend() {
			if out.bare[n.backend].leaving {
				delete(out.bare, n.backend)
				delete(out.backends, n.backend)
			}
			continue
		}
		b := out.backends[n.backend]
		if s, there := b.get(n.name); there && s.draining {
			servers := maps.Clone(b.servers)
			delete(servers, n.name)
			out.backends[n.backend] = b.withServers(servers)
		}
	}
	return out
}

// templates reports whether a backend has a server-template line.
func (c *config) templates(backend string) bool {
	return slices.ContainsFunc(c.sections, func(s section) bool {
		return s.isProxy() && s.name == backend && s.has("server-template")
	})
}
