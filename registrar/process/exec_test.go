package process

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/deploy/testenv"
	"berth/deploy/testenv/agenttest"
	"berth/registrar/label"
)

const (
	addressEnv  = "BERTH_TEST_ADDRESS"  // address at which this test binary is a web server instead of a test
	greetingEnv = "BERTH_TEST_GREETING" // its answer; with an empty one it is not ready
)

func TestMain(m *testing.M) {
	if at := os.Getenv(addressEnv); at != "" {
		greeting := os.Getenv(greetingEnv)
		if greeting == "" {
			os.Exit(4)
		}
		fmt.Fprintln(os.Stderr, http.ListenAndServe(at, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, greeting) })))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// child is a Running backed by a real process.
type child struct {
	*exec.Cmd
	ended chan struct{}
}

func startChild(cmd *exec.Cmd) (*child, error) {
	c := &child{cmd, make(chan struct{})}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = cmd.Wait()
		close(c.ended)
	}()
	return c, nil
}

func (c *child) PID() int                { return c.Process.Pid }
func (c *child) Signal(s syscall.Signal) { _ = c.Process.Signal(s) }
func (c *child) Tell(s syscall.Signal)   { c.Signal(s) }
func (c *child) Ended() <-chan struct{}  { return c.ended }
func (c *child) Code() int               { return max(c.ProcessState.ExitCode(), 0) } // -1 is a signal
func (c *child) String() string          { return c.ProcessState.String() }

// A restart gives a web server another environment, and its old one again if it does not start with the new one.
func TestRestartOfARealProcess(t *testing.T) {
	at := testenv.FreeAddress(t, "127.0.0.1")
	_, port, err := net.SplitHostPort(at)
	if err != nil {
		t.Fatal(err)
	}
	number, _ := strconv.Atoi(port)
	fake, stop, code := agenttest.New(), make(chan os.Signal, 1), make(chan int, 1)
	greeting := "hello"
	s, err := New(Options{
		Program: "web server", Stop: stop,
		Start: func() (Running, error) {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), addressEnv+"="+at, greetingEnv+"="+greeting)
			return startChild(cmd)
		},
		Process:      label.Process{Host: "vm", Name: "www", ID: "www-1", Port: number, Ready: "http:/", TTL: 15 * time.Second},
		ReadyTimeout: 20 * time.Second, DrainTime: time.Millisecond, StopTimeout: 20 * time.Second,
		Consul: fake, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		n, err := s.Run(t.Context())
		if err != nil {
			t.Errorf("Run: %v", err)
		}
		code <- n
	}()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	greets := func(want string) {
		t.Helper()
		resp, err := client.Get("http://" + at)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if got, err := io.ReadAll(resp.Body); err != nil || string(got) != want {
			t.Errorf("it greets %q, %v; want %q", got, err, want)
		}
	}
	works := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	works("Resume", s.Resume(t.Context())) // which also waits for the first start
	greets("hello")
	works("Drain", s.Drain(t.Context(), "by a test"))
	greeting = "sup" // Start reads it in a goroutine woken by Restart
	works("Restart", s.Restart(t.Context()))
	greets("sup")
	works("Resume", s.Resume(t.Context()))
	greeting = ""
	if err := s.Restart(t.Context()); err == nil || !strings.Contains(err.Error(), "ended with code 4 before it was ready") {
		t.Errorf("Restart: %v", err)
	}
	greeting = "sup"
	works("Restart", s.Restart(t.Context()))
	greets("sup")
	works("Resume", s.Resume(t.Context()))
	if got := fake.Registered(); got != "www-1" {
		t.Errorf("registered is %q", got)
	}
	stop <- syscall.SIGTERM
	if n := <-code; n != 0 {
		t.Errorf("code %d", n)
	}
}
