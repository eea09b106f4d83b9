package agent

import (
	"regexp"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/registrar/label"
)

// maintenanceID begins the ID of the check that keeps a service in maintenance mode in Consul.
const maintenanceID = "_service_maintenance:"

// State holds the services of an agent by ID.
type State map[string]Registered

// Registered is a service with its checks by ID. The zero value is a service that the agent does not hold.
type Registered struct {
	*api.AgentService
	Checks map[string]*api.AgentCheck
}

// NewState returns the State described by an agent's answers.
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

// Held reports whether the agent holds the service.
func (r Registered) Held() bool { return r.AgentService != nil }

// Desired returns just enough of the service to drain or deregister it.
func (r Registered) Desired() Desired {
	return Desired{Instance: label.Instance{ID: r.ID, Name: r.Service, Container: r.Container()}}
}

// Container returns the full ID of the container that the service is registered for, or "".
func (r Registered) Container() string {
	if !r.Held() {
		return ""
	}
	return r.Meta[label.MetaContainer]
}

// Maintenance reports whether the service is in maintenance mode, and the reason.
func (r Registered) Maintenance() (reason string, on bool) {
	for id, c := range r.Checks {
		if strings.HasPrefix(id, maintenanceID) {
			return c.Notes, true
		}
	}
	return "", false
}

// WasReady reports whether the service has been ready since it was registered, that is, lacks the check for NotReady.
func (r Registered) WasReady() bool { return r.Held() && r.Checks[readyCheckID(r.ID)] == nil }

// Serves reports whether the service is registered for the container, address and port of the instance.
func (r Registered) Serves(in label.Instance) bool {
	return r.Held() && r.Container() == in.Container && r.Address == in.Address && r.Port == in.Port
}

// startMark returns the start of the instance's process as given in its metadata, or "" if unknown.
func startMark(in label.Instance) string {
	if in.Started.IsZero() {
		return ""
	}
	return in.Started.UTC().Format(time.RFC3339Nano)
}

// Begun reports whether the service was registered for the instance's present process rather than an earlier one. known says
// whether the registration contains that; registrations by Registrator and by early versions of berth do not.
func (r Registered) Begun(in label.Instance) (same, known bool) {
	if !r.Held() || r.Meta[label.MetaStarted] == "" {
		return false, false
	}
	return r.Meta[label.MetaStarted] == startMark(in), true
}

// Ownership distinguishes a registrar's own registrations from others.
type Ownership struct {
	Owner string         // in the metadata
	Adopt *regexp.Regexp // IDs of registrations without an owner to take over; nil = none
}

// Owns reports whether a registration belongs to the registrar.
func (o Ownership) Owns(s *api.AgentService) bool {
	owner := s.Meta[label.MetaOwner]
	return owner == o.Owner || (owner == "" && o.Adopt != nil && o.Adopt.MatchString(s.ID))
}

// MayTake reports whether the instance may replace a registration: one of the registrar's own, or one by Registrator under
// an ID set by a label.
func (o Ownership) MayTake(s *api.AgentService, in label.Instance) bool {
	return o.Owns(s) || (o.Adopt != nil && s.Meta[label.MetaOwner] == "" && s.Service == in.Name)
}

// RegistratorIDs matches the IDs that Registrator uses on a host with this name.
func RegistratorIDs(host string) *regexp.Regexp {
	return regexp.MustCompile(`^` + regexp.QuoteMeta(host) + `:[a-zA-Z0-9][a-zA-Z0-9_.-]+:[0-9]+(:udp)?$`)
}
