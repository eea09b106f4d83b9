package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// A signal ends what would wait, with the code that a shell expects, and a long-running part with 0, even if nobody reads its
// log any more.
func TestSignals(t *testing.T) {
	asked := make(chan struct{})
	seen := sync.OnceFunc(func() { close(asked) })
	consul := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		seen()
		<-r.Context().Done()
	}))
	defer consul.Close()
	code := func(err error) int {
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			return exit.ExitCode() // -1 if a signal killed it
		}
		return 0
	}
	t.Run("render", func(t *testing.T) {
		cmd := exec.CommandContext(t.Context(), "berth", "render", "--consul-address", consul.URL)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-asked
		_ = cmd.Process.Signal(syscall.SIGINT)
		if got := code(cmd.Wait()); got != 130 {
			t.Errorf("it exits with %d", got)
		}
	})
	t.Run("templater", func(t *testing.T) {
		cmd := exec.CommandContext(t.Context(), "berth", "templater", "--listen", "none", "--consul-address", consul.URL,
			"--haproxy-config", t.TempDir()+"/haproxy.cfg", "--haproxy-socket", t.TempDir()+"/master.sock")
		stderr, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(stderr).ReadString('\n'); err != nil { // berth starts
			t.Fatal(err)
		}
		stderr.Close()
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if got := code(cmd.Wait()); got != 0 {
			t.Errorf("it exits with %d", got)
		}
	})
}

// The signal is named once, with what it has cut short if that is known.
func TestEndedBySignal(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(interrupted{syscall.SIGINT})
	for want, err := range map[string]error{
		"berth: ended by interrupt\n":                         context.Cause(ctx),
		"berth: ended by interrupt (app: step 2 is undone)\n": errors.New("app: step 2\nis undone"),
	} {
		var said strings.Builder
		if code := exitCode(ctx, &said, err); code != 130 || said.String() != want {
			t.Errorf("%v: %d %q, want %q", err, code, said.String(), want)
		}
	}
	var said strings.Builder
	if exitCode(ctx, &said, fmt.Errorf("read the services: %w", ctx.Err())); said.String() != "berth: ended by interrupt\n" {
		t.Errorf("%q", said.String())
	}
}
