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

// All listen on addresses of their own in 127.0.0.0/8, whose ports no outgoing connection takes.
const (
	webIP = "127.0.0.8"
	appIP = "127.0.0.9"
)

// rig is an nginx in a container in this host's network, with its files in a directory of the test, and a berth for it.
type rig struct {
	testing.TB
	image string
	dir   string
	name  string // of the container
	web   string // where it is to serve
	log   *testenv.Log
	*Proxy
}

// foreign is what an nginx runs that has nothing of berth's.
func (r *rig) foreign() string {
	return "include /etc/nginx/modules-enabled/*.conf;\nevents {}\nhttp {\n    server {\n        listen " + r.web + ";\n        return 200 \"foreign\\n\";\n    }\n}\n"
}

// startRig starts an nginx that runs a configuration of somebody else. set changes the options of the berth for it.
func startRig(t testing.TB, image string, set ...func(*Options)) *rig {
	t.Helper()
	r := newRig(t, image)
	r.run("nginx", "-c", r.file(), "-g", "daemon off;")
	r.berth(set...)
	return r
}

func newRig(t testing.TB, image string) *rig {
	dir := testenv.Dir(t)
	r := &rig{TB: t, image: image, dir: dir, name: testenv.Name(t) + "-nginx", web: testenv.FreeAddress(t, webIP), log: &testenv.Log{}}
	write(t, r.file(), r.foreign())
	return r
}

// run starts the container until the end of the test, and returns when nginx serves.
func (r *rig) run(command ...string) { r.runWith(nil, command...) }

func (r *rig) runWith(options []string, command ...string) {
	r.Helper()
	args := append([]string{"run", "--detach", "--name", r.name, "--label", "SERVICE_IGNORE=1", "--network", "host", "--volume", r.dir + ":" + r.dir}, options...)
	r.docker(append(append(args, r.image), command...)...)
	r.Cleanup(func() {
		if r.Failed() {
			lines := strings.Split(r.messages(), "\n")
			r.Logf("%s:\n%s\nberth:\n%s", r.image, strings.Join(lines[max(0, len(lines)-25):], "\n"), r.log)
		}
	})
	r.eventually("nginx serves", func() bool { return r.answer() == "foreign" })
}

func (r *rig) docker(args ...string) string {
	r.Helper()
	return testenv.MustDocker(r, args...)
}

func (r *rig) file() string   { return filepath.Join(r.dir, "nginx.conf") }
func (r *rig) socket() string { return filepath.Join(r.dir, "run", "berth.sock") }

// berth makes a new Proxy, as a start of berth does. No nginx is looked for on this machine, where there may be others.
func (r *rig) berth(set ...func(*Options)) {
	if r.Proxy != nil {
		r.Proxy.Close() // two of them would write to one file
	}
	opts := Options{File: r.file(), Socket: r.socket(), Reload: r.hup, Log: slog.New(slog.NewTextHandler(r.log, nil))}
	for _, f := range set {
		f(&opts)
	}
	r.Proxy = New(opts)
	r.Proxy.driver.findMaster = func() (int, error) {
		pid, err := strconv.Atoi(r.docker("inspect", "--format", "{{.State.Pid}}", r.name))
		return pid, err
	}
	r.Cleanup(r.Proxy.Close)
}

func (r *rig) hup(context.Context) error {
	_, err := testenv.Docker("kill", "--signal", "HUP", r.name)
	return err
}

// program makes the container's nginx the one that checks texts.
func (r *rig) program() func(*Options) {
	path := r.wrapper()
	return func(o *Options) { o.Binary = path }
}

// wrapper is a program that runs the container's nginx.
func (r *rig) wrapper() string {
	path := filepath.Join(r.dir, "check")
	syscall.ForkLock.RLock() // a process that is started meanwhile would have it open for writing, and then it cannot be run
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path, []byte("#!/bin/sh\nexec docker exec "+r.name+" nginx \"$@\"\n"), 0o755); err != nil {
		r.Fatal(err)
	}
	return path
}

// text is a configuration whose server answers with a word. top, http and server are more lines for those parts.
type parts struct{ top, http, server string }

func (r *rig) text(word string, more ...parts) string {
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
    worker_connections 1024;
}
http {
    access_log off;
    keepalive_requests 1000000;
    keepalive_timeout 60s;
%[3]s    server {
        listen %[4]s backlog=4096;
        %[5]s%[6]s    }
}
`, r.dir, all.top+shutdown("60s", all.top), all.http, r.web, all.server, location)
}

// shutdown is how long old workers may stay, unless that is said already.
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

// apply applies a text, which must work.
func (r *rig) apply(text string, want proxyctl.Action) proxyctl.Result {
	r.Helper()
	res, err := r.Apply(r.Context(), onlyText(text), true)
	if err != nil || res.Action != want {
		r.Fatalf("Apply: %+v, %v; want %s", res, err, want)
	}
	return res
}

// refused applies a text, which must be refused for a reason, and change nothing.
func (r *rig) refused(what, text, says string) {
	r.Helper()
	before, workers := onDisk(r, r.file()), r.workers()
	_, err := r.Apply(r.Context(), onlyText(text), true)
	if !errors.Is(err, proxyctl.ErrRefused) || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "\n") {
		r.Errorf("%s: error %v, want a refusal that says %q", what, err, says)
	}
	if onDisk(r, r.file()) != before {
		r.Errorf("%s: the file is not what it was", what)
	}
	if now := r.workers(); !slices.Equal(now, workers) {
		r.Errorf("%s: the workers %d became %d", what, workers, now)
	}
	for _, left := range []string{r.file() + ".good", filepath.Join(r.dir, ".nginx.conf.candidate")} {
		if onDisk(r, left) != "" {
			r.Errorf("%s: %s is left behind", what, left)
		}
	}
}

// workers are the processes that serve.
func (r *rig) workers() []int {
	r.Helper()
	v, err := r.driver.control.status(r.Context())
	if err != nil || v.master == 0 {
		r.Fatalf("nginx says %+v, %v", v, err)
	}
	serving, _ := workers(v.master)
	slices.Sort(serving)
	return serving
}

// settled are the workers that serve when those of before the last reload do no more.
func (r *rig) settled() []int {
	r.Helper()
	r.driver.waitForOverlap(r.Context())
	return r.workers()
}

// serves checks that all requests are answered with a word, once the old workers take none.
func (r *rig) serves(what, word string) {
	r.Helper()
	r.settled()
	for range 8 {
		if got := r.answer(); got != word {
			r.Errorf("%s: nginx answers %q, want %q", what, got, word)
		}
	}
}

// answer is that to a request on a connection of its own.
func (r *rig) answer() string { return testenv.Answer("http://" + r.web + "/") }

func (r *rig) eventually(what string, f func() bool) {
	r.Helper()
	testenv.Until(r, 30*time.Second, what, f)
}

// messages is what nginx logged with a configuration of berth.
func (r *rig) messages() string { return onDisk(r, filepath.Join(r.dir, "nginx.log")) }

// hups is how often nginx was told to load its file, while it had one of berth's.
func (r *rig) hups() int { return strings.Count(r.messages(), "(SIGHUP) received") }

// startApp starts a server whose answer is its address, "/slow" that never ends.
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

// eachImage runs a test with every nginx there is an image of.
func eachImage(t *testing.T, test func(t *testing.T, image string)) {
	t.Parallel()
	for _, image := range testenv.Images(t, "IMAGES_NGINX") {
		t.Run(image, func(t *testing.T) {
			t.Parallel()
			test(t, image)
		})
	}
}
