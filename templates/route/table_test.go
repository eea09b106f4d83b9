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
)

func TestTable(t *testing.T) {
	api, all := Route{Path: "/api/"}, Route{Path: "/"}
	host, path := Route{Host: "a.com", Path: "/"}, Route{Host: "a.com", Path: "/api/v1/"}
	var leftOut []string
	var kept Fragments
	table := kept.NewTable(false, nil, func(reason string) { leftOut = append(leftOut, reason) })
	services := []*Service{
		{Name: "w", Routes: []Route{host}, Ports: []int{6000}},
		{Name: "x", Routes: []Route{path, host}},
		{Name: "y", Routes: []Route{api}, Ports: []int{6000, 5000}, Settings: Settings{Strip: true}},
		{Name: "z", Routes: []Route{host, all}, Settings: Settings{Redirect: true}},
		{Name: "only-tcp", Ports: []int{7000}, Settings: Settings{Redirect: true, Sticky: true}}, // which are for HTTP
	}
	for _, s := range services {
		if _, err := table.Assign(kept.Keep(s, s.Name+" ", s.Name+"\n")); err != nil {
			t.Error(err)
		}
	}
	table.Assign("")
	var claims []string
	for _, c := range table.Claims {
		claims = append(claims, c.Route.String()+" "+c.Service.Name)
	}
	if want := []string{"a.com/ w", "a.com/api/v1/ x", "*/api/ y", "*/ z"}; !slices.Equal(claims, want) {
		t.Errorf("claims %q, want %q", claims, want)
	}
	if text, stream := table.Text(), table.Stream(); text != "w x y z only-tcp " || stream != "w\nx\ny\nz\nonly-tcp\n" {
		t.Errorf("text %q, stream %q", text, stream)
	}
	if want := []TCPPort{{5000, "y"}, {6000, "w"}, {7000, "only-tcp"}}; !slices.Equal(table.Ports, want) {
		t.Errorf("ports %v, want %v", table.Ports, want)
	}
	if table.Sticky {
		t.Error("a service without a route is sticky")
	}
	const taken = `: the route a.com/ belongs to service "w"; set another SERVICE_ROUTE_HOST or SERVICE_ROUTE_PATH`
	want := []string{
		`service "x"` + taken,
		`service "y": the port 6000 belongs to service "w"; set another SERVICE_ROUTE_PORT`,
		`service "z"` + taken,
		`service "z": its route_redirect is not followed, as there is no certificate for HTTPS; give berth one, or unset SERVICE_ROUTE_REDIRECT`,
	}
	if diff := cmp.Diff(want, leftOut); diff != "" {
		t.Error(diff)
	}
}

// A refused port costs the claim of it, and nothing else of the service or of others.
func TestTableWithoutRefusedPorts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused := NewRefused()
		refused.Refuse(5432, "another program listens there (said by HAProxy)")
		render := func() (routes int, ports []TCPPort, leftOut []string) {
			var kept Fragments
			table := kept.NewTable(true, refused, func(reason string) { leftOut = append(leftOut, reason) })
			table.Assign(kept.Keep(&Service{Name: "a", Routes: []Route{{Path: "/"}}, Ports: []int{5432, 5433}}, ""))
			table.Assign(kept.Keep(&Service{Name: "b", Ports: []int{5432, 6000}}, ""))
			return len(table.Claims), table.Ports, leftOut
		}
		belongs := `service "b": the port 5432 belongs to service "a"; set another SERVICE_ROUTE_PORT`

		routes, ports, leftOut := render()
		if want := []TCPPort{{5433, "a"}, {6000, "b"}}; routes != 1 || !slices.Equal(ports, want) {
			t.Errorf("%d routes, ports %v, want %v", routes, ports, want)
		}
		want := []string{
			`service "a": port 5432: another program listens there (said by HAProxy); free it or set another SERVICE_ROUTE_PORT`,
			belongs,
		}
		if diff := cmp.Diff(want, leftOut); diff != "" {
			t.Error(diff)
		}

		time.Sleep(time.Minute)
		_, ports, leftOut = render()
		if want := []TCPPort{{5432, "a"}, {5433, "a"}, {6000, "b"}}; !slices.Equal(ports, want) || !slices.Equal(leftOut, []string{belongs}) {
			t.Errorf("later: ports %v, want %v; left out %q", ports, want, leftOut)
		}
	})
}

// Each refusal in a row takes twice as long as the one before, up to a limit; a port that was open for long begins anew.
func TestRefusedAgainAndAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRefused()
		for n, want := range []time.Duration{1, 2, 4, 8, 10, 10} {
			r.Refuse(5432, "taken")
			r.Refuse(5432, "taken, still") // of what was rendered before
			if got := untilAllowed(r, 5432); got != want*time.Minute {
				t.Errorf("refusal %d: %v, want %v", n+1, got, want*time.Minute)
			}
			time.Sleep(5 * time.Second) // it takes the proxy a while to refuse it again
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

// A rendering is asked for when a port is refused, and when it may be asked for again.
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
	var k Fragments
	service := func() *Service { return &Service{Name: "web", Routes: []Route{{Path: "/"}}} }
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
	if _, err := first.Assign(web); err != nil || first.Claims[0].Service.Name != "web" || first.Text() != "text" || first.Stream() != "stream" {
		t.Errorf("%v: %+v", err, first)
	}
	keys := map[string]string{web: "as it was"}
	for _, tt := range []struct {
		changed string
		service func(*Service)
		texts   []string
	}{
		{changed: "name", service: func(s *Service) { s.Name = "app" }, texts: []string{"text", "stream"}},
		{changed: "routes", service: func(s *Service) { s.Routes = append(s.Routes, Route{"a.com", "/"}) }, texts: []string{"text", "stream"}},
		{changed: "ports", service: func(s *Service) { s.Ports = []int{5432} }, texts: []string{"text", "stream"}},
		{changed: "strip", service: func(s *Service) { s.Strip = true }, texts: []string{"text", "stream"}},
		{changed: "redirect", service: func(s *Service) { s.Redirect = true }, texts: []string{"text", "stream"}},
		{changed: "sticky", service: func(s *Service) { s.Sticky = true }, texts: []string{"text", "stream"}},
		{changed: "text", service: func(*Service) {}, texts: []string{"texts", "tream"}},
		{changed: "stream", service: func(*Service) {}, texts: []string{"text"}},
	} {
		s := service()
		tt.service(s)
		key := k.Keep(s, tt.texts[0], tt.texts[1:]...)
		if keys[key] != "" {
			t.Errorf("%s: the key is that of %s", tt.changed, keys[key])
		}
		keys[key] = tt.changed
	}

	// A rendering that fails half-way forgets nothing.
	app := k.Keep(&Service{Name: "app"}, "")
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
