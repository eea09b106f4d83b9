//go:build e2e

package templates

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/deploy/testenv"

	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul/api"

	"berth/templates/route"
)

// kind is a proxy with everything its tests need. The tests below are for all proxies.
type kind struct {
	name     string // IMAGE_<name> and IMAGES_<name> are its images
	template func() string
	config   string // path of its file
	check    string // shell command that checks the file
	run      string // shell command that runs the proxy with it
	alive    string // path on port 8404 that it answers

	// server is a server on 127.0.0.1, in the proxy's own language, with an action for each request.
	server func(port int, action string) string
	echo   func(service string) string // the action of echo
	answer string                      // an action that only answers "good"
	reject string                      // an action that closes the connection
	// beside adds the servers to the files of a configuration.
	beside func(files map[string]string, servers string)
	// adapt adapts a text to a version, if berth would render it differently.
	adapt func(t testing.TB, image, text string) string

	options Options                         // in addition to a test's
	docker  func(t testing.TB) []string     // options of docker run; nil = none
	started func(t testing.TB, text string) // is called when the proxy answers; nil = nothing is
	http2   func(image string) bool

	asked string // how the page for a request without a route calls one with characters that are not shown
}

// images are the images to test with, the usual one first.
func (k *kind) images(t testing.TB) []string {
	t.Helper()
	usual := os.Getenv("IMAGE_" + k.name)
	if usual == "" {
		t.Fatalf("IMAGE_%s is not set: run the tests with make test", k.name)
	}
	all := []string{usual}
	for image := range strings.SplitSeq(os.Getenv("IMAGES_"+k.name), ",") {
		if image != "" && !slices.Contains(all, image) {
			all = append(all, image)
		}
	}
	return all
}

// eachImage runs a test with the usual, the oldest and the newest version of the proxy; everyImage runs it with all.
func (k *kind) eachImage(t *testing.T, do func(t *testing.T, image string)) {
	k.each(t, testenv.Edges(k.images(t)), do)
}

func (k *kind) everyImage(t *testing.T, do func(t *testing.T, image string)) {
	k.each(t, k.images(t), do)
}

func (k *kind) each(t *testing.T, images []string, do func(t *testing.T, image string)) {
	for _, image := range images {
		_, name, _ := strings.Cut(image, ":")
		t.Run(name, func(t *testing.T) { do(t, image) })
	}
}

// inImage returns a docker run of a shell command in a proxy's image with the files at their paths. It runs as root, who
// may write them, whatever the image's user.
func inImage(t testing.TB, image string, files map[string]string, command string, options ...string) *exec.Cmd {
	t.Helper()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for path, text := range files {
		if err := w.WriteHeader(&tar.Header{Name: strings.TrimPrefix(path, "/"), Mode: 0o644, Size: int64(len(text))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"run", "--rm", "-i", "--user", "root", "--label", "SERVICE_IGNORE=1", "--entrypoint", "sh"}, options...)
	cmd := exec.Command("docker", append(args, image, "-c", "mkdir -p /run/haproxy /run/nginx && tar x -C / && "+command)...)
	cmd.Stdin = &archive
	return cmd
}

// all returns the files of a configuration and of the directory of certificates.
func (k *kind) all(t testing.TB, r rendered, o Options) map[string]string {
	t.Helper()
	files := map[string]string{k.config: r.text}
	for name, text := range r.files {
		files[r.paths[name]] = text
	}
	if o.TLSDirectory == "" {
		return files
	}
	certificates, err := os.ReadDir(o.TLSDirectory)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range certificates {
		file := filepath.Join(o.TLSDirectory, c.Name())
		if text, err := os.ReadFile(file); err == nil { // it may be a directory
			files[file] = string(text)
		}
	}
	return files
}

// accepted makes the proxy check a configuration. A warning is a failure as well.
func (k *kind) accepted(t *testing.T, image string, files map[string]string) {
	t.Helper()
	files[k.config] = k.adapt(t, image, files[k.config])
	out, err := inImage(t, image, files, k.check, "--network", "none").CombinedOutput()
	if err != nil || bytes.Contains(bytes.ToLower(out), []byte("[warn")) {
		t.Errorf("%v\n%s", err, out)
	}
}

// echoes is a catalog whose servers are in the proxy itself.
type echoes struct {
	*kind
	catalog
	count  int
	config strings.Builder
}

func newEchoes(k *kind) *echoes { return &echoes{kind: k, catalog: catalog{}} }

func (e *echoes) add(service, action string, meta ...string) *dependency.HealthService {
	port := 9000 + e.count
	e.count++
	e.config.WriteString(e.kind.server(port, action))
	return e.with(service, fmt.Sprint(service, "-", port), "127.0.0.1", port, meta...)
}

// echo adds a server that answers with its service's name, its own name, and the request.
func (e *echoes) echo(service string, meta ...string) *dependency.HealthService {
	return e.add(service, e.kind.echo(service), meta...)
}

// render executes the proxy's template.
func (e *echoes) render(t tb, o Options) rendered {
	all := e.kind.options
	all.TLSDirectory, all.TCPPorts, all.IPv6 = o.TLSDirectory, o.TCPPorts, o.IPv6
	all.TrustedProxies, all.ProxyProtocol, all.ErrorDetails = o.TrustedProxies, o.ProxyProtocol, o.ErrorDetails
	return renderTemplate(t, e.kind.template(), e.catalog, all, inOrder)
}

// proxy is a running proxy.
type proxy struct {
	tb   testing.TB
	name string
}

// start runs the proxy with the rendered configuration.
func (e *echoes) start(t testing.TB, image string, o Options) *proxy {
	return e.kind.start(t, image, e.render(t, o), o, e.config.String())
}

func (k *kind) start(t testing.TB, image string, r rendered, o Options, servers string) *proxy {
	t.Helper()
	r.text = k.adapt(t, image, r.text)
	files := k.all(t, r, o)
	k.beside(files, servers)
	p := &proxy{tb: t, name: testenv.Name(t) + "-proxy"}
	options := []string{"--name", p.name}
	if k.docker != nil {
		options = append(options, k.docker(t)...)
	}
	for _, port := range []string{"8080", "8443", "8404", "5432"} {
		options = append(options, "-p", "127.0.0.1::"+port)
	}
	cmd := inImage(t, image, files, k.run, options...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		exec.Command("docker", "rm", "-f", p.name).Run()
		cmd.Wait()
		if t.Failed() {
			text := out.String()
			t.Logf("%s:\n%s", k.name, text[max(0, len(text)-5000):])
		}
	})
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if out, err := exec.Command("docker", "port", p.name, "8404/tcp").Output(); err == nil {
			if resp, err := http.Get("http://" + strings.TrimSpace(string(out)) + k.alive); err == nil {
				resp.Body.Close()
				if k.started != nil {
					k.started(t, r.text)
				}
				return p
			}
		}
	}
	t.Fatal(k.name + " did not answer in 30 s")
	return nil
}

// address returns the address of a port of the proxy.
func (p *proxy) address(port int) string {
	out, err := exec.Command("docker", "port", p.name, fmt.Sprintf("%d/tcp", port)).Output()
	if err != nil {
		p.tb.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// answer is an answer, or status 0 and the error.
type answer struct {
	status int
	header http.Header
	body   string
}

func exchange(conn net.Conn, err error, head string) answer {
	if err != nil {
		return answer{body: err.Error()}
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, strings.ReplaceAll(head, "\n", "\r\n")+"\r\n\r\n"); err != nil {
		return answer{body: err.Error()}
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return answer{body: err.Error()}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{body: err.Error()}
	}
	return answer{resp.StatusCode, resp.Header, string(body)}
}

// raw sends a request literally, which Go's client might not.
func raw(address, head string) answer {
	conn, err := net.Dial("tcp", address)
	return exchange(conn, err, head)
}

func request(method, address, host, path string, headers ...string) answer {
	head := fmt.Sprintf("%s %s HTTP/1.1\nHost: %s\nConnection: close", method, path, host)
	for _, h := range headers {
		head += "\n" + h
	}
	return raw(address, head)
}

// says reports whether an answer of echo contains all of these words.
func (a answer) says(words ...string) bool {
	fields := strings.Fields(a.body)
	for _, w := range words {
		if !slices.Contains(fields, w) {
			return false
		}
	}
	return a.status == 200
}

func testRoutes(t *testing.T, k *kind) {
	e := newEchoes(k)
	e.echo("shop", route.KeyHost, "shop.example.com,www.example.com")
	e.echo("cart", route.KeyHost, "shop.example.com", route.KeyPath, "/cart")
	e.echo("cart-admin", route.KeyHost, "shop.example.com", route.KeyPath, "/cart/admin/")
	e.echo("api", route.KeyPath, "/api")
	e.echo("shop-api", route.KeyHost, "shop.example.com", route.KeyPath, "/api")
	e.echo("tenants", route.KeyHost, "*.example.com", route.KeyPath, "/t")
	e.echo("http", route.KeyHost, "http.example.com")
	e.echo("billing", route.KeyHost, "billing.example.com").Status = dependency.HealthCritical
	e.with("refuses", "refuses-1", "127.0.0.1", 1, route.KeyHost, "refuses.example.com") // nothing listens there
	k.eachImage(t, func(t *testing.T, image string) {
		address := e.start(t, image, Options{ErrorDetails: true}).address(8080)
		tests := []struct {
			host, path string
			service    string // "" = none
		}{
			{"shop.example.com", "/", "shop"},
			{"SHOP.Example.com:8080", "/x?y=/cart/", "shop"},
			{"shop.example.com.", "/", "shop"},
			{"shop.example.com.:80", "/", "shop"},
			{"www.example.com", "/cart", "shop"},
			{"shop.example.com", "/cart", "cart"},
			{"shop.example.com", "/cart/", "cart"},
			{"shop.example.com", "/cart?x=1", "cart"},
			{"shop.example.com", "/cart/1", "cart"},
			{"shop.example.com", "/cartoon", "shop"},
			{"shop.example.com", "/cart/admin", "cart-admin"},
			{"shop.example.com", "/cart/admin/x", "cart-admin"},
			{"shop.example.com", "/cart/administration", "cart"},
			{"shop.example.com", "/api/v1", "shop-api"},
			{"http.example.com", "/", "http"},

			// A host beats a wildcard, and a wildcard beats any host, whatever the paths.
			{"shop.example.com", "/t/1", "shop"},
			{"any.example.com", "/t/1", "tenants"},
			{"any.example.com", "/api", "api"},
			{"other.com", "/api", "api"},
			{"other.com", "/api/v1", "api"},
			{"www.example.com", "/api/v1", "shop"},
			{"[::1]:8080", "/api", "api"},
			{"10.0.0.1", "/api", "api"},

			// One label, not zero or two.
			{"example.com", "/t", ""},
			{"a.b.example.com", "/t", ""},
			{".example.com", "/t", "tenants"},
			{"*.example.com", "/t", "tenants"},

			{"other.com", "/apix", ""},
			{"other.com", "/x/api/", ""},
			{"other.com", "/%61pi", ""},
			{"xshop.example.com", "/", ""},
			{"shop.example.com.evil.com", "/", ""},

			// Content of a host cannot become part of another's route.
			{"*", "/", ""},
			{"", "/", ""},
			{"shop.example.com x", "/", ""},
			{"shop.example.com#", "/", ""},
			{"shop.example.com,other.com", "/", ""},
			{"other.com,shop.example.com", "/", ""},
			{"shop.example.com:80:x", "/", ""},
			{"shop.example.com/cart", "/", ""},
			{"shop.example.com/cart", "/api", ""},
			{"http.example.com@shop.example.com", "/", ""},
			{"shop.example.com\\", "/", ""},
			{"shop.example.com\x1b", "/", ""},
		}
		for _, tt := range tests {
			a := request("GET", address, tt.host, tt.path)
			if tt.service == "" && a.status != 404 && a.status != 400 || tt.service != "" && !a.says(tt.service) {
				t.Errorf("%q %s: %d %q, want %q", tt.host, tt.path, a.status, a.body, tt.service)
			}
		}
		for _, host := range []string{"a.com:x", "a.com:", "a.com/b", "a b", "a.com,b.com", "a.com:123456", "<b>", "a\x1b"} {
			if a := request("GET", address, host, "/api"); a.status != 400 {
				t.Errorf("%q: %d %q", host, a.status, a.body)
			}
		}
		// Without a host, with one in the request line, and without a path.
		if a := raw(address, "GET /api/x HTTP/1.0"); !a.says("api") {
			t.Errorf("HTTP/1.0: %d %q", a.status, a.body)
		}
		if a := request("GET", address, "shop.example.com", "http://shop.example.com/cart/2"); !a.says("cart") {
			t.Errorf("absolute: %d %q", a.status, a.body)
		}
		if a := request("OPTIONS", address, "shop.example.com", "*"); a.status != 404 && a.status != 400 {
			t.Errorf("OPTIONS *: %d %q", a.status, a.body)
		}

		if a := request("GET", address, "shop.example.com", "http://other.com/api"); a.status != 400 {
			t.Errorf("two hosts: %d %q", a.status, a.body)
		}

		t.Run("pages", func(t *testing.T) { pages(t, k, address) })
	})
}

func pages(t *testing.T, k *kind, address string) {
	for _, tt := range []struct {
		host, path string
		status     int
		says       string
	}{
		{"none.com", "/a/b?secret=1", 404, "No service has a route for none.com/a/b\n"},
		{"none.com", `/<script>alert('x')</script>"&%3Cb%3E`, 404, "No service has a route for " + k.asked + "\n"},
		{"billing.example.com", "/<b>", 503, "No instance of the service billing answers."},
		{"refuses.example.com", "/", 503, "No instance of the service refuses answers."},
	} {
		a := request("GET", address, tt.host, tt.path)
		if a.status != tt.status || !strings.Contains(a.body, tt.says) || strings.ContainsAny(a.body, "<>") ||
			a.header.Get("Cache-Control") != "no-store" || a.header.Get("Content-Type") != "text/plain; charset=utf-8" {
			t.Errorf("%s%s: %d %v\n%s", tt.host, tt.path, a.status, a.header, a.body)
		}
	}
}

func testStripsPrefixes(t *testing.T, k *kind) {
	e := newEchoes(k)
	e.echo("plain", route.KeyHost, "plain.com", route.KeyPath, "/api", route.KeyStrip, "true")
	e.echo("encoded", route.KeyHost, "encoded.com", route.KeyPath, "/a%20b/c", route.KeyStrip, "true")
	e.echo("kept", route.KeyHost, "kept.com", route.KeyPath, "/api")
	e.echo("all", route.KeyHost, "all.com", route.KeyStrip, "true")
	e.echo("many", route.KeyHost, "a.com,b.com", route.KeyPath, "/api/v1", route.KeyStrip, "true")
	for _, meta := range [][]string{{route.KeyHost, "a.com", route.KeyPath, "/api"}, {route.KeyHost, "c.com,*.d.com", route.KeyPath, "/v1"}, {route.KeyPath, "/any"}, {route.KeyHost, "e.com"}} {
		e.echo("many", append(meta, route.KeyStrip, "true")...)
	}
	var hosts []string
	for n := range 100 {
		hosts = append(hosts, fmt.Sprintf("h%02d.com", n))
	}
	e.echo("hosts", route.KeyHost, strings.Join(hosts, ","), route.KeyPath, "/x", route.KeyStrip, "true")
	e.echo("hosts", route.KeyHost, strings.Join(hosts, ","), route.KeyPath, "/x/y", route.KeyStrip, "true")
	k.eachImage(t, func(t *testing.T, image string) {
		address := e.start(t, image, Options{}).address(8080)
		for _, tt := range []struct{ host, path, service, url, prefix string }{
			{"plain.com", "/api", "plain", "/", "/api"},
			{"plain.com", "/api/", "plain", "/", "/api"},
			{"plain.com", "/api?q=/a/b", "plain", "/?q=/a/b", "/api"},
			{"plain.com", "/api/x", "plain", "/x", "/api"},
			{"plain.com", "/api/x/y/?q=1&r=%20", "plain", "/x/y/?q=1&r=%20", "/api"},
			{"plain.com", "/api//x", "plain", "//x", "/api"},
			{"plain.com", "/api/api/x", "plain", "/api/x", "/api"},
			{"plain.com", "/api/%41%2F%25", "plain", "/%41%2F%25", "/api"},
			{"encoded.com", "/a%20b/c/d", "encoded", "/d", "/a%20b/c"},
			{"kept.com", "/api/x", "kept", "/api/x", ""},
			{"all.com", "/api/x", "all", "/api/x", ""},
			{"all.com", "/", "all", "/", ""},

			// The prefix of the request's route, and no other.
			{"a.com", "/api/v1/x", "many", "/x", "/api/v1"},
			{"a.com", "/api/v1", "many", "/", "/api/v1"},
			{"a.com", "/api/v1x", "many", "/v1x", "/api"},
			{"a.com", "/api", "many", "/", "/api"},
			{"b.com", "/api/v1/v1", "many", "/v1", "/api/v1"},
			{"c.com", "/v1/x", "many", "/x", "/v1"},
			{"x.d.com", "/v1/x", "many", "/x", "/v1"},
			{"z.com", "/any/v1/x", "many", "/v1/x", "/any"},
			{"e.com", "/v1/x", "many", "/v1/x", ""},
			{"e.com", "/any/x", "many", "/any/x", ""},
			{"h00.com", "/x/1", "hosts", "/1", "/x"},
			{"h00.com", "/x/y/x/1", "hosts", "/x/1", "/x/y"},
			{"h99.com", "/x/x/1", "hosts", "/x/1", "/x"},
			{"h99.com", "/x/y", "hosts", "/", "/x/y"},
		} {
			a := request("GET", address, tt.host, tt.path, "X-Forwarded-Prefix: /forged")
			if !a.says(tt.service, "url="+tt.url, "prefix="+tt.prefix) {
				t.Errorf("%s%s: %d %q, want url=%s prefix=%s", tt.host, tt.path, a.status, a.body, tt.url, tt.prefix)
			}
		}
	})
}

func testForwards(t *testing.T, k *kind) {
	e := newEchoes(k)
	e.echo("web", route.KeyPath, "/")
	forged := []string{"X-Forwarded-Proto: ftp", "X-FORWARDED-HOST: evil.com", "X-Forwarded-Host: evil.com", "x-forwarded-port: 1", "X-Forwarded-Port: 2",
		"X_Forwarded_Proto: https", "Forwarded: proto=https;host=evil.com", "X-Forwarded-Prefix: /evil", "X-Forwarded-For: 192.0.2.1"}
	o := Options{TLSDirectory: t.TempDir()}
	pool := certify(t, filepath.Join(o.TLSDirectory, "a.pem"), "a.com")
	k.eachImage(t, func(t *testing.T, image string) {
		p := e.start(t, image, o)
		for _, tt := range []struct{ host, says, port string }{
			{"a.com", "host=a.com", "80"},
			{"a.com:8080", "host=a.com:8080", "8080"},
			{"[::1]", "host=[::1]", "80"},
			{"[::1]:81", "host=[::1]:81", "81"},
		} {
			a := request("GET", p.address(8080), tt.host, "/", forged...)
			if !a.says("proto=http", tt.says, "port="+tt.port, "prefix=", "for=172.17.0.1", "forged=") {
				t.Errorf("%s: %d %q", tt.host, a.status, a.body)
			}
		}
		if a := raw(p.address(8080), "GET / HTTP/1.0\n"+strings.Join(forged, "\n")); !a.says("proto=http", "host=", "port=80") {
			t.Errorf("HTTP/1.0: %d %q", a.status, a.body)
		}
		conn, err := tls.Dial("tcp", p.address(8443), &tls.Config{RootCAs: pool, ServerName: "a.com"})
		if err != nil {
			t.Fatal(err)
		}
		a := exchange(conn, nil, "GET / HTTP/1.1\nHost: a.com\nConnection: close\n"+strings.Join(forged, "\n"))
		if !a.says("proto=https", "host=a.com", "port=443", "forged=") {
			t.Errorf("https: %d %q", a.status, a.body)
		}
	})
}

func testTLS(t *testing.T, k *kind) {
	e := newEchoes(k)
	e.echo("open", route.KeyHost, "a.com")
	e.echo("closed", route.KeyHost, "b.com", route.KeyPath, "/closed", route.KeyRedirect, "https", route.KeyStrip, "true")
	o := Options{TLSDirectory: t.TempDir()}
	pool := x509.NewCertPool()
	for _, name := range []string{"a.com", "b.com"} {
		certify(t, filepath.Join(o.TLSDirectory, name+".pem"), name, pool)
	}
	brokenCertificates(t, o.TLSDirectory)
	r := e.render(t, o)
	if again := e.render(t, o); again.text != r.text {
		t.Error("the text is another without a change")
	}
	if len(r.leftOut) == 0 {
		t.Error("no broken certificate was left out")
	}
	k.eachImage(t, func(t *testing.T, image string) {
		k.accepted(t, image, k.all(t, r, o))
		p := k.start(t, image, r, o, e.config.String())
		for name, protocol := range map[string]string{"a.com": "h2", "b.com": "http/1.1"} {
			if protocol == "h2" && !k.http2(image) {
				continue
			}
			conn, err := tls.Dial("tcp", p.address(8443), &tls.Config{RootCAs: pool, ServerName: name, NextProtos: []string{protocol}})
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if got := conn.ConnectionState().NegotiatedProtocol; got != protocol {
				t.Errorf("%s: protocol %q", name, got)
			}
			conn.Close()
		}
		if k.http2(image) {
			transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: pool},
				DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("tcp", p.address(8443)) }}
			resp, err := (&http.Client{Transport: transport}).Get("https://b.com/closed/y?z")
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			transport.CloseIdleConnections()
			if a := (answer{resp.StatusCode, resp.Header, string(body)}); resp.ProtoMajor != 2 || !a.says("closed", "url=/y?z", "host=b.com", "proto=https", "port=443") {
				t.Errorf("%s: %d %q", resp.Proto, a.status, a.body)
			}
		}
		conn, err := tls.Dial("tcp", p.address(8443), &tls.Config{InsecureSkipVerify: true, ServerName: "unknown.com"})
		if err != nil {
			t.Fatal(err)
		}
		if name := conn.ConnectionState().PeerCertificates[0].DNSNames[0]; name != "good.com" { // that of *.good.com.pem
			t.Errorf("the certificate for others is that of %s", name)
		}
		conn.Close()
		if conn, err := tls.Dial("tcp", p.address(8443), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS11}); err == nil {
			conn.Close()
			t.Error("TLS 1.1 was accepted")
		}
		conn, err = tls.Dial("tcp", p.address(8443), &tls.Config{RootCAs: pool, ServerName: "b.com"})
		if a := exchange(conn, err, "GET /closed/x HTTP/1.1\nHost: b.com\nConnection: close"); !a.says("closed", "url=/x") {
			t.Errorf("https: %d %q", a.status, a.body)
		}
		if a := request("GET", p.address(8080), "a.com", "/"); !a.says("open") {
			t.Errorf("http without redirect: %d %q", a.status, a.body)
		}
		for _, method := range []string{"GET", "POST"} {
			a := request(method, p.address(8080), "B.com:8080", "/closed/x?y=1&z=%20")
			if a.status != 308 || a.header.Get("Location") != "https://b.com/closed/x?y=1&z=%20" {
				t.Errorf("%s: %d %v", method, a.status, a.header)
			}
		}
	})
}

// A renewed certificate changes the configuration, or HAProxy's list of certificates, and the new one is served.
func testRenewedCertificate(t *testing.T, k *kind) {
	e := newEchoes(k)
	e.echo("web", route.KeyPath, "/")
	o := Options{TLSDirectory: t.TempDir()}
	var before string
	for range 2 {
		pool := certify(t, filepath.Join(o.TLSDirectory, "a.pem"), "a.com")
		r := e.render(t, o)
		now := r.text + r.files["certificates.crt-list"]
		if now == before {
			t.Error("neither the text nor the list of certificates changed")
		}
		before = now
		p := k.start(t, k.images(t)[0], r, o, e.config.String())
		conn, err := tls.Dial("tcp", p.address(8443), &tls.Config{RootCAs: pool, ServerName: "a.com"})
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
}

func testTCP(t *testing.T, k *kind) {
	e := newEchoes(k)
	e.echo("db", route.KeyPort, "5432", route.KeyMaxConn, "10", route.KeyBalance, "leastconn")
	e.echo("db").Status = dependency.HealthCritical
	k.eachImage(t, func(t *testing.T, image string) {
		p := e.start(t, image, Options{})
		// Nothing is added to the data.
		if a := request("GET", p.address(5432), "any", "/x"); !a.says("db", "url=/x", "proto=", "for=") {
			t.Errorf("%d %q", a.status, a.body)
		}
		if a := request("GET", p.address(8080), "any", "/x"); a.status != 404 {
			t.Errorf("by HTTP: %d %q", a.status, a.body)
		}
	})
}

func testStickyCookie(t *testing.T, k *kind) {
	e := newEchoes(k)
	for range 4 {
		e.echo("web", route.KeyPath, "/", route.KeySticky, "true")
		e.echo("other", route.KeyPath, "/other", route.KeySticky, "true")
	}
	k.eachImage(t, func(t *testing.T, image string) {
		address := e.start(t, image, Options{}).address(8080)
		servers := map[string]bool{}
		for range 60 {
			a := request("GET", address, "any", "/")
			header := a.header.Get("Set-Cookie")
			cookie, rest, _ := strings.Cut(header, ";")
			if !strings.HasPrefix(cookie, "berth-web=") || !strings.Contains(rest, "HttpOnly") || !strings.Contains(rest, "SameSite=Lax") || strings.Contains(rest, "Secure") || strings.Contains(cookie, "web-9") {
				t.Fatalf("cookie %q of %v %q", header, a.header, a.body)
			}
			on := strings.Fields(a.body)[1]
			servers[on] = true
			// The other service's cookie is harmless, and the server does not see the proxy's cookies.
			for _, tt := range []struct{ cookies, seen string }{
				{"berth-other=x; " + cookie + "; mine=1", "cookie=berth-other=x; mine=1 "},
				{"mine=1; " + cookie, "cookie=mine=1 "},
				{cookie + "; mine=1", "cookie=mine=1 "},
				{cookie, "cookie= "},
			} {
				a := request("GET", address, "any", "/", "Cookie: "+tt.cookies)
				if !a.says(on) || a.header.Get("Set-Cookie") != "" || !strings.Contains(a.body, tt.seen) {
					t.Errorf("%s on %s: %v %q", tt.cookies, on, a.header, a.body)
				}
			}
		}
		if len(servers) != 4 {
			t.Errorf("without a cookie: %v", servers)
		}
		if a := request("GET", address, "any", "/", "Cookie: berth-web=gone"); !strings.HasPrefix(a.header.Get("Set-Cookie"), "berth-web=") {
			t.Errorf("unknown cookie: %v", a.header)
		}
	})
}

// Servers keep their share of a hash when another server disappears and the proxy loads the new file.
func testHashes(t *testing.T, k *kind) {
	e := newEchoes(k)
	for range 5 {
		e.echo("web", route.KeyPath, "/", route.KeyBalance, "uri")
	}
	k.eachImage(t, func(t *testing.T, image string) {
		ask := func() (on []string) {
			address := e.start(t, image, Options{}).address(8080)
			for n := range 50 {
				a := request("GET", address, "any", fmt.Sprint("/", n))
				on = append(on, strings.Fields(a.body + " ? ?")[1])
			}
			return on
		}
		before := ask()
		all := e.catalog["web"]
		defer func() { e.catalog["web"] = all }()
		gone := fmt.Sprint("on=", all[1].Port)
		e.catalog["web"] = append(slices.Clone(all[:1]), all[2:]...)
		used := map[string]bool{}
		for n, now := range ask() {
			used[before[n]] = true
			if before[n] != now && before[n] != gone || now == gone {
				t.Errorf("/%d was %s and is %s", n, before[n], now)
			}
		}
		if len(used) != 5 {
			t.Errorf("before: %v", used)
		}
	})
}

// A server that accepts a request and closes the connection may have processed it.
func testSendsOnlyIdempotentRequestsTwice(t *testing.T, k *kind) {
	e := newEchoes(k)
	methods := []string{"GET", "PUT", "DELETE", "OPTIONS", "POST", "PATCH", "PURGE"}
	for _, method := range methods {
		e.add(method, k.reject, route.KeyPath, "/"+method)
		e.echo(method)
	}
	k.eachImage(t, func(t *testing.T, image string) {
		address := e.start(t, image, Options{}).address(8080)
		for _, method := range methods {
			failed := 0
			for range 10 {
				if a := request(method, address, "any", "/"+method); a.status == 502 {
					failed++
				} else if !a.says(method) {
					t.Errorf("%s: %d %q", method, a.status, a.body)
				}
			}
			once := method == "POST" || method == "PATCH" || method == "PURGE"
			if once != (failed > 0) {
				t.Errorf("%s: %d of 10 requests failed", method, failed)
			}
		}
	})
}

// The other service's instances serve only while the service has none of its own.
func testFallback(t *testing.T, k *kind) {
	e := newEchoes(k)
	e.echo("down", route.KeyHost, "down.com", route.KeyFallback, "sorry", route.KeyPort, "5432").Status = dependency.HealthCritical
	e.echo("up", route.KeyHost, "up.com", route.KeyFallback, "sorry")
	e.echo("neither", route.KeyHost, "neither.com", route.KeyFallback, "gone").Status = dependency.HealthCritical
	e.echo("sorry")
	e.echo("gone").Status = dependency.HealthCritical
	k.eachImage(t, func(t *testing.T, image string) {
		p := e.start(t, image, Options{ErrorDetails: true})
		for host, service := range map[string]string{"down.com": "sorry", "up.com": "up"} {
			if a := request("GET", p.address(8080), host, "/x"); !a.says(service, "url=/x") {
				t.Errorf("%s: %d %q", host, a.status, a.body)
			}
		}
		if a := request("GET", p.address(5432), "any", "/x"); !a.says("sorry") {
			t.Errorf("TCP: %d %q", a.status, a.body)
		}
		if a := request("GET", p.address(8080), "neither.com", "/"); a.status != 503 || !strings.Contains(a.body, "No instance of the service neither answers.") {
			t.Errorf("neither: %d %q", a.status, a.body)
		}
	})
}

// Routes and services that differ only in case are different.
func testCase(t *testing.T, k *kind) {
	e := newEchoes(k)
	e.echo("App", route.KeyPath, "/API")
	e.echo("APP", route.KeyPath, "/Api", route.KeyStrip, "true")
	e.echo("app", route.KeyPath, "/api")
	e.echo("upper", route.KeyHost, "a.com", route.KeyPath, "/X/Y")
	k.eachImage(t, func(t *testing.T, image string) {
		address := e.start(t, image, Options{}).address(8080)
		for _, tt := range []struct{ host, path, service, url string }{
			{"any", "/API/1", "App", "/API/1"},
			{"any", "/Api/1", "APP", "/1"},
			{"any", "/api/1", "app", "/api/1"},
			{"any", "/aPI/1", "", ""},
			{"A.com", "/X/Y", "upper", "/X/Y"},
			{"a.com", "/x/Y", "", ""},
			{"a.com", "/api", "app", "/api"},
		} {
			a := request("GET", address, tt.host, tt.path)
			if tt.service == "" && a.status != 404 || tt.service != "" && !a.says(tt.service, "url="+tt.url) {
				t.Errorf("%s%s: %d %q, want %q", tt.host, tt.path, a.status, a.body, tt.service)
			}
		}
	})
}

// Servers get their share by weight, and a dead server costs no request.
func testWeights(t *testing.T, k *kind) {
	e := newEchoes(k)
	e.echo("web", route.KeyPath, "/").Weights.Passing = 3
	e.echo("web")
	e.echo("dead", route.KeyPath, "/dead")
	e.with("dead", "refuses", "127.0.0.1", 1)
	e.with("dead", "silent", nobody(t), 80)
	k.eachImage(t, func(t *testing.T, image string) {
		address := e.start(t, image, Options{}).address(8080)
		count := map[string]int{}
		for range 80 {
			a := request("GET", address, "any", "/")
			if !a.says("web") {
				t.Fatalf("%d %q", a.status, a.body)
			}
			count[strings.Fields(a.body)[1]]++
		}
		if n := count["on=9000"]; n < 54 || n > 66 {
			t.Errorf("shares: %v", count)
		}
		for _, method := range []string{"GET", "POST"} {
			for range 10 {
				if a := request(method, address, "any", "/dead"); !a.says("dead") {
					t.Errorf("%s: %d %q", method, a.status, a.body)
				}
			}
		}
	})
}

// Each host has its own instances, whatever its service's name. Instances with a warning serve, and drained ones get no
// requests.
func testGroups(t *testing.T, k *kind) {
	e := newEchoes(k)
	prod := e.echo("shop", route.KeyHost, "prod.com")
	staging := e.echo("shop", route.KeyHost, "staging.com")
	dotted := e.echo("Web_App.v1", route.KeyHost, "dotted.com", route.KeySticky, "true")
	warns := e.echo("warns", route.KeyHost, "warns.com")
	warns.Status = "warning"
	e.echo("drains", route.KeyHost, "drains.com").ServiceMeta["weight"] = "0"
	rest := e.echo("drains", route.KeyHost, "drains.com")
	e.echo("drained", route.KeyHost, "drained.com").ServiceMeta["weight"] = "0"
	cut := e.echo("cut", route.KeyHost, "cut.com") // its node's agent is cut off
	cut.Checks = append(cut.Checks, &api.HealthCheck{CheckID: "serfHealth", Status: api.HealthCritical})
	dead := e.with("cut", "dead", nobody(t), 80, route.KeyHost, "cut.com") // its node is dead
	dead.Checks = cut.Checks
	k.eachImage(t, func(t *testing.T, image string) {
		address := e.start(t, image, Options{}).address(8080)
		for range 20 {
			for host, i := range map[string]*dependency.HealthService{"prod.com": prod, "staging.com": staging, "dotted.com": dotted, "warns.com": warns, "drains.com": rest, "cut.com": cut} {
				if a := request("GET", address, host, "/"); !a.says(fmt.Sprint("on=", i.Port)) {
					t.Fatalf("%s: %d %q", host, a.status, a.body)
				}
			}
		}
		if a := request("GET", address, "drained.com", "/"); a.status != 503 {
			t.Errorf("drained: %d %q", a.status, a.body)
		}
	})
}

// bridge is the Docker network of the proxies.
func bridge(t *testing.T) netip.Prefix {
	t.Helper()
	subnet, err := testenv.Docker("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Subnet}}")
	if err != nil {
		t.Fatal(err)
	}
	prefix, err := netip.ParsePrefix(subnet)
	if err != nil {
		t.Fatal(err)
	}
	return prefix
}

// nobody returns an address on it that no container will have for a long time: the last one before the broadcast address.
func nobody(t *testing.T) string {
	prefix := bridge(t)
	ip := prefix.Addr().As4()
	last := binary.BigEndian.Uint32(ip[:]) | (1<<(32-prefix.Bits()) - 1)
	binary.BigEndian.PutUint32(ip[:], last-1)
	return netip.AddrFrom4(ip).String()
}

// withServer adds a service with one instance: a Go server on a port of this host that containers can reach.
func (e *echoes) withServer(t *testing.T, service string, handler http.HandlerFunc, meta ...string) *httptest.Server {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(bridge(t).Addr().Next(), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(handler)
	server.Config.MaxHeaderBytes = 1 << 20
	server.Listener.Close()
	server.Listener = l
	server.Start()
	t.Cleanup(server.Close)
	address := l.Addr().(*net.TCPAddr)
	e.with(service, fmt.Sprint(service, "-", address.Port), address.IP.String(), address.Port, meta...)
	return server
}

// Data passes unchanged and without delay, in both directions.
func testStreams(t *testing.T, k *kind) {
	e := newEchoes(k)
	e.withServer(t, "web", func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/websocket":
			if r.Header.Get("Upgrade") != "websocket" || r.Header.Get("Connection") != "upgrade" && r.Header.Get("Connection") != "Upgrade" {
				t.Errorf("upgrade: %v", r.Header)
			}
			conn, buffered, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"+
				"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
			io.Copy(conn, buffered)
		case "/h2c":
			fmt.Fprintf(w, "upgrade=%s connection=%s", r.Header.Get("Upgrade"), r.Header.Get("Connection"))
		case "/echo": // a line comes back during the request
			c := http.NewResponseController(w)
			if err := c.EnableFullDuplex(); err != nil {
				t.Error(err)
			}
			for lines := bufio.NewScanner(r.Body); lines.Scan(); c.Flush() {
				fmt.Fprintln(w, lines.Text())
			}
		case "/unavailable":
			w.Header().Set("Server", "mine")
			http.Error(w, "my own page", http.StatusServiceUnavailable)
		case "/accel":
			w.Header().Set("X-Accel-Redirect", "/unavailable")
			io.WriteString(w, "not redirected")
		}
	}, route.KeyPath, "/")
	k.eachImage(t, func(t *testing.T, image string) {
		address := e.start(t, image, Options{}).address(8080)
		for _, head := range []string{
			"GET /websocket HTTP/1.1\r\nHost: any\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
				"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
			"POST /echo HTTP/1.1\r\nHost: any\r\nTransfer-Encoding: chunked\r\n\r\n",
		} {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(20 * time.Second))
			io.WriteString(conn, head)
			reader := bufio.NewReader(conn)
			var got strings.Builder
			for n := range 3 {
				line := fmt.Sprintf("line %d", n)
				if strings.HasPrefix(head, "POST") {
					fmt.Fprintf(conn, "%x\r\n%s\n\r\n", len(line)+1, line)
				} else {
					fmt.Fprintln(conn, line)
				}
				for !strings.Contains(got.String(), line) {
					read, err := reader.ReadString('\n')
					got.WriteString(read)
					if err != nil {
						t.Fatalf("%q: %v\n%s", line, err, got.String())
					}
				}
			}
		}
		if a := request("GET", address, "any", "/h2c", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"); a.status != 200 || strings.Contains(a.body, "connection=upgrade") {
			t.Errorf("h2c: %d %q", a.status, a.body)
		}
		if a := request("GET", address, "any", "/unavailable"); a.status != 503 || a.body != "my own page\n" || a.header.Get("Server") != "mine" {
			t.Errorf("an own page: %d %v %q", a.status, a.header, a.body)
		}
		if a := request("GET", address, "any", "/accel"); a.body != "not redirected" {
			t.Errorf("accel: %d %q", a.status, a.body)
		}
	})
}
