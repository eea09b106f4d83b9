package proxyctl

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"
)

// Check runs command to have a proxy's program check a configuration file. If the program refuses the file, the error wraps
// ErrRefused, names the check, and contains what complaints makes of the output. env is the environment; nil means berth's own.
func Check(ctx context.Context, env []string, name string, complaints func(out string) string, command ...string) error {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env, cmd.WaitDelay = env, time.Second
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit):
		return fmt.Errorf("%w by %s (%w): %s", ErrRefused, name, err, complaints(string(out)))
	default:
		return fmt.Errorf("validate: %w", err)
	}
}

// Tell calls reload to tell a proxy to reload. It waits no longer than timeout, even if reload ignores its context.
func Tell(ctx context.Context, timeout time.Duration, reload func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- reload(ctx) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select { // the expired context may have ended it
	case err := <-done:
		return err
	case <-time.After(100 * time.Millisecond):
	}
	return fmt.Errorf("%w: the reload request took longer than %s", ErrUnreachable, timeout)
}
