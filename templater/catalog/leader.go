package catalog

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
)

const (
	// leaderEvery is how often the leader is asked for.
	leaderEvery = time.Second
	// leaderTime is how long that may take.
	leaderTime = 3 * time.Second
	// anewWithin is the time over which the watches ask anew, so that they do not all at once.
	anewWithin = 200 * time.Millisecond
)

// errAnew ends a query that has to be asked anew.
var errAnew = errors.New("asked anew")

// anew ends the queries that wait. An agent passes a query on to the leader. If the leader was cut off, or is frozen, the query
// waits there until its time is over, while a new leader has news.
type anew struct {
	mu     sync.Mutex
	ctx    context.Context
	cancel context.CancelCauseFunc
}

// context returns a context for a query, with errAnew as its cause if it has to be asked anew.
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

// ask has all queries asked anew.
func (a *anew) ask() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cancel != nil {
		a.cancel(errAnew)
		a.ctx = nil
	}
}

// isAnew says whether a query was ended in order to be asked anew.
func isAnew(ctx context.Context) bool { return context.Cause(ctx) == errAnew }

// followLeader has all queries asked anew when there is another leader, or one again, until ctx is done.
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
