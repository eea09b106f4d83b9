//go:build e2e

package templates

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul-template/dependency"

	"berth/deploy/testenv"
	"berth/proxyctl"
	"berth/templates/route"
)

// holding is a HAProxy with its runtime API on a port.
type holding struct {
	*proxy
	http, tcp, admin string
}

// do runs runtime commands and returns HAProxy's answer.
func (h *holding) do(commands ...string) string {
	conn, err := net.Dial("tcp", h.admin)
	if err != nil {
		h.tb.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(conn, strings.Join(commands, "; ")+"\n")
	reply, err := io.ReadAll(conn)
	if err != nil {
		h.tb.Fatal(err)
	}
	return string(reply)
}

// add adds a server to a backend.
func (h *holding) add(backend, address string) {
	server := backend + "/new"
	if reply := h.do("add server "+server+" "+address, "enable server "+server); !strings.Contains(reply, "New server registered.") {
		h.tb.Fatalf("add %s: %s", server, reply)
	}
}

// waiting returns how many wait, according to the tables.
func (h *holding) waiting(key string) int {
	n := 0
	for table, sign := range map[string]int{"hold.waiting": 1, "hold.released": -1} {
		if m := regexp.MustCompile(`(?m)key=` + key + ` .* conn_cur=([0-9]+)`).FindStringSubmatch(h.do("show table " + table)); m != nil {
			count, _ := strconv.Atoi(m[1])
			n += sign * count
		}
	}
	return n
}

// untilWaiting waits until the given number wait.
func (h *holding) untilWaiting(n int) {
	h.tb.Helper()
	testenv.Eventually(h.tb, 10*time.Second, fmt.Sprint(n, " wait"), func() error {
		if is := h.waiting(`\*`); is != n {
			return fmt.Errorf("%d wait", is)
		}
		return nil
	})
}

// held is the result of a request that may have waited.
type held struct {
	what string
	took time.Duration
	answer
}

// ask starts requests on separate connections, and returns a func that waits for their results.
func (h *holding) ask(requests ...func() held) (wait func() []held) {
	answers := make([]held, len(requests))
	var all sync.WaitGroup
	for n, request := range requests {
		all.Go(func() {
			start := time.Now()
			answers[n] = request()
			answers[n].took = time.Since(start)
		})
	}
	return func() []held { all.Wait(); return answers }
}

func (h *holding) request(method, path string, body int) func() held {
	return func() held {
		conn, err := net.Dial("tcp", h.http)
		head := fmt.Sprintf("%s %s HTTP/1.1\nHost: any\nContent-Length: %d\n\n", method, path, body)
		return held{what: fmt.Sprint(method, " ", path, " of ", body, " bytes"), answer: exchange(conn, err, head+strings.Repeat("x", body))}
	}
}

// connect opens a TCP connection and sends data, at once or after the server has.
func (h *holding) connect(serverFirst bool) func() held {
	return func() held {
		a := held{what: fmt.Sprint("a connection, the server first: ", serverFirst)}
		conn, err := net.Dial("tcp", h.tcp)
		if err != nil {
			a.body = err.Error()
			return a
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(time.Minute))
		if !serverFirst {
			io.WriteString(conn, "hello\n")
		}
		lines := bufio.NewReader(conn)
		greeting, _ := lines.ReadString('\n')
		if serverFirst {
			io.WriteString(conn, "hello\n")
		}
		reply, err := lines.ReadString('\n')
		if a.body = greeting + reply; err == nil {
			a.status = 200
		}
		return a
	}
}

// Requests and connections wait without a server, as long as their service says, and no more of them than allowed.
func TestE2EHAProxyHolds(t *testing.T) {
	const most = 8
	e := newEchoes(theHAProxy())
	e.docker = func(testing.TB) []string { return []string{"-p", "127.0.0.1::9999"} }
	up := e.withServer(t, "up", func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "good %d", n)
	}, route.KeyPath, "/up")
	server := up.Listener.Addr().String()
	db := testenv.Echo(t, bridge(t).Addr().Next().String(), "welcome\n")
	down := func(service string, meta ...string) {
		e.with(service, service+"-1", "127.0.0.1", 9000, meta...).Status = dependency.HealthCritical
	}
	down("late", route.KeyPath, "/late")
	down("soon", route.KeyPath, "/soon", route.KeyHold, "2s")
	down("never", route.KeyPath, "/never", route.KeyHold, "no")
	down("db", route.KeyPort, "5432")

	e.eachImage(t, func(t *testing.T, image string) {
		version := haproxyVersion(t, image)
		o := Options{Hold: 6 * time.Second, HoldMax: most, TCPPorts: unprivileged,
			HAProxyAtLeast: func(other string) bool { return proxyctl.AtLeast(version, other) }}
		r := renderWith(t, e.catalog, o, inOrder)
		r.text = strings.Replace(r.text, "\nglobal\n", "\nglobal\n    stats socket ipv4@:9999 level admin\n", 1)
		h := &holding{proxy: e.kind.start(t, image, r, o, e.config.String())}
		h.http, h.tcp, h.admin = h.address(8080), h.address(5432), h.address(9999)

		one := func(request func() held) held { return h.ask(request)()[0] }
		isPage := func(a held, least, most time.Duration) {
			t.Helper()
			const busy = time.Second // for a busy machine
			if a.status != 503 || a.header.Get("Retry-After") != "5" || a.took < least || a.took > most+busy {
				t.Errorf("%s: %d %v after %v, want the page within %v and %v", a.what, a.status, a.header, a.took, least, most)
			}
		}
		atMost := func(gap time.Duration) time.Duration { return gap + gap/10 + 50*time.Millisecond }

		// Requests that do not wait, and requests that wait in vain.
		isPage(one(h.request("GET", "/never", 0)), 0, 500*time.Millisecond)
		if a := one(h.request("GET", "/nowhere", 0)); a.status != 404 || a.took > 500*time.Millisecond {
			t.Errorf("no route: %d after %v", a.status, a.took)
		}
		start := time.Now()
		wait := h.ask(h.request("GET", "/late", 0), h.request("POST", "/late", 100), h.request("POST", "/late", 300_000),
			h.connect(false), h.connect(true))
		h.untilWaiting(5)
		if http, tcp := h.waiting("late"), h.waiting(`db\.tcp`); proxyctl.AtLeast(version, "2.8") && (http != 3 || tcp != 2) {
			t.Errorf("%d requests and %d connections wait, want 3 and 2", http, tcp)
		}
		isPage(one(h.request("GET", "/soon", 0)), 2*time.Second, atMost(2*time.Second))

		// All that wait are served once a server exists.
		h.add("late", server)
		h.add("db.tcp", db)
		gap := time.Since(start)
		for n, a := range wait() {
			want := []string{"good 0", "good 100", "good 300000", "welcome\nhello\n", "welcome\nhello\n"}[n]
			t.Logf("gap %v: %s took %v", gap, a.what, a.took)
			longest := atMost(gap)
			if n >= 3 && !proxyctl.AtLeast(version, "3.0") {
				longest = 40 * time.Second // a connection may miss the end of the gap
			}
			if a.status != 200 || a.body != want || a.took > longest {
				t.Errorf("gap %v: %s: %d %q after %v", gap, a.what, a.status, a.body, a.took)
			}
		}
		h.untilWaiting(0)
		for _, request := range []func() held{h.request("GET", "/late", 0), h.connect(false), h.connect(true)} {
			if a := one(request); a.status != 200 || a.took > 500*time.Millisecond {
				t.Errorf("with a server: %s: %d %q after %v", a.what, a.status, a.body, a.took)
			}
		}

		// Between two instances, and paused by hand. Meanwhile the dead server gets nothing.
		for _, name := range []string{"held", "paused"} {
			path := h.mapPath(name)
			h.do("add map " + path + " up 1500")
			wait := h.ask(h.request("GET", "/up", 0))
			h.untilWaiting(1)
			h.do("del map " + path + " up")
			if a := wait()[0]; a.status != 200 {
				t.Errorf("%s: %d %q", name, a.status, a.body)
			}
		}
		h.do("add map " + h.mapPath("paused") + " up 2000")
		isPage(one(h.request("POST", "/up", 100)), 2*time.Second, atMost(2*time.Second))
		h.do("del map " + h.mapPath("paused") + " up")

		// No more than allowed wait, including connections.
		h.do("set server late/new state maint", "set server db.tcp/new state maint")
		requests := []func() held{h.connect(false), h.connect(true)}
		for range most - 2 {
			requests = append(requests, h.request("GET", "/late", 0))
		}
		wait = h.ask(requests...)
		h.untilWaiting(most)
		isPage(one(h.request("GET", "/late", 0)), 0, 500*time.Millisecond)
		if a := one(h.connect(true)); a.status != 0 || a.took > 500*time.Millisecond {
			t.Errorf("one connection too many: %d %q after %v", a.status, a.body, a.took)
		}
		if a := one(h.request("GET", "/up", 0)); a.status != 200 {
			t.Errorf("while many wait for others: %d", a.status)
		}
		h.do("set server late/new state ready", "set server db.tcp/new state ready")
		for _, a := range wait() {
			if a.status != 200 {
				t.Errorf("%s: %d %q", a.what, a.status, a.body)
			}
		}

		// Clients that leave stop counting.
		h.do("set server late/new state maint")
		conn, err := net.Dial("tcp", h.http)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, "GET /late HTTP/1.1\r\nHost: any\r\n\r\n")
		h.untilWaiting(1)
		conn.Close()
		h.untilWaiting(0)
	})
}

// mapPath is the path of a map in HAProxy's configuration.
func (h *holding) mapPath(name string) string { return "/etc/haproxy/haproxy.cfg." + name + ".map" }
