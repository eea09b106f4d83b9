package route

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"berth/templates/claim"
)

// moved reports whether the ledger has signalled a change.
func moved(l *Ledger) bool {
	select {
	case <-l.Moved:
		return true
	default:
		return false
	}
}

// Each rendering records the owner of each route and who asks for it in vain, with the reported reason.
func TestStanding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLedger(time.Minute)
		if all := l.Standing(); len(all) != 0 || moved(l) {
			t.Errorf("before the first rendering: %v", all)
		}
		r := &renderer{Fragments: NewFragments(l)}
		c := catalog{}
		c.with("shop", "shop", "10.0.0.1", 80, KeyHost, "h", KeyPath, "/api", KeyStrip, "true", KeyPort, "5432")
		c.with("web", "web-1", "10.0.0.2", 80, KeyHost, "h", KeyPath, "/api")
		c.with("web", "web-2", "10.0.0.3", 80, KeyHost, "*.h")
		check := func(what string, want ...Standing) {
			t.Helper()
			if diff := cmp.Diff(want, l.Standing(), cmpopts.IgnoreFields(Standing{}, "Host", "Path")); diff != "" {
				t.Errorf("%s:\n%s", what, diff)
			}
		}
		r.render(c)
		api := Standing{Route: "h/api/", Service: "shop", Backend: "shop", Strip: true}
		port := Standing{Route: "port 5432", Port: 5432, Service: "shop", Backend: "shop"}
		lost := Standing{Route: "h/api/", Service: "web", Backend: "web", Lost: r.leftOut[0], Holder: "shop"}
		wide := Standing{Route: "*.h/", Service: "web", Backend: nameFor("web", claim.Route{Host: "*.h", Path: "/"}, 0)}
		if check("at first", api, port, lost, wide); !moved(l) {
			t.Error("it is not told")
		}

		r.render(c)
		lost.Lost = `service "web": the route h/api/ belongs to service "shop", which has had it longer and serves it; set another SERVICE_ROUTE_HOST or SERVICE_ROUTE_PATH, or stop "shop"`
		if check("for another reason", api, port, lost, wide); !moved(l) {
			t.Error("it is not told")
		}

		c.with("shop", "shop-2", "10.0.0.9", 80, KeyHost, "h", KeyPath, "/api", KeyStrip, "true", KeyPort, "5432")
		r.render(c)
		if check("with another server", api, port, lost, wide); moved(l) {
			t.Error("it is told, and nothing has changed")
		}

		delete(c, "web")
		r.render(c)
		wide.Gone = true
		if check("one is gone", api, port, wide); !moved(l) {
			t.Error("it is not told")
		}
		time.Sleep(2 * time.Minute)
		r.render(c)
		if check("for long", api, port); !moved(l) {
			t.Error("it is not told")
		}
	})
}

// The owner of a port that the proxy cannot open has it in vain.
func TestStandingOfARefusedPort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, refused := NewLedger(time.Minute), NewRefused()
		refused.Refuse(6000, "another program listens there")
		kept := NewFragments(l)
		render := func(paused map[string]time.Duration) (reported []string) {
			table := kept.NewTable(true, refused, func(reason string) { reported = append(reported, reason) })
			table.Pause(paused)
			table.Assign(kept.Keep(&Group{Service: "db", Name: "db", Ports: []int{6000}}, ""))
			table.Assign(kept.Keep(&Group{Service: "app", Name: "app", Routes: []claim.Route{{Path: "/"}}}, ""))
			table.Lose(table.Claims()[0], "the proxy cannot follow it")
			table.Text()
			return reported
		}
		for _, paused := range []time.Duration{0, time.Second} {
			reported := render(map[string]time.Duration{"app": paused})
			want := []Standing{
				{Route: "*/", Service: "app", Backend: "app", Paused: paused, Lost: `service "app": the proxy cannot follow it`},
				{Route: "port 6000", Port: 6000, Service: "db", Backend: "db", Lost: `service "db": port 6000: another program listens there; free it or set another SERVICE_ROUTE_PORT`},
			}
			if diff := cmp.Diff(want, l.Standing(), cmpopts.IgnoreFields(Standing{}, "Host", "Path")); diff != "" || !moved(l) {
				t.Error(diff)
			}
			if diff := cmp.Diff([]string{want[1].Lost, want[0].Lost}, reported, cmpopts.IgnoreFields(Standing{}, "Host", "Path")); diff != "" {
				t.Error(diff)
			}
		}
		time.Sleep(time.Hour)
		if render(nil); l.Standing()[1].Lost != "" || !moved(l) {
			t.Errorf("%v", l.Standing())
		}
	})
}

func BenchmarkStanding(b *testing.B) {
	l := NewLedger(time.Minute)
	kept := NewFragments(l)
	table := kept.NewTable(true, nil, func(string) {})
	for n := range 10_000 {
		name := fmt.Sprint("app", n)
		table.Assign(kept.Keep(&Group{Service: name, Name: name, Routes: []claim.Route{{Host: name + ".example.com", Path: "/"}}, serves: true}, ""))
	}
	table.Text()
	b.Run("unchanged", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			table.tell()
		}
	})
	b.Run("all changed", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			l.stand = nil
			table.tell()
		}
	})
	b.Run("asked", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			l.Standing()
		}
	})
}
