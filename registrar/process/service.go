// Package process runs a plain process and keeps it registered in Consul: registered when it is ready, out of service while
// it is changed or told to stop, and deregistered when it has ended. The registration outlives a restart of the process.
package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"berth/registrar/agent"
	"berth/registrar/label"
	"berth/registrar/ready"
)

// Running is a started process.
type Running interface {
	PID() int
	Signal(s syscall.Signal)
	Tell(s syscall.Signal)  // tells it to end; SIGKILL also ends the processes that it started
	Ended() <-chan struct{} // closed when it has ended
	Code() int              // its exit code as in a shell, once it has ended; 0 if a signal from Tell ended it
	String() string         // how it ended
}

// Restart policies: which processes are restarted when they end by themselves.
const (
	RestartNo        = "no"         // none; the same as ""
	RestartOnFailure = "on-failure" // those with an exit code other than 0
	RestartAlways    = "always"     // all
)

// Options say what to run and how to register it. All are required, except Process's optional fields, the times and those
// marked as optional.
type Options struct {
	Program string // its name, in logs
	// Start is called for each start, from Run's goroutine: it must not wait.
	Start func() (Running, error)
	// Before returns when the process may be started for the first time. Its ctx ends when the service is told to stop; it
	// must then return. Run returns its error. nil = start at once.
	Before        func(ctx context.Context) error
	RestartPolicy string // RestartNo, RestartOnFailure or RestartAlways
	// Stop receives SIGTERM and SIGINT: the first one stops the process, the second one cuts draining short, and the process
	// gets all others. Forward receives signals for the process, whenever one runs.
	Stop, Forward <-chan os.Signal
	// Changed is called from Run's goroutine with each new State: it must not wait. nil = no calls.
	Changed func(State)
	// Leave is called from Run's goroutine before the instance is registered as critical or deregistered, and must not wait.
	// Consul is told once the returned func has returned, or after a second. Locks held through the instance's checks are
	// free at once if they were released before, and otherwise after a while. nil = nothing is held.
	Leave func() (given func(ctx context.Context))

	label.Process               // the instance to register
	ReadyTimeout  time.Duration // the instance is registered as critical if it is not ready by then
	DrainTime     time.Duration // between taking it out of service and SIGTERM
	StopTimeout   time.Duration // between SIGTERM and SIGKILL

	Consul  agent.Client
	Catalog *agent.Catalog // compared with the agent; nil = not compared
	Token   func() string  // returns Consul's current token, "" = none; nil = the token never changes
	Log     *slog.Logger
}

// State is the current state of a Service.
type State struct {
	Registered bool      // Consul's agent holds the instance, even if critical or out of service
	Ready      bool      // the process runs and is ready
	Draining   bool      // out of service, or about to be
	Reason     string    // why it is not ready or drains, or ""
	PID        int       // of the process, 0 = none runs
	Since      time.Time // when any of the others last changed
}

// ErrStopping is the error of methods of a Service that has been told to stop or whose process has ended for good.
var ErrStopping = errors.New("berth service stops")

// Service is a plain process with its registration. Drain, Resume, Restart, Signal, Ready and SetTags are carried out by
// Run, and wait until Run is called. They may be called from any goroutine except Run's. When ctx ends, they stop waiting,
// but what has begun continues.
type Service struct {
	opts     Options
	instance label.Instance
	try      ready.Prober
	calls    chan call
	state    atomic.Pointer[State]
	stopping chan struct{} // closed when Run accepts no more calls
}

// New returns a Service, or an error naming the flag of the invalid option. It starts and dials nothing.
func New(opts Options) (*Service, error) {
	instance, err := opts.Instance()
	if err != nil {
		return nil, err
	}
	switch opts.RestartPolicy {
	case "", RestartNo, RestartOnFailure, RestartAlways:
	default:
		return nil, fmt.Errorf("restart must be %s, %s or %s, not %q", RestartNo, RestartOnFailure, RestartAlways, opts.RestartPolicy)
	}
	s := &Service{opts: opts, instance: instance, try: ready.Try, calls: make(chan call), stopping: make(chan struct{})}
	s.state.Store(&State{Reason: notStarted, Since: time.Now()})
	return s, nil
}

// call is a method's request to Run's loop.
type call struct {
	ctx    context.Context
	begin  func(*run) error                     // called once; its error is the answer
	until  func(*run) (done bool, answer error) // then called after each event; nil = the call is done once it has begun
	answer chan error                           // has room for one answer
}

func (s *Service) call(ctx context.Context, begin func(*run) error, until func(*run) (bool, error)) error {
	c := call{ctx, begin, until, make(chan error, 1)}
	select {
	case s.calls <- c:
	case <-s.stopping:
		return ErrStopping
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-c.answer:
		return err
	case <-s.stopping:
		return ErrStopping
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Drain takes the instance out of service through maintenance mode until Resume, and returns after the drain time. The drain
// time begins when Consul's agent has been told, or does not answer. An unregistered instance needs no draining, and is not
// registered before Resume.
func (s *Service) Drain(ctx context.Context, reason string) error {
	var registered bool
	err := s.call(ctx, func(r *run) error { registered = r.drain(reason); return nil }, func(r *run) (bool, error) {
		// An agent that does not answer causes an event at each attempt.
		return !registered || r.reg.latest.told || time.Since(r.drained) >= agent.Timeout, nil
	})
	if err != nil || !registered {
		return err
	}
	select {
	case <-time.After(s.opts.DrainTime):
		return nil
	case <-s.stopping:
		return ErrStopping
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Resume puts the instance back in service. It returns when the process is ready, and Consul's agent holds the instance as
// passing and out of maintenance mode, unless that was set by hand. The error says why the process is not ready.
func (s *Service) Resume(ctx context.Context) error {
	return s.call(ctx, (*run).resume, func(r *run) (bool, error) {
		done, err := r.readiness()
		return done && (err != nil || r.reg.latest.told), err
	})
}

// Restart ends the process, with SIGTERM and after the stop timeout with SIGKILL, and starts a new one with Options.Start.
// It also replaces a pending start. It returns when the process is ready, or an error if the process ended before it was
// ready, is not ready in time, cannot be started or does not end. Until it is ready, an instance that is not drained is
// critical.
//
// The caller follows up a failed Restart with another one. A late process may still become ready. If none runs, Restart is
// awaited for half a minute; then the restart policy decides, as for a process that has ended by itself.
func (s *Service) Restart(ctx context.Context) error {
	return s.call(ctx, (*run).restart, (*run).readiness)
}

// Signal sends the process a signal that may change whether it is ready: a call of Ready must follow. A process that ends
// before that call counts as one that Restart could not start.
func (s *Service) Signal(sig syscall.Signal) error {
	return s.call(context.Background(), func(r *run) error { return r.signal(sig) }, nil)
}

// Ready probes the process again, a moment after the last Signal at the earliest. It returns when the process is ready, or
// an error as Restart does. The instance stays in service until it is late.
func (s *Service) Ready(ctx context.Context) error {
	return s.call(ctx, (*run).check, (*run).readiness)
}

// SetTags registers these tags in addition to the configured ones, in place of those from an earlier call. It does not wait
// for Consul. The status of the checks stays.
func (s *Service) SetTags(tags []string) error {
	return s.call(context.Background(), func(r *run) error { r.reg.tag(tags); return nil }, nil)
}

// State returns the current state. It may be called at any time, also before and after Run.
func (s *Service) State() State { return *s.state.Load() }
