package templates

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul-template/dependency"
)

// refuse is a report func for what must not be left out.
func refuse(t *testing.T) func(string) {
	return func(reason string) { t.Errorf("left out: %s", reason) }
}

func TestServable(t *testing.T) {
	var names, leftOut []string
	for _, s := range servable([]*dependency.CatalogSnippet{
		{Name: "web"}, {Name: "my.db"}, {Name: "a b"}, {Name: ""}, {Name: "Api_2"}, {Name: "x|any"}, {Name: "é"},
		{Name: strings.Repeat("n", 200)}, {Name: strings.Repeat("n", 201)},
	}, func(reason string) { leftOut = append(leftOut, reason) }) {
		names = append(names, s.Name)
	}
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
	c.with("web", "web", "10.0.0.1", 80, metaPath, "/")
	other := c.with("web", "web", "10.0.0.2", 80)
	other.Node = "node-2"
	both := newBackend("web", c["web"], refuse(t)).Servers
	other.Status = dependency.HealthCritical
	one := newBackend("web", c["web"], refuse(t)).Servers
	if len(both) != 2 || len(one) != 1 || !slices.Contains(both, one[0]) {
		t.Errorf("both %+v, one %+v", both, one)
	}
}

func TestSameInstanceTwice(t *testing.T) {
	c := catalog{}
	c.with("web", "web", "10.0.0.1", 80, metaPath, "/")
	c.with("web", "web", "10.0.0.2", 80)
	var leftOut []string
	b := newBackend("web", c["web"], func(reason string) { leftOut = append(leftOut, reason) })
	want := []string{`service "web", instance "web": another instance has the same id on the same node; set SERVICE_ID`}
	if len(b.Servers) != 1 || b.Servers[0].Address != "10.0.0.1:80" || !slices.Equal(leftOut, want) {
		t.Errorf("servers %+v, left out %q", b.Servers, leftOut)
	}
}

func TestBackendLeavesItsInputAlone(t *testing.T) {
	c := catalog{}
	c.with("web", "b", "10.0.0.1", 80, metaPath, "/").Tags = []string{"udp"}
	c.with("web", "c", "10.0.0.1", 80, metaPath, "/")
	c.with("web", "a", "10.0.0.1", 80)
	before := slices.Clone(c["web"])
	newBackend("web", c["web"], refuse(t))
	if !slices.Equal(before, c["web"]) {
		t.Error("the catalog's list was changed")
	}
}

func TestBackendWithoutRoute(t *testing.T) {
	c := catalog{}
	c.with("db", "db-1", "not an address", -1)
	c.with("dns", "dns-1", "10.0.0.1", 53, metaPath, "/").Tags = []string{"a", "udp"}
	for name, instances := range c {
		if b := newBackend(name, instances, refuse(t)); b != nil {
			t.Errorf("%s: %+v", name, b)
		}
	}
	if b := newBackend("a b", []*dependency.HealthService{c.with("a b", "x", "10.0.0.1", 80, metaPath, "/")}, refuse(t)); b != nil {
		t.Errorf("%+v", b)
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
		{",", "", "", 2},
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
		{"*.a.com", "", "", 1},
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
		for _, r := range parseRoutes("web", tt.hosts, tt.path, func(string) { leftOut++ }) {
			got = append(got, r.String())
		}
		if strings.Join(got, " ") != tt.want || leftOut != tt.leftOut {
			t.Errorf("parseRoutes(%q, %q): %q, %d left out, want %q, %d", tt.hosts, tt.path, got, leftOut, tt.want, tt.leftOut)
		}
	}
}

func TestRoutesOfReportsReplicasOnce(t *testing.T) {
	c := catalog{}
	for _, id := range []string{"web-1", "web-2", "web-3"} {
		c.with("web", id, "10.0.0.1", 80, metaHost, "a.com,bad host")
	}
	var leftOut []string
	routes := routesOf("web", c["web"], func(reason string) { leftOut = append(leftOut, reason) })
	want := []string{`service "web", instance "web-1": its route_host "bad host" is not a host name like shop.example.com; set SERVICE_ROUTE_HOST`}
	if len(routes) != 1 || !slices.Equal(leftOut, want) {
		t.Errorf("routes %v, left out %q", routes, leftOut)
	}
}

func TestRoutes(t *testing.T) {
	backend := func(name string, routes ...Route) any {
		for n := range routes {
			routes[n].Backend = name
		}
		return &Backend{Name: name, Routes: routes}
	}
	var leftOut []string
	rules, err := routes([]any{
		backend("z", Route{Host: "a.com", Path: "/"}, Route{Path: "/"}),
		backend("y", Route{Path: "/api/"}, Route{Host: "b.com", Path: "/api/"}),
		backend("x", Route{Host: "a.com", Path: "/api/v1/"}, Route{Host: "a.com", Path: "/"}),
		backend("w", Route{Host: "a.com", Path: "/"}),
	}, func(reason string) { leftOut = append(leftOut, reason) })
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range rules {
		got = append(got, r.String()+" "+r.Backend)
	}
	want := []string{"a.com/api/v1/ x", "b.com/api/ y", "a.com/ w", "*/api/ y", "*/ z"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	const taken = `: the route a.com/ belongs to service "w"; set another SERVICE_ROUTE_HOST or SERVICE_ROUTE_PATH`
	if want := []string{`service "x"` + taken, `service "z"` + taken}; !slices.Equal(leftOut, want) {
		t.Errorf("left out %q, want %q", leftOut, want)
	}
}

func TestRoutesTakesBackendsOnly(t *testing.T) {
	for _, wrong := range []any{nil, "web", (*Backend)(nil)} {
		if _, err := routes([]any{wrong}, refuse(t)); err == nil {
			t.Errorf("no error for %v", wrong)
		}
	}
}
