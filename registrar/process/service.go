// Package process keeps a plain process registered in Consul while it runs: registered when it is ready, out of service
// when it is told to stop, and deregistered when it has ended.
package process

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
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

// Options say what to run and how to register it. All are required, except Process's optional fields and the times.
type Options struct {
	Program string // its name, in logs
	Start   func() (Running, error)
	// Stop receives SIGTERM and SIGINT: the first stops the process, a second one cuts draining short, and the process
	// gets all others. Forward receives signals that it gets at any time.
	Stop, Forward <-chan os.Signal

	label.Process               // the instance to register
	ReadyTimeout  time.Duration // from then on it is registered as critical until it is ready
	DrainTime     time.Duration // between taking it out of service and SIGTERM
	StopTimeout   time.Duration // between SIGTERM and SIGKILL

	Consul agent.Client
	Log    *slog.Logger
}

// killTime limits the wait after SIGKILL; only a process that hangs in the kernel exceeds it.
const killTime = 5 * time.Second

// Service is a plain process with its registration.
type Service struct {
	opts     Options
	instance label.Instance
}

// New returns a Service, or an error that names the invalid option by its flag. Nothing is started or dialled before Run.
func New(opts Options) (*Service, error) {
	instance, err := opts.Instance()
	return &Service{opts, instance}, err
}

// Run starts the process and returns its exit code, as in a shell, when it has ended. The process is registered from the
// moment it is ready until it is told to stop or ends, and runs on if Consul does not answer. A ctx that is done stops the
// process like a SIGTERM.
func (s *Service) Run(ctx context.Context) (code int, err error) {
	if at := s.opts.Target(); s.instance.Ready.Kind != label.ReadyNone && ready.Try(ctx, label.Ready{Kind: label.ReadyTCP, Address: at}) == nil {
		return 0, fmt.Errorf("%s accepts connections before %s is started: end what listens there, or choose another port", at, s.opts.Program)
	}
	p, err := s.opts.Start()
	if err != nil {
		return 0, fmt.Errorf("cannot start %s: %w", s.opts.Program, err)
	}
	s.opts.Log.Info(s.opts.Program+" started", "pid", p.PID())
	r := newRegistration(s.opts, s.instance, p.PID())
	if reason := s.attend(ctx, p, r); reason != "" {
		s.stop(p, r, reason)
	}
	r.remove()
	if !ended(p) {
		return 0, fmt.Errorf("%s, process %d, does not end, not even by SIGKILL", s.opts.Program, p.PID())
	}
	s.opts.Log.Info(s.opts.Program+" ended", "pid", p.PID(), "state", p.String())
	return p.Code(), nil
}

// attend registers the process when it is ready. It returns why the process has to stop, or "" if it ended by itself.
func (s *Service) attend(ctx context.Context, p Running, r *registration) (stop string) {
	probing, enough := context.WithCancel(context.WithoutCancel(ctx))
	var (
		isReady = make(chan struct{})
		late    = make(chan error, 1)
		prober  sync.WaitGroup
	)
	prober.Go(func() {
		if s.instance.Ready.Kind == label.ReadyNone ||
			ready.Wait(probing, ready.Try, s.instance.Ready, s.opts.ReadyTimeout, func(err error) { late <- err }) == nil {
			close(isReady)
		}
	})
	defer prober.Wait()
	defer enough()
	for {
		select {
		case <-p.Ended():
			return ""
		case <-ctx.Done():
			return "berth was told to end"
		case sig := <-s.opts.Stop:
			return "the process was told to stop by " + label.SignalName(int(sig.(syscall.Signal)))
		case sig := <-s.opts.Forward:
			p.Signal(sig.(syscall.Signal))
		case err := <-late:
			s.opts.Log.Warn("critical until it is ready", "instance", s.instance.ID, "reason", err, "waited", s.opts.ReadyTimeout)
			r.register(err)
		case <-isReady:
			isReady, late = nil, nil
			r.register(nil)
		}
	}
}

// stop takes the process out of service and ends it when it is drained. An unregistered process needs no draining.
func (s *Service) stop(p Running, r *registration, reason string) {
	log := s.opts.Log.With("pid", p.PID())
	log.Info(s.opts.Program+" is to stop", "reason", reason)
	if r.drain(reason) && s.await(p, s.opts.DrainTime, true) {
		return
	}
	p.Tell(syscall.SIGTERM)
	if s.await(p, s.opts.StopTimeout, false) {
		return
	}
	log.Warn(s.opts.Program+" has not ended when told to, killing it", "waited", s.opts.StopTimeout)
	p.Tell(syscall.SIGKILL)
	s.await(p, killTime, false)
}

// await waits until the process has ended, at most for a time, and reports whether it has ended. With short, a signal to
// stop ends the wait. The process receives all other signals.
func (s *Service) await(p Running, most time.Duration, short bool) bool {
	over := time.NewTimer(most)
	defer over.Stop()
	for {
		select {
		case <-p.Ended():
			return true
		case <-over.C:
			return ended(p)
		case sig := <-s.opts.Forward:
			p.Signal(sig.(syscall.Signal))
		case sig := <-s.opts.Stop:
			if short {
				return ended(p)
			}
			p.Signal(sig.(syscall.Signal))
		}
	}
}

func ended(p Running) bool {
	select {
	case <-p.Ended():
		return true
	default:
		return false
	}
}
