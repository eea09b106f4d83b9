// Command berth keeps a stock HAProxy or nginx in step with the containers of its Docker hosts, through Consul.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/spf13/cobra"

	"berth/proxyctl/supervise"
)

func main() {
	if os.Getpid() == 1 && slices.Contains(os.Args, "--") {
		os.Exit(asInit())
	}
	os.Exit(berth())
}

// asInit runs berth as a child of process 1, which reaps the orphans of HAProxy, and returns berth's exit code.
func asInit() int {
	code, err := supervise.Init(os.Args)
	if err != nil {
		fmt.Fprintln(os.Stderr, "berth:", err)
		return 1
	}
	return code
}

// berth runs the program and returns its exit code.
func berth() int {
	// consul-template writes several lines to the standard logger for each change. berth's own log has all that an operator
	// needs.
	log.SetOutput(io.Discard)

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := rootCommand().ExecuteContext(ctx); err != nil {
		if errors.Is(err, differs{}) {
			return exitDiffers
		}
		fmt.Fprintln(os.Stderr, "berth:", err)
		var exit *supervise.Exit
		if errors.As(err, &exit) {
			return exit.Code
		}
		return 1
	}
	return 0
}

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
