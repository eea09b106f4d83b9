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

// Group is the routes of a service that the same instances serve, with the settings that these ask for. Most services are one
// group. An instance that names routes is in the groups of these; one that names none is in all groups of its service.
type Group struct {
	Service string
	Name    string        // unique, for the proxy's configuration; the service's name if it can be
	Routes  []claim.Route // of requests, in order
	Ports   []int         // in order
	claim.Settings
	Servers []Server // instances that serve, by name
	// Paused is how long a request waits, as the service is paused by hand; 0 = it is not. A Table sets it, so that texts that
	// do not depend on it need not be made again.
	Paused time.Duration

	created  uint64 // the least index in Consul of the instances that ask for the routes
	serves   bool   // its own instances take new requests
	departed bool   // it has none, and waits for them to come back
	drained  bool   // it has servers, and none takes new requests; set when it is kept
	report   func(string)
}

// all returns the group's routes, those of requests and ports.
func (g *Group) all() []claim.Route {
	all := slices.Clip(g.Routes)
	for _, p := range g.Ports {
		all = append(all, claim.Route{Port: p})
	}
	return all
}

// newGroup returns a group of routes, in order, without a name.
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

// New reads what a service's TCP instances ask for, and returns its groups, in order, none if the service is not exposed. It
// calls report with a line for each label that is left out.
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

// together returns the routes in groups that the same instances ask for, in order.
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
	case !several: // as it is most of the time
		return [][]claim.Route{one.Routes}
	}
	askers := map[claim.Route][]byte{} // the numbers of the instances
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

// settle gives a group its servers and settings, and returns its members.
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

// check returns the path by which an instance is checked: its own, and of one that names no route that of the group. While a
// service is rolled out, one version may not answer what the other is asked for.
func (i *instance) check(ofGroup string) string {
	switch {
	case i.drained || !i.Restricted && !slices.Contains(i.Says, KeyCheck):
		return ofGroup
	default:
		return i.Settings.Check
	}
}

// candidates returns the members that may be servers if they are well, and whether only the leader may. One that has a say is
// enough for that, whatever the others say: a write that reaches a follower does more harm than one that is refused. An instance
// that wants its leader alone gets nothing unless it leads, even if it has no say itself.
func (r *reader) candidates(members []*instance) (candidates []*instance, toLeader bool) {
	if !slices.ContainsFunc(members, wantsLeader) { // as it is most of the time
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

// reportRole reports what is at odds with an instance that wants its route for the leader alone.
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

// settings are the keys of settings with how one is copied from one Settings to another. KeyTo is not among them: the newest
// instance cannot take it back for the others.
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

// set takes each setting from the newest instance that says it.
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
			if setting.key == KeyCheck { // each is asked for its own
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

// reportUnchecked names an instance that has routes of its own and no check, beside others that have one.
func (r *reader) reportUnchecked(from *instance, serving []*instance) {
	for _, i := range serving {
		if i.Restricted && !slices.Contains(i.Says, KeyCheck) {
			r.leaveOut(i, fmt.Sprintf("it has no %s, so HAProxy does not check it, unlike instance %.100q, which has one; set a %s for all",
				KeyCheck, from.id, claim.Label(KeyCheck)))
			return
		}
	}
}

// reportIneffective reports the settings that have no route to be for.
func (r *reader) reportIneffective() {
	if slices.ContainsFunc(r.instances, func(i *instance) bool { return i.Restricted }) {
		return // that was reported
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

// Drained reports whether a group of a table has servers, of which none takes new requests.
func (g *Group) Drained() bool { return g.drained }

// NeedsFallback returns the name of the fallback service if this group has no server of its own, else "".
func (g *Group) NeedsFallback() string {
	if takesRequests(g.Servers) {
		return ""
	}
	return g.Fallback
}

// FallBack lets the instances of the service that NeedsFallback names serve for this group. It returns "", so that a template
// can call it.
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

// Servable returns, sorted, the names of the services that can be looked up and named in a configuration, and reports the
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

// baseName is the name of a service's first group. One with a dot gets another dot with a hash behind it, so that it can be none
// of berth's own names, which have dots, too.
func baseName(service string) string {
	if !strings.Contains(service, ".") {
		return service
	}
	return hashed(service, "")
}

// nameFor is the nth name of another group of a service, made from one of its routes.
func nameFor(service string, r claim.Route, n int) string {
	return hashed(service, fmt.Sprint(r, n))
}

func hashed(service, what string) string {
	sum := sha256.Sum256([]byte(service + "\x00" + what))
	return fmt.Sprintf("%s.%x", service, sum[:4])
}
