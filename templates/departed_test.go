package templates

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth/templates/route"
)

// Stopping and starting a service's only instance changes nothing but servers, for which both proxies need no reload or a
// cheap one. Meanwhile the service's requests do not fall to a wider route.
func TestDepartedServiceKeepsItsText(t *testing.T) {
	for proxy, text := range shipped() {
		c := manyServices()
		c.with("shop-api", "shop-api-2", "10.0.3.4", 80, route.KeyHost, "shop.example.com", route.KeyPath, "/api", route.KeyPort, "5432", route.KeyStrip, "true")
		r := rendered{files: map[string]string{}, paths: map[string]string{}}
		tmpl := engine(Options{Ledger: route.NewLedger(time.Minute)}, &r, text)
		render := func() (string, map[string]string) {
			clear(r.files)
			return execute(t, tmpl, c.brain(t, inOrder)), r.files
		}
		before, files := render()
		routes := files["routes.map"]
		there := c["shop-api"]
		delete(c, "shop-api")
		after, files := render()
		// Server lines, and nginx's placeholder for none.
		var changed []string
		for line := range strings.Lines(linesOnlyIn(before, after) + linesOnlyIn(after, before)) {
			changed = append(changed, strings.Fields(line)[0])
		}
		for _, word := range changed {
			if word != "server" {
				t.Errorf("%s: a line of %q has changed", proxy, word)
			}
		}
		if len(changed) == 0 || files["routes.map"] != routes {
			t.Errorf("%s: %d lines have changed; routes:\n%s", proxy, len(changed), cmp.Diff(routes, files["routes.map"]))
		}
		c["shop-api"] = there
		if again, _ := render(); again != before {
			t.Errorf("%s: it is back:\n%s", proxy, cmp.Diff(before, again))
		}
	}
}
