// Package rollout replaces the containers of a compose service by new ones, batch by batch, without a failed request: compose
// makes the new ones, the balancers say when they serve them, and the old ones are drained, stopped and removed by their ID.
// (Never by scaling down: docker-compose 1.29, and compose before 2.31, would remove the new ones.)
package rollout

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"berth/registrar/group/session"
	"berth/registrar/retry"
)

// Rollout rolls one service out. Its calls of Docker, compose and Consul can be made again: a rollout that was cut short goes on from its
// State, or is taken back by it.
type Rollout struct {
	Project, Service string

	Up        func(ctx context.Context, service string, n int) error // makes containers until there are n
	Docker    Docker
	Catalog   Catalog
	Balancers func(context.Context) ([]Serving, error)
	Save      func(context.Context, State) error
	Say       func(format string, args ...any) // a line for the operator

	State State

	started  map[string]time.Time // when new containers were started that are ready
	restarts map[string]int
	seen     map[string]time.Time // when a container's instances passed first
	relevant map[string]time.Time // when balancers that have had an instance of the service were last heard of
	told     map[string]bool      // what is said once
}

const (
	pollTime = 100 * time.Millisecond
	// settleTime is how long a new container has to pass its checks where no balancer tells that it serves it.
	settleTime = 2 * time.Second
	// namesTime is how long a new container may take to be registered as all services that the old ones are, once it is as one.
	namesTime = 5 * time.Second
	// appearTime is how long balancers may take to tell that they are there.
	appearTime = 3 * time.Second
	// blindTime is how long an old container drains where no balancer tells what it has in flight.
	blindTime = 10 * time.Second
	// goneTime is how long a balancer that does not tell any more is waited for: its berth may have been restarted.
	goneTime = 30 * time.Second
	// mostRestarts is how often a new container may be restarted before it is ready.
	mostRestarts = 3
	// undoTime is how long it may take to take a batch back, besides the time for what is in flight.
	undoTime = time.Minute
)

// FailedError says that new containers do not work, and what became of the rollout.
type FailedError struct {
	Reason  string
	Details []string // of the first of them: what its health check and its log say
	Outcome string
}

func (e *FailedError) Error() string {
	return strings.Join(append([]string{e.Reason + "; " + e.Outcome}, e.Details...), "\n")
}

// Plan is what there is to do.
type Plan struct {
	Old   []string // to replace, in this order
	Extra int      // to make besides
}

// NewPlan says which containers to replace: those that are not of this configuration and image, or with force all. An image or a hash
// that is not known ("") is another one. Those that do not run go first. target is how many there are to be.
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
func (p Plan) Begin(by string, o Options) State {
	return State{By: by, Since: time.Now().UTC(), Options: o, Phase: PhaseNext, Total: len(p.Old) + p.Extra, Todo: p.Old, Extra: p.Extra}
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

// Run goes on until everything is replaced. The error is a *FailedError if new containers do not work. Left says whether --resume and
// --abort can go on from there.
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
		case err != nil:
			return r.stop(ctx, err)
		case done && r.State.Failed > 0 && r.State.Options.Order == StopFirst:
			return false, fmt.Errorf("%d of %d new containers do not work, and stay as they are", r.State.Failed, r.State.Total)
		case done && r.State.Failed > 0:
			return false, fmt.Errorf("%d of %d new containers have failed and were removed; as many old ones serve on", r.State.Failed, r.State.Total)
		case done:
			return false, nil
		}
	}
}

func (r *Rollout) begin() {
	r.started, r.restarts, r.seen = map[string]time.Time{}, map[string]int{}, map[string]time.Time{}
	r.relevant, r.told = map[string]time.Time{}, map[string]bool{}
}

// stop takes the batch back after an error or ^C. Without the lock or without Consul it leaves everything for --abort.
func (r *Rollout) stop(ctx context.Context, err error) (left bool, _ error) {
	if errors.Is(context.Cause(ctx), session.ErrLost) {
		return true, r.cut(ctx, err)
	}
	r.Say("%s: %s; taking the last step back", r.Service, reason(ctx, err))
	if undone := r.Undo(ctx); undone != nil {
		return true, errors.Join(r.cut(ctx, err), undone)
	}
	return false, fmt.Errorf("%w; %s", err, r.outcome())
}

func reason(ctx context.Context, err error) string {
	if ctx.Err() != nil {
		return "ended by " + context.Cause(ctx).Error()
	}
	return err.Error()
}

func (r *Rollout) cut(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", err, cause)
	}
	return fmt.Errorf("%w; go on by 'berth rollout --resume %s', or take the last step back by --abort", err, r.Service)
}

// outcome says what there is after a batch was taken back.
func (r *Rollout) outcome() string {
	if r.State.Replaced == 0 {
		return "rolled back: the old ones serve"
	}
	return fmt.Sprintf("rolled back: %d of %d were replaced before, and stay so; the others are the old ones", r.State.Replaced, r.State.Total)
}

// introduce finds out by which addresses the balancers know the service, and which balancers there are.
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
				return fmt.Errorf("%s is not registered at this Consul agent, though its labels ask for that: does the registrar run, and is it this agent that it uses?", c.short())
			}
		}
		r.once("%s: no instance of it is registered at this Consul agent: its containers only have to be healthy, and are not drained", r.Service)
		return nil
	}
	for deadline := time.Now().Add(appearTime); ; {
		all, err := r.Balancers(ctx)
		have, telling := r.telling(ctx)
		late := time.Now().After(deadline)
		switch {
		case err != nil && (isDenied(err) || late), err == nil && len(all) == 0 && late:
			why := "none of them tells what it serves"
			if err != nil {
				why = err.Error()
			}
			r.once("%s: warning: the balancers are not known (%s): a new container counts as served when it has passed its checks in Consul for %s, and an old one drains for %s",
				r.Service, why, settleTime, min(blindTime, r.State.Options.DrainTimeout))
			return nil
		case err == nil && telling == nil && len(all) > 0 && (late || r.haveTold(all)):
			if len(have) == 0 {
				r.once("%s: no balancer has it", r.Service)
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

// asksForService reports whether labels ask for a container to be registered.
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

// haveTold reports whether balancers have told of all addresses of the service, or why they cannot.
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

// once says a thing once.
func (r *Rollout) once(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !r.told[text] {
		r.told[text] = true
		r.Say("%s", text)
	}
}

// know saves the addresses of instances, so that the balancers tell of them.
func (r *Rollout) know(ctx context.Context, instances map[string][]Instance) error {
	known := len(r.State.Addresses)
	for _, of := range instances {
		for _, in := range of {
			if in.Address != "" && !slices.Contains(r.State.Addresses, in.Address) {
				r.State.Addresses = append(r.State.Addresses, in.Address)
			}
		}
	}
	if len(r.State.Addresses) == known {
		return nil
	}
	slices.Sort(r.State.Addresses)
	return r.Save(ctx, r.State)
}

// step does what the phase says, and goes on to the next one.
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
	if r.State.Replaced+r.State.Failed > 0 && len(r.State.Todo) > 0 && !retry.Pause(ctx, r.State.Options.Delay) {
		return false, context.Cause(ctx)
	}
	list, err := Containers(ctx, r.Docker, r.Project, r.Service)
	if err != nil {
		return false, err
	}
	next, more := r.State.next(ids(list))
	if !more {
		return true, nil
	}
	r.State = next
	return false, r.Save(ctx, r.State)
}

// fresh returns the containers of the batch that are new.
func (r *Rollout) fresh(ctx context.Context) (fresh []Container, all int, err error) {
	list, err := Containers(ctx, r.Docker, r.Project, r.Service)
	for _, c := range list {
		if !slices.Contains(r.State.Before, c.ID) {
			fresh = append(fresh, c)
		}
	}
	return fresh, len(list), err
}

// create has compose make the new containers of the batch.
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
		return fmt.Errorf("compose has made %d of %d containers of %s", len(fresh), want, r.Service)
	}
	r.State.New = ids(fresh)
	return nil
}

// verdict is how far a new container is.
type verdict struct {
	ready  bool
	failed bool   // for good
	reason string // unless it is ready
}

// failure is that new containers of the batch do not work.
type failure struct {
	bad    []string // containers
	reason string   // of the first of them
}

func (f *failure) Error() string { return f.reason }

// awaitReady returns when all new containers serve, or with a *failure when one never will, or has not in time.
func (r *Rollout) awaitReady(ctx context.Context) error {
	deadline := time.Now().Add(r.State.Options.ReadyTimeout)
	for {
		look, err := r.look(ctx)
		if err != nil && (ctx.Err() != nil || time.Now().After(deadline)) {
			return err
		}
		late := time.Now().After(deadline)
		if f := look.failure(late); f != nil && err == nil {
			if late {
				f.reason += fmt.Sprintf(", %s after its start", r.State.Options.ReadyTimeout)
			}
			return f
		}
		if err == nil && look.ready() {
			for _, c := range look.containers {
				r.started[c.ID], r.restarts[c.ID] = c.Started, c.Restarts
				r.Say("%s: %s serves, %s after its start", r.Service, c.short(), time.Since(c.Started).Round(100*time.Millisecond))
			}
			return nil
		}
		if !retry.Pause(ctx, pollTime) {
			return context.Cause(ctx)
		}
	}
}

// monitor watches the new containers for a while.
func (r *Rollout) monitor(ctx context.Context) error {
	end := time.Now().Add(r.State.Options.Monitor)
	for {
		look, err := r.look(ctx)
		over := !time.Now().Before(end)
		switch {
		case err != nil && (ctx.Err() != nil || over):
			return err
		case err == nil:
			if f := look.failure(over); f != nil {
				return f
			}
			if over {
				return nil
			}
		}
		if !retry.Pause(ctx, min(pollTime, max(time.Until(end), time.Millisecond))) {
			return context.Cause(ctx)
		}
	}
}

// look is what a look at the new containers has shown.
type look struct {
	containers []Container
	verdicts   map[string]verdict // of all in State.New
	order      []string
}

func (l look) ready() bool {
	for _, v := range l.verdicts {
		if !v.ready {
			return false
		}
	}
	return true
}

// failure returns which containers have failed, or with late are not ready; nil if none.
func (l look) failure(late bool) *failure {
	var f *failure
	for _, id := range l.order {
		v := l.verdicts[id]
		if !v.failed && !(late && !v.ready) {
			continue
		}
		if f == nil {
			f = &failure{reason: v.reason}
		}
		f.bad = append(f.bad, id)
	}
	return f
}

// look looks at the new containers: in Docker, in Consul, and at what the balancers say.
func (r *Rollout) look(ctx context.Context) (look, error) {
	l := look{verdicts: map[string]verdict{}, order: r.State.New}
	for _, id := range r.State.New {
		c, err := inspect(ctx, r.Docker, id)
		if err != nil {
			return l, err
		}
		if c == nil {
			l.verdicts[id] = verdict{failed: true, reason: fmt.Sprintf("the new container %.12s was removed", id)}
			continue
		}
		l.containers = append(l.containers, *c)
		l.verdicts[id] = r.health(*c)
	}
	instances, err := r.Catalog.Instances(ctx, r.State.New)
	if err != nil {
		return l, err
	}
	if err := r.know(ctx, instances); err != nil {
		return l, err
	}
	balancers, err := r.telling(ctx)
	if err != nil {
		return l, err
	}
	for _, c := range l.containers {
		if v := l.verdicts[c.ID]; v.ready {
			l.verdicts[c.ID] = r.served(c, instances[c.ID], balancers)
		}
	}
	return l, nil
}

// telling returns the balancers that the service concerns: those that have, or have had, an instance of it.
func (r *Rollout) telling(ctx context.Context) (out []Serving, err error) {
	all, err := r.Balancers(ctx)
	if err != nil && !isDenied(err) {
		return nil, err
	}
	now := time.Now()
	there := map[string]bool{}
	for _, s := range all {
		there[s.Balancer] = true
		if s.has() || !r.relevant[s.Balancer].IsZero() {
			r.relevant[s.Balancer] = now
			out = append(out, s)
		} else if s.Error != "" {
			r.once("%s: warning: the balancer %s does not say what it serves, and is not waited for: %s", r.Service, s.Balancer, s.Error)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.relevant)) {
		switch {
		case there[name]:
		case now.Sub(r.relevant[name]) < goneTime:
			out = append(out, Serving{Balancer: name, Error: "it does not tell any more"})
		default:
			r.once("%s: warning: the balancer %s is gone, and not waited for any more", r.Service, name)
		}
	}
	return out, nil
}

func isDenied(err error) bool { return strings.Contains(err.Error(), "403") }

// health is what Docker says of a new container.
func (r *Rollout) health(c Container) verdict {
	started, known := r.started[c.ID]
	switch {
	case c.Status == "exited" || c.Status == "dead":
		return verdict{failed: true, reason: fmt.Sprintf("%s has exited with code %d", c.short(), c.ExitCode)}
	case c.Health == "unhealthy":
		return verdict{failed: true, reason: fmt.Sprintf("%s is unhealthy", c.short())}
	case known && (c.Restarts > r.restarts[c.ID] || !c.Started.Equal(started)):
		return verdict{failed: true, reason: fmt.Sprintf("%s was restarted", c.short())}
	case c.Restarts >= mostRestarts && !known:
		return verdict{failed: true, reason: fmt.Sprintf("%s was restarted %d times, the last time with exit code %d", c.short(), c.Restarts, c.ExitCode)}
	case !c.Running():
		return verdict{reason: fmt.Sprintf("%s is %s", c.short(), c.Status)}
	case c.Paused:
		return verdict{reason: c.short() + " is paused"}
	case c.Health == "starting":
		return verdict{reason: c.short() + " has not been healthy"}
	}
	return verdict{ready: true}
}

// served says whether a healthy container is registered and the balancers serve it.
func (r *Rollout) served(c Container, instances []Instance, balancers []Serving) verdict {
	if len(instances) == 0 && len(r.State.Services) > 0 {
		return verdict{reason: c.short() + " is not registered in Consul (berth registrar --dry-run says why)"}
	}
	var names []string
	for _, in := range instances {
		names = append(names, in.Service)
		if !in.Passing {
			delete(r.seen, c.ID)
			return verdict{reason: fmt.Sprintf("%s: %s", c.short(), in.Why)}
		}
		for _, s := range balancers {
			switch {
			case s.Error != "":
				return verdict{reason: fmt.Sprintf("the balancer %s does not say whether it serves %s: %s", s.Balancer, c.short(), s.Error)}
			case !s.Servers[in.Address].Usable:
				return verdict{reason: fmt.Sprintf("the balancer %s does not serve %s", s.Balancer, c.short())}
			}
		}
	}
	if r.seen[c.ID].IsZero() {
		r.seen[c.ID] = time.Now()
	}
	since := time.Since(r.seen[c.ID])
	if len(balancers) == 0 && since < settleTime {
		return verdict{reason: c.short() + " has not passed its checks for long enough"}
	}
	for _, name := range r.State.Services {
		if !slices.Contains(names, name) && since < namesTime {
			return verdict{reason: fmt.Sprintf("%s is not registered as %s", c.short(), name)}
		}
	}
	return verdict{ready: true}
}

// drain takes containers out of service, and returns when the balancers have nothing in flight for them, or their time is over.
func (r *Rollout) drain(ctx context.Context, containers []string) error {
	instances, err := r.instances(ctx, containers)
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
			busy = "it is not known what they have in flight"
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

// patience is how long Consul may be away while containers are taken out of service or put back.
const patience = 30 * time.Second

// insist calls f until it succeeds, for as long as there is patience.
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

func (r *Rollout) maintain(ctx context.Context, id string, on bool) error {
	return insist(ctx, func() error { return r.Catalog.Maintain(ctx, id, on, r.why()) })
}

// why is the reason of a maintenance mode that the rollout sets.
func (r *Rollout) why() string { return "rollout of " + r.Project + "/" + r.Service }

// busy says what balancers have in flight for addresses, "" if nothing, and whether that is not known of some.
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
				text = fmt.Sprintf("the balancer %s does not say what it has in flight for %s", s.Balancer, address)
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

// remove stops and removes containers, all at the same time. It does so though ctx is done: one that was told to stop has left.
func (r *Rollout) remove(ctx context.Context, containers []string) error {
	ctx = context.WithoutCancel(ctx)
	var g errgroup.Group
	for _, id := range containers {
		c, err := inspect(ctx, r.Docker, id)
		if err != nil {
			return errors.Join(err, g.Wait())
		}
		if c != nil {
			g.Go(func() error {
				ctx, cancel := context.WithTimeout(ctx, c.StopTimeout+undoTime)
				defer cancel()
				return end(ctx, r.Docker, *c)
			})
		}
	}
	return g.Wait()
}

// fail does what is to be done about new containers that do not work. It returns no error if the rollout goes on.
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
		return false, r.leaveOut(ctx, f.bad)
	case o.FailureAction == Pause:
		out.Outcome = fmt.Sprintf("paused: the old ones serve on. Go on by 'berth rollout --resume %[1]s', or take it back by 'berth rollout --abort %[1]s'", r.Service)
		r.State.Reason = f.reason
		return true, errors.Join(out, r.Save(ctx, r.State))
	}
	if err := r.Undo(ctx); err != nil {
		out.Outcome = "it could not be taken back"
		return true, r.cut(ctx, errors.Join(out, err))
	}
	out.Outcome = r.outcome()
	return false, out
}

// details is what a container that has failed says itself.
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

// leaveOut removes new containers that have failed, and goes on with the others: as many old ones fewer leave. If the old ones
// have left already, the new ones stay as they are.
func (r *Rollout) leaveOut(ctx context.Context, bad []string) error {
	r.State.Failed += len(bad)
	r.State.New = slices.DeleteFunc(slices.Clone(r.State.New), func(id string) bool { return slices.Contains(bad, id) })
	if r.State.Options.Order != StopFirst {
		if err := r.drop(ctx, bad); err != nil {
			return err
		}
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

// Undo takes the batch back: the old ones that are still there serve, and as many new ones go. It does so though ctx is done.
func (r *Rollout) Undo(ctx context.Context) error {
	if r.told == nil {
		r.begin()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime+r.State.Options.DrainTimeout)
	defer cancel()
	switch {
	case r.State.Phase == PhaseNext:
		return nil
	case r.State.Phase == PhaseRemove && r.State.Options.Order != StopFirst:
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
		case !slices.Contains(r.State.Before, c.ID):
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
	// Old ones that are gone have new ones in their place.
	stays := len(r.State.Old) - len(r.present(list))
	return r.drop(ctx, fresh[min(len(fresh), stays):])
}

// present returns the old ones of the batch that are still there, running or not.
func (r *Rollout) present(list []Container) (out []string) {
	for _, c := range list {
		if slices.Contains(r.State.Old, c.ID) {
			out = append(out, c.ID)
		}
	}
	return out
}

// undrain puts containers back into service, and returns those that were out of it.
func (r *Rollout) undrain(ctx context.Context, containers []string) (back []string, err error) {
	instances, err := r.instances(ctx, containers)
	if err != nil {
		return nil, err
	}
	for _, id := range containers {
		for _, in := range instances[id] {
			if !strings.HasSuffix(in.Maintenance, r.why()) { // it is not out of service, or by hand
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

// awaitOld returns when containers that were put back into service serve.
func (r *Rollout) awaitOld(ctx context.Context, containers []string) error {
	fresh := r.State.New
	defer func() { r.State.New = fresh }()
	r.State.New = containers
	deadline := time.Now().Add(undoTime / 2)
	for {
		look, err := r.look(ctx)
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
