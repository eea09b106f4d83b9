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
	idle      = 100 * time.Millisecond // at least, between two answers that say the same

	// Spread is within what time those who wait for a key try to get it, so that most of them see that it is taken.
	Spread = 10 * time.Millisecond
)

// Put writes a key that is held by the session, as often as wanted: for what vanishes with the instance. The key has to be
// the instance's own: if another session holds it, it is that of a former life, and is taken from it. Put tries until ctx is
// done or the session is lost.
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

// Acquire waits until the session holds the key, which then has the value. It waits for as long as others hold it and Consul
// is away, until ctx is done or the session is lost; it then holds nothing.
func (k *Keeper) Acquire(ctx context.Context, s *Session, key string, value []byte) (err error) {
	ctx, cancel := s.While(ctx)
	defer cancel()
	log, delays := k.o.Log.With("key", key), newDelays()
	var lasting retry.Lasting
	var freed time.Time // when it was seen to be free
	var unsettled, refused bool
	defer func() {
		if err != nil && unsettled {
			// An attempt that was not answered may have succeeded, or may yet.
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
		case waited: // then it is looked at again: somebody else may have been quicker
			refused = false
			retry.Pause(ctx, rand.N(Spread))
			continue
		case refused: // though it is free: that is the lock-delay
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

// try makes one attempt to take a key, which then has the value; if the session holds it already, it gets the value. If it
// returns neither true nor an error, the key is held by another session or subject to LockDelay. After an error the session
// may hold it nevertheless.
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
		// A late answer may be of the past: the session may have been invalidated since, and the key be another's.
	}
}

// Release gives a key back that the session holds, and leaves value there; nil leaves what is there. It tries until ctx is
// done or the session is lost. It is no error if the session does not hold the key.
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

// Watch calls f with a key as it is now and after each change, with nil if there is no such key, until f returns true, or
// ctx is done, whose cause it then returns. While Consul does not answer it tries again.
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
			// The index stays: a server that answers before it has caught up is not to be believed.
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
			retry.Pause(ctx, idle+rand.N(idle)) // while the key is not there, other keys' changes wake us up, too
		}
		if meta.LastIndex < index {
			index = 0 // the servers began anew
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

// ended is the error of what ended with ctx, with what failed last.
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
