//go:build e2e

package testenv

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

// Load sends requests to the demo app at a fixed rate, whether earlier ones are answered or not (open loop).
type Load struct {
	Began time.Time

	rate  int // requests per second, of all kinds together
	stop  <-chan struct{}
	end   func() // closes stop
	done  sync.WaitGroup
	slots chan struct{} // one for each request in flight

	mu       sync.Mutex
	sofar    Report
	answered map[string]Answers // by host
}

// Answers are the first and the last one of a host: when the first came, and when the request for the last was sent.
type Answers struct{ First, Last time.Time }

// The kinds of requests: over kept connections and over new ones.
const (
	Kept  = "keep-alive"
	Fresh = "new"
)

const (
	LoadTimeout = 10 * time.Second // of one request
	LoadMost    = 5 * time.Minute  // it ends by itself
	loadSlots   = 2000             // in flight; what is due when they are taken has failed

	noticeable = 500 * time.Millisecond // a request that takes longer is counted
)

// StartLoad sends so many requests per second to an address, the same number of each kind. The load ends with the test at the latest.
func StartLoad(t testing.TB, address string, rate int, kinds ...string) *Load {
	stop := make(chan struct{})
	l := &Load{
		rate:     rate,
		Began:    time.Now(),
		stop:     stop,
		end:      sync.OnceFunc(func() { close(stop) }),
		slots:    make(chan struct{}, loadSlots),
		sofar:    Report{sent: map[string]int{}, failed: map[string]int{}, rate: rate},
		answered: map[string]Answers{},
	}
	each := time.Second / time.Duration(rate)
	for i, kind := range kinds {
		first := l.Began.Add(time.Duration(i) * each)
		l.done.Go(func() {
			l.send(kind, &client{address: address, keep: kind == Kept}, first, time.Duration(len(kinds))*each)
		})
	}
	t.Cleanup(func() { l.end(); l.done.Wait() })
	return l
}

// send sends requests of one kind. What comes late, because the machine was busy, is sent all the same.
func (l *Load) send(kind string, c *client, first time.Time, every time.Duration) {
	defer c.close()
	var requests sync.WaitGroup
	defer requests.Wait()
	tick := time.NewTimer(0)
	defer tick.Stop()
	for due := first; due.Sub(first) < LoadMost; due = due.Add(every) {
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

func (l *Load) record(kind string, sent time.Time, late time.Duration, host string, err error) {
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
			sent.Sub(l.Began).Round(time.Millisecond), took.Round(time.Millisecond), err))
		return
	}
	a := l.answered[host]
	a.First = cmp.Or(a.First, now)
	if sent.After(a.Last) {
		a.Last = sent
	}
	l.answered[host] = a
}

// Of says what a container has answered so far, nothing is the zero value.
func (l *Load) Of(container string) Answers {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.answered[Hostname(container)]
}

// ExpectAnswers is nil when each of the containers has answered a request sent after a moment.
func (l *Load) ExpectAnswers(since time.Time, containers ...string) error {
	var silent []string
	for _, id := range containers {
		if !l.Of(id).Last.After(since) {
			silent = append(silent, Hostname(id))
		}
	}
	if len(silent) > 0 {
		return fmt.Errorf("no answer from %v", silent)
	}
	return nil
}

// Finish ends the load and waits for its last answers.
func (l *Load) Finish() Report {
	lasted := time.Since(l.Began)
	l.end()
	l.done.Wait()
	l.sofar.lasted = lasted
	slices.Sort(l.sofar.took)
	return l.sofar
}

// Report is what a load came to.
type Report struct {
	sent, failed map[string]int // by kind
	failures     []string       // why
	took         []time.Duration
	late         time.Duration // the most that a request was sent after its time
	lasted       time.Duration
	rate         int
}

// Join is what several loads of the same rate, one after the other, came to.
func Join(reports ...Report) Report {
	all := Report{sent: map[string]int{}, failed: map[string]int{}}
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

// Sent is how many requests were sent.
func (r Report) Sent() int { return sum(r.sent) }

// Failed is how many of them failed.
func (r Report) Failed() int { return sum(r.failed) }

func sum(counts map[string]int) (total int) {
	for _, n := range counts {
		total += n
	}
	return total
}

// slow is how many of the requests took noticeably long.
func (r Report) slow() int {
	at, _ := slices.BinarySearch(r.took, noticeable+1)
	return len(r.took) - at
}

// Within is the time within which this share of the requests was done: 0.5 for the median, 1 for all.
func (r Report) Within(share float64) time.Duration {
	if len(r.took) == 0 {
		return 0
	}
	return r.took[int(share*float64(len(r.took)-1))].Round(100 * time.Microsecond)
}

// ExpectNoneFailed makes what failed an error of the test, and a load that was not what it should have been.
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
	var b strings.Builder
	for _, kind := range slices.Sorted(maps.Keys(r.sent)) {
		fmt.Fprintf(&b, "%s: %d of %d failed, ", kind, r.failed[kind], r.sent[kind])
	}
	slow := "none"
	if n := r.slow(); n > 0 {
		slow = fmt.Sprint(n)
	}
	fmt.Fprintf(&b, "%s slower than %v; p50 %v, p99 %v, slowest %v (%.0f requests/s, at most %v late)",
		slow, noticeable, r.Within(0.5), r.Within(0.99), r.Within(1),
		float64(r.Sent())/r.lasted.Seconds(), r.late.Round(time.Millisecond))
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
	to, err := net.DialTimeout("tcp", c.address, LoadTimeout)
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
	if err := c.SetDeadline(c.used.Add(LoadTimeout)); err != nil {
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
	host, err = Host(resp)
	return host, keep && !resp.Close, err
}

// Host is the host that an answer of the demo app comes from. The error is what else the answer is.
func Host(resp *http.Response) (string, error) {
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	first, _, _ := strings.Cut(string(body), "\n")
	host, ok := strings.CutPrefix(first, "Hosted by ")
	if resp.StatusCode != http.StatusOK || !ok {
		return "", fmt.Errorf("%s: %q", resp.Status, first)
	}
	return host, nil
}
