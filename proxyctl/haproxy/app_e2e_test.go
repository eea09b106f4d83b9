//go:build e2e

package haproxy

import (
	"context"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"syscall"
	"testing"
	"time"

	"berth/deploy/testenv"
)

// app answers with the address it was asked at, after a short time.
func app(address string, work time.Duration) *http.Server {
	return &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(work)
		io.WriteString(w, address)
	})}
}

// startApps serves n applications in this process, and returns their addresses.
func (r *harness) startApps(n int) []string {
	r.apps = map[string]*http.Server{}
	for range n {
		l, err := net.Listen("tcp", appIP+":0")
		if err != nil {
			r.Fatal(err)
		}
		srv := app(l.Addr().String(), 2*time.Millisecond)
		done := make(chan struct{})
		go func() { defer close(done); srv.Serve(l) }()
		r.Cleanup(func() { srv.Close(); <-done })
		r.apps[l.Addr().String()] = srv
	}
	return slices.Sorted(maps.Keys(r.apps))
}

// appProcess is an application in its own process, which can be killed.
type appProcess struct {
	address string
	cmd     *exec.Cmd
}

const appEnv = "BERTH_TEST_APP"

func startAppProcess(r *harness, address string) *appProcess {
	p := &appProcess{address, exec.Command(os.Args[0])}
	p.cmd.Env = append(os.Environ(), appEnv+"="+address)
	if err := p.cmd.Start(); err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { p.end(syscall.SIGKILL) })
	testenv.Eventually(r, 10*time.Second, "the application listens", func() error {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err
	})
	return p
}

// end sends a signal that ends the process, and waits for that.
func (p *appProcess) end(sig os.Signal) {
	_ = p.cmd.Process.Signal(sig)
	_ = p.cmd.Wait()
}

// TestMain runs the tests, or an appProcess if the environment asks for one.
func TestMain(m *testing.M) {
	if address := os.Getenv(appEnv); address != "" {
		if err := serveApp(address); err != nil {
			log.Fatal(err)
		}
		return
	}
	os.Exit(m.Run())
}

// serveApp runs an appProcess. On SIGTERM it closes its listener at once, and finishes its requests.
func serveApp(address string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	srv := app(address, 10*time.Millisecond)
	go srv.Serve(l)
	<-ctx.Done()
	return srv.Shutdown(context.WithoutCancel(ctx))
}
