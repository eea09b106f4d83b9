//go:build e2e

package templates

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul-template/dependency"
)

// inHAProxy returns a docker run of a shell in HAProxy's image that gets a
// configuration as /tmp/h.cfg.
func inHAProxy(t *testing.T, config, command string, options ...string) *exec.Cmd {
	t.Helper()
	image := os.Getenv("IMAGE_HAPROXY")
	if image == "" {
		t.Fatal("IMAGE_HAPROXY is not set: run the tests with make test")
	}
	args := append([]string{"run", "--rm", "-i", "--entrypoint", "sh"}, options...)
	cmd := exec.Command("docker", append(args, image, "-c", "cat >/tmp/h.cfg && "+command)...)
	cmd.Stdin = strings.NewReader(config)
	return cmd
}

func TestE2EHAProxyAccepts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.cfg")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			config, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			out, err := inHAProxy(t, string(config), "haproxy -c -f /tmp/h.cfg", "--network", "none").CombinedOutput()
			if err != nil || bytes.Contains(out, []byte("[WARNING]")) {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

func TestE2EHAProxyRefuses(t *testing.T) {
	config, err := os.ReadFile("testdata/refused/no-such-keyword.cfg")
	if err != nil {
		t.Fatal(err)
	}
	out, err := inHAProxy(t, string(config), "haproxy -c -f /tmp/h.cfg", "--network", "none").CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("unknown keyword 'no-such-keyword'")) {
		t.Errorf("%v\n%s", err, out)
	}
}

// echoes is a catalog whose servers are frontends of the same HAProxy. Each answers
// with the name of its service.
type echoes struct {
	catalog
	config strings.Builder
}

func (e *echoes) add(service, action string, meta ...string) *dependency.HealthService {
	port := 9000 + strings.Count(e.config.String(), "\nfrontend")
	fmt.Fprintf(&e.config, "\nfrontend echo-%d\n    bind 127.0.0.1:%d\n    http-request %s\n", port, port, action)
	return e.with(service, fmt.Sprint(service, "-", port), "127.0.0.1", port, meta...)
}

func (e *echoes) echo(service string, meta ...string) *dependency.HealthService {
	return e.add(service, "return status 200 content-type text/plain string "+service, meta...)
}

// start runs HAProxy with the rendered configuration and returns its address.
func (e *echoes) start(t *testing.T) string {
	t.Helper()
	text, _ := render(t, e.catalog, inOrder)
	name := fmt.Sprintf("berth-templates-test-%d", time.Now().UnixNano())
	// Root may make the directory of the stats socket, whoever else the image runs as.
	cmd := inHAProxy(t, text+e.config.String(), "mkdir -p /run/haproxy && exec haproxy -db -f /tmp/h.cfg",
		"--user", "root", "--name", name, "-p", "127.0.0.1::8080")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		exec.Command("docker", "rm", "-f", name).Run()
		cmd.Wait()
		if t.Failed() {
			t.Logf("HAProxy:\n%s", &out)
		}
	})
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		port, err := exec.Command("docker", "port", name, "8080/tcp").Output()
		if err != nil {
			continue
		}
		address := strings.TrimSpace(string(port))
		if resp, err := http.Get("http://" + address); err == nil {
			resp.Body.Close()
			return address
		}
	}
	t.Fatal("HAProxy did not answer in 30 s")
	return ""
}

// request returns the status and the body of an answer, or 0 and why there is none.
func request(method, address, host, path string) (int, string) {
	req, err := http.NewRequest(method, "http://"+address+path, nil)
	if err != nil {
		return 0, err.Error()
	}
	req.Host = host
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(body)
}

func TestE2EHAProxyRoutes(t *testing.T) {
	e := &echoes{catalog: catalog{}}
	e.echo("shop", metaHost, "shop.example.com,www.example.com")
	e.echo("cart", metaHost, "shop.example.com", metaPath, "/cart")
	e.echo("cart-admin", metaHost, "shop.example.com", metaPath, "/cart/admin/")
	e.echo("api", metaPath, "/api")
	e.echo("shop-api", metaHost, "shop.example.com", metaPath, "/api")
	e.echo("http", metaHost, "http.example.com")
	e.echo("billing", metaHost, "billing.example.com").Status = dependency.HealthCritical
	address := e.start(t)

	const noRoute = "no service has a route for this host and path\n"
	tests := []struct {
		host, path string
		status     int
		body       string
	}{
		{"shop.example.com", "/", 200, "shop"},
		{"SHOP.Example.com:8080", "/x?y=/cart/", 200, "shop"},
		{"www.example.com", "/cart", 200, "shop"},
		{"shop.example.com", "/cart", 200, "cart"},
		{"shop.example.com", "/cart/", 200, "cart"},
		{"shop.example.com", "/cart?x=1", 200, "cart"},
		{"shop.example.com", "/cart/1", 200, "cart"},
		{"shop.example.com", "/cartoon", 200, "shop"},
		{"shop.example.com", "/cart/admin", 200, "cart-admin"},
		{"shop.example.com", "/cart/admin/x", 200, "cart-admin"},
		{"shop.example.com", "/cart/administration", 200, "cart"},
		{"shop.example.com", "/api/v1", 200, "shop-api"},
		{"other.example.com", "/api", 200, "api"},
		{"www.example.com", "/api/v1", 200, "shop"},
		{"other.example.com", "/apix", 503, noRoute},
		{"other.example.com", "/x/api/", 503, noRoute},
		{"example.com", "/", 503, noRoute},
		{"xshop.example.com", "/", 503, noRoute},
		{"shop.example.com.evil.com", "/", 503, noRoute},
		{"http.example.com", "/", 200, "http"},
		{"billing.example.com", "/", 503, "No server is available"},
	}
	for _, tt := range tests {
		status, body := request("GET", address, tt.host, tt.path)
		if status != tt.status || !strings.Contains(body, tt.body) || (status == 200 && body != tt.body) {
			t.Errorf("%s%s: %d %q, want %d %q", tt.host, tt.path, status, body, tt.status, tt.body)
		}
	}
}

// A server that takes a request and closes the connection may have acted on it.
func TestE2EHAProxySendsOnlyIdempotentRequestsTwice(t *testing.T) {
	e := &echoes{catalog: catalog{}}
	e.echo("web", metaPath, "/")
	e.add("web", "reject")
	address := e.start(t)
	for _, method := range []string{"GET", "PUT", "DELETE", "OPTIONS", "POST", "PATCH", "PURGE"} {
		failed := 0
		for range 10 {
			if status, _ := request(method, address, "any", "/"); status != 200 {
				failed++
			}
		}
		once := method == "POST" || method == "PATCH" || method == "PURGE"
		if once != (failed > 0) {
			t.Errorf("%s: %d of 10 requests failed", method, failed)
		}
	}
}
