package route

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul-template/dependency"

	"berth/templater/leftout"
	"berth/templates/claim"
)

// Fragments passes groups from partials to the table. A partial runs only when the instances of its service change, and can
// return only text. So it stores the groups here and returns keys that change whenever a group does.
type Fragments struct {
	byKey     map[string]*fragment
	rendering int // counts renderings
	complete  int // the last complete rendering
	ledger    *Ledger
	listed    []string             // the services in the catalog
	unknown   map[string]bool      // services that were read, by name; true = no instance found
	departed  map[string]*fragment // fragments of departed services, by the group's name
}

// NewFragments returns an empty set, whose tables use the ledger.
func NewFragments(l *Ledger) *Fragments {
	return &Fragments{byKey: map[string]*fragment{}, ledger: l, unknown: map[string]bool{}, departed: map[string]*fragment{}}
}

// Servable is like the func Servable.
func (k *Fragments) Servable(services []*dependency.CatalogSnippet, report func(string)) []string {
	k.listed = Servable(services, report)
	if len(k.unknown) > len(k.listed) {
		maps.DeleteFunc(k.unknown, func(service string, _ bool) bool {
			_, there := slices.BinarySearch(k.listed, service)
			return !there
		})
	}
	return k.listed
}

// New is like the func New, with the names that the ledger knows.
func (k *Fragments) New(service string, instances []*Instance, allowed Ports, report func(string)) []*Group {
	k.unknown[service] = len(instances) == 0
	return New(service, instances, allowed, k.ledger, report)
}

// knowsAll reports whether the instances of all services have been read. An empty list of services may not have been read
// itself.
func (k *Fragments) knowsAll() bool {
	return len(k.listed) > 0 && !slices.ContainsFunc(k.listed, func(service string) bool {
		unknown, read := k.unknown[service]
		return unknown || !read
	})
}

// fragment is a group with the text that a template rendered for it.
type fragment struct {
	Group
	text, stream string // stream is the TCP text, for a proxy that needs it elsewhere
	used         int    // the last rendering that made or used it
}

// Keep stores a group with its text and returns the key. The same group with the same text has the same key.
func (k *Fragments) Keep(g *Group, text string, stream ...string) string {
	f := &fragment{Group: *g, text: text, stream: strings.Join(stream, ""), used: k.rendering}
	f.drained = len(g.Servers) > 0 && !takesRequests(g.Servers)
	f.Servers, f.report = nil, nil // they are in the text
	sum := sha256.Sum256(fmt.Append(nil, g.Name, g.Routes, g.Ports, g.Settings, g.created, g.serves, g.departed, f.drained, len(text), text, f.stream))
	key := fmt.Sprintf("%s-%x", g.Service, sum[:16])
	k.byKey[key] = f
	if g.departed {
		k.departed[g.Name] = f
	}
	return key
}

// NewTable begins a rendering with an empty table, and drops the fragments that the last complete rendering did not use.
// Without tls, HTTPS redirects are impossible. Refused ports are not opened.
func (k *Fragments) NewTable(tls bool, refused *Refused, report func(string)) *Table {
	maps.DeleteFunc(k.byKey, func(_ string, f *fragment) bool { return f.used < k.complete })
	k.rendering++
	return &Table{
		fragments: k, tls: tls, refused: refused, report: report,
		assigned: make([]*fragment, 0, len(k.byKey)),
	}
}

// Pause sets the services paused by hand, with the time a request waits.
func (t *Table) Pause(services map[string]time.Duration) { t.paused = services }

// Table records which group has a route or a port. Every rendering makes a new table. It decides conflicts once all groups
// are assigned, at the first call of another method.
type Table struct {
	fragments *Fragments
	tls       bool
	refused   *Refused
	paused    map[string]time.Duration
	report    func(string)

	assigned  []*fragment
	isSettled bool
	lost      map[claim.Route]map[*Group]loss // groups that ask for a route in vain
	departed  []*Group
	claims    []Claim
	ports     []TCPPort
	sticky    bool
	isReady   bool // claims, ports and sticky are set
}

// Claim is an HTTP route of a group.
type Claim struct {
	claim.Route
	Group *Group
}

// TCPPort is a port whose connections go to one group.
type TCPPort struct {
	Port  int
	Group *Group
}

// Assign adds the groups with the given keys, which are separated by blanks. A service without a route has no key. Assign
// returns "" so that a template can call it.
func (t *Table) Assign(keys string) (string, error) {
	for key := range strings.FieldsSeq(keys) {
		f := t.fragments.byKey[key]
		if f == nil {
			return "", fmt.Errorf("no service was kept under the key %.100q", key)
		}
		f.used = t.fragments.rendering
		t.assigned = append(t.assigned, f)
		t.isReady = false
	}
	return "", nil
}

// Departed returns the groups of departed services whose routes are held. The template has to render and assign them.
// Groups rendered earlier are already assigned.
func (t *Table) Departed() []*Group {
	t.settle()
	return t.departed
}

// settle decides which assigned group gets which route.
func (t *Table) settle() {
	if t.isSettled {
		return
	}
	t.isSettled = true
	l, now := t.fragments.ledger, time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	counts := l.begin(t.fragments.knowsAll, now)

	first := make(map[claim.Route]*Group, len(t.assigned))
	contested := map[claim.Route][]*Group{}
	each := func(do func(r claim.Route, g *Group)) {
		for _, f := range t.assigned {
			for _, r := range f.Routes {
				do(r, &f.Group)
			}
			for _, p := range f.Ports {
				do(claim.Route{Port: p}, &f.Group)
			}
		}
	}
	slices.SortFunc(t.assigned, compareFragments)
	each(func(r claim.Route, g *Group) {
		if one := first[r]; one == nil {
			first[r] = g
		} else if contested[r] == nil {
			contested[r] = []*Group{one, g}
		} else {
			contested[r] = append(contested[r], g)
		}
	})
	t.lost = map[claim.Route]map[*Group]loss{}
	each(func(r claim.Route, g *Group) {
		if first[r] != g {
			return
		}
		askers := contested[r]
		if h := l.held[r]; askers == nil && (h == nil || h.service == g.Service) { // the usual case
			if counts {
				l.hold(r, g, now)
			}
			return
		}
		if askers == nil {
			askers = []*Group{g}
		}
		winner, why := l.decide(r, askers, now)
		if winner != nil && counts {
			l.hold(r, winner, now)
		}
		for _, loser := range askers {
			if loser != winner {
				t.loseTo(winner, r, loser, why)
			}
		}
	})
	if !counts {
		return
	}
	t.departed = l.depart(now)
	names := map[string]bool{}
	if len(t.departed) > 0 {
		for _, f := range t.assigned {
			names[f.Name] = true
		}
	}
	for _, g := range t.departed {
		g.report = t.report
		g.Paused = t.paused[g.Service]
		if names[g.Name] { // another group of its service uses the name
			l.rename(g, freeName(g, names))
		}
		names[g.Name] = true
	}
	l.prune(t.assigned)
	t.departed = t.fragments.assignDeparted(t, t.departed)
	l.wake(now)
}

// assignDeparted assigns the groups that have not changed since their text was rendered, and returns the others. With a
// fallback, whose instances come and go, the text is rendered every time.
func (k *Fragments) assignDeparted(t *Table, groups []*Group) (others []*Group) {
	still := make(map[string]*fragment, len(groups))
	for _, g := range groups {
		f := k.departed[g.Name]
		if f == nil || g.Fallback != "" || f.Service != g.Service || f.Settings != g.Settings || f.Paused != g.Paused ||
			!slices.Equal(f.Routes, g.Routes) || !slices.Equal(f.Ports, g.Ports) {
			others = append(others, g)
			continue
		}
		still[g.Name] = f
		f.used = k.rendering
		t.assigned = append(t.assigned, f)
	}
	k.departed = still
	return others
}

// loss is why a group does not get a route.
type loss struct {
	why    string // as reported
	holder string // the service that has it; "" = none
}

// Lose reports why a proxy cannot follow a route.
func (t *Table) Lose(c Claim, why string) { t.lose(c.Route, c.Group, "", why) }

func (t *Table) lose(r claim.Route, g *Group, holder, why string) {
	l := loss{leftout.Sentence(g.Service, "", why), holder}
	if t.lost[r] == nil {
		t.lost[r] = map[*Group]loss{}
	}
	t.lost[r][g] = l
	t.report(l.why)
}

// loseTo reports that a group does not get a route. winner is nil if the route is held for a departed service.
func (t *Table) loseTo(winner *Group, r claim.Route, g *Group, why string) {
	what, labels := "the route "+r.String(), "SERVICE_ROUTE_HOST or SERVICE_ROUTE_PATH"
	if r.Port != 0 {
		what, labels = "the "+r.String(), "SERVICE_ROUTE_PORT"
	}
	var owner, remedy string
	if winner != nil {
		owner, remedy = winner.Service, fmt.Sprintf("stop %q", winner.Service)
	} else {
		owner, remedy = t.fragments.ledger.held[r].service, fmt.Sprintf("make an instance of %q pass its checks", g.Service)
	}
	t.lose(r, g, owner, fmt.Sprintf("%s belongs to service %q, %s; set another %s, or %s", what, owner, why, labels, remedy))
}

func compareFragments(a, b *fragment) int {
	return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Name, b.Name))
}

// ready builds the lists, in an order independent of the order of assignment.
func (t *Table) ready() {
	if t.isReady {
		return
	}
	t.settle()
	t.isReady = true
	slices.SortFunc(t.assigned, compareFragments)
	t.claims, t.ports, t.sticky = make([]Claim, 0, len(t.assigned)), nil, false
	for _, f := range t.assigned {
		g := &f.Group
		g.Paused = t.paused[g.Service]
		for _, r := range g.Routes {
			if _, lost := t.lost[r][g]; !lost {
				t.claims = append(t.claims, Claim{r, g})
			}
		}
		for _, p := range g.Ports {
			if _, lost := t.lost[claim.Route{Port: p}][g]; !lost {
				t.addPort(p, g)
			}
		}
		if len(g.Routes) > 0 {
			t.sticky = t.sticky || g.Sticky
			if g.Redirect && !t.tls {
				t.report(leftout.Sentence(g.Service, "", "its route_redirect is ignored, because there is no certificate for HTTPS; add one, or unset SERVICE_ROUTE_REDIRECT"))
			}
		}
	}
	slices.SortFunc(t.ports, func(a, b TCPPort) int { return cmp.Compare(a.Port, b.Port) })
}

// addPort adds a port. A refused port keeps its owner, so it does not pass to another service and back.
func (t *Table) addPort(port int, g *Group) {
	if reason := t.refused.Reason(port); reason != "" {
		t.lose(claim.Route{Port: port}, g, "", fmt.Sprintf("port %d: %s; free it or set another SERVICE_ROUTE_PORT", port, reason))
		return
	}
	t.ports = append(t.ports, TCPPort{port, g})
}

// Claims returns the HTTP routes, by group.
func (t *Table) Claims() []Claim {
	t.ready()
	return t.claims
}

// Groups returns all groups, in order.
func (t *Table) Groups() []*Group {
	t.ready()
	groups := make([]*Group, len(t.assigned))
	for n, f := range t.assigned {
		groups[n] = &f.Group
	}
	return groups
}

// Ports returns the ports, in order, without refused ones.
func (t *Table) Ports() []TCPPort {
	t.ready()
	return t.ports
}

// Paused returns the groups of services paused by hand.
func (t *Table) Paused() (groups []*Group) {
	t.ready()
	for _, f := range t.assigned {
		if f.Group.Paused > 0 {
			groups = append(groups, &f.Group)
		}
	}
	return groups
}

// Sticky reports whether any group keeps clients on their server.
func (t *Table) Sticky() bool {
	t.ready()
	return t.sticky
}

// Text returns the texts of all groups.
func (t *Table) Text() string {
	t.ready()
	t.fragments.complete = t.fragments.rendering
	t.tell()
	size := 0
	for _, f := range t.assigned {
		size += len(f.text)
	}
	var all strings.Builder
	all.Grow(size)
	for _, f := range t.assigned {
		all.WriteString(f.text)
	}
	return all.String()
}

// Stream returns the TCP texts of all groups, for a proxy that needs them elsewhere.
func (t *Table) Stream() string {
	t.ready()
	var all strings.Builder
	for _, f := range t.assigned {
		all.WriteString(f.stream)
	}
	return all.String()
}
