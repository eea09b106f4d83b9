package rollout

import (
	"math"
	"time"
)

// Plan is what a rollout does.
type Plan struct {
	Old   []string // to replace, in this order
	Extra int      // additional containers to create
}

// NewPlan decides which containers to replace: those with another configuration or image, or with force all. An unknown
// image or hash ("") counts as different. Containers that do not run go first. target is the wanted number of containers.
func NewPlan(containers []Container, hash, image string, target int, force bool) (p Plan) {
	for _, running := range []bool{false, true} {
		for _, c := range containers {
			current := hash != "" && c.Hash == hash && image != "" && c.ImageID == image
			if c.Running() == running && (force || !current || !running) {
				p.Old = append(p.Old, c.ID)
			}
		}
	}
	p.Extra = max(0, target-len(containers))
	return p
}

// Empty reports whether there is nothing to do.
func (p Plan) Empty() bool { return len(p.Old) == 0 && p.Extra == 0 }

// Begin returns the State before the first batch.
func (p Plan) Begin(who Who, o Options) State {
	return State{Who: who, Since: time.Now().UTC(), Options: o, Phase: PhaseNext, Total: len(p.Old) + p.Extra, Todo: p.Old, Extra: p.Extra}
}

// next starts the next batch, and reports whether one is left.
func (s State) next(before []string) (State, bool) {
	n := s.Options.Parallelism
	if n == 0 {
		n = math.MaxInt
	}
	if len(s.Todo) == 0 && s.Extra == 0 {
		return s, false
	}
	n = min(n, len(s.Todo))
	s.Old, s.Todo = s.Todo[:n:n], s.Todo[n:]
	s.Before, s.New = before, nil
	s.Phase = PhaseCreate
	if s.Options.Order == StopFirst {
		s.Phase = PhaseDrain
	}
	return s, true
}

// after returns the phase after a successful one.
func (s State) after() Phase {
	switch s.Phase {
	case PhaseCreate:
		return PhaseReady
	case PhaseReady:
		return PhaseMonitor
	case PhaseMonitor:
		if s.Options.Order == StopFirst {
			return PhaseNext
		}
		return PhaseDrain
	case PhaseDrain:
		return PhaseRemove
	default:
		if s.Options.Order == StopFirst {
			return PhaseCreate
		}
		return PhaseNext
	}
}
