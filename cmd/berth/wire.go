package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"berth/proxyctl"
	"berth/proxyctl/supervise"
	"berth/templater"
)

// process is what everything in one process shares.
type process struct {
	config  Config
	proxy   proxyKind // the one of the configuration
	log     *slog.Logger
	metrics *prometheus.Registry
}

// runner is a long-running part of berth.
type runner interface {
	Run(ctx context.Context) error
	Ready() error
}

// parts says which halves of berth a command runs, and with which proxy as a child.
type parts struct {
	registrar, templater bool
	proxyCommand         []string // empty if berth does not run the proxy
}

// newProcess reads the configuration for a command.
func newProcess(cmd *cobra.Command) (*process, error) {
	config, err := readConfig(cmd.Flags())
	if err != nil {
		return nil, err
	}
	p := &process{config: config, proxy: config.proxy(), log: newLogger(cmd.ErrOrStderr(), config), metrics: prometheus.NewRegistry()}
	p.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return p, nil
}

// run builds the parts in the order in which they need each other, and runs them until ctx is done or one of them fails.
func (p *process) run(ctx context.Context, want parts) error {
	// 1. The configuration, the log and the metrics are p's. Everything but the child ends with running, the child after it.
	running, stop := context.WithCancel(ctx)
	defer stop()
	var runners []runner
	var child *supervise.Child
	reread := func() { p.log.Info("there are no templates to read again: SIGHUP changes nothing") }

	if want.templater {
		// 2. What takes texts: the plain files, and the proxy's controller.
		files, err := p.plainFiles()
		if err != nil {
			return err
		}
		for _, f := range files {
			runners = append(runners, f)
		}
		ctl, proxyChild, proxyRunners, err := p.newProxy(want.proxyCommand, stop)
		if err != nil {
			return err
		}
		child, runners = proxyChild, append(runners, proxyRunners...)

		// 3. The templater, which gives them their texts.
		t, err := p.newTemplater(files, ctl)
		if err != nil {
			return err
		}
		runners = append(runners, t)
		reread = t.Reread
	}

	// 4. The registrar.
	if want.registrar {
		r, err := p.newRegistrar()
		if err != nil {
			return err
		}
		runners = append(runners, r)
	}

	// 5. All of them run, beside the status server.
	p.log.Info("berth starts", "version", version)
	g, running := errgroup.WithContext(running)
	for _, r := range runners {
		g.Go(func() error { return r.Run(running) })
	}
	g.Go(func() error { onHangup(running, reread); return nil })
	if p.config.Listen != "" {
		g.Go(func() error {
			if err := serve(running, p.config.Listen, statusHandler(p.metrics, func() error { return ready(runners) })); err != nil {
				p.log.Error("no health checks and metrics: choose another address with --listen", "err", err)
			}
			return nil
		})
	}
	if child == nil {
		err := g.Wait()
		p.log.Info("berth stops; registrations and proxy stay as they are")
		return err
	}
	err := runWithChild(ctx, child, g.Wait, stop)
	p.log.Info("berth stops; registrations stay as they are")
	return err
}

// newProxy returns who brings the proxy to a text, the proxy itself if berth runs it, and all of it that runs beside the
// child. Without a proxy to look after there is nothing. stopping is called when the child is about to be told to end.
func (p *process) newProxy(command []string, stopping func()) (*proxyctl.Controller, *supervise.Child, []runner, error) {
	there, err := p.looksAfterProxy(len(command) > 0)
	if err != nil || !there {
		return nil, nil, nil, err
	}
	if len(command) == 0 {
		ctl, err := p.newController(nil)
		return ctl, nil, []runner{ctl}, err
	}
	if command, err = p.childCommand(command); err != nil {
		return nil, nil, nil, err
	}
	prepared := make(chan struct{}, 1)
	ctl, err := p.newController(func() {
		select {
		case prepared <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return nil, nil, nil, err
	}
	o := p.proxy.common()
	env, withheld := proxyEnvironment(os.Environ())
	if len(withheld) > 0 {
		p.log.Info(o.title+" does not get the variables that look like secrets: see docs/haproxy.md", "variables", withheld)
	}
	child := p.newChild(command, env, ctl.Check, stopping)
	return ctl, child, []runner{ctl, firstConfiguration{
		child: child, prepared: prepared, file: o.File, check: append(slices.Clip(command), o.checkArguments...), env: env, log: p.log,
	}}, nil
}

// newTemplater returns what renders the templates of the files and, if it has a controller, of the proxy.
func (p *process) newTemplater(files []plainFile, ctl *proxyctl.Controller) (*templater.Templater, error) {
	opts, err := p.templaterOptions(files, ctl != nil)
	if err != nil {
		return nil, err
	}
	set := map[string]func(text string, files map[string]string, since time.Time){}
	for _, f := range files {
		set[f.template.Name] = func(text string, _ map[string]string, since time.Time) { f.Set(text, since) }
	}
	if ctl != nil {
		set[p.proxy.common().name] = func(text string, files map[string]string, since time.Time) {
			ctl.Set(proxyctl.Config{Text: text, Files: files}, since)
		}
	}
	published := map[string]string{}
	opts.Publish = func(r templater.Rendered) {
		for name, text := range r.Texts {
			if old, had := published[name]; !had || old != text {
				set[name](text, r.Files[name], r.Since)
			}
		}
		published = r.Texts
	}
	return templater.New(opts)
}

func ready(runners []runner) error {
	var errs []error
	for _, r := range runners {
		errs = append(errs, r.Ready())
	}
	return errors.Join(errs...)
}

// onHangup calls a func whenever SIGHUP comes, until ctx is done.
func onHangup(ctx context.Context, do func()) {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	for {
		select {
		case <-hangup:
			do()
		case <-ctx.Done():
			return
		}
	}
}
