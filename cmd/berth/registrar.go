package main

import (
	"fmt"

	"github.com/hashicorp/consul/api"
	"github.com/spf13/cobra"

	"berth/registrar"
	"berth/registrar/agent"
	"berth/registrar/docker"
)

func registrarCommand() *cobra.Command {
	var once, dryRun bool
	var format string
	cmd := &cobra.Command{
		Use:   "registrar [flags] [--dry-run [CONTAINER...]]",
		Short: "Register the containers of this Docker host in Consul",
		Long: `Watch Docker and keep the services on the Consul agent in step with the running containers. A container is registered
when it is ready, taken out of service when it is told to stop, and deregistered when it dies. Its SERVICE_* environment
variables and labels say what to register. Run one registrar on each Docker host.

With --dry-run, print what each container registers, which routes it gets, and why. Select containers by name, by ID prefix
or by compose service. The registrar at --listen answers. If none runs there, or if you set registrar options, berth reads
Docker and Consul itself.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := newProcess(cmd)
			switch {
			case err != nil:
				return err
			case len(args) > 0 && !dryRun:
				return asUsageError(fmt.Errorf("%s: a registrar registers all containers; name containers only with --dry-run", args[0]))
			case format != formatTable && format != formatJSON:
				return asUsageError(fmt.Errorf("format must be %s or %s, not %q", formatTable, formatJSON, format))
			case dryRun:
				return p.dryRun(cmd, args, format)
			case !once:
				return p.run(cmd.Context(), parts{registrar: true})
			}
			r, err := p.newRegistrar()
			if err != nil {
				return err
			}
			return r.Once(cmd.Context())
		},
	}
	c := newConfig()
	c.commonFlags(cmd.Flags(), listenRegistrar)
	c.pageFlags(cmd.Flags())
	c.registrarFlags(cmd.Flags())
	cmd.Flags().BoolVar(&once, "once", false, "update Consul once, then exit")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only print what each container would register, and why")
	cmd.Flags().StringVar(&format, "format", formatTable, "output of --dry-run: table, or json (one object per line and container)")
	return cmd
}

func (p *process) newRegistrar() (*registrar.Registrar, error) {
	client, err := dockerClient()
	if err != nil {
		return nil, err
	}
	consul, err := consulClient(p.config)
	if err != nil {
		return nil, err
	}
	groups, err := groupsClient(p.config)
	if err != nil {
		return nil, err
	}
	tags, err := docker.ParseTags(p.config.Tags)
	if err != nil {
		return nil, fmt.Errorf("tags: %w", err)
	}
	return registrar.New(registrar.Options{
		Docker:       client,
		Events:       docker.Events(client),
		Host:         hostDescription(client, consul, p.config.Host),
		Agent:        consul.Agent(),
		Groups:       &registrar.Groups{Consul: groups, Archive: client, Restart: docker.Restart(client)},
		Start:        docker.Start(client),
		Catalog:      agent.NewCatalog(consul),
		Token:        consulToken(p.config),
		Resync:       p.config.Resync,
		ReadyTimeout: p.config.ReadyTimeout,
		DrainTime:    p.config.DrainTime,
		Tags:         tags,
		KeepFailed:   p.config.Deregister == "on-success",
		Owner:        p.config.Owner,
		Adopt:        p.config.Adopt,
		Log:          p.log,
		Metrics:      p.metrics,
	}), nil
}

// groupsClient returns a client for the groups of containers. Its connections are unlimited, because a call that waits for one
// could let a session expire. Its watches are shared.
func groupsClient(c Config) (*api.Client, error) {
	conf, err := consulConfig(c)
	if err != nil {
		return nil, err
	}
	conf.Transport.MaxConnsPerHost = 0
	conf.HttpClient.Transport = registrar.ShareWatches(conf.HttpClient.Transport)
	return api.NewClient(conf)
}
