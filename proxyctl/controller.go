// Package proxyctl brings a running proxy to a rendered configuration. The newest configuration wins, the first change is applied
// at once, and bursts are coalesced. What the proxy refuses never replaces what it runs, and stops nothing else. A Controller
// decides when to act, an Engine how, and a driver covers what differs between proxies.
package proxyctl

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"
)

// Proxy is a running proxy. Apply is called from one goroutine, Run once from another, and Servers from any.
type Proxy interface {
	// Apply returns once the proxy serves the configuration, or with the reason why it does not. After an error, the proxy and
	// its configuration file are as before, except for the servers named in the Result. Errors wrap ErrRefused or ErrUnreachable
	// where that is the cause. The error is ErrNotYet if the change takes a reload and mayReload is false, and a HoldError if the
	// configuration is not trusted yet. Applying the same text again makes sure that the proxy still runs it.
	Apply(ctx context.Context, c Config, mayReload bool) (Result, error)
	// Run does the work that Apply leaves for later, until ctx is done.
	Run(ctx context.Context)
	// Servers asks the proxy for all servers it has, including draining ones. The answer is what the proxy runs, whatever the
	// text says.
	Servers(ctx context.Context) ([]Server, error)
	// Close finishes what Apply left unfinished. It is called once, at the end.
	Close()
}

// Options configure a Controller.
type Options struct {
	Proxy    Proxy
	Interval time.Duration // minimum time between two reloads; the first goes at once
	Check    time.Duration // how often to check that the proxy still runs the newest text; 0 = 5 s
	Socket   string        // path to reach the proxy, "" if there is none; the proxy is inspected when it appears
	Log      *slog.Logger
	Metrics  prometheus.Registerer // may be nil

	// Live, if not nil, is called from Run's goroutine after each change of the proxy's servers, once the proxy is seen to have
	// them. This covers changes at run time, reloads, repairs, and the applicable part of a text that was refused or waits. It is
	// not called for servers that the proxy already had when berth started. It must not block.
	Live func([]Change)
	// Changed, if not nil, is called from Run's goroutine when Status changes. It must not block.
	Changed func()
}

// Controller keeps a proxy at the newest configuration given to it.
type Controller struct {
	opts    Options
	wake    chan struct{}
	metrics metrics

	mu      sync.Mutex
	next    *wanted   // newest text, until it is tried
	current wanted    // the text being tried, or tried last
	failure error     // why the proxy does not run the text tried last
	pending time.Time // when the oldest waiting text not known to fail was set; zero if none waits
	status  Status
}

type wanted struct {
	config  Config
	since   time.Time
	set     time.Time
	tried   bool
	waiting bool // it was tried but did not reach the proxy
	live    bool // the proxy has run it
}

// New returns a Controller. Run does the work.
func New(opts Options) *Controller {
	if opts.Check == 0 {
		opts.Check = 5 * time.Second
	}
	return &Controller{
		opts:    opts,
		wake:    make(chan struct{}, 1),
		metrics: newMetrics(opts.Metrics),
		failure: errors.New("no configuration was rendered yet"),
	}
}

// Set makes config the configuration to run. It never blocks, and replaces a configuration that is not applied yet. since is when
// the change behind it was noticed; "live after" counts from there.
func (c *Controller) Set(config Config, since time.Time) {
	c.mu.Lock()
	if c.next != nil && c.next.since.Before(since) {
		since = c.next.since // the older change goes live with this one
	}
	now := time.Now()
	c.next = &wanted{config: config, since: since, set: now}
	if c.pending.IsZero() {
		c.pending = now
	}
	c.mu.Unlock()
	c.Check()
}

// tolerance is how long a change may take before Ready reports it as not live. Usually it takes less.
const tolerance = 2 * time.Second

// Ready returns nil if the proxy runs the newest configuration or is about to, otherwise the reason why it does not.
func (c *Controller) Ready() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failure == nil && !c.pending.IsZero() && time.Since(c.pending) > tolerance {
		return errors.New("the newest configuration is not applied yet")
	}
	return c.failure
}

// Check has the proxy inspected now, because it may have been restarted.
func (c *Controller) Check() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Run applies what Set is given until ctx is done, then returns nil.
func (c *Controller) Run(ctx context.Context) error {
	background, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { c.opts.Proxy.Run(background) })
	defer func() {
		cancel()
		running.Wait()
		c.opts.Proxy.Close()
	}()
	var (
		pace  = newPace(c.opts.Interval, c.opts.Check)
		retry <-chan time.Time
		look  <-chan time.Time // at the socket
		seen  os.FileInfo      // of the socket, when the proxy was last found unreachable
	)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
		case <-retry:
		case <-look:
			if now := stat(c.opts.Socket); !appeared(seen, now) {
				look = time.After(lookTime)
				continue
			}
			pace.soon.Reset() // it may not answer at once
		}
		retry, look = nil, nil
		want, given := c.newest()
		if !given {
			continue
		}
		began := time.Now()
		seen = stat(c.opts.Socket)
		res, err := c.opts.Proxy.Apply(ctx, want.config, pace.mayReload(began))
		if ctx.Err() != nil {
			return nil
		}
		c.settle(err)
		next := pace.after(want, began, time.Now(), res, err)
		retry = time.After(max(next.wait, 0))
		if errors.Is(err, ErrUnreachable) && c.opts.Socket != "" {
			look = time.After(lookTime)
		}
		c.note(next, res, err)
		if !errors.Is(err, ErrNotYet) || res.Action != "" {
			c.metrics.observe(res, err, time.Since(next.since))
		}
		c.report(next, res, err)
	}
}

// lookTime is how often to check whether the socket of an unreachable proxy has appeared.
const lookTime = 50 * time.Millisecond

func stat(path string) os.FileInfo {
	info, err := os.Stat(path)
	if err != nil {
		return nil
	}
	return info
}

// appeared reports whether the socket is new: a proxy that starts creates its own.
func appeared(before, now os.FileInfo) bool {
	return now != nil && (before == nil || !os.SameFile(before, now) || !before.ModTime().Equal(now.ModTime()))
}

// pace remembers how earlier Applies went and decides when the next one is due.
type pace struct {
	interval, check time.Duration

	reloaded time.Time     // when the proxy was last reloaded, or a reload was tried
	away     time.Time     // since when the proxy is unreachable
	failing  time.Time     // since when every Apply failed
	reported string        // the failure that was logged last
	repeat   time.Duration // how long a failure must last to be logged again
	told     bool          // whether the first success since the start was logged
	soon     *backoff.ExponentialBackOff
	seldom   *backoff.ExponentialBackOff // for a refused text: the cause may pass (a name, a port)
}

func newPace(interval, check time.Duration) *pace {
	return &pace{
		interval: interval, check: check,
		soon:   Delays(100*time.Millisecond, 5*time.Second),
		seldom: Delays(time.Second, 15*time.Second),
	}
}

// next describes what follows from an Apply.
type next struct {
	wait      time.Duration // until the same text is tried again
	since     time.Time     // when the change that is live now was noticed
	drift     bool          // the proxy had lost what it ran
	recovered bool          // a logged failure is over
	first     bool          // the first text since the start is live
	failure   string        // to be logged now, "" if there is none or it was logged before
	lasts     time.Duration // how long everything has failed, set when that is logged again or over
}

func (p *pace) mayReload(now time.Time) bool { return now.Sub(p.reloaded) >= p.interval }

// after decides what follows from an Apply of want that ran from began to now.
func (p *pace) after(want wanted, began, now time.Time, res Result, err error) next {
	n := next{since: want.since}
	if errors.Is(err, ErrNotYet) {
		n.wait = p.interval - now.Sub(p.reloaded) // possibly over by now
		return n
	}
	if res.Action == Reload || errors.Is(err, ErrRefused) {
		p.reloaded = now
	}
	if want.live && p.reported == "" {
		n.drift, n.since = true, began // the proxy lost what it ran
	}
	if err != nil && want.tried && !want.waiting {
		n.since = began // the part of a refused text that went live now was not live before
	}
	if err == nil {
		n.wait, n.recovered, n.first = p.check, p.reported != "", !p.told
		if n.recovered {
			n.lasts = now.Sub(p.failing)
		}
		p.reported, p.away, p.failing, p.told = "", time.Time{}, time.Time{}, true
		p.soon.Reset()
		p.seldom.Reset()
		return n
	}
	n.drift = false
	var (
		held  *HoldError
		retry *retryError
	)
	switch {
	case errors.As(err, &held) && held.For > 0:
		n.wait = min(held.For, p.check)
	case held != nil && !errors.Is(err, ErrUnreachable):
		n.wait = p.check
	case errors.As(err, &retry):
		n.wait = retry.after
	case errors.Is(err, ErrRefused):
		n.wait = p.seldom.NextBackOff()
	default:
		n.wait = p.soon.NextBackOff()
	}
	if !errors.Is(err, ErrUnreachable) {
		p.away = time.Time{}
	} else if p.away.IsZero() {
		p.away = now
	}
	if p.failing.IsZero() {
		p.failing, p.repeat = now, time.Minute
	}
	starting := !p.away.IsZero() && now.Sub(p.away) < startTime
	lasts := now.Sub(p.failing)
	switch text := err.Error(); {
	case starting:
		return n
	case text != p.reported:
		n.failure, p.reported = text, text
	case lasts >= p.repeat:
		n.failure, n.lasts = text, lasts
	default:
		return n
	}
	for p.repeat <= lasts { // after five minutes, ten, twenty, forty, and then every hour
		p.repeat = max(5*time.Minute, min(2*p.repeat, p.repeat+time.Hour))
	}
	return n
}

// startTime is how long a proxy may take to start before it is reported as unreachable.
const startTime = 5 * time.Second

// after is like time.After, but returns nil for d <= 0.
func after(d time.Duration) <-chan time.Time {
	if d <= 0 {
		return nil
	}
	return time.After(d)
}

// newest returns the text to try now; given is false before the first Set.
func (c *Controller) newest() (want wanted, given bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next != nil {
		if c.current.waiting && c.current.since.Before(c.next.since) {
			c.next.since = c.current.since
		}
		c.current, c.next = *c.next, nil
	}
	return c.current, !c.current.since.IsZero()
}

// settle records the outcome for the current text.
func (c *Controller) settle(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// The changes in a refused text are dropped with it. Those in a text that did not reach the proxy still wait.
	c.current.waiting = err != nil && !errors.Is(err, ErrRefused)
	c.current.tried, c.current.live = true, c.current.live || err == nil
	if errors.Is(err, ErrNotYet) {
		return // it waits and may go live soon
	}
	c.pending = time.Time{}
	if c.next != nil {
		c.pending = c.next.set
	}
	if err == nil || c.next == nil {
		c.failure = err
	}
}

func (c *Controller) report(n next, res Result, err error) {
	var lasted []any
	if n.lasts >= time.Second {
		lasted = []any{"for", n.lasts.Round(time.Second)}
	}
	if n.failure != "" {
		tell, what := c.opts.Log.Error, "cannot bring the proxy to the newest configuration, trying again"
		args := []any{"err", err, "retry_in", n.wait.Round(time.Millisecond)}
		var held *HoldError
		if errors.As(err, &held) {
			tell, what, args = c.opts.Log.Warn, "the newest configuration is on hold", []any{"err", err}
			if held.For > 0 {
				args = append(args, "at_most", held.For.Round(time.Second))
			}
		}
		tell(what, append(args, lasted...)...)
	}
	if res.Action != None && res.Action != "" {
		c.reportChange(n, res)
	}
	if n.first || n.recovered {
		c.opts.Log.Info("the proxy runs the newest configuration", append(lasted, "backends", res.Backends, "servers", res.Servers)...)
	}
}

func (c *Controller) reportChange(n next, res Result) {
	if n.drift && !n.recovered {
		c.opts.Log.Warn("the proxy no longer ran the newest configuration: repaired", "action", string(res.Action), "reason", res.Reason)
	}
	live := fmt.Sprintf("live after %d ms", time.Since(n.since).Milliseconds())
	took := time.Since(n.since).Round(time.Millisecond)
	for _, ch := range res.Changes {
		c.opts.Log.Info(ch.String()+", "+live, "backend", ch.Backend, "before", ch.Before, "after", ch.After,
			"added", ch.Added, "removed", ch.Removed, "action", string(res.Action), "took", took)
	}
	if res.Action == Reload {
		c.opts.Log.Info("proxy reloaded, "+live, "reason", res.Reason, "old_workers", res.OldWorkers, "took", took)
	} else if len(res.Changes) == 0 {
		c.opts.Log.Info("configuration changed, "+live, "action", string(res.Action), "reason", res.Reason, "took", took)
	}
}

// Delays returns an exponential backoff with jitter that never gives up.
func Delays(first, most time.Duration) *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.RandomizationFactor = first, most, 0.2
	b.Reset()
	return b
}
