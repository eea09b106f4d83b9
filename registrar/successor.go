package registrar

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"berth/registrar/docker"
	"berth/registrar/label"
)

// successor is the container that compose (v2) has created to replace another one (SERVICE_REPLACE=start-first). The old
// container serves until the successor does. compose creates the new container, stops the old one, and then starts the new
// one unless it already runs. The registrar starts it earlier and ignores the old one's harmless stop signal for now;
// compose waits meanwhile.
type successor struct {
	id      string
	name    string // its name before the start
	unheard bool   // berth learned of the successor from a list and does not know whether the old one was told to stop

	created time.Time // zero = not inspected yet
	started bool      // Docker reports that it runs
	unfit   string    // why the old container does not wait for it; "" = it waits

	since time.Time // start of its time in service; zero = it is not in service
	over  time.Time // when the old container stopped waiting; zero = it still waits
}

// takenUp is how long a successor is in service before the old container is drained. A balancer applies a catalog change
// within tens of milliseconds, or 200 if it must reload, and it learns of the drain later in the same way. Anything slower
// is covered by the drain time, during which the old container still answers.
const takenUp = 200 * time.Millisecond

// succeed records that a container was created to replace another one, and reports whether that one is known. old is the
// beginning of its ID.
func (s *state) succeed(id, old string, unheard bool) bool {
	for _, t := range s.containers {
		if !strings.HasPrefix(t.id, old) {
			continue
		}
		if x := t.successor; x == nil || (!unheard && x.id != id) {
			t.successor = &successor{id: id, name: fmt.Sprintf("%.12s", id), unheard: unheard}
		}
		return true
	}
	return false
}

// replacedBy returns the container that another one will replace, or nil.
func (s *state) replacedBy(id string) *tracked {
	for _, t := range s.containers {
		if t.successor != nil && t.successor.id == id {
			return t
		}
	}
	return nil
}

// drainsFirst reports whether a container keeps serving after Docker's stop signal until it gets its real one.
func (s *state) drainsFirst(t *tracked) bool {
	real := label.StopSignal(t.Container, s.host.Policy)
	return real != 0 && real != t.StopSignal
}

// waits reports whether a container that is told to stop serves until its successor does.
func (s *state) waits(t *tracked) bool {
	return t.successor != nil && t.successor.over.IsZero() && s.drainsFirst(t) && s.registers(t)
}

// drainTime is how long a container is drained before it gets its real stop signal, well before Docker kills it.
func (s *state) drainTime(t *tracked) time.Duration { return min(s.opts.DrainTime, t.StopTimeout/2) }

// patience is how long after Docker's stop signal a container may wait for its successor. It leaves time to drain and to end
// before Docker kills the container.
func (s *state) patience(t *tracked) time.Duration {
	margin := min(max(t.StopTimeout/5, time.Second), 10*time.Second)
	return t.StopTimeout - s.drainTime(t) - margin
}

// judge records the inspection of a successor before its start, and whether it fits.
func (s *state) judge(t *tracked, in docker.Inspected, now time.Time) {
	x := t.successor
	if in.ID == "" {
		x.unfit = "it was removed again"
		return
	}
	x.created, x.name, x.started = in.Created, in.Name, in.Running
	if x.unheard {
		x.unheard = false
		if age := now.Sub(in.Created); age > t.StopTimeout || t.Started.After(in.Created) || !s.drainsFirst(t) {
			t.successor = nil // compose was interrupted
			return
		}
		at := in.Created // compose stops the old one right after creating it
		if at.After(now) {
			at = now
		}
		t.kills = append(t.kills, kill{signal: t.StopSignal, at: at, sent: at})
	}
	x.unfit = s.unfit(t, in)
	s.takeSignals(t)
}

// unfit says why a container does not wait for its successor, or returns "".
func (s *state) unfit(t *tracked, in docker.Inspected) string {
	asked, why := label.StartsFirst(in.Container, s.host.Policy)
	host := s.host
	host.Internal = true // it has no address yet
	instances, _ := label.Instances(in.Container, host)
	switch {
	case !asked:
		return "SERVICE_REPLACE does not ask for it"
	case why != "":
		return why
	case !in.SameService(t.Container):
		return "the two do not belong to the same service of a compose project"
	case label.Single(t.Container) != "":
		return "SERVICE_SINGLE of the old one forbids two at the same time"
	case len(instances) == 0:
		return "it registers nothing"
	case !s.drainsFirst(t):
		return "the old one lacks stop_signal: SIGCONT with the real signal in SERVICE_STOP_SIGNAL: it works from the next replacement on"
	case !s.registers(t):
		return "the old one is not registered"
	case s.patience(t) <= 0:
		return fmt.Sprintf("the old one's stop_grace_period of %v leaves no time for a start: make it longer", t.StopTimeout)
	}
	return ""
}

// handover is the state between a container and its successor.
type handover struct {
	*tracked        // the old container
	serves   bool   // the successor is in service
	over     bool   // the old container no longer waits
	why      string // why the successor does not serve
}

// handovers plans what to do about successors.
func (p *planner) handovers() {
	for _, t := range p.containers {
		if t.successor != nil && t.successor.over.IsZero() && t.drain == nil && p.enoughKnown(t) {
			p.plan.handovers = append(p.plan.handovers, p.handover(t))
		}
	}
	slices.SortFunc(p.plan.handovers, func(a, b handover) int { return strings.Compare(a.id, b.id) })
}

func (p *planner) handover(t *tracked) handover {
	x := t.successor
	if x.unfit != "" {
		return handover{t, false, true, x.unfit}
	}
	why := p.notServing(t)
	h := handover{t, why == "", false, why}
	long := h.serves && !x.since.IsZero() && p.due(x.since.Add(takenUp))
	for _, k := range t.kills {
		if k.signal == t.StopSignal { // otherwise compose was interrupted before it stopped the old one, and both may serve
			h.over = h.over || long || p.due(k.at.Add(p.patience(t)))
		}
	}
	return h
}

// notServing says why the successor of a container is not in service, or returns "". It plans the calls that get it there.
//
// In service means that Consul's catalog lists it as passing, with its routes. What balancers report would be one more
// reason here.
func (p *planner) notServing(t *tracked) string {
	x := t.successor
	next := p.containers[x.id]
	switch {
	case x.created.IsZero():
		p.call(planned{key: key{kind: judging, id: x.id}})
		return "Docker has not described it yet"
	case p.placing[x.id]:
		return "it is being given its group's configuration and files"
	case !x.started:
		p.call(planned{key: key{kind: launching, id: x.id}})
		if err := p.last(key{kind: launching, id: x.id}).err; err != nil {
			return "it could not be started: " + err.Error()
		}
		return "Docker has not started it yet"
	case next == nil:
		return "it has ended"
	case !p.enoughKnown(next):
		return "Docker has not described it yet"
	}
	if why := p.notInService(next); why != "" {
		return why
	}
	for _, i := range next.instances {
		if why := i.desired.NoRoute(); why != "" {
			return "it gets no requests: " + why
		}
		if p.catalog.Known() && !p.catalog.Services[i.desired.ID] && p.last(key{kind: comparing}).err == nil {
			return "Consul's catalog does not have it yet"
		}
	}
	return ""
}

// handOver carries out the handovers, and reports whether that changes the plan.
func (r *Registrar) handOver(all []handover, now time.Time) (changed bool) {
	for _, h := range all {
		x := h.successor
		switch {
		case h.over:
			x.over = now
			log := r.opts.Log.With("container", x.name, "replaces", fmt.Sprintf("%s (%.12s)", h.Name, h.id))
			switch {
			case h.serves:
				log.Info(x.name + " serves; draining " + h.Name + ", which it replaces")
			case x.unfit != "":
				log.Warn(x.name + " starts only after " + h.Name + " has stopped: " + x.unfit)
			default:
				log.Warn(fmt.Sprintf("%s does not serve yet, but %s is drained all the same, because Docker kills it %v after its stop signal: "+
					"see why, or make its stop_grace_period longer", x.name, h.Name, h.StopTimeout), "err", h.why)
			}
			r.takeSignals(h.tracked)
		case h.serves == x.since.IsZero():
			if x.since = (time.Time{}); h.serves {
				x.since = now
			}
		default:
			continue
		}
		changed = true
	}
	return changed
}

// launch tells Docker to start a successor, and says why Docker refuses.
func (r *Registrar) launch(ctx context.Context, id string) (refused string, err error) {
	err = r.opts.Start(ctx, id)
	var refusal *docker.Refusal
	if errors.As(err, &refusal) {
		return fmt.Sprintf("Docker refuses to start it next to the old one: %s: remove ipv4_address and anything else that only one container can have", refusal.Why), nil
	}
	return "", err
}

// launched records that a successor was started, or that Docker refused to.
func (r *Registrar) launched(t *tracked, refused string) {
	if t.successor.started = refused == ""; !t.successor.started {
		t.successor.unfit = refused
		return
	}
	r.opts.Log.Info("started "+t.successor.name+" next to "+t.Name+", which it replaces", "container", t.successor.name, "replaces", fmt.Sprintf("%s (%.12s)", t.Name, t.id))
}
