package route

import (
	"cmp"
	"slices"

	"berth/templates/claim"
)

// Standing says how a service stands with a route that it asks for.
type Standing struct {
	claim.Route
	Service string
	Backend string // the name of its group in the proxy
	Strip   bool   // the path is taken off before a server sees the request
	Lost    string // why the service does not have the route, as it is reported; "" = it has it
	Holder  string // of a route that it does not have: the service that has it
}

// Standing returns how all services stood with their routes in the last complete rendering, by route, the holder first. It may be
// called from any goroutine.
func (l *Ledger) Standing() []Standing {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.standing
}

// standing is how the groups of the table stand with their routes.
func (t *Table) standing() []Standing {
	all := make([]Standing, 0, len(t.claims)+len(t.ports)+len(t.lostTo))
	for _, c := range t.claims {
		all = append(all, Standing{Route: c.Route, Service: c.Group.Service, Backend: c.Group.Name, Strip: c.Group.Strip})
	}
	for _, p := range t.ports {
		all = append(all, Standing{Route: claim.Route{Port: p.Port}, Service: p.Group.Service, Backend: p.Group.Name})
	}
	all = append(all, t.lostTo...)
	slices.SortFunc(all, func(a, b Standing) int {
		return cmp.Or(claim.Compare(a.Route, b.Route), cmp.Compare(min(1, len(a.Lost)), min(1, len(b.Lost))), cmp.Compare(a.Service, b.Service), cmp.Compare(a.Backend, b.Backend))
	})
	return all
}
