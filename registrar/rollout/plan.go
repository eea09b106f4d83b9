package rollout

import (
	"math"
	"time"
)

// Plan is what there is to do.
type Plan struct {
	Old   []string // to replace, in this order
	Extra int      // to make besides
}

// NewPlan says which containers to replace: those that are not of this configuration and image, or with force all. An image
// or a hash that is not known ("") is another one. Those that do not run go first. target is how many there are to be.
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

// next makes the next batch, and reports whether there is one.
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

// after returns the phase that follows one that has succeeded.
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
