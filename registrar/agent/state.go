package agent

import (
	"regexp"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/registrar/label"
)

// maintenanceID begins the ID of the check by which Consul keeps a service in maintenance mode.
const maintenanceID = "_service_maintenance:"

// State holds the services of an agent by their ID.
type State map[string]Registered

// Registered is a service with its checks by their ID. The zero value stands for a service that the agent does not hold.
type Registered struct {
	*api.AgentService
	Checks map[string]*api.AgentCheck
}

// NewState returns the State that these answers of an agent describe.
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

// Maintenance reports whether the service is in maintenance mode, and for which reason.
func (r Registered) Maintenance() (reason string, on bool) {
	for id, c := range r.Checks {
		if strings.HasPrefix(id, maintenanceID) {
			return c.Notes, true
		}
	}
	return "", false
}

// WasReady reports whether the service has been ready since it was registered: it lacks the check that says otherwise.
func (r Registered) WasReady() bool { return r.Held() && r.Checks[readyCheckID(r.ID)] == nil }

// Serves reports whether the service is registered for the container, address and port of the instance.
func (r Registered) Serves(in label.Instance) bool {
	return r.Held() && r.Container() == in.Container && r.Address == in.Address && r.Port == in.Port
}

// startMark returns the start of the instance's process as the metadata has it, "" if it is not known.
func startMark(in label.Instance) string {
	if in.Started.IsZero() {
		return ""
	}
	return in.Started.UTC().Format(time.RFC3339Nano)
}

// Begun reports whether the service was registered for the process that the instance stands for now, and not for an
// earlier one. known says whether the registration tells: those of Registrator and of early versions of berth do not.
func (r Registered) Begun(in label.Instance) (same, known bool) {
	if !r.Held() || r.Meta[label.MetaStarted] == "" {
		return false, false
	}
	return r.Meta[label.MetaStarted] == startMark(in), true
}

// Ownership tells a registrar's own registrations from others.
type Ownership struct {
	Owner string         // in the metadata
	Adopt *regexp.Regexp // IDs of registrations without an owner that are taken over; nil = none
}

// Owns reports whether a registration is the registrar's own.
func (o Ownership) Owns(s *api.AgentService) bool {
	owner := s.Meta[label.MetaOwner]
	return owner == o.Owner || (owner == "" && o.Adopt != nil && o.Adopt.MatchString(s.ID))
}

// MayTake reports whether the instance may replace a registration: the registrar's own, or one of Registrator's under an
// ID that a label gave.
func (o Ownership) MayTake(s *api.AgentService, in label.Instance) bool {
	return o.Owns(s) || (o.Adopt != nil && s.Meta[label.MetaOwner] == "" && s.Service == in.Name)
}

// RegistratorIDs matches the IDs that Registrator gives on a host with this name.
func RegistratorIDs(host string) *regexp.Regexp {
	return regexp.MustCompile(`^` + regexp.QuoteMeta(host) + `:[a-zA-Z0-9][a-zA-Z0-9_.-]+:[0-9]+(:udp)?$`)
}
