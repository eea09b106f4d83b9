package catalog

import (
	"context"
	"log/slog"
	"math"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// DefaultConnections leaves room for others: Consul's own default is 200 for each client address.
	DefaultConnections = 150
	// spare is how many connections are left for queries that do not block.
	spare = 16
	// fewest is how many leases remain after any number of refusals.
	fewest = 8
	// recovery is for how long a refusal counts.
	recovery = 5 * time.Minute
	// pollEvery is how often a watch without a lease asks if nothing tells it of a change.
	pollEvery = 2 * time.Second
)

// mostOpen is how many of the connections may be open at a time. The rest is left for queries that Consul still holds
// though nobody waits for them any more, as after a restart of berth.
func mostOpen(connections int) int { return connections - connections/5 }

// limiter hands out leases. A lease is the right to a query that blocks, and so to a connection. A Consul agent takes 200
// connections from one address by default, and answers 429 beyond that. Over HTTP/2 all queries share a few connections,
// and every watch gets a lease.
//
// The first watches that ask get the leases, and keep them until they stop. The others share a few queries: see share.go.
type limiter struct {
	log  *slog.Logger
	wait time.Duration // how long a query may block
	look chan struct{} // look at the watches without a lease
	told sync.Once     // that there are such watches

	mu        sync.Mutex
	usual     int       // leases
	most      int       // leases now: fewer for some time after Consul has refused a connection
	refused   time.Time // when it did, last
	unlimited bool      // over HTTP/2
	held      int       // leases that are taken
	without   map[*lease]bool
}

// lease is one watch's place in the limiter, with or without the right to a query that blocks.
type lease struct {
	of     *limiter
	shares bool          // share.go tells it of changes while it is without
	wake   chan struct{} // ask now, or see whether there is a lease
	index  atomic.Uint64 // of the last answer

	// Under limiter.mu:
	held    bool
	path    string    // of the watch's queries
	scope   scope     // likewise
	changed time.Time // when an answer, except for the first, was news
}

func newLimiter(connections int, wait time.Duration, log *slog.Logger) *limiter {
	most := max(mostOpen(connections)-spare, 1)
	return &limiter{log: log, wait: wait, most: most, usual: most, look: make(chan struct{}, 1), without: map[*lease]bool{}}
}

func (l *limiter) newLease(shares bool) *lease {
	return &lease{of: l, shares: shares, wake: make(chan struct{}, 1)}
}

// limit returns how many leases there are now. Needs l.mu.
func (l *limiter) limit() int {
	if l.unlimited {
		return math.MaxInt
	}
	if l.most < l.usual && time.Since(l.refused) > recovery {
		l.most = l.usual // it may have been the queries of a berth that was restarted
	}
	return l.most
}

// acquire takes a lease if one is left. An eighth is reserved for watches that cannot share.
func (s *lease) acquire() bool {
	l := s.of
	l.mu.Lock()
	defer l.mu.Unlock()
	limit := l.limit()
	if s.held && l.held > limit { // there are fewer now
		s.held = false
		l.held--
	}
	if s.shares {
		limit -= limit / 8
	}
	switch {
	case s.held:
	case l.held < limit:
		s.held = true
		l.held++
		delete(l.without, s)
	case !l.without[s]:
		l.without[s] = true
		l.told.Do(func() {
			l.log.Info("more queries to Consul than connections: queries without their own connection share a few and see changes slightly later; "+
				"raise consul-connections or use https to avoid this", "connections", l.most)
		})
		notify(l.look)
	}
	return s.held
}

// await returns when the watch may ask, and whether its query may block. Without a lease that is when the limiter wakes it,
// or after most.
func (s *lease) await(ctx context.Context, most time.Duration) (block bool) {
	if s.acquire() {
		return true
	}
	if !s.shares {
		most = pollEvery
	}
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-s.wake:
		return s.acquire()
	case <-timer.C:
	}
	return false
}

// asks notes the path and the scope of the watch's queries.
func (s *lease) asks(u *url.URL) {
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	if s.path != "" {
		return
	}
	_, path, _ := strings.Cut(u.Path, "/v1/")
	q := u.Query()
	s.path = "/v1/" + path
	s.scope = scope{q.Get("dc"), q.Get("ns"), q.Get("partition"), q.Get("peer"), q.Get("sameness-group")}
}

// asked returns what the watch's queries ask for.
func (s *lease) asked() queried {
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	return queried{s.path, s.scope}
}

// answered notes a query's index, and when its answer was a change.
func (s *lease) answered(index uint64, changed bool) {
	s.index.Store(index)
	if changed {
		s.of.mu.Lock()
		defer s.of.mu.Unlock()
		s.changed = time.Now()
	}
}

// release gives the lease back for good. Consul holds the ended query, and counts its connection, until the query's wait is
// over. Then the next watch without a lease that has news gets it.
func (s *lease) release() {
	l := s.of
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.without, s)
	if s.held {
		s.held = false
		time.AfterFunc(longest(l.wait), func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.held--
		})
	}
}

// observe learns from a response how many leases there may be.
func (l *limiter) observe(res *http.Response) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case res.ProtoMajor >= 2 && !l.unlimited:
		l.unlimited = true
		for s := range l.without {
			notify(s.wake)
		}
	// Consul closes a connection beyond the limit. Its limit of requests has the same status, but closes nothing.
	case res.StatusCode == http.StatusTooManyRequests && res.Close && l.most > fewest && time.Since(l.refused) > time.Second:
		l.refused, l.most = time.Now(), max(min(l.most, max(l.held, 4*fewest))*3/4, fewest)
		l.log.Warn("Consul refuses connections (429), using fewer from now on: raise limits.http_max_conns_per_client "+
			"or use https", "connections", l.most)
	}
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
