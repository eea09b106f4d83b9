package catalog

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// lookEvery is how often all watches without a lease are looked at, whether a list returned or not: none does so for a
// node's new address.
const lookEvery = 5 * time.Minute

// lists change, one or the other, with any instance of any service.
var lists = []string{"/v1/catalog/services", "/v1/health/state/critical", "/v1/health/state/warning"}

// scope is what the lists are asked of: what makes Consul look at other services.
type scope struct {
	base  string // scheme and host, with the path before /v1
	query string // dc, ns, partition, peer, ...
}

// run looks after the watches without a lease until ctx is done. They share a query that blocks for each of the lists.
// When one of these returns, the index of each service is asked for, without the instances, and the watches wake whose
// index has moved.
func (l *limiter) run(ctx context.Context, base http.RoundTripper) {
	var g errgroup.Group
	defer func() { _ = g.Wait() }() // none returns an error
	select {
	case <-l.look:
	case <-ctx.Done():
		return
	}
	l.log.Info("more is watched than connections to Consul may wait for news: what has none shares some, "+
		"and its changes are seen a little later (consul-connections, or https, is for more)", "connections", l.most)
	client := &http.Client{Transport: base}
	watched := map[scope]bool{}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		began := time.Now()
		for at, header := range l.wakeChanged(ctx, client) {
			if watched[at] {
				continue
			}
			watched[at] = true
			l.mu.Lock()
			l.held += len(lists)
			l.mu.Unlock()
			for _, list := range lists {
				g.Go(func() error { l.watchList(ctx, client, at.base+list+"?"+at.query, header); return nil })
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

// wakeChanged wakes the watches without a lease whose index has moved. It returns their scopes, with the header of a
// query.
func (l *limiter) wakeChanged(ctx context.Context, client *http.Client) map[scope]http.Header {
	type look struct {
		*lease
		index   uint64
		changed time.Time
		url     url.URL
		header  http.Header
	}
	var looks []look
	scopes := map[scope]http.Header{}
	l.mu.Lock()
	for s := range l.without {
		if u, header := s.query.lastQuery(); s.shares && header != nil {
			scopes[scopeOf(u)] = header
			looks = append(looks, look{s, s.index, s.changed, u, header})
		}
	}
	l.mu.Unlock()
	// What changed last is likely to change again.
	slices.SortFunc(looks, func(a, b look) int { return b.changed.Compare(a.changed) })
	var g errgroup.Group
	g.SetLimit(spare / 2)
	for _, s := range looks {
		g.Go(func() error {
			q := s.url.Query()
			q.Set("filter", `Service.ID == ""`) // the index is all that is wanted
			s.url.RawQuery = q.Encode()
			if index, err := indexOf(ctx, client, s.url.String(), s.header, answerTime); err != nil || index != s.index {
				notify(s.wake) // it finds out what the error is
			}
			return nil
		})
	}
	_ = g.Wait()
	return scopes
}

// scopeOf returns the scope of a query for the health of a service.
func scopeOf(u url.URL) scope {
	path, _, _ := strings.Cut(u.Path, "/v1/")
	q := u.Query()
	for _, own := range []string{"tag", "passing", "near", "stale"} {
		q.Del(own)
	}
	return scope{u.Scheme + "://" + u.Host + path, q.Encode()}
}

// watchList has the watches without a lease looked at whenever a list may have changed, until ctx is done.
func (l *limiter) watchList(ctx context.Context, client *http.Client, list string, header http.Header) {
	const wait = time.Minute
	pause := newPause()
	for last := uint64(0); ; {
		began, query := time.Now(), list
		if last > 0 {
			query += fmt.Sprintf("&index=%d&wait=%s", last, wait)
		}
		index, err := indexOf(ctx, client, query, header, longest(wait)+answerTime)
		if err != nil {
			last = 0
			if !sleep(ctx, pause.NextBackOff()) {
				return
			}
			continue
		}
		pause.Reset()
		if index != last {
			notify(l.look)
		} else if !sleep(ctx, spuriousPause-time.Since(began)) {
			return
		}
		last = index
	}
}

// indexOf asks a query and reads nothing but the index of the answer.
func indexOf(ctx context.Context, client *http.Client, query string, header http.Header, within time.Duration) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, query, nil)
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
