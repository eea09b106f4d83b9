package route

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul-template/dependency"

	"berth/templates/claim"
)

func TestTable(t *testing.T) {
	api, all := claim.Route{Path: "/api/"}, claim.Route{Path: "/"}
	host, path := claim.Route{Host: "a.com", Path: "/"}, claim.Route{Host: "a.com", Path: "/api/v1/"}
	var leftOut []string
	kept := NewFragments(NewLedger(0))
	table := kept.NewTable(false, nil, func(reason string) { leftOut = append(leftOut, reason) })
	services := []*Group{
		{Service: "w", Name: "w", Routes: []claim.Route{host}, Ports: []int{6000}},
		{Service: "x", Name: "x", Routes: []claim.Route{path, host}},
		{Service: "y", Name: "y", Routes: []claim.Route{api}, Ports: []int{6000, 5000}, Settings: claim.Settings{Strip: true}},
		{Service: "z", Name: "z", Routes: []claim.Route{host, all}, Settings: claim.Settings{Redirect: true}},
		{Service: "only-tcp", Name: "only-tcp", Ports: []int{7000}, Settings: claim.Settings{Redirect: true, Sticky: true}}, // which are for HTTP
	}
	for _, s := range services {
		if _, err := table.Assign(kept.Keep(s, s.Name+" ", s.Name+"\n")); err != nil {
			t.Error(err)
		}
	}
	table.Assign("")
	var claims []string
	for _, c := range table.Claims() {
		claims = append(claims, c.Route.String()+" "+c.Group.Name)
	}
	if want := []string{"a.com/ w", "a.com/api/v1/ x", "*/api/ y", "*/ z"}; !slices.Equal(claims, want) {
		t.Errorf("claims %q, want %q", claims, want)
	}
	if text, stream := table.Text(), table.Stream(); text != "only-tcp w x y z " || stream != "only-tcp\nw\nx\ny\nz\n" {
		t.Errorf("text %q, stream %q", text, stream)
	}
	if got, want := ports(table), []string{"5000 y", "6000 w", "7000 only-tcp"}; !slices.Equal(got, want) {
		t.Errorf("ports %v, want %v", got, want)
	}
	if table.Sticky() {
		t.Error("a service without a route is sticky")
	}
	const taken = `: the route a.com/ belongs to service "w", which asked for it first; set another SERVICE_ROUTE_HOST or SERVICE_ROUTE_PATH, or stop "w"`
	want := []string{
		`service "x"` + taken,
		`service "z"` + taken,
		`service "y": the port 6000 belongs to service "w", which asked for it first; set another SERVICE_ROUTE_PORT, or stop "w"`,
		`service "z": its route_redirect is ignored, because there is no certificate for HTTPS; add one, or unset SERVICE_ROUTE_REDIRECT`,
	}
	if diff := cmp.Diff(want, leftOut); diff != "" {
		t.Error(diff)
	}
}

func ports(t *Table) (all []string) {
	for _, p := range t.Ports() {
		all = append(all, fmt.Sprint(p.Port, " ", p.Group.Name))
	}
	return all
}

// A pause applies to all groups of its service, including one that has lost its route or whose instances are gone. Unlike
// the groups' texts, it ends with the table.
func TestPausedGroups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kept := NewFragments(NewLedger(time.Minute))
		app := &Group{Service: "app", Name: "app", Routes: []claim.Route{{Path: "/"}}, Settings: claim.Settings{Check: "/up"}, serves: true}
		other := &Group{Service: "app", Name: "app.x", Ports: []int{5000}, serves: true}
		late := &Group{Service: "late", Name: "late", Routes: []claim.Route{{Path: "/"}}, created: 1, serves: true}
		free := &Group{Service: "web", Name: "web", Routes: []claim.Route{{Path: "/web/"}}, serves: true}
		paused := func(services map[string]time.Duration, groups ...*Group) (all []string) {
			kept.Servable([]*dependency.CatalogSnippet{{Name: "app"}, {Name: "late"}, {Name: "web"}}, nil)
			for _, service := range kept.listed {
				kept.unknown[service] = false
			}
			table := kept.NewTable(false, nil, func(string) {})
			table.Pause(services)
			for _, g := range groups {
				if _, err := table.Assign(kept.Keep(g, g.Name)); err != nil {
					t.Fatal(err)
				}
			}
			for _, g := range table.Departed() {
				if _, err := table.Assign(kept.Keep(g, g.Name)); err != nil {
					t.Fatal(err)
				}
			}
			for _, g := range table.Paused() {
				all = append(all, fmt.Sprint(g.Name, " ", g.Paused))
			}
			for _, c := range table.Claims() {
				if c.Group.Paused != services[c.Group.Service] {
					t.Errorf("%s is paused for %v, want %v", c.Group.Name, c.Group.Paused, services[c.Group.Service])
				}
			}
			return all
		}
		half := map[string]time.Duration{"app": 30 * time.Second, "late": time.Second, "nobody": time.Minute}
		for _, tt := range []struct {
			name     string
			services map[string]time.Duration
			groups   []*Group
			want     []string
		}{
			{"nothing", nil, []*Group{app, other, late, free}, nil},
			{"two services, one unknown", half, []*Group{free, late, other, app}, []string{"app 30s", "app.x 30s", "late 1s"}},
			{"a longer pause", map[string]time.Duration{"app": time.Minute}, []*Group{app, other, late, free}, []string{"app 1m0s", "app.x 1m0s"}},
			{"the instances are gone", half, []*Group{free}, []string{"app 30s", "app.x 30s"}},
			{"resumed without instances", map[string]time.Duration{}, []*Group{free}, nil},
			{"back", nil, []*Group{app, other, late, free}, nil},
		} {
			if diff := cmp.Diff(tt.want, paused(tt.services, tt.groups...)); diff != "" {
				t.Errorf("%s: %s", tt.name, diff)
			}
		}
	})
}

// A refused port loses its claim; nothing else of the service or of others is affected.
func TestTableWithoutRefusedPorts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused := NewRefused()
		refused.Refuse(5432, "another program listens there (said by HAProxy)")
		render := func() (routes int, open []string, leftOut []string) {
			kept := NewFragments(NewLedger(0))
			table := kept.NewTable(true, refused, func(reason string) { leftOut = append(leftOut, reason) })
			table.Assign(kept.Keep(&Group{Service: "a", Name: "a", Routes: []claim.Route{{Path: "/"}}, Ports: []int{5432, 5433}}, ""))
			table.Assign(kept.Keep(&Group{Service: "b", Name: "b", Ports: []int{5432, 6000}}, ""))
			return len(table.Claims()), ports(table), leftOut
		}
		belongs := `service "b": the port 5432 belongs to service "a", which asked for it first; set another SERVICE_ROUTE_PORT, or stop "a"`

		routes, open, leftOut := render()
		if want := []string{"5433 a", "6000 b"}; routes != 1 || !slices.Equal(open, want) {
			t.Errorf("%d routes, ports %v, want %v", routes, open, want)
		}
		want := []string{
			belongs,
			`service "a": port 5432: another program listens there (said by HAProxy); free it or set another SERVICE_ROUTE_PORT`,
		}
		if diff := cmp.Diff(want, leftOut); diff != "" {
			t.Error(diff)
		}

		time.Sleep(time.Minute)
		_, open, leftOut = render()
		if want := []string{"5432 a", "5433 a", "6000 b"}; !slices.Equal(open, want) || !slices.Equal(leftOut, []string{belongs}) {
			t.Errorf("later: ports %v, want %v; left out %q", open, want, leftOut)
		}
	})
}

// Each consecutive refusal lasts twice as long as the previous one, up to a limit; after a port was open for long, this
// starts again.
func TestRefusedAgainAndAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRefused()
		for n, want := range []time.Duration{1, 2, 4, 8, 10, 10} {
			r.Refuse(5432, "taken")
			r.Refuse(5432, "taken, still") // for an earlier rendering
			if got := untilAllowed(r, 5432); got != want*time.Minute {
				t.Errorf("refusal %d: %v, want %v", n+1, got, want*time.Minute)
			}
			time.Sleep(5 * time.Second) // the proxy needs a while to refuse it again
		}
		time.Sleep(11 * time.Minute)
		r.Refuse(5433, "another")
		if len(r.ports) != 1 {
			t.Errorf("%d ports are remembered", len(r.ports))
		}
		r.Refuse(5432, "taken")
		if got := untilAllowed(r, 5432); got != time.Minute {
			t.Errorf("after a long time: %v", got)
		}
		if r.Reason(80) != "" || (*Refused)(nil).Reason(80) != "" {
			t.Error("a port is refused that never was")
		}
	})
}

func untilAllowed(r *Refused, port int) time.Duration {
	start := time.Now()
	for r.Reason(port) != "" {
		time.Sleep(time.Second)
	}
	return time.Since(start)
}

// A rendering is requested when a port is refused, and when it may be tried again.
func TestRefusedAsksForRenderings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		r := NewRefused()
		start := time.Now()
		var got []string
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				select {
				case <-ctx.Done():
					return
				case <-r.Changed:
					got = append(got, fmt.Sprintf("%v %t %t", time.Since(start), r.Reason(1000) != "", r.Reason(2000) != ""))
				}
			}
		}()
		at := func(when time.Duration, port int) {
			time.Sleep(when - time.Since(start))
			r.Refuse(port, "taken")
		}
		at(time.Second, 1000)
		at(2*time.Second, 1000)
		at(31*time.Second, 2000)
		at(62*time.Second, 1000)
		time.Sleep(time.Hour)
		cancel()
		<-done
		want := []string{
			"1s true false",
			"31s true true",
			"1m1s false true",
			"1m2s true true",
			"1m31s true false",
			"3m2s false false",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})
}

func TestFragments(t *testing.T) {
	k := NewFragments(NewLedger(0))
	service := func() *Group { return &Group{Service: "web", Name: "web", Routes: []claim.Route{{Path: "/"}}} }
	table := func() *Table { return k.NewTable(true, nil, refuse(t)) }
	render := func(complete bool, keys ...string) (missing int) {
		table := table()
		for _, key := range keys {
			if _, err := table.Assign(key); err != nil {
				missing++
			}
		}
		if complete {
			table.Text()
		}
		return missing
	}
	first := table()
	web := k.Keep(service(), "text", "stream")
	if again := k.Keep(service(), "text", "stream"); again != web || !strings.HasPrefix(web, "web-") {
		t.Errorf("keys %s, %s", web, again)
	}
	if _, err := first.Assign(web); err != nil || first.Claims()[0].Group.Name != "web" || first.Text() != "text" || first.Stream() != "stream" {
		t.Errorf("%v: %+v", err, first)
	}
	keys := map[string]string{web: "as it was"}
	for _, tt := range []struct {
		changed string
		service func(*Group)
		texts   []string
	}{
		{changed: "name", service: func(s *Group) { s.Service, s.Name = "app", "app" }, texts: []string{"text", "stream"}},
		{changed: "routes", service: func(s *Group) { s.Routes = append(s.Routes, claim.Route{Host: "a.com", Path: "/"}) }, texts: []string{"text", "stream"}},
		{changed: "ports", service: func(s *Group) { s.Ports = []int{5432} }, texts: []string{"text", "stream"}},
		{changed: "strip", service: func(s *Group) { s.Strip = true }, texts: []string{"text", "stream"}},
		{changed: "redirect", service: func(s *Group) { s.Redirect = true }, texts: []string{"text", "stream"}},
		{changed: "sticky", service: func(s *Group) { s.Sticky = true }, texts: []string{"text", "stream"}},
		{changed: "text", service: func(*Group) {}, texts: []string{"texts", "tream"}},
		{changed: "stream", service: func(*Group) {}, texts: []string{"text"}},
	} {
		s := service()
		tt.service(s)
		key := k.Keep(s, tt.texts[0], tt.texts[1:]...)
		if keys[key] != "" {
			t.Errorf("%s: the key is that of %s", tt.changed, keys[key])
		}
		keys[key] = tt.changed
	}

	// An incomplete rendering forgets nothing.
	app := k.Keep(&Group{Service: "app", Name: "app"}, "")
	for _, tt := range []struct {
		name     string
		complete bool
		claims   []string
		missing  int
		left     int
	}{
		{"all that was kept is still there", true, []string{web, app}, 0, 10},
		{"the others are forgotten", false, []string{app}, 0, 2},
		{"it failed", false, nil, 0, 2},
		{"so both are there", true, []string{web, app}, 0, 2},
		{"one is not needed", true, []string{app}, 0, 2},
		{"and forgotten", true, []string{app}, 0, 1},
		{"for ever", false, []string{web}, 1, 1},
	} {
		if missing := render(tt.complete, tt.claims...); missing != tt.missing || len(k.byKey) != tt.left {
			t.Errorf("%s: %d missing, %d are left", tt.name, missing, len(k.byKey))
		}
	}
}
