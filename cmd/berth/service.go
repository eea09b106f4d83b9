package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"berth/proxyctl/supervise"
	service "berth/registrar/process"
)

const serviceUsage = "the command to run goes behind --, as in: berth service --name www --port 20001 -- ./www 20001"

func serviceCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "service --name NAME --port PORT [flags] -- COMMAND [ARGS]",
		Short: "Run a command, and register it in Consul while it runs",
		Long: `Run a command as an instance of a service, without Docker: it is registered in Consul when it is ready, with a TTL
check that berth passes as long as it runs. On SIGTERM or SIGINT it is taken out of service, gets SIGTERM when it
is drained, and is deregistered when it has ended; berth exits with its code. A second SIGTERM cuts draining short.
SIGHUP, SIGUSR1 and SIGUSR2 are passed on. Consul may come and go meanwhile.

To be routed to by the built-in template it needs a route: --meta route_path=/ or --meta route_host=www.example.com.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() != 0 || len(args) == 0 {
				return errors.New(serviceUsage)
			}
			return nil
		},
		RunE: runService,
	}
	shared := newConfig()
	shared.commonFlags(cmd.Flags(), "none")
	_ = cmd.Flags().MarkHidden("listen") // for a host's registrar it may be in the file or environment that they share
	shared.serviceFlags(cmd.Flags())
	cmd.Flags().String("tags", "", "tags, separated by commas")
	cmd.Flags().Duration("ttl", 15*time.Second, "how soon Consul takes the instance for critical when berth was killed")
	cmd.Flags().Duration("ready-timeout", 30*time.Second, "how long the command may take to be ready before it is registered as critical")
	cmd.Flags().Duration("drain-time", 2*time.Second, "from out of service to the command's SIGTERM")
	return cmd
}

func runService(cmd *cobra.Command, args []string) error {
	// There are two channels because a full one drops signals: the others must not push out a SIGTERM.
	stop, forward := make(chan os.Signal, 2), make(chan os.Signal, 8)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT) // docker stop sends SIGQUIT to what was made FROM nginx
	signal.Notify(forward, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
	p, err := newProcess(cmd)
	if err != nil {
		return err
	}
	c := p.config
	if cmd.Flags().Changed("listen") && c.Listen != "" {
		return errors.New("berth service has nothing to listen for: leave --listen away")
	}
	if _, err := exec.LookPath(args[0]); err != nil {
		return fmt.Errorf("the command behind --: %w", err)
	}
	consul, err := consulClient(c)
	if err != nil {
		return err
	}
	c.Process.Tags, c.Process.TTL = c.Tags, c.Host.TTL
	if c.Process.Host, err = os.Hostname(); err != nil {
		return fmt.Errorf("name of this host: %w", err)
	}
	program := filepath.Base(args[0])
	run, err := service.New(service.Options{
		Program:      program,
		Start:        func() (service.Running, error) { return startProcess(args) },
		Stop:         stop,
		Forward:      forward,
		Process:      c.Process,
		ReadyTimeout: c.ReadyTimeout,
		DrainTime:    c.DrainTime,
		StopTimeout:  c.StopTimeout,
		Consul:       consul.Agent(),
		Log:          p.log,
	})
	if err != nil {
		return err
	}
	if cmd.Context().Err() != nil {
		return nil // the signal came before stop was there to receive it
	}
	code, err := run.Run(context.WithoutCancel(cmd.Context()))
	if err == nil && code != 0 {
		err = &supervise.Exit{Name: program, Code: code}
	}
	return err
}

// startProcess starts the command with all of berth's environment. The operator's own program may need CONSUL_HTTP_TOKEN, too.
func startProcess(args []string) (*supervise.Process, error) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return supervise.Start(cmd, syscall.SIGTERM)
}
