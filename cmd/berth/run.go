package main

import "github.com/spf13/cobra"

func runCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run registrar and templater in one process",
		Long:  `Run registrar and templater in one process, for a host that has both its containers and its HAProxy.`,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := newProcess(cmd)
			if err != nil {
				return err
			}
			if err := p.addRegistrar(); err != nil {
				return err
			}
			if err := p.addTemplater(); err != nil {
				return err
			}
			return p.run(cmd.Context())
		},
	}
	commonFlags(cmd.Flags(), "127.0.0.1:9651")
	registrarFlags(cmd.Flags())
	templaterFlags(cmd.Flags())
	return cmd
}
