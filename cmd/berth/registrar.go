package main

import (
	"context"

	"github.com/hashicorp/consul/api"
	"github.com/spf13/cobra"

	"berth/registrar"
)

func registrarCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "registrar",
		Short: "Register the containers of this Docker host in Consul",
		Long: `Watch Docker and keep the services of the Consul agent equal to the running containers: a container is
registered when its port accepts connections, and deregistered when it dies. What is registered is said by
the container's SERVICE_* environment variables and labels. Run one registrar on each Docker host.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := newProcess(cmd)
			if err != nil {
				return err
			}
			if err := p.addRegistrar(); err != nil {
				return err
			}
			return p.run(cmd.Context())
		},
	}
	commonFlags(cmd.Flags(), "127.0.0.1:9651")
	registrarFlags(cmd.Flags())
	return cmd
}

func (p *process) addRegistrar() error {
	client, err := dockerClient()
	if err != nil {
		return err
	}
	consul, err := api.NewClient(consulConfig(p.config))
	if err != nil {
		return err
	}
	p.parts = append(p.parts, registrar.New(registrar.Options{
		Docker: client,
		Events: registrar.DockerEvents(client),
		Host: func(ctx context.Context) (registrar.Host, error) {
			return dockerHost(ctx, client, p.config.Network)
		},
		Agent:        consul.Agent(),
		Resync:       p.config.Resync,
		ReadyTimeout: p.config.ReadyTimeout,
		Log:          p.log,
		Metrics:      p.metrics,
	}))
	return nil
}
