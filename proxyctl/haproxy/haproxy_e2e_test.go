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
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/deploy/testenv"
	"berth/proxyctl"
)

// realHAProxy runs HAProxy in a container in the host's network, with its files in a directory of the test.
type realHAProxy struct {
	t    testing.TB
	dir  string
	id   string
	port string // of the frontend, on 127.0.0.1
	*Proxy
}

// startHAProxy starts HAProxy from an image. set changes the options of its Proxy.
func startHAProxy(t testing.TB, image string, set ...func(*Options)) *realHAProxy {
	t.Helper()
	if image == "" {
		t.Fatal("IMAGE_HAPROXY is not set: run the tests with make test")
	}
	h := &realHAProxy{t: t, dir: testenv.Dir(t), port: testenv.FreePort(t)}
	write(t, filepath.Join(h.dir, "haproxy.cfg"), h.text("first", ""))
	h.run(image, "haproxy.cfg", "master.sock")
	h.berth(set...)
	h.eventually("HAProxy answers first", func() bool { return h.answer() == "first" })
	return h
}

// run starts a container until the test ends, and returns when its master answers.
func (h *realHAProxy) run(image, file, socket string) {
	h.t.Helper()
	h.id = testenv.Run(h.t, "--network", "host", "--user", fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid()),
		"--volume", h.dir+":"+h.dir, image, "haproxy", "-W", "-db", "-S", h.dir+"/"+socket, "-f", h.dir+"/"+file)
	h.up(socket)
}

// up returns when the worker answers commands, which is a moment after it starts to serve.
func (h *realHAProxy) up(socket string) {
	h.t.Helper()
	h.eventually("the worker answers", func() bool {
		reply, err := ask(h.dir+"/"+socket, "show proc; @1 show info") // 3.2 may leave a first @1 unanswered while it starts
		return err == nil && strings.Contains(reply, "Pid: ")
	})
}

// berth makes a new Proxy, like a start of berth.
func (h *realHAProxy) berth(set ...func(*Options)) {
	opts := Options{File: h.dir + "/haproxy.cfg", Socket: h.dir + "/master.sock", Timeout: 10 * time.Second, Grace: -1, Log: slog.New(slog.DiscardHandler)}
	for _, f := range set {
		f(&opts)
	}
	h.Proxy = New(opts)
}

// text is a configuration whose frontend answers with a word.
func (h *realHAProxy) text(word, more string) string {
	return fmt.Sprintf("defaults\n  mode http\n  timeout connect 1s\n  timeout client 5s\n  timeout server 5s\n"+
		"frontend web\n  bind 127.0.0.1:%s\n  http-request return status 200 content-type text/plain string %s\n%s", h.port, word, more)
}

func (h *realHAProxy) answer() string { return testenv.Answer("http://127.0.0.1:" + h.port) }

func (h *realHAProxy) eventually(what string, f func() bool) {
	h.t.Helper()
	testenv.Until(h.t, 20*time.Second, what, f)
}

func TestE2EApply(t *testing.T) { eachRelease(t, testApply) }

func testApply(t *testing.T, r release) {
	h := startHAProxy(t, r.image)
	res, err := h.Apply(t.Context(), onlyText(h.text("second", "")), true)
	if err != nil || res.Action != proxyctl.Reload {
		t.Fatalf("Apply: %v, %v", res, err)
	}
	if got := h.answer(); got != "second" {
		t.Errorf("right after Apply HAProxy answers %q", got)
	}
	good := onDisk(t, h.driver.opts.File)

	refused := func(name, text, says string) {
		t.Helper()
		_, err := h.Apply(t.Context(), onlyText(text), true)
		if !errors.Is(err, proxyctl.ErrRefused) || !(strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "see its log")) { // 2.6 answers nothing
			t.Errorf("%s: error %v, want one that says %q", name, err, says)
		}
		if got := h.answer(); got != "second" {
			t.Errorf("%s: HAProxy answers %q", name, got)
		}
		if onDisk(t, h.driver.opts.File) != good {
			t.Errorf("%s: the good file did not go back", name)
		}
	}
	refused("unknown keyword", h.text("third", "  bogus\n"), "unknown keyword 'bogus'")
	refused("unresolvable server", h.text("third", "backend b\n  server s nosuch.invalid:80\n"), "nosuch.invalid")
	refused("empty", "", "would serve nothing")
	refused("no listener", "global\n  maxconn 10\n", "would serve nothing")

	// Another program listens on the address: berth notices before HAProxy closes its listeners to try.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	refused("address in use", h.text("third", "frontend other\n  bind "+l.Addr().String()+"\n"), "another program listens there")

	// Refusals leave nothing behind that keeps the next good text from being applied.
	if _, err := h.Apply(t.Context(), onlyText(h.text("fourth", "")), true); err != nil || h.answer() != "fourth" {
		t.Errorf("after refusals: %v, HAProxy answers %q", err, h.answer())
	}
}

func TestE2EHAProxyGoneAndBack(t *testing.T) { eachRelease(t, testHAProxyGoneAndBack) }

func testHAProxyGoneAndBack(t *testing.T, r release) {
	h := startHAProxy(t, r.image)
	testenv.MustDocker(t, "kill", h.id)
	if _, err := h.Apply(t.Context(), onlyText(h.text("second", "")), true); !errors.Is(err, proxyctl.ErrUnreachable) {
		t.Errorf("error %v", err)
	}
	testenv.MustDocker(t, "start", h.id)
	h.eventually("a retry succeeds", func() bool {
		_, err := h.Apply(t.Context(), onlyText(h.text("second", "")), true)
		return err == nil
	})
	if got := h.answer(); got != "second" {
		t.Errorf("HAProxy answers %q", got)
	}
}

// Reload after reload under requests over kept connections: none fails, with the options of the built-in template.
func TestE2EReloadsLoseNothing(t *testing.T) { eachRelease(t, testReloadsLoseNothing) }

func testReloadsLoseNothing(t *testing.T, r release) {
	h := startHAProxy(t, r.image)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "app") }))
	defer app.Close()
	text := func(n int) string {
		return fmt.Sprintf("defaults\n  mode http\n  option idle-close-on-response\n  option redispatch 1\n  retries 10\n  retry-on conn-failure empty-response\n"+
			"  timeout connect 300ms\n  timeout client 5s\n  timeout server 5s\nfrontend web\n  bind 127.0.0.1:%s\n  default_backend app\n"+
			"backend app\n  server s%d %s\n", h.port, n, strings.TrimPrefix(app.URL, "http://"))
	}
	if _, err := h.Apply(t.Context(), onlyText(text(0)), true); err != nil {
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
	enough := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return sent >= 60
	}
	for n := 1; n <= 30 || n <= 300 && !enough(); n++ {
		if _, err := h.Apply(t.Context(), onlyText(text(n)), true); err != nil {
			t.Errorf("reload %d: %v", n, err)
		}
	}
	close(stop)
	clients.Wait()
	t.Logf("30 reloads or more, %d requests over kept connections, %d failed", sent, failed)
	if failed > 0 || sent < 60 {
		t.Errorf("%d of %d requests failed, the last with: %v", failed, sent, last)
	}
}

// A HAProxy that reads another file than berth writes, because of its -f or a mount of the single file, is noticed.
func TestE2EAnotherFile(t *testing.T) { eachRelease(t, testAnotherFile) }

func testAnotherFile(t *testing.T, r release) {
	h := startHAProxy(t, r.image)
	h.berth(func(o *Options) { o.File = h.dir + "/other.cfg" })
	_, err := h.Apply(t.Context(), onlyText(h.text("second", "")), true)
	if err == nil || !strings.Contains(err.Error(), "not from "+h.driver.opts.File) {
		t.Errorf("error %v", err)
	}
	if got := h.answer(); got != "first" {
		t.Errorf("HAProxy answers %q", got)
	}
}
