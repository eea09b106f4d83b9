package catalog

import (
	"context"
	"encoding/json"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
	"golang.org/x/sync/errgroup"
)

// lookEvery is how often all watches without a lease are looked at, whether a list returned or not: none does so for a
// node's new address.
const lookEvery = 5 * time.Minute

// lists change, one or the other, with any instance of any service.
var lists = []string{"/v1/catalog/services", "/v1/health/state/critical", "/v1/health/state/warning"}

// scope is what makes Consul look at other services, and so at other lists of them.
type scope struct{ datacenter, namespace, partition, peer, group string }

func (s scope) options() api.QueryOptions {
	return api.QueryOptions{Datacenter: s.datacenter, Namespace: s.namespace, Partition: s.partition, Peer: s.peer, SamenessGroup: s.group}
}

// few is how many watches that changed last are looked at before all others: they are likely to change again.
const few = 16

// run looks after the watches without a lease until ctx is done. They share a query that blocks for each of the lists.
// When one of these returns, the index of each service is asked for, without the instances, and the watches wake whose
// index has moved.
func (l *limiter) run(ctx context.Context, client *api.Client) {
	var running sync.WaitGroup
	defer running.Wait()
	lookAtFew := make(chan struct{}, 1)
	running.Go(func() { often(ctx, lookAtFew, func() { wakeChanged(ctx, client, l.shared(few)) }) })
	watched := map[scope]bool{}
	often(ctx, l.look, func() {
		all := l.shared(math.MaxInt)
		wakeChanged(ctx, client, all)
		for _, s := range all {
			if watched[s.scope] {
				continue
			}
			watched[s.scope] = true
			l.mu.Lock()
			l.held += len(lists)
			l.mu.Unlock()
			for _, list := range lists {
				running.Go(func() {
					watchList(ctx, client, list, s.scope, func() { notify(lookAtFew); notify(l.look) })
				})
			}
		}
	})
}

// often calls look when it is told to, and from time to time, until ctx is done. That takes half of the time at most,
// whatever happens in the catalog.
func often(ctx context.Context, told <-chan struct{}, look func()) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-told:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		began := time.Now()
		look()
		sleep(ctx, time.Since(began))
	}
}

// shared returns at most so many leases of watches without one, first those that changed last.
func (l *limiter) shared(most int) (all []*lease) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for s := range l.without {
		if s.shares && s.path != "" {
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b *lease) int { return b.changed.Compare(a.changed) })
	return all[:min(len(all), most)]
}

// wakeChanged wakes the watches whose index has moved.
func wakeChanged(ctx context.Context, client *api.Client, all []*lease) {
	var g errgroup.Group
	g.SetLimit(spare / 2)
	for _, s := range all {
		g.Go(func() error {
			query := s.scope.options()
			query.Filter = `Service.ID == ""` // the index is all that is wanted
			if index, err := indexOf(ctx, client, s.path, query); err != nil || index != s.index.Load() {
				notify(s.wake) // it finds out what the error is
			}
			return nil
		})
	}
	_ = g.Wait() // none returns an error
}

// watchList calls changed whenever a list may have changed, until ctx is done.
func watchList(ctx context.Context, client *api.Client, list string, in scope, changed func()) {
	pause := newPause()
	query := in.options()
	query.WaitTime = time.Minute
	for {
		began := time.Now()
		index, err := indexOf(ctx, client, list, query)
		wait := spuriousPause - time.Since(began)
		switch {
		case err != nil:
			index, wait = 0, pause.NextBackOff()
		case index != query.WaitIndex:
			pause.Reset()
			changed()
			wait = 0
		}
		query.WaitIndex = index
		if !sleep(ctx, wait) {
			return
		}
	}
}

// indexOf asks a query for the index of its answer.
func indexOf(ctx context.Context, client *api.Client, path string, query api.QueryOptions) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, longest(query.WaitTime)+answerTime)
	defer cancel()
	meta, err := client.Raw().Query(path, new(json.RawMessage), query.WithContext(ctx))
	if err != nil {
		return 0, err
	}
	return meta.LastIndex, nil
}
