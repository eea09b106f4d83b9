package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/deploy/testenv/agenttest"
	"berth/registrar/label"
)

var errRefused = errors.New("connection refused")

// underTest is a running Service at a fake agent, with processes controlled by the test: each is ready while it runs and the
// test allows it, drains for 2 s and has 5 s to end.
type underTest struct {
	*Service
	t             *testing.T
	fake          *agenttest.Agent
	stop, forward chan os.Signal
	code          chan int
	err           error // valid once code was received

	mu        sync.Mutex
	processes []*fakeProcess
	began     []time.Time         // start times
	seen      []string            // registrations at each start
	next      func() *fakeProcess // what Start starts; nil = a process that ends on SIGTERM
	unstarted error               // why Start fails
	unready   error               // result of probes
	foreign   bool                // another program accepts connections on the port
	states    []State             // reported states
}

// serve runs a Service in a synctest bubble until its first process is ready, if it will be.
func serve(t *testing.T, change func(*underTest, *Options)) *underTest {
	t.Helper()
	u := &underTest{t: t, fake: agenttest.New(), stop: make(chan os.Signal, 2), forward: make(chan os.Signal, 8), code: make(chan int, 1)}
	opts := Options{
		Program: "www", Start: u.start, Stop: u.stop, Forward: u.forward,
		Changed:      func(s State) { u.do(func() { u.states = append(u.states, s) }) },
		Process:      label.Process{Host: "vm", Name: "www", ID: "www-1", Port: 20001, Tags: "a", TTL: 15 * time.Second},
		ReadyTimeout: 30 * time.Second, DrainTime: 2 * time.Second, StopTimeout: 5 * time.Second,
		Consul: u.fake, Log: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(u, &opts)
	}
	s, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	s.try = u.probe
	u.Service = s
	go func() {
		code, err := s.Run(t.Context())
		u.err = err
		u.code <- code
	}()
	synctest.Wait()
	return u
}

func (u *underTest) do(f func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	f()
}

func (u *underTest) start() (Running, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.began, u.seen = append(u.began, time.Now()), append(u.seen, u.fake.Registered())
	if u.unstarted != nil {
		return nil, u.unstarted
	}
	p := &fakeProcess{endsBy: syscall.SIGTERM}
	if u.next != nil {
		p = u.next()
	}
	p.started, p.ended, p.pid = time.Now(), make(chan struct{}), len(u.began)
	if p.lasts > 0 {
		time.AfterFunc(p.lasts, p.end)
	}
	u.processes = append(u.processes, p)
	return p, nil
}

func (u *underTest) probe(_ context.Context, r label.Ready) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.foreign && (len(u.processes) == 0 || ended(u.processes[len(u.processes)-1])) {
		return errRefused
	}
	return u.unready
}

func ended(p Running) bool {
	select {
	case <-p.Ended():
		return true
	default:
		return false
	}
}

// is checks what is registered once everything has settled.
func (u *underTest) is(want string) {
	u.t.Helper()
	expect(u.t, u.fake, 0, want)
}

// reason checks why the instance is critical in Consul.
func (u *underTest) reason(want string) {
	u.t.Helper()
	if got := u.fake.Check("www-1:ready").Notes; !strings.Contains(got, want) {
		u.t.Errorf("Consul has the reason %q, want %q", got, want)
	}
}

// ends checks that Run returns within a time, with a code and an error, and leaves nothing registered.
func (u *underTest) ends(within time.Duration, code int, message string) {
	u.t.Helper()
	synctest.Wait()
	select {
	case got := <-u.code:
		if text := fmt.Sprint(u.err); got != code || (u.err != nil) != (message != "") || !strings.Contains(text, message) {
			u.t.Errorf("Run returns %d, %v; want %d, %q", got, u.err, code, message)
		}
	case <-time.After(within + time.Nanosecond):
		u.t.Fatalf("Run does not return within %v", within)
	}
	u.is("")
	if err := u.SetTags(nil); !errors.Is(err, ErrStopping) {
		u.t.Errorf("SetTags after the end: %v", err)
	}
	if s := u.State(); s.Registered || s.Ready || s.PID != 0 || s.Reason == "" {
		u.t.Errorf("the state after the end is %+v", s)
	}
}

// finish stops the service as an operator does.
func (u *underTest) finish() {
	u.t.Helper()
	u.stop <- syscall.SIGTERM
	u.ends(time.Minute, 0, "")
}

// fails checks the error of a method.
func (u *underTest) fails(err error, want string) {
	u.t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		u.t.Errorf("the error is %v, want %q", err, want)
	}
}

func (u *underTest) works(err error) {
	u.t.Helper()
	if err != nil {
		u.t.Errorf("it fails: %v", err)
	}
}

func TestRestartKeepsTheRegistration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := serve(t, nil)
		u.is("www-1")
		owner := func() (is string) {
			u.fake.Do(func() { is = u.fake.Services["www-1"].Meta[label.MetaOwner] })
			return is
		}
		before := owner()
		u.do(func() { u.processes[0].endsBy = syscall.SIGKILL })
		restarted := make(chan error, 1)
		go func() { restarted <- u.Restart(t.Context()) }()
		u.is("www-1?")
		u.reason("restarts")
		if s := u.State(); s.Ready || s.Reason != "restarts" || s.PID != 1 || !s.Registered {
			t.Errorf("the state meanwhile is %+v", s)
		}
		u.works(<-restarted)
		if want := []string{"tell 15 after 0s", "tell 9 after 5s"}; !slices.Equal(u.processes[0].signals, want) {
			t.Errorf("the first process got %q, want %q", u.processes[0].signals, want)
		}
		u.is("www-1")
		u.fake.Do(func() {
			if got, want := u.fake.Services["www-1"].Meta[label.MetaStarted], u.began[1].UTC().Format(time.RFC3339Nano); got != want {
				t.Errorf("Consul has it started at %s, want %s", got, want)
			}
		})
		if s, since := u.State(), time.Now(); s != (State{Registered: true, Ready: true, PID: 2, Since: since}) {
			t.Errorf("the state is %+v", s)
		}
		if n := u.fake.Called("deregister"); owner() != before || n > 0 {
			t.Errorf("its owner was %q and is %q; it was deregistered %d times", before, owner(), n)
		}
		u.finish()
	})
}

func TestDrainRestartResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := serve(t, nil)
		began := time.Now()
		u.works(u.Drain(t.Context(), "version 2 is applied"))
		if took := time.Since(began); took != 2*time.Second {
			t.Errorf("to drain it takes %v, want the drain time", took)
		}
		u.is("www-1!")
		if c := u.fake.Check(api.ServiceMaintPrefix + "www-1"); !strings.Contains(c.Notes, "version 2 is applied") {
			t.Errorf("the reason is %q", c.Notes)
		}
		if s := u.State(); !s.Ready || !s.Draining || s.Reason != "version 2 is applied" {
			t.Errorf("the state is %+v", s)
		}
		u.works(u.Restart(t.Context()))
		u.is("www-1!")
		if want := []string{"", "www-1!"}; !slices.Equal(u.seen, want) {
			t.Errorf("at the starts %q was registered, want %q", u.seen, want)
		}
		u.works(u.Resume(t.Context()))
		if got := u.fake.Registered(); got != "www-1" { // now, not in a moment
			t.Errorf("registered is %q", got)
		}
		if len(u.fake.History) != 2 {
			t.Errorf("it was registered and deregistered: %q", u.fake.History)
		}
		u.finish()
	})
}

// A stop during a drain only waits for the rest of the drain time.
func TestStopWhileDrained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := serve(t, nil)
		drained := make(chan error, 1)
		go func() { drained <- u.Drain(t.Context(), "by a test") }()
		time.Sleep(1500 * time.Millisecond)
		u.stop <- syscall.SIGTERM
		began := time.Now()
		u.ends(time.Minute, 0, "")
		if took := time.Since(began); took != 500*time.Millisecond {
			t.Errorf("it took %v", took)
		}
		if err := <-drained; !errors.Is(err, ErrStopping) {
			t.Errorf("Drain returns %v", err)
		}
	})
}

// An agent that is away delays draining at most by the time that it has to answer.
func TestDrainWithoutConsul(t *testing.T) {
	for _, call := range []string{"services", "enable", ""} {
		t.Run(call, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u := serve(t, nil)
				u.fake.Do(func() {
					if u.fake.Hang[call] = true; call == "" {
						u.fake.Err = errRefused
					}
				})
				began := time.Now()
				u.works(u.Drain(t.Context(), "by a test"))
				if took := time.Since(began); took < 5*time.Second || took > 7*time.Second {
					t.Errorf("it took %v", took)
				}
				short, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				if err := u.Resume(short); call != "enable" && !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("Resume returns %v, though the agent does not know", err)
				}
				u.fake.Do(func() { clear(u.fake.Hang); u.fake.Err = nil })
				u.works(u.Resume(t.Context()))
				u.finish()
			})
		})
	}
}

// An instance that is drained before its registration is registered by Resume.
func TestDrainBeforeItIsReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := serve(t, func(u *underTest, _ *Options) { u.unready = errRefused })
		began := time.Now()
		u.works(u.Drain(t.Context(), "by a test"))
		if took := time.Since(began); took > 0 {
			t.Errorf("nothing to drain, and it takes %v", took)
		}
		u.do(func() { u.unready = nil })
		time.Sleep(time.Minute)
		u.is("")
		u.works(u.Resume(t.Context()))
		u.is("www-1")
		u.finish()
	})
}

// failures lists the ways in which a Restart fails.
var failures = map[string]struct {
	breaks  func(*underTest)
	message string // of Restart
	reason  string // in Consul
	runs    bool   // a process runs afterwards
	code    int    // of Run without a follow-up
	err     string
}{
	"ends at once": {func(u *underTest) {
		u.next = func() *fakeProcess { return &fakeProcess{lasts: time.Millisecond, code: 3} }
		u.unready = errRefused
	},
		"ended with code 3 before it was ready", "ended with code 3", false, 3, ""},
	"never ready": {func(u *underTest) { u.unready = errors.New("503 Service Unavailable") },
		"not ready within 30s: 503 Service Unavailable", "503 Service Unavailable", true, 0, ""},
	"cannot be started": {func(u *underTest) { u.unstarted = os.ErrNotExist },
		"cannot start www: file does not exist", "cannot start www", false, 0, "cannot start www"},
	"port is taken": {func(u *underTest) { u.foreign = true },
		"127.0.0.1:20001 already accepts connections before www is started", "accepts connections", false, 0, "accepts connections"},
}

func TestRestartFailsAndIsReverted(t *testing.T) {
	for name, f := range failures {
		for _, drained := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", drained ", drained), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					u := serve(t, nil)
					out, ref := "www-1?", f.reason
					if drained {
						u.works(u.Drain(t.Context(), "by a test"))
						out, ref = "www-1!", ""
					}
					for range 2 {
						u.do(func() { f.breaks(u) })
						u.fails(u.Restart(t.Context()), f.message)
						u.is(out)
						u.reason(ref)
						if s := u.State(); s.Ready || (s.PID != 0) != f.runs || !strings.Contains(s.Reason, f.reason) {
							t.Errorf("the state is %+v", s)
						}
						u.fails(u.Resume(t.Context()), f.message)
						u.works(u.Drain(t.Context(), "by a test"))
						time.Sleep(restartGrace - 3*time.Second)
						u.do(func() { u.next, u.unstarted, u.unready, u.foreign = nil, nil, nil, false })
						u.works(u.Restart(t.Context()))
						u.works(u.Resume(t.Context()))
						u.is("www-1")
						out, ref = "www-1?", f.reason
					}
					time.Sleep(time.Hour)
					u.is("www-1")
					u.finish()
				})
			})
		}
	}
}

// A failed Restart without a follow-up counts as any other end, after a while.
func TestRestartFailsAndIsNotFollowedUp(t *testing.T) {
	for name, f := range failures {
		if f.runs {
			continue
		}
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u := serve(t, nil)
				u.do(func() { f.breaks(u) })
				u.fails(u.Restart(t.Context()), f.message)
				failed := time.Now()
				u.ends(time.Minute, f.code, f.err)
				if took := time.Since(failed); took != restartGrace {
					t.Errorf("Run returns after %v, want %v", took, restartGrace)
				}
			})
		})
		t.Run(name+", policy", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u := serve(t, func(_ *underTest, o *Options) { o.RestartPolicy = RestartOnFailure })
				u.do(func() { f.breaks(u) })
				u.fails(u.Restart(t.Context()), f.message)
				time.Sleep(restartGrace + time.Minute)
				u.is("www-1?")
				u.do(func() { u.next, u.unstarted, u.unready, u.foreign = nil, nil, nil, false })
				expect(t, u.fake, longestPause+checkEvery, "www-1")
				u.finish()
			})
		})
	}
}

// A late process is awaited, and is in service when it is ready.
func TestRestartIsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := serve(t, nil)
		u.do(func() { u.unready = errRefused })
		u.fails(u.Restart(t.Context()), "not ready within 30s")
		time.Sleep(time.Hour)
		u.is("www-1?")
		u.do(func() { u.unready = nil })
		expect(t, u.fake, time.Second, "www-1")
		// And it is no longer on trial.
		u.processes[1].exit(3)
		u.ends(0, 3, "")
	})
}

// A process that ignores SIGKILL is left alone until it ends; another one is then started, if requested.
func TestRestartOfOneThatDoesNotEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := serve(t, func(u *underTest, _ *Options) { u.next = func() *fakeProcess { return &fakeProcess{} } })
		u.fails(u.Restart(t.Context()), "does not end even after SIGKILL")
		u.is("www-1?")
		u.processes[0].end()
		time.Sleep(time.Second)
		if s := u.State(); s.PID != 0 {
			t.Errorf("the state is %+v", s)
		}
		u.do(func() { u.next = nil })
		u.works(u.Restart(t.Context()))
		u.is("www-1")
		u.finish()
	})
}

// The caller's deadline ends its wait, not the restart.
func TestRestartIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := serve(t, nil)
		u.do(func() { u.unready = errRefused })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := u.Restart(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Restart returns %v", err)
		}
		u.do(func() { u.unready = nil })
		expect(t, u.fake, time.Second, "www-1")
		if len(u.processes) != 2 {
			t.Errorf("%d processes were started", len(u.processes))
		}
		u.finish()
	})
}

func TestRestartPolicy(t *testing.T) {
	for _, tt := range []struct {
		policy string
		code   int
		again  bool
	}{
		{"", 0, false}, {"", 3, false}, {RestartNo, 3, false},
		{RestartOnFailure, 0, false}, {RestartOnFailure, 3, true},
		{RestartAlways, 0, true}, {RestartAlways, 137, true},
	} {
		t.Run(fmt.Sprint(tt.policy, tt.code), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u := serve(t, func(_ *underTest, o *Options) { o.RestartPolicy = tt.policy })
				u.processes[0].exit(tt.code)
				if !tt.again {
					u.ends(0, tt.code, "")
					return
				}
				u.is("www-1?")
				u.reason(fmt.Sprintf("ended with code %d, started again in ", tt.code))
				expect(t, u.fake, time.Second, "www-1")
				if s := u.State(); s.PID != 2 || !s.Ready || s.Reason != "" {
					t.Errorf("the state is %+v", s)
				}
				u.finish()
			})
		})
	}
	if _, err := New(Options{Process: label.Process{Name: "www", Port: 1, TTL: time.Minute, Host: "vm"}, RestartPolicy: "never"}); err == nil ||
		!strings.Contains(err.Error(), `restart must be no, on-failure or always, not "never"`) {
		t.Errorf("New: %v", err)
	}
}

// Locks held through the instance's checks are released before Consul hears that it is critical or gone; the wait is at most
// a second.
func TestLeave(t *testing.T) {
	for _, tt := range []struct {
		name, policy string
		takes, waits time.Duration // less than the shortest pause before a start, 50 ms, if any
		event        func(*underTest)
		before, then string // registered before the release, and afterwards
	}{
		{"ended for good", RestartNo, 300 * time.Millisecond, 300 * time.Millisecond, func(u *underTest) { u.processes[0].exit(1) }, "www-1", ""},
		{"ended and started again", RestartAlways, 20 * time.Millisecond, 20 * time.Millisecond, func(u *underTest) { u.processes[0].exit(1) }, "www-1", "www-1?"},
		{"it hangs", RestartNo, time.Minute, leaveTime, func(u *underTest) { u.processes[0].exit(1) }, "www-1", ""},
		{"other changes meanwhile", RestartAlways, 20 * time.Millisecond, 20 * time.Millisecond, func(u *underTest) {
			u.processes[0].exit(1)
			synctest.Wait()
			_ = u.SetTags([]string{"follower"})
		}, "www-1", "www-1?"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u := serve(t, func(u *underTest, o *Options) {
					o.RestartPolicy = tt.policy
					o.Leave = func() func(context.Context) {
						begun := time.Now()
						return func(ctx context.Context) {
							select {
							case <-ctx.Done():
							case <-time.After(time.Until(begun.Add(tt.takes))):
							}
						}
					}
				})
				tt.event(u)
				time.Sleep(tt.waits - time.Millisecond)
				u.is(tt.before)
				time.Sleep(2 * time.Millisecond)
				u.is(tt.then)
				if tt.policy == RestartNo {
					u.ends(time.Minute, 1, "")
					return
				}
				expect(t, u.fake, time.Second, "www-1")
				u.finish()
			})
		})
	}
}

// Pauses double up to a minute, and start over after a process that ran for a while.
func TestRestartPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lasts := stable - time.Millisecond
		u := serve(t, func(u *underTest, o *Options) {
			o.RestartPolicy = RestartAlways
			u.next = func() *fakeProcess { return &fakeProcess{lasts: lasts} }
		})
		pause := func(n int) time.Duration { // before start n
			for {
				time.Sleep(time.Second)
				var began []time.Time
				u.do(func() { began = u.began })
				if len(began) > n {
					return began[n].Sub(began[n-1]) - lasts
				}
			}
		}
		within := func(n int, base time.Duration) {
			t.Helper()
			if p := pause(n); p < base/2 || p > min(base*3/2, longestPause) {
				t.Errorf("pause %d is %v, want about %v", n, p, base)
			}
		}
		base := 100 * time.Millisecond
		for n := 1; n <= 14; n++ {
			within(n, base)
			base = min(2*base, longestPause)
		}
		u.works(u.Restart(t.Context())) // also starts over
		n := len(u.began)
		within(n, 100*time.Millisecond)
		pause(n + 8)
		u.do(func() { lasts = stable })
		pause(n + 9)
		within(n+10, 100*time.Millisecond)
		u.stop <- syscall.SIGTERM
		<-u.code
	})
}

// A process that does not exist yet is not awaited: Consul shows the reason of the newest end.
func TestRestartPolicyOfOneThatIsNeverReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := serve(t, func(u *underTest, o *Options) {
			o.RestartPolicy, u.unready = RestartOnFailure, errRefused
			u.next = func() *fakeProcess { return &fakeProcess{lasts: time.Millisecond, code: len(u.began)} }
		})
		for n := range 5 {
			for len(u.State().Reason) == 0 || !strings.HasPrefix(u.State().Reason, fmt.Sprintf("ended with code %d before it was ready, started again in", n+1)) {
				time.Sleep(time.Millisecond)
			}
			u.is("www-1?")
			u.reason(u.State().Reason)
		}
		u.finish()
	})
}

func TestStopInEachPhase(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*underTest, *Options)
		reach  func(*underTest)
		phase  phase
		took   time.Duration
		code   int
		starts int
	}{
		"before the start": {
			func(_ *underTest, o *Options) {
				o.Before = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
			}, nil, preparing, 0, 0, 0,
		},
		"starting": {func(u *underTest, _ *Options) { u.unready = errRefused }, nil, running, 0, 0, 1},
		"late": {func(u *underTest, _ *Options) { u.unready = errRefused },
			func(*underTest) { time.Sleep(time.Minute) }, running, 2 * time.Second, 0, 1},
		"ready": {nil, nil, running, 2 * time.Second, 0, 1},
		"pausing": {func(_ *underTest, o *Options) { o.RestartPolicy = RestartAlways },
			func(u *underTest) { u.processes[0].end(); synctest.Wait() }, pausing, 0, 0, 1},
		"drained": {nil, func(u *underTest) { u.works(u.Drain(u.t.Context(), "by a test")) }, running, 0, 0, 1},
		"restarting": {func(u *underTest, _ *Options) {
			u.next = func() *fakeProcess { return &fakeProcess{endsBy: syscall.SIGKILL, code: 137} }
		},
			func(u *underTest) { u.begin(u.Restart); time.Sleep(time.Second) }, ending, 4 * time.Second, 137, 1},
		"waiting for the port": {nil, func(u *underTest) {
			u.do(func() { u.foreign = true })
			u.begin(u.Restart)
			time.Sleep(time.Second)
		}, preparing, 0, 0, 1},
		"failed": {nil, func(u *underTest) {
			u.do(func() { u.unstarted = os.ErrNotExist })
			u.fails(u.Restart(u.t.Context()), "cannot start")
		}, failed, 0, 0, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u := serve(t, tt.change)
				if u.t = t; tt.reach != nil {
					tt.reach(u)
				}
				var is phase
				u.works(u.call(t.Context(), func(r *run) error { is = r.phase; return nil }, nil))
				if is != tt.phase {
					t.Fatalf("it is in phase %d, want %d", is, tt.phase)
				}
				began := time.Now()
				u.stop <- syscall.SIGTERM
				u.ends(time.Minute, tt.code, "")
				if took := time.Since(began); took != tt.took {
					t.Errorf("it ends after %v, want %v", took, tt.took)
				}
				time.Sleep(time.Hour)
				if len(u.began) != tt.starts {
					t.Errorf("it was started %d times, want %d", len(u.began), tt.starts)
				}
			})
		})
	}
}

// begin calls a method that should end with the service.
func (u *underTest) begin(method func(context.Context) error) {
	go func() {
		if err := method(context.Background()); !errors.Is(err, ErrStopping) {
			u.t.Errorf("it returns %v", err)
		}
	}()
}

// A second signal to stop cuts a drain short, and a third one reaches the process, also during a restart.
func TestStopTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := serve(t, func(u *underTest, _ *Options) {
			u.next = func() *fakeProcess { return &fakeProcess{endsBy: syscall.SIGINT, code: 5} }
		})
		u.begin(u.Restart)
		time.Sleep(time.Second)
		u.stop <- syscall.SIGTERM
		time.Sleep(time.Second)
		u.stop <- syscall.SIGINT
		u.ends(0, 5, "")
		if want := []string{"tell 15 after 0s", "signal 2 after 2s"}; !slices.Equal(u.processes[0].signals, want) {
			t.Errorf("it got %q, want %q", u.processes[0].signals, want)
		}
	})
}

func TestBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		satisfied := make(chan error)
		u := serve(t, func(_ *underTest, o *Options) {
			o.Before = func(context.Context) error { return <-satisfied }
		})
		u.forward <- syscall.SIGHUP
		time.Sleep(time.Hour)
		if s := u.State(); len(u.began) != 0 || s.Reason != notStarted || s.PID != 0 {
			t.Errorf("it was started %d times, the state is %+v", len(u.began), s)
		}
		satisfied <- nil
		u.is("www-1")
		u.works(u.Restart(t.Context())) // and Before is not called again
		if len(u.processes[0].signals) != 1 {
			t.Errorf("it got %q", u.processes[0].signals)
		}
		u.finish()
	})
	synctest.Test(t, func(t *testing.T) {
		u := serve(t, func(_ *underTest, o *Options) {
			o.RestartPolicy = RestartAlways // makes no difference before the first start
			o.Before = func(context.Context) error { return errors.New("no permission") }
		})
		u.ends(0, 0, "no permission")
	})
}

// Signals reach the running process, also while it is being stopped, and no other.
func TestSignalsWhileRestarting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := serve(t, func(u *underTest, _ *Options) {
			u.next = func() *fakeProcess { return &fakeProcess{endsBy: syscall.SIGKILL} }
		})
		u.do(func() { u.unready = errRefused })
		restarted := make(chan error, 1)
		go func() { restarted <- u.Restart(t.Context()) }()
		time.Sleep(time.Second)
		u.forward <- syscall.SIGUSR1
		synctest.Wait()
		u.fails(u.Signal(syscall.SIGHUP), "www gets no SIGHUP: restarts")
		time.Sleep(6 * time.Second)
		u.forward <- syscall.SIGUSR2
		synctest.Wait()
		u.do(func() { u.unready = nil })
		u.works(<-restarted)
		for n, want := range [][]string{{"tell 15 after 0s", "signal 10 after 1s", "tell 9 after 5s"}, {"signal 12 after 2s"}} {
			if got := u.processes[n].signals; !slices.Equal(got, want) {
				t.Errorf("process %d got %q, want %q", n+1, got, want)
			}
		}
		u.stop <- syscall.SIGTERM
		<-u.code
	})
}

func TestSignalAndReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := serve(t, nil)
		u.works(u.Signal(syscall.SIGHUP))
		if want := []string{"signal 1 after 0s"}; !slices.Equal(u.processes[0].signals, want) {
			t.Errorf("it got %q, want %q", u.processes[0].signals, want)
		}
		u.works(u.Ready(t.Context()))
		u.is("www-1")

		// A process that is not ready afterwards is in service until it is late.
		u.works(u.Signal(syscall.SIGHUP))
		u.do(func() { u.unready = errRefused })
		waits := make(chan error, 1)
		go func() { waits <- u.Ready(t.Context()) }()
		time.Sleep(29 * time.Second)
		u.is("www-1")
		u.fails(<-waits, "not ready within 30s: connection refused")
		u.is("www-1?")
		u.do(func() { u.unready = nil })
		u.works(u.Ready(t.Context()))
		u.is("www-1")

		// A process that dies of the signal can be replaced.
		u.do(func() { u.processes[0].endsBy, u.processes[0].code = syscall.SIGHUP, 129 })
		u.works(u.Signal(syscall.SIGHUP))
		u.fails(u.Ready(t.Context()), "ended with code 129")
		u.is("www-1?")
		u.fails(u.Ready(t.Context()), "ended with code 129")
		u.works(u.Restart(t.Context()))
		u.is("www-1")

		// And one that dies a moment later does not count as ready.
		u.works(u.Signal(syscall.SIGHUP))
		time.AfterFunc(signalSettles-time.Millisecond, u.processes[1].end)
		u.fails(u.Ready(t.Context()), "ended with code 0")
		u.works(u.Restart(t.Context()))

		// A later death is an end like any other.
		u.works(u.Signal(syscall.SIGHUP))
		u.works(u.Ready(t.Context()))
		u.processes[2].exit(3)
		u.ends(0, 3, "")
	})
}

// recordedAgent records the registrations after each call.
type recordedAgent struct {
	*agenttest.Agent
	after []string
}

func (a *recordedAgent) ServiceRegisterOpts(s *api.AgentServiceRegistration, o api.ServiceRegisterOpts) error {
	err := a.Agent.ServiceRegisterOpts(s, o)
	a.after = append(a.after, a.Registered())
	return err
}

func TestSetTags(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		recorded := &recordedAgent{}
		u := serve(t, func(u *underTest, o *Options) {
			u.unready, recorded.Agent = errRefused, u.fake
			o.Consul = recorded
		})
		has := func(want ...string) {
			t.Helper()
			synctest.Wait()
			u.fake.Do(func() {
				if got := u.fake.Services["www-1"].Tags; !slices.Equal(got, want) {
					t.Errorf("the tags are %q, want %q", got, want)
				}
			})
		}
		u.works(u.SetTags([]string{"follower"})) // before it is registered
		u.do(func() { u.unready = nil })
		time.Sleep(time.Second)
		has("a", "follower")
		u.works(u.SetTags([]string{"leader", "a"}))
		has("a", "leader")
		u.works(u.SetTags(nil))
		has("a")
		if want := []string{"www-1", "www-1", "www-1"}; !slices.Equal(recorded.after, want) {
			t.Errorf("registered was, after each registration, %q, want %q", recorded.after, want)
		}
		if n := u.fake.Called("check deregister") + u.fake.Called("deregister"); n > 0 {
			t.Errorf("%d checks or services were deregistered", n)
		}
		u.works(u.Drain(t.Context(), "by a test"))
		u.works(u.SetTags([]string{"follower"}))
		has("a", "follower")
		u.is("www-1!")
		u.works(u.Resume(t.Context()))
		has("a", "follower")
		u.works(u.Restart(t.Context()))
		u.is("www-1")
		has("a", "follower")
		u.finish()
	})
}

// Each change is reported, and nothing else.
func TestStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := serve(t, nil)
		u.is("www-1")
		u.works(u.Drain(t.Context(), "by a test"))
		u.works(u.Resume(t.Context()))
		time.Sleep(time.Minute)
		u.fake.Do(func() { u.fake.Err = errRefused }) // it does not say what it holds
		time.Sleep(time.Minute)
		u.fake.Do(func() { u.fake.Err = nil })
		time.Sleep(time.Minute)
		u.finish()
		var got []string
		for _, s := range u.states {
			got = append(got, fmt.Sprintf("registered %t, ready %t, draining %t, process %d: %s", s.Registered, s.Ready, s.Draining, s.PID, s.Reason))
		}
		want := []string{
			"registered false, ready false, draining false, process 1: not ready yet",
			"registered false, ready true, draining false, process 1: ",
			"registered true, ready true, draining false, process 1: ",
			"registered true, ready true, draining true, process 1: by a test",
			"registered true, ready true, draining false, process 1: ",
			"registered true, ready true, draining true, process 1: the process was told to stop by SIGTERM",
			"registered true, ready false, draining true, process 0: ended with code 0",
			"registered false, ready false, draining true, process 0: ended with code 0",
		}
		if !slices.Equal(got, want) {
			t.Errorf("told were\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

// An agent that claims to have ended maintenance mode, and has not, is not believed.
func TestResumeIsReadBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := serve(t, nil)
		u.works(u.Drain(t.Context(), "by a test"))
		u.fake.Do(func() { u.fake.Lose = map[string]bool{"disable www-1": true} })
		resumed := make(chan error, 1)
		go func() { resumed <- u.Resume(t.Context()) }()
		time.Sleep(time.Minute)
		select {
		case err := <-resumed:
			t.Errorf("Resume returns %v while it is %s", err, u.fake.Registered())
		default:
			u.fake.Do(func() { u.fake.Lose = nil })
			u.works(<-resumed)
		}
		u.is("www-1")
		u.finish()
	})
}
