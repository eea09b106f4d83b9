//go:build e2e

package haproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// traffic sends requests at a fixed rate, whether earlier ones are answered or not (open loop).
type traffic struct {
	began time.Time
	stop  chan struct{}
	done  sync.WaitGroup
	slots chan struct{} // one for each request in flight
	gone  sync.Map      // by address, when HAProxy stopped to have a server there

	mu       sync.Mutex
	requests []request
}

// request is what became of one.
type request struct {
	kept       bool // over a kept connection
	sent, done time.Time
	late       time.Duration // sent so long after it was due
	err        error
	resent     bool // by Go's HTTP client, which does so when a kept connection breaks under a request
	astray     bool // it was sent to a server that HAProxy had no more
}

const (
	trafficRate = 500 // per second, half of them over kept connections and half over new ones
	trafficMost = 10 * time.Minute
)

func (r *rig) traffic(paths ...string) *traffic {
	t := &traffic{began: time.Now(), stop: make(chan struct{}), slots: make(chan struct{}, 2000)}
	paths = slices.Clone(paths)
	if len(paths) == 0 {
		paths = []string{"/"}
	}
	for _, kept := range []bool{true, false} {
		// HAProxy closes an idle connection after a minute; the client goes first, or a request could meet that.
		transport := &http.Transport{MaxIdleConnsPerHost: 200, IdleConnTimeout: 20 * time.Second, DisableKeepAlives: !kept}
		client := &http.Client{Timeout: 10 * time.Second, Transport: transport}
		t.done.Go(func() { t.send(client, kept, "http://"+r.web, paths) })
		r.Cleanup(transport.CloseIdleConnections)
	}
	r.Cleanup(func() { t.end() })
	return t
}

// send sends requests of one kind. What comes late, because the machine was busy, is sent all the same.
func (t *traffic) send(client *http.Client, kept bool, url string, paths []string) {
	tick := time.NewTimer(0)
	defer tick.Stop()
	var requests sync.WaitGroup
	defer requests.Wait()
	due := t.began
	for n := 0; due.Sub(t.began) < trafficMost; n++ {
		due = due.Add(2 * time.Second / trafficRate)
		tick.Reset(time.Until(due))
		select {
		case <-t.stop:
			return
		case <-tick.C:
		}
		req := request{kept: kept, sent: time.Now(), late: time.Since(due)}
		select {
		case t.slots <- struct{}{}:
		default:
			req.done, req.err = req.sent, errors.New("not sent: too many requests are in flight")
			t.record(req)
			continue
		}
		requests.Go(func() {
			req.ask(client, url+paths[n%len(paths)], &t.gone)
			<-t.slots
			t.record(req)
		})
	}
}

func (q *request) ask(client *http.Client, url string, gone *sync.Map) {
	var connections atomic.Int32
	ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { connections.Add(1) },
	})
	q.sent = time.Now()
	address, err := fetch(ctx, client, url)
	q.done, q.err, q.resent = time.Now(), err, connections.Load() > 1
	if when, ok := gone.Load(address); ok && err == nil {
		q.astray = when.(time.Time).Before(q.sent)
	}
}

// fetch returns the answer to a request.
func fetch(ctx context.Context, client *http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return string(body), err
}

func (t *traffic) record(q request) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.requests = append(t.requests, q)
}

// end ends the requests, waits for the last answers, and returns all.
func (t *traffic) end() requests {
	select {
	case <-t.stop:
	default:
		close(t.stop)
	}
	t.done.Wait()
	return t.requests
}

// requests are some of them, in any order.
type requests []request

// during are those that were under way at some time between two moments, and the others.
func (rs requests) during(from, to time.Time) (in, others requests) {
	for _, q := range rs {
		if q.sent.Before(to) && q.done.After(from) {
			in = append(in, q)
		} else {
			others = append(others, q)
		}
	}
	return in, others
}

func (rs requests) count(f func(request) bool) (n int) {
	for _, q := range rs {
		if f(q) {
			n++
		}
	}
	return n
}

func (rs requests) failed() int { return rs.count(func(q request) bool { return q.err != nil }) }
func (rs requests) resent() int { return rs.count(func(q request) bool { return q.resent }) }

// astray are those that went to a server that was removed before they were sent.
func (rs requests) astray() requests {
	return slices.DeleteFunc(slices.Clone(rs), func(q request) bool { return !q.astray })
}

// of are those of one kind.
func (rs requests) of(kept bool) requests {
	return slices.DeleteFunc(slices.Clone(rs), func(q request) bool { return q.kept != kept })
}

func (rs requests) took() times {
	var out times
	for _, q := range rs {
		out = append(out, q.done.Sub(q.sent))
	}
	slices.Sort(out)
	return out
}

// String says what failed of them, kept connections first.
func (rs requests) String() string {
	kept, fresh, took := rs.of(true), rs.of(false), rs.took()
	late := time.Duration(0)
	for _, q := range rs {
		late = max(late, q.late)
	}
	return fmt.Sprintf("%d of %d and %d of %d requests failed, %d resent by the client, p99 %s, slowest %s, at most %s late", kept.failed(), len(kept),
		fresh.failed(), len(fresh), rs.resent(), ms(took.within(0.99)), ms(took.within(1)), ms(late))
}

// failures are the first few, in words.
func (rs requests) failures() string {
	failed := slices.DeleteFunc(slices.Clone(rs), func(q request) bool { return q.err == nil })
	slices.SortFunc(failed, func(a, b request) int { return a.sent.Compare(b.sent) })
	var b strings.Builder
	for _, q := range failed[:min(len(failed), 5)] {
		fmt.Fprintf(&b, "\n  %s, kept connection %t, after %s: %v", q.sent.Format("15:04:05.000"), q.kept, ms(q.done.Sub(q.sent)), q.err)
	}
	return b.String()
}

// times are sorted.
type times []time.Duration

// within is the time within which this share of them lies: 0.5 for the median, 1 for all.
func (ts times) within(share float64) time.Duration {
	if len(ts) == 0 {
		return 0
	}
	return ts[int(share*float64(len(ts)-1))]
}

// ms is a duration for a table.
func ms(d time.Duration) string {
	digits := 1
	if d >= 100*time.Millisecond {
		digits = 0
	}
	return strconv.FormatFloat(millis(d), 'f', digits, 64)
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func (ts times) sorted() times {
	slices.Sort(ts)
	return ts
}
