package agent

import (
	"cmp"
	"time"

	"github.com/hashicorp/consul/api"
)

// Heartbeat is the status of a TTL check, to be sent to Consul before the TTL expires.
type Heartbeat struct {
	Check, Status, Output string
	Every                 time.Duration
	health                bool // it mirrors Docker's HEALTHCHECK
}

// Heartbeats returns the heartbeats for the instance's TTL checks at the agent. output goes to checks that do not mirror a
// HEALTHCHECK.
func (d Desired) Heartbeats(have Registered, output string) (out []Heartbeat) {
	for n, id := range d.prepare().checkIDs[:len(d.Checks)] {
		c := d.Checks[n]
		h := Heartbeat{id, d.ttlStatus(c), output, c.TTL / 3, c.Health}
		if c.Health {
			h.Output = cmp.Or(d.Output, "Docker says "+d.Health)
		}
		if c.TTL > 0 && have.Checks[h.Check] != nil {
			out = append(out, h)
		}
	}
	return out
}

// Due returns when the heartbeat is due after the last one, which may be the zero time: after a third of the TTL, or at once
// if the agent holds another status.
func (h Heartbeat) Due(have Registered, last time.Time) time.Time {
	is := have.Checks[h.Check]
	if is == nil || is.Status != h.Status || (h.health && is.Output != h.Output) {
		return time.Time{}
	}
	return last.Add(h.Every)
}

// Said records the heartbeat in have. It returns the check as it was before, or nil if there was no such check.
func (h Heartbeat) Said(have Registered) (was *api.AgentCheck) {
	if was = have.Checks[h.Check]; was != nil {
		now := *was
		now.Status, now.Output = h.Status, h.Output
		have.Checks[h.Check] = &now
	}
	return was
}
