package route

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"

	"berth/templates/claim"
)

// described returns each group as "name: routes -> servers".
func described(groups []*Group) []string {
	all := make([]string, len(groups))
	for n, g := range groups {
		var routes, servers []string
		for _, r := range g.all() {
			routes = append(routes, r.String())
		}
		for _, s := range g.Servers {
			server := s.Name
			if s.Weight != 0 {
				server += fmt.Sprint("*", s.Weight)
			}
			if s.Drained {
				server += "*0"
			}
			servers = append(servers, server)
		}
		all[n] = fmt.Sprintf("%s: %s -> %s", g.Name, strings.Join(routes, " "), strings.Join(servers, " "))
	}
	slices.Sort(all)
	return all
}

// A route belongs to the instances that ask for it; an instance that asks for none serves all routes of its service.
func TestGroups(t *testing.T) {
	a, b, port := claim.Route{Host: "a.com", Path: "/"}, claim.Route{Host: "b.com", Path: "/"}, claim.Route{Port: 5432}
	for _, tt := range []struct {
		name string
		add  func(c catalog)
		want []string
	}{
		{"each host its own instances", func(c catalog) {
			c.with("shop", "prod", "10.0.0.1", 80, KeyHost, "a.com").Service.CreateIndex = 1
			c.with("shop", "staging", "10.0.0.2", 80, KeyHost, "b.com").Service.CreateIndex = 2
		}, []string{"shop: a.com/ -> prod", nameFor("shop", b, 0) + ": b.com/ -> staging"}},
		{"the oldest has the service's name", func(c catalog) {
			c.with("shop", "prod", "10.0.0.1", 80, KeyHost, "a.com").Service.CreateIndex = 2
			c.with("shop", "staging", "10.0.0.2", 80, KeyHost, "b.com").Service.CreateIndex = 1
		}, []string{"shop: b.com/ -> staging", nameFor("shop", a, 0) + ": a.com/ -> prod"}},
		{"who names none serves all", func(c catalog) {
			c.with("shop", "1", "10.0.0.1", 80, KeyHost, "a.com b.com")
			c.with("shop", "2", "10.0.0.2", 80)
		}, []string{"shop: a.com/ b.com/ -> 1 2"}},
		{"routes of a part", func(c catalog) {
			c.with("shop", "1", "10.0.0.1", 80, KeyHost, "a.com").Service.CreateIndex = 1
			c.with("shop", "2", "10.0.0.2", 80, KeyHost, "a.com,b.com", KeyPort, "5432").Service.CreateIndex = 2
			c.with("shop", "3", "10.0.0.3", 80).Service.CreateIndex = 3
		}, []string{"shop: a.com/ -> 1 2 3", nameFor("shop", b, 0) + ": b.com/ port 5432 -> 2 3"}},
		{"a port of its own", func(c catalog) {
			c.with("shop", "1", "10.0.0.1", 80, KeyHost, "a.com").Service.CreateIndex = 1
			c.with("shop", "2", "10.0.0.2", 80, KeyPort, "5432").Service.CreateIndex = 2
		}, []string{"shop: a.com/ -> 1", nameFor("shop", port, 0) + ": port 5432 -> 2"}},
		{"a claim that could not be kept is not one that names no route", func(c catalog) {
			c.with("shop", "1", "10.0.0.1", 80, KeyHost, "a.com")
			c.with("shop", "2", "10.0.0.2", 80, claim.KeyNoRoute, "its hosts are too long")
			c.with("shop", "3", "10.0.0.3", 80, KeyHost, "", KeyPath, "/")
			c.with("shop", "4", "10.0.0.4", 80, KeyHost, "a.com", KeyCheck, "health")
			c.with("shop", "5", "10.0.0.5", 80, KeyPort, "22")
		}, []string{"shop: a.com/ -> 1"}},
		{"in Consul's order or another", func(c catalog) {
			c.with("shop", "2", "10.0.0.2", 80, KeyHost, "b.com,a.com")
			c.with("shop", "1", "10.0.0.1", 80, KeyHost, "a.com,b.com")
		}, []string{"shop: a.com/ b.com/ -> 1 2"}},
	} {
		c := catalog{}
		tt.add(c)
		slices.Sort(tt.want)
		if diff := cmp.Diff(tt.want, described(New("shop", c["shop"], unprivileged, NewLedger(0), func(string) {}))); diff != "" {
			t.Errorf("%s:\n%s", tt.name, diff)
		}
	}
}

// A service with a dot gets a name unlike berth's own.
func TestNamesWithDots(t *testing.T) {
	for _, service := range []string{"Web_App.v1", "no.route", "shop.tcp", "shop.00000000", "http.in"} {
		c := catalog{}
		c.with(service, "1", "10.0.0.1", 80, KeyPath, "/")
		if g := one(t, service, c[service], refuse(t)); g.Name != hashed(service, "") || g.Service != service || len(g.Servers) != 1 {
			t.Errorf("%s: %+v", service, g)
		}
	}
}

// A second group that comes or goes renames no other group.
func TestGroupsKeepTheirNames(t *testing.T) {
	l := NewLedger(0)
	b := nameFor("shop", claim.Route{Host: "b.com", Path: "/"}, 0)
	for _, step := range []struct {
		name  string
		hosts map[string]string // by instance
		want  []string
	}{
		{"v1", map[string]string{"v1": "a.com"}, []string{"shop: a.com/ -> v1"}},
		{"v2 beside it", map[string]string{"v1": "a.com", "v2": "a.com,b.com"}, []string{b + ": b.com/ -> v2", "shop: a.com/ -> v1 v2"}},
		{"v2", map[string]string{"v2": "a.com,b.com"}, []string{"shop: a.com/ b.com/ -> v2"}},
		{"staging is there, too, and registered first", map[string]string{"v2": "a.com,b.com", "staging": "0.com"},
			[]string{nameFor("shop", claim.Route{Host: "0.com", Path: "/"}, 0) + ": 0.com/ -> staging", "shop: a.com/ b.com/ -> v2"}},
		{"it goes", map[string]string{"v2": "a.com,b.com"}, []string{"shop: a.com/ b.com/ -> v2"}},
	} {
		c := catalog{}
		for id, hosts := range step.hosts {
			c.with("shop", id, "10.0.0.1", 80, KeyHost, hosts)
		}
		slices.Sort(step.want)
		if diff := cmp.Diff(step.want, described(New("shop", c["shop"], unprivileged, l, refuse(t)))); diff != "" {
			t.Errorf("%s:\n%s", step.name, diff)
		}
	}
}

func TestServing(t *testing.T) {
	node := func(i *Instance, id, status string) *Instance {
		i.Checks = append(i.Checks, &api.HealthCheck{CheckID: id, Status: status})
		return i
	}
	for _, tt := range []struct {
		name string
		add  func(with func(id string) *Instance)
		want string
	}{
		{"all warn", func(with func(string) *Instance) {
			is(with("1"), "warning")
			is(with("2"), "warning").Service.Weights.Warning = 0
			is(with("3"), "warning").Service.Weights.Warning = 5
		}, "1 2 3*5"},
		{"some warn", func(with func(string) *Instance) {
			with("1").Service.Weights.Passing = 10
			is(with("2"), "warning").Service.Weights.Warning = 0
			is(with("3"), "warning").Service.Weights.Warning = 5
		}, "1*10 3*5"},
		{"all warn and one is critical", func(with func(string) *Instance) {
			is(with("1"), "critical")
			is(with("2"), "warning").Service.Weights.Warning = 0
		}, "2"},
		{"the node's agent is cut off", func(with func(string) *Instance) {
			with("1").Checks[0].Status = "critical"
			node(is(with("2"), "passing"), "disk", "critical")
			node(is(with("3"), "critical"), "disk", "critical")
			is(with("4"), "warning").Checks[0].Status = "critical"
		}, "1 2 4"},
		{"maintenance is somebody's word", func(with func(string) *Instance) {
			node(with("1"), api.NodeMaint, "critical")
			i := with("2")
			i.Checks = append(i.Checks, &api.HealthCheck{CheckID: api.ServiceMaintPrefix + "2", ServiceID: "2", Status: "critical"})
			with("3")
		}, "3"},
		{"no new requests", func(with func(string) *Instance) {
			with("1").Service.Meta[claim.KeyWeight] = "0"
			with("2").Service.Weights = api.AgentWeights{} // none were given
			with("3")
		}, "1*0 2 3"},
	} {
		c := catalog{}
		tt.add(func(id string) *Instance { return c.with("web", id, "10.0.0.1", 80, KeyPath, "/") })
		if got := described([]*Group{one(t, "web", c["web"], refuse(t))})[0]; got != "web: */ -> "+tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

// An instance without traffic sets nothing; of several different values, the newest instance's counts.
func TestWhoSetsTheRules(t *testing.T) {
	for _, tt := range []struct {
		name     string
		add      func(c catalog)
		want     claim.Settings
		problems int
	}{
		{"v2 is critical", func(c catalog) {
			c.with("web", "v1", "10.0.0.1", 80, KeyPath, "/")
			is(c.with("web", "v2", "10.0.0.2", 80, KeyPath, "/", KeyCheck, "/healthz", KeyStrip, "true", KeyRedirect, "https"), "critical").Service.CreateIndex = 9
		}, claim.Settings{}, 0},
		{"v2 is drained", func(c catalog) {
			c.with("web", "v1", "10.0.0.1", 80, KeyPath, "/", KeyMaxConn, "5")
			c.with("web", "v2", "10.0.0.2", 80, KeyPath, "/", KeyMaxConn, "7", claim.KeyWeight, "0").Service.CreateIndex = 9
		}, claim.Settings{MaxConn: 5}, 0},
		{"v2 cannot be served", func(c catalog) {
			c.with("web", "v1", "10.0.0.1", 80, KeyPath, "/")
			c.with("web", "v2", "nowhere", 80, KeyPath, "/", KeyCheck, "/healthz").Service.CreateIndex = 9
		}, claim.Settings{}, 1},
		{"none is served", func(c catalog) {
			is(c.with("web", "v1", "10.0.0.1", 80, KeyPath, "/", KeyCheck, "/old"), "critical")
			is(c.with("web", "v2", "10.0.0.2", 80, KeyPath, "/", KeyCheck, "/new"), "critical").Service.CreateIndex = 9
		}, claim.Settings{Check: "/new"}, 0},
		{"both are served", func(c catalog) {
			c.with("web", "v1", "10.0.0.1", 80, KeyPath, "/", KeyCheck, "/old", KeyStrip, "true").Service.CreateIndex = 1
			c.with("web", "v2", "10.0.0.2", 80, KeyPath, "/", KeyCheck, "/new", KeyStrip, "no").Service.CreateIndex = 2
		}, claim.Settings{Check: "/new"}, 1},
		{"the newest by its start", func(c catalog) {
			c.with("web", "v1", "10.0.0.1", 80, KeyPath, "/", KeyCheck, "/old", claim.KeyStarted, "2026-11-02T00:00:00Z").Service.CreateIndex = 1
			c.with("web", "v2", "10.0.0.2", 80, KeyPath, "/", KeyCheck, "/new", claim.KeyStarted, "2026-11-01T23:00:00Z").Service.CreateIndex = 2
		}, claim.Settings{Check: "/old"}, 0},
		{"the newest with a hold says how long, even if that is not at all", func(c catalog) {
			c.with("web", "v1", "10.0.0.1", 80, KeyPath, "/", KeyHold, "30s").Service.CreateIndex = 1
			c.with("web", "v2", "10.0.0.2", 80, KeyPath, "/", KeyHold, "off").Service.CreateIndex = 2
			c.with("web", "v3", "10.0.0.3", 80, KeyPath, "/").Service.CreateIndex = 3
		}, claim.Settings{Hold: claim.NoHold}, 1},
		{"a bad hold is left out, and its route stays", func(c catalog) {
			c.with("web", "v1", "10.0.0.1", 80, KeyPath, "/", KeyHold, "1h")
		}, claim.Settings{}, 1},
		{"one has no check, though it has labels", func(c catalog) {
			c.with("web", "v1", "10.0.0.1", 80, KeyPath, "/")
			c.with("web", "v2", "10.0.0.2", 80, KeyPath, "/", KeyCheck, "/new")
		}, claim.Settings{Check: "/new"}, 1},
		{"one has no labels", func(c catalog) {
			c.with("web", "v1", "10.0.0.1", 80)
			c.with("web", "v2", "10.0.0.2", 80, KeyPath, "/", KeyCheck, "/new")
		}, claim.Settings{Check: "/new"}, 0},
	} {
		c := catalog{}
		tt.add(c)
		var leftOut []string
		g := one(t, "web", c["web"], func(reason string) { leftOut = append(leftOut, reason) })
		if diff := cmp.Diff(tt.want, g.Settings); diff != "" || len(leftOut) != tt.problems {
			t.Errorf("%s: %s%q", tt.name, diff, leftOut)
		}
	}
}

// Each server is checked with its own instance's path. The path of a drained instance is not used.
func TestChecks(t *testing.T) {
	for _, tt := range []struct {
		name string
		add  func(c catalog)
		want string // check of each server
	}{
		{"moved", func(c catalog) {
			c.with("web", "v1", "10.0.0.1", 80, KeyPath, "/", KeyCheck, "/old")
			c.with("web", "v2", "10.0.0.2", 80, KeyPath, "/", KeyCheck, "/new").Service.CreateIndex = 9
		}, "/old /new"},
		{"added", func(c catalog) {
			c.with("web", "v1", "10.0.0.1", 80, KeyPath, "/")
			c.with("web", "v2", "10.0.0.2", 80, KeyPath, "/", KeyCheck, "/new").Service.CreateIndex = 9
		}, "- /new"},
		{"removed", func(c catalog) {
			c.with("web", "v1", "10.0.0.1", 80, KeyPath, "/", KeyCheck, "/old")
			c.with("web", "v2", "10.0.0.2", 80, KeyPath, "/").Service.CreateIndex = 9
		}, "/old -"},
		{"one names no route", func(c catalog) {
			c.with("web", "v1", "10.0.0.1", 80)
			c.with("web", "v2", "10.0.0.2", 80, KeyPath, "/", KeyCheck, "/new")
		}, "/new /new"},
		{"one names no route, but a check", func(c catalog) {
			c.with("web", "v1", "10.0.0.1", 80, KeyCheck, "/own")
			c.with("web", "v2", "10.0.0.2", 80, KeyPath, "/", KeyCheck, "/new").Service.CreateIndex = 9
		}, "/own /new"},
		{"one is drained", func(c catalog) {
			c.with("web", "v1", "10.0.0.1", 80, KeyPath, "/")
			c.with("web", "v2", "10.0.0.2", 80, KeyPath, "/", KeyCheck, "/new", claim.KeyWeight, "0").Service.CreateIndex = 9
		}, "- -"},
	} {
		c := catalog{}
		tt.add(c)
		var got []string
		for _, s := range one(t, "web", c["web"], func(string) {}).Servers {
			if s.Check == "" {
				s.Check = "-"
			}
			got = append(got, s.Check)
		}
		if got := strings.Join(got, " "); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

// A service that asks for the leader gets only the leader, and no server without one.
func TestRouteToLeader(t *testing.T) {
	leads := func(i *Instance, index uint64, tags ...string) *Instance {
		i.Service.Tags, i.Service.ModifyIndex = append(tags, "leader"), index
		return i
	}
	follows := func(i *Instance) *Instance {
		i.Service.Tags, i.Service.ModifyIndex = []string{"follower"}, 99
		return i
	}
	const to = "leader"
	for _, tt := range []struct {
		name    string
		add     func(with func(id string, meta ...string) *Instance)
		want    string
		leftOut []string // a part of each
	}{
		{"a leader and followers", func(with func(string, ...string) *Instance) {
			follows(with("1", KeyTo, to))
			leads(with("2", KeyTo, " Leader "), 5, "db").Service.Weights.Passing = 7
			follows(with("3", KeyTo, to))
		}, "2*7", nil},
		{"no leader", func(with func(string, ...string) *Instance) {
			follows(with("1", KeyTo, to))
			follows(with("2", KeyTo, to))
		}, "", nil},
		{"no roles at all", func(with func(string, ...string) *Instance) {
			with("1", KeyTo, to)
			with("2", KeyTo, to).Service.Tags = []string{"leaders", "Leader"}
		}, "", []string{`instance "1": its route_to is leader, but no instance of its service has the tag leader or follower, so none gets requests; set SERVICE_TOPOLOGY=leader, or unset SERVICE_ROUTE_TO`}},
		{"nobody asks for it", func(with func(string, ...string) *Instance) {
			follows(with("1"))
			leads(with("2", KeyTo, "all"), 5)
		}, "1 2", nil},
		{"two leaders: the later registration", func(with func(string, ...string) *Instance) {
			leads(with("1", KeyTo, to), 9)
			leads(with("2", KeyTo, to), 5)
		}, "1", nil},
		{"two leaders: the later registration, though its instance is older", func(with func(string, ...string) *Instance) {
			leads(with("1", KeyTo, to), 5).Service.CreateIndex = 4
			leads(with("2", KeyTo, to), 9).Service.CreateIndex = 3
		}, "2", nil},
		{"two leaders that cannot be told apart", func(with func(string, ...string) *Instance) {
			leads(with("2", KeyTo, to), 5)
			leads(with("1", KeyTo, to), 5)
		}, "1", nil},
		{"two leaders, and the new one is ill", func(with func(string, ...string) *Instance) {
			leads(with("1", KeyTo, to), 5)
			is(leads(with("2", KeyTo, to), 9), "critical")
		}, "", nil},
		{"the leader is critical", func(with func(string, ...string) *Instance) {
			is(leads(with("1", KeyTo, to), 5), "critical")
			follows(with("2", KeyTo, to))
		}, "", nil},
		{"the leader is in maintenance", func(with func(string, ...string) *Instance) {
			i := leads(with("1", KeyTo, to), 5)
			i.Checks = append(i.Checks, &api.HealthCheck{CheckID: api.ServiceMaintPrefix + "1", ServiceID: "1", Status: "critical"})
			follows(with("2", KeyTo, to))
		}, "", nil},
		{"the leader warns, and warnings get nothing beside who passes", func(with func(string, ...string) *Instance) {
			is(leads(with("1", KeyTo, to), 5), "warning").Service.Weights.Warning = 0
			follows(with("2", KeyTo, to))
		}, "1", nil},
		{"the leader is drained", func(with func(string, ...string) *Instance) {
			leads(with("1", KeyTo, to, claim.KeyWeight, "0"), 5)
			follows(with("2", KeyTo, to))
		}, "1*0", nil},
		{"who says nothing agrees", func(with func(string, ...string) *Instance) {
			leads(with("1"), 5)
			follows(with("2", KeyTo, to))
			with("3")
		}, "1", nil},
		{"the stricter one counts, however old", func(with func(string, ...string) *Instance) {
			leads(with("1", KeyTo, to), 5)
			with("2", KeyTo, "all").Service.CreateIndex = 9
			with("3", KeyTo, "all").Service.CreateIndex = 10
		}, "1", []string{`instance "2": its route_to "all" is overridden by instance "1", which says leader; set the same SERVICE_ROUTE_TO for all`}},
		{"who is drained has no say, but gets nothing itself", func(with func(string, ...string) *Instance) {
			follows(with("1", KeyTo, to, claim.KeyWeight, "0"))
			leads(with("2"), 5)
			with("3")
		}, "2 3", nil},
		{"who is critical has no say", func(with func(string, ...string) *Instance) {
			is(follows(with("1", KeyTo, to)), "critical")
			with("2")
		}, "2", nil},
		{"all are critical", func(with func(string, ...string) *Instance) {
			is(leads(with("1", KeyTo, to), 5), "critical")
			is(with("2"), "critical")
		}, "", nil},
		{"who cannot be read has no route", func(with func(string, ...string) *Instance) {
			leads(with("1", KeyTo, to), 5)
			follows(with("2", KeyTo, "master"))
		}, "1", []string{`instance "2": its route_to "master" is neither leader nor all`}},
		{"the leader is on UDP", func(with func(string, ...string) *Instance) {
			leads(with("1", KeyTo, to), 5, "udp")
			follows(with("2", KeyTo, to))
		}, "", nil},
	} {
		c := catalog{}
		tt.add(func(id string, meta ...string) *Instance {
			return c.with("web", id, "10.0.0.1", 80, append(meta, KeyPath, "/", KeyPort, "5432")...)
		})
		var leftOut []string
		g := one(t, "web", c["web"], func(reason string) { leftOut = append(leftOut, reason) })
		want := strings.TrimSpace("web: */ port 5432 -> " + tt.want)
		if got := strings.TrimSpace(described([]*Group{g})[0]); got != want || !slices.EqualFunc(leftOut, tt.leftOut, strings.Contains) {
			t.Errorf("%s: %s, want %s; left out %q", tt.name, got, want, leftOut)
		}
	}
}

// The leader is the service's, whichever of its routes an instance asks for.
func TestRouteToLeaderOfTheService(t *testing.T) {
	c := catalog{}
	old := c.with("db", "old", "10.0.0.1", 80, KeyHost, "a.com", KeyTo, "leader").Service
	now := c.with("db", "new", "10.0.0.2", 80, KeyHost, "b.com", KeyTo, "leader").Service
	old.Tags, old.ModifyIndex, old.CreateIndex = []string{"leader"}, 5, 1
	now.Tags, now.ModifyIndex, now.CreateIndex = []string{"leader"}, 6, 2
	got := described(New("db", c["db"], unprivileged, NewLedger(0), refuse(t)))
	want := []string{nameFor("db", claim.Route{Host: "b.com", Path: "/"}, 0) + ": b.com/ -> new", "db: a.com/ -> "}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// A new leader, or none, changes only the servers of a group.
func TestLeaderChangesServersOnly(t *testing.T) {
	r := &renderer{Fragments: NewFragments(NewLedger(time.Minute))}
	group := func(leader string) (Group, []string) {
		c := catalog{}
		for n, id := range []string{"1", "2"} {
			i := c.with("db", id, fmt.Sprint("10.0.0.", n), 80, KeyHost, "a.com", KeyTo, "leader", KeyCheck, "/health", KeySticky, "yes")
			i.Service.Tags = []string{"follower"}
			if id == leader {
				i.Service.Tags = []string{"leader"}
			}
		}
		claims, _ := r.render(c)
		g := *one(t, "db", c["db"], refuse(t))
		servers := described([]*Group{&g})
		g.Servers, g.serves, g.report = nil, false, nil
		return g, append(claims, servers...)
	}
	first, servers := group("1")
	if want := []string{"a.com/ db", "db: a.com/ -> 1"}; !slices.Equal(servers, want) {
		t.Errorf("%q, want %q", servers, want)
	}
	for leader, want := range map[string][]string{"2": {"a.com/ db", "db: a.com/ -> 2"}, "": {"a.com/ db", "db: a.com/ -> "}} {
		next, servers := group(leader)
		if diff := cmp.Diff(first, next, cmp.AllowUnexported(Group{})); diff != "" || !slices.Equal(servers, want) {
			t.Errorf("%q leads: %q, want %q\n%s", leader, servers, want, diff)
		}
	}
}

// A service without a leader falls back; as a fallback, only its leader serves.
func TestFallbackToLeader(t *testing.T) {
	c := catalog{}
	c.with("db", "db-1", "10.0.0.1", 80, KeyHost, "a.com", KeyTo, "leader", KeyFallback, "spare").Service.Tags = []string{"follower"}
	c.with("spare", "1", "10.0.0.2", 80, KeyTo, "leader").Service.Tags = []string{"follower"}
	c.with("spare", "2", "10.0.0.3", 80, KeyTo, "leader").Service.Tags = []string{"leader"}
	c.with("spare", "3", "10.0.0.4", 80, KeyTo, "leeder")
	g := one(t, "db", c["db"], refuse(t))
	if g.NeedsFallback() != "spare" {
		t.Fatalf("falls back to %q", g.NeedsFallback())
	}
	g.FallBack(c["spare"])
	if got, want := described([]*Group{g})[0], "db: a.com/ -> 2"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
