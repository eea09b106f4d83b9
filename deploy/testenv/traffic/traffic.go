//go:build e2e

package traffic

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"berth/deploy/testenv"
)

// Load sends requests at a fixed rate, regardless of answers (open loop).
type Load struct {
	Began time.Time

	rate    int // requests per second, all kinds together
	stop    <-chan struct{}
	end     func() // closes stop
	done    sync.WaitGroup
	slots   chan struct{} // one for each request in flight
	leftOut atomic.Int64  // requests

	gone sync.Map // by address: when the proxy removed its server

	mu       sync.Mutex
	requests Requests
	answered map[string]Answers // by host
}

// Request is the outcome of one request.
type Request struct {
	Exchange
	Kept       bool // over a kept connection
	Sent, Done time.Time
	Late       time.Duration // delay of sending
	Answer     string        // who answered: an address or a host name
	Err        error
	Resent     bool // by Go's HTTP client, after a kept connection broke during a request
	Astray     bool // sent to a server that the proxy had removed
}

// Answers are the first and the last answer of a host: the arrival of the first, and the sending of the last one's request.
type Answers struct{ First, Last time.Time }

// The kinds of requests: over kept connections and over new ones.
const (
	Kept  = true
	Fresh = false
)

// Rate is how many requests Start's Load sends per second, half of them over kept and half over new connections.
const Rate = 500

const (
	Timeout = 10 * time.Second // of one request
	Most    = 10 * time.Minute // a Load ends by itself

	inFlight = 2000 // requests; beyond this, due requests are skipped
)

// asker sends the nth request of a kind and records its outcome.
type asker interface {
	ask(n int, q *Request)
	close()
}

// Start requests paths at an address ("/" by default) with Go's HTTP client. Each answer contains the address that was
// asked. The load ends with the test at the latest.
func Start(tb testing.TB, address string, paths ...string) *Load {
	if len(paths) == 0 {
		paths = []string{"/"}
	}
	urls := make([]string, len(paths))
	for i, path := range paths {
		urls[i] = "http://" + address + path
	}
	return start(tb, Rate, []bool{Kept, Fresh}, func(kept bool) asker {
		// Proxies close an idle connection after a minute. The client closes first, or a request could hit the closing.
		transport := &http.Transport{MaxIdleConnsPerHost: 200, IdleConnTimeout: 20 * time.Second, DisableKeepAlives: !kept}
		return &httpClient{&http.Client{Timeout: Timeout, Transport: transport}, urls}
	})
}

// ToApp sends the given number of requests per second to the demo app at an address, the same number of each kind. The load
// ends with the test at the latest.
func ToApp(tb testing.TB, address string, rate int, kinds ...bool) *Load {
	get := Exchange{Method: http.MethodGet, Host: "app", Path: "/"}
	return Send(tb, address, rate, func(bool, int) Exchange { return get }, kinds...)
}

// Send is ToApp with the caller's requests: next returns the nth request of a kind.
func Send(tb testing.TB, address string, rate int, next func(kept bool, n int) Exchange, kinds ...bool) *Load {
	return start(tb, rate, kinds, func(kept bool) asker {
		return &client{address: address, keep: kept, next: func(n int) Exchange { return next(kept, n) }}
	})
}

func start(tb testing.TB, rate int, kinds []bool, newClient func(kept bool) asker) *Load {
	stop := make(chan struct{})
	l := &Load{
		Began:    time.Now(),
		rate:     rate,
		stop:     stop,
		end:      sync.OnceFunc(func() { close(stop) }),
		slots:    make(chan struct{}, inFlight),
		answered: map[string]Answers{},
	}
	each := time.Second / time.Duration(rate)
	for i, kept := range kinds {
		first := l.Began.Add(time.Duration(i) * each)
		l.done.Go(func() { l.send(newClient(kept), kept, first, time.Duration(len(kinds))*each) })
	}
	tb.Cleanup(func() { l.End() })
	return l
}

// send sends requests of one kind. Late requests, on a busy machine, are still sent.
func (l *Load) send(c asker, kept bool, first time.Time, every time.Duration) {
	defer c.close()
	var requests sync.WaitGroup
	defer requests.Wait()
	tick := time.NewTimer(0)
	defer tick.Stop()
	due := first
	for n := 0; due.Sub(first) < Most; n++ {
		tick.Reset(time.Until(due))
		select {
		case <-l.stop:
			return
		case <-tick.C:
		}
		q := Request{Kept: kept, Sent: time.Now(), Late: time.Since(due)}
		due = due.Add(every)
		select {
		case l.slots <- struct{}{}:
		default:
			l.leftOut.Add(1) // the machine is too busy for this rate, which is not the proxy's fault
			continue
		}
		requests.Go(func() {
			q.Sent = time.Now()
			c.ask(n, &q)
			<-l.slots
			if when, ok := l.gone.Load(q.Answer); ok && q.Err == nil {
				q.Astray = when.(time.Time).Before(q.Sent)
			}
			l.record(q)
		})
	}
}

func (l *Load) record(q Request) {
	q.Done = time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests = append(l.requests, q)
	if q.Err != nil {
		return
	}
	a := l.answered[q.Answer]
	a.First = cmp.Or(a.First, q.Done)
	if q.Sent.After(a.Last) {
		a.Last = q.Sent
	}
	l.answered[q.Answer] = a
}

// Left records that the proxy no longer has a server at an address, and Came that it has one again.
func (l *Load) Left(address string) { l.gone.LoadOrStore(address, time.Now()) }
func (l *Load) Came(address string) { l.gone.Delete(address) }

// Of returns a container's answers so far.
func (l *Load) Of(container string) Answers {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.answered[testenv.Hostname(container)]
}

// ExpectAnswers returns nil if each container has answered a request sent after the given time.
func (l *Load) ExpectAnswers(since time.Time, containers ...string) error {
	var silent []string
	for _, id := range containers {
		if !l.Of(id).Last.After(since) {
			silent = append(silent, testenv.Hostname(id))
		}
	}
	if len(silent) > 0 {
		return fmt.Errorf("no answer from %v", silent)
	}
	return nil
}

// ExpectSent returns nil if the given number of requests was answered or failed, for a test that needs to go on for a
// while.
func (l *Load) ExpectSent(n int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.requests) < n {
		return fmt.Errorf("%d requests are done, want %d", len(l.requests), n)
	}
	return nil
}

// End ends the requests, waits for the last answers, and returns all of them.
func (l *Load) End() Requests {
	l.end()
	l.done.Wait()
	return l.requests
}

// Finish is End with the rate, for a report.
func (l *Load) Finish() Report {
	lasted := time.Since(l.Began)
	return Report{l.End(), l.rate, lasted, int(l.leftOut.Load())}
}

// Requests are outcomes in any order.
type Requests []Request

// Where returns the requests for which f is true.
func (rs Requests) Where(f func(Request) bool) Requests {
	return slices.DeleteFunc(slices.Clone(rs), func(q Request) bool { return !f(q) })
}

// During returns the requests that were in flight at some time between two moments, and the others.
func (rs Requests) During(from, to time.Time) (in, others Requests) {
	during := func(q Request) bool { return q.Sent.Before(to) && q.Done.After(from) }
	return rs.Where(during), rs.Where(func(q Request) bool { return !during(q) })
}

// Failed returns how many failed.
func (rs Requests) Failed() int { return len(rs.failures()) }

func (rs Requests) failures() Requests {
	return rs.Where(func(q Request) bool { return q.Err != nil })
}

// Resent returns how many requests the client had to send again.
func (rs Requests) Resent() int { return len(rs.Where(func(q Request) bool { return q.Resent })) }

// Astray returns the requests to a server that was removed before they were sent.
func (rs Requests) Astray() Requests { return rs.Where(func(q Request) bool { return q.Astray }) }

// Of returns the requests of one kind.
func (rs Requests) Of(kept bool) Requests {
	return rs.Where(func(q Request) bool { return q.Kept == kept })
}

// Took returns the sorted durations.
func (rs Requests) Took() Times {
	var out Times
	for _, q := range rs {
		out = append(out, q.Done.Sub(q.Sent))
	}
	return out.Sorted()
}

const noticeable = 500 * time.Millisecond // slower requests are counted

// String summarizes the requests. Failures has the reasons.
func (rs Requests) String() string {
	kept, fresh, took := rs.Of(Kept), rs.Of(Fresh), rs.Took()
	var late time.Duration
	for _, q := range rs {
		late = max(late, q.Late)
	}
	slow, _ := slices.BinarySearch(took, noticeable+1)
	return fmt.Sprintf("%d of %d requests over kept and %d of %d over new connections failed, %d resent by the client, %d slower than %v; p50 %s, p99 %s, slowest %s ms, at most %s ms late",
		kept.Failed(), len(kept), fresh.Failed(), len(fresh), rs.Resent(), len(took)-slow, noticeable,
		Ms(took.Within(0.5)), Ms(took.Within(0.99)), Ms(took.Within(1)), Ms(late))
}

// Failures describes the first few failures, one line each.
func (rs Requests) Failures() (text string) {
	failed := rs.failures()
	slices.SortFunc(failed, func(a, b Request) int { return a.Sent.Compare(b.Sent) })
	for i, q := range failed {
		if i == 5 {
			return text + fmt.Sprintf("\n  and %d more", len(failed)-i)
		}
		text += fmt.Sprintf("\n  %s, %s, kept connection %t, after %s ms: %v", q.Sent.Format("15:04:05.000"), q.Exchange, q.Kept, Ms(q.Done.Sub(q.Sent)), q.Err)
	}
	return text
}

// Report is the result of a load.
type Report struct {
	Requests
	rate    int
	lasted  time.Duration
	leftOut int // requests that were due while too many were in flight
}

// Join returns the result of several consecutive loads of the same rate.
func Join(reports ...Report) (all Report) {
	for _, r := range reports {
		all.Requests = append(all.Requests, r.Requests...)
		all.lasted += r.lasted
		all.leftOut += r.leftOut
		all.rate = r.rate
	}
	return all
}

// Sent returns how many requests were sent.
func (r Report) Sent() int { return len(r.Requests) }

// Within returns the time within which the given share of the requests was done: 0.5 for the median, 1 for all.
func (r Report) Within(share float64) time.Duration {
	return r.Took().Within(share).Round(100 * time.Microsecond)
}

// ExpectNoneFailed fails the test if a request failed or the load was not as planned.
func (r Report) ExpectNoneFailed(t testing.TB, during string) {
	t.Helper()
	if failed := r.Failed(); failed > 0 {
		t.Errorf("%s: %d of %d requests failed, want 0", during, failed, r.Sent())
	}
	if due := float64(r.rate) * r.lasted.Seconds(); float64(r.Sent()) < due/2 || due < 1 {
		t.Errorf("%s: %d requests were sent in %v, %.0f should have been", during, r.Sent(), r.lasted, due)
	}
}

func (r Report) String() string {
	late := ""
	if r.leftOut > 0 {
		late = fmt.Sprintf(", %d not sent because %d were in flight", r.leftOut, inFlight)
	}
	return fmt.Sprintf("%s (%.0f requests/s%s)%s", r.Requests, float64(r.Sent())/r.lasted.Seconds(), late, r.Failures())
}
