package process

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"berth/deploy/testenv/agenttest"
	"berth/registrar/agent"
	"berth/registrar/label"
)

// fakeProcess is a Running that ends on one signal, or by itself.
type fakeProcess struct {
	mu      sync.Mutex
	pid     int
	started time.Time
	endsBy  syscall.Signal
	lasts   time.Duration // 0 = it does not end by itself
	code    int
	signals []string // each with its time
	ended   chan struct{}
}

func (p *fakeProcess) end() { close(p.ended) }

func (p *fakeProcess) exit(code int) {
	p.code = code
	p.end()
}

func (p *fakeProcess) receive(how string, s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.signals = append(p.signals, fmt.Sprintf("%s %d after %v", how, s, time.Since(p.started)))
	if s == p.endsBy {
		p.end()
	}
}

func (p *fakeProcess) PID() int                { return p.pid }
func (p *fakeProcess) Signal(s syscall.Signal) { p.receive("signal", s) }
func (p *fakeProcess) Tell(s syscall.Signal)   { p.receive("tell", s) }
func (p *fakeProcess) Ended() <-chan struct{}  { return p.ended }
func (p *fakeProcess) Code() int               { return p.code }
func (p *fakeProcess) String() string          { return "" }

// runFake runs a process that is ready at once, drains for 2 s and has 5 s to end. Call it in a synctest bubble.
func runFake(t *testing.T, fake *agenttest.Agent, p *fakeProcess) (stop, forward chan os.Signal, code chan int) {
	p.started, p.ended = time.Now(), make(chan struct{})
	stop, forward, code = make(chan os.Signal, 2), make(chan os.Signal, 8), make(chan int, 1)
	s, err := New(Options{
		Program: "www", Start: func() (Running, error) { return p, nil }, Stop: stop, Forward: forward,
		Process:   label.Process{Host: "vm", Name: "www", ID: "www-1", Port: 20001, Ready: "none", TTL: 15 * time.Second},
		DrainTime: 2 * time.Second, StopTimeout: 5 * time.Second,
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
	synctest.Wait()
	return stop, forward, code
}

// Whether Consul answers does not affect when the process is told to end.
func TestServiceStopsInTime(t *testing.T) {
	for _, call := range []string{"", "services", "register", "enable", "update", "deregister"} {
		t.Run(call, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fake := agenttest.New()
				fake.Hang[call] = true
				p := &fakeProcess{endsBy: syscall.SIGKILL, code: 3}
				stop, _, code := runFake(t, fake, p)
				stop <- syscall.SIGTERM
				if n := <-code; n != 3 {
					t.Errorf("code %d, want the process's", n)
				}
				if want := []string{"tell 15 after 2s", "tell 9 after 7s"}; !slices.Equal(p.signals, want) {
					t.Errorf("it got %q, want %q", p.signals, want)
				}
				if took := time.Since(p.started); took > 7*time.Second+2*agent.Timeout {
					t.Errorf("Run took %v", took)
				}
			})
		})
	}
}

// Signals that come together are all handled, and further ones do not prevent draining.
func TestServiceSignals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := agenttest.New()
		p := &fakeProcess{endsBy: syscall.SIGTERM}
		stop, forward, code := runFake(t, fake, p)
		stop <- syscall.SIGTERM
		forward <- syscall.SIGUSR1
		forward <- syscall.SIGHUP
		expect(t, fake, 0, "www-1!")
		<-code
		if want := []string{"signal 10 after 0s", "signal 1 after 0s", "tell 15 after 2s"}; !slices.Equal(p.signals, want) {
			t.Errorf("it got %q, want %q", p.signals, want)
		}
		expect(t, fake, 0, "")
	})
}

// The process continues without Consul, and is registered when Consul is back.
func TestServiceOutlivesConsul(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := agenttest.New()
		fake.Err = errors.New("connection refused")
		p := &fakeProcess{endsBy: syscall.SIGTERM}
		stop, _, code := runFake(t, fake, p)
		time.Sleep(time.Hour)
		fake.Do(func() { fake.Err = nil })
		expect(t, fake, 8*time.Second, "www-1")
		stop <- syscall.SIGINT
		stop <- syscall.SIGTERM // cuts draining short
		<-code
		expect(t, fake, 0, "")
		if len(p.signals) != 1 || time.Since(p.started) > time.Hour+8*time.Second {
			t.Errorf("it got %q in %v", p.signals, time.Since(p.started))
		}
	})
}
