package haproxy

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"berth/templates/claim"
	"berth/templates/route"
)

// Defaults is a defaults section: the settings that several backends have in common.
type Defaults struct {
	Name    string
	TCP     bool
	Balance string
	Hash    bool // the algorithm is a hash
}

// The sections that all others begin with. For TCP the first is that of most backends, too.
const (
	baseHTTP = "http.defaults"
	baseTCP  = "tcp.defaults"
)

// Base returns the section that this one begins with.
func (d Defaults) Base() string {
	if d.TCP {
		return baseTCP
	}
	return baseHTTP
}

// newDefaults returns the section for these settings.
func newDefaults(s claim.Settings, tcp bool) Defaults {
	d := Defaults{TCP: tcp, Balance: cmp.Or(s.Balance, "roundrobin"), Hash: s.IsHash()}
	kind, _, _ := strings.Cut(d.Base(), ".")
	// No backend has a name like these, which have no number in hexadecimals at their end.
	d.Name = kind + "." + strings.TrimSuffix(strings.ReplaceAll(d.Balance, "(", "-"), ")")
	if tcp && d.Balance == "roundrobin" {
		d.Name = baseTCP
	}
	return d
}

// DefaultsInUse remembers which sections are in use. HAProxy needs a reload for a section that comes or goes: one that nobody
// needs any more stays until another one comes.
type DefaultsInUse struct{ sections map[string]Defaults }

// Of returns the sections for the backends of groups, in order. That for HTTP backends that say nothing is always there.
func (u *DefaultsInUse) Of(groups []*route.Group) []Defaults {
	usual := newDefaults(claim.Settings{}, false)
	used := map[string]Defaults{usual.Name: usual}
	for _, g := range groups {
		if len(g.Routes) > 0 {
			d := newDefaults(g.Settings, false)
			used[d.Name] = d
		}
		if len(g.Ports) > 0 {
			d := newDefaults(g.ForTCP(), true)
			used[d.Name] = d
		}
	}
	delete(used, baseTCP) // it is there in any case
	for name := range used {
		if _, there := u.sections[name]; !there {
			u.sections = used
			break
		}
	}
	return slices.SortedFunc(maps.Values(u.sections), func(a, b Defaults) int { return cmp.Compare(a.Name, b.Name) })
}
