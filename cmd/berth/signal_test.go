package main

import (
	"bufio"
	"errors"
	"net/http"
	"net/http/httptest"
	"os/exec"
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
