//go:build e2e

package nginx

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/deploy/testenv"
	"berth/proxyctl"
)

// Everything listens on its own address in 127.0.0.0/8, whose ports no outgoing connection takes.
const (
	webIP = "127.0.0.8"
	appIP = "127.0.0.9"
)

// patience is how long a test waits for something before it fails.
const patience = 30 * time.Second

// harness is an nginx in a container in the host's network, with its files in a directory of the test, and a berth for it.
type harness struct {
	testing.TB
	image string
	dir   string
	name  string // of the container
	web   string // where it should serve
	log   *testenv.Log
	*Proxy
}

// connections is how many a load may have in flight, including those to servers: an nginx that runs out of them closes
// connections that wait for a request.
const connections = "worker_connections 8192;"

// foreign is the configuration of an nginx that has nothing of berth's.
func (h *harness) foreign() string {
	return "include /etc/nginx/modules-enabled/*.conf;\nevents { " + connections + " }\nhttp {\n    server {\n        listen " + h.web + ";\n        return 200 \"foreign\\n\";\n    }\n}\n"
}

// startHarness starts an nginx with a foreign configuration. set changes the options of its berth.
func startHarness(t testing.TB, image string, set ...func(*Options)) *harness {
	t.Helper()
	h := newHarness(t, image)
	h.run("nginx", "-c", h.file(), "-g", "daemon off;")
	h.berth(set...)
	return h
}

func newHarness(t testing.TB, image string) *harness {
	dir := testenv.Dir(t)
	h := &harness{TB: t, image: image, dir: dir, name: testenv.Name(t) + "-nginx", web: testenv.FreeAddress(t, webIP), log: &testenv.Log{}}
	write(t, h.file(), h.foreign())
	return h
}

// run starts the container until the test ends, and returns when nginx serves.
func (h *harness) run(command ...string) { h.runWith(nil, command...) }

func (h *harness) runWith(options []string, command ...string) {
	h.Helper()
	args := append([]string{"run", "--detach", "--name", h.name, "--label", "SERVICE_IGNORE=1", "--network", "host", "--volume", h.dir + ":" + h.dir}, options...)
	testenv.MustDocker(h, append(append(args, h.image), command...)...)
	h.Cleanup(func() {
		if h.Failed() {
			lines := strings.Split(h.messages(), "\n")
			h.Logf("%s:\n%s\nberth:\n%s", h.image, strings.Join(lines[max(0, len(lines)-25):], "\n"), h.log)
		}
	})
	testenv.Until(h, patience, "nginx serves", func() bool { return h.answer() == "foreign" })
}

func (h *harness) file() string   { return filepath.Join(h.dir, "nginx.conf") }
func (h *harness) socket() string { return filepath.Join(h.dir, "run", "berth.sock") }

// berth makes a new Proxy, like a start of berth. It does not look for nginx processes on this machine, where there may be
// others.
func (h *harness) berth(set ...func(*Options)) {
	if h.Proxy != nil {
		h.Proxy.Close() // two of them would write to one file
	}
	opts := Options{File: h.file(), Socket: h.socket(), Reload: h.hup, Log: slog.New(slog.NewTextHandler(h.log, nil))}
	for _, f := range set {
		f(&opts)
	}
	h.Proxy = New(opts)
	h.Proxy.driver.findMaster = func() (int, error) {
		pid, err := strconv.Atoi(testenv.MustDocker(h, "inspect", "--format", "{{.State.Pid}}", h.name))
		return pid, err
	}
	h.Cleanup(h.Proxy.Close)
}

func (h *harness) hup(context.Context) error {
	_, err := testenv.Docker("kill", "--signal", "HUP", h.name)
	return err
}

// program makes the container's nginx the program that checks texts.
func (h *harness) program() func(*Options) {
	path := h.wrapper()
	return func(o *Options) { o.Binary = path }
}

// wrapper is a program that runs the container's nginx.
func (h *harness) wrapper() string {
	path := filepath.Join(h.dir, "check")
	syscall.ForkLock.RLock() // a process started meanwhile would have it open for writing, and it could not be run
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path, []byte("#!/bin/sh\nexec docker exec "+h.name+" nginx \"$@\"\n"), 0o755); err != nil {
		h.Fatal(err)
	}
	return path
}

// text is a configuration whose server answers with a word. top, http and server are additional lines for those parts.
type parts struct{ top, http, server string }

func (h *harness) text(word string, more ...parts) string {
	var all parts
	for _, m := range more {
		all = parts{all.top + m.top, all.http + m.http, all.server + m.server}
	}
	location := "location / { return 200 \"" + word + "\\n\"; }\n"
	if strings.Contains(all.server, "location / ") {
		location = ""
	}
	return fmt.Sprintf(`include /etc/nginx/modules-enabled/*.conf;
worker_processes 2;
error_log %[1]s/nginx.log notice;
error_log %[1]s/run/error.log emerg;
%[2]sevents {
    %[7]s
}
http {
    access_log off;
    keepalive_requests 1000000;
    keepalive_timeout 60s;
%[3]s    server {
        listen %[4]s backlog=4096;
        %[5]s%[6]s    }
}
`, h.dir, all.top+shutdown("60s", all.top), all.http, h.web, all.server, location, connections)
}

// shutdown sets how long old workers may stay, unless top already does.
func shutdown(after, top string) string {
	if strings.Contains(top, "worker_shutdown_timeout") {
		return ""
	}
	return "worker_shutdown_timeout " + after + ";\n"
}

// to forwards requests to servers.
func to(servers ...string) parts {
	var b strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&b, "        server %s;\n", s)
	}
	return parts{
		http:   "    upstream app {\n" + b.String() + "        keepalive 32;\n    }\n",
		server: "location / {\n            proxy_http_version 1.1;\n            proxy_set_header Connection \"\";\n            proxy_buffering off;\n            proxy_pass http://app;\n        }\n    ",
	}
}

// apply applies a text, which must succeed.
func (h *harness) apply(text string, want proxyctl.Action) proxyctl.Result {
	h.Helper()
	res, err := h.Apply(h.Context(), onlyText(text), true)
	if err != nil || res.Action != want {
		h.Fatalf("Apply: %+v, %v; want %s", res, err, want)
	}
	return res
}

// refused applies a text, which must be refused for a reason, and change nothing.
func (h *harness) refused(what, text, says string) {
	h.Helper()
	before, workers := onDisk(h, h.file()), h.workers()
	_, err := h.Apply(h.Context(), onlyText(text), true)
	if !errors.Is(err, proxyctl.ErrRefused) || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "\n") {
		h.Errorf("%s: error %v, want a refusal that says %q", what, err, says)
	}
	if onDisk(h, h.file()) != before {
		h.Errorf("%s: the file is not what it was", what)
	}
	if now := h.workers(); !slices.Equal(now, workers) {
		h.Errorf("%s: the workers %d became %d", what, workers, now)
	}
	for _, left := range []string{h.file() + ".good", filepath.Join(h.dir, ".nginx.conf.candidate")} {
		if onDisk(h, left) != "" {
			h.Errorf("%s: %s is left behind", what, left)
		}
	}
}

// workers returns the serving processes.
func (h *harness) workers() []int {
	h.Helper()
	v, err := h.driver.control.status(h.Context())
	if err != nil || v.master == 0 {
		h.Fatalf("nginx says %+v, %v", v, err)
	}
	serving, _ := workers(v.master)
	slices.Sort(serving)
	return serving
}

// settled returns the serving workers, once those from before the last reload have stopped serving.
func (h *harness) settled() []int {
	h.Helper()
	h.driver.waitForOverlap(h.Context())
	return h.workers()
}

// serves checks that all requests are answered with a word, once old workers accept none.
func (h *harness) serves(what, word string) {
	h.Helper()
	h.settled()
	for range 8 {
		if got := h.answer(); got != word {
			h.Errorf("%s: nginx answers %q, want %q", what, got, word)
		}
	}
}

// answer returns the answer to a request on its own connection.
func (h *harness) answer() string { return testenv.Answer("http://" + h.web + "/") }

// messages returns what nginx logged with a configuration of berth's.
func (h *harness) messages() string { return onDisk(h, filepath.Join(h.dir, "nginx.log")) }

// hups returns how often nginx was told to load its file while it had berth's configuration.
func (h *harness) hups() int { return strings.Count(h.messages(), "(SIGHUP) received") }

// startApp starts a server that answers with its address, and never finishes "/slow".
func startApp(t testing.TB) string {
	l, err := net.Listen("tcp", appIP+":0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, l)
	return l.Addr().String()
}

func serve(t testing.TB, l net.Listener) {
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		local := req.Context().Value(http.LocalAddrContextKey).(net.Addr).String()
		for req.URL.Path == "/slow" {
			if _, err := io.WriteString(w, local+"\n"); err != nil {
				return
			}
			w.(http.Flusher).Flush()
			select {
			case <-req.Context().Done():
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
		io.WriteString(w, local)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close(); <-done })
}

// eachImage runs a test with every nginx that has an image.
func eachImage(t *testing.T, test func(t *testing.T, image string)) {
	t.Parallel()
	for _, image := range testenv.Images(t, "IMAGES_NGINX") {
		t.Run(image, func(t *testing.T) {
			t.Parallel()
			test(t, image)
		})
	}
}
