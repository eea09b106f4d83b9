package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"

	"berth/registrar/label"
	"berth/registrar/ready"
	"berth/registrar/retry"
	"berth/templates/claim"
)

const (
	// killTime limits the wait after SIGKILL. Only a process that hangs in the kernel exceeds it.
	killTime = 5 * time.Second

	// restartGrace is how long a caller may take to follow up a Restart that left no process: a revert first writes files,
	// and reports to Consul.
	restartGrace = 30 * time.Second

	// portPatience is how long a restarted process may leave its port occupied by children that have yet to end.
	portPatience = 5 * time.Second
	portEvery    = 20 * time.Millisecond

	// signalSettles is how long after a signal the process is probed again: if the signal ends it, it is dead by then.
	signalSettles = 200 * time.Millisecond

	// Docker's pauses before it restarts a container: doubling from retry's first pause up to the longest, and starting over
	// after a stable run.
	longestPause = time.Minute
	stable       = 10 * time.Second
)

// Reasons why the process is not ready.
const (
	notStarted = "not started yet"
	starting   = "not ready yet"
	restarts   = "restarts"
)

// phase is the state of the process. Each phase ends with an event, some also at their deadline.
type phase int

const (
	preparing phase = iota // no process: one starts when Options.Before has returned and the port is free
	running                // a process runs, ready or not
	pausing                // the process ended by itself and is restarted at the deadline
	failed                 // the process ended, or did not start, during a change: until the deadline only Restart starts one
	draining               // the process will be told to end at the deadline
	ending                 // the process got SIGTERM, and is killed at the deadline
	killing                // the process got SIGKILL
	over                   // the service ends
)

// run is a running Service. Its methods are called from Run's goroutine and do not wait: everything that takes time ends
// with an event of the loop.
type run struct {
	*Service
	reg      *registration
	phase    phase
	deadline <-chan time.Time // of the phase; nil = none
	final    bool             // the process ends for good and is not restarted
	pauses   *backoff.ExponentialBackOff
	code     int // the result of Run
	err      error

	process   Running // nil = no process
	began     time.Time
	signalled time.Time // last time, by Signal

	// The task is what the phase waits for in a goroutine: the preparation of a start, or probes.
	reports chan error
	cancel  context.CancelFunc
	tasks   sync.WaitGroup

	ready   bool
	reason  string // why it is not ready
	failure error  // why it will not become ready without help; nil = it may
	probing bool   // no answer yet
	changes bool   // a caller changes the process and will follow up if it ends

	drained time.Time // start of its time out of service; zero = in service
	because string    // why it is out of service

	calls []call // calls that have begun and are not done
}

// Run starts the process and returns its exit code, as in a shell, when it has ended and will not be restarted. The process
// is registered from the moment it is ready until it is told to stop or ends. It keeps running if Consul does not answer. A
// ctx that is done stops the process like SIGTERM. A service that is told to stop while no process runs returns 0. Run is
// called once.
func (s *Service) Run(ctx context.Context) (code int, err error) {
	r := &run{
		Service: s, reg: newRegistration(s.opts, s.instance, os.Getpid()), pauses: retry.Delays(),
		cancel: func() {}, reason: notStarted,
	}
	r.pauses.Multiplier, r.pauses.MaxInterval = 2, longestPause
	r.prepare(s.opts.Before, 0)
	calls := s.calls
	for done := ctx.Done(); r.phase != over; r.tell() {
		if r.final {
			calls = nil
		}
		select {
		case <-r.ended():
			r.end()
		case <-r.deadline:
			r.timeout()
		case err := <-r.reports:
			r.report(err)
		case r.reg.latest = <-r.reg.outcomes:
		case c := <-calls:
			r.take(c)
		case sig := <-s.opts.Forward:
			if r.process != nil {
				r.process.Signal(sig.(syscall.Signal))
			}
		case sig := <-s.opts.Stop:
			r.stop("the process was told to stop by "+label.SignalName(int(sig.(syscall.Signal))), sig.(syscall.Signal))
		case <-done:
			done = nil
			r.stop("berth was told to end", syscall.SIGTERM)
		}
	}
	r.finish()
	r.abandon()
	r.tasks.Wait()
	r.reg.remove()
	r.reg.latest = outcome{}
	r.tell()
	return r.code, r.err
}

// enter begins a phase, with a deadline if a time is given.
func (r *run) enter(p phase, within ...time.Duration) {
	r.phase, r.deadline = p, nil
	for _, d := range within {
		r.deadline = time.After(d)
	}
}

// begin runs a task in place of the current one. Its result goes to the method report.
func (r *run) begin(task func(ctx context.Context, report chan<- error)) {
	r.abandon()
	ctx, cancel := context.WithCancel(context.Background())
	reports := make(chan error, 2)
	r.cancel, r.reports = cancel, reports
	r.tasks.Go(func() { task(ctx, reports) })
}

// abandon ends the current task, which then reports nothing.
func (r *run) abandon() {
	r.cancel()
	r.reports, r.probing = nil, false
}

// prepare starts the process after the function, if given, has returned, and when nothing accepts connections on its port:
// that would be registered instead of the process. A port occupied for longer than patience is an error.
func (r *run) prepare(before func(context.Context) error, patience time.Duration) {
	r.enter(preparing)
	r.begin(func(ctx context.Context, report chan<- error) {
		if before != nil {
			if err := before(ctx); err != nil {
				report <- err
				return
			}
		}
		report <- r.awaitPort(ctx, patience)
	})
}

func (s *Service) awaitPort(ctx context.Context, patience time.Duration) error {
	at := s.opts.Target()
	for began := time.Now(); s.instance.Ready.Kind != label.ReadyNone && s.try(ctx, label.Ready{Kind: label.ReadyTCP, Address: at}) == nil; {
		if time.Since(began) >= patience {
			return fmt.Errorf("%s already accepts connections before %s is started: stop the program that listens there, or choose another port", at, s.opts.Program)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(portEvery):
		}
	}
	return nil
}

// probe probes whether the process is ready.
func (r *run) probe() {
	settle := time.Until(r.signalled.Add(signalSettles))
	r.begin(func(ctx context.Context, report chan<- error) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(settle):
		}
		if r.instance.Ready.Kind == label.ReadyNone ||
			ready.Wait(ctx, r.try, r.instance.Ready, r.opts.ReadyTimeout, func(err error) { report <- err }) == nil {
			report <- nil
		}
	})
	r.probing, r.failure = true, nil
}

// report receives the result of the task: for a preparation, nil or why the process cannot start; for probes, nil when it is
// ready or why it is late.
func (r *run) report(err error) {
	switch {
	case r.phase == preparing && err != nil:
		r.unstarted(err)
	case r.phase == preparing:
		r.start()
	case err != nil:
		r.opts.Log.Warn(r.opts.Program+" is critical in Consul until it is ready", "instance", r.instance.ID, "reason", err, "waited", r.opts.ReadyTimeout)
		r.ready, r.reason = false, err.Error()
		r.failure = fmt.Errorf("not ready within %v: %w", r.opts.ReadyTimeout, err)
		r.reg.registerAfter(r.opts.ReadyTimeout, err)
	default:
		r.abandon()
		r.ready, r.reason, r.failure, r.changes = true, "", nil, false
		r.reg.register(nil)
	}
}

func (r *run) start() {
	p, err := r.opts.Start()
	if err != nil {
		r.unstarted(fmt.Errorf("cannot start %s: %w", r.opts.Program, err))
		return
	}
	r.opts.Log.Info(r.opts.Program+" started", "pid", p.PID())
	r.process, r.began = p, time.Now()
	r.reg.begun, r.reg.readyAt = r.began, time.Time{}
	if r.reason == notStarted {
		r.reason = starting
	}
	r.enter(running)
	r.probe()
}

// unstarted applies the restart policy to a process that cannot be started. A failure of the first start ends the service:
// it is the operator's mistake.
func (r *run) unstarted(err error) {
	if r.code, r.err = 0, err; r.began.IsZero() {
		r.enter(over)
		return
	}
	r.lose(err)
}

// ended returns a channel that is closed when the process has ended.
func (r *run) ended() <-chan struct{} {
	if r.process == nil {
		return nil
	}
	return r.process.Ended()
}

func (r *run) end() {
	p, wasReady := r.process, r.ready
	r.opts.Log.Info(r.opts.Program+" ended", "pid", p.PID(), "state", p.String())
	r.abandon()
	r.process, r.ready = nil, false
	r.code, r.err = p.Code(), nil
	if time.Since(r.began) >= stable {
		r.pauses.Reset()
	}
	why := fmt.Errorf("ended with code %d", r.code)
	switch {
	case r.final:
		r.reason = why.Error()
		r.enter(over)
	case r.phase != running: // it was told to end, for a restart
		r.prepare(nil, portPatience)
	case wasReady:
		r.lose(why)
	default:
		r.lose(fmt.Errorf("%w before it was ready", why))
	}
}

// lose decides what follows when no process runs but one should. The code and error for Run are already set.
func (r *run) lose(why error) {
	switch policy := r.opts.RestartPolicy; {
	case r.changes:
		r.opts.Log.Warn(r.opts.Program+" does not run; waiting for another restart", "reason", why, "at_most", restartGrace)
		r.fail(why)
		r.enter(failed, restartGrace)
	case policy == RestartAlways, policy == RestartOnFailure && (r.code != 0 || r.err != nil):
		pause := min(r.pauses.NextBackOff(), longestPause)
		r.opts.Log.Warn(r.opts.Program+" is started again", "reason", why, "retry_in", pause.Round(time.Millisecond))
		r.fail(fmt.Errorf("%w, started again in %v", why, pause.Round(10*time.Millisecond)))
		r.enter(pausing, pause)
	default:
		r.reason = why.Error()
		r.enter(over)
	}
}

// fail registers the instance as critical until the process is ready.
func (r *run) fail(why error) {
	r.ready, r.reason, r.failure = false, why.Error(), why
	r.reg.register(why)
}

// timeout handles the deadline of the phase.
func (r *run) timeout() {
	r.deadline = nil
	select {
	case <-r.ended(): // it ended at the last moment; the loop is about to learn of it
		return
	default:
	}
	switch r.phase {
	case pausing:
		r.prepare(nil, portPatience)
	case failed:
		r.changes = false
		r.lose(r.failure)
	case draining:
		r.terminate()
	case ending:
		r.opts.Log.Warn(r.opts.Program+" did not end when told to; killing it", "pid", r.process.PID(), "waited", r.opts.StopTimeout)
		r.process.Tell(syscall.SIGKILL)
		r.enter(killing, killTime)
	case killing:
		err := fmt.Errorf("%s, process %d, does not end even after SIGKILL", r.opts.Program, r.process.PID())
		if r.final {
			r.code, r.err = 0, err
			r.enter(over)
			return
		}
		r.fail(err)
		r.enter(running)
	}
}

func (r *run) terminate() {
	r.process.Tell(syscall.SIGTERM)
	r.enter(ending, r.opts.StopTimeout)
}

// stop ends the process for good: it takes the instance out of service, and ends the process once it is drained. A second
// call ends the process at once, and further calls pass the signal on.
func (r *run) stop(reason string, sig syscall.Signal) {
	if r.final {
		if r.phase == draining {
			r.terminate()
		} else {
			r.process.Signal(sig)
		}
		return
	}
	r.finish()
	if r.process == nil {
		r.opts.Log.Info(r.opts.Program+" is not started again", "reason", reason)
		r.code, r.err, r.reason = 0, nil, reason
		r.enter(over)
		return
	}
	r.opts.Log.Info("stopping "+r.opts.Program, "pid", r.process.PID(), "reason", reason)
	if r.phase != running {
		return // a restart has already told it to end
	}
	r.abandon()
	if r.drain(reason) {
		r.enter(draining, time.Until(r.drained.Add(r.opts.DrainTime)))
	} else {
		r.terminate()
	}
}

// finish ends all calls.
func (r *run) finish() {
	if !r.final {
		r.final, r.calls = true, nil
		close(r.stopping)
	}
}

// drain takes the instance out of service, and reports whether it was registered, and so needs draining.
func (r *run) drain(reason string) (registered bool) {
	if r.drained.IsZero() {
		r.drained, r.because = time.Now(), reason
	}
	notes := r.because
	if r.final {
		notes = claim.WithStop(notes, r.drained)
	}
	return r.reg.drain(notes)
}

func (r *run) resume() error {
	r.drained, r.because = time.Time{}, ""
	r.reg.resume()
	return nil
}

func (r *run) restart() error {
	r.changes, r.failure, r.ready = true, nil, false
	r.pauses.Reset()
	if !r.began.IsZero() {
		r.reason = restarts
	}
	if r.reg.active() {
		r.reg.register(errors.New(restarts))
	}
	switch r.phase {
	case running:
		r.abandon()
		r.terminate()
	case pausing, failed:
		r.prepare(nil, portPatience)
	}
	return nil // in all other phases the start is still to come
}

func (r *run) signal(sig syscall.Signal) error {
	if r.phase != running {
		return fmt.Errorf("%s gets no %s: %s", r.opts.Program, label.SignalName(int(sig)), r.reason)
	}
	r.changes, r.signalled = true, time.Now()
	r.process.Signal(sig)
	return nil
}

func (r *run) check() error {
	if r.phase == running {
		r.changes = true
		r.probe()
	}
	return nil
}

// readiness answers a caller that waits for the process to be ready.
func (r *run) readiness() (done bool, err error) {
	return r.failure != nil || (r.ready && !r.probing), r.failure
}

// take begins a call.
func (r *run) take(c call) {
	if err := c.begin(r); err != nil || c.until == nil {
		c.answer <- err
	} else {
		r.calls = append(r.calls, c)
	}
}

// tell reports the result of the last event to callers and to Options.Changed.
func (r *run) tell() {
	r.calls = slices.DeleteFunc(r.calls, func(c call) bool {
		done, err := c.until(r)
		if done {
			c.answer <- err
		}
		return done || c.ctx.Err() != nil // its caller is gone
	})
	is := State{Registered: r.reg.latest.held, Ready: r.ready, Draining: !r.drained.IsZero(), Reason: r.because}
	if !is.Ready {
		is.Reason = r.reason
	}
	if r.process != nil {
		is.PID = r.process.PID()
	}
	was := r.State()
	if is.Since = was.Since; is != was {
		is.Since = time.Now()
		r.state.Store(&is)
		if r.opts.Changed != nil {
			r.opts.Changed(is)
		}
	}
}
