package main

import (
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

	"berth/proxyctl/supervise"
)

func rootCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "berth",
		Short: "Keep HAProxy or nginx in step with your containers, through Consul",
		Long: `berth registers the containers of a Docker host in Consul (registrar), renders the configuration of HAProxy or
nginx from the Consul catalog, and brings the running proxy to it (templater).

Every option can be given as a flag, as an environment variable (--consul-address is BERTH_CONSUL_ADDRESS),
or as a key in a YAML file (consul-address: ..., file named by --config), and counts in this order. The
standard variables CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN, CONSUL_CACERT, ..., DOCKER_HOST and
DOCKER_TLS_VERIFY mean what they mean everywhere.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.CompletionOptions.HiddenDefaultCmd = true
	cmd.AddCommand(runCommand(), registrarCommand(), templaterCommand(), renderCommand(), serviceCommand(), drainCommand(true), drainCommand(false), versionCommand())
	return cmd
}

// part is a long-running half of berth.
type part interface {
	Run(ctx context.Context) error
	Ready() error
}

// process is what all parts in one process share.
type process struct {
	config  Config
	log     *slog.Logger
	metrics *prometheus.Registry
	parts   []part
	proxy   *proxy // the one to look after

	child    *supervise.Child // the proxy, if berth runs it
	prepared func()           // to be called when the child finds a good configuration; nil without a child
	check    func()           // looks at the proxy
	reread   func()           // reads the templates again
	rerender func()           // executes them again

	nginxVersion *nginxVersion
	stop         func() // ends all parts but the child
}

// newProcess reads the configuration for a command.
func newProcess(cmd *cobra.Command) (*process, error) {
	config, err := readConfig(cmd.Flags())
	if err != nil {
		return nil, err
	}
	p := &process{config: config, proxy: config.proxy(), log: newLogger(cmd.ErrOrStderr(), config), metrics: prometheus.NewRegistry(), nginxVersion: &nginxVersion{}}
	p.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return p, nil
}

// run runs all parts until ctx is done or one of them fails.
func (p *process) run(ctx context.Context) error {
	p.log.Info("berth starts", "version", version)
	partsCtx, stop := context.WithCancel(ctx)
	defer stop()
	p.stop = stop
	g, partsCtx := errgroup.WithContext(partsCtx)
	for _, part := range p.parts {
		g.Go(func() error { return part.Run(partsCtx) })
	}
	if p.config.Listen != "" {
		g.Go(func() error {
			if err := serve(partsCtx, p.config.Listen, p.handler()); err != nil {
				p.log.Error("no health checks and metrics: choose another address with --listen", "err", err)
			}
			return nil
		})
	}
	if p.reread != nil {
		g.Go(func() error { onHangup(partsCtx, p.reread); return nil })
	}
	err := p.runChild(ctx, g.Wait)
	if p.child != nil {
		p.log.Info("berth stops; registrations stay as they are")
	} else {
		p.log.Info("berth stops; registrations and proxy stay as they are")
	}
	return err
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

func (p *process) handler() http.Handler {
	return statusHandler(p.metrics, func() error {
		var errs []error
		for _, part := range p.parts {
			errs = append(errs, part.Ready())
		}
		return errors.Join(errs...)
	})
}
