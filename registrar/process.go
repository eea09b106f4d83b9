package registrar

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"berth/registrar/agent"
	"berth/registrar/label"
	"berth/registrar/ready"
)

// ProcessOptions say what to run, and as what to register it. Command, Process, Agent and Log are required.
type ProcessOptions struct {
	Command               []string // the program and its arguments; it has to stay in the foreground
	Stdin, Stdout, Stderr *os.File // given to it as they are; nil = /dev/null
	// Signals: the first SIGTERM or SIGINT stops the process, a second one cuts draining short, and all others are
	// passed on.
	Signals <-chan os.Signal

	label.Process               // as what it is registered
	ReadyTimeout  time.Duration // after that it is registered as critical until it is ready
	DrainTime     time.Duration // from its being taken out of service to its SIGTERM
	StopTimeout   time.Duration // from there to its SIGKILL

	Agent agent.Client
	Log   *slog.Logger
}

const (
	// processOwner begins the owner of a registration that a Process makes, where others have their Docker engine.
	processOwner = "process:"

	// killTime is how long a process may take to end by SIGKILL, which only one does that hangs in the kernel.
	killTime = 5 * time.Second
)

// Process is a plain process that is registered in Consul while it runs.
type Process struct {
	opts     ProcessOptions
	name     string // of the program, in logs
	at       string // where it is asked whether it is ready
	instance label.Instance
}

// NewProcess returns a Process, or one line that says what is wrong with the options, by the names of berth's flags.
// Nothing is started or dialled before Run.
func NewProcess(opts ProcessOptions) (*Process, error) {
	in, err := opts.Instance()
	return &Process{opts: opts, name: filepath.Base(opts.Command[0]), at: opts.Target(), instance: in}, err
}

// Run starts the process and returns when it has ended, with its exit code as a shell has it: 128 and the signal if one
// killed it. To end by the SIGTERM that Run sent is as good as 0. The process is registered from when it is ready until
// it is told to stop or ends. Whether Consul answers makes no difference to it. That ctx is done is like a SIGTERM
// in Signals.
func (p *Process) Run(ctx context.Context) (code int, err error) {
	if p.instance.Ready.Kind != label.ReadyNone && accepts(ctx, p.at) {
		return 0, fmt.Errorf("%s accepts connections before %s is started: end what listens there, or choose another port", p.at, p.name)
	}
	c, err := startChild(p.opts)
	if err != nil {
		return 0, fmt.Errorf("cannot start %s: %w", p.name, err)
	}
	p.opts.Log.Info(p.name+" started", "pid", c.Pid)
	owner := fmt.Sprintf("%s%s:%d", processOwner, p.opts.Host, c.Pid)
	w := agent.Desired{Instance: p.instance}
	w.Meta = maps.Clone(w.Meta)
	w.Meta[label.MetaOwner] = owner
	k := newKeeper(p.opts.Agent, p.opts.Log, w.ID, owner, p.opts.TTL, fmt.Sprintf("process %d runs", c.Pid))
	if reason := p.attend(ctx, c, k, w); reason != "" {
		p.stop(c, k, w, reason)
	}
	k.release()
	if !c.hasEnded() {
		return 0, fmt.Errorf("%s, process %d, does not end, not even by SIGKILL", p.name, c.Pid)
	}
	p.opts.Log.Info(p.name+" ended", "pid", c.Pid, "state", c.state.String())
	return c.code(), nil
}

// attend registers the process when it is ready, and returns why it is to stop, or "" when it has ended by itself.
func (p *Process) attend(ctx context.Context, c *child, k *keeper, w agent.Desired) (stop string) {
	probing, enough := context.WithCancel(context.WithoutCancel(ctx))
	var (
		ready  = make(chan struct{})
		late   = make(chan error, 1)
		prober sync.WaitGroup
	)
	prober.Go(func() {
		if p.probe(probing, func(err error) { late <- err }) == nil {
			close(ready)
		}
	})
	defer prober.Wait()
	defer enough()
	for {
		select {
		case <-c.ended:
			return ""
		case <-ctx.Done():
			return "berth was told to end"
		case s := <-p.opts.Signals:
			if isStop(s) {
				return "the process was told to stop by " + label.SignalName(int(s.(syscall.Signal)))
			}
			_ = c.Signal(s)
		case err := <-late:
			w.NotReady = err.Error()
			p.opts.Log.Warn("critical until it is ready", "instance", w.ID, "reason", w.NotReady, "waited", p.opts.ReadyTimeout)
			k.keep(w)
		case <-ready:
			ready, late = nil, nil
			w.NotReady = ""
			k.keep(w)
		}
	}
}

// probe returns nil when the process is ready.
func (p *Process) probe(ctx context.Context, late func(error)) error {
	if p.instance.Ready.Kind == label.ReadyNone {
		return nil
	}
	return ready.Wait(ctx, ready.Try, p.instance.Ready, p.opts.ReadyTimeout, late)
}

// stop takes the process out of service, and has it end when it is drained. What is not registered needs no draining.
func (p *Process) stop(c *child, k *keeper, w agent.Desired, reason string) {
	log := p.opts.Log.With("pid", c.Pid)
	log.Info(p.name+" is to stop", "reason", reason)
	if k.keeping() {
		w.Drain = agent.Automatic + reason
		k.keep(w)
		if p.await(c, p.opts.DrainTime, isStop) {
			return
		}
	}
	c.terminate()
	if p.await(c, p.opts.StopTimeout, nil) {
		return
	}
	log.Warn(p.name+" has not ended when told to, killing it", "waited", p.opts.StopTimeout)
	c.kill()
	p.await(c, killTime, nil)
}

// await waits until the process has ended, for so long at most, and says whether it has. A signal that is enough ends
// the waiting, all others are passed on.
func (p *Process) await(c *child, most time.Duration, enough func(os.Signal) bool) bool {
	over := time.NewTimer(most)
	defer over.Stop()
	for {
		select {
		case <-c.ended:
			return true
		case <-over.C:
			return c.hasEnded()
		case s := <-p.opts.Signals:
			if enough != nil && enough(s) {
				return c.hasEnded()
			}
			_ = c.Signal(s)
		}
	}
}

// accepts says whether something listens there already: it would be registered in place of a process that then cannot.
func accepts(ctx context.Context, address string) bool {
	return ready.Try(ctx, label.Ready{Kind: label.ReadyTCP, Address: address}) == nil
}

func isStop(s os.Signal) bool {
	return slices.Contains([]os.Signal{syscall.SIGTERM, syscall.SIGINT}, s)
}
