package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/deploy/testenv"
	"berth/deploy/testenv/agenttest"
	"berth/registrar/label"
	service "berth/registrar/process"
)

// runningProcess is a process under way, registered at a fake Consul agent.
type runningProcess struct {
	*agenttest.Agent
	t             *testing.T
	dir           string // its script's $D
	stop, forward chan os.Signal
	code          chan int
	err           error            // once code was received
	told          []syscall.Signal // once code was received
}

// runScript runs a shell script, whose files are in $D.
func runScript(t *testing.T, script string, change func(*service.Options)) *runningProcess {
	t.Helper()
	p := &runningProcess{
		Agent: agenttest.New(), t: t, dir: t.TempDir(), stop: make(chan os.Signal, 2), forward: make(chan os.Signal, 8), code: make(chan int, 1),
	}
	opts := service.Options{
		Program: "sh",
		Start: func() (service.Running, error) {
			running, err := startProcess([]string{"sh", "-c", "D=" + p.dir + "; " + script}, nil)
			if err != nil {
				return nil, err
			}
			return &recordedProcess{running, p}, nil
		},
		Stop:         p.stop,
		Forward:      p.forward,
		Process:      label.Process{Host: "vm", Name: "www", Port: 20001, Ready: "none", TTL: 15 * time.Second},
		ReadyTimeout: time.Minute,
		StopTimeout:  time.Minute,
		Consul:       p.Agent,
		Log:          slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&opts)
	}
	s, err := service.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		code, err := s.Run(t.Context())
		p.err = err
		p.code <- code
	}()
	return p
}

// recordedProcess records what its process is told.
type recordedProcess struct {
	service.Running
	p *runningProcess
}

func (r *recordedProcess) Tell(sig syscall.Signal) {
	r.p.told = append(r.p.told, sig)
	r.Running.Tell(sig)
}

func (p *runningProcess) eventually(what string, f func() bool) {
	p.t.Helper()
	testenv.Eventually(p.t, 20*time.Second, what, func() error {
		if !f() {
			return fmt.Errorf("registered: %q", p.Registered())
		}
		return nil
	})
}

// is waits until this is registered.
func (p *runningProcess) is(want string) {
	p.t.Helper()
	p.eventually("registered is "+want, func() bool { return p.Registered() == want })
}

// says waits until the script has written a file.
func (p *runningProcess) says(file string) {
	p.t.Helper()
	p.eventually("the script writes "+file, func() bool { _, err := os.Stat(filepath.Join(p.dir, file)); return err == nil })
}

// ends waits for the end, and checks the exit code and that nothing is left registered.
func (p *runningProcess) ends(want int) {
	p.t.Helper()
	select {
	case code := <-p.code:
		if code != want || p.err != nil {
			p.t.Errorf("code %d, %v; want %d", code, p.err, want)
		}
	case <-time.After(30 * time.Second):
		p.t.Fatal("it does not end")
	}
	if got := p.Registered(); got != "" {
		p.t.Errorf("registered is left: %q", got)
	}
}

// untilTold ends with the shell, when that is told to.
const untilTold = "touch $D/runs; while :; do sleep 0.01; done"

func TestProcessExitCode(t *testing.T) {
	for name, tt := range map[string]struct {
		script string
		stop   syscall.Signal // 0 = it ends by itself
		code   int
	}{
		"by itself":               {"exit 0", 0, 0},
		"by itself with an error": {"exit 3", 0, 3},
		"killed by others":        {"kill -9 $$", 0, 137},
		"terminated by others":    {"kill $$", 0, 143},
		"told":                    {untilTold, syscall.SIGTERM, 0},
		"told by ctrl-C":          {untilTold, syscall.SIGINT, 0},
		"told, with an error":     {"trap 'exit 5' TERM; " + untilTold, syscall.SIGTERM, 5},
		"told, as Java exits":     {"trap 'exit 143' TERM; " + untilTold, syscall.SIGTERM, 0},
	} {
		t.Run(name, func(t *testing.T) {
			p := runScript(t, tt.script, nil)
			if tt.stop != 0 {
				p.says("runs")
				p.is("vm:www:20001")
				p.stop <- tt.stop
			}
			p.ends(tt.code)
		})
	}
}

func TestProcessIsReadyFirst(t *testing.T) {
	var l net.Listener
	reserve := func(t *testing.T) int {
		var err error
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		return l.Addr().(*net.TCPAddr).Port
	}

	t.Run("tcp", func(t *testing.T) {
		port := reserve(t)
		l.Close()
		p := runScript(t, untilTold, func(o *service.Options) { o.Port, o.Ready = port, "" })
		p.says("runs")
		if n := p.Called("all"); n != 0 {
			t.Errorf("%d calls to Consul before it is ready", n)
		}
		l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port)) // in its place
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		p.is("vm:www:" + strconv.Itoa(port))
		p.stop <- syscall.SIGTERM
		p.ends(0)
	})

	t.Run("http, late", func(t *testing.T) {
		port := reserve(t)
		l.Close()
		p := runScript(t, untilTold, func(o *service.Options) {
			o.Port, o.Ready, o.ReadyTimeout, o.ID = port, "http:/health", 50*time.Millisecond, "www-1"
		})
		p.is("www-1?")
		l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err != nil {
			t.Fatal(err)
		}
		s := httptest.NewUnstartedServer(http.NotFoundHandler())
		s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/health" {
				w.WriteHeader(http.StatusNotFound)
			}
		})
		s.Listener = l
		s.Start()
		defer s.Close()
		p.is("www-1")
		p.stop <- syscall.SIGTERM
		p.ends(0)
	})

	t.Run("ends first", func(t *testing.T) {
		port := reserve(t)
		l.Close()
		p := runScript(t, "exit 4", func(o *service.Options) { o.Port, o.Ready = port, "tcp" })
		p.ends(4)
		if n := p.Called("register"); n != 0 {
			t.Errorf("it was registered %d times", n)
		}
	})

	t.Run("told to stop first", func(t *testing.T) {
		port := reserve(t)
		l.Close()
		p := runScript(t, untilTold, func(o *service.Options) { o.Port, o.Ready, o.DrainTime = port, "tcp", time.Hour })
		p.says("runs")
		p.stop <- syscall.SIGTERM
		p.ends(0)
	})

	t.Run("port of another", func(t *testing.T) {
		port := reserve(t)
		defer l.Close()
		p := runScript(t, untilTold, func(o *service.Options) { o.Port, o.Ready = port, "tcp" })
		<-p.code
		if p.err == nil || !strings.Contains(p.err.Error(), "already accepts connections before sh is started") {
			t.Errorf("err is %v", p.err)
		}
		if _, err := os.Stat(filepath.Join(p.dir, "runs")); err == nil {
			t.Error("it was started all the same")
		}
	})
}

// Out of service first, then told, and then deregistered.
func TestProcessDrains(t *testing.T) {
	p := runScript(t, "trap 'touch $D/told; while [ ! -e $D/go ]; do sleep 0.01; done; exit 0' TERM; "+untilTold,
		func(o *service.Options) { o.DrainTime = time.Hour })
	p.says("runs")
	p.is("vm:www:20001")
	p.stop <- syscall.SIGTERM
	p.is("vm:www:20001!")
	if c := p.Check(api.ServiceMaintPrefix + "vm:www:20001"); !strings.Contains(c.Notes, "told to stop by SIGTERM") {
		t.Errorf("the reason is %q", c.Notes)
	}
	if _, err := os.Stat(filepath.Join(p.dir, "told")); err == nil {
		t.Error("it was told before it was drained")
	}
	p.stop <- syscall.SIGTERM // cuts it short
	p.says("told")
	if got := p.Registered(); got != "vm:www:20001!" {
		t.Errorf("registered is %q while it finishes", got)
	}
	if err := os.WriteFile(filepath.Join(p.dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p.ends(0)
}

func TestProcessEndsWhileItDrains(t *testing.T) {
	p := runScript(t, "while [ ! -e $D/go ]; do sleep 0.01; done; exit 6", func(o *service.Options) { o.DrainTime = time.Hour })
	p.is("vm:www:20001")
	p.stop <- syscall.SIGTERM
	p.is("vm:www:20001!")
	if err := os.WriteFile(filepath.Join(p.dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p.ends(6)
}

func TestProcessDoesNotEnd(t *testing.T) {
	p := runScript(t, "trap '' TERM; "+untilTold, func(o *service.Options) { o.StopTimeout = 50 * time.Millisecond })
	p.says("runs")
	p.is("vm:www:20001")
	p.stop <- syscall.SIGTERM
	p.ends(137)
	if want := []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL}; !slices.Equal(p.told, want) {
		t.Errorf("it was told %v, want %v", p.told, want)
	}
}

func TestProcessGetsSignals(t *testing.T) {
	caught := make(chan os.Signal, 1) // as in runService: a child inherits that nohup ignores SIGHUP, but not that berth catches it
	signal.Notify(caught, syscall.SIGHUP)
	defer signal.Stop(caught)
	p := runScript(t, "trap 'touch $D/hup' HUP; trap 'touch $D/usr1' USR1; trap 'touch $D/usr2' USR2; "+untilTold, nil)
	p.says("runs")
	for file, s := range map[string]os.Signal{"hup": syscall.SIGHUP, "usr1": syscall.SIGUSR1, "usr2": syscall.SIGUSR2} {
		p.forward <- s
		p.says(file)
	}
	p.stop <- syscall.SIGTERM
	p.ends(0)
}

// What a process leaves behind could keep its port.
func TestProcessLeavesNothingBehind(t *testing.T) {
	p := runScript(t, "sleep 1000 & echo $! >$D/left; exit 0", nil)
	p.ends(0)
	pid, err := os.ReadFile(filepath.Join(p.dir, "left"))
	if err != nil {
		t.Fatal(err)
	}
	p.eventually("sleep ends", func() bool {
		stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
		return err != nil || strings.Contains(string(stat), ") Z ") // or waits for a process 1 that reaps
	})
}

func TestProcessWithoutConsul(t *testing.T) {
	p := runScript(t, "trap 'touch $D/told; exit 0' TERM; "+untilTold, func(o *service.Options) {
		o.Consul.(*agenttest.Agent).Err = errors.New("connection refused")
	})
	p.says("runs")
	p.eventually("Consul was asked", func() bool { return p.Called("all") > 0 })
	p.Do(func() { p.Err = nil })
	p.is("vm:www:20001")
	p.Do(func() { p.Err = errors.New("connection refused") })
	p.stop <- syscall.SIGTERM
	p.says("told")
	if code := <-p.code; code != 0 || p.err != nil {
		t.Errorf("code %d, %v", code, p.err)
	}
}
