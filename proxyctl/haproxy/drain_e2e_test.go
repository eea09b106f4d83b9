//go:build e2e

package haproxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"berth/deploy/testenv"
	"berth/proxyctl"
)

// webApp is the application behind all servers of a test. It tells them apart by the name that HAProxy sends along.
type webApp struct {
	*httptest.Server
	addr    string
	held    chan string   // names of the servers that got a held request
	release chan struct{} // closed to answer the held requests
	others  []*httptest.Server
	late    atomic.Int64 // requests sent to the server "gone" after it was gone
}

func startApp(t testing.TB) *webApp {
	a := &webApp{held: make(chan string, 1000), release: make(chan struct{})}
	a.Server = httptest.NewServer(a)
	t.Cleanup(func() {
		for _, s := range append(a.others, a.Server) {
			s.CloseClientConnections() // clients that a failed test left behind
			s.Close()
		}
	})
	a.addr = a.Listener.Addr().String()
	return a
}

// also serves the app on another port.
func (a *webApp) also() string {
	s := httptest.NewServer(a)
	a.others = append(a.others, s)
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	return port
}

func (a *webApp) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if gone := r.Header.Get("X-Gone"); gone != "" && gone == r.Header.Get("X-Server") {
		a.late.Add(1)
	}
	switch {
	case r.Header.Get("Upgrade") != "":
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
		_, _ = io.Copy(conn, rw)
		return
	case r.URL.Path == "/hold":
		a.held <- r.Header.Get("X-Server")
		select {
		case <-a.release:
		case <-r.Context().Done():
			return
		}
	}
	_, _ = io.WriteString(w, r.Header.Get("X-Server")+" at "+r.Host)
}

// let answers the held requests, and holds later ones.
func (a *webApp) let() {
	close(a.release)
	a.release = make(chan struct{})
}

// reply is the outcome of a request.
type reply struct {
	status int
	body   string
	err    error
}

func (r reply) ok(server string) bool {
	return r.err == nil && r.status == http.StatusOK && strings.HasPrefix(r.body, server+" ")
}

// get requests a path through HAProxy, on its own connection.
func (h *realHAProxy) get(path, gone string) reply {
	client := &http.Client{Timeout: 5 * time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	return get(client, "http://127.0.0.1:"+h.port+path, gone)
}

func get(client *http.Client, url, gone string) reply {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return reply{err: err}
	}
	req.Header.Set("X-Gone", gone)
	resp, err := client.Do(req)
	if err != nil {
		return reply{err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, string(body), err}
}

// hold sends n held requests, and waits until they have reached their servers. It returns these servers, and a channel for the
// replies.
func (h *realHAProxy) hold(a *webApp, n int) (map[string]int, <-chan reply) {
	h.t.Helper()
	replies := make(chan reply, n)
	for range n {
		go func() { replies <- h.get("/hold", "") }()
	}
	on := map[string]int{}
	for range n {
		select {
		case server := <-a.held:
			on[server]++
		case r := <-replies:
			h.t.Fatalf("a request that should be held: %+v", r)
		case <-time.After(20 * time.Second):
			h.t.Fatal("not within 20s: requests are held")
		}
	}
	return on, replies
}

func receive(t testing.TB, what string, replies <-chan reply) reply {
	t.Helper()
	select {
	case r := <-replies:
		return r
	case <-time.After(20 * time.Second):
		t.Fatalf("not within 20s: %s", what)
		return reply{}
	}
}

// servers is a text with a backend of these server lines, which the frontend leads to. A server cannot be deleted while it has
// idle connections. 2.6 keeps those of a last request even if the server is out by then, for up to three times pool-purge-delay,
// which is 5 s by default.
func (h *realHAProxy) servers(list ...string) string {
	return fmt.Sprintf("defaults\n  mode http\n  timeout connect 2s\n  timeout client 5m\n  timeout server 5m\n  timeout tunnel 1m\n"+
		"frontend web\n  bind 127.0.0.1:%s\n  default_backend app\n"+
		"backend app\n  balance leastconn\n  http-send-name-header X-Server\n  option redispatch 1\n  retries 3\n"+
		"  default-server pool-purge-delay 200ms\n  server %s\n", h.port, strings.Join(list, "\n  server "))
}

// visitors send requests until they are stopped.
type visitors struct {
	gone   atomic.Value // name of a server that must get none any more
	stop   chan struct{}
	all    sync.WaitGroup
	sent   atomic.Int64
	failed atomic.Int64
	last   atomic.Value
}

func (h *realHAProxy) visitors() *visitors {
	tr := &visitors{stop: make(chan struct{})}
	tr.gone.Store("")
	for range 3 {
		tr.all.Go(func() {
			client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for {
				select {
				case <-tr.stop:
					return
				case <-time.After(time.Millisecond):
				}
				if r := get(client, "http://127.0.0.1:"+h.port+"/", tr.gone.Load().(string)); r.err != nil || r.status != http.StatusOK {
					tr.failed.Add(1)
					tr.last.Store(fmt.Sprintf("%+v", r))
				}
				tr.sent.Add(1)
			}
		})
	}
	return tr
}

// more returns after n more requests.
func (tr *visitors) more(t testing.TB, n int64) {
	t.Helper()
	want := tr.sent.Load() + n
	testenv.Until(t, 20*time.Second, "requests are sent", func() bool { return tr.sent.Load() >= want })
}

func (tr *visitors) end(t testing.TB) {
	t.Helper()
	close(tr.stop)
	tr.all.Wait()
	if n := tr.failed.Load(); n > 0 {
		t.Errorf("%d of %d requests failed, the last: %s", n, tr.sent.Load(), tr.last.Load())
	}
}

// tendUntil tends until a condition is met.
func (h *realHAProxy) tendUntil(what string, done func() bool) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 20*time.Second)
	defer cancel()
	for !done() {
		wait := h.driver.Tend(ctx)
		if wait == 0 {
			wait = 50 * time.Millisecond
		}
		select {
		case <-ctx.Done():
			h.t.Fatalf("not within 20s: %s", what)
		case <-time.After(min(wait, 50*time.Millisecond)):
		}
	}
}

// gone reports whether HAProxy no longer has a server.
func (h *realHAProxy) gone(server string) func() bool {
	return func() bool { _, there := h.see()[server]; return !there }
}

// A removed server finishes its requests and gets no new ones; then it is deleted.
func TestE2ELeave(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		h, a := startHAProxy(t, r.image), startApp(t)
		h.apply(h.servers("a "+a.addr, "b "+a.addr))
		first, one := h.hold(a, 1)
		second, other := h.hold(a, 1)
		if first["a"]+second["a"] != 1 || first["b"]+second["b"] != 1 {
			t.Fatalf("held by %v and %v", first, second)
		}
		tr := h.visitors()
		tr.more(t, 50)
		res := h.apply(h.servers("b " + a.addr))
		tr.gone.Store("a")
		if res.Action != proxyctl.Runtime || res.Leaving != 1 {
			t.Errorf("removing: %+v", res)
		}
		tr.more(t, 300)
		if n := a.late.Load(); n > 0 {
			t.Errorf("%d requests reached the server after Apply had returned", n)
		}
		for range 20 {
			if h.driver.Tend(t.Context()) == 0 {
				t.Fatal("nothing is left to tend to, and the server is not deleted")
			}
		}
		h.steady("while it leaves", h.servers("b "+a.addr))
		if h.gone("app/a")() {
			t.Error("deleted while it has a request")
		}
		a.let()
		for _, replies := range []<-chan reply{one, other} {
			if r := receive(t, "the replies", replies); r.err != nil || r.status != http.StatusOK {
				t.Errorf("a request in flight: %+v", r)
			}
		}
		h.tendUntil("the server is deleted", h.gone("app/a"))
		h.tend()
		if res := h.apply(h.servers("b " + a.addr)); res.Action != proxyctl.None || res.Leaving != 0 {
			t.Errorf("after all: %+v", res)
		}
		tr.end(t)
	})
}

// A server that comes back while it leaves is used again, and its requests finish.
func TestE2EBackWhileLeaving(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		h, a, b := startHAProxy(t, r.image), startApp(t), startApp(t)
		l := h.startLoader(r.image)
		other := "other " + a.addr + " disabled"
		h.apply(h.servers("a "+a.addr, other))
		for _, back := range []struct {
			name, line string
			want       proxyctl.Action
			restart    bool
		}{
			{"as it was", "a " + a.addr, proxyctl.Runtime, false},
			{"with another weight", "a " + a.addr + " weight 9", proxyctl.Runtime, false},
			{"at another address", "a " + b.addr, proxyctl.Runtime, false},
			{"with another keyword", "a " + a.addr + " maxconn 50", proxyctl.Reload, false},
			{"to a new berth", "a " + a.addr, proxyctl.Reload, true}, // which does not know its keywords
		} {
			h.apply(h.servers("a "+a.addr, other))
			h.tend()
			_, replies := h.hold(a, 1)
			if res := h.apply(h.servers(other)); res.Leaving != 1 || res.Action != proxyctl.Runtime {
				t.Errorf("%s: draining: %+v", back.name, res)
			}
			h.driver.Tend(t.Context())
			if r := h.get("/", ""); r.status != http.StatusServiceUnavailable {
				t.Errorf("%s: a request that none can serve: %+v", back.name, r)
			}
			if back.restart {
				h.Close()
				h.berth()
				if res := h.apply(h.servers(other)); res.Leaving != 1 {
					t.Errorf("%s: %+v", back.name, res)
				}
			}
			text := h.servers(back.line, other)
			if res := h.apply(text); res.Action != back.want || res.Leaving != 0 {
				t.Errorf("%s: %+v, want %s and none draining", back.name, res, back.want)
			}
			if r := h.get("/", ""); !r.ok("a") {
				t.Errorf("%s: a new request: %+v", back.name, r)
			}
			h.tend()
			h.same(back.name, l.load(h, text))
			h.steady(back.name, text)
			a.let()
			if r := receive(t, "the reply", replies); !r.ok("a") {
				t.Errorf("%s: the request in flight: %+v", back.name, r)
			}
			h.tend()
			if r := h.get("/", ""); !r.ok("a") {
				t.Errorf("%s: after all: %+v", back.name, r)
			}
		}
	})
}

// tunnel is a connection echoed through HAProxy.
type tunnel struct {
	conn net.Conn
	r    *bufio.Reader
}

func (h *realHAProxy) websocket() *tunnel {
	h.t.Helper()
	tn := h.dial(h.port)
	if _, err := io.WriteString(tn.conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"); err != nil {
		h.t.Fatal(err)
	}
	resp, err := http.ReadResponse(tn.r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		h.t.Fatalf("upgrade: %v, %v", resp, err)
	}
	return tn
}

func (h *realHAProxy) dial(port string) *tunnel {
	h.t.Helper()
	conn, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { conn.Close() })
	return &tunnel{conn, bufio.NewReader(conn)}
}

// echo returns nil if the tunnel is open.
func (tn *tunnel) echo() error {
	if err := tn.conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(tn.conn, "echo\n"); err != nil {
		return err
	}
	line, err := tn.r.ReadString('\n')
	if err == nil && line != "echo\n" {
		err = fmt.Errorf("%q came back", line)
	}
	return err
}

// What does not end by itself is cut: requests after DrainTimeout, tunnels after TunnelTimeout.
func TestE2ELeaveTimeouts(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		const drain, tunnels = time.Second, 3 * time.Second
		h := startHAProxy(t, r.image, func(o *Options) { o.DrainTimeout, o.TunnelTimeout = drain, tunnels })
		a, echo, port := startApp(t), testenv.Echo(t, "127.0.0.1", ""), testenv.FreePort(t)
		tcp := func(server string) string {
			return fmt.Sprintf("listen tcp\n  mode tcp\n  timeout client 1m\n  timeout server 1m\n  bind 127.0.0.1:%s\n  %s\n", port, server)
		}
		h.apply(h.servers("a "+a.addr) + tcp("server t "+echo))
		web, raw := h.websocket(), h.dial(port)
		if err := raw.echo(); err != nil {
			t.Fatal(err)
		}
		h.apply(h.servers("a "+a.addr+" disabled", "b "+a.addr) + tcp("server t "+echo)) // so that b gets the next
		on, replies := h.hold(a, 1)
		if on["b"] != 1 {
			t.Fatalf("held by %v", on)
		}
		began := time.Now()
		res := h.apply(h.servers("keep "+a.addr) + tcp(""))
		if res.Action != proxyctl.Runtime || res.Leaving != 3 {
			t.Errorf("removing: %+v", res)
		}
		h.tendUntil("the request is cut", h.gone("app/b"))
		if got := time.Since(began); got < drain || got >= tunnels {
			t.Errorf("the request was cut after %s", got)
		}
		if r := receive(t, "the request ends", replies); r.err == nil && r.status == http.StatusOK {
			t.Errorf("the request that was cut: %+v", r)
		}
		for name, tn := range map[string]*tunnel{"websocket": web, "tcp": raw} {
			if err := tn.echo(); err != nil {
				t.Errorf("%s after DrainTimeout: %v", name, err)
			}
		}
		h.tendUntil("the tunnels are cut", func() bool { return h.gone("app/a")() && h.gone("tcp/t")() })
		if got := time.Since(began); got < tunnels {
			t.Errorf("tunnels were cut after %s", got)
		}
		for name, tn := range map[string]*tunnel{"websocket": web, "tcp": raw} {
			if err := tn.echo(); err == nil {
				t.Errorf("%s is open after TunnelTimeout", name)
			}
		}
		h.tend()
		if r := h.get("/", ""); !r.ok("keep") {
			t.Errorf("after all: %+v", r)
		}
	})
}

// Hundreds of leaving servers, each with a request, do not delay anything.
func TestE2EManyLeave(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		const n = 300
		h, a := startHAProxy(t, r.image), startApp(t)
		var list []string
		for i := range n {
			list = append(list, fmt.Sprintf("s%d %s", i, a.addr))
		}
		h.apply(h.servers(list...))
		on, replies := h.hold(a, n)
		if len(on) < n*9/10 { // two threads may choose the same one
			t.Fatalf("%d requests on %d servers", n, len(on))
		}
		within := func(what string, f func()) {
			t.Helper()
			began := time.Now()
			f()
			if d := time.Since(began); d > 2*time.Second {
				t.Errorf("%s took %s", what, d)
			}
		}
		stay := []string{"keep " + a.addr}
		within("removing all", func() {
			if res := h.apply(h.servers(stay...)); res.Action != proxyctl.Runtime || res.Leaving != len(on) {
				t.Errorf("removing all: %+v", res)
			}
		})
		var slowest time.Duration
		for i := range 30 {
			stay = append(stay, fmt.Sprintf("new%d %s", i, a.addr))
			began := time.Now()
			within("adding one", func() {
				if res := h.apply(h.servers(stay...)); res.Action != proxyctl.Runtime || res.Leaving != len(on) {
					t.Errorf("adding one meanwhile: %s for %q, %d draining", res.Action, res.Reason, res.Leaving)
				}
			})
			slowest = max(slowest, time.Since(began))
			within("Tend", func() {
				if h.driver.Tend(t.Context()) == 0 {
					t.Error("nothing left to tend to")
				}
			})
		}
		t.Logf("the slowest of 30 adds took %s", slowest)
		if r := h.get("/", ""); r.err != nil || r.status != http.StatusOK {
			t.Errorf("a new request: %+v", r)
		}
		a.let()
		for range n {
			if r := receive(t, "all replies", replies); r.err != nil || r.status != http.StatusOK {
				t.Errorf("a request in flight: %+v", r)
			}
		}
		h.tend()
		if res := h.apply(h.servers(stay...)); res.Action != proxyctl.None || res.Leaving != 0 {
			t.Errorf("after all: %+v", res)
		}
		if got := len(h.see()); got != len(stay) {
			t.Errorf("%d servers are left, want %d", got, len(stay))
		}
	})
}
