package rollout

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"berth/registrar/retry"
)

// verdict is the state of a new container.
type verdict struct {
	ready  bool
	failed bool   // permanently
	reason string // unless it is ready
}

// failure means that new containers of the batch do not work.
type failure struct {
	bad    []string // containers
	reason string   // of the first container
}

func (f *failure) Error() string { return f.reason }

// awaitReady returns when all new containers serve, or a *failure if one never will, or did not in time.
func (r *Rollout) awaitReady(ctx context.Context) error {
	deadline := time.Now().Add(r.State.Options.ReadyTimeout)
	for {
		look, err := r.look(ctx, r.State.New)
		if err != nil && (ctx.Err() != nil || time.Now().After(deadline)) {
			return err
		}
		for _, id := range look.drained {
			if err := r.maintain(ctx, id, false); err != nil {
				return err
			}
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
		look, err := r.look(ctx, r.State.New)
		over := !time.Now().Before(end)
		switch {
		case err != nil && (ctx.Err() != nil || time.Since(end) > patience):
			return err
		case err == nil:
			if f := look.failure(over); f != nil {
				return f
			}
			if over {
				return nil
			}
		}
		pause := pollTime
		if left := time.Until(end); left > 0 {
			pause = min(pollTime, left)
		}
		if !retry.Pause(ctx, pause) {
			return context.Cause(ctx)
		}
	}
}

// look is the result of a look at the new containers.
type look struct {
	containers []Container
	verdicts   map[string]verdict // of all containers looked at
	order      []string
	// drained are instances taken out of service by this rollout. A new container may have the service ID of an old one. It
	// then has the old maintenance mode if Consul was away when the old one ended, or if the old one was about to be rolled back.
	drained []string
}

func (l look) ready() bool {
	for _, v := range l.verdicts {
		if !v.ready {
			return false
		}
	}
	return true
}

// failure returns the failed containers, or with late also those that are not ready; nil if none.
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

// look looks at containers in Docker, in Consul, and in the balancers' reports.
func (r *Rollout) look(ctx context.Context, containers []string) (look, error) {
	l := look{verdicts: map[string]verdict{}, order: containers}
	for _, id := range containers {
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
	instances, err := r.Catalog.Instances(ctx, containers)
	if err != nil {
		return l, err
	}
	if err := r.know(ctx, instances); err != nil {
		return l, err
	}
	for _, of := range instances {
		for _, in := range of {
			if strings.HasSuffix(in.Maintenance, r.why()) {
				l.drained = append(l.drained, in.ID)
			}
		}
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

// telling returns the balancers that have, or have had, an instance of the service.
func (r *Rollout) telling(ctx context.Context) (out []Serving, err error) {
	all, err := r.Balancers(ctx)
	if err != nil && !isDenied(err) {
		return nil, err
	}
	now := time.Now()
	there := map[string]bool{}
	for _, s := range all {
		there[s.Balancer] = true
		for address, is := range s.Servers {
			if is.There {
				r.routed[routed{s.Balancer, r.names[address]}] = true
			}
		}
		if s.has() || !r.relevant[s.Balancer].IsZero() {
			r.relevant[s.Balancer] = now
			out = append(out, s)
		} else if s.Error != "" {
			r.once("%s: warning: the balancer %s does not report what it serves, so the rollout does not wait for it: %s", r.Service, s.Balancer, s.Error)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.relevant)) {
		switch {
		case there[name]:
		case now.Sub(r.relevant[name]) < goneTime:
			out = append(out, Serving{Balancer: name, Error: "it no longer reports"})
		default:
			r.once("%s: warning: the balancer %s is gone, so the rollout no longer waits for it", r.Service, name)
		}
	}
	return out, nil
}

// isDenied reports whether Consul refused a call because of the token. A 403 alone could also be part of an address or an
// ID.
func isDenied(err error) bool { return strings.Contains(err.Error(), "Unexpected response code: 403") }

// health returns Docker's verdict on a new container.
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

// served reports whether a healthy container is registered and the balancers serve it.
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
	}
	for _, s := range balancers {
		switch {
		case len(instances) == 0:
		case s.Error != "":
			return verdict{reason: fmt.Sprintf("the balancer %s does not say whether it serves %s: %s", s.Balancer, c.short(), s.Error)}
		case !r.serves(s, instances):
			return verdict{reason: fmt.Sprintf("the balancer %s does not serve %s", s.Balancer, c.short())}
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

// serves reports whether a balancer serves the instances of a container: at least one, and all of the services that it has.
// A container's port may have no route, or one at another balancer.
func (r *Rollout) serves(s Serving, instances []Instance) (serves bool) {
	for _, in := range instances {
		usable := s.Servers[in.Address].Usable
		if !usable && r.routed[routed{s.Balancer, in.Service}] {
			return false
		}
		serves = serves || usable
	}
	return serves
}
