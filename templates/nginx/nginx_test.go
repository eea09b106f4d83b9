package nginx

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"

	"berth/templates/claim"
	"berth/templates/route"
)

func refuse(t *testing.T) func(string) {
	return func(reason string) { t.Errorf("left out: %s", reason) }
}

func TestRoutes(t *testing.T) {
	var leftOut []string
	capital := &route.Group{Service: "App", Name: "App", Settings: claim.Settings{Strip: true, Sticky: true}}
	small, deeper := &route.Group{Service: "app", Name: "app"}, &route.Group{Service: "deep", Name: "deep"}
	deep := "/" + strings.Repeat("d/", 16)
	claims := []route.Claim{
		{Route: claim.Route{Host: "a.com", Path: "/X/"}, Group: capital},
		{Route: claim.Route{Path: "/"}, Group: capital},
		{Route: claim.Route{Host: "a.com", Path: "/x/"}, Group: small},
		{Route: claim.Route{Host: "b.com", Path: "/x/"}, Group: small},
		{Route: claim.Route{Host: "*.a.com", Path: "/x/y/"}, Group: small},
		{Route: claim.Route{Path: deep}, Group: deeper},
		{Route: claim.Route{Path: deep + "d/"}, Group: deeper},
	}
	got := NewRoutes(claims, func(c route.Claim, why string) {
		leftOut = append(leftOut, c.Group.Service+" "+c.Route.String()+": "+why)
	})
	app := UpstreamName(capital)
	want := []RouteMap{
		{"host_1", "$host", "$berth_path_1", []RouteEntry{
			{"a.com/x/", app + " strip,sticky /X/ app - /x/"},
			{"b.com/x/", "app - /x/"},
		}, "berth_found", "berth_found_domain_2"},
		{"domain_2", "$berth_domain", "$berth_path_2", []RouteEntry{{"a.com/x/y/", "app - /x/y/"}}, "berth_found_domain_2", "berth_found_any_16"},
		{"any_16", "", "$berth_path_16", []RouteEntry{{deep, "deep - " + deep}}, "berth_found_any_16", "berth_found_any_0"},
		{"any_0", "", "/", []RouteEntry{{"/", app + " strip,sticky /"}}, "berth_found_any_0", ""},
	}
	if diff := cmp.Diff(want, got.Maps); diff != "" {
		t.Error(diff)
	}
	if !slices.Equal(got.Depths, []int{1, 2, 16}) {
		t.Errorf("depths %v", got.Depths)
	}
	tooDeep := "deep */" + strings.Repeat("d/", 17) + ": the path of its route */" + strings.Repeat("d/", 17) +
		` has more than 16 segments, which is too many for nginx; set a shorter SERVICE_ROUTE_PATH`
	if !slices.Equal(leftOut, []string{tooDeep}) {
		t.Errorf("left out %q", leftOut)
	}
	if maps := NewRoutes(nil, nil).Maps; len(maps) != 1 || maps[0].Found != "berth_found" || len(maps[0].Entries) != 0 {
		t.Errorf("without routes: %+v", maps)
	}
}

func TestUpstreamNamesAreUnique(t *testing.T) {
	seen := map[string]string{}
	for _, service := range []string{"app", "App", "aPP", "APP", "app2", "berth", "BERTH", "a_b-c"} {
		name := UpstreamName(&route.Group{Service: service, Name: service})
		if other, there := seen[strings.ToLower(name)]; there || strings.Contains(service, strings.ToLower(service)) && name != service {
			t.Errorf("%s: %s, as that of %s", service, name, other)
		}
		seen[strings.ToLower(name)] = service
	}
}

func TestUpstreams(t *testing.T) {
	for _, tt := range []struct {
		labels        []string
		paused        time.Duration
		lua           bool
		http, tcp     string // method
		call          string
		zone, maxConn int
		posted        []string
		reports       []string // what each names
	}{
		{},
		{lua: true, call: `balance("App.0d04bfeb")`},
		{labels: []string{route.KeyBalance, "roundrobin"}, lua: true, call: `balance("App.0d04bfeb")`},
		{labels: []string{route.KeyBalance, "leastconn"}, lua: true, http: "least_conn", tcp: "least_conn"},
		{labels: []string{route.KeyBalance, "random"}, http: "random two least_conn", tcp: "random two least_conn"},
		{labels: []string{route.KeyBalance, "random"}, lua: true, tcp: "random two least_conn", call: `random("App.0d04bfeb")`},
		{labels: []string{route.KeyBalance, "source"}, http: "hash $remote_addr consistent", tcp: "hash $remote_addr consistent"},
		{labels: []string{route.KeyBalance, "source"}, lua: true, tcp: "hash $remote_addr consistent", call: `balance("App.0d04bfeb", ngx.var.remote_addr)`},
		{labels: []string{route.KeyBalance, "uri"}, http: "hash $berth_path consistent"},
		{labels: []string{route.KeyBalance, "uri"}, lua: true, call: `balance("App.0d04bfeb", ngx.var.berth_path)`},
		{labels: []string{route.KeyBalance, "hdr(X-User)"}, http: "hash $http_x_user consistent"},
		{labels: []string{route.KeyBalance, "hdr(-)"}, lua: true, call: `balance("App.0d04bfeb", ngx.var.http__)`},
		{labels: []string{route.KeyBalance, "leastconn", route.KeySticky, "1"}, http: "hash $berth_sticky consistent", tcp: "least_conn"},
		{labels: []string{route.KeyBalance, "leastconn", route.KeySticky, "1"}, lua: true, tcp: "least_conn", call: `balance("App.0d04bfeb", ngx.var.berth_sticky)`},
		{labels: []string{route.KeyMaxConn, "7"}, lua: true, zone: 128, maxConn: 7},
		{labels: []string{route.KeyBalance, "first"}, reports: []string{"balance first"}},
		{labels: []string{route.KeyHold, "30s"}, reports: []string{"requests cannot wait in nginx without Lua"}},
		{labels: []string{route.KeyHold, "0"}},
		{paused: time.Second, reports: []string{"its requests cannot wait in nginx"}},
		{labels: []string{route.KeyHold, "30s"}, lua: true, call: `balance("App.0d04bfeb")`, posted: []string{"hold 30000"}},
		{labels: []string{route.KeyHold, "30s"}, paused: 90 * time.Second, lua: true, call: `balance("App.0d04bfeb")`, posted: []string{"hold 30000", "paused 90000"}},
		{labels: []string{route.KeyHold, "0"}, lua: true, call: `balance("App.0d04bfeb")`, posted: []string{"hold 0"}},
		{labels: []string{route.KeyHold, "30s", route.KeyMaxConn, "7"}, lua: true, zone: 128, maxConn: 7, reports: []string{"nginx itself picks its servers"}},
		{labels: []string{route.KeyCheck, "/", route.KeySlowStart, "10s"}, reports: []string{"SERVICE_CHECK_HTTP", "SERVICE_ROUTE_SLOWSTART"}},
	} {
		meta := map[string]string{route.KeyPath: "/", route.KeyPort: "5432"}
		for n := 0; n < len(tt.labels); n += 2 {
			meta[tt.labels[n]] = tt.labels[n+1]
		}
		var leftOut []string
		report := func(reason string) { leftOut = append(leftOut, reason) }
		instance := &route.Instance{Service: &api.AgentService{ID: "a", Address: "10.0.0.1", Port: 80, Meta: meta, Weights: api.AgentWeights{Passing: 1}}}
		groups := route.New("App", []*route.Instance{instance}, route.Ports{{First: 5432, Last: 5432}}, route.NewLedger(0), report)
		groups[0].Paused = tt.paused
		u := NewUpstreams(groups[0], tt.lua, report)
		http, tcp := u.HTTP, u.TCP
		if http.Method != tt.http || tcp.Method != tt.tcp || http.Lua != tt.call || tcp.Lua != "" {
			t.Errorf("%v: %q %q, TCP %q %q", tt.labels, http.Method, http.Lua, tcp.Method, tcp.Lua)
		}
		if !slices.Equal(http.Posted, tt.posted) || len(tcp.Posted) > 0 {
			t.Errorf("%v: %q, TCP %q are posted", tt.labels, http.Posted, tcp.Posted)
		}
		if http.Zone != tt.zone || tcp.Zone != tt.zone || http.MaxConn != tt.maxConn || tcp.Name != "App.0d04bfeb.tcp" {
			t.Errorf("%v: %+v, %+v", tt.labels, http, tcp)
		}
		if !slices.EqualFunc(leftOut, tt.reports, strings.Contains) {
			t.Errorf("%v: %q", tt.labels, leftOut)
		}
	}
}

func TestZoneHasRoomForAllServers(t *testing.T) {
	s := route.Group{Routes: []claim.Route{{Path: "/"}}, Settings: claim.Settings{MaxConn: 1}}
	for _, tt := range []struct{ servers, kilobytes int }{{0, 128}, {63, 128}, {64, 256}, {1000, 2048}} {
		s.Servers = make([]route.Server, tt.servers)
		if u := NewUpstreams(&s, false, refuse(t)); u.HTTP.Zone != tt.kilobytes {
			t.Errorf("%d servers: %d", tt.servers, u.HTTP.Zone)
		}
	}
}
