package haproxy

import (
	"context"
	"os"
	"path/filepath"

	"berth/proxyctl"
	"berth/proxyctl/configfile"
)

// check has the haproxy program check a configuration file. The error wraps proxyctl.ErrRefused if the program refuses it.
func check(ctx context.Context, env []string, binary, file string) error {
	return proxyctl.Check(ctx, env, "haproxy -c", alerts, binary, "-c", "-f", file)
}

// Check has the haproxy program check a text and its auxiliary files, path to content, in another directory: berth render
// --validate. The error wraps proxyctl.ErrRefused if the program refuses them.
func Check(ctx context.Context, binary, text string, files map[string]string) error {
	dir, err := os.MkdirTemp("", "berth-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	text, err = configfile.Elsewhere(dir, text, files)
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(file, []byte(mark(text, nil).Text), 0o600); err != nil {
		return err
	}
	return check(ctx, nil, binary, file)
}
