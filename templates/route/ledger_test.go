package route

import (
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

// renderer renders catalogs with one ledger, like a template.
type renderer struct {
	*Fragments
	leftOut []string
}

// render returns the owner of each route, and the text, in which each group has a line with its name, routes and servers.
func (r *renderer) render(c catalog) (claims []string, text string) {
	r.leftOut = nil
	report := func(reason string) { r.leftOut = append(r.leftOut, reason) }
	var services []*dependency.CatalogSnippet
	for name := range c {
		services = append(services, &dependency.CatalogSnippet{Name: name})
	}
	table := r.NewTable(true, nil, report)
	keep := func(g *Group) string {
		return r.Keep(g, fmt.Sprintln(g.Name, g.all(), g.Settings, len(g.Servers)))
	}
	for _, name := range r.Servable(services, report) {
		for _, g := range r.New(name, c[name], unprivileged, report) {
			table.Assign(keep(g))
		}
	}
	for _, g := range table.Departed() {
		table.Assign(keep(g))
	}
	for _, c := range table.Claims() {
		claims = append(claims, c.Route.String()+" "+c.Group.Name)
	}
	for _, p := range table.Ports() {
		claims = append(claims, fmt.Sprint(p.Port, " ", p.Group.Name))
	}
	return claims, table.Text()
}

// The owner of a route keeps it while it serves; another serving service gets it once the owner's grace time is over.
func TestConflicts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &renderer{Fragments: NewFragments(NewLedger(5 * time.Minute))}
		add := func(c catalog, service string, created uint64, status string) {
			is(c.with(service, service, "10.0.0.1", 80, KeyHost, "h"), status).Service.CreateIndex = created
		}
		both := func(shop, e11 string) catalog {
			c := catalog{}
			if shop != "" {
				add(c, "shop", 5, shop)
			}
			if e11 != "" {
				add(c, "e11", 9, e11)
			}
			return c
		}
		for _, step := range []struct {
			name      string
			c         catalog
			wait      time.Duration // afterwards
			want, why string
		}{
			{"shop is first", both("passing", ""), 0, "shop", ""},
			{"e11 is first by its name", both("passing", "passing"), time.Hour, "shop",
				`service "e11": the route h/ belongs to service "shop", which has had it longer and serves it; set another SERVICE_ROUTE_HOST or SERVICE_ROUTE_PATH, or stop "shop"`},
			{"shop does not serve", both("critical", "passing"), 4 * time.Minute, "shop",
				`service "e11": the route h/ belongs to service "shop", which has had it longer, although none of its instances serves it now; set another SERVICE_ROUTE_HOST or SERVICE_ROUTE_PATH, or stop "shop"`},
			{"shop serves again", both("passing", "passing"), 0, "shop", "serves it"},
			{"not again", both("critical", "passing"), 5*time.Minute + 1, "shop", "none of its instances serves it now"},
			{"for too long", both("critical", "passing"), 0, "e11",
				`service "shop": the route h/ belongs to service "e11", which serves it; set another SERVICE_ROUTE_HOST or SERVICE_ROUTE_PATH, or stop "e11"`},
			{"now it is e11's", both("passing", "passing"), 0, "e11", "which has had it longer and serves it"},
			{"e11 is gone", both("passing", ""), 0, "shop", ""},
			{"shop is gone, and e11 does not serve", both("", "critical"), time.Minute, "shop", `service "e11": the route h/ belongs to service "shop", which is gone but may come back; set another SERVICE_ROUTE_HOST or SERVICE_ROUTE_PATH, or make an instance of "e11" pass its checks`},
			{"e11 serves", both("", "passing"), 0, "e11", ""},
		} {
			claims, _ := r.render(step.c)
			if !slices.Equal(claims, []string{"h/ " + step.want}) || (step.why == "") != (len(r.leftOut) == 0) || step.why != "" && !strings.Contains(r.leftOut[0], step.why) {
				t.Errorf("%s: %q; %q", step.name, claims, r.leftOut)
			}
			time.Sleep(step.wait)
		}
	})
}

// Without a memory, the oldest serving service has the route. While a service's instances are still unknown at the start,
// nothing is assigned permanently.
func TestConflictsAtTheStart(t *testing.T) {
	c := catalog{}
	c.with("a", "a", "10.0.0.1", 80, KeyHost, "h").Service.CreateIndex = 9
	c.with("z", "z", "10.0.0.1", 80, KeyHost, "h").Service.CreateIndex = 5
	is(c.with("b", "b", "10.0.0.1", 80, KeyHost, "h"), "critical").Service.CreateIndex = 1
	r := &renderer{Fragments: NewFragments(NewLedger(time.Minute))}
	later := catalog{"a": c["a"], "z": nil, "b": nil}
	r.render(catalog{}) // the first execution, before Consul has answered
	if claims, _ := r.render(later); !slices.Equal(claims, []string{"h/ a"}) {
		t.Errorf("%q", claims)
	}
	if claims, _ := r.render(c); !slices.Equal(claims, []string{"h/ z"}) {
		t.Errorf("%q", claims)
	}
}

// A route without instances is held, with the same text except for its servers, and does not fall to a wider route.
func TestRoutesOutliveTheirInstances(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLedger(5 * time.Minute)
		r := &renderer{Fragments: NewFragments(l)}
		c := catalog{}
		c.with("shop", "shop", "10.0.0.1", 80, KeyHost, "h")
		api := c.with("api", "api", "10.0.0.2", 80, KeyHost, "h", KeyPath, "/api", KeyStrip, "true", KeyPort, "5432")
		claims, text := r.render(c)
		wider, _ := (&renderer{Fragments: NewFragments(NewLedger(0))}).render(catalog{"shop": c["shop"]})
		delete(c, "api")
		held, heldText := r.render(c)
		if diff := cmp.Diff(claims, held) + cmp.Diff(strings.Replace(text, " 1\n", " 0\n", 1), heldText); diff != "" || len(held) != 3 {
			t.Errorf("held:\n%s", diff)
		}
		time.Sleep(4 * time.Minute)
		c["api"] = []*Instance{api}
		back, backText := r.render(c)
		if diff := cmp.Diff(claims, back) + cmp.Diff(text, backText); diff != "" {
			t.Errorf("it is back:\n%s", diff)
		}
		select {
		case <-l.Changed:
			t.Error("a rendering is asked for too early")
		default:
		}
		delete(c, "api")
		r.render(c)
		start := time.Now()
		<-l.Changed
		if waited := time.Since(start); waited < 5*time.Minute || waited > 5*time.Minute+2*time.Second {
			t.Errorf("given up after %v", waited)
		}
		if late, _ := r.render(c); !slices.Equal(late, wider) {
			t.Errorf("%q, want %q", late, wider)
		}
		if len(l.held) != 1 || len(l.names) != 1 {
			t.Errorf("%v and %v are remembered", l.held, l.names)
		}
	})
}

// An edited template starts with its own fragments, and holds the same routes as the previous one.
func TestRoutesOutliveTheTemplate(t *testing.T) {
	l := NewLedger(time.Minute)
	before, after := &renderer{Fragments: NewFragments(l)}, &renderer{Fragments: NewFragments(l)}
	c := catalog{}
	c.with("shop", "shop", "10.0.0.1", 80, KeyHost, "h")
	c.with("api", "api", "10.0.0.2", 80, KeyHost, "h", KeyPath, "/api")
	before.render(c)
	delete(c, "api")
	held, text := before.render(c)
	if len(held) != 2 {
		t.Errorf("held %q", held)
	}
	for n := range 4 {
		if claims, again := after.render(c); !slices.Equal(claims, held) || again != text {
			t.Errorf("rendering %d: %q, want %q", n+1, claims, held)
		}
	}
}

// The known services are forgotten with them.
func TestUnknownServicesAreBounded(t *testing.T) {
	r := &renderer{Fragments: NewFragments(NewLedger(0))}
	for n := range 10 {
		c := catalog{}
		name := fmt.Sprint("s", n)
		c.with(name, name, "10.0.0.1", 80, KeyHost, "h")
		r.render(c)
	}
	if r.render(catalog{}); len(r.unknown) != 0 {
		t.Errorf("%v are remembered", r.unknown)
	}
}

// If some of a group's routes disappear, they get a backend without servers, and the other routes keep theirs.
func TestPartOfAGroupDeparts(t *testing.T) {
	l := NewLedger(time.Minute)
	r := &renderer{Fragments: NewFragments(l)}
	c := catalog{}
	shop := c.with("shop", "shop", "10.0.0.1", 80, KeyHost, "a.com b.com")
	r.render(c)
	shop.Service.Meta[KeyHost] = "a.com"
	b := nameFor("shop", claim.Route{Host: "b.com", Path: "/"}, 0)
	for range 2 {
		claims, text := r.render(c)
		if want := []string{"a.com/ shop", "b.com/ " + b}; !slices.Equal(claims, want) || !strings.Contains(text, b+" [b.com/] {") {
			t.Errorf("%q\n%s", claims, text)
		}
	}
	shop.Service.Meta[KeyHost] = "a.com b.com"
	if claims, _ := r.render(c); !slices.Equal(claims, []string{"a.com/ shop", "b.com/ shop"}) {
		t.Errorf("it is back: %q", claims)
	}
}

func TestNothingIsHeldWithoutGrace(t *testing.T) {
	r := &renderer{Fragments: NewFragments(NewLedger(0))}
	c := catalog{}
	c.with("shop", "shop", "10.0.0.1", 80, KeyHost, "a.com")
	r.render(c)
	if claims, text := r.render(catalog{}); len(claims) != 0 || text != "" {
		t.Errorf("%q, %s", claims, text)
	}
}

// A service that comes and goes with ever new routes does not fill the memory; its oldest routes are given up.
func TestDepartedRoutesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLedger(time.Hour)
		r := &renderer{Fragments: NewFragments(l)}
		for n := range 30 {
			c := catalog{}
			for m := range 50 {
				name := fmt.Sprintf("s%d-%d", n, m)
				c.with(name, "1", "10.0.0.1", 80, KeyHost, name)
			}
			r.render(c)
			time.Sleep(time.Second)
		}
		if claims, _ := r.render(catalog{}); len(claims) != mostDeparted || len(l.names) != mostDeparted || !slices.Contains(claims, "s29-0/ s29-0") {
			t.Errorf("%d routes, %d names", len(claims), len(l.names))
		}
	})
}

// The text of a departed group is rendered once; with a fallback it is rendered every time.
func TestTextsOfTheDepartedAreMadeOnce(t *testing.T) {
	r := NewFragments(NewLedger(time.Minute))
	made := 0
	render := func(c catalog) string {
		var services []*dependency.CatalogSnippet
		for name := range c {
			services = append(services, &dependency.CatalogSnippet{Name: name})
		}
		table := r.NewTable(true, nil, refuse(t))
		keep := func(g *Group) string { return r.Keep(g, fmt.Sprintln(g.Name, g.all(), len(g.Servers))) }
		for _, name := range r.Servable(services, refuse(t)) {
			for _, g := range r.New(name, c[name], unprivileged, refuse(t)) {
				table.Assign(keep(g))
			}
		}
		for _, g := range table.Departed() {
			made++
			table.Assign(keep(g))
		}
		return table.Text()
	}
	for _, tt := range []struct {
		name string
		meta []string
		want int // made by three renderings
	}{
		{"plain", []string{KeyHost, "a.com", KeyPort, "5432"}, 1},
		{"with a fallback", []string{KeyHost, "b.com", KeyFallback, "other"}, 3},
	} {
		c := catalog{}
		c.with("other", "1", "10.0.0.2", 80, KeyPath, "/")
		c.with("shop", "1", "10.0.0.1", 80, tt.meta...)
		render(c)
		delete(c, "shop")
		made = 0
		first := render(c)
		if second, third := render(c), render(c); made != tt.want || second != first || third != first || !strings.Contains(first, "shop ") {
			t.Errorf("%s: made %d times, want %d:\n%s%s%s", tt.name, made, tt.want, first, second, third)
		}
		// It returns and departs again with one route less.
		c.with("shop", "1", "10.0.0.1", 80, append(tt.meta, KeyPath, "/new")...)
		render(c)
		delete(c, "shop")
		if text := render(c); !strings.Contains(text, "/new") {
			t.Errorf("%s: the text is old:\n%s", tt.name, text)
		}
		r = NewFragments(NewLedger(time.Minute))
	}
}
