package haproxy

import (
	"context"
	"os"
	"path/filepath"

	"berth/proxyctl/disk"
)

// check has the haproxy program check a configuration file. The error wraps proxyctl.ErrRefused if it says no.
func check(ctx context.Context, binary, file string) error {
	return disk.Check(ctx, "haproxy -c", alerts, binary, "-c", "-f", file)
}

// Check has the haproxy program check a text and the files that it refers to, path to content, away from where they
// belong: berth render --validate. The error wraps proxyctl.ErrRefused if it says no.
func Check(ctx context.Context, binary, text string, files map[string]string) error {
	dir, err := os.MkdirTemp("", "berth-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	text, err = disk.Elsewhere(dir, text, files)
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(file, []byte(mark(text, nil).text), 0o600); err != nil {
		return err
	}
	return check(ctx, binary, file)
}
