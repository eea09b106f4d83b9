package route

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	"berth/templates/claim"
)

// Ledger remembers which service has which route, and in which of the proxy's backends, so a route does not pass to another
// service while its own is briefly away. It is kept in memory: a new process begins with an empty ledger and gives each
// route to the oldest service that serves. A ledger is for the tables of one template.
type Ledger struct {
	// Changed receives a value when the time of a route is over, so the route may pass to another service or be given up.
	Changed chan struct{}
	// Moved receives a value when a rendering has changed the result of Standing.
	Moved chan struct{}

	grace time.Duration

	mu    sync.Mutex
	held  map[claim.Route]*holding
	names map[string]map[claim.Route]string // group names, by service and route
	round int                               // counts renderings
	begun time.Time                         // the first rendering
	warm  bool                              // a rendering knew all services
	timer *time.Timer
	due   time.Time  // when the timer fires
	stand []standing // after the last complete rendering; replaced, never modified
}

// holding records the owner of a route.
type holding struct {
	service  string
	name     string          // of the group
	settings *claim.Settings // of the group
	idle     time.Time       // time since when no instance serves it; zero = one does
	gone     bool            // no instance asks for it any more
	left     time.Time       // time since when it is gone
	round    int             // the last rendering that saw it
}

const (
	// settleIn is how long, at the start, a service in the catalog may be unknown before the routes of others are assigned
	// without it.
	settleIn = 30 * time.Second
	// mostDeparted limits the routes held for departed services: a service might come and go forever.
	mostDeparted = 1000
)

// NewLedger returns an empty ledger. It holds a route for the given time when the service's instances are gone or do not
// serve.
func NewLedger(grace time.Duration) *Ledger {
	return &Ledger{
		Changed: make(chan struct{}, 1), Moved: make(chan struct{}, 1), grace: grace,
		held: map[claim.Route]*holding{}, names: map[string]map[claim.Route]string{},
	}
}

// name names the groups of a service. A group keeps a name that one of its routes had, preferably the service's own name. A
// new group gets the service's name if it is free, otherwise a name made from its first route.
func (l *Ledger) name(service string, groups []*Group) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before, base := l.names[service], baseName(service)
	if len(groups) == 1 { // the usual case
		all := groups[0].all()
		if len(all) == len(before) && !slices.ContainsFunc(all, func(r claim.Route) bool { return before[r] != base }) {
			groups[0].Name = base
			return
		}
	}
	oldestFirst := slices.SortedStableFunc(slices.Values(groups), func(a, b *Group) int { return cmp.Compare(a.created, b.created) })
	taken := map[string]bool{}
	take := func(g *Group, name string) bool {
		if name == "" || taken[name] || g.Name != "" {
			return false
		}
		g.Name, taken[name] = name, true
		return true
	}
	for _, g := range oldestFirst { // assign the service's own name
		if slices.ContainsFunc(g.all(), func(r claim.Route) bool { return before[r] == base }) {
			take(g, base)
		}
	}
	for _, g := range oldestFirst {
		for _, r := range g.all() {
			take(g, before[r])
		}
	}
	now := map[claim.Route]string{}
	for r, name := range before {
		if l.held[r] != nil && l.held[r].service == service { // possibly for departed instances
			now[r] = name
		}
	}
	for _, g := range oldestFirst {
		if g.Name == "" && !take(g, base) {
			take(g, freeName(g, taken))
		}
		for _, r := range g.all() {
			now[r] = g.Name
		}
	}
	if len(now) == 0 {
		delete(l.names, service)
		return
	}
	l.names[service] = now
}

// freeName returns an unused name for an additional group of its service.
func freeName(g *Group, taken map[string]bool) string {
	name := ""
	for n, routes := 0, g.all(); name == "" || taken[name]; n++ {
		name = nameFor(g.Service, routes[n%len(routes)], n/len(routes))
	}
	return name
}

// decide returns which of the groups that ask for a route gets it, and why: the owner if it serves; otherwise a group that
// serves, once the owner has not served for the grace time; among several, the oldest. nil stands for a departed service
// for which the route is held. l.mu must be held.
func (l *Ledger) decide(r claim.Route, askers []*Group, now time.Time) (*Group, string) {
	h := l.held[r]
	best := slices.MinFunc(askers, func(a, b *Group) int {
		switch {
		case a.serves && !b.serves:
			return -1
		case b.serves && !a.serves:
			return 1
		}
		return cmp.Or(cmp.Compare(a.created, b.created), cmp.Compare(a.Service, b.Service))
	})
	if h != nil {
		n := slices.IndexFunc(askers, func(g *Group) bool { return g.Service == h.service })
		waits := l.grace > 0 && (h.idle.IsZero() || now.Before(h.idle.Add(l.grace)))
		switch {
		case n >= 0 && askers[n].serves:
			return askers[n], "which has had it longer and serves it"
		case n >= 0 && (waits || !best.serves):
			return askers[n], "which has had it longer, although none of its instances serves it now"
		case n < 0 && waits && !best.serves:
			return nil, "which is gone but may come back"
		}
	}
	if best.serves {
		return best, "which serves it"
	}
	return best, "which asked for it first"
}

// begin starts a rendering. It reports whether the ledger records decisions: not at the start, while a service that was
// first may still be unknown. l.mu must be held.
func (l *Ledger) begin(knowsAll func() bool, now time.Time) bool {
	l.round++
	if l.begun.IsZero() {
		l.begun = now
	}
	l.warm = l.warm || now.Sub(l.begun) >= settleIn || knowsAll()
	return l.warm
}

// hold records that a group has a route. l.mu must be held.
func (l *Ledger) hold(r claim.Route, g *Group, now time.Time) {
	h := l.held[r]
	if h == nil || h.service != g.Service {
		h = &holding{service: g.Service}
		l.held[r] = h
	}
	h.name, h.settings, h.gone, h.round = g.Name, &g.Settings, false, l.round
	switch {
	case g.serves:
		h.idle = time.Time{}
	case h.idle.IsZero():
		h.idle = now
	}
}

// depart returns the routes that are held but that no group asks for in this rendering, by their former group. It gives up
// routes whose time is over. l.mu must be held.
func (l *Ledger) depart(now time.Time) []*Group {
	var gone []claim.Route
	for r, h := range l.held {
		if h.round == l.round {
			continue
		}
		if !h.gone {
			h.gone, h.left = true, now
			if h.idle.IsZero() {
				h.idle = now
			}
		}
		if !now.Before(h.left.Add(l.grace)) {
			delete(l.held, r)
			continue
		}
		gone = append(gone, r)
	}
	slices.SortFunc(gone, func(a, b claim.Route) int {
		return cmp.Or(l.held[b].left.Compare(l.held[a].left), claim.Compare(a, b))
	})
	if len(gone) > mostDeparted {
		for _, r := range gone[mostDeparted:] {
			delete(l.held, r)
		}
		gone = gone[:mostDeparted]
	}
	slices.SortFunc(gone, claim.Compare)
	byName := map[string][]claim.Route{}
	for _, r := range gone {
		byName[l.held[r].name] = append(byName[l.held[r].name], r)
	}
	groups := make([]*Group, 0, len(byName))
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		h := l.held[byName[name][0]]
		g := newGroup(h.service, byName[name])
		g.Name, g.Settings, g.departed = name, *h.settings, true
		groups = append(groups, g)
	}
	return groups
}

// rename renames a departed group whose name is needed. l.mu must be held.
func (l *Ledger) rename(g *Group, name string) {
	g.Name = name
	names := l.names[g.Service]
	if names == nil {
		names = map[claim.Route]string{}
		l.names[g.Service] = names
	}
	for _, r := range g.all() {
		l.held[r].name, names[r] = name, name
	}
}

// wake schedules a rendering for the next deadline, to the second. l.mu must be held.
func (l *Ledger) wake(now time.Time) {
	var next time.Time
	for _, h := range l.held {
		var end time.Time
		switch {
		case h.gone:
			end = h.left.Add(l.grace)
		case !h.idle.IsZero():
			end = h.idle.Add(l.grace)
		}
		if end.After(now) && (next.IsZero() || end.Before(next)) {
			next = end
		}
	}
	if next.Equal(l.due) {
		return
	}
	if l.timer != nil {
		l.timer.Stop()
	}
	l.due = next
	if next.IsZero() {
		return
	}
	l.timer = time.AfterFunc(next.Sub(now).Truncate(time.Second)+time.Second, func() { notify(l.Changed) })
}

// prune forgets the names of services that were not assigned and hold no route. l.mu must be held.
func (l *Ledger) prune(assigned []*fragment) {
	services, last := 0, ""
	for _, f := range assigned { // by service
		if f.Service != last {
			services, last = services+1, f.Service
		}
	}
	if services == len(l.names) {
		return
	}
	needed := make(map[string]bool, len(assigned))
	for _, f := range assigned {
		needed[f.Service] = true
	}
	for _, h := range l.held {
		needed[h.service] = true
	}
	maps.DeleteFunc(l.names, func(service string, _ map[claim.Route]string) bool { return !needed[service] })
}
