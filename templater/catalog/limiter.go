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
	// DefaultConnections leaves room for other clients: Consul's default limit is 200 for each client address.
	DefaultConnections = 150
	// spare is the number of connections reserved for queries that do not block.
	spare = 16
	// fewest is the number of leases that always remain, however often Consul refuses.
	fewest = 8
	// recovery is how long a refusal counts.
	recovery = 5 * time.Minute
	// pollEvery is how often a watch without a lease asks if nothing notifies it of changes.
	pollEvery = 2 * time.Second
)

// mostOpen is how many of the connections may be open at a time. The rest is for abandoned queries that Consul still holds, as
// after a restart of berth.
func mostOpen(connections int) int { return connections - connections/5 }

// limiter hands out leases. A lease is the right to a blocking query, and so to a connection. By default a Consul agent accepts
// 200 connections from one address and answers 429 beyond that. Over HTTP/2 all queries share a few connections, and every watch
// gets a lease.
//
// The first watches that ask get the leases and keep them until they stop. All other watches share a few queries: see share.go.
type limiter struct {
	log  *slog.Logger
	wait time.Duration // how long a query may block
	look chan struct{} // look at the watches without a lease
	told sync.Once     // logs that such watches exist

	mu        sync.Mutex
	usual     int       // leases
	most      int       // leases now: fewer for some time after Consul refused a connection
	refused   time.Time // the last refusal
	unlimited bool      // over HTTP/2
	held      int       // leases that are taken
	without   map[*lease]bool
}

// lease is one watch's place in the limiter, with or without the right to a blocking query.
type lease struct {
	of     *limiter
	shares bool          // share.go notifies it of changes while it has no lease
	wake   chan struct{} // ask now, or see whether there is a lease
	index  atomic.Uint64 // of the last answer

	// Under limiter.mu:
	held    bool
	path    string    // of the watch's queries
	scope   scope     // likewise
	changed time.Time // the last change, not counting the first answer
}

func newLimiter(connections int, wait time.Duration, log *slog.Logger) *limiter {
	most := max(mostOpen(connections)-spare, 1)
	return &limiter{log: log, wait: wait, most: most, usual: most, look: make(chan struct{}, 1), without: map[*lease]bool{}}
}

func (l *limiter) newLease(shares bool) *lease {
	return &lease{of: l, shares: shares, wake: make(chan struct{}, 1)}
}

// limit returns the current number of leases. l.mu must be held.
func (l *limiter) limit() int {
	if l.unlimited {
		return math.MaxInt
	}
	if l.most < l.usual && time.Since(l.refused) > recovery {
		l.most = l.usual // the refusal may have been caused by a restart of berth
	}
	return l.most
}

// acquire takes a free lease, if any. An eighth of them is reserved for watches that cannot share.
func (s *lease) acquire() bool {
	l := s.of
	l.mu.Lock()
	defer l.mu.Unlock()
	limit := l.limit()
	if s.held && l.held > limit { // the limit was lowered
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

// await returns when the watch may ask, and reports whether its query may block. Without a lease it returns when the limiter wakes
// the watch, or after most.
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

// asks records the path and the scope of the watch's queries.
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

// asked returns the path and the scope of the watch's queries.
func (s *lease) asked() queried {
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	return queried{s.path, s.scope}
}

// answered records a query's index, and the time if the answer was a change.
func (s *lease) answered(index uint64, changed bool) {
	s.index.Store(index)
	if changed {
		s.of.mu.Lock()
		defer s.of.mu.Unlock()
		s.changed = time.Now()
	}
}

// release returns the lease for good. Consul holds the ended query, and counts its connection, until the query's wait is over.
// Then the next watch that has news and no lease gets it.
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

// observe learns the possible number of leases from a response.
func (l *limiter) observe(res *http.Response) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case res.ProtoMajor >= 2 && !l.unlimited:
		l.unlimited = true
		for s := range l.without {
			notify(s.wake)
		}
	// Consul closes a connection beyond its limit. Its request limit has the same status but closes nothing.
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
