package haproxy

import (
	"fmt"
	"testing"

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
