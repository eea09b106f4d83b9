package haproxy

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

// check has the haproxy program check a configuration file. The error wraps proxyctl.ErrRefused if it says no.
func check(ctx context.Context, binary, file string) error {
	cmd := exec.CommandContext(ctx, binary, "-c", "-f", file)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit):
		return fmt.Errorf("%w by haproxy -c (%w): %s", proxyctl.ErrRefused, err, alerts(string(out)))
	default:
		return fmt.Errorf("validate: %w", err)
	}
}

// Check has the haproxy program check a text and the files that it refers to, path to content, away from where they
// belong: berth render --validate. The error wraps proxyctl.ErrRefused if it says no.
func Check(ctx context.Context, binary, text string, files map[string]string) error {
	dir, err := os.MkdirTemp("", "berth-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for path, content := range files {
		elsewhere := filepath.Join(dir, filepath.Base(path))
		text = strings.ReplaceAll(text, path, elsewhere)
		if err := os.WriteFile(elsewhere, []byte(content), 0o600); err != nil {
			return err
		}
	}
	file := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(file, []byte(mark(text, nil).text), 0o600); err != nil {
		return err
	}
	return check(ctx, binary, file)
}
