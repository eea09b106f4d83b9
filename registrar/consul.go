package registrar

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
	"golang.org/x/sync/errgroup"
)

// Agent is the part of *api.Agent that is used.
type Agent interface {
	ServicesWithFilterOpts(filter string, q *api.QueryOptions) (map[string]*api.AgentService, error)
	ChecksWithFilterOpts(filter string, q *api.QueryOptions) (map[string]*api.AgentCheck, error)
	ServiceRegisterOpts(service *api.AgentServiceRegistration, opts api.ServiceRegisterOpts) error
	ServiceDeregisterOpts(id string, q *api.QueryOptions) error
	CheckDeregisterOpts(id string, q *api.QueryOptions) error
	EnableServiceMaintenanceOpts(id, reason string, q *api.QueryOptions) error
	DisableServiceMaintenanceOpts(id string, q *api.QueryOptions) error
	UpdateTTLOpts(id, output, status string, q *api.QueryOptions) error
}

// Sync makes the agent hold what the known containers register, and reads it back. One registration that fails keeps no
// other from being made. It says when it wants to be called again if nothing happens.
func (r *Registrar) Sync(ctx context.Context) (next time.Time, err error) {
	defer func() {
		if err != nil {
			r.have = nil
		}
	}()
	if r.have == nil {
		if err := r.read(ctx); err != nil {
			return next, err
		}
	}
	want, next := r.want(ctx, time.Now())
	c := diff(want, *r.have, r.own, r.spared())
	if c.size() == 0 && time.Since(r.readAt) >= reread { // not before a change, which would have to wait
		if err := r.read(ctx); err != nil {
			return next, err
		}
		want, next = r.want(ctx, time.Now())
		c = diff(want, *r.have, r.own, r.spared())
	}
	if c.size() > 0 {
		if err := r.apply(ctx, c); err != nil {
			return next, err
		}
		if err := r.read(ctx); err != nil {
			return next, err
		}
		want = slices.DeleteFunc(want, r.refused)
		if n := diff(want, *r.have, r.own, r.spared()).size(); n > 0 {
			return next, fmt.Errorf("consul does not hold what was written: %d things differ", n)
		}
	}
	r.metrics.instances.Set(float64(len(want)))
	due, err := r.beat(ctx, want)
	return earliest(next, due), err
}

// spared are the containers whose registrations are not to be removed: those that are to be inspected first, and those
// that failed and are out of service, of which Docker tells no address any more.
func (r *Registrar) spared() map[string]bool {
	spared := maps.Clone(r.unknown)
	for id, s := range r.have.services {
		_, failed := r.failed[s.Meta[metaContainer]]
		if _, maintained := r.have.maintenance(id); failed && maintained {
			spared[s.Meta[metaContainer]] = true
		}
	}
	return spared
}

// read asks the agent for what it holds.
func (r *Registrar) read(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, agentTimeout)
	defer cancel()
	var (
		have             held
		services, checks error
		both             sync.WaitGroup
	)
	both.Go(func() { have.services, services = r.opts.Agent.ServicesWithFilterOpts("", query(ctx)) })
	both.Go(func() { have.checks, checks = r.opts.Agent.ChecksWithFilterOpts("", query(ctx)) })
	both.Wait()
	// Not the one that failed first: what is logged would change from one try to the next.
	if err := cmp.Or(services, checks); err != nil {
		return fmt.Errorf("read services and checks: %w", err)
	}
	r.have, r.readAt = &have, time.Now()
	maps.DeleteFunc(r.told, func(id string, _ time.Time) bool { return have.checks[id] == nil })
	return nil
}

func query(ctx context.Context) *api.QueryOptions { return new(api.QueryOptions).WithContext(ctx) }

// calls makes calls to the agent, some at a time, and gathers what fails.
type calls struct {
	ctx  context.Context // with one deadline for all: an agent that hangs is not waited for again and again
	done context.CancelFunc
	g    errgroup.Group
	mu   sync.Mutex
	errs []error
}

func newCalls(ctx context.Context) *calls {
	c := new(calls)
	c.ctx, c.done = context.WithTimeout(ctx, agentTimeout)
	c.g.SetLimit(parallel)
	return c
}

// make makes one call, whose error gets what as its beginning.
func (c *calls) make(what string, call func(ctx context.Context) error) {
	c.g.Go(func() error {
		if err := call(c.ctx); err != nil {
			c.mu.Lock()
			c.errs = append(c.errs, fmt.Errorf("%s: %w", what, err))
			c.mu.Unlock()
		}
		return nil
	})
}

// wait returns when all calls are done, with their errors in the order of their words.
func (c *calls) wait() error {
	defer c.done()
	_ = c.g.Wait() // no call returns an error
	slices.SortFunc(c.errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(c.errs...)
}

// apply makes a change. What takes an instance out of service goes first: requests still go there. But a container that
// is registered under another ID is not out of service in between.
func (r *Registrar) apply(ctx context.Context, c change) error {
	out := newCalls(ctx)
	for _, w := range c.drain {
		if r.have.services[w.ID] != nil {
			out.make("drain "+w.ID, func(ctx context.Context) error { return r.drain(ctx, w) })
		}
	}
	replaced := c.replaced()
	for _, s := range c.deregister {
		if !replaced[s.ID] {
			out.make("deregister "+s.ID, func(ctx context.Context) error { return r.deregister(ctx, s) })
		}
	}
	failed := out.wait()

	in := newCalls(ctx)
	for _, w := range c.register {
		in.make("register "+w.ID, func(ctx context.Context) error { return r.register(ctx, w) })
	}
	for _, id := range c.resume {
		in.make("resume "+id, func(ctx context.Context) error {
			if err := r.opts.Agent.DisableServiceMaintenanceOpts(id, query(ctx)); err != nil {
				return err
			}
			r.opts.Log.Info("back in service", "instance", id)
			return nil
		})
	}
	failed = errors.Join(failed, in.wait())

	rest := newCalls(ctx)
	for _, s := range c.deregister {
		if replaced[s.ID] {
			rest.make("deregister "+s.ID, func(ctx context.Context) error { return r.deregister(ctx, s) })
		}
	}
	for _, w := range c.drain {
		if r.have.services[w.ID] == nil {
			rest.make("drain "+w.ID, func(ctx context.Context) error { return r.drain(ctx, w) })
		}
	}
	for _, id := range c.uncheck {
		rest.make("deregister check "+id, func(ctx context.Context) error {
			if err := r.opts.Agent.CheckDeregisterOpts(id, query(ctx)); err != nil && !isNotFound(err) {
				return err
			}
			return nil
		})
	}
	return errors.Join(failed, rest.wait())
}

func (r *Registrar) deregister(ctx context.Context, s *api.AgentService) error {
	if err := r.opts.Agent.ServiceDeregisterOpts(s.ID, query(ctx)); err != nil && !isNotFound(err) {
		return err
	}
	r.opts.Log.Info("deregistered", "service", s.Service, "instance", s.ID)
	return nil
}

func (r *Registrar) drain(ctx context.Context, w wanted) error {
	if err := r.opts.Agent.EnableServiceMaintenanceOpts(w.ID, w.drain, query(ctx)); err != nil {
		return err
	}
	r.opts.Log.Info("out of service", "service", w.Name, "instance", w.ID, "reason", strings.TrimPrefix(w.drain, automatic))
	return nil
}

// register registers an instance, and takes note if Consul refuses it. Existing checks are kept, and maintenance mode
// with them: replacing them would end that.
func (r *Registrar) register(ctx context.Context, w wanted) error {
	err := r.opts.Agent.ServiceRegisterOpts(w.registration(), api.ServiceRegisterOpts{}.WithContext(ctx))
	if consulRefuses(err) {
		r.opts.Log.Error("not registered: consul refuses it; berth asks again at the next resync", "service", w.Name, "instance", w.ID, "err", err)
		r.mu.Lock()
		r.rejected[w.ID] = w.Instance
		r.mu.Unlock()
		return nil
	}
	if err != nil {
		return err
	}
	level, msg := slog.LevelInfo, "registered"
	attrs := []any{"service", w.Name, "instance", w.ID, "address", w.Address, "port", w.Port, "container", fmt.Sprintf("%.12s", w.Container)}
	if w.notReady != "" {
		level, msg = slog.LevelWarn, "registered as critical: it is not ready"
		attrs = append(attrs, "reason", w.notReady, "waited", r.opts.ReadyTimeout)
	}
	r.opts.Log.Log(ctx, level, msg, attrs...)
	return nil
}

// consulRefuses says whether the agent answered that it will not take this registration, which says nothing about
// any other.
func consulRefuses(err error) bool {
	var status api.StatusError
	return errors.As(err, &status) && status.Code >= 400 && status.Code < 500 && status.Code != http.StatusTooManyRequests
}

func isNotFound(err error) bool {
	var status api.StatusError
	return errors.As(err, &status) && status.Code == http.StatusNotFound
}

// refused says whether Consul refused this very registration since the last resync.
func (r *Registrar) refused(w wanted) bool {
	was, ok := r.rejected[w.ID]
	return ok && reflect.DeepEqual(was, w.Instance)
}

// beat tells Consul what is due about TTL checks.
func (r *Registrar) beat(ctx context.Context, want []wanted) (next time.Time, err error) {
	due, next := beats(want, *r.have, r.told, time.Now())
	c := newCalls(ctx)
	for _, b := range due {
		c.make("update check "+b.check, func(ctx context.Context) error {
			if err := r.opts.Agent.UpdateTTLOpts(b.check, b.output, b.status, query(ctx)); err != nil {
				return err
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			is := *r.have.checks[b.check]
			if is.Status != b.status {
				r.opts.Log.Info("check is "+b.status, "instance", is.ServiceID, "check", is.Name, "was", is.Status)
			}
			is.Status, is.Output = b.status, b.output
			r.have.checks[b.check] = &is
			r.told[b.check] = time.Now()
			return nil
		})
	}
	return next, c.wait()
}
