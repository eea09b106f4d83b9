package catalog

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
)

const (
	// leaderEvery is the interval of the queries for the leader.
	leaderEvery = time.Second
	// leaderTime limits such a query.
	leaderTime = 3 * time.Second
	// anewWithin is the time over which the watches spread their repeated queries.
	anewWithin = 200 * time.Millisecond
)

// errAnew ends a query that has to be repeated.
var errAnew = errors.New("asked anew")

// anew ends waiting queries. An agent forwards a query to the leader. If the leader is cut off or frozen, the query waits there
// until its time is over, while a new leader has news.
type anew struct {
	mu     sync.Mutex
	ctx    context.Context
	cancel context.CancelCauseFunc
}

// context returns a context for a query, with errAnew as its cause if the query has to be repeated.
func (a *anew) context(parent context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	a.mu.Lock()
	if a.ctx == nil {
		a.ctx, a.cancel = context.WithCancelCause(context.Background())
	}
	asking := a.ctx
	a.mu.Unlock()
	ctx, cancel := context.WithTimeout(parent, limit)
	ctx, cause := context.WithCancelCause(ctx)
	stop := context.AfterFunc(asking, func() { cause(errAnew) })
	return ctx, func() { stop(); cause(nil); cancel() }
}

// ask makes all watches repeat their queries.
func (a *anew) ask() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cancel != nil {
		a.cancel(errAnew)
		a.ctx = nil
	}
}

// isAnew reports whether a query was ended in order to be repeated.
func isAnew(ctx context.Context) bool { return context.Cause(ctx) == errAnew }

// followLeader calls again when Consul has a new leader, or a leader again, until ctx is done.
func followLeader(ctx context.Context, client *api.Client, again func()) {
	tick := time.NewTicker(leaderEvery)
	defer tick.Stop()
	last, away := "", false
	for {
		limited, cancel := context.WithTimeout(ctx, leaderTime)
		leader, err := client.Status().LeaderWithQueryOptions(new(api.QueryOptions).WithContext(limited))
		cancel()
		switch {
		case err != nil || leader == "":
			away = true
		case last != "" && (away || leader != last):
			again()
			fallthrough
		default:
			last, away = leader, false
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
