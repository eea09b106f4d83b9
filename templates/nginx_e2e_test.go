//go:build e2e

package templates

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	goversion "go/version"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"berth/templates/route"
)

// theNginx is nginx for the tests of all proxies. Its servers are another nginx in the same container.
func theNginx() *kind {
	const (
		path   = "/etc/nginx/berth.conf"
		others = "/etc/nginx/servers.conf"
		head   = "include /etc/nginx/modules-enabled/*.conf;\npid /run/servers.pid;\nerror_log stderr;\nevents {}\nhttp {\n" +
			"access_log off;\ndefault_type text/plain;\nunderscores_in_headers on;\n" +
			"map $http_x_forwarded_for $first { \"~^([^,]*)\" $1; }\n"
		told = " url=$request_uri cookie=$http_cookie proto=$http_x_forwarded_proto host=$http_x_forwarded_host" +
			" port=$http_x_forwarded_port prefix=$http_x_forwarded_prefix for=$first forged=$http_forwarded"
	)
	return &kind{
		name: "NGINX", template: func() string { return Nginx() }, config: path, alive: "/stats",
		check: "nginx -t -c " + path,
		run:   "nginx -c " + others + " && exec nginx -g 'daemon off;' -c " + path,
		server: func(port int, action string) string {
			return fmt.Sprintf("server {\nlisten 127.0.0.1:%d;\nlocation / {\n%s\n}\n}\n", port, action)
		},
		echo:    func(service string) string { return `return 200 "` + service + ` on=$server_port` + told + `";` },
		answer:  "return 200 good;",
		reject:  "return 444;",
		beside:  func(files map[string]string, servers string) { files[others] = head + servers + "}\n" },
		adapt:   withoutUnknown,
		options: Options{NginxSocket: testSocket, NginxClosing: path + ".closing", NginxAtLeast: func(string) bool { return true }},
		http2:   func(image string) bool { return !slices.Contains(unknown.names[image], "http2") },
		asked:   "none.com/...",
	}
}

// unknown are the directives unknown to nginx, by image.
var unknown = struct {
	sync.Mutex
	names map[string][]string
}{names: map[string][]string{}}

var unknownDirective = regexp.MustCompile(`unknown directive "([^"]*)"`)

// newDirectives are directives of the template with the first version that knows them.
var newDirectives = []struct{ line, since string }{
	{"keepalive_min_timeout 10s;", "1.27.4"},
	{"http2 on;", "1.25.1"},
}

// withoutUnknown adapts a text for the newest nginx to the image's.
func withoutUnknown(t testing.TB, image, text string) string {
	t.Helper()
	unknown.Lock()
	defer unknown.Unlock()
	if _, there := unknown.names[image]; !there {
		unknown.names[image] = []string{}
		const all = "include /etc/nginx/modules-enabled/*.conf;\nevents {}\nhttp {\n%s\n}\n"
		for _, directive := range newDirectives {
			out, _ := inImage(t, image, map[string]string{"/t.conf": fmt.Sprintf(all, directive.line)}, "nginx -t -c /t.conf", "--network", "none").CombinedOutput()
			if name := unknownDirective.FindSubmatch(out); name != nil {
				unknown.names[image] = append(unknown.names[image], string(name[1]))
			}
		}
	}
	for _, name := range unknown.names[image] {
		text = regexp.MustCompile(`(?m)^ *`+name+` .*;\n`).ReplaceAllString(text, "")
	}
	return text
}

// The template for a version has exactly the directives that this version knows.
func TestE2ENginxVersions(t *testing.T) {
	k := theNginx()
	directory := t.TempDir()
	certify(t, filepath.Join(directory, "site.pem"), "site.com")
	k.eachImage(t, func(t *testing.T, image string) {
		out, err := inImage(t, image, nil, "nginx -v", "--network", "none").CombinedOutput()
		said := regexp.MustCompile(`nginx/([0-9.]+)`).FindSubmatch(out)
		if err != nil || said == nil {
			t.Fatalf("nginx -v: %v, %s", err, out)
		}
		version := string(said[1])
		atLeast := func(v string) bool { return goversion.Compare("go"+version, "go"+v) >= 0 }
		o := Options{TLSDirectory: directory, NginxAtLeast: atLeast}
		r := renderNginx(t, everyLabel(), o)
		if adapted := k.adapt(t, image, r.text); adapted != r.text {
			t.Errorf("nginx %s does not know all of\n%s", version, r.text)
		}
		for _, directive := range newDirectives {
			name, _, _ := strings.Cut(directive.line, " ")
			if known := !slices.Contains(unknown.names[image], name); known != atLeast(directive.since) || known != strings.Contains(r.text, directive.line) {
				t.Errorf("nginx %s knows %s: %v", version, name, known)
			}
		}
		k.accepted(t, image, k.all(t, r, o))
	})
}

func TestE2ENginxAccepts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.conf")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	k := theNginx()
	k.eachImage(t, func(t *testing.T, image string) {
		for _, file := range files {
			t.Run(filepath.Base(file), func(t *testing.T) {
				text, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				k.accepted(t, image, map[string]string{k.config: string(text)})
			})
		}
		t.Run("longest", func(t *testing.T) {
			c := longest()
			for n, i := range c[strings.Repeat("n", 200)] {
				i.ServiceMeta[route.KeyPath] = fmt.Sprint("/", n, strings.Repeat("/"+strings.Repeat("a", 32), 15))
			}
			r := renderNginx(t, c, Options{})
			if !strings.Contains(r.text, "h79.abcdefghij") {
				t.Error("a host is missing")
			}
			k.accepted(t, image, k.all(t, r, Options{}))
		})
	})
}

func TestE2ENginxRefuses(t *testing.T) {
	k := theNginx()
	k.eachImage(t, func(t *testing.T, image string) {
		text := renderNginx(t, oneService(), Options{}).text
		files := map[string]string{k.config: strings.Replace(k.adapt(t, image, text), "http {", "http {\nno_such_directive;", 1)}
		out, err := inImage(t, image, files, k.check, "--network", "none").CombinedOutput()
		if err == nil || !bytes.Contains(out, []byte(`unknown directive "no_such_directive"`)) {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

func TestE2ENginxRoutes(t *testing.T)             { testRoutes(t, theNginx()) }
func TestE2ENginxStripsPrefixes(t *testing.T)     { testStripsPrefixes(t, theNginx()) }
func TestE2ENginxForwards(t *testing.T)           { testForwards(t, theNginx()) }
func TestE2ENginxTLS(t *testing.T)                { testTLS(t, theNginx()) }
func TestE2ENginxRenewedCertificate(t *testing.T) { testRenewedCertificate(t, theNginx()) }
func TestE2ENginxTCP(t *testing.T)                { testTCP(t, theNginx()) }
func TestE2ENginxStickyCookie(t *testing.T)       { testStickyCookie(t, theNginx()) }
func TestE2ENginxHashes(t *testing.T)             { testHashes(t, theNginx()) }
func TestE2ENginxSendsOnlyIdempotentRequestsTwice(t *testing.T) {
	testSendsOnlyIdempotentRequestsTwice(t, theNginx())
}
func TestE2ENginxFallback(t *testing.T) { testFallback(t, theNginx()) }
func TestE2ENginxCase(t *testing.T)     { testCase(t, theNginx()) }
func TestE2ENginxWeights(t *testing.T)  { testWeights(t, theNginx()) }
func TestE2ENginxGroups(t *testing.T)   { testGroups(t, theNginx()) }
func TestE2ENginxStreams(t *testing.T)  { testStreams(t, theNginx()) }

// With every algorithm all servers get requests; requests of the same client, path or header go to the same server.
func TestE2ENginxBalances(t *testing.T) { testBalances(t, theNginx()) }

func testBalances(t *testing.T, k *kind) {
	e := newEchoes(k)
	for path, balance := range map[string]string{"/rr": "roundrobin", "/first": "first", "/least": "leastconn", "/random": "random", "/source": "source",
		"/uri": "uri", "/hdr": "hdr(X-User)", "/max": "roundrobin"} {
		for range 3 {
			meta := []string{route.KeyPath, path, route.KeyBalance, balance}
			if path == "/max" {
				meta = append(meta, route.KeyMaxConn, "5")
			}
			e.echo("b-"+path[1:], meta...)
		}
	}
	e.eachImage(t, func(t *testing.T, image string) { checkBalances(t, e.start(t, image, Options{}).address(8080)) })
}

func checkBalances(t *testing.T, address string) {
	on := func(path string, headers ...string) string {
		t.Helper()
		a := request("GET", address, "any", path, headers...)
		if a.status != 200 {
			t.Fatalf("%s: %d %q", path, a.status, a.body)
		}
		return strings.Fields(a.body)[1]
	}
	for _, path := range []string{"/rr", "/first", "/least", "/random", "/source", "/uri", "/hdr", "/max"} {
		seen, same, other := map[string]bool{}, map[string]bool{}, map[string]bool{}
		for range 30 {
			seen[on(path)] = true
		}
		for n := range 30 {
			same[on(path+"/x?"+fmt.Sprint(n), "X-User: me")] = true
		}
		for n := range 30 {
			other[on(fmt.Sprint(path, "/", n), fmt.Sprint("X-User: ", n))] = true
		}
		want := [3]int{3, 3, 3}
		switch path {
		case "/source":
			want = [3]int{1, 1, 1}
		case "/uri":
			want = [3]int{1, 1, 3}
		case "/hdr": // without the header, in turn
			want = [3]int{3, 1, 3}
		}
		if got := [3]int{len(seen), len(same), len(other)}; got != want {
			t.Errorf("%s: %v servers, want %v", path, got, want)
		}
	}
}

// Server connections are reused across clients.
func TestE2ENginxKeepsConnectionsToServers(t *testing.T) {
	e := newEchoes(theNginx())
	var opened atomic.Int64
	server := e.withServer(t, "web", func(http.ResponseWriter, *http.Request) {}, route.KeyPath, "/")
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			opened.Add(1)
		}
	}
	e.eachImage(t, func(t *testing.T, image string) {
		address := e.start(t, image, Options{}).address(8080)
		opened.Store(0)
		for range 50 {
			if a := request("GET", address, "any", "/"); a.status != 200 {
				t.Errorf("%d %q", a.status, a.body)
			}
		}
		if n := opened.Load(); n > 6 { // one for each worker, and again after a second without requests
			t.Errorf("50 requests over %d connections", n)
		}
	})
}

// Requests beyond a server's connection limit get the error page.
func TestE2ENginxMaxConn(t *testing.T) {
	e := newEchoes(theNginx())
	busy, free := make(chan struct{}), make(chan struct{})
	e.withServer(t, "web", func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			busy <- struct{}{}
			<-free
		}
	}, route.KeyPath, "/", route.KeyMaxConn, "2")
	e.eachImage(t, func(t *testing.T, image string) {
		address := e.start(t, image, Options{ErrorDetails: true}).address(8080)
		done := make(chan answer)
		for range 2 {
			go func() { done <- request("GET", address, "any", "/slow") }()
			<-busy
		}
		if a := request("GET", address, "any", "/"); a.status != 503 || !strings.Contains(a.body, "No instance of the service web answers.") {
			t.Errorf("%d %q", a.status, a.body)
		}
		for range 2 {
			free <- struct{}{}
			if a := <-done; a.status != 200 {
				t.Errorf("slow: %d %q", a.status, a.body)
			}
		}
		if a := request("GET", address, "any", "/"); a.status != 200 {
			t.Errorf("after that: %d %q", a.status, a.body)
		}
	})
}

// A service without instances keeps the file valid, with any algorithm and any number of services.
func TestE2ENginxServesWithoutInstances(t *testing.T) {
	e := newEchoes(theNginx())
	for _, balance := range []string{"roundrobin", "leastconn", "random", "source", "uri", "hdr(x)"} {
		for _, more := range [][]string{nil, {route.KeySticky, "true"}, {route.KeyMaxConn, "1"}} {
			name := fmt.Sprint("down-", e.count)
			e.with(name, name, "127.0.0.1", 80, append(more, route.KeyPath, "/"+name, route.KeyBalance, balance, route.KeyPort, fmt.Sprint(6000+e.count))...).Status = "critical"
			e.count++
		}
	}
	e.eachImage(t, func(t *testing.T, image string) {
		e.kind.accepted(t, image, e.kind.all(t, e.render(t, Options{ErrorDetails: true}), Options{ErrorDetails: true}))
		address := e.start(t, image, Options{ErrorDetails: true}).address(8080)
		for name := range e.catalog {
			for range 2 {
				if a := request("POST", address, "any", "/"+name); a.status != 503 || !strings.Contains(a.body, "No instance of the service "+name) {
					t.Errorf("%s: %d %q", name, a.status, a.body)
				}
			}
		}
	})
}

// nginx without the stream module serves HTTP, as long as no service may have a TCP port.
func TestE2ENginxWithoutStream(t *testing.T) {
	e := newEchoes(theNginx())
	e.echo("web", route.KeyPath, "/", route.KeyPort, "5432")
	r := e.render(t, Options{TCPPorts: route.Ports{}})
	if strings.Contains(r.text, "5432") || strings.Contains(r.text, "stream {") {
		t.Errorf("there is a port in\n%s", r.text)
	}
	e.eachImage(t, func(t *testing.T, image string) {
		files := map[string]string{e.kind.config: strings.Replace(r.text, "include /etc/nginx/modules-enabled/*.conf;", "", 1)}
		e.kind.accepted(t, image, files)
	})
}

// Requests that nginx rejects, as documented in docs/use/routing.md.
func TestE2ENginxRefusesRequests(t *testing.T) {
	e := newEchoes(theNginx())
	e.echo("web", route.KeyPath, "/")
	e.eachImage(t, func(t *testing.T, image string) {
		address := e.start(t, image, Options{}).address(8080)
		for _, tt := range []struct {
			method, path string
			status       int
		}{
			{"GET", "/%", 400}, {"GET", "/%zz", 400}, {"GET", "/%00", 400}, {"GET", "/a/../..", 400}, {"GET", "/a/../b", 200},
			{"TRACE", "/", 405}, {"PURGE", "/", 200},
		} {
			if a := request(tt.method, address, "any", tt.path); a.status != tt.status {
				t.Errorf("%s %s: %d %q, want %d", tt.method, tt.path, a.status, a.body, tt.status)
			}
		}
		if a := raw(address, "GET / HTTP/1.0\nMy_Header: 1"); !a.says("web") {
			t.Errorf("HTTP/1.0: %d %q", a.status, a.body)
		}
	})
}

func TestE2ENginxStatus(t *testing.T) {
	e := newEchoes(theNginx())
	e.eachImage(t, func(t *testing.T, image string) {
		p := e.start(t, image, Options{})
		if a := request("GET", p.address(8404), "any", "/stats"); a.status != 200 || !strings.Contains(a.body, "Active connections") {
			t.Errorf("/stats: %d %q", a.status, a.body)
		}
		if a := request("GET", p.address(8404), "any", "/"); a.status != 404 {
			t.Errorf("/: %d %q", a.status, a.body)
		}
	})
}

// While a reload is near, kept-alive client connections end with the next response.
func TestE2ENginxClosing(t *testing.T) {
	e := newEchoes(theNginx())
	e.echo("web", route.KeyPath, "/")
	e.eachImage(t, func(t *testing.T, image string) {
		p := e.start(t, image, Options{})
		address := p.address(8080)
		for _, step := range []struct{ do, connection string }{{"true", "keep-alive"}, {"touch", ""}, {"rm", "keep-alive"}} {
			if out, err := exec.Command("docker", "exec", p.name, step.do, e.options.NginxClosing).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			for _, method := range []string{"GET", "POST"} { // of "Connection: close" Go leaves no header
				a := raw(address, method+" / HTTP/1.1\nHost: any\nContent-Length: 0")
				if a.status != 200 || a.header.Get("Connection") != step.connection {
					t.Errorf("after %s %s: %d, connection %q, want %q", step.do, method, a.status, a.header.Get("Connection"), step.connection)
				}
			}
		}
	})
}

// withLua is theNginx with the Lua balancer.
type withLua struct {
	*kind
	directory string // on this host, of the newest one's control socket
}

func theNginxWithLua() *withLua {
	k := &withLua{kind: theNginx()}
	k.name = "NGINX_LUA"
	k.options.Lua, k.options.Hold, k.options.HoldMax = true, 200*time.Millisecond, 100
	k.docker = func(t testing.TB) []string {
		k.directory = t.TempDir()
		if err := os.Chmod(k.directory, 0o777); err != nil {
			t.Fatal(err)
		}
		return []string{"-v", k.directory + ":" + filepath.Dir(testSocket)}
	}
	k.started = func(t testing.TB, text string) {
		lists := listsOf(text)
		if a := k.control("POST", "/servers", lists); a.status != 200 || len(a.body) != len(lists) {
			t.Fatalf("posted %q: %d %q", lists, a.status, a.body)
		}
	}
	return k
}

var (
	luaUpstream = regexp.MustCompile(`(?ms)^    upstream (\S+) \{$(.*?)^    \}$`)
	serverLine  = regexp.MustCompile(`(?m)^        server (\S+)(?: weight=(\d+))? max_fails`)
)

// listsOf returns the lists of servers in a text posted by berth.
func listsOf(text string) string {
	var b strings.Builder
	for _, u := range luaUpstream.FindAllStringSubmatch(text, -1) {
		if !strings.Contains(u[2], "balancer_by_lua_block") || u[1] == "berth.check" {
			continue
		}
		servers := serverLine.FindAllStringSubmatch(u[2], -1)
		for _, s := range servers {
			fmt.Fprintln(&b, u[1], s[1], cmp.Or(s[2], "1"))
		}
		if len(servers) == 0 {
			fmt.Fprintln(&b, u[1])
		}
	}
	return b.String()
}

// control sends a request to the control socket.
func (k *withLua) control(method, path, body string) answer {
	transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", filepath.Join(k.directory, filepath.Base(testSocket)))
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequest(method, "http://balancer"+path, strings.NewReader(body))
	if err != nil {
		return answer{body: err.Error()}
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return answer{body: err.Error()}
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{body: err.Error()}
	}
	return answer{resp.StatusCode, resp.Header, string(text)}
}

func TestE2ENginxLuaGroups(t *testing.T)       { testGroups(t, theNginxWithLua().kind) }
func TestE2ENginxLuaRoutes(t *testing.T)       { testRoutes(t, theNginxWithLua().kind) }
func TestE2ENginxLuaStickyCookie(t *testing.T) { testStickyCookie(t, theNginxWithLua().kind) }
func TestE2ENginxLuaHashes(t *testing.T)       { testHashes(t, theNginxWithLua().kind) }
func TestE2ENginxLuaWeights(t *testing.T)      { testWeights(t, theNginxWithLua().kind) }
func TestE2ENginxLuaStreams(t *testing.T)      { testStreams(t, theNginxWithLua().kind) }
func TestE2ENginxLuaCase(t *testing.T)         { testCase(t, theNginxWithLua().kind) }
func TestE2ENginxLuaFallback(t *testing.T)     { testFallback(t, theNginxWithLua().kind) }
func TestE2ENginxLuaSendsOnlyIdempotentRequestsTwice(t *testing.T) {
	testSendsOnlyIdempotentRequestsTwice(t, theNginxWithLua().kind)
}
func TestE2ENginxLuaBalances(t *testing.T) { testBalances(t, theNginxWithLua().kind) }

func TestE2ENginxLuaAccepts(t *testing.T) {
	k := theNginxWithLua()
	for _, c := range []catalog{{}, everyLabel(), hostileCatalog()} {
		r := renderNginx(t, c, k.options)
		k.accepted(t, k.images(t)[0], k.all(t, r, Options{}))
	}
}

// Servers change through the control socket alone; until the first post, the file's servers serve.
func TestE2ENginxLuaTakesServers(t *testing.T) {
	k := theNginxWithLua()
	post := k.started
	k.started = func(testing.TB, string) {}
	e := newEchoes(k.kind)
	e.echo("web", route.KeyPath, "/")
	e.echo("other", route.KeyPath, "/other")
	e.with("down", "down", "127.0.0.1", 80, route.KeyPath, "/down").Status = "critical"
	text := e.render(t, Options{ErrorDetails: true}).text
	address := e.start(t, k.images(t)[0], Options{ErrorDetails: true}).address(8080)
	check := func(path, service string) {
		t.Helper()
		a := request("GET", address, "any", path)
		if service != "" && !a.says(service) || service == "" && (a.status != 503 || !strings.Contains(a.body, "No instance of the service")) {
			t.Errorf("%s: %d %q, want %q", path, a.status, a.body, service)
		}
	}
	check("/", "web")
	check("/down", "")
	post(t, text)
	check("/", "web")
	check("/down", "")
	post(t, strings.NewReplacer("127.0.0.1:9000", "127.0.0.1:9001", "127.0.0.1:1 down", "127.0.0.1:9000 max_fails").Replace(text))
	check("/", "other")
	check("/down", "web")
	if a := k.control("GET", "/check", ""); a.status != 200 || a.body != "checked\n" {
		t.Errorf("/check: %d %q", a.status, a.body)
	}
}
