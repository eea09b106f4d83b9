package proxyctl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// fakeProxy does what it is told and records when. Every text that does not begin with "run" takes a reload.
type fakeProxy struct {
	start  time.Time
	takes  time.Duration // of one Apply
	slow   time.Duration // duration of one that comes too early
	runs   int           // of Run
	closed bool          // after all of them

	mu      sync.Mutex
	err     error
	running string
	log     []string // "12ms text"
}

func (p *fakeProxy) Apply(_ context.Context, config Config, mayReload bool) (Result, error) {
	text := config.Text
	runtime := strings.HasPrefix(text, "run")
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil && text != p.running && !runtime && !mayReload {
		time.Sleep(p.slow)
		return Result{}, ErrNotYet
	}
	p.mu.Unlock()
	time.Sleep(p.takes)
	p.mu.Lock()
	p.log = append(p.log, fmt.Sprintf("%v %s", time.Since(p.start)-p.takes, text))
	if p.err != nil {
		return Result{}, p.err
	}
	if text == p.running {
		return Result{Action: None}, nil
	}
	p.running = text
	if runtime {
		return Result{Action: Runtime, Reason: "add app/b", Leaving: 3, Changes: []Change{{Backend: "app", Before: 1, After: 2, Added: 1}}}, nil
	}
	return Result{Action: Reload, Reason: "frontend web: bind line added", OldWorkers: 2, Changes: []Change{{Backend: "app", Before: 2, After: 5, Added: 3}}}, nil
}

func (p *fakeProxy) Run(ctx context.Context) {
	p.do(func() { p.runs++ })
	<-ctx.Done()
	p.do(func() { p.runs-- })
}

func (p *fakeProxy) Servers(context.Context) ([]Server, error) { return nil, nil }

func (p *fakeProxy) Close() { p.do(func() { p.closed = p.runs == 0 }) }

// pass advances the bubble's clock, then waits until everything has settled.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (p *fakeProxy) do(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

func (p *fakeProxy) answer(err error) { p.do(func() { p.err = err }) }

func run(t *testing.T, p *fakeProxy) (*Controller, *bytes.Buffer) {
	var out bytes.Buffer
	p.start = time.Now()
	c := New(Options{
		Proxy: p, Interval: 200 * time.Millisecond,
		Log: slog.New(slog.NewTextHandler(&out, nil)), Metrics: prometheus.NewRegistry(),
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if !p.closed {
			t.Error("the proxy is not closed when Run returns")
		}
	})
	return c, &out
}

func TestFirstAtOnceThenPacedNewestWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &fakeProxy{takes: 10 * time.Millisecond}
		c, out := run(t, p)
		if c.Ready() == nil {
			t.Error("ready before the first configuration")
		}
		c.Set(Config{Text: "a"}, time.Now())
		pass(5 * time.Millisecond)
		c.Set(Config{Text: "b"}, time.Now())
		c.Set(Config{Text: "c"}, time.Now())
		pass(50 * time.Millisecond)
		c.Set(Config{Text: "d"}, time.Now())
		if err := c.Ready(); err != nil {
			t.Errorf("not ready though the newest configuration is about to be applied: %v", err)
		}
		pass(time.Second)
		want := []string{"0s a", "210ms d"}
		if !slices.Equal(p.log, want) {
			t.Errorf("applied %q, want %q", p.log, want)
		}
		if err := c.Ready(); err != nil {
			t.Errorf("not ready: %v", err)
		}
		// d waited for the pace since b was set at 5 ms, and took 10 ms.
		for _, line := range []string{"app: 2 → 5 servers, live after 10 ms", "app: 2 → 5 servers, live after 215 ms", `reason="frontend web: bind line added" old_workers=2`} {
			if !strings.Contains(out.String(), line) {
				t.Errorf("the log lacks %q:\n%s", line, out)
			}
		}
	})
}

func TestUnreachableIsTriedAgainSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &fakeProxy{err: fmt.Errorf("%w: no such socket", ErrUnreachable)}
		c, out := run(t, p)
		c.Set(Config{Text: "a"}, time.Now())
		pass(time.Minute)
		if n := len(p.log); n < 10 || n > 40 {
			t.Errorf("%d attempts in a minute", n)
		}
		if n := strings.Count(out.String(), "\n"); n != 1 {
			t.Errorf("%d lines in the log, want one:\n%s", n, out)
		}
		if err := c.Ready(); !errors.Is(err, ErrUnreachable) {
			t.Errorf("Ready() = %v", err)
		}
		if n := testutil.ToFloat64(c.metrics.reachable); n != 0 {
			t.Errorf("reachable = %v", n)
		}
		p.answer(nil)
		pass(10 * time.Second)
		if p.running != "a" || c.Ready() != nil {
			t.Errorf("runs %q, Ready() = %v", p.running, c.Ready())
		}
	})
}

// A refusal's cause may pass, so the text is tried again within seconds, and at once when something changes.
func TestRefusedIsTriedAgainAndOnChangeAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &fakeProxy{running: "good", err: fmt.Errorf("%w: unknown keyword 'bogus'", ErrRefused)}
		c, out := run(t, p)
		c.Set(Config{Text: "bad"}, time.Now())
		pass(time.Minute)
		if n := len(p.log); n < 6 || n > 12 {
			t.Errorf("%d attempts in a minute", n)
		}
		if n := strings.Count(out.String(), "\n"); n != 1 {
			t.Errorf("%d lines in the log, want one:\n%s", n, out)
		}
		if !strings.Contains(out.String(), "unknown keyword 'bogus'") {
			t.Errorf("the log does not say why:\n%s", out)
		}
		tries := func() (n int) { p.do(func() { n = len(p.log) }); return n }
		for before := tries(); tries() == before; {
			pass(10 * time.Millisecond)
		}
		pass(200 * time.Millisecond) // a refusal counts towards the pace of reloads, and the next try is seconds away
		p.answer(nil)
		set := time.Now()
		c.Set(Config{Text: "better"}, set)
		synctest.Wait()
		if p.running != "better" || c.Ready() != nil {
			t.Errorf("%v after a better one was set: runs %q, Ready() = %v", time.Since(set), p.running, c.Ready())
		}
	})
}

func TestBackToWhatRunsIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &fakeProxy{}
		c, out := run(t, p)
		c.Set(Config{Text: "good"}, time.Now())
		pass(time.Second)
		p.answer(ErrRefused)
		c.Set(Config{Text: "bad"}, time.Now())
		pass(time.Second)
		p.answer(nil)
		c.Set(Config{Text: "good"}, time.Now())
		pass(time.Second)
		if strings.Count(out.String(), "the proxy runs the newest configuration\"") != 2 {
			t.Errorf("the log does not say that all is well, at the start and again:\n%s", out)
		}
	})
}

// A lasting failure is logged again at growing intervals, with its duration.
func TestLastingFailureIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &fakeProxy{err: errors.New("no")}
		c, out := run(t, p)
		c.Set(Config{Text: "a"}, time.Now())
		pass(4 * time.Hour)
		var at []string
		for line := range strings.Lines(out.String()) {
			_, lasts, _ := strings.Cut(strings.TrimSpace(line), " for=")
			d, _ := time.ParseDuration(lasts)
			at = append(at, d.Round(time.Minute).String())
		}
		want := []string{"0s", "1m0s", "5m0s", "10m0s", "20m0s", "40m0s", "1h20m0s", "2h20m0s", "3h20m0s"}
		if !slices.Equal(at, want) {
			t.Errorf("told after %v, want %v:\n%s", at, want, out)
		}
		p.answer(nil)
		pass(time.Minute)
		if !strings.Contains(out.String(), "the proxy runs the newest configuration\" for=4h0m") {
			t.Errorf("the end does not say for how long it lasted:\n%s", out)
		}
		p.answer(errors.New("no"))
		pass(time.Minute / 2)
		if n := strings.Count(out.String(), "err=no"); n != len(want)+1 || strings.Count(out.String(), "the proxy runs the newest configuration") != 1 {
			t.Errorf("a failure after all was well is not a new one:\n%s", out)
		}
	})
}

// A failure that is retried rarely is logged as rarely as any other.
func TestSeldomTriedFailureIsRepeated(t *testing.T) {
	p := newPace(0, 5*time.Second)
	refused := &retryError{ErrRefused, 10 * time.Minute}
	var at []time.Duration
	for began, lasts := time.Now(), time.Duration(0); lasts < 2*time.Hour; lasts += 10 * time.Minute {
		now := began.Add(lasts)
		if n := p.after(wanted{}, now, now, Result{}, refused); n.failure != "" {
			at = append(at, n.lasts)
		}
	}
	if want := []time.Duration{0, 10 * time.Minute, 20 * time.Minute, 40 * time.Minute, 80 * time.Minute}; !slices.Equal(at, want) {
		t.Errorf("told after %v, want %v", at, want)
	}
}

// A hold is logged under the same key as any failure, with the remaining time if known.
func TestHeldIsTold(t *testing.T) {
	for _, tt := range []struct {
		held *HoldError
		want string
	}{
		{&HoldError{Backends: []string{"app"}, For: 20 * time.Second}, `after consul-grace" at_most=20s for=2m0s`},
		{&HoldError{Backends: []string{"app"}, File: "proxy.cfg"}, `anyway" for=2m0s`},
	} {
		var out bytes.Buffer
		c := New(Options{Log: slog.New(slog.NewTextHandler(&out, nil))})
		c.report(next{failure: tt.held.Error(), lasts: 2 * time.Minute}, Result{Action: None}, tt.held)
		if got := out.String(); !strings.Contains(got, `err="holding back: backend app`) || !strings.Contains(got, tt.want+"\n") {
			t.Errorf("told as\n%s", got)
		}
	}
}

// A proxy whose socket appears is inspected at once, not only when the next try is due.
func TestSocketAppears(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "sock")
	synctest.Test(t, func(t *testing.T) {
		for _, there := range []bool{false, true} { // whether a killed proxy left its socket behind
			p := &fakeProxy{start: time.Now(), err: fmt.Errorf("%w: no such socket", ErrUnreachable)}
			c := New(Options{Proxy: p, Socket: socket, Log: slog.New(slog.DiscardHandler)})
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- c.Run(ctx) }()
			c.Set(Config{Text: "a"}, time.Now())
			pass(time.Minute)
			if n := len(p.log); n > 40 {
				t.Errorf("%d tries in a minute", n)
			}
			if there {
				os.Remove(socket)
			}
			p.answer(nil)
			if err := os.WriteFile(socket, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			pass(2 * lookTime)
			if p.running != "a" {
				t.Errorf("socket there before: %v: nothing was tried within %v", there, 2*lookTime)
			}
			cancel()
			<-done
		}
	})
}

func TestChange(t *testing.T) {
	for want, c := range map[string]Change{
		"app: 2 → 5 servers":                    {Backend: "app", Before: 2, After: 5, Added: 3},
		"app: 3 servers, 1 replaced or changed": {Backend: "app", Before: 3, After: 3, Added: 1, Removed: 1},
		"app: 0 → 1 server":                     {Backend: "app", After: 1, Added: 1},
	} {
		if got := c.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// What the proxy runs is checked regularly, because it may have been restarted or reloaded by someone else.
func TestDriftIsFoundAndRepaired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &fakeProxy{takes: time.Millisecond}
		c, out := run(t, p)
		c.Set(Config{Text: "good"}, time.Now())
		pass(time.Hour)
		if n := strings.Count(out.String(), "\n"); n != 3 {
			t.Errorf("%d lines in a quiet hour, want the two of the first reload, and that all is well:\n%s", n, out)
		}
		p.do(func() { p.running = "somebody else's" })
		pass(6 * time.Second)
		if p.running != "good" || !strings.Contains(out.String(), "no longer ran the newest configuration: repaired") ||
			!strings.Contains(out.String(), "live after 1 ms") {
			t.Errorf("runs %q; the log:\n%s", p.running, out)
		}
		p.answer(fmt.Errorf("%w: no such socket", ErrUnreachable))
		pass(6 * time.Second)
		if err := c.Ready(); !errors.Is(err, ErrUnreachable) {
			t.Errorf("Ready() = %v, though the proxy is gone", err)
		}
		p.answer(nil)
		pass(10 * time.Second)
		if err := c.Ready(); err != nil {
			t.Errorf("Ready() = %v", err)
		}
	})
}

// Only reloads are paced. A change at run time goes at once, even while a reload waits for its turn.
func TestRuntimeChangesAreNotPaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &fakeProxy{takes: time.Millisecond}
		c, out := run(t, p)
		c.Set(Config{Text: "a"}, time.Now())
		pass(5 * time.Millisecond)
		c.Set(Config{Text: "run 1"}, time.Now())
		pass(5 * time.Millisecond)
		c.Set(Config{Text: "run 2"}, time.Now())
		pass(5 * time.Millisecond)
		c.Set(Config{Text: "b"}, time.Now())
		pass(5 * time.Millisecond)
		if err := c.Ready(); err != nil {
			t.Errorf("Ready() = %v while a reload waits for a moment", err)
		}
		c.Set(Config{Text: "run 3"}, time.Now())
		pass(5 * time.Millisecond)
		c.Set(Config{Text: "c"}, time.Now())
		pass(time.Second)
		want := []string{"0s a", "5ms run 1", "10ms run 2", "20ms run 3", "201ms c"}
		if !slices.Equal(p.log, want) {
			t.Errorf("applied %q, want %q", p.log, want)
		}
		if strings.Contains(out.String(), "level=ERROR") || strings.Contains(out.String(), "repaired") {
			t.Errorf("to wait for the pace is no failure:\n%s", out)
		}
		if n := testutil.ToFloat64(c.metrics.leaving); n != 0 {
			t.Errorf("leaving = %v after the last reload", n)
		}
	})
}

// An Apply that finds itself too early may take until it is not.
func TestTooEarlyForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &fakeProxy{slow: time.Second}
		c, _ := run(t, p)
		c.Set(Config{Text: "a"}, time.Now())
		pass(5 * time.Millisecond)
		c.Set(Config{Text: "b"}, time.Now())
		pass(3 * time.Second)
		if p.running != "b" {
			t.Errorf("runs %q: b was never tried again", p.running)
		}
	})
}

// Check inspects the proxy at once, and does nothing before there is a text to compare with.
func TestCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &fakeProxy{}
		c, _ := run(t, p)
		c.Check()
		pass(time.Second)
		if len(p.log) != 0 {
			t.Errorf("applied %q before the first configuration", p.log)
		}
		c.Set(Config{Text: "run"}, time.Now())
		pass(time.Second)
		p.do(func() { p.running = "somebody else's" })
		c.Check()
		synctest.Wait()
		if p.running != "run" {
			t.Errorf("runs %q", p.running)
		}
	})
}

// Ready does not flap between a change and its being live. It reports a failure at once, and also a change that takes long.
func TestReadyDoesNotFlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &fakeProxy{takes: 20 * time.Millisecond}
		c, _ := run(t, p)
		c.Set(Config{Text: "a"}, time.Now())
		pass(time.Second)
		for i := range 200 { // reloads, most of which must wait
			c.Set(Config{Text: fmt.Sprint("text ", i)}, time.Now())
			for range 5 {
				if err := c.Ready(); err != nil {
					t.Fatalf("change %d: %v", i, err)
				}
				pass(7 * time.Millisecond)
			}
		}
		pass(time.Second)
		p.answer(ErrRefused)
		c.Set(Config{Text: "bad"}, time.Now())
		pass(25 * time.Millisecond)
		if err := c.Ready(); !errors.Is(err, ErrRefused) {
			t.Errorf("Ready() = %v after a refusal", err)
		}
		c.Set(Config{Text: "bad too"}, time.Now())
		if err := c.Ready(); !errors.Is(err, ErrRefused) {
			t.Errorf("Ready() = %v before the next one is tried", err)
		}
		p.do(func() { p.err, p.takes = nil, time.Minute })
		c.Set(Config{Text: "good"}, time.Now())
		pass(2 * time.Minute)
		if err := c.Ready(); err != nil {
			t.Errorf("Ready() = %v", err)
		}
		c.Set(Config{Text: "slow"}, time.Now())
		pass(3 * time.Second)
		if err := c.Ready(); err == nil {
			t.Error("ready, though nothing has come of the newest configuration for 3 s")
		}
		pass(2 * time.Minute)
	})
}

// The part of a refused text that was applied is logged, and a hold is logged once.
func TestPartlyApplied(t *testing.T) {
	now := time.Now()
	change := Result{Action: Runtime, Reason: "add app/b", Changes: []Change{{Backend: "app", Before: 1, After: 2, Added: 1}}}
	refused := fmt.Errorf("%w: no", ErrRefused)
	held := &HoldError{Backends: []string{"app"}, For: 20 * time.Second}
	theirs := &HoldError{Backends: []string{"app"}, File: "proxy.cfg"}
	const ms = time.Millisecond
	for _, tt := range []struct {
		name     string
		want     wanted
		reloaded time.Duration // ago
		res      Result
		err      error
		next     next
		about    time.Duration // next.wait, within a fifth
	}{
		{"live", wanted{}, time.Hour, change, nil, next{first: true}, 5 * time.Second},
		{"live still", wanted{live: true}, time.Hour, Result{Action: None}, nil, next{drift: true, first: true, since: now.Add(-ms)}, 5 * time.Second},
		{"not yet", wanted{}, 50 * ms, change, ErrNotYet, next{}, 150 * ms},
		{"refused", wanted{}, time.Hour, change, refused, next{failure: "configuration refused: no"}, time.Second},
		{"refused again", wanted{tried: true}, time.Hour, change, refused, next{failure: "configuration refused: no", since: now.Add(-ms)}, time.Second},
		{"refused, and the engine knows when to try again", wanted{}, time.Hour, change, &retryError{refused, time.Minute}, next{failure: "configuration refused: no"}, time.Minute},
		{"held back", wanted{}, time.Hour, change, held, next{failure: held.Error()}, 5 * time.Second},
		{"held back for a moment", wanted{}, time.Hour, change, &HoldError{Backends: []string{"app"}, For: ms}, next{failure: held.Error()}, ms},
		{"held back for good", wanted{}, time.Hour, Result{Action: None}, theirs, next{failure: theirs.Error()}, 5 * time.Second},
		{"held back for good, and away", wanted{}, time.Hour, Result{}, fmt.Errorf("%w; %w", ErrUnreachable, theirs), next{}, 100 * ms},
		{"not reachable, just now", wanted{}, time.Hour, Result{}, ErrUnreachable, next{}, 100 * ms},
		{"something else", wanted{}, time.Hour, Result{}, errors.New("no"), next{failure: "no"}, 100 * ms},
	} {
		p := newPace(200*ms, 5*time.Second)
		p.reloaded = now.Add(-tt.reloaded)
		tt.want.since = now.Add(-time.Second)
		if tt.next.since.IsZero() {
			tt.next.since = tt.want.since
		}
		got := p.after(tt.want, now.Add(-ms), now, tt.res, tt.err)
		if got.wait < tt.about*8/10 || got.wait > tt.about*12/10 {
			t.Errorf("%s: tried again in %v, want about %v", tt.name, got.wait, tt.about)
		}
		got.wait = 0
		if got != tt.next {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.next)
		}
		if again := p.after(tt.want, now, now, tt.res, tt.err); again.first || again.failure != "" {
			t.Errorf("%s: told twice", tt.name)
		}
	}
}
