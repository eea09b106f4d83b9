//go:build e2e

package registrar_test

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// Labels as people write them, on real Docker and Consul.
func TestE2ELabels(t *testing.T) {
	l := newHarness(t)
	l.registrar(nil)

	t.Run("ready before the HEALTHCHECK has run", func(t *testing.T) {
		l := l.in(t)
		h := l.watch("early")
		c := l.app("early", "--env", "SERVICE_READY=tcp", "--health-cmd", "exit 0", "--health-interval", "1h")
		h.expect(soon, "docker start", "passing")
		l.says(soon, c.instance(8080), "Docker HEALTHCHECK", "passing", "Docker says starting")
	})

	t.Run("a check that cannot be made", func(t *testing.T) {
		l := l.in(t)
		h := l.watch("unchecked")
		c := l.app("unchecked", "--env", "SERVICE_CHECK_HTTP=http://localhost/health")
		h.expect(soon, "docker start", "critical")
		l.says(soon, c.instance(8080), "SERVICE_CHECK_HTTP is not as declared", "critical", "is not a path like /health")
	})

	t.Run("a check without slash and unit", func(t *testing.T) {
		l := l.in(t)
		c := l.app("plain", "--env", "SERVICE_CHECK_HTTP=health", "--env", "SERVICE_CHECK_INTERVAL=1")
		l.says(soon, c.instance(8080), "HTTP GET /health", "passing", "200 OK")
	})

	t.Run("metadata as Consul keeps it", func(t *testing.T) {
		l := l.in(t)
		var hosts []string
		for n := range 30 {
			hosts = append(hosts, fmt.Sprintf("a-rather-long-name-%02d.example.com", n))
		}
		many := l.app("Many.Hosts_v1", "--label", "SERVICE_ROUTE_HOST="+strings.Join(hosts, "\n"), "--env", "SERVICE_PASSWORD=s3cret")
		empty := l.app("empty", "--label", "SERVICE_ROUTE_HOST=", "--label", "SERVICE_ROUTE_PATH=/", "--label", "SERVICE_WEIGHT=0")
		l.expect(soon, many.instance(8080), "passing")
		l.expect(soon, empty.instance(8080), "passing")
		services, err := l.consul.Agent().Services()
		if err != nil {
			t.Fatal(err)
		}
		in := services[many.instance(8080)]
		if got := in.Meta["route_host"] + "," + in.Meta["route_host_2"]; got != strings.Join(hosts, ",") {
			t.Errorf("hosts %q", got)
		}
		if in.Service != "Many.Hosts_v1" || strings.Contains(fmt.Sprint(in.Meta), "s3cret") {
			t.Errorf("%s is registered with %v", in.Service, in.Meta)
		}
		in = services[empty.instance(8080)]
		if in.Meta["berth-no-route"] != "SERVICE_ROUTE_HOST is empty: set it, or remove it" || in.Meta["route_path"] != "" || in.Meta["weight"] != "0" {
			t.Errorf("it is registered with %v", in.Meta)
		}
	})

	t.Run("what is run once", func(t *testing.T) {
		l := l.in(t)
		once := l.app("once", "--label", "com.docker.compose.oneoff=True")
		insists := l.app("insists", "--label", "com.docker.compose.oneoff=True", "--label", "SERVICE_ONEOFF=true")
		l.expect(soon, insists.instance(8080), "passing")
		after := l.app("after") // started later than once, so once had its turn
		l.expect(soon, after.instance(8080), "passing")
		if in, err := l.instance(once.instance(8080)); err != nil || in.AgentService != nil {
			t.Errorf("it is registered: %+v, %v", in.AgentService, err)
		}
	})

	t.Run("a port that only a label names", func(t *testing.T) {
		l := l.in(t)
		c := l.web("named", "serve 200", "--env", "BIND=:3000", "--label", "SERVICE_3000_ROUTE_HOST=a.example")
		l.expect(10*time.Second, c.instance(3000), "passing")
	})
}
