// Package agent keeps registrations at a Consul agent in their desired state: it reads what the agent holds, computes the
// difference and applies it, one instance at a time. Both berth registrar and berth service use it.
//
// Agent makes calls, each with its deadline; everything else is pure. The caller decides which calls run at the same time.
// Nothing counts as done before a later Read shows it.
package agent

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/templates/claim"
)

// Client is the part of *api.Agent that berth uses.
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

// maxRoutes is how many routes a log line names.
const maxRoutes = 5

// Agent is a Consul agent.
type Agent struct {
	Client Client
	Log    *slog.Logger // logs successful changes
}

// Read returns everything the agent holds, or only the instance with the given ID.
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
	// Always return the same one of two errors. Otherwise the log line would change between attempts.
	if err := cmp.Or(failed, noChecks); err != nil {
		return nil, fmt.Errorf("read services and checks: %w", err)
	}
	return NewState(services, checks), nil
}

// Mark returns a hash of the token that a function returns, or "" without a token or function. An agent keeps using the
// token of a registration, so a change of tokens requires a new registration.
func Mark(token func() string) string {
	if token == nil {
		return ""
	}
	now := token()
	if now == "" {
		return ""
	}
	return fmt.Sprintf("%x", sha256.Sum256([]byte(now)))
}

// Refusal is the error of an agent that rejects a registration. It may accept others.
type Refusal struct{ Err error }

func (r *Refusal) Error() string { return r.Err.Error() }
func (r *Refusal) Unwrap() error { return r.Err }

// Apply makes the calls of a change in order, up to the first failure. The error is a *Refusal if the agent rejects the
// registration; the previous registration then stays.
func (a Agent) Apply(ctx context.Context, c Change) error {
	if c.Maintain {
		err := a.call(ctx, "drain "+c.ID, func(q *api.QueryOptions) error { return a.Client.EnableServiceMaintenanceOpts(c.ID, c.Drain, q) })
		if err == nil {
			reason := claim.WithoutStop(strings.TrimPrefix(c.Drain, Automatic)) // the log line has its own time
			a.Log.Info("took "+c.title()+" out of service", append(c.names(), "reason", reason)...)
		}
		return err
	}
	if c.Deregister {
		err := a.call(ctx, "deregister "+c.ID, func(q *api.QueryOptions) error { return a.Client.ServiceDeregisterOpts(c.ID, q) })
		if err != nil && !IsNotFound(err) {
			return err
		}
		a.Log.Info("deregistered "+c.title(), c.names()...)
		return nil
	}
	if c.Register {
		err := a.call(ctx, "register "+c.ID, func(q *api.QueryOptions) error {
			return a.Client.ServiceRegisterOpts(c.registration(), api.ServiceRegisterOpts{}.WithContext(q.Context()))
		})
		if IsRefused(err) {
			return &Refusal{err}
		} else if err != nil {
			return err
		}
		a.logRegistered(ctx, c.Desired)
	}
	for _, id := range c.Uncheck {
		err := a.call(ctx, "deregister check "+id, func(q *api.QueryOptions) error { return a.Client.CheckDeregisterOpts(id, q) })
		if err != nil && !IsNotFound(err) {
			return err
		}
	}
	if c.Resume {
		err := a.call(ctx, "resume "+c.ID, func(q *api.QueryOptions) error { return a.Client.DisableServiceMaintenanceOpts(c.ID, q) })
		if err != nil {
			return err
		}
		a.Log.Info(c.title()+" is back in service", c.names()...)
	}
	return nil
}

// names returns the known names of an instance as attributes of a log line: service, instance and container.
func (d Desired) names() (attrs []any) {
	for _, pair := range [][2]string{{"service", d.Name}, {"instance", d.ID}, {"container", d.container()}} {
		if pair[1] != "" {
			attrs = append(attrs, pair[0], pair[1])
		}
	}
	return attrs
}

// title names an instance in a message: "shop of web_1", or its ID.
func (d Desired) title() string {
	if container := d.container(); d.Name != "" && container != "" {
		return d.Name + " of " + container
	}
	return d.ID
}

// container returns the container's name, or the short form of its ID.
func (d Desired) container() string { return cmp.Or(d.Of, fmt.Sprintf("%.12s", d.Container)) }

func (a Agent) logRegistered(ctx context.Context, d Desired) {
	at := fmt.Sprintf("port %d of the node", d.Port)
	if d.Address != "" {
		at = net.JoinHostPort(d.Address, strconv.Itoa(d.Port))
	}
	level, msg := slog.LevelInfo, fmt.Sprintf("registered %s as %s on %s", cmp.Or(d.container(), d.ID), d.Name, at)
	attrs := append(d.names(), "address", d.Address, "port", d.Port)
	switch routes, why := d.Routes(), d.NoRoute(); {
	case why != "":
		attrs = append(attrs, "route", "none: "+why)
	case len(routes) > 0:
		if n := len(routes) - maxRoutes; n > 0 {
			routes = append(routes[:maxRoutes], fmt.Sprintf("and %d more", n))
		}
		attrs = append(attrs, "route", strings.Join(routes, ", "))
	}
	if d.NotReady != "" {
		level, msg = slog.LevelWarn, msg+", critical until it is ready"
		attrs = append(attrs, "reason", d.NotReady, "waited", d.Waited)
	} else if !d.Since.IsZero() {
		attrs = append(attrs, "took", time.Since(d.Since))
	}
	a.Log.Log(ctx, level, msg, attrs...)
}

// Beat updates a TTL check in Consul.
func (a Agent) Beat(ctx context.Context, h Heartbeat) error {
	return a.call(ctx, "update check "+h.Check, func(q *api.QueryOptions) error { return a.Client.UpdateTTLOpts(h.Check, h.Output, h.Status, q) })
}

// call makes one call with its deadline.
func (a Agent) call(ctx context.Context, what string, f func(*api.QueryOptions) error) error {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	if err := f(query(ctx)); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

func query(ctx context.Context) *api.QueryOptions { return new(api.QueryOptions).WithContext(ctx) }

// statusOf returns the HTTP status of an agent's error answer, or 0 if it did not answer.
func statusOf(err error) int {
	var status api.StatusError
	_ = errors.As(err, &status)
	return status.Code
}

// IsNotFound reports whether the agent answered that it does not hold the service or check.
func IsNotFound(err error) bool { return statusOf(err) == http.StatusNotFound }
