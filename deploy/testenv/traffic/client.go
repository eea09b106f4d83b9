//go:build e2e

package traffic

import (
	"bufio"
	"cmp"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"berth/deploy/testenv"
)

// httpClient uses Go's HTTP client.
type httpClient struct {
	*http.Client
	urls []string
}

func (c *httpClient) ask(n int, q *Request) {
	var connections atomic.Int32
	ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { connections.Add(1) },
	})
	url := c.urls[n%len(c.urls)]
	q.Method, q.Path = http.MethodGet, url
	q.Answer, q.Err = testenv.Fetch(ctx, c.Client, url)
	q.Resent = connections.Load() > 1
}

func (c *httpClient) close() { c.CloseIdleConnections() }

// client sends requests over its own connections. Go's HTTP client uses three times the CPU time, which the servers need.
// When a kept connection breaks during a request, it silently sends the request again.
type client struct {
	address string
	keep    bool
	next    func(n int) Exchange

	mu   sync.Mutex
	idle []*conn // most recently used last
}

type conn struct {
	net.Conn
	answers *bufio.Reader
	used    time.Time
}

// idleMost is less than the minute after which HAProxy closes an idle connection, perhaps during the next request.
const idleMost = 20 * time.Second

// Exchange is a request and its expected answer.
type Exchange struct {
	Method, Host, Path string
	Header             string // additional lines, with line ends
	Body               string
	Timeout            time.Duration // 0 = Timeout
	// Judge returns the host that answered, or what is wrong with the answer, and reads the body. nil = expect the demo
	// app's answer.
	Judge func(*http.Response) (host string, err error)
}

func (x Exchange) String() string { return x.Method + " " + x.Host + x.Path }

func (c *client) ask(n int, q *Request) {
	q.Exchange = c.next(n)
	conn, err := c.conn()
	if err != nil {
		q.Err = err
		return
	}
	var again bool
	if q.Answer, again, q.Err = conn.ask(q.Exchange, c.keep); q.Err != nil || !again {
		conn.Close()
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle = append(c.idle, conn)
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

// ask sends a request and returns the host that answered, and whether the connection can be used again.
func (c *conn) ask(x Exchange, keep bool) (host string, again bool, err error) {
	c.used = time.Now()
	if err := c.SetDeadline(c.used.Add(cmp.Or(x.Timeout, Timeout))); err != nil {
		return "", false, err
	}
	request := x.Method + " " + x.Path + " HTTP/1.1\r\nHost: " + x.Host + "\r\n" + x.Header
	if x.Method != http.MethodGet {
		request += "Content-Length: " + strconv.Itoa(len(x.Body)) + "\r\n"
	}
	if !keep {
		request += "Connection: close\r\n"
	}
	if _, err := io.WriteString(c, request+"\r\n"+x.Body); err != nil {
		return "", false, err
	}
	resp, err := http.ReadResponse(c.answers, nil)
	if err != nil {
		return "", false, err
	}
	judge := x.Judge
	if judge == nil {
		judge = testenv.Host
	}
	host, err = judge(resp)
	return host, keep && !resp.Close, err
}
