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

// says waits until a check of an instance has this status and a text in its output.
func (l *harness) says(within time.Duration, id, check, status, text string) {
	l.t.Helper()
	l.eventually(within, fmt.Sprintf("check %q is %s with %q", check, status, text), func() error {
		in, err := l.instance(id)
		if err != nil {
			return err
		}
		c := in.checks[check]
		if c == nil {
			return fmt.Errorf("there is none; its checks are %v", in.checks)
		}
		if c.Status != status || !strings.Contains(c.Output+c.Notes, text) {
			return fmt.Errorf("it is %s, with %q", c.Status, c.Output+c.Notes)
		}
		return nil
	})
}

// Docker's HEALTHCHECK decides: nothing passes before it says healthy, and Consul shows its status.
func TestE2EHealthcheck(t *testing.T) {
	l := newHarness(t)
	l.registrar(nil)
	health := []string{"--health-cmd", "if [ -e /tmp/healthy ]; then echo fine; else echo no database; exit 1; fi", "--health-interval", "1s", "--health-retries", "1"}
	const name = "Docker HEALTHCHECK"

	t.Run("healthy at first", func(t *testing.T) {
		l := l.in(t)
		h := l.watch("good")
		c := l.web("good", "touch /tmp/healthy; serve 200", health...)
		id := c.instance(8080)
		l.says(10*time.Second, id, name, "passing", "fine")
		said := l.dockerSaid(c, "health_status: healthy")
		if at := h.expect(soon, "docker start", "passing"); len(said) != 1 || at[1].Before(said[0]) {
			t.Errorf("it passed at %v, Docker said healthy at %v", at[1], said)
		} else {
			t.Logf("healthy → registered as passing %s", ms(at[1].Sub(said[0])))
		}
		l.unlink(c, "healthy")
		l.says(10*time.Second, id, name, "critical", "no database")
		l.touch(c, "healthy")
		l.says(10*time.Second, id, name, "passing", "fine")
		h.expect(soon, "docker start", "passing", "critical", "passing")
	})

	t.Run("unhealthy at first", func(t *testing.T) {
		l := l.in(t)
		h := l.watch("bad")
		c := l.web("bad", "serve 200", health...)
		l.says(10*time.Second, c.instance(8080), name, "critical", "no database")
		l.touch(c, "healthy")
		l.says(10*time.Second, c.instance(8080), name, "passing", "fine")
		l.expect(soon, c.instance(8080), "passing")
		h.expect(soon, "docker start", "critical", "passing")
	})
}

func TestE2EChecks(t *testing.T) {
	l := newHarness(t)
	const ttl = 3 * time.Second
	signOfLife := func(_ *registrar.Options, h *label.Host) { h.TTL = ttl }
	r := l.registrar(signOfLife)

	h := l.watch("many")
	many := l.app("many", "--env", "SERVICE_CHECK_HTTP=/health", "--env", "SERVICE_CHECK_INTERVAL=1s", "--env", "SERVICE_CHECK_TTL=2s",
		"--env", "SERVICE_CHECK_1_TCP=true", "--env", "SERVICE_CHECK_1_INTERVAL=1s")
	id := many.instance(8080)

	t.Run("an HTTP check that fails and recovers", func(t *testing.T) {
		l := l.in(t)
		h := l.watch("ill")
		c := l.web("ill", "serve 200; await bad; serve 503; await good; serve 200", "--env", "SERVICE_CHECK_HTTP=/x", "--env", "SERVICE_CHECK_INTERVAL=1s")
		l.says(soon, c.instance(8080), "HTTP GET /x", "passing", "said-200")
		l.touch(c, "bad")
		l.says(soon, c.instance(8080), "HTTP GET /x", "critical", "said-503")
		l.touch(c, "good")
		l.says(soon, c.instance(8080), "HTTP GET /x", "passing", "said-200")
		h.expect(soon, "docker start", "passing", "critical", "passing")
	})

	t.Run("several", func(t *testing.T) {
		l := l.in(t)
		l.says(soon, id, "HTTP GET /health", "passing", "200 OK")
		l.says(soon, id, "TCP connect", "passing", "Success")
		l.says(soon, id, "TTL 2s", "passing", "the container runs")
		l.says(soon, id, "berth registrar", "passing", "the container runs")
		at := h.expect(soon, "docker start", "passing")
		l.eventually(time.Minute, "three times the TTL is over", func() error {
			if time.Since(at[1]) < 3*ttl {
				return errors.New("not yet")
			}
			return nil
		})
		h.expect(0, "docker start", "passing")
	})

	t.Run("without the registrar", func(t *testing.T) {
		l := l.in(t)
		r.stop()
		l.says(10*time.Second, id, "berth registrar", "critical", "TTL expired")
		start := time.Now()
		l.registrar(signOfLife)
		l.expect(soon, id, "passing")
		t.Logf("registrar started again → passing %s", ms(time.Since(start)))
		// This registrar also ends here, because it belongs to the subtest.
	})
}

func TestE2EReady(t *testing.T) {
	l := newHarness(t)
	const timeout = time.Second
	l.registrar(func(o *registrar.Options, _ *label.Host) { o.ReadyTimeout = timeout })

	t.Run("http", func(t *testing.T) {
		l := l.in(t)
		h := l.watch("http")
		c := l.web("http", "serve 503; await go; serve 200", "--env", "SERVICE_READY=http:/health")
		l.says(soon, c.instance(8080), "ready", "critical", "503")
		l.touch(c, "go")
		l.expect(soon, c.instance(8080), "passing")
		at := h.expect(soon, "docker start", "critical", "passing")
		t.Logf("start → critical, because it is not ready after %s: %s", timeout, ms(at[1].Sub(at[0])))
		if in, err := l.instance(c.instance(8080)); err != nil || len(in.checks) > 0 {
			t.Errorf("it has the checks %v (%v)", in.checks, err)
		}
	})

	t.Run("http in time", func(t *testing.T) {
		l := l.in(t)
		h := l.watch("early")
		c := l.web("early", "serve 503; serve 200", "--env", "SERVICE_READY=http:/health")
		l.expect(soon, c.instance(8080), "passing")
		h.expect(soon, "docker start", "passing")
	})

	t.Run("none", func(t *testing.T) {
		l := l.in(t)
		h := l.watch("none")
		c := l.web("none", "", "--env", "SERVICE_READY=none") // nothing listens
		l.expect(soon, c.instance(8080), "passing")
		at := h.expect(soon, "docker start", "passing")
		t.Logf("start → registered without waiting for anything %s", ms(at[1].Sub(at[0])))
	})

	t.Run("deadline", func(t *testing.T) {
		l := l.in(t)
		h := l.watch("late")
		c := l.web("late", "await go; serve 200")
		l.says(soon, c.instance(8080), "ready", "critical", "connection refused")
		at := h.expect(soon, "docker start", "critical")
		if took := at[1].Sub(at[0]); took < timeout {
			t.Errorf("it was registered as critical after %s", ms(took))
		}
		l.touch(c, "go")
		l.expect(soon, c.instance(8080), "passing")
		h.expect(soon, "docker start", "critical", "passing")
	})
}
