package haproxy

import (
	"fmt"
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

// A paused group's requests and its connections wait for as long as each other, in milliseconds.
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
