// Package supervise runs a proxy as berth's child process. It starts the proxy once there is a configuration, restarts it when it
// ends by itself, forwards signals to it, and stops it gently.
//
// The child leads its own process group. Ctrl-C in a terminal therefore reaches only berth, which has the proxy finish its
// connections. The signal itself would have cut them.
//
// The child does not end with berth: if berth is killed, the proxy keeps serving. The next berth finds the proxy
// (Options.Serving) and supervises it like its own child. A second proxy would share the ports with the first, whose
// configuration would no longer be updated. With KillMode=process, systemd leaves the proxy alone; by default it would send
// SIGTERM to the proxy as well and cut its connections. In a container, everything ends with berth.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"berth/proxyctl"
)

const (
	// stable is how long a child must run before its end counts as the first one again.
	stable = 10 * time.Second
	// killAfter is how long the proxy has after SIGTERM and after SIGKILL. docker stop waits ten seconds in total, and
	// StopTimeout takes most of them.
	killAfter = time.Second
	// repeatAfter is the first delay before a stop signal is sent again, since a HAProxy that reloads ignores it.
	repeatAfter = 200 * time.Millisecond
	// pollEvery is how often Serving is asked whether a started child serves yet.
	pollEvery = 20 * time.Millisecond
)

// Options describe the child. Command, Stdout, Stderr, StopSignal, Configured and Log are required.
type Options struct {
	Command        []string       // the program and its arguments
	Env            []string       // its environment; nil = berth's own
	Stdout, Stderr *os.File       // passed to it unchanged
	StopSignal     syscall.Signal // makes it finish its connections and end; sent repeatedly
	StopTimeout    time.Duration  // from StopSignal to SIGTERM; SIGKILL comes a second later
	Log            *slog.Logger
	Metrics        prometheus.Registerer

	// Configured is closed when a good configuration is in place and the child may start.
	Configured <-chan struct{}
	// Signals are forwarded to the child. A StopSignal among them ends Run once the child has ended.
	Signals <-chan os.Signal
	// Serving returns the process that currently serves as the proxy, 0 if there is none. A proxy left running by an earlier
	// berth is supervised instead of a new child, even before Configured. After an error, no child is started, and Serving is
	// called again later.
	Serving func() (pid int, err error)
	// Started is called each time the child serves after a start, so that the engine inspects it at once.
	Started func()
	// Stopping is called before the child is told to end, because a reload would keep it going.
	Stopping func()
}

// Child is a proxy that runs as a child process.
type Child struct {
	opts   Options
	name   string
	starts prometheus.Counter

	mu     sync.Mutex
	status error // nil while the child runs
}

// New returns a Child; nothing is started before Run.
func New(opts Options) *Child {
	for _, hook := range []*func(){&opts.Started, &opts.Stopping} {
		if *hook == nil {
			*hook = func() {}
		}
	}
	c := &Child{
		opts: opts,
		name: filepath.Base(opts.Command[0]),
		starts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "berth_proxy_starts_total", Help: "Starts of the proxy as a child process.",
		}),
	}
	c.setStatus(fmt.Errorf("%s is not started yet: there is no configuration", c.name))
	if opts.Metrics != nil {
		opts.Metrics.MustRegister(c.starts)
	}
	return c
}

// Ready returns nil while the child runs, otherwise the reason why it does not.
func (c *Child) Ready() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

func (c *Child) setStatus(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status = err
}

// Exit is the error for a child that ended badly when told to end.
type Exit struct {
	Name string
	Code int // as a shell reports it: 128 plus the signal if one killed the child
}

func (e *Exit) Error() string { return fmt.Sprintf("%s ended with code %d", e.Name, e.Code) }

// Run keeps the child running, from Options.Configured until ctx is done or StopSignal is forwarded, and returns when the child
// has ended: nil if it ended as told, otherwise an *Exit. Run never gives up starting the child.
func (c *Child) Run(ctx context.Context) error {
	if pid, _ := c.serving(); pid == 0 && !wait(ctx, c, c.opts.Configured) {
		return nil
	}
	pause := proxyctl.Delays(100*time.Millisecond, 10*time.Second)
	var reported string
	for {
		began := time.Now()
		p, err := c.start()
		started := err == nil
		if started {
			if c.watch(ctx, p) {
				return c.stop(ctx, p)
			}
			err = fmt.Errorf("%s ended by itself after %s: %s", c.name, time.Since(began).Round(time.Millisecond), p)
		}
		c.setStatus(err)
		if time.Since(began) >= stable {
			pause.Reset()
		}
		again := pause.NextBackOff()
		if started || err.Error() != reported {
			reported = err.Error()
			c.opts.Log.Error(c.name+" does not run, starting it again", "err", err, "retry_in", again.Round(time.Millisecond))
		}
		if !wait(ctx, c, time.After(again)) {
			return nil
		}
	}
}

// start starts the child, or adopts a proxy that an earlier berth left running.
func (c *Child) start() (*Process, error) {
	pid, err := c.serving()
	if err != nil {
		return nil, fmt.Errorf("%s is not started: %w", c.name, err)
	}
	var p *Process
	if pid != 0 {
		p, err = adopt(pid, c.opts.StopSignal)
	}
	switch {
	case p != nil:
		c.opts.Log.Info(c.name+" is already running: berth supervises it from now on", "pid", pid)
	case err != nil && !errors.Is(err, os.ErrProcessDone):
		return nil, fmt.Errorf("%s is already running as process %d, which berth cannot supervise: %w", c.name, pid, err)
	default:
		cmd := exec.Command(c.opts.Command[0], c.opts.Command[1:]...)
		cmd.Env, cmd.Stdout, cmd.Stderr = c.opts.Env, c.opts.Stdout, c.opts.Stderr
		if p, err = Start(cmd, c.opts.StopSignal); err != nil {
			return nil, fmt.Errorf("cannot start %s: %w", c.name, err)
		}
		c.starts.Inc()
		c.opts.Log.Info(c.name+" started", "pid", p.PID())
	}
	c.setStatus(nil)
	return p, nil
}

// serving returns the process that currently serves as the proxy, 0 if there is none.
func (c *Child) serving() (pid int, err error) {
	if c.opts.Serving == nil {
		return 0, nil
	}
	return c.opts.Serving()
}

// watch forwards signals and reports whether p should be stopped; false means that p ended by itself.
func (c *Child) watch(ctx context.Context, p *Process) (stop bool) {
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	for {
		select {
		case <-p.Ended():
			return false
		case <-ctx.Done():
			return true
		case <-poll.C:
			if pid, _ := c.serving(); pid != 0 || c.opts.Serving == nil {
				poll.Stop()
				c.opts.Started()
			}
		case s := <-c.opts.Signals:
			if s == c.opts.StopSignal {
				return true
			}
			p.Signal(s.(syscall.Signal))
		}
	}
}

// stop makes p end. After a forwarded StopSignal, p may take its time until ctx is done.
func (c *Child) stop(ctx context.Context, p *Process) error {
	c.setStatus(fmt.Errorf("%s is stopping", c.name))
	c.opts.Stopping()
	began := time.Now()
	ended := ctx.Err() == nil && p.insist(ctx, c.opts.StopSignal)
	for _, step := range []struct {
		signal syscall.Signal
		time   time.Duration
	}{{c.opts.StopSignal, c.opts.StopTimeout}, {syscall.SIGTERM, killAfter}, {syscall.SIGKILL, killAfter}} {
		if ended {
			break
		}
		within, cancel := context.WithTimeout(context.WithoutCancel(ctx), step.time)
		ended = p.insist(within, step.signal)
		cancel()
		if !ended {
			c.opts.Log.Warn(fmt.Sprintf("%s did not end within %s of %s", c.name, step.time, unix.SignalName(step.signal)), "signal", step.signal.String(), "duration", step.time)
		}
	}
	if !ended {
		return fmt.Errorf("%s, process %d, does not end", c.name, p.PID())
	}
	c.opts.Log.Info(c.name+" ended", "state", p.String(), "duration", time.Since(began).Round(time.Millisecond))
	if code := p.Code(); code != 0 {
		return &Exit{Name: c.name, Code: code}
	}
	return nil
}

// wait waits for ready while no child runs. It returns false if no child should be started any more. It ignores all signals
// except StopSignal.
func wait[T any](ctx context.Context, c *Child, ready <-chan T) bool {
	for {
		select {
		case <-ctx.Done():
			return false
		case <-ready:
			return true
		case s := <-c.opts.Signals:
			if s == c.opts.StopSignal {
				c.opts.Stopping()
				return false
			}
		}
	}
}
