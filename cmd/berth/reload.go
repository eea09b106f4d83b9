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

	registrardocker "berth/registrar/docker"
	"berth/registrar/label"
)

// reloader returns a function that makes the proxy load its file, nil if the driver does it.
func (o *proxyOptions) reloader() (func(context.Context) error, error) {
	switch {
	case o.ReloadCommand != "" && o.ReloadContainer != "":
		return nil, fmt.Errorf("%[1]s-reload-command and %[1]s-reload-container are two ways to reload: choose one", o.name)
	case o.ReloadCommand != "":
		reload, err := reloadByCommand(o.ReloadCommand, o.Timeout)
		return reload, o.optionError("reload-command", err)
	case o.ReloadContainer != "":
		reload, err := reloadBySignal(o.ReloadContainer, o.ReloadSignal, o.Timeout)
		return reload, o.optionError("reload-container", err)
	case o.Socket == "":
		return nil, fmt.Errorf("without a %[1]s-socket berth needs %[1]s-reload-command or %[1]s-reload-container", o.name)
	}
	return nil, nil
}

func reloadByCommand(command string, timeout time.Duration) (func(context.Context) error, error) {
	shell, err := exec.LookPath("sh")
	if err != nil {
		return nil, fmt.Errorf("a command needs a shell, and there is none: use a signal instead: %w", err)
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

func reloadBySignal(container, name string, timeout time.Duration) (func(context.Context) error, error) {
	signal := signalNumber(name)
	if signal == 0 {
		return nil, fmt.Errorf("the signal must be one like USR2, not %q", name)
	}
	client, err := dockerClient()
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		registrardocker.Settle(ctx, client, container)
		err := client.KillContainer(docker.KillContainerOptions{ID: container, Signal: docker.Signal(signal), Context: ctx})
		switch {
		case errors.Is(ctx.Err(), context.DeadlineExceeded):
			return fmt.Errorf("send %s to container %s: Docker did not answer within %s", name, container, timeout)
		case err != nil:
			return fmt.Errorf("send %s to container %s: %w", name, container, err)
		}
		return nil
	}, nil
}

// signalNumber returns the number of a signal by its name, with or without SIG, or 0 if no signal has that name.
func signalNumber(name string) syscall.Signal {
	n, _ := label.ParseSignal(name) // 0 with an error
	return syscall.Signal(n)
}
