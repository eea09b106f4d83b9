package main

import "github.com/spf13/cobra"

func runCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run [flags] [-- haproxy -W -db ...]",
		Short: "Run registrar and templater in one process",
		Long: `Run registrar and templater in one process, for a host that has both its containers and its HAProxy.

A command behind -- is HAProxy itself, for berth to run: it gets the configuration file and the master socket,
is started when there is a configuration, again when it ends, and finishes its connections when berth is stopped.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := newProcess(cmd)
			if err != nil {
				return err
			}
			return p.run(cmd.Context(), parts{registrar: true, templater: true, proxyCommand: args})
		},
	}
	acceptsCommand(cmd)
	c := newConfig()
	c.commonFlags(cmd.Flags(), listenRegistrar)
	c.pageFlags(cmd.Flags())
	c.registrarFlags(cmd.Flags())
	c.templaterFlags(cmd.Flags())
	return cmd
}
