package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/registrar/retry"
)

const (
	watchTime = time.Minute // how long Consul may wait for a change
	// spread is the longest pause between two queries of a watch. Changes in a burst are then read together, and watchers of
	// the same keys do not ask in step.
	spread = 50 * time.Millisecond
)

// Watch calls f with the present status and after each change until f returns true. If ctx is done first, it returns the
// error of ctx together with Consul's last error. It survives Consul's absence, but returns a refusal by Consul at the
// start.
func (s *Store) Watch(ctx context.Context, service string, f func(Status) (done bool)) error {
	if err := ValidService(service); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var watches sync.WaitGroup
	defer watches.Wait()
	defer cancel()
	changed := make(chan struct{}, 1)
	kv := s.consul.KV()
	for _, query := range []func(*api.QueryOptions) (*api.QueryMeta, error){
		func(q *api.QueryOptions) (*api.QueryMeta, error) {
			_, meta, err := kv.Get(Item{Service: service}.Key(), q)
			return meta, err
		},
		func(q *api.QueryOptions) (*api.QueryMeta, error) {
			_, meta, err := kv.Get(RollingKey(service), q)
			return meta, err
		},
		func(q *api.QueryOptions) (*api.QueryMeta, error) {
			_, meta, err := kv.List(AppliedPrefix(service), q)
			return meta, err
		},
		func(q *api.QueryOptions) (*api.QueryMeta, error) {
			_, meta, err := s.consul.Health().Service(service, "", false, q)
			return meta, err
		},
	} {
		watches.Go(func() { watch(ctx, query, changed) })
	}

	var last *Status
	delays := retry.Delays()
	for {
		now, err := s.Status(ctx, service)
		var refused *refusedError
		switch {
		case ctx.Err() != nil:
			return ended(ctx, err)
		case err == nil:
			if last == nil || !reflect.DeepEqual(*last, now) {
				if f(now) {
					return nil
				}
			}
			last = &now
			delays.Reset()
			select {
			case <-changed:
			case <-ctx.Done():
				return ended(ctx, nil)
			}
		case last == nil && errors.As(err, &refused):
			return err
		default:
			if !retry.Pause(ctx, delays.NextBackOff()) {
				return ended(ctx, err)
			}
		}
	}
}

func ended(ctx context.Context, err error) error {
	if err == nil || errors.Is(err, ctx.Err()) {
		return ctx.Err()
	}
	return fmt.Errorf("%w: %w", ctx.Err(), err)
}

// watch reports every change that a blocking query sees to changed, until ctx is done.
func watch(ctx context.Context, query func(*api.QueryOptions) (*api.QueryMeta, error), changed chan<- struct{}) {
	var index uint64
	delays := retry.Delays()
	for ctx.Err() == nil {
		short, cancel := context.WithTimeout(ctx, watchTime+watchTime/16+timeout)
		q := new(api.QueryOptions).WithContext(short)
		q.WaitIndex, q.WaitTime = index, watchTime
		meta, err := query(q)
		cancel()
		pause := rand.N(spread)
		switch {
		case err != nil:
			// Index 0 is answered at once, so changes in the meantime are seen when Consul is back.
			index, pause = 0, delays.NextBackOff()
		default:
			delays.Reset()
			if meta.LastIndex != index {
				select {
				case changed <- struct{}{}:
				default:
				}
			}
			if meta.LastIndex < index { // Consul was restored, or the newest key is gone
				index = 0
			} else {
				index = max(1, meta.LastIndex)
			}
		}
		retry.Pause(ctx, pause)
	}
}
