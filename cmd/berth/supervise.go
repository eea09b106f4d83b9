package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"berth/proxyctl/supervise"
)

const childUsage = "a proxy for berth to run goes behind --, as in: berth run -- haproxy -W -db"

// headStart is how long a new configuration may take to come before the proxy starts with the one that is there.
const headStart = 3 * time.Second

// takesChild lets a command be given another one behind --, and says so where that seems to be meant.
func takesChild(cmd *cobra.Command) {
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		dash := cmd.ArgsLenAtDash()
		if dash == 0 && len(args) > 0 {
			return nil
		}
		if err := cobra.NoArgs(cmd, args); err != nil {
			return fmt.Errorf("%w: %s", err, childUsage)
		}
		if dash == 0 {
			return fmt.Errorf("there is nothing behind --: %s", childUsage)
		}
		return nil
	}
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if cmd.Flags().NArg() > 0 { // berth run haproxy -W
			return fmt.Errorf("%w: %s", err, childUsage)
		}
		return err
	})
}

// addChild has the process run the command as its child, if there is one. The child's program validates
// configurations, too.
func (p *process) addChild(args []string) error {
	if len(args) == 0 {
		return nil
	}
	command, err := p.proxy.command(args, p.proxy.file, p.proxy.socket)
	if err != nil {
		return err
	}
	if _, err := exec.LookPath(command[0]); err != nil {
		return fmt.Errorf("the command behind --: %w", err)
	}
	if p.proxy.binary == p.proxy.name {
		p.proxy.binary = command[0]
		if program, found := programIn(command, p.proxy.name); found {
			p.proxy.binary = program
		}
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGUSR2, p.proxy.stopSignal)
	p.child = supervise.New(supervise.Options{
		Command:     command,
		Env:         childEnvironment(os.Environ()),
		Stdout:      os.Stdout,
		Stderr:      os.Stderr,
		StopSignal:  p.proxy.stopSignal,
		StopTimeout: p.proxy.stopTimeout,
		Signals:     signals,
		Serving:     func() (int, error) { return p.proxy.running(p.proxy.socket) },
		Started:     func() { p.check() },
		Stopping:    func() { p.stop() },
		Log:         p.log,
		Metrics:     p.metrics,
	})
	p.prepared = p.child.ConfigurationReady
	p.parts = append(p.parts, lastConfiguration{p.child, p.proxy.file, append(slices.Clip(command), p.proxy.checks...), p.log})
	return nil
}

// haproxyCommand completes a command with what berth knows: the configuration file, the master socket, and that HAProxy
// stays in the foreground.
func haproxyCommand(args []string, file, socket string) ([]string, error) {
	has := func(arg string) bool { return slices.Contains(args, arg) }
	files, sockets := valuesOf(args, "-f"), valuesOf(args, "-S")
	switch {
	case !has("-W") && !has("-Ws"):
		return nil, fmt.Errorf("%s needs -W (or -Ws): without a master process it cannot be reloaded", args[0])
	case has("-D"):
		return nil, fmt.Errorf("%s must not have -D: as berth's child it stays in the foreground", args[0])
	case socket == "":
		return nil, errors.New("haproxy-socket is none: berth needs the master socket of the HAProxy that it runs")
	case has("-S") && !slices.ContainsFunc(sockets, func(s string) bool { return samePath(socketPath(s), socket) }):
		return nil, fmt.Errorf("-S %s is not haproxy-socket, which is %s: leave -S away", strings.Join(sockets, " "), socket)
	case has("-f") && !slices.ContainsFunc(files, func(f string) bool { return samePath(f, file) || samePath(f, filepath.Dir(file)) }):
		return nil, fmt.Errorf("-f %s is not haproxy-config, which is %s: leave -f away", strings.Join(files, " -f "), file)
	}
	command := slices.Clone(args)
	if !has("-db") {
		command = append(command, "-db")
	}
	if !has("-S") {
		command = append(command, "-S", "unix@"+socket+",mode,660") // a path without a slash in front is no path to it
	}
	if !has("-f") {
		command = append(command, "-f", file)
	}
	return command, nil
}

// nginxCommand completes a command with what berth knows: the configuration file, and that nginx stays in the foreground.
func nginxCommand(args []string, file, _ string) ([]string, error) {
	files := valuesOf(args, "-c")
	foreground := false
	for _, value := range valuesOf(args, "-g") {
		directives := strings.Join(strings.Fields(value), " ")
		if strings.Contains(directives, "daemon on") {
			return nil, fmt.Errorf("%s must not have daemon on: as berth's child it stays in the foreground", args[0])
		}
		foreground = foreground || strings.Contains(directives, "daemon off")
	}
	if slices.Contains(args, "-c") && !slices.ContainsFunc(files, func(f string) bool { return samePath(f, file) }) {
		return nil, fmt.Errorf("-c %s is not nginx-config, which is %s: leave -c away", strings.Join(files, " -c "), file)
	}
	path, err := filepath.Abs(file)
	if err != nil {
		return nil, err
	}
	command := slices.Clone(args)
	if last := lastValueOf(command, "-g"); !foreground && last >= 0 { // of several nginx takes the last
		command[last] = strings.TrimRight(command[last], "; ") + "; daemon off;"
	} else if !foreground {
		command = append(command, "-g", "daemon off;")
	}
	if len(files) == 0 {
		command = append(command, "-c", path) // nginx takes another one from its prefix
	}
	return command, nil
}

// valuesOf are the values that an option has in a command.
func valuesOf(args []string, option string) []string {
	var values []string
	for i, arg := range args[:len(args)-1] {
		if value := args[i+1]; arg == option && !strings.HasPrefix(value, "-") {
			values = append(values, value)
		}
	}
	return values
}

// lastValueOf is the place of the last value that an option has in a command, -1 if it has none.
func lastValueOf(args []string, option string) int {
	for i := len(args) - 1; i > 0; i-- {
		if args[i-1] == option && !strings.HasPrefix(args[i], "-") {
			return i
		}
	}
	return -1
}

// socketPath is the path in a value of -S: unix@/run/haproxy/master.sock,mode,660.
func socketPath(value string) string {
	path, _, _ := strings.Cut(value, ",")
	return strings.TrimPrefix(path, "unix@")
}

func samePath(a, b string) bool {
	a, errA := filepath.Abs(a)
	b, errB := filepath.Abs(b)
	return a == b && errA == nil && errB == nil
}

// programIn is the program of this name in a command. It may be behind another one: setpriv --reuid 99 haproxy -W.
func programIn(command []string, name string) (program string, found bool) {
	i := slices.IndexFunc(command, func(arg string) bool { return filepath.Base(arg) == name })
	if i < 0 {
		return "", false
	}
	return command[i], true
}

// childEnvironment leaves out what is secret: the proxy faces the Internet.
func childEnvironment(env []string) []string {
	return slices.DeleteFunc(env, func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return name == "CONSUL_HTTP_TOKEN" || name == "CONSUL_HTTP_AUTH"
	})
}

// lastConfiguration is the part that has the child start with the configuration that is there already when no new one
// comes: while Consul is away, what was good before is better than nothing.
type lastConfiguration struct {
	child *supervise.Child
	file  string
	check []string // the command that validates it
	log   *slog.Logger
}

func (l lastConfiguration) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(headStart):
	}
	if _, err := os.Stat(l.file); err != nil || l.child.Ready() == nil {
		return nil
	}
	if out, err := exec.CommandContext(ctx, l.check[0], l.check[1:]...).CombinedOutput(); err != nil {
		l.log.Warn("no new configuration yet, and the one that is there is not good", "file", l.file,
			"err", fmt.Errorf("%w: %.300s", err, oneLine(errors.New(string(out)))))
		return nil
	}
	l.log.Info("no new configuration yet: the proxy starts with the one that is there", "file", l.file)
	l.child.ConfigurationReady()
	return nil
}

// Ready is that of the child.
func (l lastConfiguration) Ready() error { return l.child.Ready() }

// runChild runs the child, if there is one, beside the other parts, which have been started. It is stopped when they have
// ended, for a reload would make it go on, and they are when an operator has stopped it.
func (p *process) runChild(ctx context.Context, others func() error) error {
	if p.child == nil {
		return others()
	}
	childCtx, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	ended := make(chan error, 1)
	go func() {
		err := others()
		if err != nil {
			end()
		}
		context.AfterFunc(ctx, end)
		ended <- err
	}()
	err := p.child.Run(childCtx)
	p.stop()
	return errors.Join(<-ended, err)
}
