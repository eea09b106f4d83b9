package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

func rootCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "berth",
		Short: "Keep HAProxy in step with your containers, through Consul",
		Long: `berth registers the containers of a Docker host in Consul (registrar), renders HAProxy's configuration from
the Consul catalog, and brings the running HAProxy to it (templater).

Every option can be given as a flag, as an environment variable (--consul-address is BERTH_CONSUL_ADDRESS),
or as a key in a YAML file (consul-address: ..., file named by --config), and counts in this order. The
standard variables CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN, CONSUL_CACERT, ..., DOCKER_HOST and
DOCKER_TLS_VERIFY mean what they mean everywhere.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.CompletionOptions.HiddenDefaultCmd = true
	cmd.AddCommand(runCommand(), registrarCommand(), templaterCommand(), drainCommand(true), drainCommand(false), versionCommand())
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
}

// newProcess reads the configuration for a command.
func newProcess(cmd *cobra.Command) (*process, error) {
	config, err := readConfig(cmd.Flags())
	if err != nil {
		return nil, err
	}
	p := &process{config: config, log: newLogger(cmd.ErrOrStderr(), config), metrics: prometheus.NewRegistry()}
	p.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return p, nil
}

// run runs all parts until ctx is done or one of them fails.
func (p *process) run(ctx context.Context) error {
	p.log.Info("berth starts", "version", version)
	g, ctx := errgroup.WithContext(ctx)
	for _, part := range p.parts {
		g.Go(func() error { return part.Run(ctx) })
	}
	if p.config.Listen != "" {
		g.Go(func() error {
			if err := serve(ctx, p.config.Listen, p.handler()); err != nil {
				p.log.Error("no health checks and metrics: choose another address with --listen", "err", err)
			}
			return nil
		})
	}
	err := g.Wait()
	p.log.Info("berth stops; registrations and proxy stay as they are")
	return err
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
