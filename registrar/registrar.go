// Package registrar keeps the services of a Consul agent equal to the containers that run on a Docker host.
//
// What should be registered is a pure function of what Docker says now (Instances); it is compared with what the
// agent holds (diff), and the difference is applied and read back. Docker's events only say where to look.
package registrar

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"text/template"
	"time"

	"github.com/cenkalti/backoff/v5"
	docker "github.com/fsouza/go-dockerclient"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"berth/registrar/ready"

	inspect "berth/registrar/docker"
)

// Docker is the part of *docker.Client that is used.
type Docker interface {
	ListContainers(docker.ListContainersOptions) ([]docker.APIContainers, error)
	InspectContainerWithOptions(docker.InspectContainerOptions) (*docker.Container, error)
	KillContainer(docker.KillContainerOptions) error
}

// Options configure a Registrar. Docker, Events, Host, Agent and Log are required.
type Options struct {
	Docker Docker
	Events Stream
	Host   func(ctx context.Context) (Host, error) // asked at every resync
	Agent  Agent

	Resync       time.Duration      // how often everything is looked at anew without an event; 0 = 1 minute
	ReadyTimeout time.Duration      // after that what is not ready is registered as critical; 0 = 30 s
	DrainTime    time.Duration      // from a sign to stop to the SERVICE_STOP_SIGNAL; 0 = 2 s
	Tags         *template.Template // further tags, from what docker inspect says; may be nil
	KeepFailed   bool               // a container that ended with an error stays registered, in maintenance mode
	Owner        string             // tells this registrar from others on the same Docker host; may be empty
	Adopt        string             // host name in the IDs of Registrator's registrations to take over; "" = none

	Log     *slog.Logger
	Metrics prometheus.Registerer // may be nil
}

const (
	callTimeout  = 10 * time.Second // of one call to Docker or Consul
	agentTimeout = 3 * time.Second  // of some calls to a Consul agent, during which nothing else is done
	parallel     = 8                // calls at once
	reread       = 10 * time.Second // how often what Consul holds is read without a reason
)

// Registrar keeps a Consul agent's services equal to the containers of a Docker host. One goroutine, that of Run, owns
// all of its state but what status guards.
type Registrar struct {
	opts    Options
	own     ownership
	inbox   *inbox
	try     ready.Prober
	metrics metrics

	// Docker, as far as it is known.
	host       Host
	containers map[string]Container // running ones, and with KeepFailed those that failed
	failed     map[string]string    // of these, how the container ended
	answers    map[string]answer    // what Instances said of them
	unknown    map[string]bool      // to be inspected: until then their registrations stay
	listed     bool                 // containers is complete: without that nothing is deregistered
	stale      bool                 // containers may have missed something: list again
	kills      map[string]int       // signals sent to containers since the last look
	draining   map[string]draining

	// Consul, as far as it is known.
	have     *held     // nil when it is to be read
	readAt   time.Time // when it was read
	adopted  bool      // what was registered before this start has been looked at
	rejected map[string]Instance
	told     map[string]time.Time // when Consul last heard of a TTL check

	// What instances say.
	seen    map[endpoint]time.Time
	ready   map[endpoint]bool
	late    map[endpoint]string // why it is not ready, though it should be
	probing map[endpoint]context.CancelFunc

	background sync.WaitGroup  // probes and signals under way
	reasons    map[string]bool // already in the log

	mu     sync.Mutex
	status map[string]error // "docker", "docker events" and "consul": nil when in order
}

// New returns a Registrar; nothing is dialled before Run.
func New(opts Options) *Registrar {
	opts.Resync = cmp.Or(opts.Resync, time.Minute)
	opts.ReadyTimeout = cmp.Or(opts.ReadyTimeout, 30*time.Second)
	opts.DrainTime = cmp.Or(opts.DrainTime, 2*time.Second)
	r := &Registrar{
		opts:       opts,
		inbox:      newInbox(),
		try:        ready.Try,
		metrics:    newMetrics(opts.Metrics),
		containers: map[string]Container{},
		failed:     map[string]string{},
		answers:    map[string]answer{},
		unknown:    map[string]bool{},
		kills:      map[string]int{},
		draining:   map[string]draining{},
		rejected:   map[string]Instance{},
		told:       map[string]time.Time{},
		seen:       map[endpoint]time.Time{},
		ready:      map[endpoint]bool{},
		late:       map[endpoint]string{},
		probing:    map[endpoint]context.CancelFunc{},
		reasons:    map[string]bool{},
		status: map[string]error{
			"docker":        errors.New("docker was not asked yet"),
			"docker events": nil,
			"consul":        errors.New("consul was not asked yet"),
		},
	}
	if opts.Adopt != "" {
		r.own.adopt = registratorIDs(opts.Adopt)
	}
	return r
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
	defer r.background.Wait()
	defer cancel()

	resync := time.NewTicker(r.opts.Resync)
	defer resync.Stop()
	wake := time.NewTimer(r.opts.Resync)
	defer wake.Stop()
	dockerTry, consulTry := newAttempts(), newAttempts()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.inbox.wake:
		case <-resync.C:
			r.stale = true
		case <-wake.C:
		}
		r.receive(r.inbox.take())
		next := r.step(ctx, dockerTry, consulTry)
		wake.Reset(time.Until(next))
	}
}

// step brings the picture of Docker up to date and Consul in line with it, as far as neither is to be left alone after
// a failure. It says when it wants to be called again if nothing happens.
func (r *Registrar) step(ctx context.Context, dockerTry, consulTry *attempts) (next time.Time) {
	if dockerTry.allowed() {
		partly, err := r.look(ctx)
		if ctx.Err() == nil {
			r.settle("docker", errors.Join(partly, err))
		}
		dockerTry.note(err, partly)
	}
	for id, signal := range r.kills {
		if c, ok := r.containers[id]; ok {
			r.killed(ctx, c, signal)
		}
	}
	clear(r.kills)
	next = r.expireDrains(time.Now())
	if r.listed && consulTry.allowed() {
		due, err := r.Sync(ctx)
		if ctx.Err() == nil {
			r.settle("consul", err)
		}
		consulTry.note(err, nil)
		next = earliest(next, due)
	}
	if ctx.Err() == nil {
		r.metrics.errors.Add(dockerTry.failures() + consulTry.failures())
	}
	next = earliest(next, dockerTry.at)
	next = earliest(next, consulTry.at)
	return earliest(next, time.Now().Add(reread))
}

// attempts spaces tries after failures.
type attempts struct {
	at     time.Time // of the next try; zero = nothing failed
	total  bool      // nothing is worth trying before that
	fresh  float64   // failures not counted yet
	delays *backoff.ExponentialBackOff
}

func newAttempts() *attempts { return &attempts{delays: retries()} }

func (a *attempts) allowed() bool { return !a.total || !time.Now().Before(a.at) }

// note takes in how a try went: in total failure nothing is tried before the next attempt, so that a flood of events does
// not become a flood of failing calls.
func (a *attempts) note(total, partial error) {
	if total == nil && partial == nil {
		a.at, a.total = time.Time{}, false
		a.delays.Reset()
		return
	}
	a.fresh++
	a.total = total != nil
	if !a.at.After(time.Now()) {
		a.at = time.Now().Add(a.delays.NextBackOff())
	}
}

func (a *attempts) failures() float64 {
	n := a.fresh
	a.fresh = 0
	return n
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
				if ev, relevant := e.container(); relevant {
					r.metrics.events.Inc()
					r.inbox.put(func(m *mail) { m.events = append(m.events, ev) })
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

// receive takes note of the mail.
func (r *Registrar) receive(m mail) {
	r.stale = r.stale || m.resync
	for _, e := range m.accepted {
		if _, wanted := r.probing[e]; wanted {
			r.ready[e] = true
		}
	}
	for e, reason := range m.late {
		if _, wanted := r.probing[e]; wanted {
			r.late[e] = reason
		}
	}
	for _, ev := range m.events {
		c, known := r.containers[ev.id]
		switch ev.action {
		case killed:
			r.kills[ev.id] = ev.signal
			continue
		case arrived:
			r.unknown[ev.id] = true
			delete(r.failed, ev.id)
		case changed:
			if known {
				r.unknown[ev.id] = true
			}
			continue
		case gone:
			delete(r.unknown, ev.id)
			if known && r.keeps(ev.exit) {
				r.failed[c.ID] = fmt.Sprintf("the container ended with exit code %d", ev.exit)
			} else {
				delete(r.containers, ev.id)
			}
		case removed:
			delete(r.unknown, ev.id)
			delete(r.containers, ev.id)
			delete(r.failed, ev.id)
		}
		// Whatever it was told before concerns a process that is gone.
		delete(r.kills, ev.id)
		r.draining[ev.id].keep()
		delete(r.draining, ev.id)
	}
}

// keeps says whether a container that ended like this stays registered: it ended by itself, and not well.
func (r *Registrar) keeps(exit int) bool {
	return r.opts.KeepFailed && exit > 0 && exit < 128
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
	r.metrics.containers.Set(float64(len(r.containers) - len(r.failed)))
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
	list, err := r.opts.Docker.ListContainers(docker.ListContainersOptions{Context: ctx, All: r.opts.KeepFailed})
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	if r.opts.Owner != "" {
		host.EngineID += "/" + r.opts.Owner
	}
	if !reflect.DeepEqual(host, r.host) {
		clear(r.answers)
	}
	r.host, r.own.owner = host, host.EngineID
	clear(r.unknown)
	for _, c := range list {
		r.unknown[c.ID] = true
	}
	for id := range r.containers {
		if !r.unknown[id] {
			delete(r.containers, id)
			delete(r.failed, id)
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
		delete(r.answers, id)
		switch {
		case errs[i] != nil:
			continue
		case found[i] != nil && inspect.Running(found[i]):
			r.containers[id] = inspect.FromInspect(found[i], r.opts.Tags)
			delete(r.failed, id)
		case found[i] != nil && found[i].State.Status == "exited" && r.keeps(found[i].State.ExitCode):
			if _, known := r.containers[id]; !known { // its addresses are gone with its end
				r.containers[id] = inspect.FromInspect(found[i], r.opts.Tags)
			}
			r.failed[id] = fmt.Sprintf("the container ended with exit code %d", found[i].State.ExitCode)
		default:
			delete(r.containers, id)
			delete(r.failed, id)
		}
		delete(r.unknown, id)
	}
	return errors.Join(errs...)
}

// retries are the delays between attempts: exponential, with jitter, for ever.
func retries() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.RandomizationFactor = 100*time.Millisecond, 5*time.Second, 0.5
	b.Reset()
	return b
}
