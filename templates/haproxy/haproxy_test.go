package haproxy

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"berth/templates/claim"
	"berth/templates/route"
)

func TestServersAreNumberedForHashes(t *testing.T) {
	web := &route.Group{Service: "web", Name: "web", Routes: []claim.Route{{Path: "/"}}, Settings: claim.Settings{Balance: "uri"}}
	for n := range 20 {
		web.Servers = append(web.Servers, route.Server{Name: fmt.Sprint("web-", n), Address: fmt.Sprint("10.0.0.1:", 80+n)})
	}
	ids := func() map[string]int {
		ids := map[string]int{}
		for _, s := range Backends(web)[0].Servers {
			ids[s.Name] = s.ID
		}
		return ids
	}
	all := ids()
	seen := map[int]bool{0: true}
	for name, id := range all {
		if seen[id] || id > 999_999_999 {
			t.Errorf("%s has the ID %d", name, id)
		}
		seen[id] = true
	}
	web.Servers = web.Servers[3:]
	for name, id := range ids() {
		if all[name] != id {
			t.Errorf("%s had the ID %d and has %d", name, all[name], id)
		}
	}
}

func TestEachServerHasItsCheck(t *testing.T) {
	for _, tt := range []struct{ checks, path, table, unchecked string }{
		{checks: ""},
		{checks: "- -"},
		{checks: "/a /a", path: "/a"},
		{checks: "/a -", path: "/a", unchecked: "2"},
		{checks: "/a /b /a", table: "1 /a\n2 /b\n3 /a\n"},
		{checks: "/a /b -", table: "1 /a\n2 /b\n", unchecked: "3"},
	} {
		g := &route.Group{Name: "web", Routes: []claim.Route{{Path: "/"}}}
		for n, check := range strings.Fields(tt.checks) {
			g.Servers = append(g.Servers, route.Server{Name: fmt.Sprint(n + 1), Check: strings.TrimPrefix(check, "-")})
		}
		b := Backends(g)[0]
		var unchecked []string
		for _, s := range b.Servers {
			if s.Unchecked {
				unchecked = append(unchecked, s.Name)
			}
		}
		if got := strings.Join(unchecked, " "); b.Settings.Check != tt.path || b.Checks != tt.table || got != tt.unchecked {
			t.Errorf("%q: check %q, map %q, unchecked %q; want %q, %q, %q", tt.checks, b.Settings.Check, b.Checks, got, tt.path, tt.table, tt.unchecked)
		}
	}

	down := &route.Group{Name: "web", Routes: []claim.Route{{Path: "/"}}, Settings: claim.Settings{Check: "/a"}}
	if b := Backends(down)[0]; b.Settings.Check != "/a" { // so a new server changes only servers
		t.Errorf("without servers the check is %q", b.Settings.Check)
	}
}

// A paused group's requests and connections wait equally long, in milliseconds.
func TestPausedMap(t *testing.T) {
	pausedMap := func(paused map[string]time.Duration) string {
		kept := route.NewFragments(route.NewLedger(0))
		table := kept.NewTable(false, nil, func(reason string) { t.Error(reason) })
		table.Pause(paused)
		for _, g := range []*route.Group{
			{Service: "app", Name: "app", Routes: []claim.Route{{Path: "/"}}, Ports: []int{5000}},
			{Service: "db", Name: "db", Ports: []int{5432, 5433}},
			{Service: "web", Name: "web", Routes: []claim.Route{{Path: "/web/"}}},
		} {
			if _, err := table.Assign(kept.Keep(g, "")); err != nil {
				t.Fatal(err)
			}
		}
		return PausedMap(table)
	}
	if got, want := pausedMap(map[string]time.Duration{"db": 1500 * time.Millisecond, "app": 30 * time.Second}), "app 30000\napp.tcp 30000\ndb.tcp 1500\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := pausedMap(nil); got != "" {
		t.Errorf("%q of nothing", got)
	}
}
