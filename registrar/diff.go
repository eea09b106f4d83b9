package registrar

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
)

// Metadata and check IDs beside those in instance.go.
const (
	// maintenanceID begins the ID of the check by which Consul keeps a service in maintenance mode.
	maintenanceID = "_service_maintenance:"

	// automatic begins the reasons for maintenance that the registrar gives and takes back. One set by hand, through
	// berth drain or Consul itself, is never taken back by it.
	automatic = "berth registrar: "
)

// held is what a Consul agent holds.
type held struct {
	services map[string]*api.AgentService
	checks   map[string]*api.AgentCheck
}

// maintenance is the reason for which an instance is in maintenance mode, and whether it is.
func (h held) maintenance(id string) (reason string, on bool) {
	c := h.checks[maintenanceID+id]
	if c == nil {
		return "", false
	}
	return c.Notes, true
}

// wanted is an instance with what is to be said about it now.
type wanted struct {
	Instance
	notReady string // why it is not ready, though it should be by now; "" = it is
	drain    string // why it is to get no new requests; "" = it may
	health   string // what Docker's HEALTHCHECK says: "healthy", "unhealthy" or "starting"
	output   string // of the HEALTHCHECK
}

func readyCheckID(id string) string   { return id + ":ready" }
func checkID(id string, n int) string { return fmt.Sprintf("%s:check-%d", id, n+1) }
func (w wanted) ttlStatus(c Check) string {
	if c.Health && w.health != "healthy" {
		return api.HealthCritical
	}
	return api.HealthPassing
}

// registration is what is sent to the agent for an instance, with its checks in the same call.
func (w wanted) registration() *api.AgentServiceRegistration {
	r := &api.AgentServiceRegistration{
		ID: w.ID, Name: w.Name, Tags: w.Tags, Meta: maps.Clone(w.Meta), Address: w.Address, Port: w.Port,
		Weights: &api.AgentWeights{Passing: cmp.Or(w.Weight, 1), Warning: 1},
	}
	for n, c := range w.Checks {
		d := c.Definition
		d.CheckID = checkID(w.ID, n)
		d.Status = cmp.Or(c.Status, api.HealthPassing)
		if c.TTL > 0 {
			d.Status = w.ttlStatus(c)
			d.TTL = c.TTL.String()
		}
		r.Checks = append(r.Checks, &d)
	}
	if w.notReady != "" {
		r.Checks = append(r.Checks, &api.AgentServiceCheck{
			CheckID: readyCheckID(w.ID), Name: "ready", TTL: (24 * time.Hour).String(), Status: api.HealthCritical, Notes: w.notReady,
		})
	}
	if len(r.Checks) > 0 {
		r.Meta[metaChecks] = fingerprint(r.Checks)
	}
	return r
}

// fingerprint changes when the definition of a check does, and not with its status.
func fingerprint(checks api.AgentServiceChecks) string {
	sum := sha256.New()
	for _, c := range checks {
		d := *c
		d.Status, d.Notes = "", ""
		b, err := json.Marshal(d)
		if err != nil {
			panic(err) // strings and lists of strings
		}
		sum.Write(b)
	}
	return fmt.Sprintf("%x", sum.Sum(nil)[:8])
}

// ownership tells a registrar's own registrations from others.
type ownership struct {
	owner string         // engine ID in the metadata
	adopt *regexp.Regexp // IDs of registrations without an owner that are taken over; nil = none
}

func (o ownership) owns(s *api.AgentService) bool {
	owner := s.Meta[metaOwner]
	return owner == o.owner || (owner == "" && o.adopt != nil && o.adopt.MatchString(s.ID))
}

// mayHave says whether a registration may become that of an instance: it is the registrar's own, or it is one of
// Registrator's under an ID that a label gave, to be taken over.
func (o ownership) mayHave(s *api.AgentService, in Instance) bool {
	return o.owns(s) || (o.adopt != nil && s.Meta[metaOwner] == "" && s.Service == in.Name)
}

// registratorIDs matches the IDs that Registrator gives on a host with this name.
func registratorIDs(host string) *regexp.Regexp {
	return regexp.MustCompile(`^` + regexp.QuoteMeta(host) + `:[a-zA-Z0-9][a-zA-Z0-9_.-]+:[0-9]+(:udp)?$`)
}

// refusal is why something of a container is not registered.
type refusal struct{ container, reason string }

// unique drops instances whose ID another container holds, and says why. The holder is the one that is registered
// already, else the container that comes first in containers' order of creation, which is the order of want.
func unique(want []Instance, have held, own ownership) (kept []Instance, refused []refusal) {
	holder := map[string]Instance{}
	for _, in := range want {
		if _, taken := holder[in.ID]; !taken || registered(in, have) {
			holder[in.ID] = in
		}
	}
	for _, in := range want {
		h, s := holder[in.ID], have.services[in.ID]
		switch {
		case s != nil && !own.mayHave(s, in):
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
func registered(in Instance, have held) bool {
	s := have.services[in.ID]
	return s != nil && s.Meta[metaContainer] == in.Container && s.Address == in.Address && s.Port == in.Port
}

// change is all that is to be done at the agent. Everything is sorted by ID.
type change struct {
	drain      []wanted            // into maintenance mode
	deregister []*api.AgentService // with their checks
	register   []wanted
	uncheck    []string // IDs of checks that an instance has no more
	resume     []string // IDs of instances, out of maintenance mode
}

func (c change) size() int {
	return len(c.drain) + len(c.deregister) + len(c.register) + len(c.uncheck) + len(c.resume)
}

// replaced are the IDs to deregister whose container gets another registration in the same change.
func (c change) replaced() map[string]bool {
	registering := map[string]bool{}
	for _, w := range c.register {
		registering[w.Container] = true
	}
	ids := map[string]bool{}
	for _, s := range c.deregister {
		if registering[s.Meta[metaContainer]] {
			ids[s.ID] = true
		}
	}
	return ids
}

// diff says what to do so that the agent holds what is wanted, of what is its own. Registrations of others are left
// alone, and so are those of containers that unknown names.
func diff(want []wanted, have held, own ownership, unknown map[string]bool) change {
	var c change
	ids := map[string]bool{}
	for _, w := range want {
		ids[w.ID] = true
		r := w.registration()
		if !same(r, have) {
			c.register = append(c.register, w)
		}
		c.uncheck = append(c.uncheck, surplus(r, have)...)
		reason, on := have.maintenance(w.ID)
		switch {
		case w.drain != "" && !on:
			c.drain = append(c.drain, w)
		case w.drain == "" && on && strings.HasPrefix(reason, automatic):
			c.resume = append(c.resume, w.ID)
		}
	}
	for id, s := range have.services {
		if own.owns(s) && !ids[id] && !unknown[s.Meta[metaContainer]] {
			c.deregister = append(c.deregister, s)
		}
	}
	byID := func(a, b wanted) int { return strings.Compare(a.ID, b.ID) }
	slices.SortFunc(c.drain, byID)
	slices.SortFunc(c.register, byID)
	slices.SortFunc(c.deregister, func(a, b *api.AgentService) int { return strings.Compare(a.ID, b.ID) })
	slices.Sort(c.uncheck)
	slices.Sort(c.resume)
	return c
}

// same says whether the agent holds a registration with all of its checks.
func same(r *api.AgentServiceRegistration, have held) bool {
	s := have.services[r.ID]
	if s == nil || s.Service != r.Name || s.Address != r.Address || s.Port != r.Port || s.Weights != *r.Weights ||
		!slices.Equal(s.Tags, r.Tags) || !maps.Equal(s.Meta, r.Meta) {
		return false
	}
	for _, c := range r.Checks {
		if have.checks[c.CheckID] == nil {
			return false
		}
	}
	return true
}

// surplus are the checks that an instance has at the agent and should not have. A registration adds checks and keeps
// those that are there; only so does it leave maintenance mode alone.
func surplus(r *api.AgentServiceRegistration, have held) []string {
	want := map[string]bool{maintenanceID + r.ID: true}
	for _, c := range r.Checks {
		want[c.CheckID] = true
	}
	var out []string
	for id, c := range have.checks {
		if c.ServiceID == r.ID && !want[id] {
			out = append(out, id)
		}
	}
	return out
}

// beat is a word to Consul about a TTL check.
type beat struct{ check, status, output string }

// beats are the words due about the TTL checks of what is wanted, and when the next one is. told is when Consul was last
// told about a check: word is due again after a third of the TTL, and at once when the status has changed.
func beats(want []wanted, have held, told map[string]time.Time, now time.Time) (due []beat, next time.Time) {
	for _, w := range want {
		for n, c := range w.Checks {
			if c.TTL <= 0 {
				continue
			}
			b := beat{checkID(w.ID, n), w.ttlStatus(c), "the container runs"}
			if c.Health {
				b.output = cmp.Or(w.output, "Docker says "+w.health)
			}
			at := told[b.check].Add(c.TTL / 3)
			is := have.checks[b.check]
			if is == nil {
				continue // being registered
			}
			if is.Status != b.status || (c.Health && is.Output != b.output) || !at.After(now) {
				due = append(due, b)
				at = now.Add(c.TTL / 3)
			}
			if next.IsZero() || at.Before(next) {
				next = at
			}
		}
	}
	return due, next
}
