//go:build e2e

package haproxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"berth/deploy/testenv"
	"berth/proxyctl"
)

// holding is a configuration whose requests wait while the backend app has no server, as with the built-in template. more is for
// the frontend.
func (h *realHAProxy) holding(r release, more, server string) proxyctl.Config {
	pause, load := "lua.pause 100", "global\n  lua-load "+h.dir+"/pause.lua\n"
	if r.since("3.2") {
		pause, load = "pause 100ms", ""
	}
	write(h.t, h.dir+"/pause.lua", `core.register_action("pause", { "http-req" }, function(txn, ms) core.msleep(tonumber(ms)) end, 1)`)
	held := h.dir + "/haproxy.cfg.held.map"
	text := load + "defaults\n  mode http\n  timeout connect 300ms\n  retries 50\n  retry-on conn-failure empty-response\n  option redispatch 1\n" +
		"  timeout client 60s\n  timeout server 60s\n  http-reuse never\n  default-server check inter 1s fall 2 rise 1\n" +
		"frontend web\n  bind 127.0.0.1:" + h.port + "\n" + more +
		"  http-request set-var(txn.backend) str(app)\n" +
		"  acl waits var(txn.backend),nbsrv eq 0\n  acl waits var(txn.backend),map(" + held + ") -m found\n" +
		strings.Repeat("  http-request "+pause+" if waits\n", 100) +
		"  default_backend app\nbackend app\n"
	if server != "" {
		text += "  server " + server + "\n"
	}
	return onlyText(WithMaps(text, map[string]string{held: ""}))
}

// load sends requests until it is ended.
type load struct {
	t            *testing.T
	methods      []string // in turn
	sent, failed atomic.Int64
	pending      atomic.Int64
	first        atomic.Pointer[string] // failure
	stop         chan struct{}
	all          sync.WaitGroup
}

func (h *realHAProxy) load(t *testing.T, perSecond int, methods ...string) *load {
	l := &load{t: t, methods: methods, stop: make(chan struct{})}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
	l.all.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(perSecond))
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-l.stop:
				return
			case <-tick.C:
			}
			l.all.Go(func() { l.one(client, n, "http://127.0.0.1:"+h.port+"/") })
		}
	})
	return l
}

func (l *load) one(client *http.Client, n int, url string) {
	l.pending.Add(1)
	defer l.pending.Add(-1)
	l.sent.Add(1)
	method := l.methods[n%len(l.methods)]
	body := 0
	if method == http.MethodPost {
		body = 100_000
	}
	req, err := http.NewRequest(method, url, strings.NewReader(strings.Repeat("x", body)))
	if err != nil {
		panic(err)
	}
	began := time.Now()
	resp, err := client.Do(req)
	why := fmt.Sprint(err)
	if err == nil {
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if why = fmt.Sprintf("%d after %v: %.100s", resp.StatusCode, time.Since(began), body); resp.StatusCode == 200 {
			return
		}
	}
	why = req.Method + ": " + why
	l.failed.Add(1)
	l.first.CompareAndSwap(nil, &why)
}

// until returns when this many requests are unanswered.
func (l *load) until(pending int64) {
	l.t.Helper()
	testenv.Until(l.t, 20*time.Second, fmt.Sprint(pending, " requests wait"), func() bool { return l.pending.Load() >= pending })
}

func (l *load) end() {
	close(l.stop)
	l.all.Wait()
}

func (l *load) says() string {
	s := fmt.Sprintf("%d of %d requests failed", l.failed.Load(), l.sent.Load())
	if why := l.first.Load(); why != nil {
		s += ", the first: " + *why
	}
	return s
}

// reader is a server that reads the whole request before it answers.
func reader(t *testing.T) (s *http.Server, address string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "ok")
	})}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
	return s, l.Addr().String()
}

// bring brings HAProxy to a text, at run time or by a reload.
func (h *realHAProxy) bring(c proxyctl.Config, action proxyctl.Action) {
	h.t.Helper()
	if res, err := h.Apply(h.t.Context(), c, true); err != nil || res.Action != action {
		h.t.Fatalf("%s because of %q, %v, want %s", res.Action, res.Reason, err, action)
	}
}

// checked waits until the serving server has passed a check: before that, a single failed check takes it out, perhaps before
// berth does.
func (h *realHAProxy) checked() bool {
	reply, err := ask(h.dir+"/master.sock", "show proc; @1 show servers state app")
	if err != nil {
		return false
	}
	for line := range strings.Lines(reply) {
		if f := strings.Fields(line); len(f) > 12 && f[1] == "app" && f[6] == "0" && f[11] == "3" && f[12] == "2" { // in service, passed, two may fail
			return true
		}
	}
	return false
}

// Requests that HAProxy has assigned to the last server, which is gone by then, are answered by the next one. Where servers do
// not linger, those requests fail.
func TestE2ELinger(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		for _, hold := range []time.Duration{0, 10 * time.Second} {
			h := startHAProxy(t, r.image, func(o *Options) { o.RouteHold = hold })
			server, address := reader(t)
			h.bring(h.holding(r, "", "s0 "+address), proxyctl.Reload)
			load := h.load(t, 100, http.MethodGet) // a request that a vanished server began to read is only sent again if it is idempotent
			for n := range 3 {
				last := load.sent.Load()
				testenv.Until(t, 10*time.Second, "requests are answered", func() bool {
					return load.sent.Load() > last+50 && load.pending.Load() < 50 && h.checked()
				})
				if err := server.Shutdown(t.Context()); err != nil {
					t.Fatal(err)
				}
				load.until(3)
				h.bring(h.holding(r, "", ""), proxyctl.Runtime)
				load.until(250) // HAProxy tries several times, and two checks fail
				server, address = reader(t)
				h.bring(h.holding(r, "", fmt.Sprintf("s%d %s", n+1, address)), proxyctl.Runtime)
			}
			load.end()
			t.Logf("hold %v: %s", hold, load.says())
			if failed := load.failed.Load(); hold > 0 && failed > 0 || hold == 0 && failed == 0 {
				t.Errorf("hold %v: %s", hold, load.says())
			}
			h.tendUntil("only the last server is there", h.gone("app/s2"))
			if reply, err := ask(h.dir+"/master.sock", "show proc; @1 show map "+h.dir+"/haproxy.cfg.held.map"); err != nil || strings.Contains(reply, "0x") {
				t.Errorf("held.map: %s, %v", reply, err)
			}
			h.Close()
		}
	})
}

// shipped returns what the built-in template makes of a service at the path / and one at a TCP port, with or without a server.
// more is for the frontend of the first.
func (h *realHAProxy) shipped(r release, more, tcpPort, web, tcp string) proxyctl.Config {
	read := func(path string) string {
		text, err := os.ReadFile(path)
		if err != nil {
			h.t.Fatal(err)
		}
		return string(text)
	}
	text, _, one := strings.Cut(read("../../templates/testdata/one.cfg"), "    server host:")
	_, port, labels := strings.Cut(read("../../templates/testdata/labels.cfg"), "\nfrontend tcp.5432.in ")
	port, _, next := strings.Cut(port, "\nfrontend tcp.")
	if !one || !labels || !next {
		h.t.Fatal("the shipped template no longer renders servers of host, or TCP ports")
	}
	text += web + "\nfrontend tcp.5432.in " + port + "\nbackend late.tcp from tcp.defaults\n" + tcp
	if r.since("3.2") {
		text = regexp.MustCompile(`http-request lua\.pause ([0-9]+)`).ReplaceAllString(text, "http-request pause ${1}ms")
	}
	replace := []string{
		"    bind :8080\n", "    bind 127.0.0.1:" + h.port + "\n" + more, "    bind :8404\n", "    bind unix@" + h.dir + "/stats.sock\n",
		"    bind :5432\n", "    bind 127.0.0.1:" + tcpPort + "\n", "/run/haproxy/", h.dir + "/", "/etc/haproxy/", h.dir + "/",
	}
	if r.since("3.2") {
		replace = append(replace, " sni var(", " pool-conn-name var(", "    lua-load ", "    tune.lua.bool-sample-conversion normal\n    lua-load ")
	}
	for i := 0; i < len(replace); i += 2 {
		if !strings.Contains(text, replace[i]) {
			h.t.Fatalf("the shipped template no longer renders %q", replace[i])
		}
	}
	text = strings.NewReplacer(replace...).Replace(text)
	c, contents := proxyctl.Config{Files: map[string]string{}}, map[string]string{}
	for _, path := range regexp.MustCompile(regexp.QuoteMeta(h.dir)+`/haproxy\.cfg\.[a-z0-9.-]+`).FindAllString(text, -1) {
		switch {
		case strings.HasSuffix(path, ".lua"):
			c.Files[path] = read("../../templates/pause.lua")
		case strings.HasSuffix(path, ".routes.map"):
			contents[path] = read("../../templates/testdata/one.map")
		default:
			contents[path] = ""
		}
	}
	c.Text = WithMaps(text, contents)
	return c
}

// Requests and connections that wait in a worker replaced by a reload get the new server, which gets the same information as from
// that worker.
func TestE2EWaitOverReload(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		h := startHAProxy(t, r.image, func(o *Options) { o.RouteHold = 10 * time.Second })
		tcpPort := testenv.FreePort(t)
		h.bring(h.shipped(r, "", tcpPort, "", ""), proxyctl.Reload)
		connections := h.connections(4, tcpPort)
		load := h.load(t, 100, http.MethodGet, http.MethodPost)
		load.until(20)
		h.bring(h.shipped(r, "    no log\n", tcpPort, "", ""), proxyctl.Reload)
		load.until(60)
		h.bring(h.shipped(r, "", tcpPort, "", ""), proxyctl.Reload)
		load.until(90)
		host := "127.0.0.1:" + h.port
		s, address := reader(t)
		s.Handler = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			n, _ := io.Copy(io.Discard, req.Body)
			told := fmt.Sprintf("%s %s %d %q", req.Host, req.URL, n, req.Header)
			for name, want := range map[string]string{
				"X-Forwarded-For": "127.0.0.1", "X-Real-Ip": "127.0.0.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": host, "X-Forwarded-Port": h.port,
			} {
				if v := req.Header[name]; len(v) != 1 || v[0] != want {
					http.Error(w, told, http.StatusBadRequest)
				}
			}
			if req.Host != host || req.URL.Path != "/" || n != req.ContentLength || req.Header["X-Berth-Again"] != nil {
				http.Error(w, told, http.StatusBadRequest)
			}
		})
		h.bring(h.shipped(r, "", tcpPort, "    server s "+address+"\n", "    server s "+testenv.Echo(t, "127.0.0.1", "welcome\n")+"\n"), proxyctl.Runtime)
		testenv.Until(t, 20*time.Second, "requests are answered", func() bool { return load.pending.Load() < 20 })
		again := h.requests("again.in")
		load.end()
		t.Logf("%s; %d were handed over to the last worker", load.says(), again)
		if load.failed.Load() > 0 || again < 20 {
			t.Error(load.says())
		}
		for range cap(connections) {
			if got := <-connections; got != "welcome\nhello\n" {
				t.Errorf("a connection got %q", got)
			}
		}
	})
}

// connections makes connections to a port, and returns what they receive. Every other one waits for that before it sends
// anything.
func (h *realHAProxy) connections(n int, port string) <-chan string {
	told := make(chan string, n)
	for i := range n {
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err != nil {
			h.t.Fatal(err)
		}
		go func() {
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(time.Minute)) // on 2.6, a connection may miss the end of its wait
			if i%2 == 0 {
				_, _ = io.WriteString(conn, "hello\n")
			}
			lines := bufio.NewReader(conn)
			greeting, _ := lines.ReadString('\n')
			if i%2 != 0 {
				_, _ = io.WriteString(conn, "hello\n")
			}
			reply, _ := lines.ReadString('\n')
			told <- greeting + reply
		}()
	}
	return told
}

// requests returns how many requests a frontend of the serving worker has had.
func (h *realHAProxy) requests(frontend string) int64 {
	h.t.Helper()
	for line := range strings.Lines(h.says("show stat " + frontend + " 1 -1 typed")) {
		if name, value, _ := strings.Cut(line, ":"); strings.Contains(name, ".req_tot.") {
			n, err := strconv.ParseInt(strings.TrimSpace(value[strings.LastIndex(value, ":")+1:]), 10, 64)
			if err != nil {
				h.t.Fatal(err)
			}
			return n
		}
	}
	h.t.Fatalf("no figures of %s", frontend)
	return 0
}
