package route

import (
	"time"

	"berth/templates/claim"
)

// Standing is the state of a route that a service asks for.
type Standing struct {
	Route    string // www.example.com/path, */path for any host, or port 5432
	Host     string // as in claim.Route
	Path     string
	Port     int // 0 = an HTTP route
	Service  string
	Backend  string        // name of the group that asks for it
	Strip    bool          // the path prefix is removed before the request reaches a server
	Redirect bool          // a request without TLS is sent to HTTPS
	Paused   time.Duration // how long a request waits because the service is paused by hand; 0 = not paused
	Gone     bool          // no instance asks for it any more; it is held until instances come back
	Lost     string        // why the service does not have it, as reported; "" = it has it
	Holder   string        // the service that has it instead; "" = none
}

// standing is a Standing whose Route is not formatted yet.
type standing struct {
	route claim.Route
	Standing
}

// Standing returns who has each route and who asks for it in vain, after the last complete rendering, sorted by service,
// backend and route. It is safe for concurrent use.
func (l *Ledger) Standing() []Standing {
	l.mu.Lock()
	now := l.stand
	l.mu.Unlock()
	all := make([]Standing, len(now))
	for n, s := range now {
		all[n] = s.Standing
		all[n].Route, all[n].Host, all[n].Path, all[n].Port = s.route.String(), s.route.Host, s.route.Path, s.route.Port
	}
	return all
}

// tell updates the ledger's standings and reports changes.
func (t *Table) tell() {
	l := t.fragments.ledger
	l.mu.Lock()
	before := l.stand
	l.mu.Unlock()
	same := 0 // number of unchanged standings at the beginning
	var now []standing
	add := func(s standing) {
		switch {
		case now == nil && same < len(before) && before[same] == s:
			same++
			return
		case now == nil:
			now = append(make([]standing, 0, max(len(before), len(t.assigned))), before[:same]...)
		}
		now = append(now, s)
	}
	for _, f := range t.assigned {
		g := &f.Group
		for _, r := range g.Routes {
			add(t.standing(g, r))
		}
		for _, p := range g.Ports {
			add(t.standing(g, claim.Route{Port: p}))
		}
	}
	if now == nil {
		if same == len(before) {
			return
		}
		now = before[:same]
	}
	l.mu.Lock()
	l.stand = now
	l.mu.Unlock()
	notify(l.Moved)
}

func (t *Table) standing(g *Group, r claim.Route) standing {
	lost := t.lost[r][g]
	return standing{r, Standing{
		Service: g.Service, Backend: g.Name, Strip: g.Strip && r.Port == 0, Redirect: g.Redirect && t.tls && r.Port == 0, Paused: g.Paused, Gone: g.departed, Lost: lost.why, Holder: lost.holder,
	}}
}
