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

// ErrNotYet is what Apply returns when only a reload brings the proxy to the text, and none may be done yet.
var ErrNotYet = errors.New("the newest configuration waits for the next reload")

// Action says what Apply did.
type Action string

// The actions of a Result.
const (
	None    Action = "none"    // the proxy already runs this text
	Runtime Action = "runtime" // the running workers took the changes
	Reload  Action = "reload"  // the proxy loaded the text into new workers, which serve
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
	Reason     string   // of a reload: why nothing less would do; of a change at run time: what it was
	Changes    []Change // sorted by backend
	OldWorkers int      // workers of earlier configurations that still finish their connections; as of a reload, or of a look
	Leaving    int      // servers that were removed and still finish their connections
}

// Config is what a proxy is to run.
type Config struct {
	Text string
	// Files are those that the text refers to, path to content. A path tells its content, so that another content makes
	// another text: two configurations of the same text are the same.
	Files map[string]string
}

// Proxy is a running proxy. All its methods are called from one goroutine.
type Proxy interface {
	// Apply returns when the proxy serves the configuration, or with the reason why it does not; then the proxy and its
	// configuration file are as they were before. Errors wrap ErrRefused or ErrUnreachable where that is the cause, and
	// the error is ErrNotYet if it takes a reload and mayReload is false. The same text again makes sure that the
	// proxy still runs it.
	Apply(ctx context.Context, c Config, mayReload bool) (Result, error)
	// Tend does what is left to do after an Apply and can wait. It returns soon, and says in what time to call it
	// again, 0 for not before the next Apply.
	Tend(ctx context.Context) time.Duration
	// Close finishes what an Apply has begun and nobody waits for. It is called once, at the end.
	Close()
}

// Options configure a Controller.
type Options struct {
	Proxy    Proxy
	Interval time.Duration // least time between two reloads; the first goes at once
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
	config  Config
	since   time.Time
	waiting bool // it was tried and did not reach the proxy
	live    bool // the proxy has run it
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

// Set makes config the configuration to run. It never blocks; one not applied yet is replaced. since is when the
// change that led to it was noticed, and what "live after" is measured from.
func (c *Controller) Set(config Config, since time.Time) {
	c.mu.Lock()
	if c.next != nil && c.next.since.Before(since) {
		since = c.next.since // the older change waits to go live with this one
	}
	c.next = &wanted{config: config, since: since}
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

// Check has the proxy looked at now: it may have been restarted.
func (c *Controller) Check() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Run applies what Set gives until ctx is done, and then returns nil.
func (c *Controller) Run(ctx context.Context) error {
	var (
		reloaded time.Time // when the proxy was last reloaded, or that was tried
		away     time.Time // since when the proxy is not reachable
		reported string    // the failure that is already in the log
		retry    <-chan time.Time
		tend     <-chan time.Time
		soon     = Delays(100*time.Millisecond, 5*time.Second)
		late     = Delays(15*time.Second, 10*time.Minute) // a refused text may cost the proxy something at every try
	)
	defer c.opts.Proxy.Close()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tend:
			tend = after(c.opts.Proxy.Tend(ctx))
			continue
		case <-c.wake:
		case <-retry:
		}
		retry = nil
		want, given := c.newest()
		if !given {
			continue
		}
		began := time.Now()
		res, err := c.opts.Proxy.Apply(ctx, want.config, time.Since(reloaded) >= c.opts.Interval)
		if ctx.Err() != nil {
			return nil
		}
		c.settle(err)
		tend = after(c.opts.Proxy.Tend(ctx))
		if errors.Is(err, ErrNotYet) {
			retry = time.After(c.opts.Interval - time.Since(reloaded)) // which may be over by now
			continue
		}
		if res.Action == Reload || errors.Is(err, ErrRefused) {
			reloaded = time.Now()
		}
		since := want.since
		if want.live && reported == "" {
			since = began // something took it away
		}
		c.metrics.observe(res, err, time.Since(since))
		if err == nil {
			c.report(res, time.Since(since), want.live && reported == "", reported != "")
			reported, away = "", time.Time{}
			soon.Reset()
			late.Reset()
			retry = after(c.opts.Check)
			continue
		}
		wait := soon.NextBackOff()
		if errors.Is(err, ErrRefused) {
			wait = late.NextBackOff()
		}
		retry = after(wait)
		if errors.Is(err, ErrUnreachable) {
			if away.IsZero() {
				away = time.Now()
			}
			if time.Since(away) < startTime {
				continue
			}
		}
		if err.Error() != reported {
			reported = err.Error()
			c.opts.Log.Error("proxy not brought to the newest configuration", "err", err, "retry_in", wait.Round(time.Millisecond))
		}
	}
}

// startTime is how long a proxy may take to start before it is said that it is not reachable.
const startTime = 5 * time.Second

// after is time.After, but never for no time.
func after(d time.Duration) <-chan time.Time {
	if d <= 0 {
		return nil
	}
	return time.After(d)
}

// newest is the text to try now; given is false before the first Set.
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

// settle records what became of the current text.
func (c *Controller) settle(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// The changes in a refused text are gone with it; in one that did not reach the proxy they still wait.
	c.current.waiting = err != nil && !errors.Is(err, ErrRefused)
	c.current.live = c.current.live || err == nil
	if c.next == nil {
		c.status = err
	}
}

func (c *Controller) report(res Result, after time.Duration, drift, recovered bool) {
	if res.Action == None {
		if recovered {
			c.opts.Log.Info("proxy runs the newest configuration again")
		}
		return
	}
	if drift {
		c.opts.Log.Warn("the proxy did not run the newest configuration any more: repaired", "action", string(res.Action), "reason", res.Reason)
	}
	live := fmt.Sprintf("live after %d ms", after.Milliseconds())
	for _, ch := range res.Changes {
		c.opts.Log.Info(ch.String()+", "+live, "backend", ch.Backend, "before", ch.Before, "after", ch.After,
			"added", ch.Added, "removed", ch.Removed, "action", string(res.Action))
	}
	if res.Action == Reload {
		c.opts.Log.Info("proxy reloaded, "+live, "reason", res.Reason, "old_workers", res.OldWorkers)
	} else if len(res.Changes) == 0 {
		c.opts.Log.Info("configuration changed, "+live, "action", string(res.Action), "reason", res.Reason)
	}
}

// Delays is an exponential backoff with jitter that never gives up.
func Delays(first, most time.Duration) *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.RandomizationFactor = first, most, 0.2
	b.Reset()
	return b
}
