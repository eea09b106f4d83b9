package haproxy

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"berth/templates/claim"
	"berth/templates/route"
)

// Defaults is a defaults section: settings shared by several backends.
type Defaults struct {
	Name    string
	TCP     bool
	Balance string
	Hash    bool // the algorithm is a hash
}

// The base of all other sections. For TCP it is also the section of most backends.
const (
	baseHTTP = "http.defaults"
	baseTCP  = "tcp.defaults"
)

// Base returns the section that this section inherits from.
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
	// No backend has such a name: these names have no hexadecimal number at the end.
	d.Name = kind + "." + strings.TrimSuffix(strings.ReplaceAll(d.Balance, "(", "-"), ")")
	if tcp && d.Balance == "roundrobin" {
		d.Name = baseTCP
	}
	return d
}

// DefaultsInUse remembers the sections in use. Adding or removing a section needs a reload in HAProxy, so an unused section
// stays until another one is added.
type DefaultsInUse struct{ sections map[string]Defaults }

// Of returns the sections for the backends of groups, in order. The section for HTTP backends without settings always
// exists.
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
	delete(used, baseTCP) // always exists
	for name := range used {
		if _, there := u.sections[name]; !there {
			u.sections = used
			break
		}
	}
	return slices.SortedFunc(maps.Values(u.sections), func(a, b Defaults) int { return cmp.Compare(a.Name, b.Name) })
}
