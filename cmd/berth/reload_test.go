package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
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
		reload, err := (&proxyOptions{name: kindHAProxy, ReloadCommand: tt.command, Timeout: 200 * time.Millisecond}).reloader()
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
		o    proxyOptions
		says string // of the error
		none bool   // the socket does it
	}{
		{"by the socket", proxyOptions{Socket: "/x"}, "", true},
		{"nothing", proxyOptions{}, "without a haproxy-socket", false},
		{"two ways", proxyOptions{ReloadCommand: "true", ReloadContainer: "haproxy"}, "choose one", false},
		{"no signal", proxyOptions{ReloadContainer: "haproxy", ReloadSignal: "USR9"}, `not "USR9"`, false},
		{"a signal", proxyOptions{ReloadContainer: "haproxy", ReloadSignal: "usr2"}, "", false},
		{"a signal in full", proxyOptions{ReloadContainer: "haproxy", ReloadSignal: "SIGHUP"}, "", false},
	} {
		tt.o.name = kindHAProxy
		reload, err := tt.o.reloader()
		if (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: error %v, want one that says %q", tt.name, err, tt.says)
		}
		if none := reload == nil; err == nil && none != tt.none {
			t.Errorf("%s: none is %v", tt.name, none)
		}
	}
}

// hangingDocker is a Docker that takes requests and answers none.
func hangingDocker(t *testing.T) (asked <-chan string) {
	t.Helper()
	requests := make(chan string, 8)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		requests <- r.Method + " " + r.URL.Path
		hang(r)
	}))
	path := filepath.Join(t.TempDir(), "docker.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server.Listener = l
	server.Start()
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	t.Setenv("DOCKER_HOST", "unix://"+path)
	return requests
}

// A Docker that hangs holds up a reload no longer than the proxy may take for one.
func TestReloadThroughDockerThatHangs(t *testing.T) {
	asked := hangingDocker(t)
	o := proxyOptions{name: kindHAProxy, ReloadContainer: "lb", ReloadSignal: "USR2", Timeout: 100 * time.Millisecond}
	reload, err := o.reloader()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- reload(t.Context()) }()
	select {
	case err := <-done:
		if want := "send USR2 to container lb: Docker did not answer within 100ms"; err == nil || err.Error() != want {
			t.Errorf("error %v, want %q", err, want)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the reload still waits for Docker")
	}
	if got := <-asked; got != "GET /containers/lb/json" {
		t.Errorf("Docker was asked for %s", got)
	}
}

// It ends at once when berth ends, and does not blame Docker.
func TestReloadThroughDockerEnds(t *testing.T) {
	asked := hangingDocker(t)
	o := proxyOptions{name: kindHAProxy, ReloadContainer: "lb", ReloadSignal: "USR2", Timeout: time.Hour}
	reload, err := o.reloader()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	if err := reload(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that it was cancelled", err)
	}
}
