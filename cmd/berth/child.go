package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"berth/proxyctl/supervise"
)

const childUsage = "put the proxy's command behind --: berth run -- haproxy -W -db"

// headStart is how long the proxy waits for a new configuration before it starts with the old one.
const headStart = 3 * time.Second

// acceptsCommand makes a command accept another command behind --. Errors mention this if the user seems to mean it.
func acceptsCommand(cmd *cobra.Command) {
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		dash := cmd.ArgsLenAtDash()
		if dash == 0 && len(args) > 0 {
			return nil
		}
		if err := cobra.NoArgs(cmd, args); err != nil {
			return fmt.Errorf("%w: %s", err, childUsage)
		}
		if dash == 0 {
			return fmt.Errorf("nothing behind --: %s", childUsage)
		}
		return nil
	}
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if cmd.Flags().NArg() > 0 { // berth run haproxy -W
			return fmt.Errorf("%w: %s", err, childUsage)
		}
		return err
	})
}

// childCommand completes the command line of the proxy that berth runs, if any. The same program validates configurations,
// unless an option sets another program.
func (p *process) childCommand(args []string) ([]string, error) {
	if len(args) == 0 {
		return nil, nil
	}
	command, err := p.proxy.command(args)
	if err != nil {
		return nil, err
	}
	if _, err := exec.LookPath(command[0]); err != nil {
		return nil, fmt.Errorf("the command behind --: %w", err)
	}
	if o := p.proxy.common(); o.Binary == o.name {
		o.Binary = cmp.Or(programIn(command, o.name), command[0])
	}
	return command, nil
}

// programIn returns the program of this name in a command line, "" if there is none. Another program may start it, as in
// setpriv --reuid 99 haproxy -W.
func programIn(command []string, name string) string {
	i := slices.IndexFunc(command, func(arg string) bool { return filepath.Base(arg) == name })
	if i < 0 {
		return ""
	}
	return command[i]
}

// proxyChild is the proxy that berth runs. It starts as soon as there is a good configuration: a new one, or the old one
// when no new one comes. While Consul is away, the last good configuration is better than nothing.
type proxyChild struct {
	process *supervise.Child
	*proxyOptions
	command, env []string
	configured   <-chan struct{} // closed by configure
	configure    func()
	log          *slog.Logger
}

// newChild returns the proxy as a child of berth, or nil without a command. The child waits for a call of configure. started
// is called when the child serves, stopping just before it is told to end.
func (p *process) newChild(command []string, started, stopping func()) *proxyChild {
	if len(command) == 0 {
		return nil
	}
	configured := make(chan struct{})
	o := p.proxy.common()
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGUSR2, o.stopSignal)
	env, withheld := proxyEnvironment(os.Environ())
	if len(withheld) > 0 {
		p.log.Info("withheld variables that look like secrets from the proxy's environment, except HAPROXY_… and NGINX_…",
			"variables", withheld)
	}
	return &proxyChild{
		process: supervise.New(supervise.Options{
			Command:     command,
			Env:         env,
			Stdout:      os.Stdout,
			Stderr:      os.Stderr,
			StopSignal:  o.stopSignal,
			StopTimeout: o.StopTimeout,
			Configured:  configured,
			Signals:     signals,
			Serving:     p.proxy.running,
			Started:     started,
			Stopping:    stopping,
			Log:         p.log,
			Metrics:     p.metrics,
		}),
		proxyOptions: o,
		command:      command,
		env:          env,
		configured:   configured,
		configure:    sync.OnceFunc(func() { close(configured) }),
		log:          p.log,
	}
}

// Ready is nil while the child runs.
func (c *proxyChild) Ready() error { return c.process.Ready() }

// Run lets the child start with the old configuration if no new one comes in time.
func (c *proxyChild) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
	case <-c.configured:
	case <-time.After(headStart):
		if c.hasOldOne(ctx) {
			c.log.Info("no new configuration yet, starting "+c.title+" with the existing one", "file", c.File)
			c.configure()
		}
	}
	return nil
}

// hasOldOne reports whether the child should start with the old configuration: it does not run yet, and the file is valid.
func (c *proxyChild) hasOldOne(ctx context.Context) bool {
	if _, err := os.Stat(c.File); err != nil || c.Ready() == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.command[0], append(slices.Clip(c.command[1:]), c.checkArguments...)...)
	cmd.Env, cmd.WaitDelay = c.env, time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		c.log.Warn("no new configuration yet, and "+c.title+" refuses the existing one", "file", c.File,
			"err", fmt.Errorf("%w: %.300s", err, oneLine(errors.New(string(out)))))
	}
	return err == nil
}

// runBeside runs the child next to the other parts, which run already; others waits for their end. The child stops after the
// other parts, because a reload would keep it running. When an operator stops the child, stopOthers ends the other parts.
func (c *proxyChild) runBeside(ctx context.Context, others func() error, stopOthers func()) error {
	childCtx, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	ended := make(chan error, 1)
	go func() {
		err := others()
		if err != nil {
			end()
		}
		context.AfterFunc(ctx, end)
		ended <- err
	}()
	err := c.process.Run(childCtx)
	stopOthers()
	return errors.Join(<-ended, err)
}
