//go:build e2e

package traffic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Load sends requests at a fixed rate, whether earlier ones are answered or not (open loop).
type Load struct {
	began time.Time
	stop  chan struct{}
	done  sync.WaitGroup
	slots chan struct{} // one for each request in flight
	gone  sync.Map      // by address, when the proxy stopped to have a server there

	mu       sync.Mutex
	requests []Request
}

// Request is what became of one.
type Request struct {
	Kept       bool // over a kept connection
	Sent, Done time.Time
	Late       time.Duration // sent so long after it was due
	Err        error
	Resent     bool // by Go's HTTP client, which does so when a kept connection breaks under a request
	Astray     bool // it was sent to a server that the proxy had no more
}

// Rate is how many requests a Load sends per second, half of them over kept connections and half over new ones.
const Rate = 500

const most = 10 * time.Minute // it ends by itself

// Start begins to ask for paths at an address, "/" if none are given. Who answers says at which address it was asked. The
// load ends with the test at the latest.
func Start(tb testing.TB, address string, paths ...string) *Load {
	l := &Load{began: time.Now(), stop: make(chan struct{}), slots: make(chan struct{}, 2000)}
	paths = slices.Clone(paths)
	if len(paths) == 0 {
		paths = []string{"/"}
	}
	for _, kept := range []bool{true, false} {
		// Proxies close an idle connection after a minute; the client goes first, or a request could meet that.
		transport := &http.Transport{MaxIdleConnsPerHost: 200, IdleConnTimeout: 20 * time.Second, DisableKeepAlives: !kept}
		client := &http.Client{Timeout: 10 * time.Second, Transport: transport}
		l.done.Go(func() { l.send(client, kept, "http://"+address, paths) })
		tb.Cleanup(transport.CloseIdleConnections)
	}
	tb.Cleanup(func() { l.End() })
	return l
}

// Left says that the proxy has no server at an address any more, and Came that it has one again.
func (l *Load) Left(address string) { l.gone.LoadOrStore(address, time.Now()) }
func (l *Load) Came(address string) { l.gone.Delete(address) }

// send sends requests of one kind. What comes late, because the machine was busy, is sent all the same.
func (l *Load) send(client *http.Client, kept bool, url string, paths []string) {
	tick := time.NewTimer(0)
	defer tick.Stop()
	var requests sync.WaitGroup
	defer requests.Wait()
	due := l.began
	for n := 0; due.Sub(l.began) < most; n++ {
		due = due.Add(2 * time.Second / Rate)
		tick.Reset(time.Until(due))
		select {
		case <-l.stop:
			return
		case <-tick.C:
		}
		req := Request{Kept: kept, Sent: time.Now(), Late: time.Since(due)}
		select {
		case l.slots <- struct{}{}:
		default:
			req.Done, req.Err = req.Sent, errors.New("not sent: too many requests are in flight")
			l.record(req)
			continue
		}
		requests.Go(func() {
			req.ask(client, url+paths[n%len(paths)], &l.gone)
			<-l.slots
			l.record(req)
		})
	}
}

func (q *Request) ask(client *http.Client, url string, gone *sync.Map) {
	var connections atomic.Int32
	ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { connections.Add(1) },
	})
	q.Sent = time.Now()
	address, err := Fetch(ctx, client, url)
	q.Done, q.Err, q.Resent = time.Now(), err, connections.Load() > 1
	if when, ok := gone.Load(address); ok && err == nil {
		q.Astray = when.(time.Time).Before(q.Sent)
	}
}

// Fetch returns the answer to a request. It is an error if that is not 200.
func Fetch(ctx context.Context, client *http.Client, url string) (string, error) {
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

func (l *Load) record(q Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests = append(l.requests, q)
}

// End ends the requests, waits for the last answers, and returns all.
func (l *Load) End() Requests {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.done.Wait()
	return l.requests
}

// Requests are some of them, in any order.
type Requests []Request

// During are those that were under way at some time between two moments, and the others.
func (rs Requests) During(from, to time.Time) (in, others Requests) {
	for _, q := range rs {
		if q.Sent.Before(to) && q.Done.After(from) {
			in = append(in, q)
		} else {
			others = append(others, q)
		}
	}
	return in, others
}

func (rs Requests) count(f func(Request) bool) (n int) {
	for _, q := range rs {
		if f(q) {
			n++
		}
	}
	return n
}

// Failed is how many have failed.
func (rs Requests) Failed() int { return rs.count(func(q Request) bool { return q.Err != nil }) }

// Resent is how many the client had to send again.
func (rs Requests) Resent() int { return rs.count(func(q Request) bool { return q.Resent }) }

// Astray are those that went to a server that was removed before they were sent.
func (rs Requests) Astray() Requests {
	return slices.DeleteFunc(slices.Clone(rs), func(q Request) bool { return !q.Astray })
}

// Of are those of one kind.
func (rs Requests) Of(kept bool) Requests {
	return slices.DeleteFunc(slices.Clone(rs), func(q Request) bool { return q.Kept != kept })
}

// Took is how long each took.
func (rs Requests) Took() Times {
	var out Times
	for _, q := range rs {
		out = append(out, q.Done.Sub(q.Sent))
	}
	return out.Sorted()
}

// String says what failed of them, kept connections first.
func (rs Requests) String() string {
	kept, fresh, took := rs.Of(true), rs.Of(false), rs.Took()
	late := time.Duration(0)
	for _, q := range rs {
		late = max(late, q.Late)
	}
	return fmt.Sprintf("%d of %d and %d of %d requests failed, %d resent by the client, p99 %s, slowest %s, at most %s late", kept.Failed(), len(kept),
		fresh.Failed(), len(fresh), rs.Resent(), Ms(took.Within(0.99)), Ms(took.Within(1)), Ms(late))
}

// Failures are the first few, in words.
func (rs Requests) Failures() string {
	failed := slices.DeleteFunc(slices.Clone(rs), func(q Request) bool { return q.Err == nil })
	slices.SortFunc(failed, func(a, b Request) int { return a.Sent.Compare(b.Sent) })
	var b strings.Builder
	for _, q := range failed[:min(len(failed), 5)] {
		fmt.Fprintf(&b, "\n  %s, kept connection %t, after %s: %v", q.Sent.Format("15:04:05.000"), q.Kept, Ms(q.Done.Sub(q.Sent)), q.Err)
	}
	return b.String()
}
