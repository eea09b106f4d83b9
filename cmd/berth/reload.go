package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	docker "github.com/fsouza/go-dockerclient"
	"golang.org/x/sys/unix"
)

// reloader is how HAProxy is told to load its file where its master socket is not used for that; nil if it is.
func (c Config) reloader() (func(context.Context) error, error) {
	switch {
	case c.HAProxyReloadCommand != "" && c.HAProxyReloadContainer != "":
		return nil, errors.New("haproxy-reload-command and haproxy-reload-container are two ways to reload: choose one")
	case c.HAProxyReloadCommand != "":
		return reloadByCommand(c.HAProxyReloadCommand, c.HAProxyTimeout)
	case c.HAProxyReloadContainer != "":
		return reloadBySignal(c.HAProxyReloadContainer, c.HAProxyReloadSignal)
	case c.HAProxySocket == "":
		return nil, errors.New("without a haproxy-socket berth needs haproxy-reload-command or haproxy-reload-container")
	}
	return nil, nil
}

func reloadByCommand(command string, timeout time.Duration) (func(context.Context) error, error) {
	shell, err := exec.LookPath("sh")
	if err != nil {
		return nil, fmt.Errorf("haproxy-reload-command needs a shell: %w", err)
	}
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		cmd := exec.CommandContext(ctx, shell, "-c", command)
		cmd.WaitDelay = time.Second
		out, err := cmd.CombinedOutput()
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("%q did not finish within %s", command, timeout)
		case err != nil:
			return fmt.Errorf("%q: %w: %.300s", command, err, strings.Join(strings.Fields(string(out)), " "))
		}
		return nil
	}, nil
}

func reloadBySignal(container, name string) (func(context.Context) error, error) {
	signal := signalNumber(name)
	if signal == 0 {
		return nil, fmt.Errorf("haproxy-reload-signal must be a signal like USR2, not %q", name)
	}
	client, err := dockerClient()
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		err := client.KillContainer(docker.KillContainerOptions{ID: container, Signal: docker.Signal(signal), Context: ctx})
		if err != nil {
			return fmt.Errorf("send %s to container %s: %w", name, container, err)
		}
		return nil
	}, nil
}

// signalNumber is the number of a signal, with or without SIG before its name; 0 if there is none of that name.
func signalNumber(name string) syscall.Signal {
	name = strings.ToUpper(name)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	return unix.SignalNum(name)
}
