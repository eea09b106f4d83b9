//go:build e2e

package e2e

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// load sends requests at a fixed rate, whether earlier ones are answered or not (open loop).
type load struct {
	rate  int // requests per second, of all kinds together
	began time.Time
	stop  <-chan struct{}
	end   func() // closes stop
	done  sync.WaitGroup
	slots chan struct{} // one for each request in flight

	mu       sync.Mutex
	sofar    report
	answered map[string]answers // by host
}

// answers are the first and the last one of a host: when the first came, and when the request for the last was sent.
type answers struct{ first, last time.Time }

// The kinds of requests: over kept connections and over new ones.
const (
	kept  = "keep-alive"
	fresh = "new"
)

const (
	loadRate    = 500
	loadTimeout = 10 * time.Second
	loadMost    = 5 * time.Minute // it ends by itself
	loadSlots   = 2000            // in flight; what is due when they are taken has failed

	noticeable = 500 * time.Millisecond // a request that takes longer is counted
)

// startLoad sends 500 requests per second, half of them over kept connections and half over new ones.
func startLoad(t testing.TB, s *stack) *load {
	t.Helper()
	return startLoadAt(t, s.web, loadRate, kept, fresh)
}

// startLoadAt shares the rate equally among the kinds. The load ends with the test at the latest.
func startLoadAt(t testing.TB, address string, rate int, kinds ...string) *load {
	stop := make(chan struct{})
	l := &load{
		rate:     rate,
		began:    time.Now(),
		stop:     stop,
		end:      sync.OnceFunc(func() { close(stop) }),
		slots:    make(chan struct{}, loadSlots),
		sofar:    report{sent: map[string]int{}, failed: map[string]int{}, rate: rate},
		answered: map[string]answers{},
	}
	each := time.Second / time.Duration(rate)
	for i, kind := range kinds {
		first := l.began.Add(time.Duration(i) * each)
		l.done.Go(func() {
			l.send(kind, &client{address: address, keep: kind == kept}, first, time.Duration(len(kinds))*each)
		})
	}
	t.Cleanup(func() { l.end(); l.done.Wait() })
	return l
}

// send sends requests of one kind. What comes late, because the machine was busy, is sent all the same.
func (l *load) send(kind string, c *client, first time.Time, every time.Duration) {
	defer c.close()
	var requests sync.WaitGroup
	defer requests.Wait()
	tick := time.NewTimer(0)
	defer tick.Stop()
	for due := first; due.Sub(first) < loadMost; due = due.Add(every) {
		tick.Reset(time.Until(due))
		select {
		case <-l.stop:
			return
		case <-tick.C:
		}
		sent := time.Now()
		select {
		case l.slots <- struct{}{}:
		default:
			l.record(kind, sent, sent.Sub(due), "", fmt.Errorf("not sent: %d requests are in flight", loadSlots))
			continue
		}
		requests.Go(func() {
			host, err := c.ask()
			<-l.slots
			l.record(kind, sent, sent.Sub(due), host, err)
		})
	}
}

func (l *load) record(kind string, sent time.Time, late time.Duration, host string, err error) {
	now := time.Now()
	took := now.Sub(sent)
	l.mu.Lock()
	defer l.mu.Unlock()
	r := &l.sofar
	r.sent[kind]++
	r.late = max(r.late, late)
	r.took = append(r.took, took)
	if err != nil {
		r.failed[kind]++
		r.failures = append(r.failures, fmt.Sprintf("%s, sent %v after the start, took %v: %v", kind,
			sent.Sub(l.began).Round(time.Millisecond), took.Round(time.Millisecond), err))
		return
	}
	a := l.answered[host]
	a.first = cmp.Or(a.first, now)
	if sent.After(a.last) {
		a.last = sent
	}
	l.answered[host] = a
}

// of says what a container has answered so far, nothing is the zero value.
func (l *load) of(container string) answers {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.answered[hostname(container)]
}

// expectAnswers is nil when each of the containers has answered a request sent after a moment.
func (l *load) expectAnswers(since time.Time, containers ...string) error {
	var silent []string
	for _, id := range containers {
		if !l.of(id).last.After(since) {
			silent = append(silent, hostname(id))
		}
	}
	if len(silent) > 0 {
		return fmt.Errorf("no answer from %v", silent)
	}
	return nil
}

// hostname is the one that Docker gives a container, by which the app calls itself.
func hostname(container string) string { return container[:min(12, len(container))] }

// finish ends the load and waits for its last answers.
func (l *load) finish() report {
	lasted := time.Since(l.began)
	l.end()
	l.done.Wait()
	l.sofar.lasted = lasted
	slices.Sort(l.sofar.took)
	return l.sofar
}

// report is what a load came to.
type report struct {
	sent, failed map[string]int // by kind
	failures     []string       // why
	took         []time.Duration
	late         time.Duration // the most that a request was sent after its time
	lasted       time.Duration
	rate         int
}

// join is what several loads of the same rate, one after the other, came to.
func join(reports ...report) report {
	all := report{sent: map[string]int{}, failed: map[string]int{}}
	for _, r := range reports {
		for kind := range r.sent {
			all.sent[kind] += r.sent[kind]
			all.failed[kind] += r.failed[kind]
		}
		all.failures = append(all.failures, r.failures...)
		all.took = append(all.took, r.took...)
		all.late = max(all.late, r.late)
		all.lasted += r.lasted
		all.rate = r.rate
	}
	slices.Sort(all.took)
	return all
}

func sum(counts map[string]int) (total int) {
	for _, n := range counts {
		total += n
	}
	return total
}

// slow is how many of the requests took noticeably long.
func (r report) slow() int {
	at, _ := slices.BinarySearch(r.took, noticeable+1)
	return len(r.took) - at
}

// within is the time within which this share of the requests was done: 0.5 for the median, 1 for all.
func (r report) within(share float64) time.Duration {
	if len(r.took) == 0 {
		return 0
	}
	return r.took[int(share*float64(len(r.took)-1))].Round(100 * time.Microsecond)
}

// expectNoneFailed makes what failed an error of the test, and a load that was not what it should have been.
func (r report) expectNoneFailed(t testing.TB, during string) {
	t.Helper()
	if failed := sum(r.failed); failed > 0 {
		t.Errorf("%s: %d of %d requests failed, want 0", during, failed, sum(r.sent))
	}
	if due := float64(r.rate) * r.lasted.Seconds(); float64(sum(r.sent)) < due/2 || due < 1 {
		t.Errorf("%s: %d requests were sent in %v, %.0f should have been", during, sum(r.sent), r.lasted, due)
	}
}

func (r report) String() string {
	var b strings.Builder
	for _, kind := range slices.Sorted(maps.Keys(r.sent)) {
		fmt.Fprintf(&b, "%s: %d of %d failed, ", kind, r.failed[kind], r.sent[kind])
	}
	slow := "none"
	if n := r.slow(); n > 0 {
		slow = fmt.Sprint(n)
	}
	fmt.Fprintf(&b, "%s slower than %v; p50 %v, p99 %v, slowest %v (%.0f requests/s, at most %v late)",
		slow, noticeable, r.within(0.5), r.within(0.99), r.within(1),
		float64(sum(r.sent))/r.lasted.Seconds(), r.late.Round(time.Millisecond))
	for i, f := range r.failures {
		if i == 5 {
			fmt.Fprintf(&b, "\n  and %d more", len(r.failures)-i)
			break
		}
		b.WriteString("\n  " + f)
	}
	return b.String()
}

// client sends requests over connections of its own. Go's HTTP client takes three times the CPU time, which the servers
// need, and when a kept connection breaks under a request it sends that again and says nothing.
type client struct {
	address string
	keep    bool

	mu   sync.Mutex
	idle []*conn // the one used last is at the end
}

type conn struct {
	net.Conn
	answers *bufio.Reader
	used    time.Time
}

// idleMost is less than the minute after which HAProxy closes an idle connection, maybe under the next request.
const idleMost = 20 * time.Second

// ask sends a request and returns the host that answered.
func (c *client) ask() (host string, err error) {
	conn, err := c.conn()
	if err != nil {
		return "", err
	}
	host, again, err := conn.ask(c.keep)
	if err != nil || !again {
		conn.Close()
		return host, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle = append(c.idle, conn)
	return host, nil
}

// conn is a connection for one request.
func (c *client) conn() (*conn, error) {
	c.mu.Lock()
	for len(c.idle) > 0 {
		last := c.idle[len(c.idle)-1]
		c.idle = c.idle[:len(c.idle)-1]
		if time.Since(last.used) < idleMost {
			c.mu.Unlock()
			return last, nil
		}
		last.Close()
	}
	c.mu.Unlock()
	to, err := net.DialTimeout("tcp", c.address, loadTimeout)
	if err != nil {
		return nil, err
	}
	return &conn{Conn: to, answers: bufio.NewReader(to)}, nil
}

func (c *client) close() {
	for _, conn := range c.idle {
		conn.Close()
	}
}

// ask sends a request and returns the host that answered, and whether the connection may be used again.
func (c *conn) ask(keep bool) (host string, again bool, err error) {
	c.used = time.Now()
	if err := c.SetDeadline(c.used.Add(loadTimeout)); err != nil {
		return "", false, err
	}
	request := "GET / HTTP/1.1\r\nHost: app\r\n\r\n"
	if !keep {
		request = "GET / HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n"
	}
	if _, err := io.WriteString(c, request); err != nil {
		return "", false, err
	}
	resp, err := http.ReadResponse(c.answers, nil)
	if err != nil {
		return "", false, err
	}
	host, err = hostIn(resp)
	return host, keep && !resp.Close, err
}
