package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"berth/registrar"
	"berth/registrar/docker"
)

func registrarCommand() *cobra.Command {
	var once, dryRun bool
	cmd := &cobra.Command{
		Use:   "registrar",
		Short: "Register the containers of this Docker host in Consul",
		Long: `Watch Docker and keep the services of the Consul agent equal to the running containers: a container is
registered when it is ready, taken out of service when it is told to stop, and deregistered when it dies.
What is registered is said by the container's SERVICE_* environment variables and labels. Run one registrar
on each Docker host.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := newProcess(cmd)
			if err != nil {
				return err
			}
			if !once && !dryRun {
				return p.run(cmd.Context(), parts{registrar: true})
			}
			r, err := p.newRegistrar()
			if err != nil {
				return err
			}
			if dryRun {
				plan, err := r.Plan(cmd.Context())
				if err != nil {
					return err
				}
				return printPlan(cmd.OutOrStdout(), plan)
			}
			return r.Once(cmd.Context())
		},
	}
	c := newConfig()
	c.commonFlags(cmd.Flags(), "127.0.0.1:9651")
	c.registrarFlags(cmd.Flags())
	cmd.Flags().BoolVar(&once, "once", false, "bring Consul up to date once, and end")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only print what each container registers, and why or why not")
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
	tags, err := docker.ParseTags(p.config.Tags)
	if err != nil {
		return nil, fmt.Errorf("tags: %w", err)
	}
	return registrar.New(registrar.Options{
		Docker:       client,
		Events:       docker.Events(client),
		Host:         hostDescription(client, consul, p.config.Host),
		Agent:        consul.Agent(),
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

// printPlan prints a table with a line for each instance, and for each reason why a container registers nothing.
func printPlan(w io.Writer, plan []registrar.Planned) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "CONTAINER\tSERVICE\tINSTANCE\tADDRESS\tREADY WHEN\tSTATE")
	for _, p := range plan {
		for _, i := range p.Instances {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", p.Container, i.Name, i.ID, i.Endpoint, i.Ready, i.State)
		}
		for _, verdict := range p.Verdicts() {
			fmt.Fprintf(t, "%s\t-\t-\t-\t-\t%s\n", p.Container, verdict)
		}
	}
	return t.Flush()
}
