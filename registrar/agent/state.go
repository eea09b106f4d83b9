package agent

import (
	"regexp"
	"strings"

	"github.com/hashicorp/consul/api"

	"berth/registrar/label"
)

// maintenanceID begins the ID of the check by which Consul keeps a service in maintenance mode.
const maintenanceID = "_service_maintenance:"

// State is what an agent holds, by service ID.
type State map[string]Registered

// Registered is a service with its checks by their ID. The zero value stands for a service that the agent does not hold.
type Registered struct {
	*api.AgentService
	Checks map[string]*api.AgentCheck
}

// NewState returns the State of an agent that answers with these services and checks.
func NewState(services map[string]*api.AgentService, checks map[string]*api.AgentCheck) State {
	s := State{}
	for id, service := range services {
		s[id] = Registered{service, map[string]*api.AgentCheck{}}
	}
	for id, c := range checks {
		if r, held := s[c.ServiceID]; held {
			r.Checks[id] = c
		}
	}
	return s
}

// Held says whether the agent holds the service.
func (r Registered) Held() bool { return r.AgentService != nil }

// Desired returns the service as little more than a name: what it takes to drain or to deregister it.
func (r Registered) Desired() Desired {
	return Desired{Instance: label.Instance{ID: r.ID, Name: r.Service}}
}

// Container is the full ID of the container that the service is registered for, "" if it is none.
func (r Registered) Container() string {
	if !r.Held() {
		return ""
	}
	return r.Meta[label.MetaContainer]
}

// Maintenance returns the reason for which the service is in maintenance mode, and whether it is.
func (r Registered) Maintenance() (reason string, on bool) {
	for id, c := range r.Checks {
		if strings.HasPrefix(id, maintenanceID) {
			return c.Notes, true
		}
	}
	return "", false
}

// WasReady says whether the service has been ready since it was registered: it lacks the check that says otherwise.
func (r Registered) WasReady() bool { return r.Held() && r.Checks[readyCheckID(r.ID)] == nil }

// Serves says whether the service is registered for the instance's container, at the instance's address and port.
func (r Registered) Serves(in label.Instance) bool {
	return r.Held() && r.Container() == in.Container && r.Address == in.Address && r.Port == in.Port
}

// Ownership tells a registrar's own registrations from others.
type Ownership struct {
	Owner string         // in the metadata
	Adopt *regexp.Regexp // IDs of registrations without an owner that are taken over; nil = none
}

// Owns says whether a registration is the registrar's own.
func (o Ownership) Owns(s *api.AgentService) bool {
	owner := s.Meta[label.MetaOwner]
	return owner == o.Owner || (owner == "" && o.Adopt != nil && o.Adopt.MatchString(s.ID))
}

// MayTake says whether a registration may become that of an instance: it is the registrar's own, or it is one of
// Registrator's under an ID that a label gave, to be taken over.
func (o Ownership) MayTake(s *api.AgentService, in label.Instance) bool {
	return o.Owns(s) || (o.Adopt != nil && s.Meta[label.MetaOwner] == "" && s.Service == in.Name)
}

// RegistratorIDs matches the IDs that Registrator gives on a host with this name.
func RegistratorIDs(host string) *regexp.Regexp {
	return regexp.MustCompile(`^` + regexp.QuoteMeta(host) + `:[a-zA-Z0-9][a-zA-Z0-9_.-]+:[0-9]+(:udp)?$`)
}
