// Package agent keeps registrations at a Consul agent: it reads what the agent holds, says how that differs from what is
// desired, and applies the difference, one instance at a time. berth registrar and berth service both stand on it.
//
// Agent makes calls and waits for them, each with its deadline; everything else is pure. Who uses it decides what runs
// at the same time. Nothing counts as done before a later Read shows it.
package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
)

// Client is the part of *api.Agent that is used.
type Client interface {
	ServicesWithFilterOpts(filter string, q *api.QueryOptions) (map[string]*api.AgentService, error)
	ChecksWithFilterOpts(filter string, q *api.QueryOptions) (map[string]*api.AgentCheck, error)
	ServiceRegisterOpts(service *api.AgentServiceRegistration, opts api.ServiceRegisterOpts) error
	ServiceDeregisterOpts(id string, q *api.QueryOptions) error
	CheckDeregisterOpts(id string, q *api.QueryOptions) error
	EnableServiceMaintenanceOpts(id, reason string, q *api.QueryOptions) error
	DisableServiceMaintenanceOpts(id string, q *api.QueryOptions) error
	UpdateTTLOpts(id, output, status string, q *api.QueryOptions) error
}

// Timeout is the deadline of every call.
const Timeout = 3 * time.Second

// Agent is a Consul agent.
type Agent struct {
	Client Client
	Log    *slog.Logger // of changes that succeeded
}

// Read returns what the agent holds: everything, or with an ID what concerns that instance.
func (a Agent) Read(ctx context.Context, id string) (State, error) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	ofService, ofChecks := "", ""
	if id != "" {
		ofService, ofChecks = fmt.Sprintf("ID == %q", id), fmt.Sprintf("ServiceID == %q", id)
	}
	var (
		services         map[string]*api.AgentService
		checks           map[string]*api.AgentCheck
		failed, noChecks error
		both             sync.WaitGroup
	)
	both.Go(func() { services, failed = a.Client.ServicesWithFilterOpts(ofService, query(ctx)) })
	both.Go(func() { checks, noChecks = a.Client.ChecksWithFilterOpts(ofChecks, query(ctx)) })
	both.Wait()
	// Not the one that failed first: what is logged would change from one try to the next.
	if err := cmp.Or(failed, noChecks); err != nil {
		return nil, fmt.Errorf("read services and checks: %w", err)
	}
	return NewState(services, checks), nil
}

// Refusal is the error of an agent that answered that it will not take a registration. That says nothing about any other.
type Refusal struct{ Err error }

func (r *Refusal) Error() string { return r.Err.Error() }
func (r *Refusal) Unwrap() error { return r.Err }

// Apply makes the calls of a change, one after the other, up to the first that fails. The error is a *Refusal when the
// agent refuses the registration; what it held before then stays.
func (a Agent) Apply(ctx context.Context, c Change) error {
	call := func(what string, f func(ctx context.Context) error) error {
		ctx, cancel := context.WithTimeout(ctx, Timeout)
		defer cancel()
		if err := f(ctx); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	}
	d := c.Desired
	if c.Drain {
		return call("drain "+c.ID, func(ctx context.Context) error {
			if err := a.Client.EnableServiceMaintenanceOpts(c.ID, d.Drain, query(ctx)); err != nil {
				return err
			}
			a.Log.Info("out of service", "service", d.Name, "instance", c.ID, "reason", strings.TrimPrefix(d.Drain, Automatic))
			return nil
		})
	}
	if s := c.Deregister; s != nil {
		return call("deregister "+c.ID, func(ctx context.Context) error {
			if err := a.Client.ServiceDeregisterOpts(c.ID, query(ctx)); err != nil && !IsNotFound(err) {
				return err
			}
			a.Log.Info("deregistered", "service", s.Service, "instance", c.ID)
			return nil
		})
	}
	if c.Register {
		if err := call("register "+c.ID, func(ctx context.Context) error { return a.register(ctx, d) }); err != nil {
			if isRefusal(err) {
				err = &Refusal{err}
			}
			return err
		}
	}
	for _, id := range c.Uncheck {
		err := call("deregister check "+id, func(ctx context.Context) error { return a.Client.CheckDeregisterOpts(id, query(ctx)) })
		if err != nil && !IsNotFound(err) {
			return err
		}
	}
	if c.Resume {
		return call("resume "+c.ID, func(ctx context.Context) error {
			if err := a.Client.DisableServiceMaintenanceOpts(c.ID, query(ctx)); err != nil {
				return err
			}
			a.Log.Info("back in service", "instance", c.ID)
			return nil
		})
	}
	return nil
}

// register keeps existing checks, and maintenance mode with them: replacing them would end that.
func (a Agent) register(ctx context.Context, d Desired) error {
	if err := a.Client.ServiceRegisterOpts(d.registration(), api.ServiceRegisterOpts{}.WithContext(ctx)); err != nil {
		return err
	}
	level, msg := slog.LevelInfo, "registered"
	attrs := []any{"service", d.Name, "instance", d.ID, "address", d.Address, "port", d.Port}
	if d.Container != "" {
		attrs = append(attrs, "container", fmt.Sprintf("%.12s", d.Container))
	}
	if d.NotReady != "" {
		level, msg = slog.LevelWarn, "registered as critical: it is not ready"
		attrs = append(attrs, "reason", d.NotReady, "waited", d.Waited)
	}
	a.Log.Log(ctx, level, msg, attrs...)
	return nil
}

// Beat tells Consul about a TTL check.
func (a Agent) Beat(ctx context.Context, h Heartbeat) error {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	if err := a.Client.UpdateTTLOpts(h.Check, h.Output, h.Status, query(ctx)); err != nil {
		return fmt.Errorf("update check %s: %w", h.Check, err)
	}
	return nil
}

func query(ctx context.Context) *api.QueryOptions { return new(api.QueryOptions).WithContext(ctx) }

func isRefusal(err error) bool {
	var status api.StatusError
	return errors.As(err, &status) && status.Code >= 400 && status.Code < 500 && status.Code != http.StatusTooManyRequests
}

// IsNotFound says whether an error is the answer of an agent that does not hold what was to be changed.
func IsNotFound(err error) bool {
	var status api.StatusError
	return errors.As(err, &status) && status.Code == http.StatusNotFound
}
