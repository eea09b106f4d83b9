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
	// consul-template writes several lines to the standard logger for each change. berth's own log has all an operator needs.
	log.SetOutput(io.Discard)

	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		s := <-signals
		signal.Stop(signals) // a second one ends berth immediately, unless another handler waits for it
		cancel(interrupted{s.(syscall.Signal)})
	}()
	root := rootCommand()
	if done, err := asPlugin(root, os.Args); done || err != nil {
		return exitCode(ctx, os.Stderr, asUsageError(err))
	}
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && cmd == root && !errors.As(err, new(usageError)) {
		err = usageError{err, root.Name()} // it has found none of the commands
	}
	return exitCode(ctx, os.Stderr, err)
}

// extraCommands are the commands of special builds.
var extraCommands []func(root *cobra.Command) *cobra.Command

func rootCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "berth",
		Short: "Keep HAProxy or nginx in step with your containers, through Consul",
		Long: `berth keeps HAProxy or nginx in step with your containers. The registrar registers the containers of a Docker host in
Consul. The templater renders the proxy's configuration from Consul's catalog and applies it to the running proxy.

Set an option with a flag (--consul-address), an environment variable (BERTH_CONSUL_ADDRESS) or a key in the YAML file
given by --config (consul-address), in this order of precedence. The standard variables CONSUL_HTTP_ADDR,
CONSUL_HTTP_TOKEN, CONSUL_CACERT, ..., DOCKER_HOST and DOCKER_TLS_VERIFY work as usual.

Exit codes:

  0  success
  1  failure; render --diff and config diff: there are differences
  2  usage error: an unknown command, flag or key, or an invalid value;
     render --diff and config diff: any error;
     status, explain and events: the name is unknown
  3  status, explain and events: neither a berth nor Consul answers`,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.SetVersionTemplate(versionLine())
	cmd.AddCommand(runCommand(), registrarCommand(), templaterCommand(), renderCommand(), serviceCommand(), statusCommand(), explainCommand(), eventsCommand(), rolloutCommand(), drainCommand(true), drainCommand(false),
		pauseCommand(), resumeCommand(),
		configCommand(), fileCommand(), restartCommand(), templateCommand(), healthcheckCommand(), versionCommand(), environmentHelp())
	for _, extra := range extraCommands {
		cmd.AddCommand(extra(cmd))
	}
	cmd.SetHelpCommand(helpCommand(cmd))
	cmd.InitDefaultHelpCmd()
	cmd.InitDefaultCompletionCmd()
	setHelp(cmd)
	for _, c := range cmd.Commands() {
		if c.Name() != "completion" && c.Name() != "help" {
			setCompletion(c)
		}
	}
	explainUsage(cmd)
	return cmd
}
