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

// lookEvery is how often all watches without a lease are checked even if no list has changed: a node's new address changes no
// list.
const lookEvery = 5 * time.Minute

// lists are queries of which at least one changes with any instance of any service.
var lists = []string{"/v1/catalog/services", "/v1/health/state/critical", "/v1/health/state/warning"}

// scope is where a query looks for services. Each scope has its own lists.
type scope struct{ datacenter, namespace, partition, peer, group string }

func (s scope) options() api.QueryOptions {
	return api.QueryOptions{Datacenter: s.datacenter, Namespace: s.namespace, Partition: s.partition, Peer: s.peer, SamenessGroup: s.group}
}

// few is how many of the most recently changed watches are checked separately: they are likely to change again, and checking all
// watches takes long.
const few = 16

// run notifies the watches without a lease of changes until ctx is done. They share one blocking query for each list. When such a
// query returns, run asks for each watch's index, without the instances, and wakes the watches whose index has moved.
func (l *limiter) run(ctx context.Context, client *api.Client, again *anew) {
	var running sync.WaitGroup
	defer running.Wait()
	lookAtFew := make(chan struct{}, 1)
	running.Go(func() { often(ctx, lookAtFew, func() { wakeChanged(ctx, client, again, l.shared(few)) }) })
	watched := map[scope]bool{}
	often(ctx, l.look, func() {
		all := l.shared(math.MaxInt)
		wakeChanged(ctx, client, again, all)
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
					watchList(ctx, client, again, list, s.scope, func() { notify(lookAtFew); notify(l.look) })
				})
			}
		}
	})
}

// often calls look when told to, and every lookEvery, until ctx is done. After each look it pauses for as long as the look took,
// however much the catalog changes.
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

// shared returns at most the given number of watches without a lease, the most recently changed first.
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
func wakeChanged(ctx context.Context, client *api.Client, again *anew, all []*lease) {
	var g errgroup.Group
	g.SetLimit(spare / 2)
	for _, s := range all {
		g.Go(func() error {
			query := s.scope.options()
			query.Filter = `Service.ID == ""` // matches nothing: only the index is needed
			if index, err := indexOf(ctx, client, again, s.path, query); err != nil || index != s.index.Load() {
				notify(s.wake) // also after an error: the watch reports it
			}
			return nil
		})
	}
	_ = g.Wait() // none returns an error
}

// watchList calls changed whenever a list may have changed, until ctx is done.
func watchList(ctx context.Context, client *api.Client, again *anew, list string, in scope, changed func()) {
	pause := newPause()
	query := in.options()
	query.WaitTime = time.Minute
	for {
		began := time.Now()
		index, err := indexOf(ctx, client, again, list, query)
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

// indexOf makes a query and returns only the index of its answer.
func indexOf(ctx context.Context, client *api.Client, again *anew, path string, query api.QueryOptions) (uint64, error) {
	ctx, cancel := again.context(ctx, longest(query.WaitTime)+answerTime)
	defer cancel()
	meta, err := client.Raw().Query(path, new(json.RawMessage), query.WithContext(ctx))
	if err != nil {
		return 0, err
	}
	return meta.LastIndex, nil
}
