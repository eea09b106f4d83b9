//go:build e2e

package registrar_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/registrar"
	watch "berth/registrar/docker"
	"berth/registrar/label"
)

// In all of these tests the registrar keeps running: only time and the end of the trouble repair everything.

// again is how quickly the registrar notices changes without an event.
const again = 15 * time.Second

func TestE2ERemovedByHand(t *testing.T) {
	l := newHarness(t)
	l.registrar(nil)
	c := l.app("web", "--env", "SERVICE_CHECK_TTL=1m")
	id := c.instance(8080)
	l.expect(soon, id, "passing")

	if err := l.consul.Agent().ServiceDeregister(id); err != nil {
		t.Fatal(err)
	}
	t.Logf("registration removed by hand → back after %s", ms(l.expect(again, id, "passing")))

	in, err := l.instance(id)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.consul.Agent().CheckDeregister(in.checks["TTL 1m0s"].CheckID); err != nil {
		t.Fatal(err)
	}
	took := l.eventually(again, "the check is back", func() error {
		in, err := l.instance(id)
		if err == nil && in.checks["TTL 1m0s"] == nil {
			err = errors.New("it is not")
		}
		return err
	})
	t.Logf("check removed by hand → back after %s", ms(took))
}

func TestE2EAgentRestart(t *testing.T) {
	l := newHarness(t)
	r := l.registrar(nil)
	var want []string
	for i := range 5 {
		service := fmt.Sprint("web", i)
		l.app(service, "--env", "SERVICE_CHECK_TTL=30s")
		want = append(want, service+" passing")
	}
	l.expectOf(soon, want...)

	l.docker("restart", "--time", "5", l.name+"-consul")
	took := l.consul.Answers(t)
	whole := l.expectOf(20*time.Second, want...)
	ready := l.eventually(20*time.Second, "the registrar is ready", r.Ready)
	t.Logf("Consul agent restarted with its state: it answers %s after docker restart has returned; all five passing %s later, registrar ready %s after that", ms(took), ms(whole), ms(ready))
	l.app("after")
	l.expectOf(again, append(want, "after passing")...)

	want = append(want, "after passing")
	l.docker("rm", "--force", "--volumes", l.name+"-consul")
	l.startConsul()
	whole = l.expectOf(20*time.Second, want...)
	ready = l.eventually(20*time.Second, "the registrar is ready", r.Ready)
	t.Logf("Consul agent replaced by an empty one: all six registered %s after it answered, registrar ready %s after that", ms(whole), ms(ready))
}

// While Consul is away, containers come and go: the latest state counts when it is back.
func TestE2EAgentAway(t *testing.T) {
	const away = 20 * time.Second
	l := newHarness(t)
	r := l.registrar(nil)
	l.app("stays")
	goes := l.app("goes")
	restarts := l.app("restarts")
	l.expectOf(soon, "stays passing", "goes passing", "restarts passing")

	failures := r.value("berth_registrar_sync_errors_total")
	stopped := time.Now()
	l.docker("kill", l.name+"-consul")
	l.docker("rm", "--force", goes.id)
	comes := 0
	for ; time.Since(stopped) < away; comes++ {
		c := l.app(fmt.Sprint("visitor", comes))
		l.docker("restart", "--time", "1", restarts.id)
		l.docker("rm", "--force", c.id)
	}
	l.app("new")
	if err := r.Ready(); err == nil {
		t.Error("the registrar calls itself ready without Consul")
	}
	failures = r.value("berth_registrar_sync_errors_total") - failures
	gone := time.Since(stopped)
	l.docker("start", l.name+"-consul")
	answers := l.consul.Answers(t)
	whole := l.expectOf(20*time.Second, "stays passing", "restarts passing", "new passing")
	ready := l.eventually(20*time.Second, "the registrar is ready", r.Ready)
	t.Logf("Consul away for %s, while %d containers came and went: %.0f failures counted; it answers %s after docker start has returned; right %s later, registrar ready %s after that",
		gone.Round(time.Second), comes, failures, ms(answers), ms(whole), ms(ready))
	if failures > 3*gone.Seconds() {
		t.Errorf("%.0f failed attempts in %s: that is a flood", failures, gone)
	}
}

// through makes a registrar reach Docker through a front.
func through(l *harness, f *front, resync time.Duration) func(*registrar.Options, *label.Host) {
	client := dockerClient(l.t, "unix://"+f.socket)
	return func(o *registrar.Options, _ *label.Host) {
		o.Docker, o.Events, o.Resync = restrained{client, l}, watch.Events(client), resync
	}
}

func TestE2EEventStreamBroken(t *testing.T) {
	l := newHarness(t)
	f := newFront(l)
	r := l.registrar(through(l, f, 0))
	l.app("stays")
	goes := l.app("goes")
	l.expectOf(soon, "stays passing", "goes passing")

	for range 5 { // cut, and reconnected at once
		f.cut()
		l.eventually(soon, "the stream is connected anew", func() error {
			if !f.streaming() {
				return errors.New("it is not")
			}
			return nil
		})
	}
	again := l.app("again")
	t.Logf("stream cut five times → registered after docker run %s", ms(l.expectOf(soon, "stays passing", "goes passing", "again passing")))

	f.refuse(true)
	f.cut()
	l.eventually(soon, "the registrar knows that it hears nothing", func() error {
		if r.Ready() == nil {
			return errors.New("it calls itself ready")
		}
		return nil
	})
	l.docker("rm", "--force", goes.id)
	l.docker("restart", "--time", "1", again.id)
	l.app("new")
	tries := f.count("events")
	l.expectOf(0, "stays passing", "goes passing", "again passing")
	f.refuse(false)
	whole := l.expectOf(20*time.Second, "stays passing", "again passing", "new passing")
	t.Logf("stream back → all right %s (%d attempts before)", ms(whole), tries)
	l.eventually(soon, "the registrar is ready", r.Ready)
}

// A connected but silent stream is detected by the resync.
func TestE2EEventStreamSilent(t *testing.T) {
	const resync = 3 * time.Second
	l := newHarness(t)
	f := newFront(l)
	l.registrar(through(l, f, resync))
	l.app("stays")
	goes := l.app("goes")
	l.expectOf(soon, "stays passing", "goes passing")
	f.silence(true)
	l.docker("kill", goes.id)
	l.app("new")
	took := l.expectOf(resync+soon, "stays passing", "new passing")
	t.Logf("events swallowed, resync every %s: right %s after docker run", resync, ms(took))
	f.silence(false)
	l.app("heard")
	l.expectOf(soon, "stays passing", "new passing", "heard passing")
}

// Consul hangs until a full resync, including the description of the real host, which also asks Consul: docker stop takes no
// longer than its drain time.
func TestE2EConsulHangsLong(t *testing.T) {
	const drain, hangs = 500 * time.Millisecond, 12 * time.Second
	l := newHarness(t)
	client := dockerClient(t, "")
	r := l.registrar(func(o *registrar.Options, h *label.Host) {
		o.Resync, o.DrainTime = 3*time.Second, drain
		var self struct{ Member struct{ Addr string } }
		describe := watch.Host(client, *h)
		o.Host = func(ctx context.Context) (label.Host, error) {
			second, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			_, _ = l.consul.Raw().Query("/v1/agent/self", &self, new(api.QueryOptions).WithContext(second))
			host, err := describe(ctx)
			host.NodeAddress = self.Member.Addr
			return host, err
		}
	})
	var apps []container
	for _, service := range []string{"stopped", "killed"} {
		apps = append(apps, l.app(service, "--stop-signal", "SIGCONT", "--env", "SERVICE_STOP_SIGNAL=SIGTERM"))
	}
	l.expectOf(soon, "stopped passing", "killed passing")

	l.docker("pause", l.name+"-consul")
	began := time.Now()
	l.eventually(time.Minute, "Consul has hung over several resyncs", func() error {
		if r.Ready() == nil || time.Since(began) < hangs {
			return errors.New("not yet")
		}
		return nil
	})
	for _, c := range apps {
		start := time.Now()
		l.docker("stop", "--time", "20", c.id)
		took := time.Since(start)
		t.Logf("Consul hanging for %s: docker stop took %s", start.Sub(began).Round(time.Second), ms(took))
		if took > drain+1500*time.Millisecond {
			t.Errorf("docker stop took %s while Consul hangs, want little more than %s", ms(took), drain)
		}
	}
	l.docker("unpause", l.name+"-consul")
	l.expectOf(30 * time.Second)
	l.eventually(soon, "the registrar is ready", r.Ready)
}
