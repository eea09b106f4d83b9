package registrar

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"
	"pgregory.net/rapid"
)

// held is what the agent holds once the instance was registered.
func held(in Instance) *api.AgentService {
	return &api.AgentService{ID: in.ID, Service: in.Name, Tags: in.Tags, Meta: in.Meta, Address: in.Address, Port: in.Port}
}

func owned(id, container, owner string) Instance {
	return Instance{ID: id, Name: "app", Port: 80, Container: container, Meta: map[string]string{metaOwner: owner, metaContainer: container}}
}

// For whatever is wanted and held: applying the difference makes the owner's registrations what is wanted, touches
// nobody else's, and leaves no difference; the order of things does not matter.
func TestDiffProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		instance := func(owner string) *rapid.Generator[Instance] {
			return rapid.Custom(func(t *rapid.T) Instance {
				in := owned(fmt.Sprint("id", rapid.IntRange(0, 8).Draw(t, "id")), fmt.Sprint("c", rapid.IntRange(0, 4).Draw(t, "container")), owner)
				in.Port = rapid.IntRange(80, 82).Draw(t, "port")
				in.Tags = rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b"}), 0, 2).Draw(t, "tags")
				return in
			})
		}
		all := rapid.SliceOf(instance("me")).Draw(t, "want")
		have := map[string]*api.AgentService{}
		for _, in := range rapid.SliceOf(instance("me")).Draw(t, "have") {
			have[in.ID] = held(in)
		}
		for _, in := range rapid.SliceOfN(instance("other"), 0, 4).Draw(t, "others") {
			have[in.ID] = held(in)
		}
		others := map[string]*api.AgentService{}
		for id, s := range have {
			if s.Meta[metaOwner] != "me" {
				others[id] = s
			}
		}

		want, refused := unique(all, have, "me")
		if len(want)+len(refused) != len(all) {
			t.Fatalf("%d kept and %d refused of %d", len(want), len(refused), len(all))
		}
		byID := map[string]Instance{}
		for _, in := range want {
			byID[in.ID] = in
		}
		want = slices.Collect(maps.Values(byID))

		register, deregister := diff(want, have, "me", nil)
		for _, s := range deregister {
			delete(have, s.ID)
		}
		for _, in := range register {
			have[in.ID] = held(in)
		}
		if register, deregister = diff(want, have, "me", nil); len(register)+len(deregister) != 0 {
			t.Fatalf("after applying the difference there is still one: %v %v", register, deregister)
		}
		for id, s := range others {
			if have[id] != s {
				t.Fatalf("%s belongs to somebody else and was changed", id)
			}
		}
	})
}

func TestUnique(t *testing.T) {
	first, second := owned("app", "one", "me"), owned("app", "two", "me")
	tests := []struct {
		name   string
		have   map[string]*api.AgentService
		keeps  string
		reason string
	}{
		{"the older container", nil, "one", "held by container one"},
		{"the one that is registered", map[string]*api.AgentService{"app": held(second)}, "two", "held by container two"},
		{"somebody else's", map[string]*api.AgentService{"app": {ID: "app"}}, "", "not berth's on this host"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			kept, refused := unique([]Instance{first, second}, tt.have, "me")
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

func TestDiffLeavesUnknownContainers(t *testing.T) {
	have := map[string]*api.AgentService{"a": held(owned("a", "one", "me")), "b": held(owned("b", "two", "me"))}
	_, deregister := diff(nil, have, "me", map[string]bool{"one": true})
	if len(deregister) != 1 || deregister[0].ID != "b" {
		t.Errorf("deregisters %v, want b alone: container one could not be inspected", deregister)
	}
}

func FuzzSettings(f *testing.F) {
	f.Add("SERVICE_8080_NAME", "app", "SERVICE_TAGS", `a\,b,c`)
	f.Add("SERVICE_", "", "SERVICE_8080_", "x")
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2 string) {
		c := web(label(k1, v1), label(k2, v2), env(k2+"="+v1))
		instances, reasons := Instances(c, host)
		for _, in := range instances {
			if !serviceName.MatchString(in.Name) || !serviceID.MatchString(in.ID) {
				t.Errorf("registers %q as %q", in.Name, in.ID)
			}
			if len(in.Meta) > maxMeta || in.Meta[metaOwner] != host.EngineID || in.Meta[metaContainer] != c.ID {
				t.Errorf("metadata %v", in.Meta)
			}
		}
		for _, r := range reasons {
			if strings.ContainsAny(r, "\n\r") {
				t.Errorf("a reason of several lines: %q", r)
			}
		}
	})
}
