package registrar

import (
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	fsouza "github.com/fsouza/go-dockerclient"
	"github.com/hashicorp/consul/api"
	"github.com/prometheus/client_golang/prometheus"

	"berth/deploy/testenv/agenttest"
	"berth/registrar/agent"
	"berth/templates/claim"
)

// readyAt returns when an instance became ready, according to its metadata in Consul.
func (w *cluster) readyAt(id string) (value string) {
	w.do(func() {
		if s := w.Services[id]; s != nil {
			value = s.Meta[claim.MetaReadyAt]
		}
	})
	return value
}

// expectReadyAt checks that an instance became ready in the last 10 ms before a time.
func (w *cluster) expectReadyAt(t *testing.T, id string, before time.Time) (value string) {
	t.Helper()
	value = w.readyAt(id)
	at, told := claim.ReadyAt(map[string]string{claim.MetaReadyAt: value})
	if ago := before.Sub(at); !told || ago < -time.Millisecond || ago > 10*time.Millisecond {
		t.Fatalf("%s was ready at %q, %v before it was expected", id, value, ago)
	}
	return value
}

// Consul holds when an instance became ready. The time survives further registrations, until another process is ready.
func TestReadyAt(t *testing.T) {
	for _, ready := range []string{"SERVICE_READY=tcp", "SERVICE_READY=none"} {
		t.Run(ready, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newCluster()
				_, stop := w.run(t)
				defer func() { stop() }()
				w.start("a", "10.0.0.1", ready)
				if ready == "SERVICE_READY=tcp" {
					time.Sleep(3 * time.Second)
					w.listen("10.0.0.1:80")
				}
				w.expect(t, time.Second, "vm:a:80")
				first := w.expectReadyAt(t, "vm:a:80", time.Now())
				same := func(after string) {
					t.Helper()
					if got := w.readyAt("vm:a:80"); got != first {
						t.Fatalf("after %s it was ready at %q, before at %q", after, got, first)
					}
				}
				time.Sleep(5 * time.Minute)
				same("resyncs")
				if n := w.called("register"); n != 1 {
					t.Fatalf("registered %d times", n)
				}
				w.do(w.Forget)
				w.expect(t, reread+2*time.Second, "vm:a:80")
				same("a loss of state")
				stop()
				var r *Registrar
				r, stop = w.run(t)
				time.Sleep(time.Minute)
				if n := w.called("register"); n != 2 {
					t.Fatalf("a registrar that starts again registers what is registered: %d times", n)
				}
				report, err := r.Report(t.Context())
				if err != nil || claim.Stamp(report.Containers[0].Instances[0].ReadyAt) != first {
					t.Fatalf("the report says %v, want %s (%v)", report.Containers[0].Instances[0].ReadyAt, first, err)
				}
				w.do(w.Forget)
				w.expect(t, reread+2*time.Second, "vm:a:80")
				same("a restart of the registrar and a loss of state")

				w.restart("a", "10.0.0.1", true)
				w.listen("10.0.0.1:80")
				time.Sleep(time.Second)
				w.expect(t, 0, "vm:a:80")
				if second := w.readyAt("vm:a:80"); second <= first {
					t.Errorf("another process is ready since %q, the one before since %q", second, first)
				}
			})
		})
	}
}

// A late instance has the time from when it is ready, and not before.
func TestReadyAtOfOneThatIsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		_, stop := w.run(t)
		defer stop()
		w.start("a", "10.0.0.1")
		w.expect(t, 31*time.Second, "vm:a:80?")
		if at := w.readyAt("vm:a:80"); at != "" {
			t.Errorf("ready since %s, and it is not", at)
		}
		time.Sleep(time.Minute)
		w.listen("10.0.0.1:80")
		w.expect(t, time.Second, "vm:a:80")
		w.expectReadyAt(t, "vm:a:80", time.Now())
	})
}

// A registration by an earlier berth is not repeated only because it lacks the time.
func TestReadyAtIsNoReasonToRegister(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		w.listen("10.0.0.1:80")
		w.create("a", "10.0.0.1")
		_, stop := w.run(t)
		w.expect(t, time.Second, "vm:a:80")
		stop()
		w.do(func() { delete(w.Services["vm:a:80"].Meta, claim.MetaReadyAt) })
		r, stop := w.run(t)
		defer stop()
		time.Sleep(5 * time.Minute)
		if n := w.called("register"); n != 1 {
			t.Errorf("registered %d times", n)
		}
		if got, err := r.Report(t.Context()); err != nil || got.Containers[0].Instances[0].State != Registered {
			t.Errorf("%+v, %v", got, err)
		}
		w.do(w.Forget) // it is registered again for another reason
		w.expect(t, reread+2*time.Second, "vm:a:80")
		if w.readyAt("vm:a:80") == "" {
			t.Error("registered again, it is not said to be ready")
		}
	})
}

// The reason of a drain contains the time of the signal, and nothing is written a second time for that.
func TestStoppedAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		r, stop := w.run(t)
		defer func() { stop() }()
		w.listen("10.0.0.1:80")
		w.create("a", "10.0.0.1", "SERVICE_STOP_SIGNAL=TERM").Config.StopTimeout = 60
		w.event("start", "a")
		w.expect(t, 10*time.Millisecond, "vm:a:80")
		time.Sleep(1500 * time.Millisecond)
		sent := time.Now()
		w.event("kill", "a", "signal", "15")
		w.expect(t, 0, "vm:a:80!")
		want := claim.WithStop(agent.Automatic+stopping+"SIGTERM", sent)
		check := func() {
			t.Helper()
			if got := w.Check(api.ServiceMaintPrefix + "vm:a:80").Notes; got != want {
				t.Fatalf("the reason is %q, want %q", got, want)
			}
			if w.called("enable") != 1 || w.called("register") != 1 || w.called("disable") != 0 {
				t.Fatalf("%d drains, %d registrations, %d returns", w.called("enable"), w.called("register"), w.called("disable"))
			}
		}
		time.Sleep(reread + time.Second)
		check()
		got, err := r.Report(t.Context())
		if i := got.Containers[0].Instances[0]; err != nil || i.State != OutOfService || i.Reason != strings.TrimPrefix(want, agent.Automatic) {
			t.Errorf("%+v, %v", i, err)
		}
		stop()
		_, stop = w.run(t)
		time.Sleep(reread + time.Second)
		check()
		time.Sleep(2 * time.Minute) // it did not stop
		w.expect(t, 0, "vm:a:80")
	})
}

// Each step of a container's life is one line that names service, instance and container.
func TestLinesOfALife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		_, stop := w.run(t)
		defer stop()
		w.create("a", "10.0.0.1", "SERVICE_NAME=shop").Name = "/web_1"
		w.event("start", "a")
		time.Sleep(time.Second)
		w.listen("10.0.0.1:80")
		w.expect(t, time.Second, "vm:web_1:80")
		pause := func(is bool, event, want string) {
			w.do(func() { w.containers["a"].State.Paused = is })
			w.event(event, "a")
			w.expect(t, time.Second, want)
		}
		pause(true, "pause", "vm:web_1:80!")
		pause(false, "unpause", "vm:web_1:80")
		time.Sleep(reread + time.Second)
		w.event("kill", "a", "signal", "15")
		w.expect(t, time.Second, "vm:web_1:80!")
		w.die("a")
		w.expect(t, time.Second, "")
		time.Sleep(reread + time.Second)

		names := ` service=shop instance=vm:web_1:80 container=web_1`
		want := []string{
			`level=INFO msg="registered web_1 as shop on 10.0.0.1:80"` + names + ` address=10.0.0.1 port=80 took=TIME`,
			`level=INFO msg="took shop of web_1 out of service"` + names + ` reason="the container is paused"`,
			`level=INFO msg="shop of web_1 is back in service"` + names,
			`level=INFO msg="took shop of web_1 out of service"` + names + ` reason="the container is being stopped by SIGTERM"`,
			`level=INFO msg="deregistered shop of web_1"` + names,
		}
		var got []string
		for line := range strings.Lines(w.log.String()) {
			if strings.Contains(line, "instance=") {
				_, line, _ = strings.Cut(strings.TrimSpace(line), " ")
				got = append(got, regexp.MustCompile(`took=\S+`).ReplaceAllStringFunc(line, func(s string) string {
					if took, err := time.ParseDuration(strings.TrimPrefix(s, "took=")); err != nil || took > time.Second {
						return s // a second is what it took to be ready
					}
					return "took=TIME"
				}))
			}
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("the log has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

// The duration of a registration is logged once: another registration does not mean that the instance has become ready.
func TestTookIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		r, stop := w.run(t)
		defer func() { stop() }()
		w.listen("10.0.0.1:80")
		w.start("a", "10.0.0.1")
		w.expect(t, time.Second, "vm:a:80")
		first := registeredAt(t, r)
		if first.IsZero() || time.Since(first) > 10*time.Millisecond {
			t.Errorf("registered at %v", first)
		}
		time.Sleep(time.Hour)
		w.do(w.Forget)
		w.expect(t, reread+2*time.Second, "vm:a:80")
		if at := registeredAt(t, r); !at.Equal(first) {
			t.Errorf("registered at %v, before at %v", at, first)
		}
		stop()
		_, stop = w.run(t)
		w.do(w.Forget)
		w.expect(t, reread+2*time.Second, "vm:a:80")
		log := w.log.String()
		if registered, took := strings.Count(log, "msg=\"registered"), strings.Count(log, "took="); registered != 3 || took != 1 {
			t.Errorf("%d registrations, %d of them took a time:\n%s", registered, took, log)
		}
	})
}

func registeredAt(t *testing.T, r *Registrar) time.Time {
	t.Helper()
	synctest.Wait()
	got, err := r.Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return got.Containers[0].Instances[0].RegisteredAt
}

// A report shows what is known of a container, without secrets.
func TestReportTellsEvidence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		r, stop := w.run(t)
		defer stop()
		c := w.create("a", "10.0.0.1", "SERVICE_NAME=shop", "SERVICE_REGION=private", "DB_PASSWORD=s3cret")
		c.Config.Labels = map[string]string{
			"SERVICE_ROUTE_HOST": "shop.example.com", "service_80_tags": strings.Repeat("x", 300), "SERVICE_API_TOKEN": "s3cret",
			"SERVICE_CHECK_HEADER_AUTHORIZATION": "s3cret", "SERVICE_DB": "postgres://app:s3cret@db/app", "other": "s3cret",
		}
		c.Config.Image = "shop:1.2"
		c.Config.Healthcheck = nil
		c.State.Health.Status = "starting"
		w.event("start", "a")
		time.Sleep(12 * time.Second)
		got, err := r.Report(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		p := got.Containers[0]
		if !p.Started.Equal(c.State.StartedAt) || p.Image != "shop:1.2" || !p.Meant || strings.Join(p.Networks, ";") != "front 10.0.0.1" || p.Health != "starting" {
			t.Errorf("%+v", p)
		}
		want := map[string]string{
			"SERVICE_NAME": "shop", "SERVICE_ROUTE_HOST": "shop.example.com", "SERVICE_80_TAGS": strings.Repeat("x", 197) + "…",
			"SERVICE_API_TOKEN": "(not shown: it looks like a secret)", "SERVICE_DB": "(not shown: it looks like a secret)",
			"SERVICE_CHECK_HEADER_AUTHORIZATION": "(not shown: it looks like a secret)",
		}
		if fmt.Sprint(p.Asks) != fmt.Sprint(want) {
			t.Errorf("it asks for %q, want %q", p.Asks, want)
		}
		i := p.Instances[0]
		if !i.ReadyAt.IsZero() || !i.RegisteredAt.IsZero() || i.Probe != "healthcheck: starting, for 12s" {
			t.Errorf("%+v", i)
		}
		w.change("a", func(c *fsouza.Container) { c.State.Health.Status = "healthy" })
		w.listen("10.0.0.1:80")
		w.event("health_status: healthy", "a")
		time.Sleep(time.Second)
		if got, err = r.Report(t.Context()); err != nil {
			t.Fatal(err)
		}
		i = got.Containers[0].Instances[0]
		if since := time.Since(i.ReadyAt); since > 1100*time.Millisecond || i.RegisteredAt.Before(i.ReadyAt) || i.Probe != "" {
			t.Errorf("%+v", i)
		}
	})
}

// During probing, the report contains the result of the last probe.
func TestReportTellsProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		r, stop := w.run(t)
		defer stop()
		w.start("a", "10.0.0.1")
		w.start("b", "10.0.0.2", "SERVICE_READY=http:/health")
		time.Sleep(12 * time.Second)
		got, err := r.Report(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for n, want := range []string{"tcp 10.0.0.1:80: connection refused, for 12s", "http http://10.0.0.2:80/health: connection refused, for 12s"} {
			if is := got.Containers[n].Instances[0].Probe; is != want {
				t.Errorf("%q, want %q", is, want)
			}
		}
	})
}

// Changed reports news, and keeps at most one value for an absent listener.
func TestChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		r, stop := w.run(t)
		defer stop()
		told := func() (n int) {
			synctest.Wait()
			for {
				select {
				case <-r.Changed():
					n++
				default:
					return n
				}
			}
		}
		time.Sleep(100 * time.Millisecond)
		if n := told(); n != 1 {
			t.Errorf("told %d times after the start", n)
		}
		if _, err := r.Report(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := told(); n != 0 {
			t.Error("a report is no news")
		}
		w.start("a", "10.0.0.1")
		if n := told(); n != 1 {
			t.Errorf("told %d times of a container", n)
		}
	})
}

func TestMetricsOfWhatIsLeftOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		metrics := prometheus.NewRegistry()
		w.opts.Metrics = metrics
		w.Fail["register vm:refused:80"] = api.StatusError{Code: 403, Body: "Permission denied"}
		for n, id := range []string{"fine", "refused", "bad", "nobodys"} {
			address := fmt.Sprintf("10.0.0.%d", n+1)
			w.listen(address + ":80")
			c := w.create(id, address)
			switch id {
			case "bad":
				c.Config.Env = []string{"SERVICE_READY=maybe"}
			case "nobodys":
				c.Config.ExposedPorts = nil
			default:
				c.Config.Env = []string{"SERVICE_NAME=shop"}
			}
		}
		_, stop := w.run(t)
		defer stop()
		value := func(name string) float64 {
			t.Helper()
			families, err := metrics.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range families {
				if f.GetName() == name {
					return f.Metric[0].GetGauge().GetValue() + f.Metric[0].GetCounter().GetValue()
				}
			}
			t.Fatalf("no metric %s", name)
			return 0
		}
		w.expect(t, time.Second, "vm:fine:80")
		if n := value("berth_registrar_left_out"); n != 1 {
			t.Errorf("%v are left out, want the one that somebody meant", n)
		}
		if n := value("berth_registrar_refusals_total"); n != 1 {
			t.Errorf("%v refusals", n)
		}
		time.Sleep(3 * time.Minute)
		if n := value("berth_registrar_refusals_total"); n < 3 || n > 5 {
			t.Errorf("%v refusals after three resyncs", n)
		}
		w.die("bad")
		time.Sleep(time.Second)
		if n := value("berth_registrar_left_out"); n != 0 {
			t.Errorf("%v are left out", n)
		}
	})
}

// A misspelt label is named once, with its container and the label that may be meant.
func TestLineOfAMisspeltLabel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		w.listen("10.0.0.1:80")
		c := w.create("web_1", "10.0.0.1", "SERVICE_NMAE=shop")
		c.Config.Labels = map[string]string{"SERVICE_ROUTE_HOSTS": "shop.example.com", "SERVICE_STAGE": "test"}
		_, stop := w.run(t)
		defer stop()
		time.Sleep(2 * time.Minute)
		var got []string
		for line := range strings.Lines(w.log.String()) {
			if strings.Contains(line, "level=WARN") {
				_, line, _ = strings.Cut(strings.TrimSpace(line), "level=WARN ")
				got = append(got, line)
			}
		}
		want := []string{
			`msg="ignored SERVICE_NMAE of web_1: unknown key, did you mean SERVICE_NAME?" container=web_1 reason="registered, but SERVICE_NMAE is an unknown key: did you mean SERVICE_NAME?"`,
			`msg="ignored SERVICE_ROUTE_HOSTS of web_1: unknown key, did you mean SERVICE_ROUTE_HOST?" container=web_1 reason="registered, but port 80/tcp: no route: SERVICE_ROUTE_HOSTS is an unknown key: did you mean SERVICE_ROUTE_HOST?"`,
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("the log has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

// If the same process is probed again, or at another address, its time stays, unless it is late.
func TestReadyAtOfTheSameProcess(t *testing.T) {
	c := containerOf("a", "10.0.0.1")
	s := known(Options{}, c)
	r := New(Options{})
	r.state = s
	is, at := s.containers["a"], time.Unix(1, 0)
	is.instances[0].found(at)
	is.member = &member{container: "a"}
	s.wishes(wish{member: is.member, is: readyAnew})
	i := is.instances[0]
	if i.ready || !i.readyAt.Equal(at) {
		t.Errorf("asked anew: ready %t, since %v", i.ready, i.readyAt)
	}
	i.found(time.Unix(2, 0))
	if !i.ready || !i.readyAt.Equal(at) {
		t.Errorf("ready anew: ready %t, since %v", i.ready, i.readyAt)
	}

	in := i.desired.Instance
	fake := agenttest.New()
	if err := (agent.Agent{Client: fake, Log: slog.New(slog.DiscardHandler)}).Apply(t.Context(), agent.Change{Register: true, Desired: agent.Prepare(in)}); err != nil {
		t.Fatal(err)
	}
	s.holds(t, fake)
	in.Ready.Address = "10.0.0.9:80"
	if p := s.carry([]*instance{i}, in); p == nil || !p.ready || !p.readyAt.Equal(at) {
		t.Errorf("probed elsewhere: %+v", p)
	}

	i.probe = &probe{readyAt: at, cancel: func() {}}
	r.observe(probed{probe: i.probe, late: errors.New("refused")})
	r.observe(probed{probe: i.probe, at: time.Unix(3, 0)})
	if !i.readyAt.Equal(time.Unix(3, 0)) {
		t.Errorf("late and then ready: since %v", i.readyAt)
	}
}
