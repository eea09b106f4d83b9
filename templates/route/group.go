package route

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul-template/dependency"

	"berth/templater/leftout"
	"berth/templates/claim"
)

// Group is a set of routes of a service that the same instances serve, with the settings these ask for. Most services are
// one group. An instance that names routes is in the groups of these routes; an instance that names none is in all groups
// of its service.
type Group struct {
	Service string
	Name    string        // unique, for the proxy's configuration; the service's name if possible
	Routes  []claim.Route // HTTP routes, in order
	Ports   []int         // in order
	claim.Settings
	Servers []Server // instances that serve, by name
	// Paused is how long a request waits because the service is paused by hand; 0 = not paused. A Table sets it, so texts
	// that do not depend on it are not made again.
	Paused time.Duration

	created  uint64 // the lowest Consul index among the instances that ask for the routes
	serves   bool   // its own instances take new requests
	departed bool   // it has no instances, and its routes are held for them
	drained  bool   // none of its servers takes new requests; set when the group is kept
	report   func(string)
}

// all returns the group's routes, both HTTP routes and ports.
func (g *Group) all() []claim.Route {
	all := slices.Clip(g.Routes)
	for _, p := range g.Ports {
		all = append(all, claim.Route{Port: p})
	}
	return all
}

// newGroup returns a group of sorted routes, without a name.
func newGroup(service string, routes []claim.Route) *Group {
	g := &Group{Service: service}
	for _, r := range routes {
		if r.Port != 0 {
			g.Ports = append(g.Ports, r.Port)
		} else {
			g.Routes = append(g.Routes, r)
		}
	}
	return g
}

// New reads the claims of a service's TCP instances and returns the service's groups, in order; none if the service is not
// exposed. It calls report with a line for each ignored label.
func New(service string, instances []*Instance, allowed Ports, names *Ledger, report func(string)) []*Group {
	if !claim.IsServiceName(service) {
		return nil
	}
	r := newReader(service, instances, report)
	r.parse(allowed)
	var groups []*Group
	members := map[*Group][]*instance{}
	for _, routes := range r.together() {
		g := newGroup(service, routes)
		g.report = r.report
		groups = append(groups, g)
		members[g] = r.settle(g, routes[0])
	}
	if len(groups) == 0 {
		r.reportIneffective()
	}
	for _, i := range r.instances {
		if i.isWell() && i.problem != "" && slices.ContainsFunc(groups, func(g *Group) bool { return slices.Contains(members[g], i) }) {
			r.leaveOut(i, i.problem)
		}
	}
	names.name(service, groups)
	return groups
}

// together returns the routes, grouped by the instances that ask for them, in order.
func (r *reader) together() [][]claim.Route {
	var one *claim.Claim
	several := false
	for _, i := range r.instances {
		if len(i.Routes) > 0 {
			several = several || one != nil && one != i.Claim
			one = i.Claim
		}
	}
	switch {
	case one == nil:
		return nil
	case !several: // the usual case
		return [][]claim.Route{one.Routes}
	}
	askers := map[claim.Route][]byte{} // the indexes of the instances
	for n, i := range r.instances {
		for _, route := range i.Routes {
			askers[route] = binary.AppendUvarint(askers[route], uint64(n))
		}
	}
	index := map[string]int{}
	var all [][]claim.Route
	for _, route := range slices.SortedFunc(maps.Keys(askers), claim.Compare) {
		key := string(askers[route])
		n, there := index[key]
		if !there {
			n = len(all)
			index[key] = n
			all = append(all, nil)
		}
		all[n] = append(all[n], route)
	}
	return all
}

// settle sets the servers and settings of a group, and returns its members.
func (r *reader) settle(g *Group, route claim.Route) []*instance {
	var members, newestFirst []*instance
	g.created = ^uint64(0)
	for _, i := range r.instances {
		asks := slices.Contains(i.Routes, route)
		if asks {
			g.created = min(g.created, i.created)
		}
		if asks || !i.Restricted {
			members = append(members, i)
		}
	}
	candidates, toLeader := r.candidates(members)
	serving, servers := r.serving(candidates)
	g.ToLeader = toLeader
	g.Servers, g.serves = servers, takesRequests(servers)
	for _, i := range serving {
		if !i.drained {
			newestFirst = append(newestFirst, i)
		}
	}
	if len(newestFirst) == 0 {
		newestFirst = slices.Clone(members)
	}
	if slices.ContainsFunc(newestFirst, func(i *instance) bool { return i.Claim != newestFirst[0].Claim }) {
		sortNewestFirst(newestFirst)
	}
	r.set(g, newestFirst)
	for n, i := range serving {
		g.Servers[n].Check = i.check(g.Check)
	}
	return members
}

// check returns the path with which an instance is checked: its own, or the group's if the instance names no route. During
// a rollout, one version may not answer the other's path.
func (i *instance) check(ofGroup string) string {
	switch {
	case i.drained || !i.Restricted && !slices.Contains(i.Says, KeyCheck):
		return ofGroup
	default:
		return i.Settings.Check
	}
}

// candidates returns the members that may be servers if they are healthy, and whether only the leader may. Members that are
// healthy, named and not drained have a vote. One vote for the leader is enough: a write that reaches a follower does more
// harm than a refused one. An instance that asks for the leader gets no requests unless it leads, even without a vote.
func (r *reader) candidates(members []*instance) (candidates []*instance, toLeader bool) {
	if !slices.ContainsFunc(members, wantsLeader) { // the usual case
		return members, false
	}
	say := slices.DeleteFunc(slices.Clone(members), func(i *instance) bool { return !i.isWell() || i.name == "" || i.drained })
	if len(say) == 0 {
		say = members
	}
	if n := slices.IndexFunc(say, wantsLeader); n >= 0 {
		toLeader = true
		r.reportRole(say, say[n])
	}
	return slices.DeleteFunc(slices.Clone(members), func(i *instance) bool { return !i.leads && (toLeader || wantsLeader(i)) }), toLeader
}

func wantsLeader(i *instance) bool { return i.Settings.ToLeader }

// reportRole reports conflicts with an instance that wants its route for the leader only.
func (r *reader) reportRole(say []*instance, from *instance) {
	if !r.hasRoles {
		r.leaveOut(from, fmt.Sprintf("its %s is leader, but no instance of its service has the tag %s or %s, so none gets requests; set SERVICE_TOPOLOGY=leader, or unset %s",
			KeyTo, tagLeader, tagFollower, claim.Label(KeyTo)))
	}
	for _, i := range say {
		if !i.Settings.ToLeader && slices.Contains(i.Says, KeyTo) {
			r.leaveOut(i, fmt.Sprintf("its %s %.100q is overridden by instance %.100q, which says leader; set the same %s for all",
				KeyTo, strings.TrimSpace(i.meta[KeyTo]), from.id, claim.Label(KeyTo)))
			return
		}
	}
}

func sortNewestFirst(instances []*instance) {
	slices.SortFunc(instances, func(a, b *instance) int {
		return cmp.Or(b.started.Compare(a.started), cmp.Compare(b.created, a.created), cmp.Compare(a.id, b.id), cmp.Compare(a.node, b.node))
	})
}

// settings are the keys of settings, with functions that copy each setting. KeyTo is not among them: the newest instance
// cannot revoke it for the others.
var settings = []struct {
	key  string
	copy func(to, from *claim.Settings)
	get  func(s *claim.Settings) any
}{
	{KeyStrip, func(to, from *claim.Settings) { to.Strip = from.Strip }, func(s *claim.Settings) any { return s.Strip }},
	{KeyRedirect, func(to, from *claim.Settings) { to.Redirect = from.Redirect }, func(s *claim.Settings) any { return s.Redirect }},
	{KeySticky, func(to, from *claim.Settings) { to.Sticky = from.Sticky }, func(s *claim.Settings) any { return s.Sticky }},
	{KeyBalance, func(to, from *claim.Settings) { to.Balance = from.Balance }, func(s *claim.Settings) any { return s.Balance }},
	{KeyCheck, func(to, from *claim.Settings) { to.Check = from.Check }, func(s *claim.Settings) any { return s.Check }},
	{KeyMaxConn, func(to, from *claim.Settings) { to.MaxConn = from.MaxConn }, func(s *claim.Settings) any { return s.MaxConn }},
	{KeySlowStart, func(to, from *claim.Settings) { to.SlowStart = from.SlowStart }, func(s *claim.Settings) any { return s.SlowStart }},
	{KeyFallback, func(to, from *claim.Settings) { to.Fallback = from.Fallback }, func(s *claim.Settings) any { return s.Fallback }},
	{KeyHold, func(to, from *claim.Settings) { to.Hold = from.Hold }, func(s *claim.Settings) any { return s.Hold }},
}

// set takes each setting from the newest instance that has it.
func (r *reader) set(g *Group, newestFirst []*instance) {
	for _, setting := range settings {
		var from *instance
		var others map[any]bool
		for _, i := range newestFirst {
			if from != nil && i.Claim == from.Claim || !slices.Contains(i.Says, setting.key) {
				continue
			}
			if from == nil {
				from = i
				setting.copy(&g.Settings, &i.Settings)
				continue
			}
			if setting.key == KeyCheck { // each instance has its own path
				break
			}
			value := setting.get(&i.Settings)
			if value != setting.get(&from.Settings) && !others[value] {
				if others == nil {
					others = map[any]bool{}
				}
				others[value] = true
				r.leaveOut(i, fmt.Sprintf("its %s %.100q is overridden by the newer instance %.100q, which says %.100q; set the same %s for all",
					setting.key, strings.TrimSpace(i.meta[setting.key]), from.id, strings.TrimSpace(from.meta[setting.key]), claim.Label(setting.key)))
			}
		}
		if from == nil {
			continue
		}
		isSet := setting.get(&g.Settings) != setting.get(&claim.Settings{})
		forHTTP := setting.key == KeyStrip || setting.key == KeyRedirect || setting.key == KeySticky || setting.key == KeyBalance && g.NeedsHTTP()
		if isSet && forHTTP && len(g.Routes) == 0 {
			r.report(leftout.Sentence(r.service, "", fmt.Sprintf("its %s needs an HTTP route, but it has only a port; set SERVICE_ROUTE_HOST or SERVICE_ROUTE_PATH", setting.key)))
		}
		if setting.key == KeyCheck && isSet {
			r.reportUnchecked(from, newestFirst)
		}
	}
}

// reportUnchecked reports an instance with its own routes and no check, next to others with a check.
func (r *reader) reportUnchecked(from *instance, serving []*instance) {
	for _, i := range serving {
		if i.Restricted && !slices.Contains(i.Says, KeyCheck) {
			r.leaveOut(i, fmt.Sprintf("it has no %s, so HAProxy does not check it, unlike instance %.100q, which has one; set a %s for all",
				KeyCheck, from.id, claim.Label(KeyCheck)))
			return
		}
	}
}

// reportIneffective reports settings without a route to apply to.
func (r *reader) reportIneffective() {
	if slices.ContainsFunc(r.instances, func(i *instance) bool { return i.Restricted }) {
		return // already reported
	}
	report := func(key string, isSet func(*instance) bool) {
		if slices.ContainsFunc(r.instances, isSet) {
			r.report(leftout.Sentence(r.service, "", fmt.Sprintf("it has a %s but no route; set SERVICE_ROUTE_HOST, SERVICE_ROUTE_PATH or SERVICE_ROUTE_PORT", key)))
		}
	}
	for _, setting := range settings {
		report(setting.key, func(i *instance) bool { return setting.get(&i.Settings) != setting.get(&claim.Settings{}) })
	}
	report(KeyTo, wantsLeader)
}

// Drained reports whether a group of a table has servers but none that takes new requests.
func (g *Group) Drained() bool { return g.drained }

// NeedsFallback returns the name of the fallback service if this group has no server, otherwise "".
func (g *Group) NeedsFallback() string {
	if takesRequests(g.Servers) {
		return ""
	}
	return g.Fallback
}

// FallBack uses the instances of the service named by NeedsFallback for this group. It returns "" so that a template can
// call it.
func (g *Group) FallBack(instances []*Instance) string {
	r := newReader(g.Fallback, instances, func(reason string) {
		g.report(leftout.Sentence(g.Service, "", "for its route_fallback: "+reason))
	})
	members := slices.DeleteFunc(r.instances, func(i *instance) bool {
		_, none := i.meta[claim.KeyNoRoute]
		if !none && i.isWell() && i.problem != "" {
			r.leaveOut(i, i.problem)
		}
		i.Claim = r.claim(i.meta, nil)
		return none
	})
	members, _ = r.candidates(members)
	_, g.Servers = r.serving(members)
	for n := range g.Servers {
		g.Servers[n].Check = g.Check
	}
	return ""
}

// Servable returns, sorted, the names of services that can be looked up and named in a configuration, and reports the
// others.
func Servable(services []*dependency.CatalogSnippet, report func(string)) []string {
	kept := make([]string, 0, len(services))
	for _, s := range services {
		if !claim.IsServiceName(s.Name) {
			report(leftout.Sentence(s.Name, "", fmt.Sprintf("its name may contain only letters, digits, -, _ and dots between them, at most %d characters; set SERVICE_NAME", claim.MaxName)))
			continue
		}
		kept = append(kept, s.Name)
	}
	slices.Sort(kept)
	return kept
}

// baseName is the name of a service's first group. A name with a dot gets another dot and a hash, so it cannot clash with
// berth's own names, which have dots as well.
func baseName(service string) string {
	if !strings.Contains(service, ".") {
		return service
	}
	return hashed(service, "")
}

// nameFor is the nth name for an additional group of a service, made from one of its routes.
func nameFor(service string, r claim.Route, n int) string {
	return hashed(service, fmt.Sprint(r, n))
}

func hashed(service, what string) string {
	sum := sha256.Sum256([]byte(service + "\x00" + what))
	return fmt.Sprintf("%s.%x", service, sum[:4])
}
