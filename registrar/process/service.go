// Package process runs a plain process and keeps it registered in Consul: registered when it is ready, out of service while
// it is changed or told to stop, and deregistered when it has ended. The registration outlives the process where that is
// restarted.
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

// Running is a process that was started.
type Running interface {
	PID() int
	Signal(s syscall.Signal)
	Tell(s syscall.Signal)  // to end; SIGKILL also ends the processes it has started
	Ended() <-chan struct{} // closed when it has ended
	Code() int              // its exit code as in a shell, once it has ended; 0 if a signal sent by Tell ended it
	String() string         // how it ended
}

// Restart policies: which processes are started again when they end by themselves.
const (
	RestartNo        = "no"         // none; "" is the same
	RestartOnFailure = "on-failure" // those that end with another code than 0
	RestartAlways    = "always"     // all
)

// Options say what to run and how to register it. All are required, except Process's optional fields, the times and what is
// said to be optional.
type Options struct {
	Program string // its name, in logs
	// Start is called anew for each start, from Run's goroutine: it must not wait for anything.
	Start func() (Running, error)
	// Before returns when the process may be started for the first time. Its ctx ends when the service is told to stop, and it
	// then has to return. Its error is that of Run. nil = at once.
	Before        func(ctx context.Context) error
	RestartPolicy string // RestartNo, RestartOnFailure or RestartAlways
	// Stop receives SIGTERM and SIGINT: the first stops the process, a second one cuts draining short, and the process
	// gets all others. Forward receives signals that it gets whenever one runs.
	Stop, Forward <-chan os.Signal
	// Changed is called from Run's goroutine with each new State: it must not wait for anything. nil = it is not told.
	Changed func(State)
	// Leave is called from Run's goroutine when the instance is to be registered as critical or deregistered, and must not wait
	// for anything. Consul is told when the func that it returns has returned, which has a second: what is held by the
	// instance's checks is free at once if it was given back before, and else after a while. nil = nothing is held.
	Leave func() (given func(ctx context.Context))

	label.Process               // the instance to register
	ReadyTimeout  time.Duration // from then on it is registered as critical until it is ready
	DrainTime     time.Duration // between taking it out of service and SIGTERM
	StopTimeout   time.Duration // between SIGTERM and SIGKILL

	Consul  agent.Client
	Catalog *agent.Catalog // compared with what the agent holds; nil = not compared
	Token   func() string  // with which Consul makes its calls at the moment, "" = none; nil = always the same one
	Log     *slog.Logger
}

// State is what a Service is at the moment.
type State struct {
	Registered bool      // Consul's agent holds the instance, be it as critical or out of service
	Ready      bool      // the process runs and is ready
	Draining   bool      // out of service, or about to be
	Reason     string    // why it is not ready or drains, "" if neither
	PID        int       // of the process, 0 = none runs
	Since      time.Time // when one of the others changed the last time
}

// ErrStopping is the error of methods of a Service that has been told to stop or whose process has ended for good.
var ErrStopping = errors.New("berth service stops")

// Service is a plain process with its registration. Drain, Resume, Restart, Signal, Ready and SetTags are carried out by
// Run, wait until that is called, and may be called from any goroutine but Run's. A ctx that ends ends the wait, not what
// was begun.
type Service struct {
	opts     Options
	instance label.Instance
	try      ready.Prober
	calls    chan call
	state    atomic.Pointer[State]
	stopping chan struct{} // closed when Run takes no more calls
}

// New returns a Service, or an error that names the invalid option by its flag. Nothing is started or dialled before Run.
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

// call is what a method has Run's loop do.
type call struct {
	ctx    context.Context
	begin  func(*run) error                     // called once; its error is the answer
	until  func(*run) (done bool, answer error) // then called after each event; nil = the call is done when it has begun
	answer chan error                           // has room for one
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

// Drain takes the instance out of service, by maintenance mode, until Resume, and returns after the drain time. That begins
// when Consul's agent has been told, or does not answer. An instance that is not registered needs no draining, and is not
// registered before Resume.
func (s *Service) Drain(ctx context.Context, reason string) error {
	var registered bool
	err := s.call(ctx, func(r *run) error { registered = r.drain(reason); return nil }, func(r *run) (bool, error) {
		// An agent that does not answer makes for an event each time that it is asked.
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

// Resume puts the instance back in service and returns when the process is ready and Consul's agent holds the instance as
// passing and out of maintenance mode, if that was not set by hand. The error says why the process is not ready.
func (s *Service) Resume(ctx context.Context) error {
	return s.call(ctx, (*run).resume, func(r *run) (bool, error) {
		done, err := r.readiness()
		return done && (err != nil || r.reg.latest.told), err
	})
}

// Restart ends the process, by SIGTERM and after the stop timeout by SIGKILL, and starts a new one by Options.Start, in
// place of a start that is awaited, too. It returns when the process is ready, or an error: it ended before it was ready, is
// not ready in time, cannot be started or does not end. Until it is ready an instance that is not drained is critical.
//
// A failed Restart is for the caller to follow up by another one. A process that is late is left to become ready. Where none
// runs, Restart is awaited for half a minute; then the restart policy decides, as for a process that has ended by itself.
func (s *Service) Restart(ctx context.Context) error {
	return s.call(ctx, (*run).restart, (*run).readiness)
}

// Signal sends the process a signal that may change whether it is ready: a call of Ready has to follow. A process that ends
// until then counts as one that a Restart could not start.
func (s *Service) Signal(sig syscall.Signal) error {
	return s.call(context.Background(), func(r *run) error { return r.signal(sig) }, nil)
}

// Ready probes the process anew, a moment after the last Signal at the earliest, and returns when it is ready, or an error
// as Restart does. The instance stays in service until it is late.
func (s *Service) Ready(ctx context.Context) error {
	return s.call(ctx, (*run).check, (*run).readiness)
}

// SetTags registers these tags in addition to the configured ones, in place of those of an earlier call, and does not wait
// for Consul. The status of the checks stays.
func (s *Service) SetTags(tags []string) error {
	return s.call(context.Background(), func(r *run) error { r.reg.tag(tags); return nil }, nil)
}

// State returns the state at the moment. It may be called at any time, before and after Run, too.
func (s *Service) State() State { return *s.state.Load() }
