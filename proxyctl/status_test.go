package proxyctl

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// controlled is a Controller over an Engine over a fakeDriver. It runs until the test ends.
type controlled struct {
	*harness
	*Controller
	live    [][]Change // what Live was called with
	changed int        // calls of Changed
}

// control starts a Controller, or another one after a restart of berth.
func (r *harness) control() *controlled {
	c := &controlled{harness: r}
	r.start()
	c.Controller = New(Options{
		Proxy: r.engine, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
		Live: func(ch []Change) { c.live = append(c.live, ch) }, Changed: func() { c.changed++; c.Status() },
	})
	ctx, cancel := context.WithCancel(r.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	r.Cleanup(func() { cancel(); <-done })
	return c
}

// set has a text tried, and returns the resulting Status.
func (c *controlled) set(text string) Status {
	c.Set(Config{Text: text}, time.Now())
	pass(time.Second)
	return c.Status()
}

func (c *controlled) look() Status {
	c.Check()
	pass(time.Second)
	return c.Status()
}

// generation returns the mark of a text as in Status.
func generation(text string) string { return (&fakeDriver{}).mark(text).Generation.Text }

// Status reports what runs, since when and how. A check that finds nothing to do does not change it.
func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newHarness(t).control()
		if got := c.Status(); got != (Status{}) {
			t.Errorf("before the first text: %+v", got)
		}
		began := time.Now()
		got := c.set(one)
		want := Status{Generation: generation(one), Since: began, Action: Reload, Reason: "first configuration by berth", OldWorkers: 2, Backends: 2, Servers: 2}
		if got != want {
			t.Errorf("after the first text:\n%+v, want\n%+v", got, want)
		}
		changed := c.changed
		want.OldWorkers = 1
		if got := c.look(); got != want {
			t.Errorf("after a look:\n%+v, want\n%+v", got, want)
		}
		if c.look(); c.changed != changed+1 {
			t.Errorf("Changed was called %d times for looks of which one told something new", c.changed-changed)
		}
		now := time.Now()
		want = Status{Generation: generation(two), Since: now, Action: Runtime, Reason: "add app/b", OldWorkers: 1, Backends: 2, Servers: 3}
		if got := c.set(two); got != want {
			t.Errorf("after a change at run time:\n%+v, want\n%+v", got, want)
		}
		if got := c.set("bind\napp: a b\nweb:\n"); got.Backends != 1 || got.Servers != 2 {
			t.Errorf("after the last server of a backend has gone: %+v", got)
		}
		if n := testutil.ToFloat64(c.metrics.generations); n != 3 {
			t.Errorf("%v generations, want 3", n)
		}
		if got, want := testutil.ToFloat64(c.metrics.generationTime), float64(c.Status().Since.Unix()); got != want {
			t.Errorf("live since %v, want %v", got, want)
		}
	})
}

// Undoing someone else's change counts as a repair. The restored servers are not counted twice.
func TestStatusOfDrift(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newHarness(t).control()
		c.set(two)
		c.live, c.fakeDriver.live["app"] = nil, []string{"a"}
		repaired := time.Now()
		got := c.look()
		if got.Drifts != 1 || got.Backends != 2 || got.Servers != 3 || got.Since != repaired || got.Action != Runtime || got.Failure != "" {
			t.Errorf("after a repair: %+v", got)
		}
		if testutil.ToFloat64(c.metrics.drifts) != 1 || testutil.ToFloat64(c.metrics.generationTime) != float64(repaired.Unix()) {
			t.Error("the metrics do not tell of it")
		}
	})
}

// A new berth finds what the proxy runs: nothing has become live.
func TestStatusAfterRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newHarness(t)
		r.hasText(two)
		c := r.control()
		got := c.set(two)
		if got.Generation != generation(two) || got.Backends != 2 || got.Servers != 3 || got.Action != None || got.Failure != "" {
			t.Errorf("%+v", got)
		}
		if len(c.live) != 0 {
			t.Errorf("told of servers that the proxy had: %+v", c.live)
		}
		if n := testutil.ToFloat64(c.metrics.generations); n != 0 {
			t.Errorf("%v generations have become live", n)
		}
	})
}

// A text that makes no difference to the running proxy is still another generation.
func TestStatusOfTheSameServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newHarness(t).control()
		c.set(one)
		now := time.Now()
		again := one + "\n"
		if got := c.set(again); got.Generation != generation(again) || got.Since != now || got.Servers != 2 {
			t.Errorf("%+v", got)
		}
	})
}

// The section at fault is reported as long as the text is refused, even if other servers come and go and its lines move.
func TestStatusAtFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newHarness(t).control()
		c.set(one)
		c.elsewise = fmt.Errorf("%w by the proxy: line 3", ErrRefused)
		if got := c.set("bind\nmore\nweb: x\napp: a\n"); got.AtFault != "web" {
			t.Errorf("%+v", got)
		}
		// The same lines in another order are another text. With other servers, it is not shown to the proxy again for a while.
		c.elsewise = fmt.Errorf("%w by the proxy: line 4", ErrRefused)
		before := c.loads
		c.Set(Config{Text: "bind\nmore\nweb: x y\napp: a b\n"}, time.Now())
		synctest.Wait()
		if got := c.Status(); got.AtFault != "web" || got.Failure == "" || c.loads != before {
			t.Errorf("%d reloads more; %+v", c.loads-before, got)
		}
		c.elsewise = fmt.Errorf("%w by the proxy: no word of whose", ErrRefused)
		if got := c.set("bind\nmuch\nweb: x\napp: a\n"); got.AtFault != "" || got.Failure == "" {
			t.Errorf("%+v", got)
		}
		c.elsewise = nil
		if got := c.set(one); got.AtFault != "" || got.Failure != "" {
			t.Errorf("%+v", got)
		}
	})
}

// A failure has a start time and is reported until it is over. What was still applied counts.
func TestStatusOfRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newHarness(t).control()
		c.set(one)
		c.live = nil
		began := time.Now()
		got := c.set("bind\nbogus\napp: a b\nweb: x\n")
		if !strings.Contains(got.Failure, "bogus") || got.Failing != began || got.Refusals != 1 || got.Servers != 3 || got.Action != Runtime {
			t.Errorf("%+v", got)
		}
		if want := "[[app: 1 → 2 servers]]"; fmt.Sprint(c.live) != want {
			t.Errorf("Live was told %v, want %s", c.live, want)
		}
		pass(time.Minute)
		if got := c.Status(); got.Refusals != 1 || got.Failing != began || testutil.ToFloat64(c.metrics.refusals) != 1 {
			t.Errorf("a minute later: %+v", got)
		}
		if got := c.set(two); got.Failure != "" || !got.Failing.IsZero() || got.AtFault != "" || got.Servers != 3 || got.Refusals != 1 {
			t.Errorf("when it is over: %+v", got)
		}
		c.down = errors.Join(ErrUnreachable)
		if got := c.look(); got.Failure == "" || got.Refusals != 1 || got.Generation != generation(two) {
			t.Errorf("when it is away: %+v", got)
		}
	})
}
