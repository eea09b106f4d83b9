package supervise

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"berth/deploy/testenv"
)

// programEnv makes this test binary run one of the programs below.
const programEnv = "SUPERVISE_TEST_PROGRAM"

// environment returns the environment of a program. Without this setting, the race detector would delay its end by a second.
func environment(program string) []string {
	return append(os.Environ(), programEnv+"="+program, "GORACE=atexit_sleep_ms=0")
}

func TestMain(m *testing.M) {
	if name := os.Getenv(programEnv); name != "" {
		time.AfterFunc(time.Minute, func() { panic(name + " was left behind by a test") })
		os.Exit(programs[name]())
	}
	goleak.VerifyTestMain(m)
}

// programs print "up", their PID and their process group once they listen for signals, and the name of each signal they get. They
// return their exit code.
var programs = map[string]func() int{
	"proxy": func() int {
		return listen(func(s os.Signal) (int, bool) { return 0, s == syscall.SIGUSR1 })
	},
	"busy until SIGUSR2": func() int {
		return listen(func(s os.Signal) (int, bool) { return 0, s == syscall.SIGUSR2 })
	},
	"ends on SIGTERM": func() int {
		return listen(func(s os.Signal) (int, bool) { return 0, s == syscall.SIGTERM })
	},
	"ends on SIGTERM with 143": func() int {
		return listen(func(s os.Signal) (int, bool) { return 143, s == syscall.SIGTERM })
	},
	"ends with 3": func() int {
		return listen(func(s os.Signal) (int, bool) { return 3, s == syscall.SIGUSR1 || s == syscall.SIGTERM })
	},
	"never ends": func() int {
		return listen(func(os.Signal) (int, bool) { return 0, false })
	},
	"misses the first signal": func() int {
		got := 0
		return listen(func(os.Signal) (int, bool) { got++; return 0, got == 2 })
	},
	"handles no signals": func() int { // no Go program ends that way
		up()
		panic(syscall.Exec("/bin/sleep", []string{"sleep", "60"}, nil))
	},
	"crashes": func() int {
		up()
		return 7
	},
	"starts another": func() int {
		if err := self(os.Stdout, "proxy").Start(); err != nil {
			panic(err)
		}
		select {}
	},
	"leaves an orphan": func() int {
		cmd := self(nil, "handles no signals")
		if err := cmd.Start(); err != nil {
			panic(err)
		}
		fmt.Println("orphan", cmd.Process.Pid)
		return 0
	},
	"init": func() int {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			panic(err)
		}
		os.Setenv(programEnv, "behind init")
		code, err := Init(os.Args)
		if err != nil {
			panic(err)
		}
		return code
	},
	"behind init": func() int {
		if err := self(os.Stdout, "leaves an orphan").Run(); err != nil {
			panic(err) // as it would if the init had taken the status
		}
		return listen(func(s os.Signal) (int, bool) { return 5, s == syscall.SIGTERM })
	},
	"init of a killed": func() int {
		os.Setenv(programEnv, "handles no signals")
		code, err := Init(os.Args)
		if err != nil {
			panic(err)
		}
		return code
	},
}

func up() { fmt.Println("up", os.Getpid(), syscall.Getpgrp()) }

func listen(do func(os.Signal) (code int, end bool)) int {
	signals := make(chan os.Signal, 10)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGHUP, syscall.SIGTERM, syscall.SIGINT)
	up()
	for s := range signals {
		fmt.Println(unix.SignalName(s.(syscall.Signal)), os.Getpid())
		if code, end := do(s); end {
			return code
		}
	}
	return 0
}

// self returns a command that runs this test binary as another program.
func self(out *os.File, program string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = environment(program)
	cmd.Stderr = os.Stderr
	if out != nil {
		cmd.Stdout = out
	}
	return cmd
}

// output is what programs print, line by line.
type output struct {
	t     *testing.T
	lines chan string
	*os.File
}

func newOutput(t *testing.T) *output {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	o := &output{t: t, lines: make(chan string, 1000), File: w}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s := bufio.NewScanner(r); s.Scan(); {
			o.lines <- s.Text()
		}
	}()
	t.Cleanup(func() { w.Close(); r.Close(); <-done })
	return o
}

// expect waits for a line with this prefix, drops earlier ones, and returns the numbers after the prefix.
func (o *output) expect(begin string) []int {
	o.t.Helper()
	timeout := time.After(10 * time.Second)
	for {
		select {
		case line := <-o.lines:
			rest, found := strings.CutPrefix(line, begin+" ")
			if !found {
				continue
			}
			var numbers []int
			for _, f := range strings.Fields(rest) {
				n, err := strconv.Atoi(f)
				if err != nil {
					o.t.Fatalf("line %q: %v", line, err)
				}
				numbers = append(numbers, n)
			}
			return numbers
		case <-timeout:
			o.t.Fatalf("no program says %q", begin)
		}
	}
}

// supervised is a running Child.
type supervised struct {
	*Child
	t       *testing.T
	out     *output
	log     *testenv.Log
	signals chan os.Signal
	cancel  func()
	done    chan error

	configured func() // puts a good configuration in place
}

// supervise runs a program as a Child. A function may change the options.
func supervise(t *testing.T, program string, change func(*Options)) *supervised {
	s := &supervised{t: t, out: newOutput(t), log: &testenv.Log{}, signals: make(chan os.Signal), done: make(chan error, 1)}
	good := make(chan struct{})
	s.configured = sync.OnceFunc(func() { close(good) })
	opts := Options{
		Command:     []string{os.Args[0]},
		Env:         environment(program),
		Stdout:      s.out.File,
		Stderr:      os.Stderr,
		StopSignal:  syscall.SIGUSR1,
		StopTimeout: 10 * time.Second,
		Configured:  good,
		Signals:     s.signals,
		Log:         slog.New(slog.NewTextHandler(s.log, nil)),
	}
	if change != nil {
		change(&opts)
	}
	s.Child = New(opts)
	ctx, cancel := context.WithCancel(t.Context())
	s.cancel = cancel
	go func() { s.done <- s.Run(ctx); close(s.done) }()
	t.Cleanup(func() {
		cancel()
		<-s.done
		if t.Failed() {
			t.Log(s.log)
		}
	})
	return s
}

func (s *supervised) send(sig os.Signal) {
	s.t.Helper()
	select {
	case s.signals <- sig:
	case <-time.After(10 * time.Second):
		s.t.Fatalf("%s is not taken", sig)
	}
}

// ends waits for Run to return, and checks its exit code: 0 is nil.
func (s *supervised) ends(code int) {
	s.t.Helper()
	select {
	case err := <-s.done:
		var exit *Exit
		switch {
		case err == nil:
			exit = &Exit{}
		case !errors.As(err, &exit):
			s.t.Fatalf("Run returns %v", err)
		}
		if exit.Code != code {
			s.t.Errorf("Run returns code %d, want %d", exit.Code, code)
		}
	case <-time.After(15 * time.Second):
		s.t.Fatal("Run does not return")
	}
	if s.Ready() == nil {
		s.t.Error("ready, though nothing runs")
	}
}

func (s *supervised) eventually(what string, f func() bool) {
	s.t.Helper()
	testenv.Until(s.t, 10*time.Second, what, f)
}

func (s *supervised) says(text string) {
	s.t.Helper()
	s.log.Wait(s.t, text)
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

func TestWaitsForConfiguration(t *testing.T) {
	for name, end := range map[string]func(*supervised){
		"context": func(s *supervised) { s.cancel() },
		"signal":  func(s *supervised) { s.send(syscall.SIGHUP); s.send(syscall.SIGUSR1) },
	} {
		t.Run(name, func(t *testing.T) {
			s := supervise(t, "proxy", nil)
			if err := s.Ready(); err == nil || !strings.Contains(err.Error(), "no configuration") {
				t.Errorf("Ready: %v", err)
			}
			end(s)
			s.ends(0)
			if n := testutil.ToFloat64(s.starts); n != 0 {
				t.Errorf("it was started %v times", n)
			}
		})
	}
}

func TestRun(t *testing.T) {
	var stopping int
	var serves atomic.Bool
	started := make(chan struct{}, 2)
	reg := prometheus.NewRegistry()
	s := supervise(t, "proxy", func(o *Options) {
		o.Metrics = reg
		o.Serving = func() (pid int, err error) {
			if serves.Load() {
				pid = os.Getpid()
			}
			return pid, nil
		}
		o.Started = func() { started <- struct{}{} }
		o.Stopping = func() { stopping++ }
	})
	s.configured()
	s.configured()
	up := s.out.expect("up")
	if up[0] != up[1] {
		t.Errorf("process %d is in group %d: ctrl-C would reach it", up[0], up[1])
	}
	s.eventually("ready", func() bool { return s.Ready() == nil })
	if len(started) != 0 {
		t.Error("Started was called before it served")
	}
	serves.Store(true)
	<-started
	s.send(syscall.SIGHUP)
	s.out.expect("SIGHUP")
	s.send(syscall.SIGUSR2)
	s.out.expect("SIGUSR2")
	s.cancel()
	s.out.expect("SIGUSR1")
	s.ends(0)
	if len(started) != 0 || stopping != 1 {
		t.Errorf("Started was called %d times more, Stopping %d times", len(started), stopping)
	}
	if n := testutil.ToFloat64(s.starts); n != 1 {
		t.Errorf("berth_proxy_starts_total is %v", n)
	}
}

func TestStops(t *testing.T) {
	long, short := 10*time.Second, 100*time.Millisecond
	for _, tt := range []struct {
		program string
		within  time.Duration
		code    int
		says    string
	}{
		{"proxy", long, 0, "ended"},
		{"handles no signals", long, 0, "ended"},
		{"misses the first signal", long, 0, "ended"},
		{"ends with 3", long, 3, "exit status 3"},
		{"ends on SIGTERM", short, 0, "did not end within"},
		{"ends on SIGTERM with 143", short, 0, "did not end within"},
		{"ends on SIGTERM", 0, 0, "did not end within"},
		{"never ends", short, 137, "signal=terminated"},
	} {
		t.Run(fmt.Sprintf("%s within %s", tt.program, tt.within), func(t *testing.T) {
			s := supervise(t, tt.program, func(o *Options) { o.StopTimeout = tt.within })
			s.configured()
			pid := s.out.expect("up")[0]
			s.cancel()
			s.ends(tt.code)
			s.says(tt.says)
			if alive(pid) {
				t.Error("it still runs")
			}
		})
	}
}

// An operator's own stop signal ends Run, and has no time limit.
func TestToldToStopByASignal(t *testing.T) {
	s := supervise(t, "busy until SIGUSR2", func(o *Options) { o.StopTimeout = 0 })
	s.configured()
	pid := s.out.expect("up")[0]
	s.send(syscall.SIGUSR1)
	for range 3 {
		s.out.expect("SIGUSR1")
	}
	select {
	case err := <-s.done:
		t.Fatalf("Run returned before the program did: %v", err)
	default:
	}
	if err := syscall.Kill(pid, syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	s.ends(0)

	t.Run("and then berth to end", func(t *testing.T) {
		s := supervise(t, "ends on SIGTERM", func(o *Options) { o.StopTimeout = 100 * time.Millisecond })
		s.configured()
		s.out.expect("up")
		s.send(syscall.SIGUSR1)
		s.out.expect("SIGUSR1")
		s.cancel()
		s.out.expect("SIGTERM")
		s.ends(0)
	})
	t.Run("with a code", func(t *testing.T) {
		s := supervise(t, "ends with 3", nil)
		s.configured()
		s.out.expect("up")
		s.send(syscall.SIGUSR1)
		s.ends(3)
	})
}

func TestStartsAgain(t *testing.T) {
	t.Run("a killed one", func(t *testing.T) {
		s := supervise(t, "proxy", nil)
		s.configured()
		first := s.out.expect("up")[0]
		if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if second := s.out.expect("up")[0]; second == first {
			t.Error("it is the same process")
		}
		s.says("signal: killed")
		s.eventually("ready", func() bool { return s.Ready() == nil })
		s.cancel()
		s.ends(0)
	})
	t.Run("one that ends at once", func(t *testing.T) {
		s := supervise(t, "crashes", nil)
		s.configured()
		for range 3 {
			s.out.expect("up")
		}
		s.says("exit status 7")
		s.eventually("not ready", func() bool { return s.Ready() != nil })
		s.cancel()
		s.ends(0)
	})
	t.Run("what does not start", func(t *testing.T) {
		s := supervise(t, "", func(o *Options) { o.Command = []string{filepath.Join(t.TempDir(), "nosuch")} })
		s.configured()
		s.says("cannot start nosuch: ")
		s.send(syscall.SIGHUP)
		s.cancel()
		s.ends(0)
	})
}

// Processes that the child leaves in its group may hold the ports of the next one.
func TestLeavesNothing(t *testing.T) {
	s := supervise(t, "starts another", nil)
	s.configured()
	up := s.out.expect("up")
	if err := syscall.Kill(up[1], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if got := s.out.expect("SIGUSR1")[0]; got != up[0] {
		t.Errorf("SIGUSR1 reached process %d, not %d", got, up[0])
	}
	s.says("signal: killed") // otherwise the cancel may come first and make this a requested end
	s.cancel()
	s.ends(0)
}

// begin starts a program in its own process group, as an earlier berth would have.
func begin(t *testing.T, out *output, program string) *exec.Cmd {
	cmd := self(out.File, program)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	})
	return cmd
}

// earlier is like begin, but waits until the program runs.
func earlier(t *testing.T, out *output, program string) *exec.Cmd {
	cmd := begin(t, out, program)
	out.expect("up")
	return cmd
}

func TestTakesOver(t *testing.T) {
	t.Run("and stops it", func(t *testing.T) {
		out := newOutput(t)
		cmd := earlier(t, out, "proxy")
		started := make(chan struct{})
		s := supervise(t, "proxy", func(o *Options) {
			o.Serving = func() (int, error) { return cmd.Process.Pid, nil }
			o.Started = func() { close(started) }
		})
		<-started
		s.send(syscall.SIGHUP)
		out.expect("SIGHUP")
		s.cancel()
		out.expect("SIGUSR1")
		s.ends(0)
		if n := testutil.ToFloat64(s.starts); n != 0 {
			t.Errorf("it was started %v times", n)
		}
	})
	t.Run("and kills it", func(t *testing.T) {
		out := newOutput(t)
		cmd := earlier(t, out, "never ends")
		s := supervise(t, "proxy", func(o *Options) {
			o.StopTimeout = 0
			o.Serving = func() (int, error) { return cmd.Process.Pid, nil }
		})
		s.says("is already running")
		s.cancel()
		s.ends(0)
	})
	t.Run("and starts it again", func(t *testing.T) {
		out := newOutput(t)
		cmd := earlier(t, out, "proxy")
		s := supervise(t, "proxy", func(o *Options) {
			o.Serving = func() (int, error) { return cmd.Process.Pid, nil } // as in the moment after its end
		})
		s.says("is already running")
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		s.out.expect("up")
		s.cancel()
		s.ends(0)
	})
	t.Run("not one that is gone", func(t *testing.T) {
		out := newOutput(t)
		cmd := earlier(t, out, "proxy")
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		s := supervise(t, "proxy", func(o *Options) {
			o.Serving = func() (int, error) { return cmd.Process.Pid, nil }
		})
		s.configured()
		s.out.expect("up")
		s.cancel()
		s.ends(0)
	})
	t.Run("nor one out of reach, which it waits for", func(t *testing.T) {
		asked := 0
		s := supervise(t, "proxy", func(o *Options) {
			o.Serving = func() (int, error) {
				if asked++; asked < 3 {
					return 0, errors.New("in another container")
				}
				return 0, nil
			}
		})
		s.configured()
		s.out.expect("up")
		s.cancel()
		s.ends(0)
		if n := strings.Count(s.log.String(), "in another container"); n != 1 {
			t.Errorf("the log says why %d times", n)
		}
	})
}

func TestInit(t *testing.T) {
	out := newOutput(t)
	cmd := begin(t, out, "init")
	orphan, child := out.expect("orphan")[0], out.expect("up")[0]
	for _, s := range []syscall.Signal{syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGINT} {
		if err := cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		if got := out.expect(unix.SignalName(s))[0]; got != child {
			t.Errorf("%s reached process %d, not %d", s, got, child)
		}
	}
	if !exists(orphan) {
		t.Error("the orphan ended by itself")
	}
	if err := syscall.Kill(orphan, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	testenv.Until(t, 10*time.Second, "the orphan is reaped", func() bool { return !exists(orphan) })
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 5 {
		t.Errorf("init ends with code %d, its child with 5", code)
	}

	t.Run("killed child", func(t *testing.T) {
		out := newOutput(t)
		cmd := begin(t, out, "init of a killed")
		if err := syscall.Kill(out.expect("up")[0], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 137 {
			t.Errorf("init ends with code %d", code)
		}
	})
}

// exists reports whether there is such a process, even if it is a zombie.
func exists(pid int) bool {
	_, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pid)))
	return err == nil
}
