package registrar

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	fsouza "github.com/fsouza/go-dockerclient"

	"berth/deploy/testenv/agenttest"
	"berth/registrar/label"
)

// routeOf returns which instances in Consul have the route, and the reasons of those that have none.
func (w *cluster) routeOf() (with string, why []string) {
	w.do(func() {
		for _, id := range []string{"vm:ci:22", "vm:ci:8080", "vm:ci:50000"} {
			s := w.Services[id]
			switch {
			case s == nil:
			case s.Meta["route_host"] != "":
				with += id + " "
			default:
				why = append(why, s.Meta["berth-no-route"])
			}
		}
	})
	return strings.TrimSpace(with), why
}

// several starts a container with three ports and one route.
func (w *cluster) several() {
	c := w.create("ci", "10.0.0.1", "SERVICE_NAME=ci", "SERVICE_ROUTE_HOST=ci.example.com")
	w.do(func() {
		c.Config.ExposedPorts = map[fsouza.Port]struct{}{"22/tcp": {}, "8080/tcp": {}, "50000/tcp": {}}
	})
	w.event("start", "ci")
}

// The route of a container with several ports goes to the first one that is ready. No port has it before that is known, and
// a restart of the registrar does not move it.
func TestRouteOfSeveralPorts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		r, stop := w.run(t)
		w.listen("10.0.0.1:8080")
		w.several()
		w.expect(t, 20*time.Millisecond, "vm:ci:8080")
		time.Sleep(time.Second)
		if with, why := w.routeOf(); with != "" || len(why) != 1 || why[0] != "SERVICE_ROUTE_HOST goes to port 22: set SERVICE_8080_ROUTE_HOST for this one" {
			t.Errorf("%q has the route before port 22 is late; the other says %q", with, why)
		}

		w.expect(t, 31*time.Second, "vm:ci:22? vm:ci:50000? vm:ci:8080")
		time.Sleep(time.Second)
		if with, why := w.routeOf(); with != "vm:ci:8080" || len(why) != 2 || why[0] != "SERVICE_ROUTE_HOST goes to port 8080: set SERVICE_22_ROUTE_HOST for this one" {
			t.Errorf("%q has the route, the others say %q", with, why)
		}
		if line := "the route of ci goes to port 8080, one of several, as the ports before it are not ready in time: to choose another, set SERVICE_<port>_ROUTE_HOST instead of SERVICE_ROUTE_HOST\" container=ci port=8080 others=22,50000"; strings.Count(w.log.String(), line) != 1 {
			t.Errorf("not in the log once: %s\n%s", line, w.log.String())
		}
		report, err := r.Report(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		said := strings.Join(lines(report), "\n")
		if !strings.Contains(said, "ci [ci.example.com/] registered") || !strings.Contains(said, "ci [(SERVICE_ROUTE_HOST goes to port 8080: set SERVICE_50000_ROUTE_HOST for this one)] critical: not ready in time: connection refused") {
			t.Errorf("the report:\n%s", said)
		}

		// A port whose checks fail later keeps it.
		w.do(func() { delete(w.listening, "10.0.0.1:8080") })
		time.Sleep(2 * time.Minute)
		if with, _ := w.routeOf(); with != "vm:ci:8080" {
			t.Errorf("after it stopped to listen, %q has the route", with)
		}
		stop()

		// A restart of the registrar does not move it.
		before := w.called("register")
		_, stop = w.run(t)
		defer stop()
		time.Sleep(2 * time.Second)
		if with, _ := w.routeOf(); with != "vm:ci:8080" || w.called("register") != before {
			t.Errorf("after a restart %q has the route, and %d were registered", with, w.called("register")-before)
		}

		// The first choice gets it when it is ready at last.
		w.listen("10.0.0.1:22")
		w.expect(t, time.Minute, "vm:ci:22 vm:ci:50000? vm:ci:8080")
		time.Sleep(time.Second)
		if with, _ := w.routeOf(); with != "vm:ci:22" {
			t.Errorf("after port 22 is ready %q has the route", with)
		}
	})
}

// If no port is ever ready, the first choice has the route: it is known, and answered with 503.
func TestRouteOfSeveralLatePorts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		_, stop := w.run(t)
		defer stop()
		w.several()
		w.expect(t, 31*time.Second, "vm:ci:22? vm:ci:50000? vm:ci:8080?")
		time.Sleep(time.Second)
		if with, why := w.routeOf(); with != "vm:ci:22" || len(why) != 2 {
			t.Errorf("%q has the route, %q", with, why)
		}
	})
}

// Choosing the port of a route needs no probe: a container that is out of service is not awaited.
func TestRouteOfOneOutOfService(t *testing.T) {
	for _, paused := range []bool{false, true} {
		c := containerOf("ci", "10.0.0.1", "SERVICE_ROUTE_HOST=ci.example.com")
		c.Ports = append(c.Ports, label.Port{Number: 8080, Protocol: "tcp"})
		c.Paused = paused
		s := known(Options{}, c)
		s.holds(t, agenttest.New())
		if n := len(s.plan(time.Now()).waiting); (n == 0) != paused {
			t.Errorf("paused %t: %d probes", paused, n)
		}
	}
}
