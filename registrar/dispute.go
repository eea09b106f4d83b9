package registrar

import (
	"slices"
	"time"

	"berth/registrar/agent"
)

const (
	// disputed is how many changes of an instance in a row must be undone before another program is held responsible.
	disputed = 3

	// forgives is how long nothing may be undone before the dispute counts as over.
	forgives = 5 * time.Minute

	// concedes and concedesMost are the first and the longest pause before a disputed instance is changed again.
	concedes, concedesMost = 2 * time.Minute, 30 * time.Minute
)

// disputes notices when another program keeps undoing what this registrar does. That is usually a second registrar with the
// same owner: each is right on its own, and together they would go on forever.
type disputes map[string]*dispute

// dispute records what happened to the changes of one instance.
type dispute struct {
	made   agent.Change // last one confirmed by Consul
	undone int          // how often in a row
	at     time.Time    // when it was last undone, or else when made was confirmed
}

// confirmed records a change that a read shows.
func (d disputes) confirmed(c agent.Change, now time.Time) {
	if !c.Register && !c.Deregister {
		return
	}
	if d[c.ID] == nil {
		d[c.ID] = &dispute{}
	}
	d[c.ID].made = c
	if d[c.ID].undone == 0 {
		d[c.ID].at = now
	}
}

// compare counts the confirmed changes that were undone. It skips instances that the registrar itself is changing.
func (d disputes) compare(have agent.State, own agent.Ownership, changing func(id string) bool, now time.Time) {
	for id, is := range d {
		s := have[id]
		undone := false
		switch {
		case changing(id):
			continue
		case is.made.Deregister:
			undone = s.Held() && own.Owns(s.AgentService)
		case is.made.Register:
			undone = !is.made.Same(s)
		}
		if undone {
			is.undone, is.at, is.made = is.undone+1, now, agent.Change{}
		} else if now.Sub(is.at) > forgives+is.pause() {
			is.undone = 0
			if !is.made.Register {
				delete(d, id)
			}
		}
	}
}

// pause is how long a change waits after the last one was undone.
func (i *dispute) pause() time.Duration {
	if i.undone < disputed {
		return 0
	}
	return min(concedes<<min(i.undone-disputed, 10), concedesMost)
}

// from returns when the registration of an instance may be changed or removed. A missing registration does not wait: a
// running container has a right to one.
func (d disputes) from(id string) time.Time {
	if is := d[id]; is != nil {
		return is.at.Add(is.pause())
	}
	return time.Time{}
}

// instances returns the IDs of the disputed instances.
func (d disputes) instances() (ids []string) {
	for id, is := range d {
		if is.undone >= disputed {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}
