package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	docker "github.com/fsouza/go-dockerclient"

	"berth/registrar/label"
)

// reloader is how the proxy is told to load its file where berth does not do that by itself; nil if it does.
func (x *proxy) reloader() (func(context.Context) error, error) {
	switch {
	case x.reloadCommand != "" && x.reloadContainer != "":
		return nil, fmt.Errorf("%[1]s-reload-command and %[1]s-reload-container are two ways to reload: choose one", x.name)
	case x.reloadCommand != "":
		reload, err := reloadByCommand(x.reloadCommand, x.timeout)
		return reload, x.wrong("reload-command", err)
	case x.reloadContainer != "":
		reload, err := reloadBySignal(x.reloadContainer, x.reloadSignal)
		return reload, x.wrong("reload-container", err)
	case x.socket == "":
		return nil, fmt.Errorf("without a %[1]s-socket berth needs %[1]s-reload-command or %[1]s-reload-container", x.name)
	}
	return nil, nil
}

// wrong is an error with the name of the option before it.
func (x *proxy) wrong(option string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s-%s: %w", x.name, option, err)
}

func reloadByCommand(command string, timeout time.Duration) (func(context.Context) error, error) {
	shell, err := exec.LookPath("sh")
	if err != nil {
		return nil, fmt.Errorf("a command needs a shell: %w", err)
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
		return nil, fmt.Errorf("the signal must be one like USR2, not %q", name)
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

// signalNumber returns the number of a signal, with or without SIG before its name, or 0 if there is none of that name.
func signalNumber(name string) syscall.Signal {
	n, _ := label.ParseSignal(name) // 0 with an error
	return syscall.Signal(n)
}
