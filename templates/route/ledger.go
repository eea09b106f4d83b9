package route

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	"berth/templates/claim"
)

// Ledger remembers which service has which route, and in which of the proxy's backends it was, so that a route does not pass
// to another service while its own is away for a moment. It is in memory: a new process begins with an empty one, and gives
// each route to the oldest of those that serve. A ledger is for the tables of one template.
type Ledger struct {
	// Changed receives a value when a route may pass to another service, or be given up, because its time is over.
	Changed chan struct{}
	// Moved receives a value when a rendering has changed the answer of Standing.
	Moved chan struct{}

	grace time.Duration

	mu    sync.Mutex
	held  map[claim.Route]*holding
	names map[string]map[claim.Route]string // of groups, by service and each of their routes
	round int                               // counts the renderings that use the ledger
	begun time.Time                         // the first rendering
	warm  bool                              // a rendering knew all services
	timer *time.Timer
	due   time.Time  // when the timer fires
	stand []standing // after the last complete rendering; never changed, but replaced
}

// holding says who has a route.
type holding struct {
	service  string
	name     string          // of the group
	settings *claim.Settings // of the group
	idle     time.Time       // since when no instance serves it; zero = one does
	gone     bool            // no instance asks for it any more, since idle or later
	left     time.Time       // since when it is gone
	round    int             // the last rendering that saw it
}

const (
	// settleIn is how long a service that is in the catalog may be unknown at the start, before the routes of others are given
	// away without it.
	settleIn = 30 * time.Second
	// mostDeparted bounds the routes that are held for services that are gone: a neighbour might come and go for ever.
	mostDeparted = 1000
)

// NewLedger returns an empty ledger that holds a route for a service whose instances are gone, or do not serve, for so long.
func NewLedger(grace time.Duration) *Ledger {
	return &Ledger{
		Changed: make(chan struct{}, 1), Moved: make(chan struct{}, 1), grace: grace,
		held: map[claim.Route]*holding{}, names: map[string]map[claim.Route]string{},
	}
}

// name gives names to the groups of a service: a group keeps the name that one of its routes had, the service's own name before
// others. A new group gets the service's name if it is free, else one made from its first route.
func (l *Ledger) name(service string, groups []*Group) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before, base := l.names[service], baseName(service)
	if len(groups) == 1 { // as it is most of the time
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
	for _, g := range oldestFirst { // the service's own name
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
		if l.held[r] != nil && l.held[r].service == service { // maybe for instances that are gone
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

// freeName returns a name for another group of its service that nobody has.
func freeName(g *Group, taken map[string]bool) string {
	name := ""
	for n, routes := 0, g.all(); name == "" || taken[name]; n++ {
		name = nameFor(g.Service, routes[n%len(routes)], n/len(routes))
	}
	return name
}

// decide says who of those that ask for a route gets it, and why: who has it and serves; else who serves, once the one that
// has it did not for the time of grace; of several, the oldest. nil stands for a service that is gone, for which the route is
// held. l.mu is held.
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

// begin starts a rendering. It returns whether the ledger takes note of what is decided: not at the start, while a service may be
// unknown that was first. l.mu is held.
func (l *Ledger) begin(knowsAll func() bool, now time.Time) bool {
	l.round++
	if l.begun.IsZero() {
		l.begun = now
	}
	l.warm = l.warm || now.Sub(l.begun) >= settleIn || knowsAll()
	return l.warm
}

// hold notes that a group has a route. l.mu is held.
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

// depart returns the routes that nobody has in this rendering, but that are held, by the group that they were in, and gives up
// those whose time is over. l.mu is held.
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

// rename notes that a group that is gone has another name, as its own is needed. l.mu is held.
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

// wake asks for a rendering when the next time is over, to the second. l.mu is held.
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

// prune forgets the names of services that were not assigned and for which no route is held. l.mu is held.
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
