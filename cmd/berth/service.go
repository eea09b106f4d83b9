package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"berth/proxyctl/supervise"
	"berth/registrar/agent"
	"berth/registrar/group/census"
	"berth/registrar/label"
	service "berth/registrar/process"
	"berth/templates/claim"
)

const serviceUsage = "put the command behind --: berth service --name www --port 20001 -- ./www 20001"

func serviceCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "service --name NAME --port PORT [flags] -- COMMAND [ARGS]",
		Short: "Run a command and register it in Consul while it runs",
		Long: `Run a command as an instance of a service, without Docker. berth registers it in Consul when it is ready, with a TTL check
that passes while berth runs. Consul may go away and come back meanwhile.

On SIGTERM or SIGINT, berth takes the instance out of service and waits --drain-time. Then it sends SIGTERM to the command,
deregisters the instance when the command has ended, and exits with the command's exit code. A second SIGTERM cuts draining
short. SIGHUP, SIGUSR1 and SIGUSR2 are passed on to the command.

The built-in template needs a route for the service: --meta route_path=/ or --meta route_host=www.example.com.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() != 0 || len(args) == 0 {
				return errors.New(serviceUsage)
			}
			return nil
		},
		RunE: runService,
	}
	shared := newConfig()
	shared.commonFlags(cmd.Flags(), "")
	shared.serviceFlags(cmd.Flags())
	shared.Member.flags(cmd.Flags())
	cmd.Flags().String("tags", "", "tags, separated by commas")
	cmd.Flags().Duration("ttl", 15*time.Second, "how soon Consul marks the instance critical if berth is killed")
	cmd.Flags().Duration("ready-timeout", 30*time.Second, "how long to wait until the command is ready before registering it as critical")
	cmd.Flags().Duration("drain-time", 2*time.Second, "delay between going out of service and the command's SIGTERM")
	cmd.Flags().Bool("show-secrets", false, showSecretsUsage)
	return cmd
}

func runService(cmd *cobra.Command, args []string) error {
	// A full channel drops signals, so a second channel keeps other signals from displacing a SIGTERM.
	stop, forward := make(chan os.Signal, 2), make(chan os.Signal, 8)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT) // docker stop sends SIGQUIT to what was made FROM nginx
	signal.Notify(forward, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
	p, err := newProcess(cmd)
	if err != nil {
		return err
	}
	c := p.config
	if !cmd.Flags().Changed("listen") {
		c.Listen = "" // the address in the file or the environment is that of the host's registrar
	}
	if _, err := exec.LookPath(args[0]); err != nil {
		return asUsageError(fmt.Errorf("the command behind --: %w", err))
	}
	consul, err := consulClient(c)
	if err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("name of this host: %w", err)
	}
	p.warnOfMounts(nil)
	program := filepath.Base(args[0])
	in, err := c.instance(host)
	if err != nil {
		return asUsageError(c.located(err))
	}
	instance, err := in.Instance()
	if err != nil {
		return asUsageError(c.located(err))
	}
	// 1. The member of the group, and 2. the service. Each calls the other.
	m, err := p.newMember(consul, in, instance.ID)
	if err != nil {
		return err
	}
	run, err := service.New(service.Options{
		Program:       program,
		Start:         func() (service.Running, error) { return startProcess(args, *m.environment.Load()) },
		Before:        m.begin,
		Changed:       m.changed,
		Leave:         m.leave,
		RestartPolicy: c.Member.Restart,
		Stop:          stop,
		Forward:       forward,
		Process:       in,
		ReadyTimeout:  c.ReadyTimeout,
		DrainTime:     c.DrainTime,
		StopTimeout:   c.StopTimeout,
		Consul:        consul.Agent(),
		Catalog:       agent.NewCatalog(consul),
		Token:         consulToken(c),
		Log:           p.log,
	})
	if err != nil {
		return asUsageError(c.located(err))
	}
	m.service = run
	if cmd.Context().Err() != nil {
		return nil // the signal came before stop was there to receive it
	}

	// 3. Run both. The member ends after the service.
	end := m.start()
	if c.Listen != "" {
		if err := p.answer(cmd.Context(), c.Listen, m); err != nil {
			return err
		}
	}
	code, err := run.Run(context.WithoutCancel(cmd.Context()))
	end()
	if err == nil && code != 0 {
		err = &supervise.Exit{Name: program, Code: code}
	}
	return err
}

// answer serves HTTP for the instance until ctx is done.
func (p *process) answer(ctx context.Context, address string, m *member) error {
	mux := http.NewServeMux()
	local := func() []census.Local { return []census.Local{{Service: m.name, ID: m.id}} }
	if err := p.handleCensus(mux, local, m.merged); err != nil {
		return err
	}
	mux.Handle("/", statusHandler(p.metrics, m.ready))
	go func() {
		if err := serve(ctx, address, mux); err != nil {
			p.log.Error("cannot serve health checks, metrics and census: set another address with --listen", "err", err)
		}
	}()
	return nil
}

// instance returns the instance that berth service registers.
func (c *Config) instance(host string) (label.Process, error) {
	in := c.Process
	in.Host, in.Tags, in.TTL = host, c.Tags, c.Host.TTL
	if in.Weight == 0 { // Consul's own weights begin at 1: as SERVICE_WEIGHT=0, it is metadata
		in.Meta = append(slices.Clone(in.Meta), claim.KeyWeight+"=0")
	}
	var err error
	if in.Name != "" {
		in.Name, err = c.Member.service(in.Name)
	}
	return in, err
}

// startProcess starts the command with berth's whole environment and more. The operator's own program may also need
// CONSUL_HTTP_TOKEN.
func startProcess(args, environment []string) (*supervise.Process, error) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), environment...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return supervise.Start(cmd, syscall.SIGTERM)
}
