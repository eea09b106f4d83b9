package group

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
	"golang.org/x/time/rate"

	"berth/registrar/group/store"
	"berth/registrar/retry"
)

const (
	// watchTime is how long a blocking query may block. It is short, because a query whose answer is lost blocks until its
	// deadline.
	watchTime = 15 * time.Second
	// callTime is the deadline of all other calls to Consul, and the extra time of a blocking query.
	callTime = 3 * time.Second
	// idle is the pause after a quick answer that still lists no files. Without files, every write of any key causes such an
	// answer.
	idle = 500 * time.Millisecond
)

// lock is the value in Consul of the group's lock.
type lock struct {
	store.Roll
	index   uint64 // of the key's last change, 0 = no such key
	session string // session of the holder
}

// answer is an answer from Consul. One with a greater number was asked for later, and so is not older.
type answer[T any] struct {
	number uint64
	value  T
}

// latest is a channel that holds the last value put by its only sender.
type latest[T any] chan T

func (l latest[T]) put(v T) {
	select {
	case <-l:
	default:
	}
	l <- v
}

// watch keeps the result of read current in news. It reads again when the index returned by wait moves, unless nothing
// exists, as before. An error changes nothing. An index that goes backwards does not mean a loss: that of a prefix does so
// when a key is deleted.
func watch[T any](ctx context.Context, a *Applier, what string, idle time.Duration, wait wait,
	read func(context.Context) (answer[T], error), news latest[answer[T]]) {
	var (
		index   uint64
		nothing bool // last time
		delays  = retry.Delays()
		limit   = rate.NewLimiter(rate.Every(100*time.Millisecond), 10)
	)
	for limit.Wait(ctx) == nil {
		sent := time.Now()
		asking, cancel := context.WithTimeout(ctx, watchTime+watchTime/16+callTime)
		there, meta, err := wait((&api.QueryOptions{WaitIndex: index, WaitTime: watchTime}).WithContext(asking))
		cancel()
		if err == nil && meta.LastIndex == index && index != 0 {
			continue
		}
		still := err == nil && nothing && !there
		var now answer[T]
		if err == nil && !still {
			now, err = read(ctx)
		}
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			a.unread.failed(a, what, err)
			retry.Pause(ctx, delays.NextBackOff())
			continue
		}
		a.unread.succeeded(a, what)
		delays.Reset()
		if index = meta.LastIndex; index == 0 {
			index = 1
		}
		if still {
			if time.Since(sent) < idle {
				retry.Pause(ctx, idle+rand.N(idle))
			}
			continue
		}
		nothing = !there
		news.put(now)
		select {
		case a.wake <- struct{}{}:
		default:
		}
	}
}

// unread tracks what the watches cannot read. It usually has one cause, and is logged once for all of them.
type unread struct {
	mu      sync.Mutex
	what    map[string]bool
	lasting retry.Lasting
}

func (u *unread) failed(a *Applier, what string, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.what[what] = true
	if tell, lasts := u.lasting.Tell("", time.Now()); tell {
		a.log.Warn("cannot read "+what+" of "+a.opts.Service+" in Consul; "+a.opts.Instance+" keeps what it has, trying again", append(retry.For(lasts), "err", err)...)
	}
}

func (u *unread) succeeded(a *Applier, what string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if delete(u.what, what); len(u.what) > 0 {
		return
	}
	if was, lasted := u.lasting.Over(time.Now()); was {
		a.log.Info("can read the group of "+a.opts.Service+" in Consul again", retry.For(lasted)...)
	}
}

// wait is a blocking query that reports whether anything exists.
type wait func(*api.QueryOptions) (there bool, meta *api.QueryMeta, err error)

func (a *Applier) waitKey(key string) wait {
	return func(q *api.QueryOptions) (bool, *api.QueryMeta, error) {
		pair, meta, err := a.kv.Get(key, q)
		return pair != nil, meta, err
	}
}

func (a *Applier) waitFiles(q *api.QueryOptions) (bool, *api.QueryMeta, error) {
	keys, meta, err := a.kv.Keys(store.FilesPrefix(a.opts.Service), "", q) // without their texts
	return len(keys) > 0, meta, err
}

// asked numbers f's query to Consul, and gives it a deadline.
func asked[T any](ctx context.Context, a *Applier, f func(context.Context) (T, error)) (answer[T], error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	number := a.asked.Add(1)
	v, err := f(ctx)
	return answer[T]{number, v}, err
}

func (a *Applier) readConfig(ctx context.Context) (answer[store.Version], error) {
	return asked(ctx, a, func(ctx context.Context) (store.Version, error) {
		v, err := a.opts.Store.Current(ctx, store.Item{Service: a.opts.Service})
		if errors.Is(err, store.ErrNone) {
			return store.Version{}, nil
		}
		return v, err
	})
}

func (a *Applier) readFiles(ctx context.Context) (answer[map[string]store.Header], error) {
	return asked(ctx, a, func(ctx context.Context) (map[string]store.Header, error) {
		return a.opts.Store.Files(ctx, a.opts.Service)
	})
}

func (a *Applier) readOrder(ctx context.Context) (answer[store.Order], error) {
	return asked(ctx, a, func(ctx context.Context) (store.Order, error) {
		return a.opts.Store.Ordered(ctx, a.opts.Service)
	})
}

func (a *Applier) readLock(ctx context.Context) (answer[lock], error) {
	return asked(ctx, a, func(ctx context.Context) (lock, error) {
		pair, _, err := a.kv.Get(store.RollingKey(a.opts.Service), (&api.QueryOptions{}).WithContext(ctx))
		if err != nil || pair == nil {
			return lock{}, err
		}
		l := lock{index: pair.ModifyIndex, session: pair.Session}
		if err := json.Unmarshal(pair.Value, &l.Roll); err != nil && len(pair.Value) > 0 {
			a.log.Warn("the lock of the rolling change of "+a.opts.Service+" is not in berth's format, so it counts as one that halts nothing", "key", pair.Key, "err", err)
		}
		l.Held = pair.Session != ""
		return l, nil
	})
}
