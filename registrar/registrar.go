// Package registrar keeps the services of a Consul agent equal to the containers that run on a Docker host.
//
// What should be registered is a pure function of what Docker says now (Instances); it is compared with what the
// agent holds (diff), and the difference is applied and read back. Docker's events only say where to look.
package registrar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	docker "github.com/fsouza/go-dockerclient"
	"github.com/hashicorp/consul/api"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
)

// Docker is the part of *docker.Client that is used.
type Docker interface {
	ListContainers(docker.ListContainersOptions) ([]docker.APIContainers, error)
	InspectContainerWithOptions(docker.InspectContainerOptions) (*docker.Container, error)
}

// Agent is the part of *api.Agent that is used.
type Agent interface {
	ServicesWithFilterOpts(filter string, q *api.QueryOptions) (map[string]*api.AgentService, error)
	ServiceRegisterOpts(service *api.AgentServiceRegistration, opts api.ServiceRegisterOpts) error
	ServiceDeregisterOpts(id string, q *api.QueryOptions) error
}

// Options configure a Registrar. Docker, Events, Host, Agent and Log are required.
type Options struct {
	Docker Docker
	Events Stream
	Host   func(ctx context.Context) (Host, error) // asked at every resync
	Agent  Agent

	Resync       time.Duration // how often everything is looked at anew without an event; 0 = 1 minute
	ReadyTimeout time.Duration // how long a port may take to accept before that is reported; 0 = 30 s

	Log     *slog.Logger
	Metrics prometheus.Registerer // may be nil
}

const (
	callTimeout = 10 * time.Second // of one call to Docker or Consul
	parallel    = 8                // calls at once
)

// Registrar keeps a Consul agent's services equal to the containers of a Docker host. One goroutine, that of Run, owns
// all of its state but what status guards.
type Registrar struct {
	opts    Options
	inbox   *inbox
	dial    dialFunc
	metrics metrics

	host       Host
	containers map[string]Container         // running ones
	unknown    map[string]bool              // listed by Docker, but not to be inspected: their registrations stay
	listed     bool                         // containers is complete: without that nothing is deregistered
	stale      bool                         // containers may have missed something: list again
	have       map[string]*api.AgentService // what the agent holds, nil when that is not known
	adopted    bool                         // what was registered before this start has been looked at
	rejected   map[string]Instance          // registrations that Consul refused, until they change or the next resync
	ready      map[endpoint]bool
	probing    map[endpoint]context.CancelFunc
	probes     sync.WaitGroup
	reasons    map[string]bool // already in the log

	mu     sync.Mutex
	status map[string]error // "docker", "docker events" and "consul": nil when in order
}

// New returns a Registrar; nothing is dialled before Run.
func New(opts Options) *Registrar {
	if opts.Resync == 0 {
		opts.Resync = time.Minute
	}
	if opts.ReadyTimeout == 0 {
		opts.ReadyTimeout = 30 * time.Second
	}
	return &Registrar{
		opts:       opts,
		inbox:      newInbox(),
		dial:       (&net.Dialer{}).DialContext,
		metrics:    newMetrics(opts.Metrics),
		containers: map[string]Container{},
		unknown:    map[string]bool{},
		rejected:   map[string]Instance{},
		ready:      map[endpoint]bool{},
		probing:    map[endpoint]context.CancelFunc{},
		reasons:    map[string]bool{},
		status: map[string]error{
			"docker":        errors.New("docker was not asked yet"),
			"docker events": nil,
			"consul":        errors.New("consul was not asked yet"),
		},
	}
}

// Ready is nil while Docker and Consul answer and what is registered is what should be, else it says what is wrong.
func (r *Registrar) Ready() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return errors.Join(r.status["docker"], r.status["docker events"], r.status["consul"])
}

// settle records how dealing with Docker or Consul went, and logs when that changes.
func (r *Registrar) settle(what string, err error) {
	r.mu.Lock()
	before := r.status[what]
	r.status[what] = err
	r.mu.Unlock()
	switch {
	case err != nil && (before == nil || before.Error() != err.Error()):
		r.opts.Log.Error(what+" failed, everything stays registered as it is; trying again", "err", err)
	case err == nil && before != nil:
		r.opts.Log.Info(what + " answers")
	}
}

// Run works until ctx is done, and then returns nil. It leaves the registrations in place: the containers go on
// running.
func (r *Registrar) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var follower sync.WaitGroup
	follower.Go(func() { r.follow(ctx) })
	defer follower.Wait()
	defer r.probes.Wait()
	defer cancel()

	resync := time.NewTicker(r.opts.Resync)
	defer resync.Stop()
	var (
		retry  <-chan time.Time
		delays = retries()
		down   = false // Docker or Consul did not answer at all: wait for the retry
	)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.inbox.wake:
		case <-resync.C:
			r.stale = true
		case <-retry:
			retry, down = nil, false
		}
		r.receive(r.inbox.take(), down)
		if down {
			continue
		}
		var err error
		if down, err = r.step(ctx); err != nil && ctx.Err() == nil {
			r.metrics.errors.Inc()
			retry = time.After(delays.NextBackOff())
		} else if err == nil {
			retry = nil
			delays.Reset()
		}
	}
}

// step brings the picture of Docker up to date and Consul in line with it. down says that one of them did not answer
// at all, so that a flood of events is not to become a flood of failing calls.
func (r *Registrar) step(ctx context.Context) (down bool, err error) {
	partly, err := r.look(ctx)
	r.settle("docker", errors.Join(partly, err))
	if err != nil {
		return true, err
	}
	err = r.Sync(ctx)
	if ctx.Err() == nil {
		r.settle("consul", err)
	}
	return err != nil, errors.Join(partly, err)
}

// follow keeps the event stream connected.
func (r *Registrar) follow(ctx context.Context) {
	delays := retries()
	for {
		err := r.opts.Events(ctx,
			func() {
				delays.Reset()
				r.settle("docker events", nil)
				r.inbox.put(func(m *mail) { m.resync = true })
			},
			func(e Event) {
				if action, relevant := actions[e.Type+" "+e.Action]; relevant && e.container() != "" {
					r.metrics.events.Inc()
					r.inbox.put(func(m *mail) { m.happened(e.container(), action) })
				}
			})
		if ctx.Err() != nil {
			return
		}
		r.settle("docker events", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(delays.NextBackOff()):
		}
	}
}

const (
	gone    = "gone"    // certain without asking
	arrived = "arrived" // to be inspected
	changed = "changed" // to be inspected if it is known
)

// actions are the events that matter, and what they say. A dying container is not inspected: Docker would block for
// 100 ms and then say what the event says.
var actions = map[string]string{
	"container start":    arrived,
	"container unpause":  arrived,
	"container die":      gone,
	"container pause":    gone,
	"container destroy":  gone,
	"container rename":   changed,
	"network connect":    changed,
	"network disconnect": changed,
}

// receive takes note of the mail. If later it will be acted on, a new list will tell all that it tells.
func (r *Registrar) receive(m mail, later bool) {
	for _, e := range m.accepted {
		if _, wanted := r.probing[e]; wanted {
			r.ready[e] = true
		}
	}
	r.stale = r.stale || m.resync || (later && len(m.order) > 0)
	for _, id := range m.order {
		_, known := r.containers[id]
		switch action := m.last[id]; {
		case action == gone:
			delete(r.containers, id)
			delete(r.unknown, id)
		case action == arrived || known:
			r.unknown[id] = true
		}
	}
}

// look brings r.containers up to date: all of it, or what is unknown. partly tells of containers that could not be
// inspected; they stay as they were.
func (r *Registrar) look(ctx context.Context) (partly, err error) {
	if r.stale || !r.listed {
		if err := r.list(ctx); err != nil {
			r.stale = true
			return nil, err
		}
		r.stale, r.listed = false, true
		r.have = nil // Consul is read anew, too
		clear(r.rejected)
	}
	partly = r.inspect(ctx)
	r.metrics.containers.Set(float64(len(r.containers)))
	return partly, nil
}

// list makes all running containers unknown, and drops those that do not run any more.
func (r *Registrar) list(ctx context.Context) error {
	host, err := r.opts.Host(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	list, err := r.opts.Docker.ListContainers(docker.ListContainersOptions{Context: ctx})
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	r.host = host
	clear(r.unknown)
	for _, c := range list {
		r.unknown[c.ID] = true
	}
	for id := range r.containers {
		if !r.unknown[id] {
			delete(r.containers, id)
		}
	}
	return nil
}

// inspect asks Docker about the containers that are unknown and keeps those that run.
func (r *Registrar) inspect(ctx context.Context) error {
	var (
		ids   = slices.Sorted(maps.Keys(r.unknown))
		found = make([]*docker.Container, len(ids))
		errs  = make([]error, len(ids))
		g     errgroup.Group
	)
	g.SetLimit(parallel)
	for i, id := range ids {
		g.Go(func() error {
			callCtx, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			c, err := r.opts.Docker.InspectContainerWithOptions(docker.InspectContainerOptions{Context: callCtx, ID: id})
			var none *docker.NoSuchContainer
			if err != nil && !errors.As(err, &none) {
				errs[i] = fmt.Errorf("inspect container %.12s: %w", id, err)
			}
			found[i] = c
			return nil
		})
	}
	_ = g.Wait() // errors are in errs
	for i, id := range ids {
		switch {
		case errs[i] != nil:
			continue
		case found[i] != nil && running(found[i]):
			r.containers[id] = fromInspect(found[i])
		default:
			delete(r.containers, id)
		}
		delete(r.unknown, id)
	}
	return errors.Join(errs...)
}

// Sync makes the agent hold what the known containers register, and reads it back. One registration that fails keeps no
// other from being made.
func (r *Registrar) Sync(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			r.have = nil
		}
	}()
	if r.have == nil {
		if r.have, err = r.read(ctx); err != nil {
			return err
		}
	}
	want := r.want(ctx)
	register, deregister := diff(want, r.have, r.host.EngineID, r.unknown)
	if len(register)+len(deregister) == 0 {
		r.metrics.instances.Set(float64(len(want)))
		return nil
	}
	if err := r.apply(ctx, register, deregister); err != nil {
		return err
	}
	if r.have, err = r.read(ctx); err != nil {
		return err
	}
	want = slices.DeleteFunc(want, r.refused)
	register, deregister = diff(want, r.have, r.host.EngineID, r.unknown)
	if n := len(register) + len(deregister); n > 0 {
		return fmt.Errorf("consul does not hold what was written: %d registrations differ", n)
	}
	r.metrics.instances.Set(float64(len(want)))
	return nil
}

func (r *Registrar) read(ctx context.Context) (map[string]*api.AgentService, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	have, err := r.opts.Agent.ServicesWithFilterOpts("", new(api.QueryOptions).WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("read services: %w", err)
	}
	return have, nil
}

// apply sends the changes, those that end a service first: requests still go there.
func (r *Registrar) apply(ctx context.Context, register []Instance, deregister []*api.AgentService) error {
	var (
		mu   sync.Mutex
		errs []error
	)
	failed := func(err error) {
		mu.Lock()
		errs = append(errs, err)
		mu.Unlock()
	}
	var g errgroup.Group
	g.SetLimit(parallel)
	for _, s := range deregister {
		g.Go(func() error {
			callCtx, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			if err := r.opts.Agent.ServiceDeregisterOpts(s.ID, new(api.QueryOptions).WithContext(callCtx)); err != nil {
				failed(fmt.Errorf("deregister %s: %w", s.ID, err))
				return nil
			}
			r.opts.Log.Info("deregistered", "service", s.Service, "instance", s.ID)
			return nil
		})
	}
	for _, in := range register {
		g.Go(func() error {
			callCtx, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			opts := api.ServiceRegisterOpts{ReplaceExistingChecks: true}.WithContext(callCtx)
			err := r.opts.Agent.ServiceRegisterOpts(registration(in), opts)
			if consulRefuses(err) {
				r.opts.Log.Error("not registered: consul refuses it; berth asks again at the next resync", "service", in.Name, "instance", in.ID, "err", err)
				mu.Lock()
				r.rejected[in.ID] = in
				mu.Unlock()
				return nil
			}
			if err != nil {
				failed(fmt.Errorf("register %s: %w", in.ID, err))
				return nil
			}
			r.opts.Log.Info("registered", "service", in.Name, "instance", in.ID, "address", in.Address, "port", in.Port,
				"container", fmt.Sprintf("%.12s", in.Container))
			return nil
		})
	}
	_ = g.Wait() // no func returns an error
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

// consulRefuses says whether the agent answered that it will not take this registration, which says nothing about
// any other.
func consulRefuses(err error) bool {
	var status api.StatusError
	return errors.As(err, &status) && status.Code >= 400 && status.Code < 500 && status.Code != http.StatusTooManyRequests
}

// refused says whether Consul refused this very registration since the last resync.
func (r *Registrar) refused(in Instance) bool {
	was, ok := r.rejected[in.ID]
	return ok && reflect.DeepEqual(was, in)
}

// want is what should be registered now. It starts probes for instances that are not ready yet and ends those that
// nobody waits for.
func (r *Registrar) want(ctx context.Context) []Instance {
	containers := make([]Container, 0, len(r.containers))
	for _, c := range r.containers {
		containers = append(containers, c)
	}
	slices.SortFunc(containers, func(a, b Container) int {
		if d := a.Created.Compare(b.Created); d != 0 {
			return d
		}
		return strings.Compare(a.ID, b.ID)
	})
	var (
		all      []Instance
		refusals []refusal
	)
	for _, c := range containers {
		instances, reasons := Instances(c, r.host)
		all = append(all, instances...)
		for _, reason := range reasons {
			refusals = append(refusals, refusal{c.ID, reason})
		}
	}
	all, more := unique(all, r.have, r.host.EngineID)
	r.explain(ctx, append(refusals, more...))

	var want []Instance
	waiting := map[endpoint]bool{}
	for _, in := range all {
		e := in.endpoint()
		// What was registered before the registrar started was ready once. It stays: a restart takes nothing away.
		if !r.adopted && registered(in, r.have) {
			r.ready[e] = true
		}
		if in.Probe == "" || r.ready[e] {
			if !r.refused(in) {
				want = append(want, in)
			}
			continue
		}
		waiting[e] = true
		if r.probing[e] == nil {
			r.probe(ctx, in, e)
		}
	}
	r.adopted = true
	r.forget(all, waiting)
	return want
}

// probe waits in the background until the instance accepts, and then wakes the loop.
func (r *Registrar) probe(ctx context.Context, in Instance, e endpoint) {
	ctx, cancel := context.WithCancel(ctx)
	r.probing[e] = cancel
	r.probes.Go(func() {
		slow := func(err error) {
			r.opts.Log.Warn("not registered: its port does not accept connections; it will be as soon as it does",
				"service", in.Name, "instance", in.ID, "address", in.Probe, "waited", r.opts.ReadyTimeout, "err", err)
		}
		if probe(ctx, r.dial, in.Probe, r.opts.ReadyTimeout, slow) == nil {
			r.inbox.put(func(m *mail) { m.accepted = append(m.accepted, e) })
		}
	})
}

// forget ends probes that nobody waits for, and drops what is known of endpoints that are gone.
func (r *Registrar) forget(all []Instance, waiting map[endpoint]bool) {
	current := map[endpoint]bool{}
	for _, in := range all {
		current[in.endpoint()] = true
	}
	for e, cancel := range r.probing {
		if !waiting[e] {
			cancel()
			delete(r.probing, e)
		}
	}
	for e := range r.ready {
		if !current[e] {
			delete(r.ready, e)
		}
	}
	r.metrics.probing.Set(float64(len(r.probing)))
}

// explain logs why something is not registered, once as long as it stays so. It is a warning only where somebody meant
// it to be registered.
func (r *Registrar) explain(ctx context.Context, refusals []refusal) {
	now := map[string]bool{}
	for _, f := range refusals {
		key := f.container + " " + f.reason
		now[key] = true
		if c := r.containers[f.container]; !r.reasons[key] {
			level := slog.LevelInfo
			if c.mentionsService() {
				level = slog.LevelWarn
			}
			r.opts.Log.Log(ctx, level, "not registered: "+f.reason, "container", c.Name)
		}
	}
	r.reasons = now
}

// retries are the delays between attempts: exponential, with jitter, for ever.
func retries() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.RandomizationFactor = 100*time.Millisecond, 5*time.Second, 0.5
	b.Reset()
	return b
}
