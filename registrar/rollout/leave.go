package rollout

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"berth/registrar/retry"
)

// drain takes containers out of service, and returns when the balancers have nothing in flight for them, or the time is
// over.
func (r *Rollout) drain(ctx context.Context, containers []string) error {
	instances, err := r.registrations(ctx, containers)
	if err != nil {
		return err
	}
	var addresses []string
	for _, id := range containers {
		for _, in := range instances[id] {
			if in.Address != "" {
				addresses = append(addresses, in.Address)
			}
			if in.Maintenance != "" {
				continue
			}
			if err := r.maintain(ctx, in.ID, true); err != nil {
				return err
			}
		}
	}
	if len(addresses) == 0 {
		return nil
	}
	if err := r.know(ctx, instances); err != nil {
		return err
	}
	began := time.Now()
	for {
		var balancers []Serving
		err := insist(ctx, func() (err error) {
			balancers, err = r.telling(ctx)
			return err
		})
		if err != nil {
			return err
		}
		busy, unknown := busy(balancers, addresses)
		lasts := time.Since(began)
		if unknown && lasts < min(blindTime, r.State.Options.DrainTimeout) && busy == "" {
			busy = "their in-flight requests are not known"
		}
		if busy == "" {
			return nil
		}
		if lasts >= r.State.Options.DrainTimeout {
			r.Say("%s: after %s: %s; it ends with the container", r.Service, r.State.Options.DrainTimeout, busy)
			return nil
		}
		if !retry.Pause(ctx, pollTime) {
			return context.Cause(ctx)
		}
	}
}

// patience is how long Consul may be away.
const patience = 30 * time.Second

// insist calls f until it succeeds, within patience.
func insist(ctx context.Context, f func() error) error {
	for deadline := time.Now().Add(patience); ; {
		err := f()
		if err == nil || isDenied(err) || time.Now().After(deadline) || !retry.Pause(ctx, 2*pollTime) {
			return err
		}
	}
}

func (r *Rollout) instances(ctx context.Context, containers []string) (of map[string][]Instance, err error) {
	err = insist(ctx, func() error {
		of, err = r.Catalog.Instances(ctx, containers)
		return err
	})
	return of, err
}

// registrations returns the instances of containers to drain. It waits for running containers that were registered before:
// an agent that has lost its state gets them back within seconds.
func (r *Rollout) registrations(ctx context.Context, containers []string) (map[string][]Instance, error) {
	for deadline := time.Now().Add(againTime); ; {
		of, err := r.instances(ctx, containers)
		if err != nil || time.Now().After(deadline) || !r.lacks(ctx, of, containers) {
			return of, err
		}
		if !retry.Pause(ctx, pollTime) {
			return nil, context.Cause(ctx)
		}
	}
}

// lacks reports whether Consul lacks a running container that was registered before.
func (r *Rollout) lacks(ctx context.Context, instances map[string][]Instance, containers []string) bool {
	return slices.ContainsFunc(containers, func(id string) bool {
		if !r.registered[id] || slices.ContainsFunc(instances[id], func(in Instance) bool { return in.Address != "" }) {
			return false
		}
		c, err := inspect(ctx, r.Docker, id)
		return err == nil && c != nil && c.Running()
	})
}

func (r *Rollout) maintain(ctx context.Context, id string, on bool) error {
	return insist(ctx, func() error { return r.Catalog.Maintain(ctx, id, on, r.why()) })
}

// why returns the reason of the rollout's maintenance mode.
func (r *Rollout) why() string { return "rollout of " + r.Project + "/" + r.Service }

// busy says what the balancers have in flight for addresses, or returns "", and whether some of them do not know.
func busy(balancers []Serving, addresses []string) (text string, unknown bool) {
	requests := 0
	for _, s := range balancers {
		if s.Error != "" {
			unknown = true
			continue
		}
		unknown = unknown || s.Blind
		for _, address := range addresses {
			is, told := s.Servers[address]
			switch {
			case !told:
				text = fmt.Sprintf("the balancer %s does not report its in-flight requests for %s", s.Balancer, address)
			case is.Usable:
				text = fmt.Sprintf("the balancer %s still sends requests to %s", s.Balancer, address)
			}
			requests += max(is.InFlight, 0)
		}
	}
	if text == "" && requests > 0 {
		text = fmt.Sprintf("%d requests or connections are in flight", requests)
	}
	return text, unknown || len(balancers) == 0
}

// remove stops and removes containers at the same time, even if ctx is done: a container that was told to stop has left.
func (r *Rollout) remove(ctx context.Context, containers []string) error {
	ctx = context.WithoutCancel(ctx)
	var g errgroup.Group
	for _, id := range containers {
		c, err := inspect(ctx, r.Docker, id)
		if err != nil {
			return errors.Join(err, g.Wait())
		}
		if c != nil && c.Labels[labelProject] == r.Project && c.Labels[labelService] == r.Service { // the State is from Consul and may name any container
			g.Go(func() error {
				ctx, cancel := context.WithTimeout(ctx, c.StopTimeout+undoTime)
				defer cancel()
				return end(ctx, r.Docker, *c)
			})
		}
	}
	return g.Wait()
}

// fail handles new containers that do not work. It returns no error if the rollout continues without them.
func (r *Rollout) fail(ctx context.Context, f *failure) (left bool, err error) {
	o := r.State.Options
	out := &FailedError{Reason: f.reason, Details: r.details(ctx, f.bad[0])}
	tolerated := float64(r.State.Failed+len(f.bad)) <= o.MaxFailureRatio*float64(r.State.Total)
	switch {
	case o.Order == StopFirst && !tolerated && o.FailureAction != Continue:
		out.Outcome = "the old ones were stopped first, so the new ones stay as they are"
		r.State.Reason = f.reason
		return true, errors.Join(out, r.Save(ctx, r.State))
	case tolerated || o.FailureAction == Continue:
		r.Say("%s: %s; going on with the others", r.Service, strings.ReplaceAll(strings.Join(append([]string{f.reason}, out.Details...), "; "), "\n", "; "))
		return false, nil
	case o.FailureAction == Pause:
		out.Outcome = fmt.Sprintf("paused: the old ones keep serving. Continue with 'berth rollout --resume %[1]s', or roll it back with 'berth rollout --abort %[1]s'", r.Service)
		r.State.Reason = f.reason
		return true, errors.Join(out, r.Save(ctx, r.State))
	}
	if err := r.Undo(ctx); err != nil {
		out.Outcome = "it could not be rolled back"
		return true, r.cut(ctx, errors.Join(out, err))
	}
	out.Outcome = r.outcome()
	return false, out
}

// details returns what a failed container says itself.
func (r *Rollout) details(ctx context.Context, id string) (lines []string) {
	ctx = context.WithoutCancel(ctx)
	c, err := inspect(ctx, r.Docker, id)
	if c == nil || err != nil {
		return nil
	}
	if c.HealthOutput != "" {
		lines = append(lines, "its health check says: "+strings.Map(printable, strings.Join(strings.Fields(c.HealthOutput), " ")))
	}
	log := lastLog(ctx, r.Docker, *c)
	if len(log) > 0 {
		lines = append(lines, "its log ends with:")
	}
	for _, line := range log {
		lines = append(lines, "  "+line)
	}
	return lines
}

// leaveOut removes new containers that have failed, and continues with the others: as many fewer old ones leave. If the old
// ones have already left, the new ones stay.
func (r *Rollout) leaveOut(ctx context.Context, bad []string) error {
	if r.State.Options.Order != StopFirst { // until that is done, all of them may have to be undone
		if err := r.drop(ctx, bad); err != nil {
			return err
		}
	}
	r.State.Failed += len(bad)
	r.State.New = slices.DeleteFunc(slices.Clone(r.State.New), func(id string) bool { return slices.Contains(bad, id) })
	if r.State.Options.Order != StopFirst {
		r.State.Old = r.State.Old[:max(0, min(len(r.State.Old), len(r.State.New)-r.State.Extra))]
	}
	r.State.Phase = PhaseReady // of the others
	if len(r.State.New) == 0 {
		r.State.Phase, r.State.Extra = PhaseNext, 0
	}
	return r.Save(ctx, r.State)
}

// drop drains containers and removes them.
func (r *Rollout) drop(ctx context.Context, containers []string) error {
	if err := r.drain(ctx, containers); err != nil && !isDenied(err) { // without the right, the registrar does it when they are stopped
		return err
	}
	return r.remove(ctx, containers)
}

// Undo reverts the batch, even if ctx is done: the remaining old containers serve, and as many new ones leave.
func (r *Rollout) Undo(ctx context.Context) error {
	if r.told == nil {
		r.begin()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime+r.State.Options.DrainTimeout)
	defer cancel()
	switch {
	case r.State.Phase == PhaseNext:
		return nil
	case r.State.Phase == PhaseRemove && r.State.Options.Order != StopFirst && !r.oldIsBetter(ctx):
		r.State.Replaced += len(r.State.New)
		return r.remove(ctx, r.State.Old) // they may have been told to stop, and the new ones serve
	}
	list, err := Containers(ctx, r.Docker, r.Project, r.Service)
	if err != nil {
		return err
	}
	var old, fresh []string
	for _, c := range list {
		switch {
		case slices.Contains(r.State.New, c.ID), r.State.Phase == PhaseCreate && !slices.Contains(r.State.Before, c.ID): // the new ones are not known yet
			fresh = append(fresh, c.ID)
		case slices.Contains(r.State.Old, c.ID) && c.Running():
			old = append(old, c.ID)
		}
	}
	back, err := r.undrain(ctx, old)
	if err != nil {
		return err
	}
	if len(back) > 0 {
		if err := r.awaitOld(ctx, back); err != nil {
			return err
		}
	}
	// New containers replace the old ones that are gone.
	stays := len(r.State.Old) - len(r.present(list))
	if missing := len(r.State.Old) - len(old) - len(fresh); r.State.Options.Order == StopFirst && r.State.Phase != PhaseDrain && missing > 0 {
		return fmt.Errorf("%d of the old containers are stopped or gone, and no new ones replace them: continue with 'berth rollout --resume %s'", missing, r.Service)
	}
	return r.drop(ctx, fresh[min(len(fresh), stays):])
}

// oldIsBetter reports whether new containers of the batch have failed while all old ones still run.
func (r *Rollout) oldIsBetter(ctx context.Context) bool {
	look, err := r.look(ctx, r.State.New)
	if err != nil || look.failure(false) == nil {
		return false
	}
	for _, id := range r.State.Old {
		if c, err := inspect(ctx, r.Docker, id); err != nil || c == nil || !c.Running() {
			return false
		}
	}
	return true
}

// present returns the old containers of the batch that still exist, running or not.
func (r *Rollout) present(list []Container) (out []string) {
	for _, c := range list {
		if slices.Contains(r.State.Old, c.ID) {
			out = append(out, c.ID)
		}
	}
	return out
}

// undrain puts containers back into service, and returns those that were out of service.
func (r *Rollout) undrain(ctx context.Context, containers []string) (back []string, err error) {
	instances, err := r.instances(ctx, containers)
	if err != nil {
		return nil, err
	}
	for _, id := range containers {
		for _, in := range instances[id] {
			if !strings.HasSuffix(in.Maintenance, r.why()) { // it is in service, or was taken out by hand
				continue
			}
			if err := r.maintain(ctx, in.ID, false); err != nil {
				return nil, err
			}
			back = append(back, id)
		}
	}
	slices.Sort(back)
	return slices.Compact(back), nil
}

// awaitOld waits until containers that were put back into service serve.
func (r *Rollout) awaitOld(ctx context.Context, containers []string) error {
	deadline := time.Now().Add(undoTime / 2)
	for {
		look, err := r.look(ctx, containers)
		late := time.Now().After(deadline)
		switch {
		case err != nil && late:
			return err
		case err != nil:
		case look.ready():
			return nil
		default:
			if f := look.failure(late); f != nil { // the new ones serve, and stay for now
				return fmt.Errorf("the old ones do not serve again: %w", f)
			}
		}
		if !retry.Pause(ctx, pollTime) {
			return context.Cause(ctx)
		}
	}
}

func ids(containers []Container) (out []string) {
	for _, c := range containers {
		out = append(out, c.ID)
	}
	return out
}
