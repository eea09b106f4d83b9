package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/hashicorp/consul/api"

	"berth/registrar/retry"
)

const (
	watchTime = 10 * time.Second       // how long Consul may wait for a change
	idle      = 100 * time.Millisecond // minimum between two identical answers

	// Spread is the time over which instances that wait for a key spread their attempts, so that most see that it is taken.
	Spread = 10 * time.Millisecond
)

// Put writes a key held by the session, as often as wanted, for data that vanishes with the instance. The key must belong to
// the instance: a session that holds it is one of its former lives, and loses it. Put tries until ctx is done or the session
// is lost.
func (k *Keeper) Put(ctx context.Context, s *Session, key string, value []byte) error {
	ctx, cancel := s.While(ctx)
	defer cancel()
	delays := newDelays()
	for {
		held, err := k.try(ctx, s, key, value)
		if held {
			return nil
		}
		if err == nil {
			err = k.evict(ctx, s, key)
		}
		if !retry.Pause(ctx, delays.NextBackOff()) {
			return ended(ctx, "write "+key, err)
		}
	}
}

// evict deletes a key that another session holds.
func (k *Keeper) evict(ctx context.Context, s *Session, key string) error {
	return call(ctx, func(ctx context.Context) error {
		pair, _, err := k.o.Consul.KV().Get(key, query(ctx))
		if err != nil || pair == nil || pair.Session == "" || pair.Session == s.ID {
			return err
		}
		_, _, err = k.o.Consul.KV().DeleteCAS(pair, write(ctx))
		return err
	})
}

// Acquire waits until the session holds the key, and sets its value. It waits while others hold the key or Consul is away,
// until ctx is done or the session is lost; it then holds nothing.
func (k *Keeper) Acquire(ctx context.Context, s *Session, key string, value []byte) (err error) {
	ctx, cancel := s.While(ctx)
	defer cancel()
	log, delays := k.o.Log.With("key", key), newDelays()
	var lasting retry.Lasting
	var freed time.Time // when it was seen to be free
	var unsettled, refused bool
	defer func() {
		if err != nil && unsettled {
			// An unanswered attempt may have succeeded, or still may.
			free, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
			defer cancel()
			_ = k.Release(free, s, key, nil)
		}
	}()
	for {
		waited := false
		last := Watch(ctx, k.o.Consul, log, key, func(pair *api.KVPair) (done bool) {
			free := pair == nil || pair.Session == "" || pair.Session == s.ID
			waited = waited || !free
			return free
		})
		if last != nil {
			return fmt.Errorf("acquire %s: %w", key, last)
		}
		if waited || freed.IsZero() {
			freed = time.Now()
		}
		switch {
		case waited: // look again: another may have been faster
			refused = false
			retry.Pause(ctx, rand.N(Spread))
			continue
		case refused: // refused although free: the lock-delay applies
			refused = false
			retry.Pause(ctx, time.Until(freed.Add(LockDelay+rand.N(Spread))))
			freed = time.Time{}
			continue
		}
		held, last := k.try(ctx, s, key, value)
		switch {
		case held:
			return nil
		case last == nil:
			refused = true
			continue
		}
		unsettled = true
		if tell, lasts := lasting.Tell(last.Error(), time.Now()); tell && ctx.Err() == nil {
			log.Error("cannot acquire "+key+" in Consul; trying again", append(retry.For(lasts), "err", last)...)
		}
		if !retry.Pause(ctx, delays.NextBackOff()) {
			return ended(ctx, "acquire "+key, last)
		}
	}
}

// try makes one attempt to take a key and set its value; if the session already holds the key, it sets the value. Neither
// true nor an error means that another session holds the key, or LockDelay applies. After an error the session may hold the
// key all the same.
func (k *Keeper) try(ctx context.Context, s *Session, key string, value []byte) (held bool, err error) {
	ctx, cancel := s.While(ctx)
	defer cancel()
	for {
		sent := time.Now()
		err := call(ctx, func(ctx context.Context) (err error) {
			held, _, err = k.o.Consul.KV().Acquire(&api.KVPair{Key: key, Value: value, Session: s.ID}, write(ctx))
			return err
		})
		switch {
		case err != nil:
			if strings.Contains(err.Error(), "invalid session") {
				k.Gone()
			}
			return false, fmt.Errorf("acquire %s: %w", key, err)
		case !held:
			return false, nil
		case ctx.Err() != nil:
			return false, ended(ctx, "acquire "+key, nil)
		case time.Since(sent) < quick:
			return true, nil
		}
		// A late answer may be outdated: since then, the session may have been invalidated, and another may hold the key.
	}
}

// Release releases a key held by the session, and leaves value there; nil leaves the present value. It tries until ctx is
// done or the session is lost. Releasing a key that the session does not hold is no error.
func (k *Keeper) Release(ctx context.Context, s *Session, key string, value []byte) error {
	ctx, cancel := s.While(ctx)
	defer cancel()
	delays := newDelays()
	for {
		err := call(ctx, func(ctx context.Context) error {
			pair := &api.KVPair{Key: key, Value: value}
			if value == nil {
				var err error
				if pair, _, err = k.o.Consul.KV().Get(key, query(ctx)); err != nil || pair == nil {
					return err
				}
			}
			pair.Session = s.ID
			_, _, err := k.o.Consul.KV().Release(pair, write(ctx))
			return err
		})
		if err == nil {
			return nil
		}
		if !retry.Pause(ctx, delays.NextBackOff()) {
			return ended(ctx, "release "+key, err)
		}
	}
}

// Watch calls f with the present key and after each change, with nil if the key does not exist, until f returns true. If ctx
// is done first, it returns the cause. While Consul does not answer, it tries again.
func Watch(ctx context.Context, consul *api.Client, log *slog.Logger, key string, f func(*api.KVPair) (done bool)) error {
	delays := newDelays()
	var lasting retry.Lasting
	var index, modified uint64
	for first := true; ; {
		var pair *api.KVPair
		var meta *api.QueryMeta
		sent := time.Now()
		err := within(ctx, watchTime+watchTime/16+timeout, func(ctx context.Context) (err error) {
			q := query(ctx)
			q.WaitIndex, q.WaitTime = index, watchTime
			pair, meta, err = consul.KV().Get(key, q)
			return err
		})
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			// Keep the index: a server that answers before it has caught up cannot be trusted.
			if tell, lasts := lasting.Tell(err.Error(), time.Now()); tell {
				log.Error("cannot read "+key+" in Consul; trying again", append(retry.For(lasts), "key", key, "err", err)...)
			}
			retry.Pause(ctx, delays.NextBackOff())
			continue
		}
		delays.Reset()
		if was, lasted := lasting.Over(time.Now()); was {
			log.Info("can read "+key+" in Consul again", append(retry.For(lasted), "key", key)...)
		}
		var is uint64
		if pair != nil {
			is = pair.ModifyIndex
		}
		if first || is != modified {
			first, modified = false, is
			if f(pair) {
				return nil
			}
		} else if time.Since(sent) < idle {
			retry.Pause(ctx, idle+rand.N(idle)) // while the key does not exist, changes of other keys also end the query
		}
		if meta.LastIndex < index {
			index = 0 // the servers have started over
		} else {
			index = meta.LastIndex
		}
	}
}

// newDelays returns the pauses between attempts.
func newDelays() *backoff.ExponentialBackOff {
	delays := retry.Delays()
	delays.InitialInterval, delays.MaxInterval = 50*time.Millisecond, mostDelay
	delays.Reset()
	return delays
}

// ended returns the error for a call that ended with ctx, with the last failure.
func ended(ctx context.Context, what string, last error) error {
	cause := context.Cause(ctx)
	if last == nil || errors.Is(last, cause) || errors.Is(last, context.Canceled) {
		return fmt.Errorf("%s: %w", what, cause)
	}
	return fmt.Errorf("%s: %w: %w", what, cause, last)
}

// call makes one call with its deadline.
func call(ctx context.Context, f func(context.Context) error) error { return within(ctx, timeout, f) }

func within(ctx context.Context, d time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return f(ctx)
}

func query(ctx context.Context) *api.QueryOptions { return new(api.QueryOptions).WithContext(ctx) }
func write(ctx context.Context) *api.WriteOptions { return new(api.WriteOptions).WithContext(ctx) }
