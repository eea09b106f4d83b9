//go:build e2e

package haproxy

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/proxyctl"
)

// realHAProxy runs HAProxy in a container in this host's network, with its files in a directory of the test.
type realHAProxy struct {
	t    *testing.T
	dir  string
	id   string
	port string // of the frontend, on 127.0.0.1
	*Proxy
}

func startHAProxy(t *testing.T) *realHAProxy {
	image := os.Getenv("IMAGE_HAPROXY")
	if image == "" {
		t.Fatal("IMAGE_HAPROXY is not set: run the tests with make test")
	}
	h := &realHAProxy{t: t, dir: t.TempDir(), port: freePort(t)}
	if err := os.Chmod(h.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(h.dir, "haproxy.cfg"), h.text("first", ""))
	h.id = docker(t, "run", "--detach", "--network", "host", "--user", fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid()),
		"--volume", h.dir+":"+h.dir, image, "haproxy", "-W", "-db", "-S", h.dir+"/master.sock", "-f", h.dir+"/haproxy.cfg")
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(docker(t, "logs", h.id))
		}
		docker(t, "rm", "--force", "--volumes", h.id)
	})
	h.Proxy = New(Options{File: h.dir + "/haproxy.cfg", Socket: h.dir + "/master.sock", Timeout: 10 * time.Second, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	h.eventually("HAProxy answers first", func() bool { return h.answer() == "first" })
	// The worker serves a moment before the master listens on its socket.
	h.eventually("the master answers", func() bool { _, err := h.master.processes(t.Context()); return err == nil })
	return h
}

// text is a configuration whose frontend answers with a word.
func (h *realHAProxy) text(word, more string) string {
	return fmt.Sprintf("defaults\n  mode http\n  timeout connect 1s\n  timeout client 5s\n  timeout server 5s\n"+
		"frontend web\n  bind 127.0.0.1:%s\n  http-request return status 200 content-type text/plain string %s\n%s", h.port, word, more)
}

func (h *realHAProxy) answer() string {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://127.0.0.1:" + h.port)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return string(body)
}

func (h *realHAProxy) eventually(what string, f func() bool) {
	h.t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			h.t.Fatalf("not within 20s: %s", what)
		}
	}
}

func TestE2EApply(t *testing.T) {
	h := startHAProxy(t)
	res, err := h.Apply(t.Context(), h.text("second", ""))
	if err != nil || res.Action != proxyctl.Reload {
		t.Fatalf("Apply: %v, %v", res, err)
	}
	if got := h.answer(); got != "second" {
		t.Errorf("right after Apply HAProxy answers %q", got)
	}
	good := onDisk(t, h.opts.File)

	refused := func(name, text, says string) {
		t.Helper()
		_, err := h.Apply(t.Context(), text)
		if !errors.Is(err, proxyctl.ErrRefused) || !(strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "its log says why")) { // 2.6 answers nothing
			t.Errorf("%s: error %v, want one that says %q", name, err, says)
		}
		if got := h.answer(); got != "second" {
			t.Errorf("%s: HAProxy answers %q", name, got)
		}
		if onDisk(t, h.opts.File) != good {
			t.Errorf("%s: the good file did not go back", name)
		}
	}
	refused("unknown keyword", h.text("third", "  bogus\n"), "unknown keyword 'bogus'")
	refused("unresolvable server", h.text("third", "backend b\n  server s nosuch.invalid:80\n"), "nosuch.invalid")
	refused("empty", "", "would serve nothing")
	refused("no listener", "global\n  maxconn 10\n", "would serve nothing")

	// An address that another program listens on: berth sees it before HAProxy closes its listeners to try.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	refused("address in use", h.text("third", "frontend other\n  bind "+l.Addr().String()+"\n"), "another program listens there")

	// Refusals leave nothing behind that keeps the next good one from being applied.
	if _, err := h.Apply(t.Context(), h.text("fourth", "")); err != nil || h.answer() != "fourth" {
		t.Errorf("after refusals: %v, HAProxy answers %q", err, h.answer())
	}
}

func TestE2EHAProxyGoneAndBack(t *testing.T) {
	h := startHAProxy(t)
	docker(t, "kill", h.id)
	if _, err := h.Apply(t.Context(), h.text("second", "")); !errors.Is(err, proxyctl.ErrUnreachable) {
		t.Errorf("error %v", err)
	}
	docker(t, "start", h.id)
	h.eventually("a retry succeeds", func() bool {
		_, err := h.Apply(t.Context(), h.text("second", ""))
		return err == nil
	})
	if got := h.answer(); got != "second" {
		t.Errorf("HAProxy answers %q", got)
	}
}

// Reload after reload under requests over kept connections: none fails, with the options that the shipped template has.
func TestE2EReloadsLoseNothing(t *testing.T) {
	h := startHAProxy(t)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "app") }))
	defer app.Close()
	text := func(n int) string {
		return fmt.Sprintf("defaults\n  mode http\n  option idle-close-on-response\n  option redispatch 1\n  retries 10\n  retry-on conn-failure empty-response\n"+
			"  timeout connect 300ms\n  timeout client 5s\n  timeout server 5s\nfrontend web\n  bind 127.0.0.1:%s\n  default_backend app\n"+
			"backend app\n  server s%d %s\n", h.port, n, strings.TrimPrefix(app.URL, "http://"))
	}
	if _, err := h.Apply(t.Context(), text(0)); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var (
		clients      sync.WaitGroup
		mu           sync.Mutex
		sent, failed int
		last         error
	)
	for range 4 {
		clients.Go(func() {
			client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for {
				select {
				case <-stop:
					return
				case <-time.After(2 * time.Millisecond):
				}
				resp, err := client.Get("http://127.0.0.1:" + h.port)
				if err == nil {
					if resp.StatusCode != http.StatusOK {
						err = errors.New(resp.Status)
					}
					_, _ = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				mu.Lock()
				sent++
				if err != nil {
					failed++
					last = err
				}
				mu.Unlock()
			}
		})
	}
	for n := 1; n <= 30; n++ {
		if _, err := h.Apply(t.Context(), text(n)); err != nil {
			t.Errorf("reload %d: %v", n, err)
		}
	}
	close(stop)
	clients.Wait()
	t.Logf("30 reloads, %d requests over kept connections, %d failed", sent, failed)
	if failed > 0 || sent < 30 {
		t.Errorf("%d of %d requests failed, the last with: %v", failed, sent, last)
	}
}

func docker(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("docker", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func freePort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// HAProxy that reads another file than berth writes, by its -f or by a mount of the single file, is noticed.
func TestE2EAnotherFile(t *testing.T) {
	h := startHAProxy(t)
	h.opts.File = h.dir + "/other.cfg"
	_, err := h.Apply(t.Context(), h.text("second", ""))
	if err == nil || !strings.Contains(err.Error(), "not from "+h.opts.File) {
		t.Errorf("error %v", err)
	}
	if got := h.answer(); got != "first" {
		t.Errorf("HAProxy answers %q", got)
	}
}
