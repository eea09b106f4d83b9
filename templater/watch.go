package templater

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/hashicorp/consul-template/dependency"
)

const (
	// answerTime is what a query may take beyond the time it was told to wait.
	answerTime = 10 * time.Second
	// spuriousPause bounds how often a query is repeated whose answers are no news, as consul-template does.
	spuriousPause = 100 * time.Millisecond
	// The pause after an error grows between these, with jitter, for ever.
	retryFirst, retryMost = 100 * time.Millisecond, 5 * time.Second
)

// news is what a watch tells: data for the templates, or how its queries go.
type news struct {
	from *watched
	has  bool // data is new
	data any
	err  error // the query failed
	well bool  // the first query that worked, or the first after an error
}

// watched is a dependency that is asked again and again, for ever, in a goroutine of its own.
type watched struct {
	dependency.Dependency
	key     string
	clients *dependency.ClientSet
	asked   *line    // its way to Consul; nil if it is not in Consul
	slot    *slot    // its right to block a connection; nil if it is not in Consul
	doubts  doubts   // how what it is told is judged
	next    uint64   // what the library waits for with what is not in Consul
	options settings // of all watches

	ctx    context.Context
	cancel context.CancelFunc
}

// settings are the same for all watches.
type settings struct {
	wait    time.Duration // how long a query may block
	once    bool          // the first answer is all: a query that blocks would go on at Consul when nobody waits any more
	tell    chan<- news
	library *dependency.ClientSet // for what is not in Consul
	consul  *consul
}

func newWatched(d dependency.Dependency, s settings, how doubts) (*watched, error) {
	w := &watched{Dependency: d, key: d.String(), clients: s.library, doubts: how, options: s}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	if d.Type() != dependency.TypeConsul {
		w.doubts = doubts{share: 100}
	} else {
		w.asked = &line{base: s.consul.transport, slots: s.consul.slots}
		var err error
		if w.clients, err = s.consul.clients(w.asked); err != nil {
			return nil, err
		}
		_, cheap := d.(*dependency.HealthServiceQuery)
		w.slot = s.consul.slots.newSlot(w.asked, cheap)
	}
	return w, nil
}

// stop is called once; run returns soon.
func (w *watched) stop() {
	w.cancel()
	w.Dependency.Stop()
}

// run asks until it is stopped.
func (w *watched) run() {
	if w.slot != nil {
		defer w.slot.release()
	}
	var (
		held         belief
		failed, well bool
		pause        = newPause()
	)
	for {
		began := time.Now()
		a, err := w.ask(&held, failed)
		switch {
		case w.ctx.Err() != nil || errors.Is(err, dependency.ErrStopped):
			return
		case errors.Is(err, errEvicted):
			continue
		case err != nil:
			failed = true
			if !w.say(news{err: err}) || !sleep(w.ctx, pause.NextBackOff()) {
				return
			}
			continue
		}
		pause.Reset()
		changed := held.take(a, failed, w.doubts, time.Now())
		if !w.say(news{has: changed, data: held.data, well: failed || !well}) {
			return
		}
		failed, well = false, true
		if w.options.once && held.answers > 0 {
			<-w.ctx.Done()
			return
		}
		if w.slot != nil {
			w.slot.answered(a.index, changed && held.answers > 1)
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

// say reports false if the watch was stopped. What is no news is not told.
func (w *watched) say(n news) bool {
	if !n.has && !n.well && n.err == nil {
		return w.ctx.Err() == nil
	}
	n.from = w
	if n.err != nil {
		n.err = fmt.Errorf("%w", n.err) // the library's errors log themselves with a stack trace
	}
	select {
	case w.options.tell <- n:
		return true
	case <-w.ctx.Done():
		return false
	}
}

// errEvicted is what ask returns when the watch's connection was given to another one.
var errEvicted = errors.New("waits without a connection from now on")

// ask makes one query, which blocks until there is news if that is possible.
func (w *watched) ask(held *belief, failed bool) (answer, error) {
	opts := dependency.QueryOptions{WaitIndex: held.index, WaitTime: held.patience(w.options.wait, time.Now())}
	if w.asked == nil {
		opts.WaitIndex = w.next
		if failed {
			opts.WaitIndex = 0
		}
		return w.fetch(opts)
	}
	if failed {
		opts.WaitIndex = 0 // answered at once, whether anything has changed or not
		// While there is no leader, any server's word is better than none.
		opts.AllowStale = held.answers == 0
	}
	if _, ok := w.Dependency.(*dependency.HealthServiceQuery); ok {
		// Keeps an agent from answering out of its streaming cache, which learns of a change 75 ms late.
		opts.Near = "_agent"
	}
	if opts.WaitIndex > 0 {
		var most time.Duration
		if opts.WaitTime < w.options.wait {
			most = opts.WaitTime
		}
		block, err := w.slot.wait(w.ctx, most)
		if err != nil {
			return answer{}, err
		}
		if !block {
			opts.WaitIndex = 0
		}
	}
	limit := answerTime
	if opts.WaitIndex > 0 {
		limit += longest(opts.WaitTime)
	}
	ctx, cancel := context.WithTimeout(w.ctx, limit)
	defer cancel()
	evicted := w.asked.begin(ctx, cancel)
	a, err := w.fetch(opts)
	switch {
	case err == nil:
	case evicted():
		return a, errEvicted
	case w.ctx.Err() != nil:
		return a, dependency.ErrStopped
	case ctx.Err() != nil:
		err = fmt.Errorf("%s: no answer in %s", w.key, limit)
	}
	a.filtered = w.asked.filtered
	return a, err
}

func (w *watched) fetch(opts dependency.QueryOptions) (answer, error) {
	data, meta, err := w.Fetch(w.clients, &opts)
	if err != nil {
		return answer{}, err
	}
	a := answer{data: unshared(data), none: data == nil && meta.BlockOnNil}
	if w.asked != nil {
		a.index = meta.LastIndex
	} else {
		w.next = meta.LastIndex // of Nomad's state; elsewhere it is the time
	}
	return a, nil
}

// unshared is data that nobody writes to: the library does so to a secret of Vault's when it renews that.
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

// longest is how long a query blocks at most that was told to wait: Consul adds a jitter of its own.
func longest(wait time.Duration) time.Duration { return wait + wait/16 }

// sleep reports false if ctx was done first.
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

// empty is a value like data that says that there is nothing.
func empty(data any) any {
	if data == nil {
		return nil
	}
	t := reflect.TypeOf(data)
	switch t.Kind() {
	case reflect.String:
		return nil // no such key
	case reflect.Slice:
		return reflect.MakeSlice(t, 0, 0).Interface()
	case reflect.Map:
		return reflect.MakeMap(t).Interface()
	case reflect.Pointer:
		return reflect.New(t.Elem()).Interface()
	default:
		return reflect.Zero(t).Interface()
	}
}
