//go:build e2e

package registrar_test

import (
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/registrar"
	"berth/registrar/agent"
	"berth/registrar/label"
)

// soon is how quickly the registrar reacts to an event on a busy machine.
const soon = 5 * time.Second

func TestE2ELife(t *testing.T) {
	l := newHarness(t)
	l.registrar(nil)

	t.Run("ready before it is registered", func(t *testing.T) {
		l := l.in(t)
		h := l.watch("slow")
		c := l.web("slow", "await go; serve 200")
		// This one comes later and is registered, so the registrar has seen the other one, too.
		other := l.app("quick")
		l.expect(soon, other.instance(8080), "passing")
		opened := time.Now()
		l.touch(c, "go")
		l.expect(soon, c.instance(8080), "passing")
		if at := h.expect(soon, "docker start", "passing"); at[1].Before(opened) {
			t.Errorf("it was registered %v before its port accepted", opened.Sub(at[1]))
		}
	})

	t.Run("stop", func(t *testing.T) {
		l := l.in(t)
		h := l.watch("stop")
		c := l.web("stop", "trap 'sleep 0.5; exit 0' TERM; serve 200")
		h.expect(soon, "docker start", "passing")
		l.docker("stop", c.id)
		at := h.expect(soon, "docker start", "passing", "docker kill 15", "maintenance", "docker die 0", "gone")
		t.Logf("docker stop: kill → maintenance seen in Consul %s; that → die %s; die → gone %s", ms(at[3].Sub(at[2])), ms(at[4].Sub(at[3])), ms(at[5].Sub(at[4])))
	})

	t.Run("kill", func(t *testing.T) {
		l := l.in(t)
		h := l.watch("kill")
		c := l.app("kill")
		h.expect(soon, "docker start", "passing")
		l.docker("kill", c.id)
		l.expect(soon, c.instance(8080), "")
		l.eventually(soon, "die and gone", func() error {
			if lines := h.lines(); !strings.HasSuffix(lines[len(lines)-1], "gone") {
				return errors.New("not yet")
			}
			return nil
		})
		all := h.all()
		died := slices.IndexFunc(all, func(e happening) bool { return e.what == "docker die 137" })
		if died < 0 {
			t.Fatal("it did not die")
		}
		t.Logf("docker kill: die → gone %s", ms(all[len(all)-1].at.Sub(all[died].at)))
	})

	t.Run("crash", func(t *testing.T) {
		l := l.in(t)
		h := l.watch("crash")
		c := l.web("crash", "serve 200")
		h.expect(soon, "docker start", "passing")
		l.touch(c, "end")
		at := h.expect(soon, "docker start", "passing", "docker die 3", "gone")
		t.Logf("crash: die → gone %s", ms(at[3].Sub(at[2])))
	})

	t.Run("crash with a restart policy", func(t *testing.T) {
		l := l.in(t)
		h := l.watch("again")
		c := l.web("again", "rm /tmp/end; serve 200", "--restart", "on-failure")
		h.expect(soon, "docker start", "passing")
		l.touch(c, "end")
		h.expect(20*time.Second, "docker start", "passing", "docker die 3", "gone", "docker start", "passing")
	})

	t.Run("docker restart", func(t *testing.T) {
		l := l.in(t)
		h := l.watch("restart")
		c := l.web("restart", "trap 'sleep 0.2; exit 0' TERM; serve 200")
		h.expect(soon, "docker start", "passing")
		l.docker("restart", c.id)
		h.expect(soon, "docker start", "passing", "docker kill 15", "maintenance", "docker die 0", "gone", "docker start", "passing")
	})

	t.Run("signals that do not stop, pause and unpause", func(t *testing.T) {
		l := l.in(t)
		h := l.watch("hup")
		c := l.web("hup", "trap '' HUP USR1; serve 200")
		h.expect(soon, "docker start", "passing")
		l.docker("kill", "--signal", "HUP", c.id)
		l.docker("kill", "--signal", "USR1", c.id)
		// Events are handled in order: the effect of the pause follows the effects of the signals.
		l.docker("pause", c.id)
		l.expect(soon, c.instance(8080), "maintenance")
		if in, err := l.instance(c.instance(8080)); err != nil || in.why != "berth registrar: the container is paused" {
			t.Errorf("it is out for the reason %q (%v)", in.why, err)
		}
		l.docker("unpause", c.id)
		at := h.expect(soon, "docker start", "passing", "docker kill 1", "docker kill 10", "docker pause", "maintenance", "docker unpause", "passing")
		t.Logf("pause → maintenance %s, unpause → passing %s", ms(at[5].Sub(at[4])), ms(at[7].Sub(at[6])))
	})

	t.Run("rename", func(t *testing.T) {
		l := l.in(t)
		c := l.app("old")
		l.expect(soon, c.instance(8080), "passing")
		renamed := c
		renamed.name = l.name + "-new"
		l.docker("rename", c.name, renamed.name)
		l.expect(soon, renamed.instance(8080), "passing")
		l.expect(soon, c.instance(8080), "")
	})

	t.Run("network disconnect and connect", func(t *testing.T) {
		l := l.in(t)
		h := l.watch("moving")
		c := l.app("moving")
		h.expect(soon, "docker start", "passing")
		l.docker("network", "disconnect", l.network, c.id)
		h.expect(soon, "docker start", "passing", "gone")
		l.docker("network", "connect", l.network, c.id)
		h.expect(soon, "docker start", "passing", "gone", "passing")
		if in, err := l.instance(c.instance(8080)); err != nil || in.Address != l.addressOn(c, l.network) {
			t.Errorf("it is registered at %q (%v), want %s", in.Address, err, l.addressOn(c, l.network))
		}
	})
}

// With KeepFailed, a container that ended with an error stays registered, out of service, until it is removed or runs again.
func TestE2EKeepFailed(t *testing.T) {
	l := newHarness(t)
	keep := func(o *registrar.Options, _ *label.Host) { o.KeepFailed = true }
	r := l.registrar(keep)
	failed, well := l.web("failed", "rm -f /tmp/end; serve 200"), l.web("well", "rm -f /tmp/end; trap 'exit 0' TERM; serve 200")
	l.expectOf(soon, "failed passing", "well passing")
	l.touch(failed, "end")
	l.docker("stop", well.id)
	l.expectOf(soon, "failed maintenance")
	if in, err := l.instance(failed.instance(8080)); err != nil || !strings.Contains(in.why, "exit code 3") {
		t.Errorf("it is out for the reason %q (%v)", in.why, err)
	}
	// A registrar that starts later finds a container that has lost its address.
	r.stop()
	l.registrar(keep)
	l.expectOf(0, "failed maintenance")
	l.docker("start", failed.id)
	l.expectOf(soon, "failed passing")
	l.touch(failed, "end")
	l.expectOf(soon, "failed maintenance")
	l.docker("rm", failed.id)
	l.expectOf(soon)
}

// With a harmless stop signal and the real one in SERVICE_STOP_SIGNAL, docker stop means: out of service, the drain time,
// the real signal, the end.
func TestE2EStopSignal(t *testing.T) {
	const drain = 500 * time.Millisecond
	l := newHarness(t)
	r := l.registrar(func(o *registrar.Options, _ *label.Host) { o.DrainTime = drain })
	h := l.watch("drained")
	c := l.app("drained", "--stop-signal", "SIGCONT", "--env", "SERVICE_STOP_SIGNAL=SIGTERM")
	h.expect(soon, "docker start", "passing")
	start := time.Now()
	l.docker("stop", "--time", "10", c.id)
	took := time.Since(start)
	at := h.expect(soon, "docker start", "passing", "docker kill 18", "maintenance", "docker kill 15", "docker die 0", "gone")
	t.Logf("drain time %s: docker stop took %s; kill 18 → maintenance %s → kill 15 %s → die %s", drain, ms(took), ms(at[3].Sub(at[2])), ms(at[4].Sub(at[3])), ms(at[5].Sub(at[4])))
	if drained := at[4].Sub(at[2]); drained < drain-50*time.Millisecond || took > 5*time.Second {
		t.Errorf("SIGTERM came %s after the sign, and docker stop took %s: want %s, and well inside 10 s", ms(drained), ms(took), drain)
	}

	// A hanging Consul does not prevent a container from stopping.
	l.docker("start", c.id)
	l.expect(soon, c.instance(8080), "passing")
	l.docker("pause", l.name+"-consul")
	start = time.Now()
	l.docker("stop", "--time", "10", c.id)
	took = time.Since(start)
	l.docker("unpause", l.name+"-consul")
	t.Logf("while Consul hangs docker stop took %s", ms(took))
	if took > 5*time.Second {
		t.Errorf("docker stop took %s while Consul hangs, want %s", ms(took), drain)
	}
	l.expect(30*time.Second, c.instance(8080), "")

	// Without a registrar, Docker ends it all the same.
	r.stop()
	l.docker("start", c.id)
	start = time.Now()
	l.docker("stop", "--time", "1", c.id)
	t.Logf("without a registrar docker stop --time 1 took %s", ms(time.Since(start)))
	if state := l.inspect(c.id, ".State.Status"); state != "exited" {
		t.Errorf("it is %s", state)
	}
}

// Two registrars share an agent and leave each other's registrations alone.
func TestE2EOwnership(t *testing.T) {
	l := newHarness(t)
	second := l.name + "-second"
	l.docker("network", "create", second)
	agent := l.consul.Agent()
	foreign := &api.AgentServiceRegistration{ID: "by-hand", Name: "by-hand", Port: 1}
	if err := agent.ServiceRegister(foreign); err != nil {
		t.Fatal(err)
	}

	l.registrar(nil)
	two := l.registrar(func(_ *registrar.Options, h *label.Host) { h.EngineID, h.Networks = second, []string{second} })
	a := l.app("a")
	b := l.app("b", "--network", second)
	custom := l.app("custom", "--env", "SERVICE_ID=my-own-id")
	both := []string{"a passing", "b passing", "custom passing"}
	l.expectOf(soon, both...)
	for id, owner := range map[string]string{a.instance(8080): l.name, b.instance(8080): second, "my-own-id": l.name} {
		in, err := l.instance(id)
		if err != nil || in.AgentService == nil || in.Meta["berth-owner"] != owner {
			t.Errorf("%s is not registered by %s (%v): %+v", id, owner, err, in.AgentService)
		}
	}

	// A container that claims a taken ID does not get it; the holder keeps it.
	claims := l.app("claims", "--env", "SERVICE_ID=my-own-id")
	foreigns := l.app("foreigns", "--env", "SERVICE_ID=by-hand")
	last := l.app("last")
	both = append(both, "last passing")
	l.expectOf(soon, both...)
	plan := planOf(t, l.newRegistrar(nil), claims, foreigns)
	for i, want := range []string{"service ID my-own-id is held by container " + custom.id[:12], "service ID by-hand is held by a registration that is not berth's"} {
		if len(plan[i].Reasons) != 1 || !strings.Contains(plan[i].Reasons[0], want) {
			t.Errorf("plan: %+v, want the reason %q", plan[i], want)
		}
	}

	// While one of them is away, the other removes none of its registrations.
	two.stop()
	l.docker("rm", "--force", b.id)
	l.docker("rm", "--force", a.id)
	l.expectOf(soon, "b passing", "custom passing", "last passing")
	third := l.registrar(func(_ *registrar.Options, h *label.Host) { h.EngineID, h.Networks = second, []string{second} })
	l.expectOf(soon, "custom passing", "last passing")
	third.stop()

	// The holder's end frees its ID.
	l.docker("rm", "--force", custom.id)
	l.eventually(soon, "the other container has the ID", func() error {
		in, err := l.instance("my-own-id")
		if err == nil && (in.AgentService == nil || in.Meta["berth-container"] != claims.id) {
			err = errors.New("it has not")
		}
		return err
	})
	l.docker("rm", "--force", last.id, claims.id)
	l.expectOf(soon)
	if in, err := l.instance("by-hand"); err != nil || in.AgentService == nil {
		t.Errorf("the foreign registration is gone (%v)", err)
	}
}

// Registrator's registrations are taken over: running containers stay registered all the time, others are removed. What
// merely looks similar is left alone.
func TestE2EAdopt(t *testing.T) {
	l := newHarness(t)
	c := l.app("web")
	address := l.addressOn(c, l.network)
	for id, s := range map[string]*api.AgentServiceRegistration{
		c.instance(8080):          {Name: "web", Address: address, Port: 8080, Tags: []string{"registrator"}},
		"e2e:" + l.name + "-x:80": {Name: "left-over", Address: "192.0.2.9", Port: 80},
		"other:web-1:80":          {Name: "web", Address: "192.0.2.9", Port: 80},
		"by-hand":                 {Name: "web", Address: "192.0.2.9", Port: 80},
		"e2e:of-another:80":       {Name: "web", Address: "192.0.2.9", Port: 80, Meta: map[string]string{"berth-owner": "another"}},
	} {
		s.ID = id
		if err := l.consul.Agent().ServiceRegister(s); err != nil {
			t.Fatal(err)
		}
	}
	ids := func() []string {
		all, err := l.instances()
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for id := range all {
			out = append(out, id)
		}
		slices.Sort(out)
		return out
	}

	// Without the flag, its registrations are untouched, and the container's ID counts as taken.
	r := l.registrar(nil)
	if got := ids(); len(got) != 5 {
		t.Errorf("without being told to adopt it has changed the registrations to %q", got)
	}
	r.stop()

	h := l.watch("web")
	seen := []string{"docker start", "passing", "passing", "passing", "passing"}
	h.expect(soon, seen...)
	l.registrar(func(o *registrar.Options, _ *label.Host) { o.Adopt = "e2e" })
	want := []string{"by-hand", c.instance(8080), "e2e:of-another:80", "other:web-1:80"}
	slices.Sort(want)
	if got := ids(); !slices.Equal(got, want) {
		t.Errorf("registered are %q, want %q", got, want)
	}
	in, err := l.instance(c.instance(8080))
	if err != nil || in.Meta["berth-owner"] != l.name || in.Meta["berth-container"] != c.id || len(in.Tags) != 0 || in.status != "passing" {
		t.Errorf("the adopted one is %+v, %s (%v)", in.AgentService, in.status, err)
	}
	h.expect(soon, seen...) // none of them has disappeared
}

func TestE2EFinder(t *testing.T) {
	l := newHarness(t)
	l.registrar(nil)
	c := l.web("two", "serve 200", "--expose", "8080", "--expose", "9090", "--env", "SERVICE_READY=none")
	other := l.app("other")
	// With two ports, the services' names end in the ports.
	l.expectOf(soon, "two-8080 passing", "two-9090 passing", "other passing")

	f := registrar.Finder{Agent: agent.Agent{Client: l.consul.Agent(), Log: slog.New(slog.DiscardHandler)}, Docker: dockerClient(t, "")}
	both := []string{c.instance(8080), c.instance(9090)}
	for name, tt := range map[string]struct {
		arg  string
		want []string
		err  string
	}{
		"name":                 {arg: c.name, want: both},
		"id":                   {arg: c.id, want: both},
		"beginning of the id":  {arg: c.id[:12], want: both},
		"service id":           {arg: c.instance(9090), want: both[1:]},
		"nothing":              {arg: l.name + "-nosuch", err: "is neither a container here nor a service ID"},
		"not registered":       {arg: l.name + "-consul", err: "is a container with no registered service: berth registrar --dry-run "},
		"another's service id": {arg: other.instance(8080), want: []string{other.instance(8080)}},
	} {
		t.Run(name, func(t *testing.T) {
			ids, err := f.Find(t.Context(), tt.arg)
			switch {
			case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
				t.Errorf("Find gives %q, %v, want an error with %q", ids, err, tt.err)
			case tt.err == "" && (err != nil || !slices.Equal(ids, tt.want)):
				t.Errorf("Find gives %q, %v, want %q", ids, err, tt.want)
			}
		})
	}

	// An instance that an operator takes out stays out, whatever the registrar does about the container meanwhile.
	if err := f.Maintain(t.Context(), both[0], true, "new disk"); err != nil {
		t.Fatal(err)
	}
	l.expectOf(soon, "two-8080 maintenance", "two-9090 passing", "other passing")
	l.docker("pause", c.id)
	l.expectOf(soon, "two-8080 maintenance", "two-9090 maintenance", "other passing")
	l.docker("unpause", c.id)
	l.expectOf(soon, "two-8080 maintenance", "two-9090 passing", "other passing")
	if in, err := l.instance(both[0]); err != nil || in.why != "berth drain: new disk" {
		t.Errorf("it is out for the reason %q (%v)", in.why, err)
	}
	plan := planOf(t, l.newRegistrar(nil), c)[0]
	if len(plan.Instances) != 2 || plan.Instances[0].String() != "out of service: berth drain: new disk" || plan.Instances[1].String() != "registered" {
		t.Errorf("plan: %+v", plan)
	}
	if err := f.Maintain(t.Context(), both[0], false, ""); err != nil {
		t.Fatal(err)
	}
	l.expectOf(soon, "two-8080 passing", "two-9090 passing", "other passing")
	if err := f.Maintain(t.Context(), "nosuch", true, ""); err == nil {
		t.Error("an instance that does not exist can be drained")
	}
}

// Plan lists every running container, and changes nothing.
func TestE2EPlan(t *testing.T) {
	l := newHarness(t)
	fine := l.app("fine", "--env", "SERVICE_TAGS=a,b")
	ignored := l.app("ignored", "--env", "SERVICE_IGNORE=1")
	elsewhere := l.app("elsewhere", "--network", "bridge")
	portless := l.run("portless", "--stop-signal", "SIGTERM", "--entrypoint", "sh", os.Getenv("IMAGE_HAPROXY"), "-c", "while :; do sleep 1; done")
	badly := l.app("badly", "--env", "SERVICE_READY=maybe")
	consul := container{name: l.name + "-consul"}

	r := l.newRegistrar(nil)
	plans := planOf(t, r, fine, ignored, elsewhere, portless, badly, consul)
	if in := plans[0].Instances; len(in) != 1 || in[0].ID != fine.instance(8080) || in[0].Service != "fine" || in[0].State != registrar.ToBeRegistered ||
		!slices.Equal(in[0].Tags, []string{"a", "b"}) || !strings.HasPrefix(in[0].Endpoint, l.addressOn(fine, l.network)+":8080") {
		t.Errorf("%+v", plans[0])
	}
	for i, want := range []string{"", "SERVICE_IGNORE", "it is not on " + l.network, "it exposes no port", "SERVICE_READY", "SERVICE_IGNORE"} {
		if p := plans[i]; i > 0 && (len(p.Instances) > 0 || len(p.Reasons) != 1 || !strings.Contains(p.Reasons[0], want)) {
			t.Errorf("%s: %+v, want the reason %q", p.Container, p, want)
		}
	}
	running := len(strings.Fields(l.docker("ps", "--quiet", "--no-trunc", "--filter", "name="+l.name)))
	if running != len(plans) {
		t.Errorf("%d containers run, and %d are planned", running, len(plans))
	}
	l.expectOf(0) // the plan registers nothing

	if err := l.newRegistrar(nil).Once(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.expectOf(0, "fine passing")
	if in := planOf(t, l.newRegistrar(nil), fine)[0].Instances; len(in) != 1 || in[0].State != registrar.Registered {
		t.Errorf("after Once: %+v", in)
	}
}

// planOf returns the plan for these containers, in this order.
func planOf(t *testing.T, r *running, containers ...container) (out []registrar.Planned) {
	t.Helper()
	report, err := r.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range containers {
		one, err := report.Only(c.name)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, one.Containers...)
	}
	return out
}
