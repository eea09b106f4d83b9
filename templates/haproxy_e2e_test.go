//go:build e2e

package templates

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul-template/dependency"
)

// images are the HAProxy images to test with, the usual one first.
func images(t testing.TB) []string {
	t.Helper()
	usual := os.Getenv("IMAGE_HAPROXY")
	if usual == "" {
		t.Fatal("IMAGE_HAPROXY is not set: run the tests with make test")
	}
	all := []string{usual}
	for image := range strings.SplitSeq(os.Getenv("IMAGES_HAPROXY"), ",") {
		if image != "" && !slices.Contains(all, image) {
			all = append(all, image)
		}
	}
	return all
}

func eachImage(t *testing.T, do func(t *testing.T, image string)) {
	for _, image := range images(t) {
		_, name, _ := strings.Cut(image, ":")
		t.Run(name, func(t *testing.T) { do(t, image) })
	}
}

// inHAProxy returns a docker run of a shell command in HAProxy's image, which has the files under their paths. Root may
// write them, whoever else the image runs as.
func inHAProxy(t testing.TB, image string, files map[string]string, command string, options ...string) *exec.Cmd {
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
	args := append([]string{"run", "--rm", "-i", "--user", "root", "--entrypoint", "sh"}, options...)
	cmd := exec.Command("docker", append(args, image, "-c", "mkdir -p /run/haproxy && tar x -C / && "+command)...)
	cmd.Stdin = &archive
	return cmd
}

const configPath = "/etc/haproxy/haproxy.cfg"

// all are the files of a configuration, and those in the directory of certificates.
func (r rendered) all(t testing.TB, o Options) map[string]string {
	t.Helper()
	files := map[string]string{configPath: r.text}
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

// accepted has HAProxy check a configuration.
func accepted(t *testing.T, image string, files map[string]string) {
	t.Helper()
	out, err := inHAProxy(t, image, files, "haproxy -c -f "+configPath, "--network", "none").CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("[WARNING]")) {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestE2EHAProxyAccepts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.cfg")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	read := func(path string) string {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	eachImage(t, func(t *testing.T, image string) {
		for _, file := range files {
			t.Run(filepath.Base(file), func(t *testing.T) {
				config := read(file)
				accepted(t, image, map[string]string{
					configPath: config, routesPath.FindString(config): read(strings.TrimSuffix(file, ".cfg") + ".map"),
				})
			})
		}
		t.Run("longest", func(t *testing.T) { accepted(t, image, render(t, longest()).all(t, Options{})) })
	})
}

// longest has as much in every line as there can be.
func longest() catalog {
	c := catalog{}
	name := strings.Repeat("n", 200)
	var hosts []string
	for n := range 80 {
		hosts = append(hosts, fmt.Sprintf("h%02d", n)+strings.Repeat(".abcdefghij", 22))
	}
	for n := range 2 {
		c.with(name, strings.Repeat("i", 199)+fmt.Sprint(n), "fd00:1234:5678:9abc:def0:1234:5678:9abc", 65000+n, metaHost, strings.Join(hosts, ","),
			metaPath, fmt.Sprint("/", n, strings.Repeat("/abcdefghi", 50)), metaStrip, "true", metaSticky, "true", metaRedirect, "https",
			metaBalance, "hdr("+strings.Repeat("h", 64)+")", metaCheck, "/"+strings.Repeat("c", 511), metaMaxConn, "1000000",
			metaSlowStart, "1h", metaPort, strconv.Itoa(65000+n)).Weights.Passing = 256
	}
	return c
}

func TestE2EHAProxyRefuses(t *testing.T) {
	config, err := os.ReadFile("testdata/refused/no-such-keyword.cfg")
	if err != nil {
		t.Fatal(err)
	}
	eachImage(t, func(t *testing.T, image string) {
		files := map[string]string{configPath: string(config)}
		out, err := inHAProxy(t, image, files, "haproxy -c -f "+configPath, "--network", "none").CombinedOutput()
		if err == nil || !bytes.Contains(out, []byte("unknown keyword 'no-such-keyword'")) {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

// echoes is a catalog whose servers are frontends of the same HAProxy.
type echoes struct {
	catalog
	config strings.Builder
}

func (e *echoes) add(service, action string, meta ...string) *dependency.HealthService {
	port := 9000 + strings.Count(e.config.String(), "\nfrontend")
	fmt.Fprintf(&e.config, "\nfrontend echo-%d\n    bind 127.0.0.1:%d\n    http-request %s\n", port, port, action)
	return e.with(service, fmt.Sprint(service, "-", port), "127.0.0.1", port, meta...)
}

// echo adds a server that answers with the name of its service, its own, and what it was asked.
func (e *echoes) echo(service string, meta ...string) *dependency.HealthService {
	const told = " url=%[url] cookie=%[req.hdr(cookie)] proto=%[req.fhdr(x-forwarded-proto)] host=%[req.fhdr(x-forwarded-host)]" +
		" port=%[req.fhdr(x-forwarded-port)] prefix=%[req.fhdr(x-forwarded-prefix)] for=%[req.hdr(x-forwarded-for,1)]" +
		" forged=%[req.fhdr(x_forwarded_proto)]%[req.fhdr(forwarded)]"
	return e.add(service, `return status 200 content-type text/plain lf-string "`+service+" on=%fp"+told+`"`, meta...)
}

// proxy is a running HAProxy.
type proxy struct {
	tb   testing.TB
	name string
}

// start runs HAProxy with the rendered configuration.
func (e *echoes) start(t testing.TB, image string, o Options) *proxy {
	return run(t, image, renderWith(t, e.catalog, o, inOrder), o, e.config.String())
}

func run(t testing.TB, image string, r rendered, o Options, more string) *proxy {
	t.Helper()
	r.text += more
	files := r.all(t, o)
	p := &proxy{tb: t, name: fmt.Sprintf("berth-templates-test-%d", time.Now().UnixNano())}
	options := []string{"--name", p.name}
	for _, port := range []string{"8080", "8443", "8404", "5432"} {
		options = append(options, "-p", "127.0.0.1::"+port)
	}
	cmd := inHAProxy(t, image, files, "exec haproxy -db -f "+configPath, options...)
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
			t.Logf("HAProxy:\n%s", text[:min(len(text), 5000)])
		}
	})
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if out, err := exec.Command("docker", "port", p.name, "8404/tcp").Output(); err == nil {
			if resp, err := http.Get("http://" + strings.TrimSpace(string(out)) + "/metrics"); err == nil {
				resp.Body.Close()
				return p
			}
		}
	}
	t.Fatal("HAProxy did not answer in 30 s")
	return nil
}

// address is where a port of HAProxy's is reached.
func (p *proxy) address(port int) string {
	out, err := exec.Command("docker", "port", p.name, fmt.Sprintf("%d/tcp", port)).Output()
	if err != nil {
		p.tb.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// answer is what came back, or status 0 and why nothing did.
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

// raw sends a request as it is written here, which Go's client might not.
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

// says reports whether an answer of echo has all of these words.
func (a answer) says(words ...string) bool {
	fields := strings.Fields(a.body)
	for _, w := range words {
		if !slices.Contains(fields, w) {
			return false
		}
	}
	return a.status == 200
}

func TestE2EHAProxyRoutes(t *testing.T) {
	e := &echoes{catalog: catalog{}}
	e.echo("shop", metaHost, "shop.example.com,www.example.com")
	e.echo("cart", metaHost, "shop.example.com", metaPath, "/cart")
	e.echo("cart-admin", metaHost, "shop.example.com", metaPath, "/cart/admin/")
	e.echo("api", metaPath, "/api")
	e.echo("shop-api", metaHost, "shop.example.com", metaPath, "/api")
	e.echo("tenants", metaHost, "*.example.com", metaPath, "/t")
	e.echo("http", metaHost, "http.example.com")
	e.echo("billing", metaHost, "billing.example.com").Status = dependency.HealthCritical
	e.with("refuses", "refuses-1", "127.0.0.1", 1, metaHost, "refuses.example.com") // nothing listens there
	eachImage(t, func(t *testing.T, image string) {
		address := e.start(t, image, Options{}).address(8080)
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

			// A host goes before a wildcard, and that before any host, whatever the paths.
			{"shop.example.com", "/t/1", "shop"},
			{"any.example.com", "/t/1", "tenants"},
			{"any.example.com", "/api", "api"},
			{"other.com", "/api", "api"},
			{"other.com", "/api/v1", "api"},
			{"www.example.com", "/api/v1", "shop"},
			{"[::1]:8080", "/api", "api"},
			{"10.0.0.1", "/api", "api"},

			// One label, neither none nor two.
			{"example.com", "/t", ""},
			{"a.b.example.com", "/t", ""},
			{".example.com", "/t", "tenants"},
			{"*.example.com", "/t", "tenants"},

			{"other.com", "/apix", ""},
			{"other.com", "/x/api/", ""},
			{"other.com", "/%61pi", ""},
			{"xshop.example.com", "/", ""},
			{"shop.example.com.evil.com", "/", ""},

			// What is in a host does not become a part of another's route.
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
			if tt.service == "" && a.status != 503 && a.status != 400 || tt.service != "" && !a.says(tt.service) {
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
		if a := request("OPTIONS", address, "shop.example.com", "*"); a.status != 503 {
			t.Errorf("OPTIONS *: %d %q", a.status, a.body)
		}

		t.Run("pages", func(t *testing.T) { pages(t, address) })
	})
}

func pages(t *testing.T, address string) {
	for _, tt := range []struct{ host, path, says string }{
		{"none.com", "/a/b?secret=1", "No service has a route for none.com/a/b\n"},
		{"none.com", `/<script>alert('x')</script>"&%3Cb%3E`, "No service has a route for none.com/?script?alert??x???/script????3Cb?3E\n"},
		{"billing.example.com", "/<b>", "No instance of the service billing answers."},
		{"refuses.example.com", "/", "No instance of the service refuses answers."},
	} {
		a := request("GET", address, tt.host, tt.path)
		if a.status != 503 || !strings.Contains(a.body, tt.says) || strings.ContainsAny(a.body, "<>") ||
			a.header.Get("Cache-Control") != "no-store" || a.header.Get("Content-Type") != "text/plain; charset=utf-8" {
			t.Errorf("%s%s: %d %v\n%s", tt.host, tt.path, a.status, a.header, a.body)
		}
	}
}

func TestE2EHAProxyStripsPrefixes(t *testing.T) {
	e := &echoes{catalog: catalog{}}
	e.echo("plain", metaHost, "plain.com", metaPath, "/api", metaStrip, "true")
	e.echo("encoded", metaHost, "encoded.com", metaPath, "/a%20b/c", metaStrip, "true")
	e.echo("kept", metaHost, "kept.com", metaPath, "/api")
	e.echo("all", metaHost, "all.com", metaStrip, "true")
	e.echo("many", metaHost, "a.com,b.com", metaPath, "/api/v1", metaStrip, "true")
	for _, meta := range [][]string{{metaHost, "a.com", metaPath, "/api"}, {metaHost, "c.com,*.d.com", metaPath, "/v1"}, {metaPath, "/any"}, {metaHost, "e.com"}} {
		i := e.with("many", fmt.Sprint("many-", meta), "127.0.0.1", 1, meta...)
		i.Status = dependency.HealthCritical
	}
	var hosts []string
	for n := range 100 {
		hosts = append(hosts, fmt.Sprintf("h%02d.com", n))
	}
	e.echo("hosts", metaHost, strings.Join(hosts, ","), metaPath, "/x", metaStrip, "true")
	e.with("hosts", "hosts-y", "127.0.0.1", 1, metaHost, strings.Join(hosts, ","), metaPath, "/x/y").Status = dependency.HealthCritical
	eachImage(t, func(t *testing.T, image string) {
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

			// That of the route by which the request came, and no other's.
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

func TestE2EHAProxyForwards(t *testing.T) {
	e := &echoes{catalog: catalog{}}
	e.echo("web", metaPath, "/")
	forged := []string{"X-Forwarded-Proto: ftp", "X-FORWARDED-HOST: evil.com", "X-Forwarded-Host: evil.com", "x-forwarded-port: 1", "X-Forwarded-Port: 2",
		"X_Forwarded_Proto: https", "Forwarded: proto=https;host=evil.com", "X-Forwarded-Prefix: /evil", "X-Forwarded-For: 192.0.2.1"}
	o := Options{TLSDirectory: t.TempDir()}
	pool := certify(t, filepath.Join(o.TLSDirectory, "a.pem"), "a.com")
	eachImage(t, func(t *testing.T, image string) {
		p := e.start(t, image, o)
		for _, tt := range []struct{ host, says, port string }{
			{"a.com", "host=a.com", "80"},
			{"a.com:8080", "host=a.com:8080", "8080"},
			{"[::1]", "host=[::1]", "80"},
			{"[::1]:81", "host=[::1]:81", "81"},
		} {
			a := request("GET", p.address(8080), tt.host, "/", forged...)
			if !a.says("proto=http", tt.says, "port="+tt.port, "prefix=", "for=192.0.2.1", "forged=") {
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

func TestE2EHAProxyTLS(t *testing.T) {
	e := &echoes{catalog: catalog{}}
	e.echo("open", metaHost, "a.com")
	e.echo("closed", metaHost, "b.com", metaPath, "/closed", metaRedirect, "https", metaStrip, "true")
	o := Options{TLSDirectory: t.TempDir()}
	pool := x509.NewCertPool()
	for _, name := range []string{"a.com", "b.com"} {
		certify(t, filepath.Join(o.TLSDirectory, name+".pem"), name, pool)
	}
	brokenCertificates(t, o.TLSDirectory)
	r := renderWith(t, e.catalog, o, inOrder)
	if again := renderWith(t, e.catalog, o, inOrder); again.text != r.text {
		t.Error("the text is another without a change")
	}
	if len(r.leftOut) == 0 {
		t.Error("no broken certificate was left out")
	}
	eachImage(t, func(t *testing.T, image string) {
		accepted(t, image, r.all(t, o))
		p := run(t, image, r, o, e.config.String())
		for name, protocol := range map[string]string{"a.com": "h2", "b.com": "http/1.1"} {
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

// A renewed certificate has the configuration change, and the new one is served.
func TestE2EHAProxyRenewedCertificate(t *testing.T) {
	e := &echoes{catalog: catalog{}}
	e.echo("web", metaPath, "/")
	o := Options{TLSDirectory: t.TempDir()}
	var before string
	for range 2 {
		pool := certify(t, filepath.Join(o.TLSDirectory, "a.pem"), "a.com")
		r := renderWith(t, e.catalog, o, inOrder)
		if r.text == before {
			t.Error("the text did not change")
		}
		before = r.text
		p := run(t, images(t)[0], r, o, e.config.String())
		conn, err := tls.Dial("tcp", p.address(8443), &tls.Config{RootCAs: pool, ServerName: "a.com"})
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
}

func TestE2EHAProxyTCP(t *testing.T) {
	e := &echoes{catalog: catalog{}}
	e.echo("db", metaPort, "5432", metaMaxConn, "10", metaBalance, "leastconn")
	e.echo("db").Status = dependency.HealthCritical
	eachImage(t, func(t *testing.T, image string) {
		p := e.start(t, image, Options{})
		// Nothing is added to what is sent.
		if a := request("GET", p.address(5432), "any", "/x"); !a.says("db", "url=/x", "proto=", "for=") {
			t.Errorf("%d %q", a.status, a.body)
		}
		if a := request("GET", p.address(8080), "any", "/x"); a.status != 503 {
			t.Errorf("by HTTP: %d %q", a.status, a.body)
		}
	})
}

func TestE2EHAProxyStickyCookie(t *testing.T) {
	e := &echoes{catalog: catalog{}}
	for range 4 {
		e.echo("web", metaPath, "/", metaSticky, "true")
		e.echo("other", metaPath, "/other", metaSticky, "true")
	}
	eachImage(t, func(t *testing.T, image string) {
		address := e.start(t, image, Options{}).address(8080)
		servers := map[string]bool{}
		for range 8 {
			a := request("GET", address, "any", "/")
			header := a.header.Get("Set-Cookie")
			cookie, rest, _ := strings.Cut(header, ";")
			if !strings.HasPrefix(cookie, "berth-web=") || !strings.Contains(rest, "HttpOnly") || strings.Contains(cookie, "web-9") {
				t.Fatalf("cookie %q of %v %q", header, a.header, a.body)
			}
			on := strings.Fields(a.body)[1]
			servers[on] = true
			for range 5 {
				// The other service's cookie does no harm, and the server sees only what is not HAProxy's.
				a := request("GET", address, "any", "/", "Cookie: berth-other=x; "+cookie+"; mine=1")
				if !a.says(on) || a.header.Get("Set-Cookie") != "" || strings.Contains(a.body, cookie) {
					t.Errorf("on %s: %v %q", on, a.header, a.body)
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

// Servers keep what is theirs by a hash when another one goes and HAProxy loads the new file.
func TestE2EHAProxyHashes(t *testing.T) {
	e := &echoes{catalog: catalog{}}
	for range 5 {
		e.echo("web", metaPath, "/", metaBalance, "uri")
	}
	eachImage(t, func(t *testing.T, image string) {
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

func TestE2EHAProxyChecksThePath(t *testing.T) {
	e := &echoes{catalog: catalog{}}
	const check = "/health?a=%20b&c=1"
	answers := func(condition string) string {
		return "return status 200 if { url " + check + " } " + condition + "\n    http-request return status 500"
	}
	e.add("any", answers(""), metaPath, "/any", metaCheck, check)
	e.add("host", answers("{ hdr(host) -m str a.com }"), metaHost, "a.com,b.com", metaCheck, check)
	e.add("ill", "return status 500", metaHost, "ill.com", metaCheck, "/")
	e.add("tcp", answers(""), metaPort, "5432", metaCheck, check)
	eachImage(t, func(t *testing.T, image string) {
		p := e.start(t, image, Options{})
		status := func(backend string) string {
			a := request("GET", p.address(8404), "any", "/stats;csv")
			for line := range strings.Lines(a.body) {
				f := strings.Split(line, ",")
				if len(f) > 36 && f[0] == backend && f[1] != "BACKEND" {
					return f[17] + " " + f[36]
				}
			}
			return a.body
		}
		for backend, want := range map[string]string{"any": "UP L7OK", "host": "UP L7OK", "ill": "DOWN L7STS", "tcp.tcp": "UP L7OK"} {
			got := ""
			for end := time.Now().Add(20 * time.Second); got != want && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				got = status(backend)
			}
			if got != want {
				t.Errorf("%s: %s, want %s", backend, got, want)
			}
		}
	})
}

func TestE2EHAProxyStatistics(t *testing.T) {
	e := &echoes{catalog: catalog{}}
	e.echo("web", metaPath, "/")
	eachImage(t, func(t *testing.T, image string) {
		p := e.start(t, image, Options{})
		for path, says := range map[string]string{
			"/metrics": `haproxy_server_status{proxy="web",server="web-9000",state="UP"} 1`,
			"/stats":   "web-9000",
		} {
			if a := request("GET", p.address(8404), "any", path); a.status != 200 || !strings.Contains(a.body, says) {
				t.Errorf("%s: %d, does not say %s", path, a.status, says)
			}
		}
		if a := request("GET", p.address(8080), "any", "/metrics"); !a.says("web") {
			t.Errorf("/metrics for the service: %d %q", a.status, a.body)
		}
	})
}

// A server that takes a request and closes the connection may have acted on it.
func TestE2EHAProxySendsOnlyIdempotentRequestsTwice(t *testing.T) {
	e := &echoes{catalog: catalog{}}
	e.echo("web", metaPath, "/")
	e.add("web", "reject")
	eachImage(t, func(t *testing.T, image string) {
		address := e.start(t, image, Options{}).address(8080)
		for _, method := range []string{"GET", "PUT", "DELETE", "OPTIONS", "POST", "PATCH", "PURGE"} {
			failed := 0
			for range 10 {
				if request(method, address, "any", "/").status != 200 {
					failed++
				}
			}
			once := method == "POST" || method == "PATCH" || method == "PURGE"
			if once != (failed > 0) {
				t.Errorf("%s: %d of 10 requests failed", method, failed)
			}
		}
	})
}
