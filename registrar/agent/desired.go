package agent

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/registrar/label"
	"berth/templates/claim"
)

// Automatic begins the reasons of maintenance modes that berth sets and ends itself. It never ends a mode set by hand,
// through berth drain or Consul itself.
const Automatic = "berth registrar: "

// Desired is an instance in its desired state.
type Desired struct {
	label.Instance
	NotReady string        // why it is not ready in time; "" = ready
	ReadyAt  time.Time     // when it became ready; zero = not ready, or not known
	Waited   time.Duration // time spent waiting before NotReady, for the log
	Drain    string        // why it gets no new requests, beginning with Automatic; "" = in service
	Health   string        // status of Docker's HEALTHCHECK: "healthy", "unhealthy" or "starting"
	Output   string        // output of the HEALTHCHECK

	// For the log.
	Of    string    // name of its container; "" = not known, or no container
	Since time.Time // when it became ready, if Consul does not know yet; zero = Consul knows

	prepared *prepared // nil = not computed yet
}

// prepared holds values of an instance that are costly to compute.
type prepared struct {
	fingerprint, late string   // of the checks, without and with the check for NotReady
	checkIDs          []string // the check for NotReady comes last
}

// Prepare returns the instance as Desired with everything that is costly to compute: call it once and copy the result.
func Prepare(in label.Instance) Desired {
	d := Desired{Instance: in}
	d.prepared = d.prepare()
	return d
}

func (d Desired) prepare() *prepared {
	if d.prepared != nil {
		return d.prepared
	}
	p := &prepared{}
	for n := range d.Checks {
		p.checkIDs = append(p.checkIDs, checkID(d.ID, n))
	}
	p.checkIDs = append(p.checkIDs, readyCheckID(d.ID))
	d.NotReady = ""
	p.fingerprint = fingerprint(d.checks())
	d.NotReady = "late"
	p.late = fingerprint(d.checks())
	return p
}

func readyCheckID(id string) string   { return id + ":ready" }
func checkID(id string, n int) string { return id + ":check-" + strconv.Itoa(n+1) }

func (d Desired) ttlStatus(c label.Check) string {
	if c.Health && d.Health != "healthy" && !(c.Starting && d.Health == "starting") {
		return api.HealthCritical
	}
	return api.HealthPassing
}

// checks returns the definitions of the instance's checks.
func (d Desired) checks() (out api.AgentServiceChecks) {
	for n, c := range d.Checks {
		check := c.Definition
		check.CheckID = checkID(d.ID, n)
		check.Status = cmp.Or(c.Status, api.HealthPassing)
		if c.TTL > 0 {
			check.Status = d.ttlStatus(c)
			check.TTL = c.TTL.String()
		}
		out = append(out, &check)
	}
	if d.NotReady != "" {
		out = append(out, &api.AgentServiceCheck{
			CheckID: readyCheckID(d.ID), Name: "ready", TTL: (24 * time.Hour).String(), Status: api.HealthCritical, Notes: d.NotReady,
		})
	}
	return out
}

// fingerprint returns the fingerprint of all checks.
func (d Desired) fingerprint() string {
	if d.NotReady != "" {
		return d.prepare().late
	}
	return d.prepare().fingerprint
}

// fingerprint returns a hash of the definitions of checks, without their status. Without checks it is "".
func fingerprint(checks api.AgentServiceChecks) string {
	if len(checks) == 0 {
		return ""
	}
	sum := sha256.New()
	for _, c := range checks {
		c.Status, c.Notes = "", ""
		b, err := json.Marshal(c)
		if err != nil {
			panic(err) // cannot fail: only strings and lists of strings
		}
		sum.Write(b)
	}
	return fmt.Sprintf("%x", sum.Sum(nil)[:8])
}

// registration returns the body of the call that registers the instance together with its checks.
func (d Desired) registration() *api.AgentServiceRegistration {
	r := &api.AgentServiceRegistration{
		ID: d.ID, Name: d.Name, Tags: d.Tags, Meta: maps.Clone(d.Meta), Address: d.Address, Port: d.Port,
		Weights: &api.AgentWeights{Passing: cmp.Or(d.Weight, 1), Warning: 1},
		Checks:  d.checks(),
	}
	if len(r.Checks) > 0 {
		r.Meta[label.MetaChecks] = d.fingerprint()
	}
	if at := startMark(d.Instance); at != "" {
		r.Meta[label.MetaStarted] = at
	}
	if !d.ReadyAt.IsZero() {
		r.Meta[claim.MetaReadyAt] = claim.Stamp(d.ReadyAt)
	}
	return r
}

// Change says what to do about one instance: drain it, deregister it, or any of the rest.
type Change struct {
	Desired             // desired state; to deregister, only its ID and name
	Maintain   bool     // put it into maintenance mode
	Deregister bool     // remove it with its checks
	Register   bool     // register it, with its checks
	Uncheck    []string // remove the checks with these IDs
	Resume     bool     // end its maintenance mode
}

// Empty reports whether there is nothing to do.
func (c Change) Empty() bool {
	return !c.Maintain && !c.Deregister && !c.Register && !c.Resume && len(c.Uncheck) == 0
}

// Made reports whether have, which the agent holds, reflects the change.
func (c Change) Made(have Registered) bool {
	if c.Deregister {
		return !have.Held()
	}
	left := Diff(c.Desired, have)
	return !((c.Maintain && left.Maintain) || (c.Register && left.Register) || (c.Resume && left.Resume) || (len(c.Uncheck) > 0 && len(left.Uncheck) > 0))
}

// Diff returns the change that turns have, which the agent holds, into the desired state. An instance to drain enters
// maintenance mode if it is registered, and is otherwise left alone.
func Diff(d Desired, have Registered) Change {
	c := Change{Desired: d}
	reason, maintained := have.Maintenance()
	if d.Drain != "" {
		c.Maintain = have.Held() && !maintained
		return c
	}
	c.Register = !d.Same(have)
	c.Uncheck = d.staleChecks(have)
	c.Resume = maintained && strings.HasPrefix(reason, Automatic)
	return c
}

// Same reports whether the agent holds the registration with all of its checks. The time when the instance became ready does
// not count: a registration without it stays.
func (d Desired) Same(s Registered) bool {
	if !s.Held() || s.Service != d.Name || s.Address != d.Address || s.Port != d.Port ||
		s.Weights != (api.AgentWeights{Passing: cmp.Or(d.Weight, 1), Warning: 1}) || !slices.Equal(s.Tags, d.Tags) {
		return false
	}
	pairs := len(s.Meta)
	if mark := d.fingerprint(); mark != "" {
		if s.Meta[label.MetaChecks] != mark {
			return false
		}
		pairs--
	}
	if at := startMark(d.Instance); at != "" {
		if s.Meta[label.MetaStarted] != at {
			return false
		}
		pairs--
	}
	if _, told := s.Meta[claim.MetaReadyAt]; told {
		pairs--
	}
	for key, value := range d.Meta {
		if is, ok := s.Meta[key]; !ok || is != value {
			return false
		}
	}
	for _, id := range d.checkIDs() {
		if s.Checks[id] == nil {
			return false
		}
	}
	return pairs == len(d.Meta)
}

// checkIDs returns the IDs of the instance's checks.
func (d Desired) checkIDs() []string {
	ids := d.prepare().checkIDs
	if d.NotReady == "" {
		ids = ids[:len(d.Checks)]
	}
	return ids
}

// staleChecks returns the instance's checks at the agent that should not exist. A registration adds checks and keeps
// existing ones. Replacing them would end maintenance mode, which is also a check.
func (d Desired) staleChecks(have Registered) (out []string) {
	want := d.checkIDs()
	for id := range have.Checks {
		if !slices.Contains(want, id) && !strings.HasPrefix(id, maintenanceID) {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}
