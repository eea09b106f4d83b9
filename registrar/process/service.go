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
	Tell(s syscall.Signal)  // to end; SIGKILL ends what the process has started, too
	Ended() <-chan struct{} // closed when it has
	Code() int              // once it has ended, as a shell has it; to end by a signal that Tell sent is as good as 0
	String() string         // how it ended
}

// Options say what to run, and as what to register it. All but Process's optional fields and the times are required.
type Options struct {
	Program string // its name, in logs
	Start   func() (Running, error)
	// Stop receives SIGTERM and SIGINT: the first stops the process, a second one cuts draining short, and the process
	// gets all others. Forward receives signals that it gets at any time.
	Stop, Forward <-chan os.Signal

	label.Process               // as what it is registered
	ReadyTimeout  time.Duration // after that it is registered as critical until it is ready
	DrainTime     time.Duration // from its being taken out of service to its SIGTERM
	StopTimeout   time.Duration // from there to its SIGKILL

	Consul agent.Client
	Log    *slog.Logger
}

// killTime is how long a process may take to end by SIGKILL, which only one does that hangs in the kernel.
const killTime = 5 * time.Second

// Service is a plain process with its registration.
type Service struct {
	opts     Options
	instance label.Instance
}

// New returns a Service, or one line that says what is wrong with the options, by the names of berth's flags. Nothing is
// started or dialled before Run.
func New(opts Options) (*Service, error) {
	instance, err := opts.Instance()
	return &Service{opts, instance}, err
}

// Run starts the process and returns when it has ended, with its exit code as a shell has it. The process is registered
// from when it is ready until it is told to stop or ends. Whether Consul answers makes no difference to it. A ctx that is
// done stops the process like a SIGTERM.
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

// attend registers the process when it is ready, and returns why it is to stop, or "" when it has ended by itself.
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

// stop takes the process out of service, and has it end when it is drained. What is not registered needs no draining.
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

// await waits at most so long until the process has ended, and reports whether it has. With short, a signal to stop ends
// the waiting; all other signals are passed on.
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
