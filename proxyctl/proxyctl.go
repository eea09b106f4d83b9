// Package proxyctl brings a running proxy to a rendered configuration: the newest one wins, the first change goes
// at once, bursts are coalesced, and what the proxy refuses never replaces what it runs.
package proxyctl

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"
)

// ErrRefused marks an error that lies in the configuration itself: the proxy, or a check before it, said no.
// Trying the same text again soon is of no use.
var ErrRefused = errors.New("configuration refused")

// ErrUnreachable marks an error that lies in the way to the proxy: it is not running or its socket is not there.
var ErrUnreachable = errors.New("proxy not reachable")

// Action says what Apply did.
type Action string

// The actions of a Result.
const (
	None   Action = "none"   // the proxy already runs this text
	Reload Action = "reload" // the proxy loaded the text into a new worker, which serves
)

// Change is what became of the servers of one backend.
type Change struct {
	Backend        string
	Before, After  int // number of servers
	Added, Removed int
}

// String is the sentence an operator reads: "app: 2 → 5 servers".
func (c Change) String() string {
	servers := "servers"
	if c.After == 1 {
		servers = "server"
	}
	if c.Before == c.After {
		return fmt.Sprintf("%s: %d %s, %d replaced or changed", c.Backend, c.After, servers, max(c.Added, c.Removed))
	}
	return fmt.Sprintf("%s: %d → %d %s", c.Backend, c.Before, c.After, servers)
}

// Result is what Apply did, read back from the proxy.
type Result struct {
	Action     Action
	Changes    []Change // sorted by backend
	OldWorkers int      // workers of earlier configurations that still finish their connections
}

// Proxy is a running proxy. Apply returns when the proxy serves the text, or with the reason why it does not; then the
// proxy and its configuration file are as they were before. Errors wrap ErrRefused or ErrUnreachable where that is
// the cause. It is called from one goroutine.
type Proxy interface {
	Apply(ctx context.Context, text string) (Result, error)
}

// Options configure a Controller.
type Options struct {
	Proxy    Proxy
	Interval time.Duration // least time between two changes of the proxy; the first goes at once
	Check    time.Duration // how often to see whether the proxy still runs the newest text; 0 = 5 s
	Log      *slog.Logger
	Metrics  prometheus.Registerer // may be nil
}

// Controller keeps a proxy at the newest configuration it was given.
type Controller struct {
	opts    Options
	wake    chan struct{}
	metrics metrics

	mu      sync.Mutex
	next    *wanted // newest text given, until it is tried
	current wanted  // what is tried, or was last
	status  error   // nil when the proxy runs the newest text
}

type wanted struct {
	text    string
	since   time.Time
	waiting bool // it was tried and did not reach the proxy
}

// New returns a Controller; Run does the work.
func New(opts Options) *Controller {
	if opts.Check == 0 {
		opts.Check = 5 * time.Second
	}
	return &Controller{
		opts:    opts,
		wake:    make(chan struct{}, 1),
		metrics: newMetrics(opts.Metrics),
		status:  errors.New("no configuration was rendered yet"),
	}
}

// Set makes text the configuration to run. It never blocks; a text not applied yet is replaced. since is when the
// change that led to text was noticed, and what "live after" is measured from.
func (c *Controller) Set(text string, since time.Time) {
	c.mu.Lock()
	if c.next != nil && c.next.since.Before(since) {
		since = c.next.since // the older change waits to go live with this one
	}
	c.next = &wanted{text: text, since: since}
	c.status = errors.New("the newest configuration is not applied yet")
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Ready is nil when the proxy runs the newest configuration, else the reason why it does not.
func (c *Controller) Ready() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

// Run applies what Set gives until ctx is done, and then returns nil.
func (c *Controller) Run(ctx context.Context) error {
	var (
		last     time.Time // when the proxy was last changed, or a change tried
		reported string    // the failure that is already in the log
		retry    <-chan time.Time
		soon     = delays(100*time.Millisecond, 5*time.Second)
		late     = delays(15*time.Second, 10*time.Minute) // a refused text may cost the proxy something at every try
	)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
			late.Reset()
		case <-retry:
		}
		if !sleep(ctx, c.opts.Interval-time.Since(last)) {
			return nil
		}
		retry = nil
		want, first := c.newest()
		began := time.Now()
		res, err := c.opts.Proxy.Apply(ctx, want.text)
		if ctx.Err() != nil {
			return nil
		}
		if res.Action != None {
			last = time.Now()
		}
		c.settle(err)
		since := want.since
		if !first && reported == "" {
			since = began // it was live already, and something took it away
		}
		c.metrics.observe(res, err, time.Since(since))
		if err == nil {
			c.report(res, time.Since(since), first, reported != "")
			reported = ""
			soon.Reset()
			late.Reset()
			retry = time.After(c.opts.Check)
			continue
		}
		wait := soon.NextBackOff()
		if errors.Is(err, ErrRefused) {
			wait = late.NextBackOff()
			last = time.Now()
		}
		retry = time.After(wait)
		if err.Error() != reported {
			reported = err.Error()
			c.opts.Log.Error("proxy not changed, it keeps what it runs", "err", err, "retry_in", wait.Round(time.Millisecond))
		}
	}
}

// newest is the text to try now, and whether it is tried for the first time.
func (c *Controller) newest() (want wanted, first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.wake: // of what came while the pace was kept
	default:
	}
	if c.next != nil {
		if c.current.waiting && c.current.since.Before(c.next.since) {
			c.next.since = c.current.since
		}
		c.current, c.next = *c.next, nil
		return c.current, true
	}
	return c.current, false
}

// settle records what became of the current text.
func (c *Controller) settle(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// The changes in a refused text are gone with it; in one that did not reach the proxy they still wait.
	c.current.waiting = err != nil && !errors.Is(err, ErrRefused)
	if c.next == nil {
		c.status = err
	}
}

func (c *Controller) report(res Result, after time.Duration, first, recovered bool) {
	if res.Action != None && !first && !recovered {
		c.opts.Log.Warn("the proxy did not run the newest configuration any more: repaired", "action", string(res.Action))
	}
	live := fmt.Sprintf("live after %d ms", after.Milliseconds())
	for _, ch := range res.Changes {
		c.opts.Log.Info(ch.String()+", "+live, "backend", ch.Backend, "before", ch.Before, "after", ch.After,
			"added", ch.Added, "removed", ch.Removed, "action", string(res.Action))
	}
	switch {
	case len(res.Changes) > 0:
	case res.Action != None:
		c.opts.Log.Info("configuration changed, "+live, "action", string(res.Action))
	case recovered:
		c.opts.Log.Info("proxy runs the newest configuration again")
	}
}

// delays is an exponential backoff with jitter that never gives up.
func delays(first, most time.Duration) *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.RandomizationFactor = first, most, 0.2
	b.Reset()
	return b
}

// sleep waits for d and says whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
