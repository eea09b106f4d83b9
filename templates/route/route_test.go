package route

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul-template/dependency"
)

// catalog is the instances by the names of their services.
type catalog map[string][]*Instance

// with registers a passing instance and returns it, for the test to change.
func (c catalog) with(service, id, address string, port int, meta ...string) *Instance {
	i := &Instance{
		Node: "node-1", ID: id, Name: service, Address: address, Port: port,
		Status: dependency.HealthPassing, ServiceMeta: map[string]string{},
	}
	for n := 0; n < len(meta); n += 2 {
		i.ServiceMeta[meta[n]] = meta[n+1]
	}
	c[service] = append(c[service], i)
	return i
}

// unprivileged are the ports that tests allow.
var unprivileged = Ports{{1024, 65535}}

// refuse is a report func for what must not be left out.
func refuse(t *testing.T) func(string) {
	return func(reason string) { t.Errorf("left out: %s", reason) }
}

func TestServable(t *testing.T) {
	var names, leftOut []string
	names = Servable([]*dependency.CatalogSnippet{
		{Name: "web"}, {Name: "my.db"}, {Name: "a b"}, {Name: ""}, {Name: "Api_2"}, {Name: "x|any"}, {Name: "é"},
		{Name: strings.Repeat("n", 200)}, {Name: strings.Repeat("n", 201)},
	}, func(reason string) { leftOut = append(leftOut, reason) })
	if want := []string{"Api_2", strings.Repeat("n", 200), "web"}; !slices.Equal(names, want) {
		t.Errorf("kept %q, want %q", names, want)
	}
	want := `service "my.db": its name may only have letters, digits, - and _, 200 at most; set SERVICE_NAME`
	if len(leftOut) != 6 || leftOut[0] != want {
		t.Errorf("left out %q, want %q first", leftOut, want)
	}
}

func TestServerNames(t *testing.T) {
	instance := func(node, id string) *dependency.HealthService {
		return &dependency.HealthService{Node: node, ID: id}
	}
	long := strings.Repeat("n", 200)
	tests := []struct {
		name      string
		instances []*dependency.HealthService
		want      []string
	}{
		{"as it is", []*dependency.HealthService{instance("n", "host:web_1:80"), instance("n", "web-2.x")}, []string{"host:web_1:80", "web-2.x"}},
		{"sanitised", []*dependency.HealthService{instance("n", "a/b c")}, []string{"a_b_c-b636ded5"}},
		{"sanitised alike", []*dependency.HealthService{instance("n", "a/b"), instance("n", "a b")}, []string{"a_b-10b920f7", "a_b-30244947"}},
		{"on two nodes", []*dependency.HealthService{instance("n1", "web"), instance("n2", "web")}, []string{"web-85914b9a", "web-53a5ac4a"}},
		{"empty", []*dependency.HealthService{instance("n", "")}, []string{"-481daf85"}},
		{"long", []*dependency.HealthService{instance("n", long), instance("n", long+"n")}, []string{long, long[:180] + "-5b4f20b1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, serverNames(tt.instances)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestServerNameDoesNotDependOnTheHealthOfOthers(t *testing.T) {
	c := catalog{}
	c.with("web", "web", "10.0.0.1", 80, KeyPath, "/")
	other := c.with("web", "web", "10.0.0.2", 80)
	other.Node = "node-2"
	both := New("web", c["web"], unprivileged, refuse(t)).Servers
	other.Status = dependency.HealthCritical
	one := New("web", c["web"], unprivileged, refuse(t)).Servers
	if len(both) != 2 || len(one) != 1 || !slices.Contains(both, one[0]) {
		t.Errorf("both %+v, one %+v", both, one)
	}
}

func TestSameInstanceTwice(t *testing.T) {
	c := catalog{}
	c.with("web", "web", "10.0.0.1", 80, KeyPath, "/")
	c.with("web", "web", "10.0.0.2", 80)
	var leftOut []string
	b := New("web", c["web"], unprivileged, func(reason string) { leftOut = append(leftOut, reason) })
	want := []string{`service "web", instance "web": another instance has the same id on the same node; set SERVICE_ID`}
	if len(b.Servers) != 1 || b.Servers[0].Address != "10.0.0.1:80" || !slices.Equal(leftOut, want) {
		t.Errorf("servers %+v, left out %q", b.Servers, leftOut)
	}
}

func TestBackendLeavesItsInputAlone(t *testing.T) {
	c := catalog{}
	c.with("web", "b", "10.0.0.1", 80, KeyPath, "/").Tags = []string{"udp"}
	c.with("web", "c", "10.0.0.1", 80, KeyPath, "/")
	c.with("web", "a", "10.0.0.1", 80)
	before := slices.Clone(c["web"])
	New("web", c["web"], unprivileged, refuse(t))
	if !slices.Equal(before, c["web"]) {
		t.Error("the catalog's list was changed")
	}
}

func TestServiceWithoutRoute(t *testing.T) {
	c := catalog{}
	c.with("db", "db-1", "not an address", -1)
	c.with("dns", "dns-1", "10.0.0.1", 53, KeyPath, "/").Tags = []string{"a", "udp"}
	c.with("media", "media-1", "10.0.0.1", 53, KeyPort, "5000").Tags = []string{"sctp"}
	c.with("a b", "x", "10.0.0.1", 80, KeyPath, "/")
	for name, instances := range c {
		if s := New(name, instances, unprivileged, refuse(t)); s.IsExposed() {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

func TestParseRoutes(t *testing.T) {
	tests := []struct {
		hosts, path string
		want        string
		leftOut     int
	}{
		{"a.com", "", "a.com/", 0},
		{"a.com", "/", "a.com/", 0},
		{"", "/", "*/", 0},
		{"", "/api", "*/api/", 0},
		{"", "/api/", "*/api/", 0},
		{"", "/api/v1.2/~me+you=us:80@home%20x", "*/api/v1.2/~me+you=us:80@home%20x/", 0},
		{" A.com ,my_app,localhost,10.0.0.1", "/x", "a.com/x/ my_app/x/ localhost/x/ 10.0.0.1/x/", 0},
		{"a.com,bad host,b.com", "", "a.com/ b.com/", 1},
		// Never a wider route than was asked for.
		{"bad host", "", "", 1},
		{",", "", "", 1},
		{"a.com,A.com", "", "a.com/", 0},
		{" ", "", "", 1},
		{"a.com", "api", "", 1},
		{"a.com", "//", "", 1},
		{"a.com", "/a//b", "", 1},
		{"a.com", "/a/../b", "", 1},
		{"a.com", "/.", "", 1},
		{"a.com", "/a?b", "", 1},
		{"a.com", "/a b", "", 1},
		{"a.com", " ", "", 1},
		{"a.com", "/" + strings.Repeat("a", 511), "", 1},
		{"a.com:80", "", "", 1},
		{"*.a.com", "/x", "*.a.com/x/", 0},
		{"*", "", "", 1},
		{"*.", "", "", 1},
		{"*a.com", "", "", 1},
		{"*.*.com", "", "", 1},
		{"a.*.com", "", "", 1},
		{"a..com", "", "", 1},
		{"a.com.", "", "", 1},
		{"-a.com", "", "", 1},
		{"a-.com", "", "", 1},
		{"[::1]", "", "", 1},
		{strings.Repeat("a", 64) + ".com", "", "", 1},
		{strings.Repeat("a.", 127), "", "", 1},
	}
	for _, tt := range tests {
		leftOut := 0
		var got []string
		for _, r := range parseRoutes(tt.hosts, tt.path, func(string) { leftOut++ }) {
			got = append(got, r.String())
		}
		if strings.Join(got, " ") != tt.want || leftOut != tt.leftOut {
			t.Errorf("parseRoutes(%q, %q): %q, %d left out, want %q, %d", tt.hosts, tt.path, got, leftOut, tt.want, tt.leftOut)
		}
	}
}

func TestReplicasAreReportedOnce(t *testing.T) {
	c := catalog{}
	for _, id := range []string{"web-1", "web-2", "web-3"} {
		c.with("web", id, "10.0.0.1", 80, KeyHost, "a.com,bad host", KeyPort, "80", KeyMaxConn, "many", "route_chekc", "/")
	}
	var leftOut []string
	s := New("web", c["web"], unprivileged, func(reason string) { leftOut = append(leftOut, reason) })
	want := []string{
		`service "web", instance "web-1": its route_host "bad host" is not a host name like shop.example.com or *.example.com; set SERVICE_ROUTE_HOST`,
		`service "web", instance "web-1": its route_port "80" is not one of the ports that may be asked for (1024-65535); set another SERVICE_ROUTE_PORT, or give the templater --tcp-ports 1024-65535,80`,
		`service "web", instance "web-1": its route_maxconn "many" is not a number between 1 and 1000000; set SERVICE_ROUTE_MAXCONN`,
		`service "web", instance "web-1": its "route_chekc" is no label that means anything here; remove it, or spell it as the documentation does`,
	}
	if diff := cmp.Diff(want, leftOut); diff != "" || len(s.Routes) != 1 || len(s.Ports) != 0 {
		t.Errorf("routes %v, ports %v, left out:\n%s", s.Routes, s.Ports, diff)
	}
}

// The first instance that has a value which makes sense decides, and those that have none agree.
func TestInstancesDisagree(t *testing.T) {
	c := catalog{}
	for n, balance := range []string{"", "best", "leastconn", "random", " leastconn", "random"} {
		c.with("web", fmt.Sprint("web-", n), "10.0.0.1", 80, KeyPath, "/", KeyBalance, balance)
	}
	var leftOut []string
	s := New("web", c["web"], unprivileged, func(reason string) { leftOut = append(leftOut, reason) })
	want := []string{
		`service "web", instance "web-1": its route_balance "best" is none of roundrobin, leastconn, random, first, source, uri and hdr(<name>); set SERVICE_ROUTE_BALANCE`,
		`service "web", instance "web-3": its route_balance "random" does not count, as instance "web-2" says "leastconn"; set the same SERVICE_ROUTE_BALANCE for all`,
	}
	if diff := cmp.Diff(want, leftOut); diff != "" || s.Balance != "leastconn" {
		t.Errorf("balance %q, left out:\n%s", s.Balance, diff)
	}
}

func TestSettings(t *testing.T) {
	for _, tt := range []struct {
		key   string
		good  map[string]any
		wrong []string
	}{
		{KeyStrip, map[string]any{"true": true, "1": true, "No": false, "false": false, "0": false}, nil},
		{KeyRedirect, map[string]any{"https": true, " HTTPS": true}, []string{"true", "http", "https://a.com"}},
		{KeyBalance, map[string]any{"leastconn": "leastconn", " uri ": "uri", "hdr(X-User)": "hdr(X-User)"},
			[]string{"static-rr", "LEASTCONN", "uri depth 2", "hdr()", "hdr(a b)", "hdr(a)(b)", "source consistent", "roundrobin # x"}},
		{KeyCheck, map[string]any{"/": "/", "/health?a=b&c=%20d;e,f": "/health?a=b&c=%20d;e,f"},
			[]string{"health", "/a b", "/a\tb", "/a#b", "/a'", "/a\"", "/a$HOME", "/a\\b", "/é", "/" + strings.Repeat("a", 512)}},
		{KeyMaxConn, map[string]any{"1": 1, "1000000": 1000000}, []string{"0", "-1", "1000001", "10x", "1e3", "0x10"}},
		{KeySlowStart, map[string]any{"1s": time.Second, "1m30s": 90 * time.Second, "1499ms": time.Second, "1h": time.Hour},
			[]string{"10", "0s", "-10s", "999ms", "61m", "10 s", "1d"}},
	} {
		check := func(value string, want any, problems int) {
			c := catalog{}
			c.with("web", "web-1", "10.0.0.1", 80, KeyPath, "/", tt.key, value)
			var leftOut []string
			s := New("web", c["web"], unprivileged, func(reason string) { leftOut = append(leftOut, reason) }).Settings
			got := map[string]any{KeyStrip: s.Strip, KeyRedirect: s.Redirect, KeyBalance: s.Balance, KeyCheck: s.Check,
				KeyMaxConn: s.MaxConn, KeySlowStart: s.SlowStart}[tt.key]
			if want == nil {
				want = map[string]any{KeyStrip: false, KeyRedirect: false, KeyBalance: "", KeyCheck: "",
					KeyMaxConn: 0, KeySlowStart: time.Duration(0)}[tt.key]
			}
			if got != want || len(leftOut) != problems {
				t.Errorf("%s %q: %v, want %v; left out %q", tt.key, value, got, want, leftOut)
			}
		}
		for value, want := range tt.good {
			check(value, want, 0)
		}
		for _, value := range tt.wrong {
			check(value, nil, 1)
		}
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
		{"1-65535", "0", nil},
		{"1-65535", "65536", nil},
		{"1-65535", "65557", nil}, // 21 in 16 bits
		{"1-65535", "+80", nil},
		{"1-65535", "-80", nil},
		{"1-65535", "80,81", nil},
		{"1-65535", "http", nil},
	} {
		allowed, err := ParsePorts(tt.allowed)
		if err != nil || allowed.String() != tt.allowed {
			t.Fatalf("%s: %v, %v", tt.allowed, allowed, err)
		}
		c := catalog{}
		c.with("db", "db-1", "10.0.0.1", 80, KeyPort, tt.port)
		leftOut := 0
		s := New("db", c["db"], allowed, func(string) { leftOut++ })
		if !slices.Equal(s.Ports, tt.want) || leftOut != 1-len(tt.want) {
			t.Errorf("%s of %s: %v, %d left out", tt.port, tt.allowed, s.Ports, leftOut)
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
		if got := rest.String(); got != tt.want || rest.contain(tt.port) {
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
		c.with(service, service+"-1", "10.0.0.1", 80, KeyHost, service+".example.com", KeyFallback, fallback).Status = dependency.HealthCritical
	}
	c.with("up", "up-1", "10.0.1.1", 80, KeyHost, "up.example.com", KeyFallback, "sorry")
	c.with("sorry", "sorry-1", "10.0.9.1", 8080).Weights.Passing = 7 // without a route
	c.with("sorry", "sorry-2", "10.0.9.2", 8080)
	c.with("sorry", "sorry-3", "10.0.9.3", 8080).Status = dependency.HealthCritical
	c.with("sorry", "sorry-4", "10.0.9.4", 8080).Tags = []string{"udp"}
	c.with("sorry", "sorry-5", "nowhere", 8080)
	var leftOut []string
	report := func(reason string) { leftOut = append(leftOut, reason) }
	for service, want := range map[string]string{"down": "sorry", "up": "", "itself": "", "wrong": "", "of-the-down": "down"} {
		if s := New(service, c[service], unprivileged, report); s.NeedsFallback() != want {
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
	s := New("down", c["down"], unprivileged, report)
	if s.FallBack(c["sorry"]) != "" || !s.IsExposed() {
		t.Error("not exposed")
	}
	if want := []Server{{Name: "sorry-1", Address: "10.0.9.1:8080", Weight: 7}, {Name: "sorry-2", Address: "10.0.9.2:8080"}}; !slices.Equal(s.Servers, want) {
		t.Errorf("servers %+v", s.Servers)
	}
	want = []string{`service "down": of its route_fallback: service "sorry", instance "sorry-5": its address "nowhere" is not an IP address; set SERVICE_ADDRESS to one`}
	if diff := cmp.Diff(want, leftOut); diff != "" {
		t.Error(diff)
	}
}
