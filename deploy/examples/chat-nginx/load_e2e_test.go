//go:build e2e

package chatnginx

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"
)

const (
	loadEach    = 5                     // clients of each kind
	loadPause   = 50 * time.Millisecond // between two requests of a client
	loadMost    = 2 * time.Minute       // limit of the load
	loadTimeout = 10 * time.Second      // per request
)

// The kinds of clients.
const (
	fresh    = "a connection for each request"
	kept     = "kept connections, no second try"
	browsers = "kept connections, second try as browsers do"
)

// load is clients that repeatedly request the login page.
type load struct {
	stop chan struct{}
	done sync.WaitGroup

	mu       sync.Mutex
	sent     map[string]int
	failures map[string][]error
}

func startLoad(address string) *load {
	l := &load{stop: make(chan struct{}), sent: map[string]int{}, failures: map[string][]error{}}
	for range loadEach {
		for kind, ask := range map[string]func() error{
			fresh:    (&rawClient{address: address}).ask,
			kept:     (&rawClient{address: address, keep: true}).ask,
			browsers: (&browserClient{url: "http://" + address + "/", transport: &http.Transport{}}).ask,
		} {
			l.done.Go(func() { l.run(kind, ask) })
		}
	}
	return l
}

func (l *load) run(kind string, ask func() error) {
	tick := time.NewTicker(loadPause)
	defer tick.Stop()
	for end := time.Now().Add(loadMost); time.Now().Before(end); {
		began := time.Now()
		err := ask()
		l.mu.Lock()
		l.sent[kind]++
		if err != nil {
			l.failures[kind] = append(l.failures[kind], fmt.Errorf("sent %s, after %v: %w",
				began.Format("15:04:05.000"), time.Since(began).Round(time.Millisecond), err))
		}
		l.mu.Unlock()
		select {
		case <-tick.C:
		case <-l.stop:
			return
		}
	}
}

// finish ends the load and prints its results.
func (l *load) finish(t testing.TB, during string) {
	t.Helper()
	close(l.stop)
	l.done.Wait()
	for _, kind := range []string{fresh, kept, browsers} {
		t.Logf("%s: %d of %d requests failed: %s", during, len(l.failures[kind]), l.sent[kind], kind)
		for i, err := range l.failures[kind] {
			if i == 5 {
				t.Logf("  and %d more", len(l.failures[kind])-i)
				break
			}
			t.Log("  ", err)
		}
		if l.sent[kind] < loadEach {
			t.Errorf("%s: %d requests were sent", kind, l.sent[kind])
		}
	}
}

// browserClient behaves like a browser: it repeats a GET on a new connection if a kept one turns out to be closed. Go's
// client does that by itself.
type browserClient struct {
	url       string
	transport *http.Transport
}

func (c *browserClient) ask() error {
	resp, err := (&http.Client{Transport: c.transport, Timeout: loadTimeout}).Get(c.url)
	if err != nil {
		return err
	}
	_, _, err = hostOf(resp)
	return err
}

// rawClient sends everything once, without checking whether its connection was closed.
type rawClient struct {
	address string
	keep    bool
	conn    net.Conn
	answers *bufio.Reader
}

func (c *rawClient) ask() error {
	reused := c.conn != nil
	again, err := c.try()
	if err != nil || !again {
		if c.conn != nil {
			c.conn.Close()
		}
		c.conn = nil
	}
	if err != nil && reused {
		err = &reusedError{err}
	}
	return err
}

// reusedError is the error of a request on a connection that had answered before.
type reusedError struct{ error }

func (c *rawClient) try() (again bool, err error) {
	if c.conn == nil {
		if c.conn, err = net.DialTimeout("tcp", c.address, loadTimeout); err != nil {
			return false, err
		}
		c.answers = bufio.NewReader(c.conn)
	}
	if err := c.conn.SetDeadline(time.Now().Add(loadTimeout)); err != nil {
		return false, err
	}
	header := ""
	if !c.keep {
		header = "Connection: close\r\n"
	}
	if _, err := io.WriteString(c.conn, "GET / HTTP/1.1\r\nHost: chat\r\n"+header+"\r\n"); err != nil {
		return false, err
	}
	resp, err := http.ReadResponse(c.answers, nil)
	if err != nil {
		return false, err
	}
	if _, _, err := hostOf(resp); err != nil {
		return false, fmt.Errorf("answer: %w", err)
	}
	return c.keep && !resp.Close, nil
}
