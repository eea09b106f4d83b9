package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"
	"pgregory.net/rapid"

	"berth/deploy/testenv/agenttest"
	"berth/registrar/label"
	"berth/templates/claim"
)

func owned(id, container, owner string) label.Instance {
	return label.Instance{ID: id, Name: "app", Port: 80, Container: container, Meta: map[string]string{label.MetaOwner: owner, label.MetaContainer: container}}
}

// a1 is the instance a, as far as needed for changes other than a registration.
var a1 = Desired{Instance: label.Instance{ID: "a"}}

func agentOf(fake *agenttest.Agent) Agent {
	return Agent{Client: fake, Log: slog.New(slog.DiscardHandler)}
}

func read(t testing.TB, a Agent) State {
	t.Helper()
	state, err := a.Read(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	return state
}

// For any desired and held state: applying the difference makes the registration as desired, never changes maintenance set
// by hand, leaves no difference, and touches nothing else.
func TestDiffProperty(t *testing.T) {
	desired := rapid.Custom(func(t *rapid.T) Desired {
		in := owned("id", fmt.Sprint("c", rapid.IntRange(0, 4).Draw(t, "container")), "me")
		in.Port = rapid.IntRange(80, 82).Draw(t, "port")
		in.Tags = rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b"}), 0, 2).Draw(t, "tags")
		in.Weight = rapid.IntRange(0, 2).Draw(t, "weight")
		if rapid.Bool().Draw(t, "meta") {
			in.Meta["more"] = rapid.SampledFrom([]string{"a", "b"}).Draw(t, "value")
		}
		for range rapid.IntRange(0, 2).Draw(t, "checks") {
			in.Checks = append(in.Checks, label.Check{Definition: api.AgentServiceCheck{HTTP: rapid.SampledFrom([]string{"/a", "/b"}).Draw(t, "url")}})
		}
		if rapid.Bool().Draw(t, "ttl") {
			in.Checks = append(in.Checks, label.Check{TTL: time.Minute})
		}
		d := Desired{Instance: in}
		if rapid.Bool().Draw(t, "prepared") {
			d = Prepare(in)
		}
		d.NotReady = rapid.SampledFrom([]string{"", "connection refused"}).Draw(t, "notReady")
		d.Drain = rapid.SampledFrom([]string{"", Automatic + "stopping"}).Draw(t, "drain")
		return d
	})
	rapid.Check(t, func(rt *rapid.T) {
		fake := agenttest.New()
		a := agentOf(fake)
		fake.Put(Desired{Instance: owned("other", "c0", "other")}.registration())
		other := fake.Services["other"]
		maintained, held := "", rapid.Bool().Draw(rt, "held")
		if held {
			fake.Put(desired.Draw(rt, "have").registration())
			maintained = rapid.SampledFrom([]string{"", Automatic + "stopping", "by hand"}).Draw(rt, "maintenance")
		}
		if maintained != "" {
			fake.Maintain("id", maintained)
		}
		d := desired.Draw(rt, "desired")
		if err := a.Apply(t.Context(), Diff(d, read(t, a)["id"])); err != nil {
			rt.Fatal(err)
		}
		have := read(t, a)["id"]
		if c := Diff(d, have); !c.Empty() {
			rt.Fatalf("after applying the difference there is still one: %+v", c)
		}
		if d.Drain == "" && !d.Same(have) {
			rt.Fatalf("the agent holds %+v, want %+v", have, d)
		}
		if d.Drain != "" && held != have.Held() {
			rt.Fatal("an instance out of service was registered or deregistered")
		}
		reason, on := have.Maintenance()
		if byHand := maintained == "by hand"; on != (byHand || (d.Drain != "" && held)) || (byHand && reason != "by hand") {
			rt.Fatalf("maintenance is %v (%s), it was %q, drain %q", on, reason, maintained, d.Drain)
		}
		if fake.Services["other"] != other || len(fake.Services) > 2 {
			rt.Fatal("another instance was changed")
		}
	})
}

// What is compared is what was sent: the prepared form equals the one computed on the spot.
func TestSameIsTheRegistration(t *testing.T) {
	for name, change := range map[string]func(*label.Instance){
		"name":    func(in *label.Instance) { in.Name = "b" },
		"tags":    func(in *label.Instance) { in.Tags = []string{"x"} },
		"meta":    func(in *label.Instance) { in.Meta = map[string]string{label.MetaOwner: "me"} },
		"value":   func(in *label.Instance) { in.Meta = map[string]string{label.MetaOwner: "me", label.MetaContainer: "x"} },
		"address": func(in *label.Instance) { in.Address = "192.0.2.1" },
		"port":    func(in *label.Instance) { in.Port = 81 },
		"weight":  func(in *label.Instance) { in.Weight = 7 },
		"check": func(in *label.Instance) {
			in.Checks = []label.Check{{Definition: api.AgentServiceCheck{TCP: "x:2"}}}
		},
		"no check": func(in *label.Instance) { in.Checks = nil },
	} {
		in := owned("a", "one", "me")
		in.Checks = []label.Check{{Definition: api.AgentServiceCheck{TCP: "x:1"}}}
		fake := agenttest.New()
		fake.Put(Desired{Instance: in}.registration())
		have := read(t, agentOf(fake))["a"]
		if !Prepare(in).Same(have) || !(Desired{Instance: in}).Same(have) {
			t.Fatal("what was registered is not the same")
		}
		change(&in)
		if Prepare(in).Same(have) || (Desired{Instance: in}).Same(have) {
			t.Errorf("another %s is taken for the same", name)
		}
	}
}

func TestRegistration(t *testing.T) {
	in := owned("a", "one", "me")
	in.Weight = 5
	in.Checks = []label.Check{
		{Definition: api.AgentServiceCheck{HTTP: "http://x/", Interval: "10s"}},
		{Definition: api.AgentServiceCheck{TCP: "x:1", Interval: "10s"}, Status: api.HealthWarning},
		{TTL: time.Hour, Health: true},
	}
	r := Desired{Instance: in, Health: "unhealthy", NotReady: "refused"}.registration()
	if r.Weights.Passing != 5 {
		t.Errorf("weight %d", r.Weights.Passing)
	}
	var got []string
	for _, c := range r.Checks {
		got = append(got, c.CheckID+" "+c.Status)
	}
	want := []string{"a:check-1 passing", "a:check-2 warning", "a:check-3 critical", "a:ready critical"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("checks (-want +got):\n%s", d)
	}
	if in.Meta[label.MetaChecks] != "" {
		t.Error("the instance's own metadata was changed")
	}
	healthy := Desired{Instance: in, Health: "healthy", NotReady: "another reason"}.registration()
	if healthy.Meta[label.MetaChecks] != r.Meta[label.MetaChecks] {
		t.Error("the fingerprint differs, though only a status and a reason do")
	}
	if ready := (Desired{Instance: in}).registration(); ready.Meta[label.MetaChecks] == r.Meta[label.MetaChecks] {
		t.Error("the fingerprint is the same, though a check is gone")
	}
}

func TestHeartbeats(t *testing.T) {
	now := time.Unix(1e9, 0)
	in := owned("a", "one", "me")
	in.Checks = []label.Check{{TTL: 30 * time.Second}, {TTL: 24 * time.Hour, Health: true}, {Definition: api.AgentServiceCheck{TCP: "x:1"}}}
	d := Desired{Instance: in, Health: "healthy", Output: "fine"}
	fake := agenttest.New()
	fake.Put(d.registration())
	have := read(t, agentOf(fake))["a"]
	told := map[string]time.Time{}
	step := func(what string, wantDue, wantNext string) {
		t.Helper()
		var got []string
		var next time.Time
		for _, h := range d.Heartbeats(have, "the container runs") {
			due := h.Due(have, told[h.Check])
			if !due.After(now) {
				got = append(got, h.Check+" "+h.Status+" "+h.Output)
				told[h.Check] = now
				h.Said(have)
				due = h.Due(have, now)
			}
			if next.IsZero() || due.Before(next) {
				next = due
			}
		}
		if s := strings.Join(got, ", "); s != wantDue || next.Sub(now).String() != wantNext {
			t.Errorf("%s: due %q, next in %v; want %q, %s", what, s, next.Sub(now), wantDue, wantNext)
		}
	}
	step("just registered: word at once, or an agent's restart would lose the state", "a:check-1 passing the container runs, a:check-2 passing fine", "10s")
	now = now.Add(5 * time.Second)
	step("nothing new", "", "5s")
	now = now.Add(5 * time.Second)
	step("a third of the TTL", "a:check-1 passing the container runs", "10s")
	d.Health, d.Output = "unhealthy", "broken"
	step("the health has changed", "a:check-2 critical broken", "10s")
	have.Checks["a:check-1"].Status = api.HealthCritical // it expired while Consul was away
	step("Consul has forgotten", "a:check-1 passing the container runs", "10s")
}

// Every call has its deadline, and a hanging agent is not awaited longer.
func TestDeadlines(t *testing.T) {
	in := owned("a", "one", "me")
	service := &api.AgentService{ID: "a"}
	for name, do := range map[string]func(Agent, *testing.T) error{
		"services": func(a Agent, t *testing.T) error { _, err := a.Read(t.Context(), ""); return err },
		"checks":   func(a Agent, t *testing.T) error { _, err := a.Read(t.Context(), "a"); return err },
		"register": func(a Agent, t *testing.T) error {
			return a.Apply(t.Context(), Change{Desired: Prepare(in), Register: true})
		},
		"enable":  func(a Agent, t *testing.T) error { return a.Apply(t.Context(), Change{Desired: a1, Maintain: true}) },
		"disable": func(a Agent, t *testing.T) error { return a.Apply(t.Context(), Change{Desired: a1, Resume: true}) },
		"deregister": func(a Agent, t *testing.T) error {
			return a.Apply(t.Context(), Change{Desired: Registered{AgentService: service}.Desired(), Deregister: true})
		},
		"check deregister": func(a Agent, t *testing.T) error {
			return a.Apply(t.Context(), Change{Desired: a1, Uncheck: []string{"a:ready"}})
		},
		"update": func(a Agent, t *testing.T) error { return a.Beat(t.Context(), Heartbeat{Check: "a:check-1"}) },
	} {
		synctest.Test(t, func(t *testing.T) {
			fake := agenttest.New()
			fake.Hang[name] = true
			before := time.Now()
			if err := do(agentOf(fake), t); err == nil || time.Since(before) != Timeout {
				t.Errorf("%s: %v after %v, want an error after %v", name, err, time.Since(before), Timeout)
			}
		})
	}
}

// A refusal is distinguished from a failure, and the rest of the change is not made.
func TestRefusal(t *testing.T) {
	for code, refused := range map[int]bool{400: true, 403: true, 429: false, 500: false} {
		fake := agenttest.New()
		fake.Fail["register"] = api.StatusError{Code: code, Body: "no"}
		err := agentOf(fake).Apply(t.Context(), Change{Desired: Prepare(owned("a", "one", "me")), Register: true, Uncheck: []string{"a:ready"}})
		var refusal *Refusal
		if got := errors.As(err, &refusal); err == nil || got != refused || fake.Called("check deregister") != 0 {
			t.Errorf("%d: %v, refusal %v, %d checks removed; want an error, %v, 0", code, err, got, fake.Called("check deregister"), refused)
		}
	}
	fake := agenttest.New()
	fake.Fail["deregister"] = api.StatusError{Code: 404, Body: "Unknown service ID"}
	fake.Fail["check deregister"] = fake.Fail["deregister"]
	for _, c := range []Change{{Desired: a1, Deregister: true}, {Desired: a1, Uncheck: []string{"a:ready"}}} {
		if err := agentOf(fake).Apply(t.Context(), c); err != nil {
			t.Errorf("what is gone already is no failure: %v", err)
		}
	}
	if err := agentOf(fake).Apply(t.Context(), Change{Desired: a1, Maintain: true}); !IsNotFound(err) {
		t.Errorf("draining what is gone: %v, want an error that says so", err)
	}
}

// A registration contains when its instance became ready, and nothing is registered again only because of that.
func TestReadyAt(t *testing.T) {
	fake := agenttest.New()
	a := agentOf(fake)
	d := Prepare(owned("id", "c", "me"))
	for _, step := range []struct {
		at     time.Time
		change bool // a registration is needed
		want   string
	}{
		{time.Time{}, true, ""},
		{time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC), false, "2026-11-27T12:00:00.000Z"},
		{time.Date(2026, 11, 27, 13, 0, 0, 123456789, time.UTC), false, "2026-11-27T13:00:00.123Z"},
		{time.Time{}, false, ""},
	} {
		d.ReadyAt = step.at
		c := Diff(d, read(t, a)["id"])
		if c.Empty() == step.change {
			t.Errorf("ready at %v: %+v", step.at, c)
		}
		c.Register = true
		if err := a.Apply(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		if got := fake.Services["id"].Meta[claim.MetaReadyAt]; got != step.want {
			t.Errorf("Consul has %q, want %q", got, step.want)
		}
		if have := read(t, a)["id"]; !c.Made(have) {
			t.Errorf("ready at %v: it does not count as made", step.at)
		}
	}
	fake.Services["id"].Meta["more"] = "x"
	if d.Same(read(t, a)["id"]) {
		t.Error("one pair more does not count")
	}
}

// Each change is one line that names its subject, as far as known.
func TestLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		a := Agent{Client: agenttest.New(), Log: slog.New(slog.NewTextHandler(&log, nil))}
		named := Prepare(owned("id", strings.Repeat("0123456789abcdef", 4), "me"))
		late, drained, ready := named, named, named
		late.NotReady, late.Waited = "connection refused", 30*time.Second
		drained.Of, drained.Drain = "web_1", claim.WithStop(Automatic+"it stops", time.Now())
		ready.Since = time.Now()
		time.Sleep(1500 * time.Millisecond)
		const names = " service=app instance=id container=0123456789ab"
		for _, tt := range []struct {
			change Change
			want   string
		}{
			{Change{Desired: named, Register: true}, `level=INFO msg="registered 0123456789ab as app on port 80 of the node"` + names + ` address="" port=80`},
			{Change{Desired: ready, Register: true}, `level=INFO msg="registered 0123456789ab as app on port 80 of the node"` + names + ` address="" port=80 took=1.5s`},
			{Change{Desired: late, Register: true}, `level=WARN msg="registered 0123456789ab as app on port 80 of the node, critical until it is ready"` + names + ` address="" port=80 reason="connection refused" waited=30s`},
			{Change{Desired: drained, Maintain: true}, `level=INFO msg="took app of web_1 out of service" service=app instance=id container=web_1 reason="it stops"`},
			{Change{Desired: named, Resume: true}, `level=INFO msg="app of 0123456789ab is back in service"` + names},
			{Change{Desired: named, Deregister: true}, `level=INFO msg="deregistered app of 0123456789ab"` + names},
			{Change{Desired: a1, Resume: true}, `level=INFO msg="a is back in service" instance=a`},
		} {
			log.Reset()
			if err := a.Apply(t.Context(), tt.change); err != nil {
				t.Fatal(err)
			}
			if _, got, _ := strings.Cut(strings.TrimSuffix(log.String(), "\n"), " "); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		}
	})
}
