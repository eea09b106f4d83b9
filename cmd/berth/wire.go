package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"berth/cmd/berth/status"
	"berth/proxyctl"
	"berth/templater"
	"berth/templates"
	"berth/templates/route"
)

// process holds what all parts of one process share.
type process struct {
	config  Config
	proxy   proxyKind // chosen by the configuration
	log     *slog.Logger
	metrics *prometheus.Registry
	events  *status.Events // what the log tells
}

// runner is a long-running part of berth.
type runner interface {
	Run(ctx context.Context) error
	Ready() error
}

// task is a runner that is always ready.
type task func(ctx context.Context)

func (t task) Run(ctx context.Context) error {
	t(ctx)
	return nil
}

func (t task) Ready() error { return nil }

// parts says which halves of berth a command runs, and the proxy to run as a child.
type parts struct {
	registrar, templater bool
	proxyCommand         []string // empty if berth does not run the proxy
}

// newProcess reads the configuration for a command.
func newProcess(cmd *cobra.Command) (*process, error) {
	config, err := readConfig(cmd.Flags())
	if err != nil {
		return nil, asUsageError(err)
	}
	p := &process{config: config, proxy: config.proxy(), metrics: prometheus.NewRegistry(), events: status.NewEvents()}
	p.log = slog.New(p.events.Handler(newLogger(cmd.ErrOrStderr(), config).Handler()))
	for _, warning := range unknownVariables(options()) {
		p.log.Warn(warning)
	}
	p.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return p, nil
}

// output brings the texts of a template to their destination: a plain file or the proxy.
type output struct {
	runner
	template templater.Template
	set      func(templater.Published)
	ledger   *route.Ledger  // of the routes in its texts; nil = none is held
	proxy    proxyctl.Proxy // nil = it is a plain file
	ctl      *proxyctl.Controller
	waiting  *proxyctl.Waiting
}

// run builds the parts in the order in which they need each other, and runs them until ctx is done or one of them fails.
func (p *process) run(ctx context.Context, want parts) error {
	// 1. p has the configuration, the log and the metrics. Everything but the child ends with running; the child ends last.
	running, stop := context.WithCancel(ctx)
	defer stop()
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP) // by default it would end berth
	defer signal.Stop(hangup)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // a log without a reader must not end berth
	if len(want.proxyCommand) > 0 {
		signal.Notify(make(chan os.Signal, 1), syscall.SIGINT, syscall.SIGTERM) // a second one does not leave the proxy alone
	}
	var runners []runner
	var outputs []output
	report, err := p.newReporter()
	if err != nil {
		return err
	}
	var child *proxyChild
	reread := func() { p.log.Info("ignored SIGHUP: there are no templates to read again") }

	if want.templater {
		// 2. The outputs, plain files and the proxy, and the proxy as a child.
		refused := route.NewRefused()
		report.live = newLiveTimes(p.metrics)
		report.expiries = templates.NewExpiries()
		p.metrics.MustRegister(report.expiries)
		if outputs, err = p.plainFiles(); err != nil {
			return err
		}
		there, err := p.looksAfterProxy(len(want.proxyCommand) > 0)
		if err != nil {
			return asUsageError(err)
		}
		if there {
			var proxy output
			if proxy, child, err = p.proxyOutput(ctx, want.proxyCommand, refused, report, stop); err != nil {
				return err
			}
			outputs = append(outputs, proxy)
			publisher, err := p.newPublisher(proxy)
			if err != nil {
				return err
			}
			runners = append(runners, task(publisher.Run))
			if child != nil {
				runners = append(runners, child)
			}
		}
		for i := range outputs {
			outputs[i].ledger = route.NewLedger(p.config.RouteGrace)
			runners = append(runners, outputs[i])
		}
		if there {
			report.lookAt(outputs[len(outputs)-1])
		}

		// 3. The templater, which gives them their texts. It renders again when ports are refused, when routes are no longer
		// held, or when the proxy's version changes.
		t, err := p.newTemplater(outputs, refused, report)
		if err != nil {
			return err
		}
		reread, report.templater = t.Reread, t
		runners = append(runners, t,
			task(func(ctx context.Context) { onEach(ctx, refused.Changed, t.Rerender) }),
			task(func(ctx context.Context) { onEach(ctx, p.proxy.common().version.rerender, t.Rerender) }))
		for _, o := range outputs {
			runners = append(runners, task(func(ctx context.Context) { onEach(ctx, o.ledger.Changed, t.Rerender) }),
				task(func(ctx context.Context) { onEach(ctx, o.ledger.Moved, report.changed) }))
		}
	}

	// 4. The registrar.
	handler := http.NewServeMux()
	if want.registrar {
		r, err := p.newRegistrar()
		if err != nil {
			return err
		}
		runners, report.registrar, report.docker = append(runners, r), r, cmp.Or(os.Getenv("DOCKER_HOST"), "unix:///var/run/docker.sock")
		runners = append(runners, task(func(ctx context.Context) { onEach(ctx, r.Changed(), report.changed) }))
		handler.Handle("GET "+reportPath, reportHandler(r.Report))
		if err := p.handleCensus(handler, localInstances(r.Report), nil); err != nil {
			return err
		}
	}

	// 5. The status, for clients of this berth and for the other berths.
	report.ready = func() error { return ready(runners) }
	runners = append(runners, report.tasks()...)

	// 6. Signals, health checks and metrics.
	runners = append(runners, task(func(ctx context.Context) { onEach(ctx, hangup, reread) }))
	if p.config.Listen != "" {
		answers := &statusAnswers{hub: report.hub, live: report.live, name: hostName(), actions: report.actions()}
		answers.handle(handler)
		handler.Handle("/", statusHandler(p.metrics, func() error { return ready(runners) }))
		runners = append(runners, task(func(ctx context.Context) {
			if err := serve(ctx, p.config.Listen, handler); err != nil {
				p.log.Error("cannot serve health checks, metrics and status: set another address with --listen", "err", err)
			}
		}))
	}

	// 7. Run all of them, and the child next to them.
	p.warnOfMounts(outputs)
	p.log.Info("berth started", "version", version)
	g, running := errgroup.WithContext(running)
	for _, r := range runners {
		g.Go(func() error { return r.Run(running) })
	}
	if child == nil {
		err := g.Wait()
		p.log.Info("berth stopped; registrations and proxy stay as they are")
		return err
	}
	err = child.runBeside(ctx, g.Wait, stop)
	p.log.Info("berth stopped; registrations stay as they are")
	return err
}

// ready returns the reasons why runners are not ready, nil if all are.
func ready(runners []runner) error {
	var errs []error
	for _, r := range runners {
		errs = append(errs, r.Ready())
	}
	return errors.Join(errs...)
}

// onEach calls do for each value, until ctx is done.
func onEach[T any](ctx context.Context, values <-chan T, do func()) {
	for {
		select {
		case <-values:
			do()
		case <-ctx.Done():
			return
		}
	}
}
