package main

import "github.com/spf13/cobra"

func runCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run [flags] [-- haproxy -W -db ...]",
		Short: "Run registrar and templater in one process",
		Long: `Run the registrar and the templater in one process, for a host that has both the containers and the HAProxy.

If you give a command behind --, berth runs HAProxy with it. berth passes it the configuration file and the master socket,
starts it once there is a configuration, and restarts it when it ends. When berth stops, HAProxy finishes its connections.`,
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
