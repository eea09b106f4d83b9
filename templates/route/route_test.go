package route

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul/api"
)

// catalog is the instances by the names of their services.
type catalog map[string][]*Instance

// with registers a passing instance and returns it, for the test to change.
func (c catalog) with(service, id, address string, port int, meta ...string) *Instance {
	i := &Instance{
		Node:    &api.Node{Node: "node-1"},
		Service: &api.AgentService{ID: id, Service: service, Address: address, Port: port, Meta: map[string]string{}, Weights: api.AgentWeights{Passing: 1, Warning: 1}},
		Checks:  api.HealthChecks{{CheckID: "serfHealth", Status: api.HealthPassing}},
	}
	for n := 0; n < len(meta); n += 2 {
		i.Service.Meta[meta[n]] = meta[n+1]
	}
	c[service] = append(c[service], i)
	return i
}

// is sets the state of an instance's own check.
func is(i *Instance, status string) *Instance {
	i.Checks = append(i.Checks, &api.HealthCheck{CheckID: "own", ServiceID: i.Service.ID, Status: status})
	return i
}

// one returns a service's only group.
func one(t *testing.T, service string, instances []*Instance, report func(string)) *Group {
	t.Helper()
	groups := New(service, instances, unprivileged, NewLedger(0), report)
	if len(groups) != 1 {
		t.Fatalf("%d groups", len(groups))
	}
	return groups[0]
}

// unprivileged are the ports that tests allow.
var unprivileged = Ports{{1024, 65535}}

// refuse is a report func for tests that must report nothing.
func refuse(t *testing.T) func(string) {
	return func(reason string) { t.Errorf("left out: %s", reason) }
}

func TestServable(t *testing.T) {
	var names, leftOut []string
	names = Servable([]*dependency.CatalogSnippet{
		{Name: "web"}, {Name: "my.db"}, {Name: "a b"}, {Name: ""}, {Name: "Api_2"}, {Name: "x|any"}, {Name: "é"},
		{Name: strings.Repeat("n", 200)}, {Name: strings.Repeat("n", 201)},
	}, func(reason string) { leftOut = append(leftOut, reason) })
	if want := []string{"Api_2", "my.db", strings.Repeat("n", 200), "web"}; !slices.Equal(names, want) {
		t.Errorf("kept %q, want %q", names, want)
	}
	want := `service "a b": its name may contain only letters, digits, -, _ and dots between them, at most 200 characters; set SERVICE_NAME`
	if len(leftOut) != 5 || leftOut[0] != want {
		t.Errorf("left out %q, want %q first", leftOut, want)
	}
}

func TestServerNames(t *testing.T) {
	of := func(node, id string) *instance { return &instance{node: node, id: id} }
	long := strings.Repeat("n", 200)
	tests := []struct {
		name      string
		instances []*instance
		want      []string
	}{
		{"as it is", []*instance{of("n", "host:web_1:80"), of("n", "web-2.x")}, []string{"host:web_1:80", "web-2.x"}},
		{"sanitised", []*instance{of("n", "a/b c")}, []string{"a_b_c-b636ded5"}},
		{"sanitised alike", []*instance{of("n", "a/b"), of("n", "a b")}, []string{"a_b-10b920f7", "a_b-30244947"}},
		{"on two nodes", []*instance{of("n1", "web"), of("n2", "web")}, []string{"web-85914b9a", "web-53a5ac4a"}},
		{"empty", []*instance{of("n", "")}, []string{"-481daf85"}},
		{"long", []*instance{of("n", long), of("n", long+"n")}, []string{long, long[:180] + "-5b4f20b1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			nameServers(tt.instances)
			var got []string
			for _, i := range tt.instances {
				got = append(got, i.name)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestServerNameDoesNotDependOnTheHealthOfOthers(t *testing.T) {
	c := catalog{}
	c.with("web", "web", "10.0.0.1", 80, KeyPath, "/")
	other := c.with("web", "web", "10.0.0.2", 80)
	other.Node.Node = "node-2"
	both := one(t, "web", c["web"], refuse(t)).Servers
	is(other, api.HealthCritical)
	left := one(t, "web", c["web"], refuse(t)).Servers
	if len(both) != 2 || len(left) != 1 || !slices.Contains(both, left[0]) {
		t.Errorf("both %+v, left %+v", both, left)
	}
}

func TestSameInstanceTwice(t *testing.T) {
	c := catalog{}
	c.with("web", "web", "10.0.0.1", 80, KeyPath, "/")
	c.with("web", "web", "10.0.0.2", 80)
	var leftOut []string
	b := one(t, "web", c["web"], func(reason string) { leftOut = append(leftOut, reason) })
	want := []string{`service "web", instance "web": another instance has the same id on the same node; set SERVICE_ID`}
	if len(b.Servers) != 1 || b.Servers[0].Address != "10.0.0.1:80" || !slices.Equal(leftOut, want) {
		t.Errorf("servers %+v, left out %q", b.Servers, leftOut)
	}
}

func TestBackendLeavesItsInputAlone(t *testing.T) {
	c := catalog{}
	c.with("web", "b", "10.0.0.1", 80, KeyPath, "/").Service.Tags = []string{"udp"}
	c.with("web", "c", "10.0.0.1", 80, KeyPath, "/")
	c.with("web", "a", "10.0.0.1", 80)
	before := slices.Clone(c["web"])
	one(t, "web", c["web"], refuse(t))
	if !slices.Equal(before, c["web"]) {
		t.Error("the catalog's list was changed")
	}
}

func TestServiceWithoutRoute(t *testing.T) {
	c := catalog{}
	c.with("db", "db-1", "not an address", -1)
	c.with("dns", "dns-1", "10.0.0.1", 53, KeyPath, "/").Service.Tags = []string{"a", "udp"}
	c.with("media", "media-1", "10.0.0.1", 53, KeyPort, "5000").Service.Tags = []string{"sctp"}
	c.with("a b", "x", "10.0.0.1", 80, KeyPath, "/")
	for name, instances := range c {
		if groups := New(name, instances, unprivileged, NewLedger(0), refuse(t)); len(groups) > 0 {
			t.Errorf("%s: %+v", name, groups[0])
		}
	}
}

func TestReplicasAreReportedOnce(t *testing.T) {
	c := catalog{}
	for _, id := range []string{"web-1", "web-2", "web-3"} {
		c.with("web", id, "10.0.0.1", 80, KeyHost, "a.com,bad!host", KeyPort, "80", KeyBalance, "best", "route_timeout", "/")
	}
	var leftOut []string
	s := one(t, "web", c["web"], func(reason string) { leftOut = append(leftOut, reason) })
	want := []string{
		`service "web", instance "web-1": its route_host "bad!host" is not a host name like shop.example.com or *.example.com; set SERVICE_ROUTE_HOST`,
		`service "web", instance "web-1": its route_balance "best" is not one of roundrobin, leastconn, random, first, source, uri and hdr(<name>); set SERVICE_ROUTE_BALANCE`,
		`service "web", instance "web-1": its key "route_timeout" is unknown and has no effect; remove it, or correct its spelling`,
		`service "web", instance "web-1": its route_port "80" is not one of the allowed ports (1024-65535); set another SERVICE_ROUTE_PORT, or give the templater --tcp-ports 1024-65535,80`,
	}
	if diff := cmp.Diff(want, leftOut); diff != "" || len(s.Routes) != 1 || len(s.Ports) != 0 {
		t.Errorf("routes %v, ports %v, left out:\n%s", s.Routes, s.Ports, diff)
	}
}

// The newest instance with a valid value decides, and instances without one do not object.
func TestInstancesDisagree(t *testing.T) {
	c := catalog{}
	for n, balance := range []string{" ", "best", "leastconn", "random", " leastconn", "random"} {
		c.with("web", fmt.Sprint("web-", n), "10.0.0.1", 80, KeyPath, "/", KeyBalance, balance).Service.CreateIndex = uint64(100 - n)
	}
	var leftOut []string
	s := one(t, "web", c["web"], func(reason string) { leftOut = append(leftOut, reason) })
	want := []string{
		`service "web", instance "web-0": its route_balance is empty and has no effect; set SERVICE_ROUTE_BALANCE, or remove it`,
		`service "web", instance "web-1": its route_balance "best" is not one of roundrobin, leastconn, random, first, source, uri and hdr(<name>); set SERVICE_ROUTE_BALANCE`,
		`service "web", instance "web-3": its route_balance "random" is overridden by the newer instance "web-2", which says "leastconn"; set the same SERVICE_ROUTE_BALANCE for all`,
	}
	if diff := cmp.Diff(want, leftOut); diff != "" || s.Balance != "leastconn" {
		t.Errorf("balance %q, left out:\n%s", s.Balance, diff)
	}
}

func TestPorts(t *testing.T) {
	for _, tt := range []struct {
		allowed, port string
		want          []int
	}{
		{"1024-65535", "5432", []int{5432}},
		{"1024-65535", " 1024", []int{1024}},
		{"1024-65535", "65535", []int{65535}},
		{"22,80-90", "22", []int{22}},
		{"22,80-90", "90", []int{90}},
		{"22,80-90", "91", nil},
		{"none", "5432", nil},
		{"1-65535", "8080", nil},
		{"1-65535", "8443", nil},
		{"1-65535", "8404", nil},
		{"1-65535", "65536", nil},
	} {
		allowed, err := ParsePorts(tt.allowed)
		if err != nil || allowed.String() != tt.allowed {
			t.Fatalf("%s: %v, %v", tt.allowed, allowed, err)
		}
		c := catalog{}
		c.with("db", "db-1", "10.0.0.1", 80, KeyPort, tt.port)
		leftOut := 0
		var got []int
		for _, g := range New("db", c["db"], allowed, NewLedger(0), func(string) { leftOut++ }) {
			got = append(got, g.Ports...)
		}
		if !slices.Equal(got, tt.want) || leftOut != 1-len(tt.want) {
			t.Errorf("%s of %s: %v, %d left out", tt.port, tt.allowed, got, leftOut)
		}
	}
}

func TestPortsWithout(t *testing.T) {
	for _, tt := range []struct {
		ports string
		port  int
		want  string
	}{
		{"1-10", 5, "1-4,6-10"}, {"1-10", 1, "2-10"}, {"1-10", 10, "1-9"}, {"5,7", 5, "7"}, {"5", 5, "none"}, {"5", 6, "5"}, {"none", 5, "none"},
	} {
		ports, err := ParsePorts(tt.ports)
		if err != nil {
			t.Fatal(err)
		}
		rest := ports.Without(tt.port)
		if got := rest.String(); got != tt.want || rest.Contain(tt.port) {
			t.Errorf("%s without %d: %s, want %s", tt.ports, tt.port, got, tt.want)
		}
	}
}

func TestParsePortsRefuses(t *testing.T) {
	for _, wrong := range []string{"", "0", "1-", "-1", "2-1", "1-65536", "a", "1,,2", "1 - 2", "+1", "none,1"} {
		if p, err := ParsePorts(wrong); err == nil {
			t.Errorf("%q: %v", wrong, p)
		}
	}
}

func TestFallback(t *testing.T) {
	c := catalog{}
	for service, fallback := range map[string]string{"down": " sorry ", "itself": "itself", "wrong": "no service", "of-the-down": "down"} {
		is(c.with(service, service+"-1", "10.0.0.1", 80, KeyHost, service+".example.com", KeyFallback, fallback), api.HealthCritical)
	}
	c.with("up", "up-1", "10.0.1.1", 80, KeyHost, "up.example.com", KeyFallback, "sorry")
	c.with("sorry", "sorry-1", "10.0.9.1", 8080).Service.Weights.Passing = 7 // without a route
	c.with("sorry", "sorry-2", "10.0.9.2", 8080)
	is(c.with("sorry", "sorry-3", "10.0.9.3", 8080), api.HealthCritical)
	c.with("sorry", "sorry-4", "10.0.9.4", 8080).Service.Tags = []string{"udp"}
	c.with("sorry", "sorry-5", "nowhere", 8080)
	var leftOut []string
	report := func(reason string) { leftOut = append(leftOut, reason) }
	for service, want := range map[string]string{"down": "sorry", "up": "", "itself": "", "wrong": "", "of-the-down": "down"} {
		if s := one(t, service, c[service], report); s.NeedsFallback() != want {
			t.Errorf("%s: %q, want %q", service, s.NeedsFallback(), want)
		}
	}
	slices.Sort(leftOut)
	want := []string{
		`service "itself", instance "itself-1": its route_fallback "itself" is not the name of another service; set SERVICE_ROUTE_FALLBACK`,
		`service "wrong", instance "wrong-1": its route_fallback "no service" is not the name of another service; set SERVICE_ROUTE_FALLBACK`,
	}
	if diff := cmp.Diff(want, leftOut); diff != "" {
		t.Error(diff)
	}
	leftOut = nil
	s := one(t, "down", c["down"], report)
	if s.FallBack(c["sorry"]) != "" {
		t.Error("FallBack returns text")
	}
	if want := []Server{{Name: "sorry-1", Address: "10.0.9.1:8080", Weight: 7}, {Name: "sorry-2", Address: "10.0.9.2:8080"}}; !slices.Equal(s.Servers, want) {
		t.Errorf("servers %+v", s.Servers)
	}
	want = []string{`service "down": for its route_fallback: service "sorry", instance "sorry-5": its address "nowhere" is not an IP address; set SERVICE_ADDRESS to one`}
	if diff := cmp.Diff(want, leftOut); diff != "" {
		t.Error(diff)
	}
}
