// Package rollout replaces the containers of a compose service batch by batch, without a failed request. compose creates the
// new containers, the balancers report when they serve them, and the old ones are drained, stopped and removed by their ID.
// (Never by scaling down: docker-compose 1.29, and compose before 2.31, would remove the new ones.)
package rollout

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"berth/registrar/group/session"
	"berth/registrar/retry"
)

// Rollout rolls out one service. Its calls to Docker, compose and Consul can be repeated: an interrupted rollout continues
// from its State, or is rolled back from it.
type Rollout struct {
	Project, Service string

	Up        func(ctx context.Context, service string, n int) error // creates containers until the service has n
	Docker    Docker
	Catalog   Catalog
	Balancers func(context.Context) ([]Serving, error)
	Save      func(context.Context, State) error
	Say       func(format string, args ...any) // prints a line for the operator

	State State

	started  map[string]time.Time // start times of new containers that are ready
	restarts map[string]int
	seen     map[string]time.Time // when a container's instances first passed
	relevant map[string]time.Time // last report of each balancer that has had an instance of the service
	told     map[string]bool      // messages said once
	names    map[string]string    // services by the addresses of their instances
	routed   map[routed]bool

	registered map[string]bool // containers that were registered once
}

// routed is a service of which a balancer has, or has had, an instance.
type routed struct{ balancer, service string }

const (
	pollTime = 100 * time.Millisecond
	// settleTime is how long a new container must pass its checks if no balancer reports that it serves it.
	settleTime = 2 * time.Second
	// namesTime is how long a new container, once registered as one service, may take to be registered as all services of
	// the old ones.
	namesTime = 5 * time.Second
	// appearTime is how long balancers may take to report.
	appearTime = 3 * time.Second
	// blindTime is how long an old container drains if no balancer reports what it has in flight.
	blindTime = 10 * time.Second
	// goneTime is how long to wait for a balancer that no longer reports: its berth may have been restarted.
	goneTime = 30 * time.Second
	// againTime is how long an old container may take to be registered again after the agent has lost its state.
	againTime = 15 * time.Second
	// mostRestarts is how often a new container may be restarted before it is ready.
	mostRestarts = 3
	// undoTime limits the rollback of a batch, in addition to the time for in-flight requests.
	undoTime = time.Minute
)

// FailedError means that new containers do not work, and says what became of the rollout.
type FailedError struct {
	Reason  string
	Details []string // health check and log of the first failed container
	Outcome string
}

func (e *FailedError) Error() string {
	return strings.Join(append([]string{e.Reason + "; " + e.Outcome}, e.Details...), "\n")
}

// Run continues until everything is replaced. The error is a *FailedError if new containers do not work. left reports
// whether --resume and --abort can continue from there.
func (r *Rollout) Run(ctx context.Context) (left bool, err error) {
	r.begin()
	if err := r.introduce(ctx); err != nil && r.State.Phase == PhaseNext {
		return false, err // nothing is half done
	} else if err != nil {
		return true, r.cut(ctx, err)
	}
	for {
		done, err := r.step(ctx)
		var failed *failure
		switch {
		case errors.As(err, &failed):
			if left, err := r.fail(ctx, failed); err != nil {
				return left, err
			}
			if err := r.leaveOut(ctx, failed.bad); err != nil {
				return r.stop(ctx, err)
			}
		case err != nil:
			return r.stop(ctx, err)
		case done && r.State.Failed > 0 && r.State.Options.Order == StopFirst:
			return false, &FailedError{Reason: fmt.Sprintf("%d of %d new containers do not work", r.State.Failed, r.State.Total), Outcome: "they stay as they are"}
		case done && r.State.Failed > 0:
			return false, &FailedError{Reason: fmt.Sprintf("%d of %d new containers have failed and were removed", r.State.Failed, r.State.Total), Outcome: "as many old ones keep serving"}
		case done:
			return false, nil
		}
	}
}

func (r *Rollout) begin() {
	r.started, r.restarts, r.seen = map[string]time.Time{}, map[string]int{}, map[string]time.Time{}
	r.relevant, r.told = map[string]time.Time{}, map[string]bool{}
	r.names, r.routed, r.registered = map[string]string{}, map[routed]bool{}, map[string]bool{}
}

// stop rolls the batch back after an error or ^C. Without the lock, without Consul, or if old containers were stopped first,
// it leaves everything for --resume.
func (r *Rollout) stop(ctx context.Context, err error) (left bool, _ error) {
	begun := r.State.Phase != PhaseNext && r.State.Phase != PhaseDrain
	if errors.Is(context.Cause(ctx), session.ErrLost) || r.State.Options.Order == StopFirst && begun {
		return true, r.cut(ctx, err)
	}
	r.Say("%s: %s; undoing the last step", r.Service, reason(ctx, err))
	if undone := r.Undo(ctx); undone != nil {
		return true, errors.Join(r.cut(ctx, err), undone)
	}
	return false, fmt.Errorf("%w; %s", caused(ctx, err), r.outcome())
}

func reason(ctx context.Context, err error) string {
	if ctx.Err() != nil {
		return "ended by " + context.Cause(ctx).Error()
	}
	return err.Error()
}

// caused adds the cause of the end of ctx to an error, if ctx has ended.
func caused(ctx context.Context, err error) error {
	switch cause := context.Cause(ctx); {
	case cause == nil || errors.Is(err, cause):
		return err
	case errors.Is(err, context.Canceled):
		return cause
	default:
		return fmt.Errorf("%w: %w", err, cause)
	}
}

func (r *Rollout) cut(ctx context.Context, err error) error {
	err = caused(ctx, err)
	if r.State.Options.Order == StopFirst {
		return fmt.Errorf("%w; old ones may be stopped already: continue with 'berth rollout --resume %s'", err, r.Service)
	}
	return fmt.Errorf("%w; continue with 'berth rollout --resume %s', or undo the last step with --abort", err, r.Service)
}

// outcome describes the state after a batch was rolled back.
func (r *Rollout) outcome() string {
	switch r.State.Replaced {
	case 0:
		return "rolled back: the old ones serve"
	case r.State.Total:
		return "all were replaced before, and stay so"
	}
	return fmt.Sprintf("rolled back: %d of %d were replaced before, and stay so; the others are the old ones", r.State.Replaced, r.State.Total)
}

// introduce finds out the addresses by which the balancers know the service, and which balancers exist.
func (r *Rollout) introduce(ctx context.Context) error {
	list, err := Containers(ctx, r.Docker, r.Project, r.Service)
	if err != nil {
		return err
	}
	instances, err := r.Catalog.Instances(ctx, ids(list))
	if err != nil {
		return err
	}
	if len(r.State.Services) == 0 {
		for _, of := range instances {
			for _, in := range of {
				r.State.Services = append(r.State.Services, in.Service)
			}
		}
		slices.Sort(r.State.Services)
		r.State.Services = slices.Compact(r.State.Services)
	}
	if err := r.know(ctx, instances); err != nil {
		return err
	}
	if len(r.State.Services) == 0 {
		for _, c := range list {
			if c.Running() && asksForService(c.Labels) {
				return fmt.Errorf("%s is not registered at this Consul agent, although its labels ask for it: is the registrar running, and does it use this agent?", c.short())
			}
		}
		r.once("%s: no instance of it is registered at this Consul agent: its containers only need to be healthy, and are not drained", r.Service)
		return nil
	}
	for deadline := time.Now().Add(appearTime); ; {
		all, err := r.Balancers(ctx)
		have, telling := r.telling(ctx)
		late := time.Now().After(deadline)
		switch {
		case err != nil && (isDenied(err) || late), err == nil && len(all) == 0 && late:
			why := "none of them reports what it serves"
			if err != nil {
				why = err.Error()
			}
			r.once("%s: warning: the balancers are not known (%s): a new container counts as served when it has passed its checks in Consul for %s, and an old one drains for %s",
				r.Service, why, settleTime, min(blindTime, r.State.Options.DrainTimeout))
			return nil
		case err == nil && telling == nil && len(all) > 0 && (late || r.haveTold(all)):
			if len(have) == 0 {
				r.once("%s: no balancer has it: an old one drains for %s", r.Service, min(blindTime, r.State.Options.DrainTimeout))
				return nil
			}
			var names []string
			for _, s := range have {
				names = append(names, s.Balancer)
			}
			r.once("%s: served by %s", r.Service, strings.Join(names, ", "))
			return nil
		}
		if !retry.Pause(ctx, pollTime) {
			return context.Cause(ctx)
		}
	}
}

// asksForService reports whether labels ask to register a container.
func asksForService(labels map[string]string) (asks bool) {
	for key := range labels {
		key = strings.ToUpper(key)
		if key == "SERVICE_IGNORE" {
			return false
		}
		asks = asks || strings.HasPrefix(key, "SERVICE_") && (strings.HasSuffix(key, "_NAME") || strings.Contains(key, "_ROUTE_"))
	}
	return asks
}

// haveTold reports whether balancers have reported on all addresses of the service, or why they cannot.
func (r *Rollout) haveTold(balancers []Serving) bool {
	for _, s := range balancers {
		for _, address := range r.State.Addresses {
			if _, told := s.Servers[address]; !told && s.Error == "" {
				return false
			}
		}
	}
	return true
}

// once says each message once.
func (r *Rollout) once(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !r.told[text] {
		r.told[text] = true
		r.Say("%s", text)
	}
}

// know saves the addresses of instances, so that the balancers report on them.
func (r *Rollout) know(ctx context.Context, instances map[string][]Instance) error {
	addresses := slices.Clone(r.State.Addresses)
	for container, of := range instances {
		for _, in := range of {
			r.registered[container] = true
			r.names[in.Address] = in.Service
			if in.Address != "" && !slices.Contains(addresses, in.Address) {
				addresses = append(addresses, in.Address)
			}
		}
	}
	if len(addresses) == len(r.State.Addresses) {
		return nil
	}
	slices.Sort(addresses)
	s := r.State
	s.Addresses = addresses
	if err := r.Save(ctx, s); err != nil {
		return err // an unsaved address stays unknown: no balancer reports on it
	}
	r.State = s
	return nil
}

// step does the work of a phase, and enters the next one.
func (r *Rollout) step(ctx context.Context) (done bool, err error) {
	switch r.State.Phase {
	case PhaseCreate:
		err = r.create(ctx)
	case PhaseReady:
		err = r.awaitReady(ctx)
	case PhaseMonitor:
		err = r.monitor(ctx)
	case PhaseDrain:
		err = r.drain(ctx, r.State.Old)
	case PhaseRemove:
		err = r.remove(ctx, r.State.Old)
	case PhaseNext:
		return r.nextBatch(ctx)
	default:
		err = fmt.Errorf("the phase %q is not one of this version of berth", r.State.Phase)
	}
	if err != nil {
		return false, err
	}
	r.State.Phase = r.State.after()
	if r.State.Phase == PhaseNext {
		r.State.Replaced += len(r.State.New)
		r.State.Extra, r.State.Old, r.State.New, r.State.Before = 0, nil, nil, nil
		r.Say("%s: %d of %d replaced", r.Service, r.State.Replaced, r.State.Total)
	}
	return false, r.Save(ctx, r.State)
}

func (r *Rollout) nextBatch(ctx context.Context) (done bool, err error) {
	if len(r.State.Todo) == 0 && r.State.Extra == 0 {
		return true, nil
	}
	if r.State.Replaced+r.State.Failed > 0 && len(r.State.Todo) > 0 && !retry.Pause(ctx, r.State.Options.Delay) {
		return false, context.Cause(ctx)
	}
	list, err := Containers(ctx, r.Docker, r.Project, r.Service)
	if err != nil {
		return false, err
	}
	there := ids(list)
	todo := len(r.State.Todo)
	r.State.Todo = slices.DeleteFunc(slices.Clone(r.State.Todo), func(id string) bool { return !slices.Contains(there, id) })
	if gone := todo - len(r.State.Todo); gone > 0 {
		r.State.Total -= gone
		r.Say("%s: %d of the containers to replace are gone, so they are not replaced", r.Service, gone)
	}
	next, more := r.State.next(there)
	if !more {
		return true, nil
	}
	r.State = next
	return false, r.Save(ctx, r.State)
}

// fresh returns the new containers of the batch.
func (r *Rollout) fresh(ctx context.Context) (fresh []Container, all int, err error) {
	list, err := Containers(ctx, r.Docker, r.Project, r.Service)
	for _, c := range list {
		if !slices.Contains(r.State.Before, c.ID) {
			fresh = append(fresh, c)
		}
	}
	return fresh, len(list), err
}

// create makes compose create the new containers of the batch.
func (r *Rollout) create(ctx context.Context) error {
	fresh, all, err := r.fresh(ctx)
	if err != nil {
		return err
	}
	want := len(r.State.Old) + r.State.Extra
	if missing := want - len(fresh); missing > 0 {
		if err := r.Up(ctx, r.Service, all+missing); err != nil {
			return err
		}
		if fresh, _, err = r.fresh(ctx); err != nil {
			return err
		}
	}
	if len(fresh) < want {
		return fmt.Errorf("compose has created %d of %d containers of %s", len(fresh), want, r.Service)
	}
	r.State.New = ids(fresh)
	return nil
}
