package agent

import (
	"cmp"
	"time"

	"github.com/hashicorp/consul/api"
)

// Heartbeat is what is to be said about a TTL check, now and again before its time is over.
type Heartbeat struct {
	Check, Status, Output string
	Every                 time.Duration
	health                bool // it repeats what Docker's HEALTHCHECK says
}

// Heartbeats are what is to be said about the TTL checks of an instance that the agent holds. output is for checks that
// say that berth is there.
func (d Desired) Heartbeats(have Registered, output string) (out []Heartbeat) {
	for n, c := range d.Checks {
		h := Heartbeat{checkID(d.ID, n), d.ttlStatus(c), output, c.TTL / 3, c.Health}
		if c.Health {
			h.Output = cmp.Or(d.Output, "Docker says "+d.Health)
		}
		if c.TTL > 0 && have.Checks[h.Check] != nil {
			out = append(out, h)
		}
	}
	return out
}

// Due says when Consul is to hear this, if it was last told about the check at a time, which may be zero: after a third
// of the TTL, and at once when the check says something else at the agent.
func (h Heartbeat) Due(have Registered, last time.Time) time.Time {
	is := have.Checks[h.Check]
	if is == nil || is.Status != h.Status || (h.health && is.Output != h.Output) {
		return time.Time{}
	}
	return last.Add(h.Every)
}

// Said takes note in what the agent holds that it was told so. It returns the check as it was, nil if there is none.
func (h Heartbeat) Said(have Registered) (was *api.AgentCheck) {
	if was = have.Checks[h.Check]; was != nil {
		now := *was
		now.Status, now.Output = h.Status, h.Output
		have.Checks[h.Check] = &now
	}
	return was
}
