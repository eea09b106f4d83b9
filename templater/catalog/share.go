package catalog

import (
	"context"
	"encoding/json"
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

// run looks after the watches without a lease until ctx is done. They share a query that blocks for each of the lists.
// When one of these returns, the index of each service is asked for, without the instances, and the watches wake whose
// index has moved.
func (l *limiter) run(ctx context.Context, client *api.Client) {
	var running sync.WaitGroup
	defer running.Wait()
	select {
	case <-l.look:
	case <-ctx.Done():
		return
	}
	l.log.Info("more is watched than connections to Consul may wait for news: what has none shares some, "+
		"and its changes are seen a little later (consul-connections, or https, is for more)", "connections", l.most)
	watched := map[scope]bool{}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		began := time.Now()
		for in := range l.wakeChanged(ctx, client) {
			if watched[in] {
				continue
			}
			watched[in] = true
			l.mu.Lock()
			l.held += len(lists)
			l.mu.Unlock()
			for _, list := range lists {
				running.Go(func() { l.watchList(ctx, client, list, in) })
			}
		}
		// Looking takes half of the time at most, whatever happens in the catalog.
		if !sleep(ctx, time.Since(began)) {
			return
		}
		select {
		case <-l.look:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// wakeChanged wakes the watches without a lease whose index has moved. It returns their scopes.
func (l *limiter) wakeChanged(ctx context.Context, client *api.Client) map[scope]bool {
	scopes := map[scope]bool{}
	var all []lease // copies: the state of now
	l.mu.Lock()
	for s := range l.without {
		if s.shares && s.path != "" {
			scopes[s.scope] = true
			all = append(all, *s)
		}
	}
	l.mu.Unlock()
	// What changed last is likely to change again.
	slices.SortFunc(all, func(a, b lease) int { return b.changed.Compare(a.changed) })
	var g errgroup.Group
	g.SetLimit(spare / 2)
	for _, s := range all {
		g.Go(func() error {
			query := s.scope.options()
			query.Filter = `Service.ID == ""` // the index is all that is wanted
			if index, err := indexOf(ctx, client, s.path, query); err != nil || index != s.index {
				notify(s.wake) // it finds out what the error is
			}
			return nil
		})
	}
	_ = g.Wait() // none returns an error
	return scopes
}

// watchList has the watches without a lease looked at whenever a list may have changed, until ctx is done.
func (l *limiter) watchList(ctx context.Context, client *api.Client, list string, in scope) {
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
			notify(l.look)
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
