//go:build e2e

package supervise

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/deploy/testenv"
)

// box is a container in the host's network that shares a directory with the test.
type box struct {
	t    *testing.T
	dir  string
	port string // of the frontend, on 127.0.0.1
	app  string // address of an application behind it, which delays its answer to /delay/2s by two seconds
	id   string
}

func newBox(t *testing.T) *box {
	b := &box{t: t, dir: testenv.Dir(t), port: testenv.FreePort(t)}
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d, _ := time.ParseDuration(filepath.Base(r.URL.Path))
		select {
		case <-time.After(d):
		case <-r.Context().Done():
		}
		_, _ = io.WriteString(w, "late")
	}))
	t.Cleanup(app.Close)
	b.app = app.Listener.Addr().String()
	return b
}

// file returns the path of a file in the shared directory. It writes text to it, if there is any.
func (b *box) file(name, text string) string {
	path := filepath.Join(b.dir, name)
	if text != "" {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			b.t.Fatal(err)
		}
	}
	return path
}

// text returns a configuration whose frontend answers with a word.
func (b *box) text(word string) string {
	return fmt.Sprintf("defaults\n  mode http\n  timeout connect 1s\n  timeout client 60s\n  timeout server 60s\n"+
		"frontend web\n  bind 127.0.0.1:%s\n  http-request return status 200 content-type text/plain string %s unless { path_beg /delay }\n"+
		"  default_backend app\nbackend app\n  server app %s\n", b.port, word, b.app)
}

// berth returns a command line of berth with HAProxy's files in the shared directory.
func (b *box) berth(args ...string) []string {
	return append([]string{"berth", "templater", "--log-format", "json", "--listen", "none", "--haproxy-config", b.file("haproxy.cfg", ""),
		"--haproxy-socket", b.file("master.sock", "")}, args...)
}

func (b *box) start(image string, command ...string) {
	b.t.Helper()
	args := []string{"--network", "host", "--user", fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid()), "--volume", b.dir + ":" + b.dir, image}
	b.id = testenv.Run(b.t, append(args, command...)...)
}

// serving starts a container in which berth is process 1 and runs a HAProxy that answers "first".
func (b *box) serving(image string, args ...string) {
	b.t.Helper()
	args = append(args, "--template", b.file("template", b.text("first")), "--", "haproxy", "-W", "-db")
	b.start(image, b.berth(args...)...)
	b.eventually("HAProxy answers", func() bool { return b.get("/") == "first" })
}

func (b *box) get(path string) string { return testenv.Answer("http://127.0.0.1:" + b.port + path) }

// inFlight sends a request that is answered after d, and returns when HAProxy has received it.
func (b *box) inFlight(d time.Duration) (answer <-chan string) {
	b.t.Helper()
	conn, err := net.Dial("tcp", "127.0.0.1:"+b.port)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { conn.Close() })
	fmt.Fprintf(conn, "GET /delay/%s HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n", d)
	if got := b.get("/"); got != "first" { // HAProxy has accepted the connection before this one
		b.t.Fatalf("HAProxy answers %q", got)
	}
	done := make(chan string, 1)
	go func() {
		all, err := io.ReadAll(conn)
		done <- fmt.Sprint(string(all), err)
	}()
	return done
}

func (b *box) eventually(what string, f func() bool) {
	b.t.Helper()
	testenv.Until(b.t, 20*time.Second, what, f)
}

// ends waits for the container to end, and checks its exit code and how long it took.
func (b *box) ends(since time.Time, code string, within time.Duration) {
	b.t.Helper()
	if got := testenv.MustDocker(b.t, "wait", b.id); got != code {
		b.t.Errorf("exit code %s, want %s", got, code)
	}
	took := time.Since(since).Round(time.Millisecond)
	b.t.Logf("the container ended after %s", took)
	if took > within {
		b.t.Errorf("that is more than %s", within)
	}
}

// logged returns the messages in berth's log that begin with msg.
func (b *box) logged(msg string) []map[string]any {
	b.t.Helper()
	var found []map[string]any
	for line := range strings.Lines(testenv.MustDocker(b.t, "logs", b.id)) {
		var m map[string]any
		if json.Unmarshal([]byte(line), &m) == nil && strings.HasPrefix(fmt.Sprint(m["msg"]), msg) {
			found = append(found, m)
		}
	}
	return found
}

// processes returns the container's processes: state and name.
func (b *box) processes() []string {
	lines := strings.Split(testenv.MustDocker(b.t, "top", b.id, "-o", "pid,stat,comm"), "\n")
	return lines[1:]
}

// master returns the PID, in the container, of the HAProxy master that was started last.
func (b *box) master() string {
	b.t.Helper()
	started := b.logged("haproxy started")
	if len(started) == 0 {
		b.t.Fatal("haproxy was not started")
	}
	return fmt.Sprint(started[len(started)-1]["pid"])
}

// worker returns the line of `show proc` for the serving worker.
func (b *box) worker() string {
	conn, err := net.Dial("unix", b.file("master.sock", ""))
	if err != nil {
		return ""
	}
	defer conn.Close()
	fmt.Fprintln(conn, "show proc")
	_ = conn.(*net.UnixConn).CloseWrite()
	reply, _ := io.ReadAll(conn)
	_, rest, _ := strings.Cut(string(reply), "# workers\n")
	worker, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	return worker
}

func TestE2EOneContainer(t *testing.T) {
	image := testenv.WithBerth(t, testenv.Image(t, "IMAGE_HAPROXY"))

	t.Run("stop", func(t *testing.T) {
		b := newBox(t)
		b.serving(image)
		answer := b.inFlight(2 * time.Second)
		began := time.Now()
		testenv.MustDocker(t, "stop", b.id)
		b.ends(began, "0", 5*time.Second)
		if got := <-answer; !strings.HasPrefix(got, "HTTP/1.1 200") || !strings.Contains(got, "late") {
			t.Errorf("the request in flight got %q", got)
		}
	})

	t.Run("stop without requests", func(t *testing.T) {
		b := newBox(t)
		b.serving(image)
		began := time.Now()
		testenv.MustDocker(t, "stop", b.id)
		b.ends(began, "0", 3*time.Second)
	})

	t.Run("stop with a request that does not end", func(t *testing.T) {
		b := newBox(t)
		b.serving(image, "--haproxy-stop-timeout", "1s")
		b.inFlight(time.Minute)
		began := time.Now()
		testenv.MustDocker(t, "stop", b.id)
		b.ends(began, "0", 4*time.Second)
		if len(b.logged("haproxy did not end within")) != 1 {
			t.Error("the log does not say that it insisted")
		}
	})

	// HAProxy ignores a signal while it reloads.
	t.Run("stop while it reloads", func(t *testing.T) {
		b := newBox(t)
		b.serving(image)
		testenv.MustDocker(t, "kill", "--signal", "USR2", b.id)
		began := time.Now()
		testenv.MustDocker(t, "stop", b.id)
		b.ends(began, "0", 5*time.Second)
		if len(b.logged("haproxy did not end within")) != 0 {
			t.Error("it was not told again")
		}
	})

	// The HAProxy image sets this as the stop signal of docker stop.
	t.Run("soft stop by SIGUSR1", func(t *testing.T) {
		b := newBox(t)
		b.serving(image, "--haproxy-stop-timeout", "0s")
		answer := b.inFlight(2 * time.Second)
		began := time.Now()
		testenv.MustDocker(t, "kill", "--signal", "USR1", b.id)
		b.ends(began, "0", 5*time.Second)
		if got := <-answer; !strings.Contains(got, "late") {
			t.Errorf("the request in flight got %q", got)
		}
	})

	t.Run("reload by signal", func(t *testing.T) {
		b := newBox(t)
		b.serving(image)
		says := func(text string) func() bool {
			return func() bool { return strings.Contains(testenv.MustDocker(t, "logs", b.id), text) }
		}
		b.eventually("it has started", says("Loading success."))
		b.eventually("the master answers", func() bool { return b.worker() != "" })
		for range 2 {
			before := b.worker()
			testenv.MustDocker(t, "kill", "--signal", "USR2", b.id)
			b.eventually("there is a new worker", func() bool { now := b.worker(); return now != "" && now != before })
			// Otherwise the next signal would come while it reloads.
			b.eventually("the old one has ended", says("Former worker ("+before+") exited"))
			if got := b.get("/"); got != "first" {
				t.Errorf("HAProxy answers %q", got)
			}
		}
		if n := len(b.logged("haproxy started")); n != 1 {
			t.Errorf("haproxy was started %d times", n)
		}
	})

	t.Run("the master is killed", func(t *testing.T) {
		b := newBox(t)
		b.serving(image)
		testenv.MustDocker(t, "exec", b.id, "sh", "-c", "kill -9 "+b.master())
		killed := time.Now()
		b.eventually("haproxy is started again", func() bool { return len(b.logged("haproxy started")) == 2 })
		b.eventually("HAProxy answers", func() bool { return b.get("/") == "first" })
		t.Logf("HAProxy answers again after %s", time.Since(killed).Round(time.Millisecond))
		b.eventually("there are init, berth, master, worker, and no zombie", func() bool {
			ps := b.processes()
			return len(ps) == 4 && !strings.Contains(strings.Join(ps, "\n"), "Z")
		})
		began := time.Now()
		testenv.MustDocker(t, "stop", b.id)
		b.ends(began, "0", 3*time.Second)
	})

	t.Run("no configuration yet", func(t *testing.T) {
		b := newBox(t)
		b.start(image, b.berth("--consul-address", "127.0.0.1:1", "--", "haproxy", "-W", "-db")...)
		b.eventually("berth waits for Consul", func() bool { return len(b.logged("requests to Consul fail, waiting for it")) > 0 })
		began := time.Now()
		testenv.MustDocker(t, "stop", b.id)
		b.ends(began, "0", 3*time.Second)
		if len(b.logged("haproxy started")) != 0 {
			t.Error("haproxy was started without a configuration")
		}
	})

	t.Run("no new configuration but the last one", func(t *testing.T) {
		b := newBox(t)
		b.file("haproxy.cfg", b.text("last"))
		b.start(image, b.berth("--consul-address", "127.0.0.1:1", "--", "haproxy", "-W", "-db")...)
		b.eventually("HAProxy answers", func() bool { return b.get("/") == "last" })
	})

	t.Run("no such command", func(t *testing.T) {
		b := newBox(t)
		began := time.Now()
		b.start(image, b.berth("--", "haproxyy", "-W", "-db")...)
		b.ends(began, "2", 10*time.Second)
		if got := testenv.MustDocker(t, "logs", b.id); got != `berth: the command behind --: exec: "haproxyy": executable file not found in $PATH` {
			t.Errorf("berth says %q", got)
		}
	})

	t.Run("berth is killed where it is not process 1", func(t *testing.T) {
		b := newBox(t)
		b.start(image, "sleep", "infinity")
		berth := func(word string) {
			command := b.berth("--template", b.file("template", b.text(word)), "--", "haproxy", "-W", "-db")
			testenv.MustDocker(t, "exec", "--detach", b.id, "sh", "-c", "echo $$ >"+b.file("pid", "")+"; exec "+strings.Join(command, " ")+" >>"+b.file("log", "")+" 2>&1")
			b.eventually("HAProxy answers "+word, func() bool { return b.get("/") == word })
		}
		signal := func(s string) {
			testenv.MustDocker(t, "exec", b.id, "sh", "-c", "kill -"+s+" $(cat "+b.file("pid", "")+")")
		}
		log := func() string { all, _ := os.ReadFile(b.file("log", "")); return string(all) }
		defer func() {
			if t.Failed() {
				t.Log(log())
			}
		}()

		berth("first")
		answer := b.inFlight(2 * time.Second)
		signal("KILL")
		if got := <-answer; !strings.Contains(got, "late") {
			t.Errorf("the request in flight got %q", got)
		}
		if got := b.get("/"); got != "first" {
			t.Errorf("without berth HAProxy answers %q", got)
		}
		berth("second")
		b.eventually("it is taken over", func() bool { return strings.Contains(log(), "haproxy is already running") })
		if n, m := strings.Count(log(), "haproxy started"), strings.Count(log(), "haproxy is already running"); n != 1 || m != 1 {
			t.Errorf("haproxy was started %d times and taken over %d times", n, m)
		}
		signal("TERM")
		b.eventually("HAProxy is stopped", func() bool { return strings.Contains(b.get("/"), "refused") })
		b.eventually("berth ends", func() bool { return strings.Contains(log(), "berth stopped") })
	})
}
