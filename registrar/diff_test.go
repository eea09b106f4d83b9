package registrar

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"
	"pgregory.net/rapid"
)

// agent does what a Consul agent does to what it holds (seen with Consul 1.20): a registration keeps the checks that are
// there with their state, maintenance mode is a check, and a service takes its checks with it.
func (h held) put(r *api.AgentServiceRegistration) {
	h.services[r.ID] = &api.AgentService{ID: r.ID, Service: r.Name, Tags: r.Tags, Meta: maps.Clone(r.Meta), Address: r.Address, Port: r.Port, Weights: *r.Weights}
	for _, c := range r.Checks {
		is := &api.AgentCheck{CheckID: c.CheckID, Name: c.Name, Status: c.Status, Notes: c.Notes, ServiceID: r.ID}
		if before := h.checks[c.CheckID]; before != nil {
			is.Status, is.Output = before.Status, before.Output
		}
		h.checks[c.CheckID] = is
	}
}

func (h held) remove(id string) {
	delete(h.services, id)
	maps.DeleteFunc(h.checks, func(_ string, c *api.AgentCheck) bool { return c.ServiceID == id })
}

func (h held) maintain(id, reason string) {
	h.checks[maintenanceID+id] = &api.AgentCheck{CheckID: maintenanceID + id, Status: api.HealthCritical, Notes: reason, ServiceID: id}
}

func (h held) apply(c change) {
	for _, s := range c.deregister {
		h.remove(s.ID)
	}
	for _, w := range c.register {
		h.put(w.registration())
	}
	for _, w := range c.drain {
		h.maintain(w.ID, w.drain)
	}
	for _, id := range c.resume {
		delete(h.checks, maintenanceID+id)
	}
	for _, id := range c.uncheck {
		delete(h.checks, id)
	}
}

func nothing() held {
	return held{map[string]*api.AgentService{}, map[string]*api.AgentCheck{}}
}

func holding(instances ...Instance) held {
	h := nothing()
	for _, in := range instances {
		h.put(wanted{Instance: in}.registration())
	}
	return h
}

func owned(id, container, owner string) Instance {
	return Instance{ID: id, Name: "app", Port: 80, Container: container, Meta: map[string]string{metaOwner: owner, metaContainer: container}}
}

var me = ownership{owner: "me"}

// For whatever is wanted and held: applying the difference makes the owner's registrations what is wanted, touches
// nobody else's and nobody's maintenance, and leaves no difference; the order of things does not matter.
func TestDiffProperty(t *testing.T) {
	instance := func(owner string) *rapid.Generator[Instance] {
		return rapid.Custom(func(t *rapid.T) Instance {
			in := owned(fmt.Sprint("id", rapid.IntRange(0, 8).Draw(t, "id")), fmt.Sprint("c", rapid.IntRange(0, 4).Draw(t, "container")), owner)
			in.Port = rapid.IntRange(80, 82).Draw(t, "port")
			in.Tags = rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b"}), 0, 2).Draw(t, "tags")
			for range rapid.IntRange(0, 2).Draw(t, "checks") {
				in.Checks = append(in.Checks, Check{Definition: api.AgentServiceCheck{HTTP: rapid.SampledFrom([]string{"/a", "/b"}).Draw(t, "url")}})
			}
			if rapid.Bool().Draw(t, "ttl") {
				in.Checks = append(in.Checks, Check{TTL: time.Minute})
			}
			return in
		})
	}
	want := rapid.Custom(func(t *rapid.T) wanted {
		return wanted{
			Instance: instance("me").Draw(t, "instance"),
			notReady: rapid.SampledFrom([]string{"", "connection refused"}).Draw(t, "notReady"),
			drain:    rapid.SampledFrom([]string{"", automatic + "stopping"}).Draw(t, "drain"),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		have := nothing()
		for _, w := range rapid.SliceOf(want).Draw(t, "have") {
			have.put(w.registration())
			if reason := rapid.SampledFrom([]string{"", automatic + "stopping", "by hand"}).Draw(t, "maintenance"); reason != "" {
				have.maintain(w.ID, reason)
			}
		}
		for _, in := range rapid.SliceOfN(instance("other"), 0, 4).Draw(t, "others") {
			have.remove(in.ID)
			have.put(wanted{Instance: in}.registration())
		}
		others, byHand := map[string]*api.AgentService{}, map[string]bool{}
		for id, s := range have.services {
			if !me.owns(s) {
				others[id] = s
			} else if reason, on := have.maintenance(id); on && reason == "by hand" {
				byHand[id] = true
			}
		}

		all := rapid.SliceOf(want).Draw(t, "want")
		var instances []Instance
		for _, w := range all {
			instances = append(instances, w.Instance)
		}
		kept, refused := unique(instances, have, me)
		if len(kept)+len(refused) != len(all) {
			t.Fatalf("%d kept and %d refused of %d", len(kept), len(refused), len(all))
		}
		byID := map[string]wanted{} // a container does not want one port twice
		for _, in := range kept {
			for _, w := range all {
				if cmp.Equal(w.Instance, in) {
					byID[in.ID] = w
				}
			}
		}
		target := slices.Collect(maps.Values(byID))

		have.apply(diff(target, have, me, nil))
		if c := diff(target, have, me, nil); c.size() != 0 {
			t.Fatalf("after applying the difference there is still one: %+v", c)
		}
		for id, s := range others {
			if have.services[id] != s {
				t.Fatalf("%s belongs to somebody else and was changed", id)
			}
		}
		for id := range byHand {
			if reason, _ := have.maintenance(id); byID[id].ID != "" && reason != "by hand" {
				t.Fatalf("%s was put into maintenance by hand and is not any more", id)
			}
		}
		for id, w := range byID {
			if _, on := have.maintenance(id); on != (w.drain != "" || byHand[id]) {
				t.Fatalf("%s: maintenance is %v, drain %q", id, on, w.drain)
			}
		}
	})
}

func TestUnique(t *testing.T) {
	first, second := owned("app", "one", "me"), owned("app", "two", "me")
	foreign := nothing()
	foreign.services["app"] = &api.AgentService{ID: "app"}
	leftover := nothing()
	leftover.services["app"] = &api.AgentService{ID: "app", Service: "app"}
	tests := []struct {
		name   string
		have   held
		own    ownership
		keeps  string
		reason string
	}{
		{"the older container", nothing(), me, "one", "held by container one"},
		{"the one that is registered", holding(second), me, "two", "held by container two"},
		{"somebody else's", foreign, me, "", "not berth's on this host"},
		{"somebody else's, though Registrator's are taken over", foreign, ownership{"me", registratorIDs("vm")}, "", "not berth's on this host"},
		{"Registrator's, with an ID from a label", leftover, ownership{"me", registratorIDs("vm")}, "one", "held by container one"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			kept, refused := unique([]Instance{first, second}, tt.have, tt.own)
			got := ""
			for _, in := range kept {
				got += in.Container
			}
			if got != tt.keeps {
				t.Errorf("kept %q, want %q", got, tt.keeps)
			}
			if len(kept)+len(refused) != 2 {
				t.Errorf("kept %d, refused %d of 2", len(kept), len(refused))
			}
			for _, r := range refused {
				if !strings.Contains(r.reason, tt.reason) {
					t.Errorf("reason %q does not say %q", r.reason, tt.reason)
				}
			}
		})
	}
}

func TestAdoption(t *testing.T) {
	have := nothing()
	for _, id := range []string{"vm:app_1:80", "vm:gone_1:53:udp", "other:app_1:80", "vm:by-hand", "vmm:app_1:80", "vm:app_1:80:tcp"} {
		have.services[id] = &api.AgentService{ID: id, Service: "app"}
	}
	have.services["vm:theirs_1:80"] = &api.AgentService{ID: "vm:theirs_1:80", Meta: map[string]string{metaOwner: "them"}}
	want := []wanted{{Instance: owned("vm:app_1:80", "one", "me")}}
	c := diff(want, have, ownership{"me", registratorIDs("vm")}, nil)
	if len(c.register) != 1 || c.register[0].ID != "vm:app_1:80" {
		t.Errorf("registers %+v, want the one that is wanted, now with its owner", c.register)
	}
	if len(c.deregister) != 1 || c.deregister[0].ID != "vm:gone_1:53:udp" {
		t.Errorf("deregisters %+v, want the leftover alone", c.deregister)
	}
	if c := diff(want, have, me, nil); len(c.deregister) != 0 {
		t.Errorf("deregisters %+v without having been told to adopt", c.deregister)
	}
}

func TestDiffLeavesUnknownContainers(t *testing.T) {
	have := holding(owned("a", "one", "me"), owned("b", "two", "me"))
	c := diff(nil, have, me, map[string]bool{"one": true})
	if len(c.deregister) != 1 || c.deregister[0].ID != "b" {
		t.Errorf("deregisters %v, want b alone: container one could not be inspected", c.deregister)
	}
}

func TestRegistration(t *testing.T) {
	in := owned("a", "one", "me")
	in.Weight = 5
	in.Checks = []Check{
		{Definition: api.AgentServiceCheck{HTTP: "http://x/", Interval: "10s"}},
		{Definition: api.AgentServiceCheck{TCP: "x:1", Interval: "10s"}, Status: api.HealthWarning},
		{TTL: time.Hour, Health: true},
	}
	r := wanted{Instance: in, health: "unhealthy", notReady: "refused"}.registration()
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
	if in.Meta[metaChecks] != "" {
		t.Error("the instance's own metadata was changed")
	}
	healthy := wanted{Instance: in, health: "healthy", notReady: "another reason"}.registration()
	if healthy.Meta[metaChecks] != r.Meta[metaChecks] {
		t.Error("the fingerprint differs, though only a status and a reason do")
	}
	if ready := (wanted{Instance: in}).registration(); ready.Meta[metaChecks] == r.Meta[metaChecks] {
		t.Error("the fingerprint is the same, though a check is gone")
	}
}

func TestBeats(t *testing.T) {
	now := time.Unix(1e9, 0)
	in := owned("a", "one", "me")
	in.Checks = []Check{{TTL: 30 * time.Second}, {TTL: 24 * time.Hour, Health: true}, {Definition: api.AgentServiceCheck{TCP: "x:1"}}}
	w := wanted{Instance: in, health: "healthy", output: "fine"}
	have := nothing()
	have.put(w.registration())
	told := map[string]time.Time{}
	step := func(what string, wantDue, wantNext string) {
		t.Helper()
		due, next := beats([]wanted{w}, have, told, now)
		var got []string
		for _, b := range due {
			got = append(got, b.check+" "+b.status+" "+b.output)
			told[b.check] = now
			have.checks[b.check].Status, have.checks[b.check].Output = b.status, b.output
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
	w.health, w.output = "unhealthy", "broken"
	step("the health has changed", "a:check-2 critical broken", "10s")
	have.checks["a:check-1"].Status = api.HealthCritical // it expired while Consul was away
	step("Consul has forgotten", "a:check-1 passing the container runs", "10s")
}
