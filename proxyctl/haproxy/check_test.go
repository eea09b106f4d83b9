package haproxy

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"berth/proxyctl"
)

// A configuration is checked in the environment of the HAProxy that will load it: if it uses a variable, it may be valid in
// berth's own environment and invalid there.
func TestCheckHasTheProxysEnvironment(t *testing.T) {
	t.Setenv("STATS_PASSWORD", "berth's own")
	program := filepath.Join(t.TempDir(), "haproxy")
	script := "#!/bin/sh\n[ -n \"$STATS_PASSWORD\" ] && exit 0\necho '[ALERT] config : missing variable' >&2\nexit 1\n"
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		env     []string
		refused bool
	}{
		"berth's own":           {env: nil},
		"without the variable":  {env: []string{"PATH=" + os.Getenv("PATH")}, refused: true},
		"with another variable": {env: []string{"PATH=" + os.Getenv("PATH"), "STATS_PASSWORD=the proxy's"}},
	} {
		d := &driver{opts: Options{Binary: program, Env: tt.env, Log: slog.New(slog.DiscardHandler)}}
		if err := d.Check(t.Context(), "haproxy.cfg"); errors.Is(err, proxyctl.ErrRefused) != tt.refused || (err != nil) != tt.refused {
			t.Errorf("%s: %v, refused should be %v", name, err, tt.refused)
		}
	}
}
