package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestReloadByCommand(t *testing.T) {
	file := filepath.Join(t.TempDir(), "reloaded")
	for _, tt := range []struct{ command, says string }{
		{"touch " + file, ""},
		{"echo no, thanks >&2; exit 3", "exit status 3: no, thanks"},
		{"exec sleep 60", "did not finish within 200ms"},
	} {
		reload, err := Config{HAProxyReloadCommand: tt.command, HAProxyTimeout: 200 * time.Millisecond}.haproxy().reloader()
		if err != nil {
			t.Fatal(err)
		}
		err = reload(t.Context())
		if (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: error %v, want one that says %q", tt.command, err, tt.says)
		}
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
}

func TestReloader(t *testing.T) {
	for _, tt := range []struct {
		name string
		c    Config
		says string // of the error
		none bool   // the socket does it
	}{
		{"by the socket", Config{HAProxySocket: "/x"}, "", true},
		{"nothing", Config{}, "without a haproxy-socket", false},
		{"two ways", Config{HAProxyReloadCommand: "true", HAProxyReloadContainer: "haproxy"}, "choose one", false},
		{"no signal", Config{HAProxyReloadContainer: "haproxy", HAProxyReloadSignal: "USR9"}, `not "USR9"`, false},
		{"a signal", Config{HAProxyReloadContainer: "haproxy", HAProxyReloadSignal: "usr2"}, "", false},
		{"a signal in full", Config{HAProxyReloadContainer: "haproxy", HAProxyReloadSignal: "SIGHUP"}, "", false},
	} {
		reload, err := tt.c.haproxy().reloader()
		if (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: error %v, want one that says %q", tt.name, err, tt.says)
		}
		if none := reload == nil; err == nil && none != tt.none {
			t.Errorf("%s: none is %v", tt.name, none)
		}
	}
}
