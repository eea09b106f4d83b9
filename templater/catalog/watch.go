package catalog

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/hashicorp/consul-template/dependency"
)

const (
	// answerTime is how long a query may take beyond its wait.
	answerTime = 10 * time.Second
	// spuriousPause separates queries whose answers bring no change, as in consul-template.
	spuriousPause = 100 * time.Millisecond
	// The pause after an error grows from the first to the second, with jitter; retries never end.
	retryFirst, retryMost = 100 * time.Millisecond, 5 * time.Second
)

// Update is a watch's report: data for the templates, or the outcome of its queries.
type Update struct {
	Watch *Watch
	New   bool // Data is new
	Data  any
	Err   error // the query failed
	Well  bool  // the first query that succeeded, or the first after an error

	LeftOut      []string // why parts of the answer are not in Data, sorted
	LeftOutOther bool     // LeftOut has changed
}

// Options configure a watch.
type Options struct {
	Wait    time.Duration // how long a query may block
	Once    bool          // ask once: Consul would hold an abandoned blocking query
	Policy  Policy
	Updates chan<- Update
	Library *dependency.ClientSet // for Vault and Nomad
	Consul  *Client
}

// Watch queries a dependency until it is stopped.
type Watch struct {
	dependency.Dependency
	Key       string // the dependency's String
	options   Options
	clients   *dependency.ClientSet
	transport *transport // to Consul; nil if the dependency is elsewhere
	lease     *lease     // likewise
	next      uint64     // the index that the library waits for if the dependency is elsewhere

	ctx    context.Context
	cancel context.CancelFunc
}

// NewWatch returns a watch. It makes no query before Run.
func NewWatch(d dependency.Dependency, o Options) *Watch {
	w := &Watch{Dependency: d, Key: d.String(), options: o}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	if !w.InConsul() {
		w.clients, w.options.Policy = o.Library, Policy{VanishLimit: 100}
		return w
	}
	if w.Optional() { // unlike registrations, lost keys are not written again
		w.options.Policy = Policy{Grace: o.Policy.Grace, VanishLimit: 100, ByIndex: true}
	}
	w.lease = o.Consul.limiter.newLease(ofService(d))
	w.transport = &transport{base: o.Consul.transport, lease: w.lease}
	return w
}

// InConsul reports whether the dependency is in Consul. If not, Run may not notice a stop at once.
func (w *Watch) InConsul() bool { return w.Type() == dependency.TypeConsul }

// Optional reports whether texts do without the dependency if it is unavailable, as with a token that lacks the right.
func (w *Watch) Optional() bool {
	_, is := w.Dependency.(*Paused)
	return is
}

// Stop ends Run soon. Call it once.
func (w *Watch) Stop() {
	w.cancel()
	w.Dependency.Stop()
}

// Run queries the dependency until the watch is stopped.
func (w *Watch) Run() {
	if w.lease != nil {
		defer w.lease.release()
		defer func() { w.options.Consul.nodes.forget(w.lease.asked()) }()
	}
	var (
		now          state
		failed, well bool
		leftOut      []string
		pause        = newPause()
	)
	for {
		began := time.Now()
		a, err := w.ask(now, failed)
		if err == nil && w.options.Policy.refuses(now, a) {
			err = &HiddenError{w.Key}
		}
		switch {
		case w.ctx.Err() != nil:
			return
		case err == errAnew: // with the same index: the known data is still good
			if !sleep(w.ctx, rand.N(anewWithin)) {
				return
			}
			continue
		case err != nil:
			failed = true
			if !w.report(Update{Err: err}) || !sleep(w.ctx, pause.NextBackOff()) {
				return
			}
			continue
		}
		pause.Reset()
		before := now
		a.left = w.left(now, a)
		now = w.options.Policy.next(now, a, failed, time.Now())
		if w.lease != nil {
			w.options.Consul.nodes.note(w.lease.asked(), now.trusted)
		}
		changed := now.differs(before)
		if !changed { // keep one copy
			now.trusted = before.trusted
			if now.vanished == nil {
				now.believed = before.trusted
			}
		}
		u := Update{New: changed, Data: now.trusted, Well: failed || !well, LeftOut: a.leftOut, LeftOutOther: !slices.Equal(a.leftOut, leftOut)}
		if !w.report(u) {
			return
		}
		leftOut = a.leftOut
		failed, well = false, true
		if w.options.Once && now.mode != unanswered {
			<-w.ctx.Done()
			return
		}
		if w.lease != nil {
			w.lease.answered(a.index, changed && before.mode != unanswered)
		}
		if !changed && !sleep(w.ctx, spuriousPause-time.Since(began)) {
			return
		}
	}
}

func newPause() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.Multiplier = retryFirst, retryMost, 2
	return b
}

// report sends an update if it brings news. It returns false if the watch was stopped.
func (w *Watch) report(u Update) bool {
	if !u.New && !u.Well && !u.LeftOutOther && u.Err == nil {
		return w.ctx.Err() == nil
	}
	u.Watch = w
	if u.Err != nil {
		u.Err = fmt.Errorf("%w", u.Err) // the library's errors print a stack trace
	}
	select {
	case w.options.Updates <- u:
		return true
	case <-w.ctx.Done():
		return false
	}
}

// ask makes one query, which blocks until data changes if possible.
func (w *Watch) ask(now state, failed bool) (answer, error) {
	opts := dependency.QueryOptions{WaitIndex: now.index, WaitTime: now.patience(w.options.Wait, time.Now())}
	if w.transport == nil {
		opts.WaitIndex = w.next
		if failed {
			opts.WaitIndex = 0
		}
		return w.fetch(opts)
	}
	if w.clients == nil {
		var err error
		if w.clients, err = w.options.Consul.clientSet(w.transport); err != nil {
			return answer{}, err
		}
	}
	if failed {
		opts.WaitIndex = 0 // get an answer at once, changed or not
		// Without a leader, any server's answer is better than none.
		opts.AllowStale = now.mode == unanswered
	}
	if ofService(w.Dependency) {
		// Bypasses the agent's streaming cache, which learns of a change 75 ms late.
		opts.Near = "_agent"
	}
	if opts.WaitIndex > 0 {
		most := 10 * lookEvery
		if opts.WaitTime < w.options.Wait {
			most = opts.WaitTime
		}
		if !w.lease.await(w.ctx, most) {
			opts.WaitIndex = 0
		}
	}
	limit := answerTime
	if opts.WaitIndex > 0 {
		limit += longest(opts.WaitTime)
	}
	ctx, cancel := w.options.Consul.anew.context(w.ctx, limit)
	defer cancel()
	w.transport.ctx, w.transport.filtered = ctx, false
	a, err := w.fetch(opts)
	if err != nil && isAnew(ctx) {
		return answer{}, errAnew
	}
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("%s: no answer in %s", w.Key, limit)
	}
	a.filtered = w.transport.filtered
	return a, err
}

func (w *Watch) fetch(opts dependency.QueryOptions) (answer, error) {
	data, meta, err := w.Fetch(w.clients, &opts)
	if err != nil {
		return answer{}, err
	}
	a := answer{data: unshared(data), none: data == nil && meta.BlockOnNil}
	if w.transport != nil {
		a.index = meta.LastIndex
		a.data, a.leftOut = clean(a.data)
		slices.Sort(a.leftOut)
	} else {
		w.next = meta.LastIndex // Nomad's state index; a time for other sources
	}
	return a, nil
}

// unshared returns data that nothing else writes to: the library modifies a Vault secret when it renews it.
func unshared(data any) any {
	s, ok := data.(*dependency.Secret)
	if !ok || s == nil {
		return data
	}
	c := *s
	if s.Auth != nil {
		auth := *s.Auth
		c.Auth = &auth
	}
	if s.WrapInfo != nil {
		wrap := *s.WrapInfo
		c.WrapInfo = &wrap
	}
	return &c
}

// longest returns how long a query with this wait blocks at most: Consul adds jitter.
func longest(wait time.Duration) time.Duration { return wait + wait/16 }

// sleep returns false if ctx was done first.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
