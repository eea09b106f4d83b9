package main

import (
	"io"

	"github.com/spf13/cobra"

	"berth/templates"
)

func templateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "template [haproxy|nginx]",
		Short: "Print the built-in template of HAProxy or nginx",
		Long: `Print the template that berth renders when --template is not set, as a starting point for your own. It is written in
consul-template's language. The comment at its top lists the functions that it calls.`,
		Args:      cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{kindHAProxy, kindNginx},
		RunE: func(cmd *cobra.Command, args []string) error {
			text := templates.HAProxy()
			if len(args) == 1 && args[0] == kindNginx {
				text = templates.Nginx()
			}
			_, err := io.WriteString(cmd.OutOrStdout(), text)
			return err
		},
	}
}
