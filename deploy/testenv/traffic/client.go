//go:build e2e

package traffic

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"time"

	"berth/deploy/testenv"
)

// httpClient is Go's.
type httpClient struct {
	*http.Client
	urls []string
}

func (c *httpClient) ask(n int) (string, bool, error) {
	var connections atomic.Int32
	ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { connections.Add(1) },
	})
	answer, err := testenv.Fetch(ctx, c.Client, c.urls[n%len(c.urls)])
	return answer, connections.Load() > 1, err
}

func (c *httpClient) close() { c.CloseIdleConnections() }

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
func (c *client) ask(int) (host string, _ bool, err error) {
	conn, err := c.conn()
	if err != nil {
		return "", false, err
	}
	host, again, err := conn.ask(c.keep)
	if err != nil || !again {
		conn.Close()
		return host, false, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle = append(c.idle, conn)
	return host, false, nil
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
	to, err := net.DialTimeout("tcp", c.address, Timeout)
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
	if err := c.SetDeadline(c.used.Add(Timeout)); err != nil {
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
	host, err = testenv.Host(resp)
	return host, keep && !resp.Close, err
}
