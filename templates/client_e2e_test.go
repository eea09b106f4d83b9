//go:build e2e

package templates

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"berth/templates/route"
)

// crowd adds a service with some Go servers that count their requests.
func (e *echoes) crowd(t *testing.T, service string, servers int, handler http.HandlerFunc) *atomic.Int64 {
	var got atomic.Int64
	for range servers {
		e.withServer(t, service, func(w http.ResponseWriter, r *http.Request) {
			got.Add(1)
			handler(w, r)
		}, route.KeyPath, "/"+service)
	}
	return &got
}

// hangUp closes a request's connection without an answer.
func hangUp(t *testing.T, w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		t.Error(err)
		return
	}
	conn.Close()
}

// mostSends is how often a proxy sends a request at most that servers receive but do not answer.
const mostSends = 3

// A request that a server received but did not answer is sent again at most a few times, and only if it may be sent twice.
// No server is disabled for it.
func testSendsAgain(t *testing.T, k *kind) {
	e := newEchoes(k)
	got := e.crowd(t, "boom", 5, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/boom/x" {
			hangUp(t, w)
		}
	})
	e.eachImage(t, func(t *testing.T, image string) {
		address := e.start(t, image, Options{}).address(8080)
		for method, most := range map[string]int64{"GET": mostSends, "HEAD": mostSends, "DELETE": mostSends, "PUT": mostSends, "POST": 1, "PATCH": 1} {
			for range 3 {
				got.Store(0)
				a := request(method, address, "any", "/boom/x")
				// HAProxy has no answer after the last try and closes the connection. HAProxy 3.4 does not wait for an
				// answer: one it sent may arrive later or not at all.
				last := k.name == "HAPROXY" && a.status == 0
				for deadline := time.Now().Add(time.Second); last && got.Load() < mostSends && time.Now().Before(deadline); {
					time.Sleep(5 * time.Millisecond)
				}
				n := got.Load()
				want := 502
				if last && most > 1 {
					want = 0
				}
				if a.status != want && method != "HEAD" || n > most || n < 1 || most > 1 && n < 2 {
					t.Errorf("%s: %d, sent %d times, want %d at most", method, a.status, n, most)
				}
			}
		}
		for range 20 {
			if a := request("GET", address, "any", "/boom/y"); a.status != 200 {
				t.Errorf("another request after that: %d %q", a.status, a.body)
			}
		}
	})
}

// When eight of ten servers close all their connections at once, a request on a closed connection is not lost, although the
// next idle ones are closed as well.
func testIdleConnectionsClose(t *testing.T, k *kind) {
	e := newEchoes(k)
	var used, resent sync.Map // connections that served a request, and those closed before the next one
	e.crowd(t, "gone", 8, func(w http.ResponseWriter, r *http.Request) {
		_, again := used.LoadOrStore(r.RemoteAddr, true)
		if again && r.URL.Path == "/gone/x" {
			resent.Store(r.RemoteAddr, true)
			hangUp(t, w)
		}
	})
	e.crowd(t, "gone", 2, func(http.ResponseWriter, *http.Request) {})
	e.eachImage(t, func(t *testing.T, image string) {
		address := e.start(t, image, Options{}).address(8080)
		conn, err := net.Dial("tcp", address) // net/http would resend unanswered requests itself
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		answers := bufio.NewReader(conn)
		get := func(path string) {
			t.Helper()
			fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: any\r\n\r\n", path)
			resp, err := http.ReadResponse(answers, nil)
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			defer resp.Body.Close()
			if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != 200 {
				t.Errorf("%s: %d, %v", path, resp.StatusCode, err)
			}
		}
		for range 10 {
			for range 40 {
				get("/gone/w")
			}
			get("/gone/x")
		}
		met := 0
		resent.Range(func(any, any) bool { met++; return true })
		if met == 0 {
			t.Error("no request met a connection that was closed")
		}
		t.Logf("%d connections were closed under 10 requests", met)
		resent.Clear()
	})
}

// A request that no server received is sent until one receives it: eight of ten servers that refuse or never answer cost no
// request. Nor does a server that was just reached when it stopped.
func testFindsTheLiving(t *testing.T, k *kind) {
	e := newEchoes(k)
	for n := range 8 {
		e.with("few", fmt.Sprint("refuses-", n), "127.0.0.1", n+1, route.KeyPath, "/few")
	}
	e.crowd(t, "few", 2, func(http.ResponseWriter, *http.Request) {})
	hungUp := e.crowd(t, "few", 1, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/few/x" {
			hangUp(t, w)
		}
	})
	e.eachImage(t, func(t *testing.T, image string) {
		address := e.start(t, image, Options{}).address(8080)
		var slowest time.Duration
		for _, method := range []string{"GET", "POST", "PUT"} {
			for range 10 {
				began := time.Now()
				if a := request(method, address, "any", "/few"); a.status != 200 {
					t.Errorf("%s: %d %q", method, a.status, a.body)
				}
				slowest = max(slowest, time.Since(began))
			}
		}
		t.Logf("slowest: %v", slowest)
		hungUp.Store(0)
		for range 40 {
			if a := request("GET", address, "any", "/few/x"); a.status != 200 {
				t.Errorf("one of those that have stopped was reached: %d %q", a.status, a.body)
			}
		}
		if hungUp.Load() == 0 {
			t.Error("none of those that have stopped was reached")
		}
	})
}

// dump makes a server answer with the headers it received, one a line.
func dump(w http.ResponseWriter, r *http.Request) {
	for name, values := range r.Header {
		for _, v := range values {
			fmt.Fprintf(w, "%s: %s\n", strings.ToLower(name), v)
		}
	}
}

// all returns a header's values in an answer of dump, in order.
func (a answer) all(name string) string {
	var values []string
	for line := range strings.Lines(a.body) {
		if n, value, _ := strings.Cut(strings.TrimSpace(line), ": "); n == strings.ToLower(name) {
			values = append(values, value)
		}
	}
	return strings.Join(values, " + ")
}

// Proxy headers set by a client do not reach a server, whatever the case of the name, and cannot remove the proxy's
// headers.
func testClientHeaders(t *testing.T, k *kind) {
	e := newEchoes(k)
	e.withServer(t, "web", dump, route.KeyPath, "/")
	peer := bridge(t).Addr().Next().String()
	var forged []string
	for _, name := range clientHeaders {
		forged = append(forged, name+": forged", strings.ToUpper(name)+": forged", strings.ReplaceAll(name, "-", "_")+": forged")
	}
	for _, name := range forwardedHeaders {
		forged = append(forged, name+": 6.6.6.6", strings.ToLower(name)+": 6.6.6.6")
	}
	e.eachImage(t, func(t *testing.T, image string) {
		address := e.start(t, image, Options{}).address(8080)
		for some := range slices.Chunk(forged, 60) {
			a := request("GET", address, "a.com:81", "/", append(some, "X-Mine: kept")...)
			if a.status != 200 || strings.Contains(a.body, "forged") || strings.Contains(a.body, "6.6.6.6") || a.all("X-Mine") != "kept" {
				t.Errorf("%d\n%s", a.status, a.body)
			}
			for name, want := range map[string]string{"X-Forwarded-For": peer, "X-Real-IP": peer, "X-Forwarded-Proto": "http", "X-Forwarded-Host": "a.com:81", "X-Forwarded-Port": "81"} {
				if got := a.all(name); got != want {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
		}
		a := raw(address, "GET / HTTP/1.1\nHost: a.com\nConnection: close, X-Forwarded-For, X-Real-IP")
		if a.all("X-Forwarded-For") != peer || strings.Contains(strings.ToLower(a.all("Connection")), "x-") {
			t.Errorf("with Connection:\n%s", a.body)
		}
	})
}

// A trusted proxy is believed; its client and other proxies are not.
func testTrustedProxies(t *testing.T, k *kind) {
	e := newEchoes(k)
	e.withServer(t, "web", dump, route.KeyPath, "/")
	e.withServer(t, "secure", dump, route.KeyPath, "/secure", route.KeyRedirect, "https")
	peer := bridge(t).Addr().Next().String()
	trusted, err := ParseNetworks("10.0.0.0/8,fd00::/8," + peer)
	if err != nil {
		t.Fatal(err)
	}
	others, err := ParseNetworks("10.0.0.0/8,fd00::/8")
	if err != nil {
		t.Fatal(err)
	}
	e.eachImage(t, func(t *testing.T, image string) {
		address := e.start(t, image, Options{TrustedProxies: trusted}).address(8080)
		for _, tt := range []struct{ said, forwarded, client string }{
			{"", peer, peer},
			{"X-Forwarded-For: 192.0.2.1", "192.0.2.1, " + peer, "192.0.2.1"},
			{"X-Forwarded-For: 6.6.6.6, 192.0.2.1", "192.0.2.1, " + peer, "192.0.2.1"},
			{"X-Forwarded-For: 6.6.6.6, 192.0.2.1, 10.1.2.3", "192.0.2.1, 10.1.2.3, " + peer, "192.0.2.1"},
			{"X-Forwarded-For: 6.6.6.6\nX-Forwarded-For: 192.0.2.1, 10.1.2.3", "192.0.2.1, 10.1.2.3, " + peer, "192.0.2.1"},
			{"X-Forwarded-For: 2001:db8::1, fd00::1", "2001:db8::1, fd00::1, " + peer, "2001:db8::1"},
			{"X-Forwarded-For: 6.6.6.6, unknown", peer, peer},
			{"X-Real-IP: 192.0.2.7", "192.0.2.7, " + peer, "192.0.2.7"},
		} {
			a := request("GET", address, "a.com", "/", strings.Split(tt.said, "\n")...)
			if tt.said == "" {
				a = request("GET", address, "a.com", "/")
			}
			if a.all("X-Forwarded-For") != tt.forwarded || a.all("X-Real-IP") != tt.client {
				t.Errorf("%q: X-Forwarded-For %q, X-Real-IP %q, want %q, %q", tt.said, a.all("X-Forwarded-For"), a.all("X-Real-IP"), tt.forwarded, tt.client)
			}
		}
		a := request("GET", address, "a.com", "/", "X-Forwarded-Proto: https", "X-Forwarded-Host: b.com:444", "X-Forwarded-Port: 444", "X-Original-URL: /admin")
		if a.all("X-Forwarded-Proto") != "https" || a.all("X-Forwarded-Host") != "b.com:444" || a.all("X-Forwarded-Port") != "444" || a.all("X-Original-URL") != "" {
			t.Errorf("the URL: %s", a.body)
		}
		if a := request("GET", address, "a.com", "/", "X-Forwarded-Proto: https"); a.all("X-Forwarded-Port") != "443" {
			t.Errorf("the port of https: %s", a.body)
		}
		for proto, status := range map[string]int{"http": 308, "https": 200} {
			if a := request("GET", address, "a.com", "/secure", "X-Forwarded-Proto: "+proto); a.status != status {
				t.Errorf("%s: %d, want %d", proto, a.status, status)
			}
		}
		address = e.start(t, image, Options{TrustedProxies: others}).address(8080)
		a = request("GET", address, "a.com", "/", "X-Forwarded-For: 6.6.6.6", "X-Real-IP: 6.6.6.6", "X-Forwarded-Proto: https", "X-Forwarded-Host: b.com", "X-Forwarded-Port: 1")
		if strings.Contains(a.body, "6.6.6.6") || a.all("X-Forwarded-For") != peer || a.all("X-Forwarded-Proto") != "http" || a.all("X-Forwarded-Host") != "a.com" || a.all("X-Forwarded-Port") != "80" {
			t.Errorf("another proxy is believed:\n%s", a.body)
		}
	})
}

// The PROXY protocol of a trusted proxy names the client, for both address families and for TCP ports.
func testProxyProtocol(t *testing.T, k *kind) {
	e := newEchoes(k)
	e.withServer(t, "web", dump, route.KeyPath, "/", route.KeyPort, "5432")
	trusted, err := ParseNetworks(bridge(t).Addr().Next().String())
	if err != nil {
		t.Fatal(err)
	}
	listeners, err := ParseListeners("http,5432")
	if err != nil {
		t.Fatal(err)
	}
	e.eachImage(t, func(t *testing.T, image string) {
		p := e.start(t, image, Options{TrustedProxies: trusted, ProxyProtocol: listeners})
		for head, client := range map[string]string{
			"PROXY TCP4 192.0.2.1 192.0.2.2 1000 80":     "192.0.2.1",
			"PROXY TCP6 2001:db8::1 2001:db8::2 1000 80": "2001:db8::1",
		} {
			a := raw(p.address(8080), head+"\nGET / HTTP/1.1\nHost: a.com\nX-Forwarded-For: 6.6.6.6\nX-Forwarded-Proto: https\nConnection: close")
			if a.all("X-Forwarded-For") != client || a.all("X-Real-IP") != client || a.all("X-Forwarded-Proto") != "http" {
				t.Errorf("%s: %d\n%s", head, a.status, a.body)
			}
			if a := raw(p.address(5432), head+"\nGET / HTTP/1.1\nHost: a.com\nConnection: close"); a.status != 200 {
				t.Errorf("TCP: %s: %d %q", head, a.status, a.body)
			}
		}
	})
}

// Each port is open on IPv6, whether the container has an IPv6 network or not, and a client has an address of its family.
func testListensOnIPv6(t *testing.T, k *kind) {
	e := newEchoes(k)
	e.withServer(t, "web", dump, route.KeyPath, "/", route.KeyPort, "5432")
	o := Options{IPv6: true, TLSDirectory: t.TempDir()}
	certify(t, filepath.Join(o.TLSDirectory, "a.pem"), "a.com")
	e.eachImage(t, func(t *testing.T, image string) {
		p := e.start(t, image, o)
		for _, port := range []int{8080, 8443, 8404, 5432} {
			out, err := exec.Command("docker", "exec", p.name, "grep", fmt.Sprintf(": 00000000000000000000000000000000:%04X ", port), "/proc/net/tcp6").CombinedOutput()
			if err != nil {
				t.Errorf("nothing listens on port %d of IPv6: %v %s", port, err, out)
			}
		}
		if a := request("GET", p.address(8080), "a.com", "/"); a.all("X-Real-IP") != bridge(t).Addr().Next().String() {
			t.Errorf("a client of IPv4: %q", a.all("X-Real-IP"))
		}
	})
}

// A stream's event is passed on at once.
func testEvents(t *testing.T, k *kind) {
	e := newEchoes(k)
	e.withServer(t, "web", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for n := range 10 {
			fmt.Fprintf(w, "data: %d %d\n\n", n, time.Now().UnixMicro())
			http.NewResponseController(w).Flush()
			select {
			case <-time.After(30 * time.Millisecond): // the pace of the stream
			case <-r.Context().Done():
				return
			}
		}
	}, route.KeyPath, "/")
	e.eachImage(t, func(t *testing.T, image string) {
		conn, err := net.Dial("tcp", e.start(t, image, Options{}).address(8080))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a.com\r\n\r\n")
		late, seen := []time.Duration{}, 0
		for lines := bufio.NewScanner(conn); seen < 10 && lines.Scan(); {
			var n, at int64
			if _, err := fmt.Sscanf(lines.Text(), "data: %d %d", &n, &at); err == nil {
				seen++
				late = append(late, time.Since(time.UnixMicro(at)))
			}
		}
		slices.Sort(late)
		t.Logf("events late by %v", late)
		if seen != 10 || late[5] > 20*time.Millisecond { // without the option half of them are at least 100 ms late
			t.Errorf("%d events, late by %v", seen, late)
		}
	})
}

// A server learns that its client has left.
func testClientGone(t *testing.T, k *kind) {
	e := newEchoes(k)
	began, ended := make(chan struct{}), make(chan struct{})
	e.withServer(t, "web", func(_ http.ResponseWriter, r *http.Request) {
		began <- struct{}{}
		<-r.Context().Done()
		ended <- struct{}{}
	}, route.KeyPath, "/")
	e.eachImage(t, func(t *testing.T, image string) {
		conn, err := net.Dial("tcp", e.start(t, image, Options{}).address(8080))
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a.com\r\n\r\n")
		<-began
		conn.Close()
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Error("the server works on")
		}
	})
}

// Headers of 30 KB pass in both directions, and so do more than 100 headers.
func testLargeHeaders(t *testing.T, k *kind) {
	e := newEchoes(k)
	e.withServer(t, "web", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Large", strings.Repeat("x", 29000))
		dump(w, r)
	}, route.KeyPath, "/")
	var many []string
	for n := range 150 {
		many = append(many, fmt.Sprintf("X-%d: %d", n, n))
	}
	e.eachImage(t, func(t *testing.T, image string) {
		address := e.start(t, image, Options{}).address(8080)
		for _, headers := range [][]string{{"Cookie: a=" + strings.Repeat("y", 29000)}, many} {
			if a := request("GET", address, "a.com", "/", headers...); a.status != 200 || len(a.header.Get("X-Large")) != 29000 || len(a.all("Cookie")) != 29002 && a.all("X-149") != "149" {
				t.Errorf("%.40s: %d %.200s", headers[0], a.status, a.body)
			}
		}
	})
}

// The pages tell the public nothing about what is behind the proxy.
func testShortPages(t *testing.T, k *kind) {
	e := newEchoes(k)
	e.echo("web", route.KeyHost, "a.com", route.KeyPath, "/web")
	e.with("refuses", "refuses-1", "127.0.0.1", 1, route.KeyHost, "refuses.com")
	e.add("closes", k.reject, route.KeyHost, "closes.com")
	e.eachImage(t, func(t *testing.T, image string) {
		address := e.start(t, image, Options{}).address(8080)
		for _, tt := range []struct {
			method, host, path string
			status             int
		}{
			{"GET", "none.com", "/", 404}, {"GET", "a.com", "/other", 404}, {"GET", "refuses.com", "/", 503},
			{"POST", "closes.com", "/", 502}, // it is sent once
		} {
			a := request(tt.method, address, tt.host, tt.path, "Content-Length: 0")
			if a.status != tt.status || tt.status != 502 && a.header.Get("Cache-Control") != "no-store" {
				t.Errorf("%s%s: %d %v", tt.host, tt.path, a.status, a.header)
			}
			for _, word := range []string{"SERVICE_", "Consul", "8404", "berth", "refuses", "closes", "instance"} {
				if strings.Contains(a.body, word) {
					t.Errorf("%s%s says %s: %s", tt.host, tt.path, word, a.body)
				}
			}
		}
	})
}

// The cookie that keeps a client on its server is sent over HTTPS only, if it was set there.
func testSecureCookie(t *testing.T, k *kind) {
	e := newEchoes(k)
	e.echo("web", route.KeyPath, "/", route.KeySticky, "true")
	o := Options{TLSDirectory: t.TempDir()}
	certify(t, filepath.Join(o.TLSDirectory, "a.pem"), "a.com")
	e.eachImage(t, func(t *testing.T, image string) {
		p := e.start(t, image, o)
		conn, err := tls.Dial("tcp", p.address(8443), &tls.Config{InsecureSkipVerify: true, ServerName: "a.com"})
		secure := exchange(conn, err, "GET / HTTP/1.1\nHost: a.com\nConnection: close").header.Get("Set-Cookie")
		plain := request("GET", p.address(8080), "a.com", "/").header.Get("Set-Cookie")
		if !strings.Contains(secure, "; Secure") || strings.Contains(plain, "Secure") || !strings.Contains(secure, "SameSite=Lax") || !strings.Contains(plain, "SameSite=Lax") {
			t.Errorf("over HTTPS %q, over HTTP %q", secure, plain)
		}
	})
}

// An answer with too large headers, or slower than the timeout, may be caused by the client: it disables no server for
// other clients.
func testNoAnswerTakesAServerAway(t *testing.T, k *kind) {
	e := newEchoes(k)
	var got [5]atomic.Int64
	for n := range got {
		e.withServer(t, "web", func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/large":
				w.Header().Set("X-Large", strings.Repeat("x", 100_000))
			case "/slow":
				<-r.Context().Done()
			default:
				got[n].Add(1)
			}
		}, route.KeyPath, "/")
	}
	e.eachImage(t, func(t *testing.T, image string) {
		r := e.render(t, Options{})
		short := strings.NewReplacer("proxy_read_timeout 60s;", "proxy_read_timeout 1s;", "timeout server 60s", "timeout server 1s").Replace(r.text)
		if short == r.text {
			t.Fatal("the timeout is another")
		}
		r.text = short
		address := e.kind.start(t, image, r, Options{}, e.config.String()).address(8080)
		var bad sync.WaitGroup
		for range 6 { // more than there are servers
			for path, status := range map[string]int{"/large": 502, "/slow": 504} {
				bad.Go(func() {
					if a := request("GET", address, "any", path); a.status != status {
						t.Errorf("%s: %d %q, want %d", path, a.status, a.body, status)
					}
				})
			}
		}
		over := make(chan struct{})
		go func() {
			bad.Wait()
			close(over)
		}()
		for n := range got {
			got[n].Store(0)
		}
		asked := 0
		for isOver := false; !isOver; {
			select {
			case <-over:
				isOver = true
			default:
			}
			for range 20 {
				asked++
				if a := request("GET", address, "any", "/"); a.status != 200 {
					t.Errorf("another request: %d %q", a.status, a.body)
				}
			}
		}
		for n := range got {
			if share := got[n].Load(); share < int64(asked/len(got)/2) {
				t.Errorf("server %d of %d got %d of %d other requests", n, len(got), share, asked)
			}
		}
	})
}

func TestE2EHAProxySendsAgain(t *testing.T) { testSendsAgain(t, theHAProxy()) }
func TestE2EHAProxyNoAnswerTakesAServerAway(t *testing.T) {
	testNoAnswerTakesAServerAway(t, theHAProxy())
}
func TestE2EHAProxyFindsTheLiving(t *testing.T)         { testFindsTheLiving(t, theHAProxy()) }
func TestE2EHAProxyClientHeaders(t *testing.T)          { testClientHeaders(t, theHAProxy()) }
func TestE2EHAProxyTrustedProxies(t *testing.T)         { testTrustedProxies(t, theHAProxy()) }
func TestE2EHAProxyProxyProtocol(t *testing.T)          { testProxyProtocol(t, theHAProxy()) }
func TestE2EHAProxyListensOnIPv6(t *testing.T)          { testListensOnIPv6(t, theHAProxy()) }
func TestE2EHAProxyEvents(t *testing.T)                 { testEvents(t, theHAProxy()) }
func TestE2EHAProxyClientGone(t *testing.T)             { testClientGone(t, theHAProxy()) }
func TestE2EHAProxyLargeHeaders(t *testing.T)           { testLargeHeaders(t, theHAProxy()) }
func TestE2EHAProxyShortPages(t *testing.T)             { testShortPages(t, theHAProxy()) }
func TestE2EHAProxySecureCookie(t *testing.T)           { testSecureCookie(t, theHAProxy()) }
func TestE2EHAProxyIdleConnectionsClose(t *testing.T)   { testIdleConnectionsClose(t, theHAProxy()) }
func TestE2ENginxIdleConnectionsClose(t *testing.T)     { testIdleConnectionsClose(t, theNginx()) }
func TestE2ENginxSendsAgain(t *testing.T)               { testSendsAgain(t, theNginx()) }
func TestE2ENginxNoAnswerTakesAServerAway(t *testing.T) { testNoAnswerTakesAServerAway(t, theNginx()) }
func TestE2ENginxFindsTheLiving(t *testing.T)           { testFindsTheLiving(t, theNginx()) }
func TestE2ENginxClientHeaders(t *testing.T)            { testClientHeaders(t, theNginx()) }
func TestE2ENginxTrustedProxies(t *testing.T)           { testTrustedProxies(t, theNginx()) }
func TestE2ENginxProxyProtocol(t *testing.T)            { testProxyProtocol(t, theNginx()) }
func TestE2ENginxListensOnIPv6(t *testing.T)            { testListensOnIPv6(t, theNginx()) }
func TestE2ENginxEvents(t *testing.T)                   { testEvents(t, theNginx()) }
func TestE2ENginxClientGone(t *testing.T)               { testClientGone(t, theNginx()) }
func TestE2ENginxLargeHeaders(t *testing.T)             { testLargeHeaders(t, theNginx()) }
func TestE2ENginxShortPages(t *testing.T)               { testShortPages(t, theNginx()) }
func TestE2ENginxSecureCookie(t *testing.T)             { testSecureCookie(t, theNginx()) }
func TestE2ENginxLuaSendsAgain(t *testing.T)            { testSendsAgain(t, theNginxWithLua().kind) }
func TestE2ENginxLuaNoAnswerTakesAServerAway(t *testing.T) {
	testNoAnswerTakesAServerAway(t, theNginxWithLua().kind)
}
func TestE2ENginxLuaFindsTheLiving(t *testing.T) { testFindsTheLiving(t, theNginxWithLua().kind) }
func TestE2ENginxLuaClientHeaders(t *testing.T)  { testClientHeaders(t, theNginxWithLua().kind) }
func TestE2ENginxLuaShortPages(t *testing.T)     { testShortPages(t, theNginxWithLua().kind) }
