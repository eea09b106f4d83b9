package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"berth/proxyctl"
)

// Check has a proxy's program check a configuration file, by this command. If it says no, the error wraps
// proxyctl.ErrRefused, names the check, and has what complaints makes of the output.
func Check(ctx context.Context, name string, complaints func(out string) string, command ...string) error {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit):
		return fmt.Errorf("%w by %s (%w): %s", proxyctl.ErrRefused, name, err, complaints(string(out)))
	default:
		return fmt.Errorf("validate: %w", err)
	}
}

// Validate has check look at a text as a candidate next to the file that it may replace, for so long at most. name is
// what the check is called in the error when it takes longer.
func (f *File) Validate(ctx context.Context, timeout time.Duration, name, text string, check func(ctx context.Context, path string) error) error {
	candidate := filepath.Join(filepath.Dir(f.Path), "."+filepath.Base(f.Path)+".candidate")
	if err := f.Write(candidate, text); err != nil {
		return err
	}
	defer os.Remove(candidate)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := check(ctx, candidate)
	if ctx.Err() != nil {
		return fmt.Errorf("%s did not finish within %s", name, timeout)
	}
	return err
}

// Elsewhere writes the files that a text refers to, path to content, to a directory, and returns the text that refers to
// them there.
func Elsewhere(dir, text string, files map[string]string) (string, error) {
	for path, content := range files {
		elsewhere := filepath.Join(dir, filepath.Base(path))
		text = strings.ReplaceAll(text, path, elsewhere)
		if err := os.WriteFile(elsewhere, []byte(content), 0o600); err != nil {
			return "", err
		}
	}
	return text, nil
}
