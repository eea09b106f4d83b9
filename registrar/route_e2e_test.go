//go:build e2e

package registrar_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"berth/registrar"
	"berth/registrar/label"
)

// If a container has several ports, the one that is ready has the route asked for on the whole container; the others take
// part in none. The rest of the container's registration is unchanged.
func TestE2ERouteOfOnePort(t *testing.T) {
	l := newHarness(t)
	r := l.registrar(func(o *registrar.Options, _ *label.Host) { o.ReadyTimeout = 2 * time.Second })
	for _, tt := range []struct{ name, silent string }{
		{"the first port listens", "50000"},
		{"the first port does not", "22"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := l.in(t)
			c := l.web("ci"+tt.silent, "serve 200", "--expose", "8080", "--expose", tt.silent, "--label", "SERVICE_ROUTE_HOST=ci.example.com")
			routed, unrouted := c.instance(8080), strings.TrimSuffix(c.instance(8080), "8080")+tt.silent
			l.expect(soon, unrouted, "critical") // late: nothing listens there
			l.expect(soon, routed, "passing")
			l.eventually(soon, "8080 alone has the route", func() error {
				all, err := l.instances()
				if err != nil {
					return err
				}
				with, without := all[routed].Meta, all[unrouted].Meta
				if with["route_host"] != "ci.example.com" || with["berth-no-route"] != "" || without["route_host"] != "" ||
					without["berth-no-route"] != fmt.Sprintf("SERVICE_ROUTE_HOST goes to port 8080: set SERVICE_%s_ROUTE_HOST for this one", tt.silent) {
					return fmt.Errorf("8080 is registered with %v, and %s with %v", with, tt.silent, without)
				}
				return nil
			})
			r.log.Wait(t, "set SERVICE_<port>_ROUTE_HOST instead of SERVICE_ROUTE_HOST\" container="+c.name+" port=8080 others="+tt.silent)
		})
	}
}

// Two registrars have one owner at one Consul agent, as on cloned machines: each considers the other's registrations
// leftovers. After a few rounds they hold back, and each logs the reason once. What runs is registered in the end.
func TestE2ETwoRegistrarsWithOneOwner(t *testing.T) {
	l := newHarness(t)
	second := l.name + "-second"
	l.docker("network", "create", second)
	one, two := l.app("one"), l.app("two", "--network", second)
	networks := func(name string) func(*registrar.Options, *label.Host) {
		return func(_ *registrar.Options, h *label.Host) { h.Networks = []string{name} }
	}
	registrars := []*running{l.registrar(networks(l.network)), l.registrar(networks(second))}
	removed := func() (n int) {
		for _, r := range registrars {
			n += strings.Count(r.log.String(), `msg="deregistered `)
		}
		return n
	}
	const warning = "another program undoes what this registrar does"
	for _, r := range registrars {
		l.eventually(90*time.Second, "it is said", func() error {
			if !strings.Contains(r.log.String(), warning) {
				return errors.New("it is not")
			}
			return nil
		})
	}
	l.expect(30*time.Second, one.instance(8080), "passing")
	l.expect(30*time.Second, two.instance(8080), "passing")
	before := removed()
	if before > 12 {
		t.Errorf("%d were removed before they held back", before)
	}
	for began := time.Now(); time.Since(began) < 40*time.Second; time.Sleep(100 * time.Millisecond) { // four rounds before
		for _, c := range []container{one, two} {
			if in, err := l.instance(c.instance(8080)); err == nil && in.status != "passing" {
				t.Fatalf("%s is %q, though both hold back", c.name, in.status)
			}
		}
	}
	if n := removed() - before; n > 0 {
		t.Errorf("%d were removed while they held back", n)
	}
	for _, r := range registrars {
		all := r.log.String()
		if n := strings.Count(all, warning) - strings.Count(all, " for=1m"); n != 1 { // it is logged again after a minute
			t.Errorf("it is said %d times:\n%s", n, all)
		}
	}
}
