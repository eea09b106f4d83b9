//go:build e2e

package nginx_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"berth/deploy/testenv"
	"berth/proxyctl"
	"berth/proxyctl/nginx"
	"berth/templates"
)

// holdPatience is how long the tests wait for an expected event.
const holdPatience = 20 * time.Second

// holder is an nginx with the built-in template and Lua, a berth for it, and the only server of its service.
type holder struct {
	*testing.T
	id, web string
	proxy   *nginx.Proxy
	text    func(servers []string) proxyctl.Config
	app     string // its address
	got     atomic.Int64
	log     *testenv.Log
	metrics *prometheus.Registry
	client  *http.Client
	stall   atomic.Int64 // how long the machine has kept a runnable goroutine waiting
}

// watch measures stall until the test ends.
func (h *holder) watch() {
	ctx, stop := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	watching.Go(func() {
		for last := time.Now(); ctx.Err() == nil; last = time.Now() {
			const step = 5 * time.Millisecond
			time.Sleep(step)
			h.stall.Store(max(h.stall.Load(), int64(time.Since(last)-step)))
		}
	})
	h.Cleanup(func() { stop(); watching.Wait() })
}

func startHolder(t *testing.T, hold time.Duration, most int) *holder {
	t.Parallel()
	dir := testenv.Dir(t)
	file, socket := filepath.Join(dir, "nginx.conf"), filepath.Join(dir, "berth.sock")
	h := &holder{
		T: t, web: testenv.FreeAddress(t, benchWebIP), app: testenv.FreeAddress(t, benchAppIP), log: &testenv.Log{}, metrics: prometheus.NewRegistry(),
		client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
	}
	h.watch()
	stats := testenv.FreeAddress(t, benchWebIP)
	h.text = func(servers []string) proxyctl.Config {
		return rendering{
			template: templates.Nginx(),
			options:  templates.Options{NginxSocket: socket, Lua: true, Hold: hold, HoldMax: most},
			file:     file,
			replace: []string{"listen 8080 ", "listen " + h.web + " ", "listen 8404;", "listen " + stats + ";",
				"access_log /var/log/nginx/access.log berth;", "access_log off;", "127.0.0.1:8404", stats, "worker_processes auto;", "worker_processes 2;"},
		}.render(t, servers)
	}
	writeBench(t, file, proxyctl.Config{Text: "events {\n}\nhttp {\n    server {\n        listen " + h.web + ";\n        return 200;\n    }\n}\n"})
	h.id = startBench(t, "--volume", dir+":"+dir, testenv.Image(t, "IMAGE_NGINX_LUA"), "nginx", "-c", file, "-g", "daemon off;")
	testenv.Eventually(t, holdPatience, "nginx has started", func() error { // before that, a signal would end it
		_, err := testenv.Fetch(t.Context(), h.client, "http://"+h.web+"/")
		return err
	})
	log := slog.New(slog.NewTextHandler(h.log, nil))
	h.proxy = nginx.New(nginx.Options{File: file, Socket: socket, Reload: h.reload, Log: log, Waiting: proxyctl.NewWaiting(h.metrics, log)})
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { h.proxy.Run(ctx) })
	t.Cleanup(func() { stop(); running.Wait(); h.proxy.Close() })
	testenv.Eventually(t, holdPatience, "nginx has berth's configuration", func() error {
		_, err := h.proxy.Apply(t.Context(), h.text([]string{h.app + " away"}), true)
		return err
	})
	return h
}

func (h *holder) reload(context.Context) error {
	_, err := testenv.Docker("kill", "--signal", "HUP", h.id)
	return err
}

// servers sets the servers of the service, without a reload.
func (h *holder) servers(servers ...string) {
	h.Helper()
	res, err := h.proxy.Apply(context.Background(), h.text(servers), true)
	if err != nil || res.Action != proxyctl.Runtime {
		h.Errorf("servers %q: %+v, %v", servers, res, err)
	}
}

// serve starts the server, which reads what it gets and answers with its length. It returns a func that stops the server, which
// then finishes its requests, accepts no more, and keeps no connection.
func (h *holder) serve(address string) (stop func()) {
	h.Helper()
	var l net.Listener
	testenv.Eventually(h, holdPatience, "the address is free", func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			return
		}
		h.got.Add(1)
		fmt.Fprint(w, n)
	})}
	srv.SetKeepAlivesEnabled(false)
	var done sync.WaitGroup
	done.Go(func() { _ = srv.Serve(l) })
	stop = sync.OnceFunc(func() { _ = srv.Shutdown(context.Background()); done.Wait() })
	h.Cleanup(stop)
	return stop
}

// held is the outcome of a request.
type held struct {
	status     int
	body       string
	retryAfter string
	took       time.Duration
	err        error
}

// holdKind is a method, and the length of the body; a chunked one does not announce it.
type holdKind struct {
	method  string
	size    int
	chunked bool
}

func (h *holder) send(ctx context.Context, k holdKind) (r held) {
	began := time.Now()
	var body io.Reader = bytes.NewReader(make([]byte, k.size))
	if k.chunked {
		body = io.MultiReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, k.method, "http://"+h.web+"/", body)
	if err != nil {
		return held{err: err}
	}
	resp, err := h.client.Do(req)
	if err != nil {
		return held{err: err, took: time.Since(began)}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return held{resp.StatusCode, string(b), resp.Header.Get("Retry-After"), time.Since(began), err}
}

// sendAll sends requests of each kind at once. The channel gets the outcomes.
func (h *holder) sendAll() <-chan held {
	all := make(chan held, len(holdKinds))
	var wg sync.WaitGroup
	for _, k := range holdKinds {
		wg.Go(func() {
			r := h.send(h.Context(), k)
			if r.err == nil && r.status == http.StatusOK && r.body != strconv.Itoa(k.size) && k.method != "HEAD" {
				r.err = fmt.Errorf("%s of %d bytes: the server got %s", k.method, k.size, r.body)
			}
			all <- r
		})
	}
	go func() { wg.Wait(); close(all) }()
	return all
}

var holdKinds = []holdKind{
	{method: "GET"}, {method: "HEAD"}, {method: "DELETE"}, {method: "PURGE", size: 10}, {method: "POST"}, {method: "POST", size: 100},
	{method: "PUT", size: 100_000}, {method: "POST", size: 3_000_000}, {method: "POST", size: 200_000, chunked: true},
}

// metric returns a number of requests from nginx's metrics.
func (h *holder) metric(name string) (n float64) {
	families, err := h.metrics.Gather()
	if err != nil {
		h.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && m.GetLabel()[0].GetValue() == "app" {
				n += m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return n
}

func (h *holder) untilWaiting(n int) {
	h.Helper()
	testenv.Eventually(h, holdPatience, fmt.Sprintf("%d requests wait", n), func() error {
		if now := h.metric("berth_waiting_requests"); now != float64(n) {
			return fmt.Errorf("%v do", now)
		}
		return nil
	})
}

// all checks the outcomes of requests.
func (h *holder) all(what string, results <-chan held, status int, least, most time.Duration) {
	h.Helper()
	var longest time.Duration
	for r := range results {
		longest = max(longest, r.took)
		if r.err != nil || r.status != status || r.took < least || r.took > most {
			h.Errorf("%s: %d %q after %v, %v; want %d after %v to %v", what, r.status, r.body, r.took, r.err, status, least, most)
		}
		if status == http.StatusServiceUnavailable && r.retryAfter == "" {
			h.Errorf("%s: no Retry-After", what)
		}
	}
	h.Logf("%s: %v at most", what, longest)
}

// waited checks that requests were served, and waited little longer than the gap, apart from the time that they take anyway and
// the delay of a busy machine.
func (h *holder) waited(what string, results <-chan held, gap time.Duration) {
	h.Helper()
	var all []held
	for r := range results {
		all = append(all, r)
	}
	var usual time.Duration
	for r := range h.sendAll() {
		usual = max(usual, r.took)
	}
	stall := time.Duration(h.stall.Swap(0))
	again := make(chan held, len(all))
	for _, r := range all {
		again <- r
	}
	close(again)
	h.all(what, again, http.StatusOK, 0, gap*11/10+50*time.Millisecond+usual+2*stall)
	h.Logf("%s: the gap was %v; without one they take %v at most; the machine stalled for up to %v", what, gap, usual, stall)
}

// Requests of any kind wait for the only server, also in workers from before a reload, and are served when it comes.
func TestE2ENginxHold(t *testing.T) {
	h := startHolder(t, 10*time.Second, 100)
	began := time.Now()
	waiting := h.sendAll()
	h.untilWaiting(len(holdKinds))
	stop := h.serve(h.app)
	h.servers(h.app)
	gap := time.Since(began)
	h.waited("a server came", waiting, gap)
	h.untilWaiting(0)

	// It is listed, but accepts no connections.
	stop()
	began = time.Now()
	waiting = h.sendAll()
	h.untilWaiting(len(holdKinds))
	h.serve(h.app)
	gap = time.Since(began)
	h.waited("it takes connections again", waiting, gap+100*time.Millisecond) // the interval at which it is asked again
	h.untilWaiting(0)

	h.servers(h.app + " away")
	began = time.Now()
	waiting = h.sendAll()
	h.untilWaiting(len(holdKinds))
	again := h.text([]string{h.app + " away"})
	again.Text += "# another\n"
	if res, err := h.proxy.Apply(t.Context(), again, true); err != nil || res.Action != proxyctl.Reload {
		t.Fatal(res, err)
	}
	again = h.text([]string{h.app})
	again.Text += "# another\n"
	if res, err := h.proxy.Apply(t.Context(), again, true); err != nil || res.Action != proxyctl.Runtime {
		t.Fatal(res, err)
	}
	gap = time.Since(began)
	h.waited("a server came after a reload", waiting, gap)
	h.untilWaiting(0)

	paused := again
	paused.Text = strings.Replace(again.Text, "    upstream app {\n", "    upstream app {\n        # paused 20000\n", 1)
	for _, c := range []proxyctl.Config{paused, again} {
		if res, err := h.proxy.Apply(t.Context(), c, true); err != nil || res.Action != proxyctl.Runtime {
			t.Fatal(res, err)
		}
		if c.Text == paused.Text {
			began, waiting = time.Now(), h.sendAll()
			h.untilWaiting(len(holdKinds))
		}
	}
	gap = time.Since(began)
	h.waited("resumed", waiting, gap)

	h.untilWaiting(0)
	if total := h.metric("berth_held_requests_total"); total != float64(4*len(holdKinds)) {
		t.Errorf("%v are counted", total)
	}
	for line, want := range map[string]int{
		"requests for app wait: it has no server": 3, "requests for app wait: it is paused": 1,
		fmt.Sprintf("requests for app no longer wait: %d waited, ", len(holdKinds)): 4,
	} {
		if n := strings.Count(h.log.String(), line); n != want {
			t.Errorf("%q is in the log %d times, want %d:\n%s", line, n, want, h.log)
		}
	}
}

// After the hold, the answer is the page with Retry-After.
func TestE2ENginxHoldEnds(t *testing.T) {
	const hold = time.Second
	h := startHolder(t, hold, len(holdKinds))
	h.all("no server comes", h.sendAll(), 503, hold, 2*hold)
}

// Beyond the number that may wait, the page comes at once. A client that leaves makes room.
func TestE2ENginxHoldMax(t *testing.T) {
	h := startHolder(t, 2*holdPatience, len(holdKinds))
	ctx, leave := context.WithCancel(t.Context())
	var left sync.WaitGroup
	for _, k := range holdKinds {
		left.Go(func() { h.send(ctx, holdKind{method: k.method}) }) // nginx sees the end of a request only if it has read all of it
	}
	h.untilWaiting(len(holdKinds))
	h.all("too many wait", h.sendAll(), 503, 0, holdPatience/2)
	leave()
	left.Wait()
	h.untilWaiting(0)
	waiting := h.sendAll()
	h.untilWaiting(len(holdKinds))
	h.serve(h.app)
	h.servers(h.app)
	h.all("there is room again", waiting, 200, 0, holdPatience)
}

// While the only server is replaced under load, no request fails, and none that has arrived is sent twice. If it vanishes without
// notice, a POST may be among the connections that the kernel had accepted for it; that one is answered with 502.
func TestE2ENginxHoldUnderLoad(t *testing.T) {
	h := startHolder(t, 10*time.Second, 1000)
	addresses := []string{h.app, testenv.FreeAddress(t, benchAppIP)}
	stop := h.serve(h.app)
	h.servers(h.app)
	var sent sync.WaitGroup
	var ok, vanished atomic.Int64
	ended := make(chan struct{})
	for c := range 20 { // 200 requests per second, unless the machine is too slow
		sent.Go(func() {
			size := []int{0, 100, 0, 40_000}[c%4]
			k := holdKind{method: []string{"GET", "POST"}[min(size, 1)], size: size}
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-ended:
					return
				case <-tick.C:
				}
				switch r := h.send(context.Background(), k); {
				case r.err == nil && r.status == http.StatusOK:
					ok.Add(1)
				case r.status == http.StatusBadGateway && k.method == "POST":
					vanished.Add(1)
				default:
					t.Errorf("%s of %d bytes: %d %q after %v, %v", k.method, k.size, r.status, r.body, r.took, r.err)
				}
			}
		})
	}
	for n := range 6 {
		before := h.got.Load()
		testenv.Eventually(t, holdPatience, "requests are served", func() error {
			if got := h.got.Load() - before; got < 50 {
				return fmt.Errorf("%d are", got)
			}
			return nil
		})
		if n%2 == 0 { // it goes the way berth does it
			h.servers(addresses[n%2] + " away")
			testenv.Eventually(t, holdPatience, "requests wait", func() error {
				if now := h.metric("berth_waiting_requests"); now < 10 {
					return fmt.Errorf("%v do", now)
				}
				return nil
			})
			if vanished.Load() > 0 && n == 0 {
				t.Errorf("%d POST failed although no server has vanished", vanished.Load())
			}
		}
		stop()
		stop = h.serve(addresses[(n+1)%2])
		h.servers(addresses[(n+1)%2])
	}
	close(ended)
	sent.Wait()
	if got := h.got.Load(); got != ok.Load() {
		t.Errorf("servers got %d requests, of which %d were answered", got, ok.Load())
	}
	t.Logf("%d requests, %d POST lost with a server that vanished", ok.Load(), vanished.Load())
}
