package registrar

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/consul/api"
)

// refusal is why something of a container is not registered.
type refusal struct{ container, reason string }

// unique drops instances whose ID another container holds, and says why. The holder is the one that is registered
// already, else the container that comes first in containers' order of creation, which is the order of want.
func unique(want []Instance, have map[string]*api.AgentService, owner string) (kept []Instance, refused []refusal) {
	holder := map[string]Instance{}
	for _, in := range want {
		if _, taken := holder[in.ID]; !taken || registered(in, have) {
			holder[in.ID] = in
		}
	}
	for _, in := range want {
		h := holder[in.ID]
		foreign := have[in.ID] != nil && have[in.ID].Meta[metaOwner] != owner
		switch {
		case foreign:
			refused = append(refused, refusal{in.Container, fmt.Sprintf("service ID %s is held by a registration that is not berth's on this host: choose another SERVICE_ID or deregister it", in.ID)})
		case h.Container != in.Container || h.Port != in.Port:
			refused = append(refused, refusal{in.Container, fmt.Sprintf("service ID %s is held by container %.12s: choose another SERVICE_ID", in.ID, h.Container)})
		default:
			kept = append(kept, in)
		}
	}
	return kept, refused
}

// registered says whether Consul holds this very endpoint of this container.
func registered(in Instance, have map[string]*api.AgentService) bool {
	s := have[in.ID]
	return s != nil && s.Meta[metaContainer] == in.Container && s.Address == in.Address && s.Port == in.Port
}

// diff says what to register and what to deregister so that the registrations of owner among have become want.
// Registrations of others are left alone, and so are those of containers that unknown names. Both results are
// sorted by ID.
func diff(want []Instance, have map[string]*api.AgentService, owner string, unknown map[string]bool) (register []Instance, deregister []*api.AgentService) {
	wanted := map[string]bool{}
	for _, in := range want {
		wanted[in.ID] = true
		if !same(in, have[in.ID]) {
			register = append(register, in)
		}
	}
	for id, s := range have {
		if s.Meta[metaOwner] == owner && !wanted[id] && !unknown[s.Meta[metaContainer]] {
			deregister = append(deregister, s)
		}
	}
	slices.SortFunc(register, func(a, b Instance) int { return strings.Compare(a.ID, b.ID) })
	slices.SortFunc(deregister, func(a, b *api.AgentService) int { return strings.Compare(a.ID, b.ID) })
	return register, deregister
}

// same says whether Consul holds the instance as it should be.
func same(in Instance, s *api.AgentService) bool {
	return s != nil && s.Service == in.Name && s.Address == in.Address && s.Port == in.Port &&
		slices.Equal(s.Tags, in.Tags) && maps.Equal(s.Meta, in.Meta)
}

// registration is what is sent to the agent.
func registration(in Instance) *api.AgentServiceRegistration {
	return &api.AgentServiceRegistration{
		ID: in.ID, Name: in.Name, Tags: in.Tags, Meta: in.Meta, Address: in.Address, Port: in.Port,
	}
}
