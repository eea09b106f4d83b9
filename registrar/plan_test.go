package registrar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"
	"pgregory.net/rapid"

	"berth/deploy/testenv/agenttest"
	"berth/registrar/agent"
	"berth/registrar/docker"
	"berth/registrar/label"
)

var me = agent.Ownership{Owner: "me"}

// known returns a state in which Docker was listed and the host described, with the given containers.
func known(opts Options, containers ...label.Container) *state {
	opts.ReadyTimeout = 30 * time.Second
	s := newState(opts)
	s.describe(label.Host{Name: "vm", EngineID: "me", Networks: []string{"front"}, NodeAddress: "192.0.2.1"}, s.tick())
	var ids []string
	for _, c := range containers {
		ids = append(ids, c.ID)
	}
	s.list(ids, s.tick())
	for _, c := range containers {
		s.inspected(s.containers[c.ID], docker.Inspected{Running: true, Container: c}, s.tick())
	}
	return s
}

// holds makes Consul hold something, according to a new read.
func (s *state) holds(t interface{ Fatal(...any) }, fake *agenttest.Agent) {
	began := s.tick()
	have, err := agent.Agent{Client: fake}.Read(context.Background(), "")
	if err != nil {
		t.Fatal(err)
	}
	if n := s.consulHolds(have, began); n > 0 {
		t.Fatal("changes that were made are not held: ", n)
	}
	s.adopt()
}

func allReady(s *state) {
	for _, t := range s.containers {
		for _, i := range t.instances {
			i.ready = true
		}
	}
}

// For any containers and any registrations: carrying out plans until nothing is left to do makes the owner's registrations
// equal to what the containers register, and changes no foreign registration or maintenance.
func TestPlanProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		fake := agenttest.New()
		a := agent.Agent{Client: fake, Log: slog.New(slog.DiscardHandler)}
		put := func(id, container, owner string, port int) {
			in := owned(id, container, owner)
			in.Port = port
			_ = a.Apply(context.Background(), agent.Change{Register: true, Desired: agent.Prepare(in)})
		}
		id, container := rapid.IntRange(0, 8), rapid.IntRange(0, 4)
		byHand := map[string]bool{}
		for range rapid.IntRange(0, 5).Draw(t, "have") {
			id := fmt.Sprint("id", id.Draw(t, "id"))
			put(id, fmt.Sprint("c", container.Draw(t, "container")), "me", rapid.IntRange(80, 81).Draw(t, "port"))
			switch reason := rapid.SampledFrom([]string{"", agent.Automatic + "paused", "by hand"}).Draw(t, "maintenance"); reason {
			case "":
			default:
				fake.Maintain(id, reason)
				byHand[id] = reason == "by hand"
			}
		}
		others := map[string]*api.AgentService{}
		for range rapid.IntRange(0, 3).Draw(t, "others") {
			id := fmt.Sprint("id", id.Draw(t, "id"))
			fake.Remove(id)
			delete(byHand, id)
			put(id, "cx", "other", 80)
			others[id] = fake.Services[id]
		}
		var containers []label.Container
		for n := range rapid.IntRange(0, 4).Draw(t, "containers") {
			c := containerOf(fmt.Sprint("c", n), "10.0.0.1", fmt.Sprint("SERVICE_ID=id", id.Draw(t, "id")))
			c.Created = time.Unix(int64(n), 0)
			c.Paused = rapid.Bool().Draw(t, "paused")
			containers = append(containers, c)
		}
		s := known(Options{}, containers...)
		allReady(s)
		var p plan
		for n := 0; ; n++ {
			s.holds(t, fake)
			allReady(s)
			p = s.plan(time.Now())
			if n > 10 {
				t.Fatalf("it does not end: %+v", p)
			}
			made := 0
			for _, c := range p.calls {
				if !c.writes() {
					continue
				}
				made++
				call := s.begin(c.key)
				if err := a.Apply(context.Background(), c.change); err != nil {
					t.Fatal(err)
				}
				call.ended = s.tick()
				s.applied(c.key, call, c.change, c.token)
			}
			if made == 0 {
				break
			}
		}
		for id, was := range others {
			if fake.Services[id] != was {
				t.Fatalf("%s belongs to somebody else and was changed", id)
			}
		}
		instances, rejections := s.all()
		if len(instances)+len(rejections) != len(containers) {
			t.Fatalf("%d instances and %d rejections of %d", len(instances), len(rejections), len(containers))
		}
		for _, i := range instances {
			have, paused := s.consul[i.desired.ID], s.containers[i.desired.Container].Paused
			_, on := have.Maintenance()
			if held := have.Serves(i.desired.Instance); !held && !paused {
				t.Fatalf("%s is not registered: %+v", i.desired.ID, have)
			}
			if have.Held() && !byHand[i.desired.ID] && have.Container() == i.desired.Container && on != paused {
				t.Fatalf("%s: maintenance is %v, paused %v", i.desired.ID, on, paused)
			}
		}
		for id, have := range s.consul {
			reason, _ := have.Maintenance()
			if byHand[id] && reason != "by hand" {
				t.Fatalf("%s was put into maintenance by hand and is not any more", id)
			}
			if me.Owns(have.AgentService) && s.containers[have.Container()] == nil {
				t.Fatalf("%s is registered for a container that is gone", id)
			}
		}
	})
}

// containerOf returns a running container with one port on the load balancer's network.
func containerOf(id, address string, env ...string) label.Container {
	return docker.FromInspect(inspectOf(id, address, env...), nil)
}

func TestUnique(t *testing.T) {
	first, second := owned("app", "one", "me"), owned("app", "two", "me")
	holding := func(in label.Instance) agent.State {
		return agent.State{in.ID: {AgentService: &api.AgentService{ID: in.ID, Port: in.Port, Meta: in.Meta}}}
	}
	foreign := agent.State{"app": {AgentService: &api.AgentService{ID: "app"}}}
	leftover := agent.State{"app": {AgentService: &api.AgentService{ID: "app", Service: "app"}}}
	adopting := agent.Ownership{Owner: "me", Adopt: agent.RegistratorIDs("vm")}
	tests := []struct {
		name   string
		have   agent.State
		own    agent.Ownership
		keeps  string
		reason string
	}{
		{name: "the older container", have: nil, own: me, keeps: "one", reason: "held by container one"},
		{name: "the one that is registered", have: holding(second), own: me, keeps: "two", reason: "held by container two"},
		{name: "somebody else's", have: foreign, own: me, keeps: "", reason: "not berth's on this host"},
		{name: "somebody else's, though Registrator's are taken over", have: foreign, own: adopting, keeps: "", reason: "not berth's on this host"},
		{name: "Registrator's, with an ID from a label", have: leftover, own: adopting, keeps: "one", reason: "held by container one"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			kept, rejections := unique([]*instance{{desired: agent.Prepare(first)}, {desired: agent.Prepare(second)}}, tt.have, tt.own)
			got := ""
			for _, i := range kept {
				got += i.desired.Container
			}
			if got != tt.keeps {
				t.Errorf("kept %q, want %q", got, tt.keeps)
			}
			if len(kept)+len(rejections) != 2 {
				t.Errorf("kept %d, rejected %d of 2", len(kept), len(rejections))
			}
			for _, r := range rejections {
				if !strings.Contains(r.reason, tt.reason) {
					t.Errorf("reason %q does not say %q", r.reason, tt.reason)
				}
			}
		})
	}
}

// changesOf summarizes the changes of a plan.
func changesOf(p plan) (out []string) {
	for _, planned := range p.calls {
		if !planned.writes() {
			continue
		}
		words, c := []string{}, planned.change
		for what, is := range map[string]bool{"drain": c.Maintain, "deregister": c.Deregister, "register": c.Register, "resume": c.Resume} {
			if is {
				words = append(words, what)
			}
		}
		slices.Sort(words)
		out = append(out, strings.Join(append(words, c.Uncheck...), " ")+" "+c.ID)
	}
	slices.Sort(out)
	return out
}

func TestAdoption(t *testing.T) {
	fake := agenttest.New()
	for _, id := range []string{"vm:app_1:80", "vm:gone_1:53:udp", "other:app_1:80", "vm:by-hand", "vmm:app_1:80", "vm:app_1:80:tcp"} {
		fake.Services[id] = &api.AgentService{ID: id, Service: "app"}
	}
	fake.Services["vm:gone_1:53:udp"].Service = "gone" // of the same service it would stay until the other one is registered
	fake.Services["vm:theirs_1:80"] = &api.AgentService{ID: "vm:theirs_1:80", Meta: map[string]string{label.MetaOwner: "them"}}
	for _, tt := range []struct {
		adopt string
		want  []string
	}{
		{adopt: "vm", want: []string{"deregister vm:gone_1:53:udp", "register vm:app_1:80"}}, // now with its owner
		{adopt: "", want: nil},
	} {
		s := known(Options{Adopt: tt.adopt}, containerOf("app_1", "10.0.0.1"))
		s.holds(t, fake)
		if d := cmp.Diff(tt.want, changesOf(s.plan(time.Now()))); d != "" {
			t.Errorf("adopting %q (-want +got):\n%s", tt.adopt, d)
		}
	}
}

func TestPlanLeavesUnknownContainers(t *testing.T) {
	fake := agenttest.New()
	a := agent.Agent{Client: fake, Log: slog.New(slog.DiscardHandler)}
	for id, container := range map[string]string{"a": "one", "b": "two"} {
		_ = a.Apply(context.Background(), agent.Change{Register: true, Desired: agent.Prepare(owned(id, container, "me"))})
	}
	s := known(Options{})
	s.list([]string{"one"}, s.tick())
	s.begin(key{kind: inspecting, id: "one"}).done(errors.New("500 internal error"))
	s.holds(t, fake)
	if got := changesOf(s.plan(time.Now())); !slices.Equal(got, []string{"deregister b"}) {
		t.Errorf("%v, want to deregister b alone: container one could not be inspected", got)
	}
}

// Events of unknown containers cause no new plan, except for their start.
func TestEventsOfUnknownContainers(t *testing.T) {
	s := known(Options{}, containerOf("a", "10.0.0.1"))
	for _, tt := range []struct {
		action   docker.Action
		id       string
		concerns bool
	}{
		{action: docker.Changed, id: "x", concerns: false},
		{action: docker.Killed, id: "x", concerns: false},
		{action: docker.Died, id: "x", concerns: false},
		{action: docker.Removed, id: "x", concerns: false},
		{action: docker.Started, id: "x", concerns: true},
		{action: docker.Changed, id: "a", concerns: true},
		{action: docker.Died, id: "a", concerns: true},
	} {
		if got := s.event(docker.Event{ID: tt.id, Action: tt.action}); got != tt.concerns {
			t.Errorf("%s %s concerns the plan: %v, want %v", tt.id, tt.action, got, tt.concerns)
		}
	}
}

// An ignored key does not make a registered container an unregistered one.
func TestVerdicts(t *testing.T) {
	reasons := []string{`port 80/tcp: "SERVICE_A.B" is ignored`}
	if got := (Planned{Reasons: reasons}).Verdicts(); !slices.Equal(got, []string{"not registered: " + reasons[0]}) {
		t.Errorf("of one that registers nothing: %q", got)
	}
	if got := (Planned{Reasons: reasons, Instances: make([]PlannedInstance, 1)}).Verdicts(); !slices.Equal(got, []string{"registered, but " + reasons[0]}) {
		t.Errorf("of one that registers something: %q", got)
	}
}
