package templater

import (
	"container/list"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// DefaultConnections leaves room for others: Consul's own default is 200 for each client address.
	DefaultConnections = 150
	// spare is how many connections are left for queries that do not block.
	spare = 16
	// pollEvery is how often a watch without a slot asks that no bell rings for.
	pollEvery = 2 * time.Second
	// roundEvery is how often all without a slot are looked at, whether a bell rang or not: none rings for a node's
	// new address.
	roundEvery = 5 * time.Minute
	// recovery is for how long a refusal counts.
	recovery = 5 * time.Minute
	// fewest is what no refusal takes away.
	fewest = 8
)

// lists are those of the bells: one of them changes with any instance.
var lists = []string{"/v1/catalog/services", "/v1/health/state/critical", "/v1/health/state/warning"}

// slots share out the connections that may wait for news. A Consul agent takes 200 from one address by default, and
// answers 429 beyond that, so that more watches than that cannot all have a query of their own that blocks. Over HTTP/2
// they share a connection, and each has its slot.
//
// Where there are not enough, those services have one that changed last. For all others there are bells: a query each
// for the list of services and for the checks that are critical or a warning, one of which returns with any change of
// any instance. Then the indexes of the services without a slot are asked for, without their instances, and those whose
// index has moved are asked themselves.
type slots struct {
	log  *slog.Logger
	wake chan struct{} // look at those without a slot

	mu        sync.Mutex
	wait      time.Duration // how long a query may block
	most      int           // slots; fewer for some time after Consul has refused a connection
	usual     int           // slots otherwise
	ghosts    []time.Time   // until when Consul holds the connections of queries that were ended for another watch
	maxGhosts int
	refused   time.Time // when it did, last
	unlimited bool      // over HTTP/2
	used      list.List // of *slot, the one that changed last in front
	without   map[*slot]bool
}

// slot is the right of a watch to a query that blocks, which it has or has not.
type slot struct {
	of    *slots
	line  *line
	cheap bool          // its index can be asked for
	poke  chan struct{} // ask now, or see whether there is a slot

	// Under slots.mu:
	element *list.Element // of used; nil = without
	index   uint64        // of the last answer
	changed time.Time     // when an answer, but for the first, was news
}

// scope is where a bell rings: what makes Consul look at another list of services.
type scope struct {
	base  string // scheme and host, with the path before /v1
	query string // dc, ns, partition, peer, ...
}

// share divides connections into those that may be open here, and those of queries that have ended here but go on at
// Consul: it notices that nobody waits any more only when the wait is over.
func share(connections int) (open, ghosts int) { return connections - connections/5, connections / 5 }

func newSlots(connections int, wait time.Duration, log *slog.Logger) *slots {
	open, ghosts := share(connections)
	most := max(open-spare, 1)
	return &slots{
		log: log, wait: wait, most: most, usual: most, maxGhosts: ghosts,
		wake: make(chan struct{}, 1), without: map[*slot]bool{},
	}
}

func (s *slots) newSlot(l *line, cheap bool) *slot {
	return &slot{of: s, line: l, cheap: cheap, poke: make(chan struct{}, 1)}
}

// wait returns when the watch may ask: with block if its query may block, without if it is to be answered at once,
// because there is news or it is time to look, which it is after most at the latest; 0 = no such time.
func (s *slot) wait(ctx context.Context, most time.Duration) (block bool, err error) {
	if s.acquire() {
		return true, nil
	}
	switch {
	case !s.cheap:
		most = pollEvery
	case most == 0:
		most = 10 * roundEvery
	}
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false, ctx.Err()
	case <-s.poke:
		return s.acquire(), nil
	case <-timer.C:
		return false, nil
	}
}

// acquire gets the watch a slot if there is one, or if another one's has been quiet for longer.
func (s *slot) acquire() bool {
	all := s.of
	all.mu.Lock()
	defer all.mu.Unlock()
	limit := all.limit()
	if s.element != nil {
		if all.used.Len() <= limit {
			return true
		}
		all.used.Remove(s.element) // there are fewer now
		s.element = nil
	}
	if n := all.used.Len(); n > limit || n == limit && !all.evictFor(s) {
		if !all.without[s] {
			all.without[s] = true
			notify(all.wake)
		}
		return false
	}
	delete(all.without, s)
	s.element = all.used.PushFront(s)
	return true
}

// limit is how many slots there are now. Needs s.mu.
func (s *slots) limit() int {
	if s.unlimited {
		return math.MaxInt
	}
	if s.most < s.usual && time.Since(s.refused) > recovery {
		s.most = s.usual // it may have been the queries of a berth that was restarted
	}
	s.ghosts = slices.DeleteFunc(s.ghosts, time.Now().After)
	return max(s.most-max(len(s.ghosts)-s.maxGhosts, 0), 1)
}

// evictFor takes the slot of the watch that has been quiet for longest, if that is longer than one. A watch that cannot
// be told by a bell goes before all that can. Needs s.mu.
func (s *slots) evictFor(one *slot) bool {
	if len(s.ghosts) >= s.maxGhosts {
		return false
	}
	for e := s.used.Back(); e != nil; e = e.Prev() {
		other := e.Value.(*slot)
		if !other.cheap || one.cheap && !other.changed.Before(one.changed) {
			continue
		}
		s.used.Remove(other.element)
		other.element = nil
		other.line.evict()
		s.haunt()
		return true
	}
	return false
}

// haunt counts a query that has ended here and goes on at Consul. Needs s.mu.
func (s *slots) haunt() {
	if !s.unlimited {
		s.ghosts = append(s.ghosts, time.Now().Add(longest(s.wait)))
	}
}

// answered notes how a query went.
func (s *slot) answered(index uint64, changed bool) {
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	s.index = index
	if !changed {
		return
	}
	s.changed = time.Now()
	if s.element != nil {
		s.of.used.MoveToFront(s.element)
	}
}

// release gives the slot back for good, and another watch may have it.
func (s *slot) release() {
	all := s.of
	all.mu.Lock()
	defer all.mu.Unlock()
	delete(all.without, s)
	if s.element != nil {
		all.used.Remove(s.element)
		s.element = nil
		all.haunt()
	}
	for other := range all.without {
		select {
		case other.poke <- struct{}{}:
			return
		default: // it is told already
		}
	}
}

// saw learns from a response how many slots there are.
func (s *slots) saw(res *http.Response) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case res.ProtoMajor >= 2 && !s.unlimited:
		s.unlimited = true
		for one := range s.without {
			notify(one.poke)
		}
	// Consul closes a connection beyond the limit. It has a limit of requests, too, and answers the same, but does not.
	case res.StatusCode == http.StatusTooManyRequests && res.Close && s.most > fewest && time.Since(s.refused) > time.Second:
		s.refused, s.most = time.Now(), max(min(s.most, max(s.used.Len(), 4*fewest))*3/4, fewest)
		s.log.Warn("consul refuses connections (429), fewer are used from now on: raise limits.http_max_conns_per_client, "+
			"or use https", "connections", s.most)
	}
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run looks after the watches without a slot until ctx is done.
func (s *slots) run(ctx context.Context, base http.RoundTripper) {
	var g errgroup.Group
	defer func() { _ = g.Wait() }() // none returns an error
	select {
	case <-s.wake:
	case <-ctx.Done():
		return
	}
	s.log.Info("more is watched than connections to Consul may wait for news: what has been quiet for long shares some, "+
		"and its changes are seen a little later (consul-connections, or https, is for more)", "connections", s.most)
	client := &http.Client{Transport: base}
	bells := map[scope]bool{}
	tick := time.NewTicker(roundEvery)
	defer tick.Stop()
	for {
		began := time.Now()
		for at, header := range s.round(ctx, client) {
			if bells[at] {
				continue
			}
			bells[at] = true
			s.mu.Lock()
			s.most, s.usual = max(s.most-len(lists), 1), max(s.usual-len(lists), 1)
			s.mu.Unlock()
			for _, list := range lists {
				g.Go(func() error { s.listen(ctx, client, at.base+list+"?"+at.query, header); return nil })
			}
		}
		// Looking takes half of the time at most, whatever happens in the catalog.
		if !sleep(ctx, time.Since(began)) {
			return
		}
		select {
		case <-s.wake:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// round pokes the watches without a slot whose index has moved. It returns their scopes, with the header of a query.
func (s *slots) round(ctx context.Context, client *http.Client) map[scope]http.Header {
	type look struct {
		*slot
		index   uint64
		changed time.Time
		url     url.URL
		header  http.Header
	}
	var looks []look
	scopes := map[scope]http.Header{}
	s.mu.Lock()
	for one := range s.without {
		if u, header := one.line.lastAsked(); one.cheap && header != nil {
			scopes[scopeOf(u)] = header
			looks = append(looks, look{one, one.index, one.changed, u, header})
		}
	}
	s.mu.Unlock()
	// What changed last is likely to change again.
	slices.SortFunc(looks, func(a, b look) int { return b.changed.Compare(a.changed) })
	var g errgroup.Group
	g.SetLimit(spare / 2)
	for _, l := range looks {
		g.Go(func() error {
			q := l.url.Query()
			q.Set("filter", `Service.ID == ""`) // the index is all that is wanted
			l.url.RawQuery = q.Encode()
			if index, err := indexOf(ctx, client, l.url.String(), l.header, answerTime); err != nil || index != l.index {
				notify(l.poke) // it finds out what the error is
			}
			return nil
		})
	}
	_ = g.Wait()
	return scopes
}

// scopeOf is the scope of a query for the health of a service.
func scopeOf(u url.URL) scope {
	path, _, _ := strings.Cut(u.Path, "/v1/")
	q := u.Query()
	for _, own := range []string{"tag", "passing", "near", "stale"} {
		q.Del(own)
	}
	return scope{u.Scheme + "://" + u.Host + path, q.Encode()}
}

// listen has those without a slot looked at whenever a list may have changed, until ctx is done.
func (s *slots) listen(ctx context.Context, client *http.Client, list string, header http.Header) {
	const wait = time.Minute
	pause := newPause()
	for last := uint64(0); ; {
		began, asked := time.Now(), list
		if last > 0 {
			asked += fmt.Sprintf("&index=%d&wait=%s", last, wait)
		}
		index, err := indexOf(ctx, client, asked, header, longest(wait)+answerTime)
		if err != nil {
			last = 0
			if !sleep(ctx, pause.NextBackOff()) {
				return
			}
			continue
		}
		pause.Reset()
		if index != last {
			notify(s.wake)
		} else if !sleep(ctx, spuriousPause-time.Since(began)) {
			return
		}
		last = index
	}
}

// indexOf asks a query and reads nothing but the index of the answer.
func indexOf(ctx context.Context, client *http.Client, asked string, header http.Header, within time.Duration) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, asked, nil)
	if err != nil {
		return 0, err
	}
	req.Header = header.Clone()
	res, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil { // to the end, so that the connection can be used again
		return 0, err
	}
	if res.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%s: %s", req.URL.Path, res.Status)
	}
	return strconv.ParseUint(res.Header.Get("X-Consul-Index"), 10, 64)
}
