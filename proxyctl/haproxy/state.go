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
	address  netip.AddrPort // not valid for one without an IP address or a port
	weight   int
	disabled bool // in maintenance or draining, by command or configuration
	id       int
}

// state is what "show servers state" says, by backend.
type state map[string][]live

// The bits of srv_admin_state that take a server out of service (HAProxy management guide). 4, disabled by the
// configuration, stays set when the server is enabled later.
const (
	adminForcedMaint = 0x01
	adminForcedDrain = 0x08
)

// stateColumns are the ones that are read; the rest may come and go with the versions.
var stateColumns = []string{"be_name", "srv_id", "srv_name", "srv_addr", "srv_admin_state", "srv_uweight", "srv_port"}

// parseState reads what "show servers state" says, of one backend or of all, once or several times in a row.
func parseState(reply string) (state, error) {
	out := state{}
	var (
		at []int // of stateColumns
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
					return nil, fmt.Errorf("the state of servers has no column %s: %s", name, oneLine(line))
				}
				at = append(at, i-1)
			}
			continue
		case at == nil || len(f) <= slices.Max(at):
			return nil, fmt.Errorf("not the state of a server: %s", oneLine(line))
		}
		var n [4]int // id, admin state, weight, port
		for i, column := range []int{1, 4, 5, 6} {
			var err error
			if n[i], err = strconv.Atoi(f[at[column]]); err != nil {
				return nil, fmt.Errorf("not the state of a server: %s", oneLine(line))
			}
		}
		l := live{name: f[at[2]], id: n[0], weight: n[2]}
		l.disabled = n[1]&(adminForcedMaint|adminForcedDrain) != 0
		if ip, err := netip.ParseAddr(f[at[3]]); err == nil && n[3] > 0 && n[3] < 1<<16 {
			l.address = netip.AddrPortFrom(ip, uint16(n[3]))
		}
		out[f[at[0]]] = append(out[f[at[0]]], l)
	}
	return out, nil
}

// fields is strings.Fields into a slice that is there already.
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

// as is the configuration with its servers as HAProxy has them, in the backends that st is of. What st has and the
// configuration has not is unknown, or leaving if it is in maintenance; backends of which st says nothing have none.
// Servers that a server-template line makes are no concern of berth.
func (c *config) as(st state, backends []string) *config {
	out := *c
	out.backends = maps.Clone(c.backends)
	for _, name := range backends {
		if b := c.backends[name]; !b.is(st[name]) {
			out.backends[name] = b.as(st[name], c.templates(name))
		}
	}
	return &out
}

// is says whether HAProxy has just these servers.
func (b *backend) is(list []live) bool {
	if len(list) != b.count() {
		return false
	}
	for _, l := range list {
		if s, known := b.servers[l.name]; !known || s.as(l) != s {
			return false
		}
	}
	return true
}

func (b *backend) as(list []live, templates bool) *backend {
	out := &backend{servers: map[string]server{}, order: b.order, lines: b.lines}
	for _, l := range list {
		s, known := b.servers[l.name]
		switch {
		case !known && templates:
			continue
		case !known:
			s = server{unknown: true, leaving: l.disabled}
		}
		out.servers[l.name] = s.as(l)
	}
	return out
}

// as is the server with what of it is read back.
func (s server) as(l live) server {
	if s.agent {
		return s
	}
	if s.fixed == "" {
		s.address, s.weight = l.address, l.weight
	}
	s.disabled = l.disabled
	s.leaving = s.leaving && l.disabled // what somebody enabled is not leaving
	return s
}

// with is the configuration with those servers of before that it has no more, as leaving.
func (c *config) with(before *config) *config {
	out := *c
	out.backends = maps.Clone(c.backends)
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
				out.backends[name] = &backend{servers: maps.Clone(is.servers), order: is.order, lines: is.lines}
			}
			s.leaving = true
			out.backends[name].servers[server] = s
		}
	}
	return &out
}

// forget takes a server that has left out of the configuration.
func (c *config) forget(n serverName) {
	b := c.backends[n.backend]
	servers := maps.Clone(b.servers)
	delete(servers, n.name)
	c.backends[n.backend] = &backend{servers: servers, order: b.order, lines: b.lines}
}

func (c *config) templates(backend string) bool {
	return slices.ContainsFunc(c.sections, func(s section) bool {
		return s.isProxy() && s.name == backend &&
			slices.ContainsFunc(s.lines, func(l []string) bool { return l[0] == "server-template" })
	})
}
