//go:build e2e

package templates

import (
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"berth/deploy/testenv"
)

//go:embed balancer.lua
var balancerLua string

// balancerConf is a configuration of nginx by hand: a front with upstreams of each kind, whose servers are ports of the
// same nginx. A server answers with its port and the number of the connection.
//
// 9001 to 9009 just answer; 9011 takes requests, counts them and closes; 9012 closes each connection at its second
// request; nobody listens at 9021 to 9025, and what listens at 9031 never takes a connection.
const balancerConf = `
include /etc/nginx/modules-enabled/*.conf;
user nginx;
worker_processes 2;
error_log /dev/stderr notice;
pid /run/nginx.pid;
events { worker_connections 2048; }

http {
    access_log off;
    keepalive_requests 1000000;
    client_max_body_size 64m;
    lua_shared_dict berth DICTIONARY;
    lua_shared_dict counts 1m;

    init_by_lua_block {
BALANCER
    }

    upstream app { server 127.0.0.1:9008; server 127.0.0.1:9009; balancer_by_lua_block { require("berth").balance("app") } keepalive 64; }
    upstream one { server 127.0.0.1:9009; balancer_by_lua_block { require("berth").balance("one") } keepalive 64; }
    upstream keyed { server 127.0.0.1:9009; balancer_by_lua_block { require("berth").balance("keyed", ngx.var.arg_key) } keepalive 64; }
    upstream chance { server 127.0.0.1:9009; balancer_by_lua_block { require("berth").random("chance") } keepalive 64; }
    upstream berth.check { server 127.0.0.1:9009; balancer_by_lua_block { require("berth").check("unix:/run/berth.sock") } }

    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_connect_timeout 300ms;

    server {
        listen 80 reuseport;
        add_header X-Worker $pid always;
        add_header X-Tried $upstream_addr always;
        error_page 503 /503;
        location = /503 { internal; return 503 "nobody\n"; }
        location /app { proxy_pass http://app; }
        location /app/guarded {
            set_by_lua_block $empty { return require("berth").empty("app") }
            if ($empty) { return 503; }
            proxy_pass http://app;
        }
        set $berth_wait_until "";
        location /app/held {
            access_by_lua_block { require("berth").wait("app", 0, 10) }
            log_by_lua_block { require("berth").waited() }
            proxy_pass http://app;
        }
        location /one { proxy_pass http://one; }
        location /keyed { proxy_pass http://keyed; }
        location /chance { proxy_pass http://chance; }
        location /check { proxy_pass http://berth.check/ping; }
        location /counts { content_by_lua_block { ngx.print(ngx.shared.counts:get("requests") or 0) } }
    }
    server {
        listen 81;
        location = /servers { content_by_lua_block { require("berth").servers() } }
        location = /waiting { content_by_lua_block { require("berth").waiting() } }
    }
    server {
        listen unix:/run/berth.sock;
        location = /ping { return 200 "pong\n"; }
    }
    server {
        listen 9001; listen 9002; listen 9003; listen [::1]:9004; listen 9005; listen 9006; listen 9007; listen 9008; listen 9009;
        location / { return 200 "$server_port $connection\n"; }
    }
    server {
        listen 9011;
        location / { content_by_lua_block { ngx.req.read_body(); ngx.shared.counts:incr("requests", 1, 0); ngx.exit(444) } }
    }
    server {
        listen 9012;
        location / { if ($connection_requests != 1) { return 444; } return 200 "$server_port $connection\n"; }
    }
}
`

// blackhole listens at 9031 with a full queue and accepts nothing, so further connections get no answer at all.
const blackhole = `use Socket;
socket(L, PF_INET, SOCK_STREAM, 0); bind(L, sockaddr_in(9031, INADDR_LOOPBACK)) or die; listen(L, 0);
for (1..4) { socket(my $c, PF_INET, SOCK_STREAM, 0); $c->blocking(0); connect($c, sockaddr_in(9031, INADDR_LOOPBACK)); push @c, $c }
open(F, ">/tmp/blackhole"); close(F); sleep`

// lateServer answers at 9022.
const lateServer = `use Socket;
socket(L, PF_INET, SOCK_STREAM, 0); bind(L, sockaddr_in(9022, INADDR_LOOPBACK)) or die; listen(L, 100);
while (accept(C, L)) { sysread(C, $_, 9999); syswrite(C, "HTTP/1.0 200 OK\r\n\r\n9022 0\n"); close(C) }`

// balancerNginx is an nginx with balancerConf.
type balancerNginx struct {
	t              testing.TB
	name           string
	front, control string
	keepAlive      *http.Client // one connection while one goroutine uses it
	once           *http.Client // a connection for each request, so any worker may answer
}

// startBalancer starts it, with a replacement in the balancer.
func startBalancer(t testing.TB, dictionary string, replace ...string) *balancerNginx {
	t.Helper()
	front, control := testenv.FreePort(t), testenv.FreePort(t)
	n := &balancerNginx{
		t: t, name: testenv.Name(t) + "-nginx", front: "http://127.0.0.1:" + front, control: "http://127.0.0.1:" + control + "/servers",
		keepAlive: &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64}},
		once:      &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}},
	}
	t.Cleanup(n.keepAlive.CloseIdleConnections)
	n.create(strings.NewReplacer("DICTIONARY", dictionary, "BALANCER", strings.NewReplacer(replace...).Replace(balancerLua)).Replace(balancerConf),
		"--publish", "127.0.0.1:"+front+":80", "--publish", "127.0.0.1:"+control+":81",
		"--sysctl", "net.ipv6.conf.all.disable_ipv6=0", "--sysctl", "net.ipv6.conf.lo.disable_ipv6=0")
	if _, err := testenv.Docker("start", n.name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.logIfFailed)
	n.answers()
	return n
}

// create creates the container with its configuration, and removes a killed nginx's socket, which would be in the way.
func (n *balancerNginx) create(conf string, options ...string) {
	n.t.Helper()
	file := filepath.Join(n.t.TempDir(), "nginx.conf")
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
		n.t.Fatal(err)
	}
	args := append([]string{"create", "--name", n.name, "--label", "SERVICE_IGNORE=1", "--user", "root", "--entrypoint", "sh"}, options...)
	args = append(args, testenv.Image(n.t, "IMAGE_NGINX_LUA"), "-c", "rm -f /run/berth.sock; exec nginx -c /tmp/nginx.conf -g 'daemon off;' 2>&1")
	if _, err := testenv.Docker(args...); err != nil {
		n.t.Fatal(err)
	}
	if _, err := testenv.Docker("cp", file, n.name+":/tmp/nginx.conf"); err != nil {
		n.t.Fatal(err)
	}
}

func (n *balancerNginx) log() string {
	out, err := testenv.Docker("logs", "--tail", "30", n.name)
	if err != nil {
		n.t.Error(err)
	}
	return out
}

func (n *balancerNginx) logIfFailed() {
	if n.t.Failed() {
		n.t.Log(n.log())
	}
}

func (n *balancerNginx) answers() {
	n.t.Helper()
	testenv.Eventually(n.t, 20*time.Second, "nginx answers", func() error {
		res, err := n.once.Get(n.control)
		if err == nil {
			res.Body.Close()
		}
		return err
	})
}

// reply is the result of a request: the port that answered, the upstream connection, the worker, the servers tried.
type reply struct {
	status     int
	port, conn string
	worker     string
	tried      []string
	body       string
	took       time.Duration
}

func (n *balancerNginx) do(client *http.Client, method, url, body string) (reply, error) {
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	start := time.Now()
	res, err := client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	r := reply{status: res.StatusCode, worker: res.Header.Get("X-Worker"), body: string(text), took: time.Since(start)}
	if tried := res.Header.Get("X-Tried"); tried != "" {
		r.tried = strings.Split(tried, ", ")
	}
	r.port, r.conn, _ = strings.Cut(strings.TrimSpace(r.body), " ")
	return r, err
}

// get sends a request that must be answered, with any status.
func (n *balancerNginx) get(client *http.Client, path string) reply {
	n.t.Helper()
	r, err := n.do(client, "GET", n.front+path, "")
	if err != nil {
		n.t.Fatal(err)
	}
	return r
}

// served sends a request that a server must answer, and returns the server's port.
func (n *balancerNginx) served(client *http.Client, path string) string {
	n.t.Helper()
	r := n.get(client, path)
	if r.status != http.StatusOK {
		n.t.Fatalf("GET %s: %d %s, tried %q", path, r.status, r.body, r.tried)
	}
	return r.port
}

// post replaces the lists, and fails unless nginx confirms them.
func (n *balancerNginx) post(lines ...string) {
	n.t.Helper()
	text := sorted(lines)
	r, err := n.do(n.keepAlive, "POST", n.control, text)
	if err != nil {
		n.t.Fatal(err)
	}
	if r.status != http.StatusOK || r.body != text {
		n.t.Fatalf("POST %q: %d %.200q", text[:min(len(text), 200)], r.status, r.body)
	}
}

// sorted returns lines in nginx's order: by upstream, with the servers of each in their order.
func sorted(lines []string) string {
	lines = slices.Clone(lines)
	slices.SortStableFunc(lines, func(a, b string) int {
		a, _, _ = strings.Cut(a, " ")
		b, _, _ = strings.Cut(b, " ")
		return strings.Compare(a, b)
	})
	return strings.Join(lines, "\n") + "\n"
}

func (n *balancerNginx) list() string {
	n.t.Helper()
	r, err := n.do(n.keepAlive, "GET", n.control, "")
	if err != nil || r.status != http.StatusOK {
		n.t.Fatal(r.status, err)
	}
	return r.body
}

// workers are the workers that answer; there are two.
func (n *balancerNginx) workers() []string {
	n.t.Helper()
	var workers []string
	testenv.Eventually(n.t, 10*time.Second, "two workers answer", func() error {
		if w := n.get(n.once, "/counts").worker; !slices.Contains(workers, w) {
			workers = append(workers, w)
		}
		if len(workers) < 2 {
			return errors.New("one does")
		}
		return nil
	})
	return workers
}

// on repeats a request until this worker handles it.
func (n *balancerNginx) on(worker, path string) reply {
	n.t.Helper()
	var r reply
	testenv.Eventually(n.t, 10*time.Second, "worker "+worker+" takes a request", func() error {
		if r = n.get(n.once, path); r.worker != worker {
			return errors.New("another did")
		}
		return nil
	})
	return r
}

// share counts which ports answer the given number of requests.
func (n *balancerNginx) share(client *http.Client, path string, requests int) map[string]int {
	n.t.Helper()
	counts := map[string]int{}
	for range requests {
		counts[n.served(client, path)]++
	}
	return counts
}

// lines returns lines for an upstream; each server is a port, or port*weight.
func lines(upstream string, servers ...string) []string {
	var all []string
	for _, server := range servers {
		port, weight, ok := strings.Cut(server, "*")
		if !ok {
			weight = "1"
		}
		all = append(all, upstream+" 127.0.0.1:"+port+" "+weight)
	}
	return all
}

func near(got, want, slack int) bool { return got >= want-slack && got <= want+slack }

func TestE2EBalancerSharesByWeight(t *testing.T) {
	n := startBalancer(t, "16m")
	n.post(append(lines("app", "9001", "9002*2", "9003*5"), lines("chance", "9001", "9002*2", "9003*5")...)...)
	counts := n.share(n.once, "/app", 400)
	for port, want := range map[string]int{"9001": 50, "9002": 100, "9003": 250} {
		// Each worker has its own round, and both may be in the middle of it.
		if !near(counts[port], want, 4) {
			t.Errorf("in turn: %s answered %d times instead of %d: %v", port, counts[port], want, counts)
		}
	}
	counts = n.share(n.keepAlive, "/chance", 800)
	for port, want := range map[string]int{"9001": 100, "9002": 200, "9003": 500} {
		if !near(counts[port], want, 70) {
			t.Errorf("by chance: %s answered %d times instead of about %d: %v", port, counts[port], want, counts)
		}
	}
	n.post(lines("app", "9001", "9002")...)
	ports := ""
	for range 20 {
		ports += n.served(n.keepAlive, "/app")
	}
	if strings.Contains(ports, "90019001") || strings.Contains(ports, "90029002") {
		t.Errorf("two of one weight do not take turns: %s", ports)
	}
}

func TestE2EBalancerReplacedListsStarveNobody(t *testing.T) {
	n := startBalancer(t, "16m")
	three := lines("app", "9001", "9002", "9003")
	four := append(slices.Clone(three), lines("app", "9005")...)
	counts := map[string]int{}
	for i := range 400 {
		if i%2 == 0 {
			n.post(three...)
		} else {
			n.post(four...)
		}
		counts[n.served(n.keepAlive, "/app")]++
	}
	// 200 requests have three servers, 200 have four. The fourth starts each time at a random point of the round. If the
	// others are close together there, it is next every second time it is in the list.
	for port, want := range map[string]struct{ least, most int }{"9001": {95, 125}, "9002": {95, 125}, "9003": {95, 125}, "9005": {40, 105}} {
		if got := counts[port]; got < want.least || got > want.most {
			t.Errorf("%s answered %d times, want %d to %d: %v", port, got, want.least, want.most, counts)
		}
	}
}

func TestE2EBalancerKeepsKeys(t *testing.T) {
	n := startBalancer(t, "16m")
	workers := n.workers()
	const keys = 200
	where := func(worker string) map[string]string {
		ports := map[string]string{}
		for i := 0; len(ports) < keys; i++ {
			key := strconv.Itoa(i)
			path := "/keyed?key=user-" + key
			if worker == "" {
				ports[key] = n.served(n.keepAlive, path)
			} else {
				ports[key] = n.on(worker, path).port
			}
		}
		return ports
	}
	n.post(lines("keyed", "9001", "9002", "9003", "9005")...)
	four := where("")
	for _, worker := range workers {
		for key, port := range where(worker) {
			if port != four[key] {
				t.Fatalf("worker %s sends %s to %s, another to %s", worker, key, port, four[key])
			}
		}
	}
	count := map[string]int{}
	for _, port := range four {
		count[port]++
	}
	for port, times := range count {
		if !near(times, keys/4, 30) {
			t.Errorf("%s has %d keys of %d: %v", port, times, keys, count)
		}
	}

	// The order does not matter.
	n.post(lines("keyed", "9006", "9005", "9003", "9002", "9001")...)
	five, moved := where(""), 0
	for key, port := range five {
		if port == four[key] {
			continue
		}
		if moved++; port != "9006" {
			t.Errorf("%s moved from %s to %s, neither of which is new", key, four[key], port)
		}
	}
	if !near(moved, keys/5, 25) {
		t.Errorf("%d of %d keys moved to the fifth server", moved, keys)
	}
	n.post(lines("keyed", "9001", "9002", "9003", "9005")...)
	for key, port := range where("") {
		if port != four[key] {
			t.Errorf("%s did not come back to %s, but went to %s", key, four[key], port)
		}
	}

	n.post(lines("keyed", "9001", "9002*3")...)
	heavy := 0
	for _, port := range where("") {
		if port == "9002" {
			heavy++
		}
	}
	if !near(heavy, keys*3/4, 30) {
		t.Errorf("a server of weight 3 has %d keys of %d, the other is of weight 1", heavy, keys)
	}

	// Without a key, servers take turns.
	n.post(lines("keyed", "9001", "9002")...)
	for _, path := range []string{"/keyed", "/keyed?key="} {
		if counts := n.share(n.keepAlive, path, 20); counts["9001"] != 10 || counts["9002"] != 10 {
			t.Errorf("%s: %v", path, counts)
		}
	}
}

func TestE2EBalancerControl(t *testing.T) {
	n := startBalancer(t, "1m")
	if got := n.list(); got != "" {
		t.Errorf("lists before any was posted: %q", got)
	}
	before := "app 127.0.0.1:9001 1\napp 127.0.0.1:9002 20\nother [fd00::1]:80 65535\n"
	for _, test := range []struct {
		name, method, body string
		status             int
		answer             string
	}{
		{"sorted, blank lines left out", "POST", "other [fd00::1]:80 65535\n\napp 127.0.0.1:9001 1\napp 127.0.0.1:9002 20", 200, before},
		{"get", "GET", "", 200, before},
		{"no address", "POST", "app 127.0.0.1:9001 1\napp 127.0.0.1 1\n", 400, "line 2: not an IP address and port: 127.0.0.1\n"},
		{"no weight", "POST", "app 127.0.0.1:9001\n", 400, "line 1: not of the form: upstream address:port weight\n"},
		{"one word too many", "POST", "app 127.0.0.1:9001 1 x\n", 400, "line 1: not of the form: upstream address:port weight\n"},
		{"a name", "POST", "\n\napp localhost:80 1\n", 400, "line 3: not an IP address and port: localhost:80\n"},
		{"not an address", "POST", "app 127.0.0.256:80 1\n", 400, "line 1: not an IP address and port: 127.0.0.256:80\n"},
		{"not an IPv6 address", "POST", "app [::1::]:80 1\n", 400, "line 1: not an IP address and port: [::1::]:80\n"},
		{"no such port", "POST", "app 127.0.0.1:65536 1\n", 400, "line 1: not an IP address and port: 127.0.0.1:65536\n"},
		{"weight 0", "POST", "app 127.0.0.1:80 0\n", 400, "line 1: not of the form: upstream address:port weight\n"},
		{"weight too large", "POST", "app 127.0.0.1:80 65536\n", 400, "line 1: the weight is not 1 to 65535\n"},
		{"carriage return", "POST", "app 127.0.0.1:80 1\r\n", 400, "line 1: not of the form: upstream address:port weight\n"},
		{"space before", "POST", " app 127.0.0.1:80 1\n", 400, "line 1: not of the form: upstream address:port weight\n"},
		{"long name", "POST", strings.Repeat("a", 256) + "\n", 400, "line 1: the upstream's name has more than 255 characters\n"},
		{"other methods", "DELETE", "", 405, "GET or POST\n"},
		{"too much", "POST", manyServers(100_000), 507, "the dictionary is too small: give `lua_shared_dict berth` more than the 1m that it has\n"},
		{"too many", "POST", manyUpstreams(20_000), 507, "the dictionary is too small: give `lua_shared_dict berth` more than the 1m that it has\n"},
		{"still the first", "GET", "", 200, before},
		{"larger than nginx's buffer", "POST", manyServers(5_000), 200, manyServers(5_000)},
		{"a hold and a pause", "POST", "app hold 30000\napp paused 0\napp 127.0.0.1:9001 1\nidle hold 0\n", 200, "app hold 30000\napp paused 0\napp 127.0.0.1:9001 1\nidle hold 0\n"},
		{"a hold that is too long", "POST", "app hold 300001\n", 400, "line 1: hold is not 0 to 300000 milliseconds\n"},
		{"another setting", "POST", "app lease 30\n", 400, "line 1: not an IP address and port: lease\n"},
		{"not together", "POST", "b 127.0.0.1:1 1\na\nb\na 127.0.0.1:2 2\nc\n\nb 127.0.0.1:3 3\nb 127.0.0.1:1 1", 200,
			"a 127.0.0.1:2 2\nb 127.0.0.1:1 1\nb 127.0.0.1:3 3\nb 127.0.0.1:1 1\nc\n"},
		{"all others are gone", "POST", "none\nsome 127.0.0.1:9001 1\n", 200, "none\nsome 127.0.0.1:9001 1\n"},
		{"nothing", "POST", "", 200, ""},
	} {
		r, err := n.do(n.keepAlive, test.method, n.control, test.body)
		if err != nil {
			t.Fatal(test.name, err)
		}
		if r.status != test.status || r.body != test.answer {
			t.Errorf("%s: %d %.200q, not %d %.200q", test.name, r.status, r.body, test.status, test.answer)
		}
	}
}

func manyServers(count int) string {
	var text strings.Builder
	for i := range count {
		fmt.Fprintf(&text, "app 10.%d.%d.%d:8080 1\n", i>>16, i>>8&255, i&255)
	}
	return text.String()
}

func manyUpstreams(count int) string {
	var text strings.Builder
	for i := range count {
		fmt.Fprintf(&text, "app-%d 10.0.0.1:8080 1\n", i)
	}
	return text.String()
}

// Lists that do not fit leave nothing behind, however often they are tried, and lists that fit can be replaced forever.
func TestE2EBalancerDictionaryDoesNotFill(t *testing.T) {
	n := startBalancer(t, "1m")
	tooMuch := manyServers(40_000)
	fits := [][]string{serversOf(8_000), serversOf(8_001), strings.Split(strings.TrimSpace(manyUpstreams(500)), "\n")}
	for i := range 9 {
		n.post(fits[i%3]...)
		r, err := n.do(n.keepAlive, "POST", n.control, strings.Join(fits[(i+1)%3], "\n")+"\n"+tooMuch)
		if err != nil || r.status != http.StatusInsufficientStorage {
			t.Fatalf("round %d: %d %.200q %v", i, r.status, r.body, err)
		}
		if got := n.list(); got != sorted(fits[i%3]) {
			t.Fatalf("round %d: another list than before: %.200q", i, got)
		}
	}
}

func serversOf(count int) []string { return strings.Split(strings.TrimSpace(manyServers(count)), "\n") }

func TestE2EBalancerServesTheFilesServersUntilPosted(t *testing.T) {
	n := startBalancer(t, "16m")
	if counts := n.share(n.keepAlive, "/app", 20); counts["9008"] != 10 || counts["9009"] != 10 {
		t.Errorf("nothing posted: %v", counts)
	}
	if r := n.get(n.once, "/check"); r.status != 200 || r.body != "pong\n" || !slices.Equal(r.tried, []string{"unix:/run/berth.sock"}) {
		t.Errorf("check: %d %q tried %q", r.status, r.body, r.tried)
	}
	n.post(lines("one", "9001")...)
	if counts := n.share(n.keepAlive, "/app", 20); counts["9008"] != 10 || counts["9009"] != 10 {
		t.Errorf("posted for another: %v", counts)
	}
	n.post(lines("app", "9001")...)
	if counts := n.share(n.once, "/app", 20); counts["9001"] != 20 {
		t.Errorf("posted: %v", counts)
	}
	// A removed list is like one never posted.
	n.post(lines("one", "9001")...)
	if counts := n.share(n.keepAlive, "/app", 20); counts["9008"] != 10 || counts["9009"] != 10 {
		t.Errorf("removed: %v", counts)
	}
}

func TestE2EBalancerWithoutServers(t *testing.T) {
	n := startBalancer(t, "16m")
	n.post("app", "chance")
	for path, want := range map[string]int{"/app": 502, "/chance": 502, "/app/guarded": 503} {
		for _, worker := range n.workers() {
			if r := n.on(worker, path); r.status != want {
				t.Errorf("%s: %d %q", path, r.status, r.body)
			}
		}
	}
	if r := n.get(n.once, "/app/guarded"); r.body != "nobody\n" {
		t.Errorf("not what error_page says: %q", r.body)
	}
	n.post(lines("app", "9001")...)
	for _, path := range []string{"/app", "/app/guarded"} {
		if port := n.served(n.once, path); port != "9001" {
			t.Errorf("%s: %s", path, port)
		}
	}
}

// distinct fails if a request was sent twice to the same server.
func distinct(t testing.TB, r reply) {
	t.Helper()
	seen := slices.Sorted(slices.Values(r.tried))
	if len(slices.Compact(seen)) != len(r.tried) {
		t.Errorf("tried twice: %q", r.tried)
	}
}

func TestE2EBalancerDeadServersCostNoRequest(t *testing.T) {
	n := startBalancer(t, "16m")
	if _, err := testenv.Docker("exec", "--detach", n.name, "perl", "-MIO::Handle", "-e", blackhole); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 10*time.Second, "the black hole is there", func() error {
		_, err := testenv.Docker("exec", n.name, "test", "-e", "/tmp/blackhole")
		return err
	})
	dead := []string{"9021", "9031", "9022"}
	const hangsUp = "127.0.0.1:9011" // accepts the request, which may be the cause
	var all []string
	for _, upstream := range []string{"app", "keyed", "chance"} {
		all = append(all, lines(upstream, append(dead, "9011", "9001*2", "9002")...)...)
	}
	n.post(all...)
	for _, path := range []string{"/app", "/keyed?key=", "/keyed?key=abc", "/chance"} {
		start, tries, slow, hungUp := time.Now(), 0, 0, 0
		for i := range 200 {
			url := path
			if path == "/keyed?key=abc" {
				url += strconv.Itoa(i)
			}
			r := n.get(n.once, url)
			if r.status != 200 {
				t.Fatalf("%s: %d %s, tried %q", url, r.status, r.body, r.tried)
			}
			distinct(t, r)
			for _, server := range r.tried {
				if slices.Contains(dead, strings.TrimPrefix(server, "127.0.0.1:")) {
					tries++
				}
				switch server {
				case "127.0.0.1:9031":
					slow++
				case hangsUp:
					hungUp++
				}
			}
		}
		// Two workers try each dead server once in two seconds.
		if most := 2 * len(dead) * (1 + int(time.Since(start)/(2*time.Second))); tries > most {
			t.Errorf("%s: dead servers were tried %d times in %s", path, tries, time.Since(start))
		}
		if hungUp < 20 { // of 200 requests for a fifth of the weights, more would be
			t.Errorf("%s: the one that takes connections was left out: tried %d times", path, hungUp)
		}
		if path == "/app" && slow == 0 {
			t.Errorf("nobody found the black hole")
		}
	}
}

func TestE2EBalancerTriesEachOnce(t *testing.T) {
	n := startBalancer(t, "16m")
	n.post(append(lines("app", "9021", "9022*50", "9023"), lines("one", "9021", "9022", "9023")...)...)
	for range 10 {
		// They are tried even if all have failed before.
		for _, path := range []string{"/app", "/one"} {
			r := n.get(n.once, path)
			// Where nginx would try more, because the file has more servers, it repeats the last one in $upstream_addr and
			// asks none.
			if path == "/app" && len(r.tried) == 4 && r.tried[3] == r.tried[2] {
				r.tried = r.tried[:3]
			}
			distinct(t, r)
			if r.status != 502 || len(r.tried) != 3 {
				t.Errorf("%s: %d, tried %q", path, r.status, r.tried)
			}
		}
	}
}

func TestE2EBalancerComesBackToAServer(t *testing.T) {
	n := startBalancer(t, "16m")
	n.post(append(lines("app", "9001", "9022"), lines("one", "9022")...)...)
	workers := n.workers()
	for _, worker := range workers {
		testenv.Eventually(t, 10*time.Second, "the worker found it dead", func() error {
			if r := n.on(worker, "/app"); len(r.tried) < 2 {
				return errors.New(r.body)
			}
			return nil
		})
		if r := n.on(worker, "/one"); r.status != 502 {
			t.Errorf("%d %s", r.status, r.body)
		}
	}
	if _, err := testenv.Docker("exec", "--detach", n.name, "perl", "-e", lateServer); err != nil {
		t.Fatal(err)
	}
	// The only server is tried at once; otherwise it is avoided for two seconds.
	testenv.Eventually(t, 1*time.Second, "the server is back", func() error {
		if r := n.get(n.once, "/one"); r.port != "9022" {
			return errors.New(r.body)
		}
		return nil
	})
	for _, worker := range workers {
		testenv.Eventually(t, 5*time.Second, "it has its share again", func() error {
			if r := n.on(worker, "/app"); r.port != "9022" {
				return errors.New(r.body)
			}
			return nil
		})
	}
}

func TestE2EBalancerSendsAPostOnce(t *testing.T) {
	n := startBalancer(t, "16m")
	n.post(lines("app", "9011", "9001")...)
	failed := 0
	for range 10 {
		r, err := n.do(n.keepAlive, "POST", n.front+"/app", "x")
		if err != nil {
			t.Fatal(err)
		}
		if r.status == 200 && slices.Contains(r.tried, "127.0.0.1:9011") || len(r.tried) != 1 {
			t.Errorf("sent again: %d, tried %q", r.status, r.tried)
		}
		if r.status == 502 {
			failed++
		}
	}
	if count := n.get(n.once, "/counts").body; failed == 0 || count != strconv.Itoa(failed) {
		t.Errorf("%s requests arrived at a server that closes, %d failed", count, failed)
	}
}

func TestE2EBalancerIPv6(t *testing.T) {
	n := startBalancer(t, "16m")
	n.post("app [0:0::1]:9004 1", "one [0:0::0:1]:9023 1", "one [::1]:9004 1")
	r := n.get(n.once, "/app")
	if r.status != 200 || r.port != "9004" || !slices.Equal(r.tried, []string{"[::1]:9004"}) {
		t.Errorf("%d %s, tried %q", r.status, r.body, r.tried)
	}
	// The failed server is recognized in any spelling of its address.
	dead := 0
	for range 20 {
		r := n.get(n.keepAlive, "/one")
		if r.status != 200 {
			t.Fatalf("%d %s, tried %q", r.status, r.body, r.tried)
		}
		distinct(t, r)
		dead += len(r.tried) - 1
	}
	if dead < 1 || dead > 2 {
		t.Errorf("a dead server was tried %d times", dead)
	}
}

func TestE2EBalancerKeepsConnections(t *testing.T) {
	n := startBalancer(t, "16m")
	n.post(lines("app", "9001", "9002", "9003")...)
	conns := map[string]bool{}
	for range 150 {
		r := n.get(n.once, "/app")
		conns[r.port+" "+r.conn] = true
	}
	if len(conns) > 6 {
		t.Errorf("150 requests, one after the other, by two workers to three servers took %d connections", len(conns))
	}
	// A server may have closed a kept connection: the request goes over a new one.
	n.post(append(lines("one", "9012"), lines("app", "9012")...)...)
	for _, path := range []string{"/one", "/app"} {
		broken := 0
		for range 20 {
			r := n.get(n.keepAlive, path)
			if r.status != 200 {
				t.Fatalf("%s: %d %s, tried %q", path, r.status, r.body, r.tried)
			}
			broken += len(r.tried) - 1
		}
		if broken == 0 {
			t.Errorf("%s: no connection was used twice", path)
		}
	}
}

func TestE2EBalancerListsSurviveAReload(t *testing.T) {
	n := startBalancer(t, "16m")
	n.post(lines("app", "9001", "9002")...)
	list, old := n.list(), n.workers()
	if _, err := testenv.Docker("kill", "--signal", "HUP", n.name); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 20*time.Second, "new workers answer", func() error {
		r := n.get(n.once, "/app")
		if r.status != 200 || r.port != "9001" && r.port != "9002" {
			t.Errorf("%d %s", r.status, r.body)
		}
		if slices.Contains(old, r.worker) {
			return errors.New("an old one does")
		}
		return nil
	})
	if got := n.list(); got != list {
		t.Errorf("after a reload the list is %q", got)
	}
	if counts := n.share(n.once, "/app", 20); !near(counts["9001"], 10, 2) || !near(counts["9002"], 10, 2) {
		t.Errorf("after a reload: %v", counts)
	}
	if _, err := testenv.Docker("restart", "--time", "5", n.name); err != nil {
		t.Fatal(err)
	}
	n.keepAlive.CloseIdleConnections()
	n.answers()
	if got := n.list(); got != "" {
		t.Errorf("after a restart the list is %q", got)
	}
	if counts := n.share(n.keepAlive, "/app", 20); counts["9008"] != 10 || counts["9009"] != 10 {
		t.Errorf("after a restart: %v", counts)
	}
}

// The waiting requests counted by a killed worker are forgotten, although others still wait.
func TestE2EBalancerForgetsWhoWaitedInAKilledWorker(t *testing.T) {
	const span = "MAX_HOLD + 30"
	if !strings.Contains(balancerLua, "= "+span) {
		t.Fatal("the balancer counts in another way")
	}
	n := startBalancer(t, "16m", span, "5")
	old := n.workers()
	n.post("app hold 4000")
	var held sync.WaitGroup
	defer held.Wait()
	for range 10 {
		held.Go(func() {
			if r, err := n.do(n.once, "GET", n.front+"/app/held", ""); err == nil {
				t.Errorf("%d %s", r.status, r.body)
			}
		})
	}
	waiting := func(want string) {
		t.Helper()
		testenv.Eventually(t, 30*time.Second, want+" wait", func() error {
			r, err := n.do(n.keepAlive, "GET", strings.Replace(n.control, "/servers", "/waiting", 1), "")
			if f := strings.Fields(r.body); err != nil || len(f) < 2 || f[1] != want {
				return fmt.Errorf("%q, %v", r.body, err)
			}
			return nil
		})
	}
	waiting("10")
	if _, err := testenv.Docker("exec", n.name, "sh", "-c", "kill -9 "+strings.Join(old, " ")); err != nil {
		t.Fatal(err)
	}
	n.keepAlive.CloseIdleConnections()
	n.answers()
	n.post("app hold 300")
	// They wait one after the other, as soon as there is room.
	testenv.Eventually(t, 30*time.Second, "a request waits", func() error {
		if r := n.get(n.once, "/app/held"); r.status != 503 || r.took < 300*time.Millisecond {
			return fmt.Errorf("%d after %v", r.status, r.took)
		}
		return nil
	})
	waiting("0")
}

// Every request after a POST uses the new list on either worker; no request fails, and no worker reads half a list.
func TestE2EBalancerReplacementsUnderLoad(t *testing.T) {
	n := startBalancer(t, "16m")
	ports := []string{"9001", "9002", "9003", "9005", "9006"}
	bodies := map[string]bool{}
	body := func(i int) []string {
		all := append(lines("app", ports[i%5], ports[(i+1)%5]), strings.Split(strings.TrimSpace(manyUpstreams(50)), "\n")...)
		return append(all, lines("one", ports[i%5])...)
	}
	for i := range 5 {
		bodies[sorted(body(i))] = true
	}
	n.post(body(0)...)

	var requests, listed atomic.Int64
	done := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 8 {
		client := n.keepAlive
		if i%4 == 0 {
			client = n.once
		}
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if r, err := n.do(client, "GET", n.front+"/app", ""); err != nil || r.status != 200 {
					t.Errorf("%d %s %v", r.status, r.body, err)
				}
				requests.Add(1)
			}
		})
	}
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if r, err := n.do(n.once, "GET", n.control, ""); err != nil || !bodies[r.body] {
				t.Errorf("not a list that was posted: %d %.300q %v", r.status, r.body, err)
			}
			listed.Add(1)
		}
	})
	for i := range 200 {
		n.post(body(i)...)
		if port := n.served(n.once, "/one"); port != ports[i%5] {
			t.Errorf("the request after POST %d went to %s, not to %s", i, port, ports[i%5])
		}
	}
	close(done)
	wg.Wait()
	if requests.Load() < 100 || listed.Load() < 10 {
		t.Errorf("%d requests, %d lists: that is no load", requests.Load(), listed.Load())
	}
}

// Concurrent posts each apply their whole list, one after the other.
func TestE2EBalancerPostsExcludeEachOther(t *testing.T) {
	n := startBalancer(t, "16m")
	var wg sync.WaitGroup
	for i := range 8 {
		text := strings.ReplaceAll(manyUpstreams(100), ":8080", ":"+strconv.Itoa(8000+i))
		want := strings.Split(text, "\n")
		slices.Sort(want)
		wg.Go(func() {
			for range 10 {
				r, err := n.do(n.once, "POST", n.control, text)
				got := strings.Split(r.body, "\n")
				slices.Sort(got)
				if err != nil || r.status != 200 || !slices.Equal(got, want) {
					t.Errorf("%d %.200q %v", r.status, r.body, err)
				}
			}
		})
	}
	wg.Wait()
	if count := strings.Count(n.list(), "\n"); count != 100 {
		t.Errorf("%d upstreams in the end", count)
	}
}

func TestE2EBalancerThousands(t *testing.T) {
	n := startBalancer(t, "16m")
	servers := serversOf(5_000)
	for i, server := range servers {
		servers[i] = strings.NewReplacer(" 10.", " 127.", ":8080", ":9001").Replace(server)
	}
	n.post(servers...)
	seen := map[string]bool{}
	for range 300 {
		r := n.get(n.keepAlive, "/app")
		if r.status != 200 {
			t.Fatalf("%d %s", r.status, r.body)
		}
		seen[r.tried[0]] = true
	}
	// A round is 5,000 requests long.
	if len(seen) != 300 {
		t.Errorf("300 requests went to %d servers of 5,000", len(seen))
	}
}

func TestE2EBalancerNeedsItsDictionary(t *testing.T) {
	n := &balancerNginx{t: t, name: testenv.Name(t) + "-nginx"}
	n.create(strings.NewReplacer("lua_shared_dict berth DICTIONARY;", "", "BALANCER", balancerLua).Replace(balancerConf))
	if _, err := testenv.Docker("start", "--attach", n.name); err == nil {
		t.Error("nginx ran")
	}
	if log := n.log(); !strings.Contains(log, "add `lua_shared_dict berth 16m;` to the http section") {
		t.Error(log)
	}
}
