package nginx

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"berth/proxyctl"
)

// fakeNginx is an nginx as berth sees it: it loads its file when told to, answers on the control socket in that file, logs why it
// refuses one, and keeps the servers of its Lua balancers.
type fakeNginx struct {
	t            *testing.T
	file, socket string

	mu       sync.Mutex
	running  string // what it has loaded
	loads    int    // how often it was told to load its file
	worker   int
	version  string
	unknown  []string          // directives it does not know
	refuse   func(text string) // may append to the log; nginx then does not load the text
	deaf     bool              // it ignores reloads
	hang     bool              // it answers nothing
	says     string            // its answer on the control socket, if it differs
	dict     string            // the servers of its Lua balancers
	waiting  string            // their report of waiting requests
	room     int               // their maximum length, 0 for any
	broken   func(text string) bool
	apart    bool // its workers cannot connect to the control socket
	status   int  // of answers to GET and POST /servers, 0 for the right one
	posts    []string
	server   *http.Server
	done     sync.WaitGroup
	released chan struct{}
}

// startFake starts one with a text, "" for an nginx without berth's configuration.
func startFake(t *testing.T, text string) *fakeNginx {
	dir, err := os.MkdirTemp("", "berth") // short, because it holds a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	n := &fakeNginx{
		t: t, file: filepath.Join(dir, "nginx.conf"), socket: filepath.Join(dir, "run", "berth.sock"),
		worker: 10, version: "1.26.3", unknown: []string{"bogus"}, released: make(chan struct{}),
	}
	if err := os.Mkdir(filepath.Dir(n.socket), 0o755); err != nil {
		t.Fatal(err)
	}
	n.running = text
	if isMarked(text) {
		n.listen()
	}
	t.Cleanup(func() { close(n.released); n.kill(); n.done.Wait() })
	return n
}

func (n *fakeNginx) listen() {
	l, err := net.Listen("unix", n.socket)
	if err != nil {
		n.t.Error(err)
		return
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // as when it is killed
	srv := &http.Server{Handler: n}
	n.server = srv
	n.done.Go(func() { _ = srv.Serve(l) })
}

// kill ends it. Its socket remains.
func (n *fakeNginx) kill() {
	n.mu.Lock()
	srv := n.server
	n.server, n.running, n.dict = nil, "", ""
	n.mu.Unlock()
	if srv != nil {
		srv.Close()
	}
}

// start starts it with its file.
func (n *fakeNginx) start() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.running, n.worker = onDisk(n.t, n.file), n.worker+1
	if isMarked(n.running) {
		n.listen()
	}
}

// logs appends a message to the error log that berth reads.
func (n *fakeNginx) logs(message string) {
	f, err := os.OpenFile(filepath.Join(filepath.Dir(n.socket), "error.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		n.t.Error(err)
		return
	}
	defer f.Close()
	fmt.Fprintf(f, "2026/01/02 03:04:05 [emerg] 7#7: %s\n", message)
}

// reload does what a HUP does.
func (n *fakeNginx) reload(context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loads++
	if n.deaf {
		return nil
	}
	text := onDisk(n.t, n.file)
	said, _ := os.Stat(filepath.Join(filepath.Dir(n.socket), "error.log"))
	if n.refuse != nil {
		n.refuse(text)
	}
	all, err := parseText(text)
	if err != nil {
		n.logs("unexpected end of file")
	}
	if name := n.unknownIn(all); name != "" && isMarked(n.running) { // otherwise it logs elsewhere
		n.logs(fmt.Sprintf("unknown directive %q in %s:3", name, n.file))
	} else if name != "" {
		return nil
	}
	if now, _ := os.Stat(filepath.Join(filepath.Dir(n.socket), "error.log")); now != nil && (said == nil || now.Size() != said.Size()) {
		return nil
	}
	if !isMarked(n.running) && isMarked(text) {
		n.listen()
	}
	if sharedDict.FindString(text) != sharedDict.FindString(n.running) { // another size is another dictionary
		n.dict = ""
	}
	n.running, n.worker = text, n.worker+1
	return nil
}

func (n *fakeNginx) unknownIn(all *directive) string {
	for _, d := range all.block {
		for _, name := range n.unknown {
			if d.name() == name {
				return name
			}
		}
		if name := n.unknownIn(d); name != "" {
			return name
		}
	}
	return ""
}

var sharedDict = regexp.MustCompile(`lua_shared_dict .*;`)

var saysGeneration = regexp.MustCompile(`return 200 "(\S+) \$pid \$nginx_version`)

func (n *fakeNginx) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.hang {
		n.mu.Unlock()
		select {
		case <-n.released:
		case <-r.Context().Done():
		}
		n.mu.Lock()
		return
	}
	mark := saysGeneration.FindStringSubmatch(n.running)
	hasLua := strings.Contains(n.running, "server_name balancer")
	switch {
	case n.says != "":
		io.WriteString(w, n.says)
	case r.Host == generationName && mark != nil:
		fmt.Fprintf(w, "%s %d %s\n", mark[1], n.worker, n.version)
	case r.Host == balancerName && hasLua && r.URL.Path == "/servers" && n.status != 0:
		http.Error(w, "no,\nthanks", n.status)
	case r.Host == balancerName && hasLua && r.URL.Path == "/servers":
		if r.Method == http.MethodPost {
			body, _ := io.ReadAll(r.Body)
			n.posts = append(n.posts, string(body))
			if n.room > 0 && len(body) > n.room {
				http.Error(w, "the dictionary is too small", http.StatusInsufficientStorage)
				return
			}
			n.dict = string(body)
		}
		io.WriteString(w, n.dict)
	case r.Host == balancerName && hasLua && r.URL.Path == "/waiting":
		io.WriteString(w, n.waiting)
	case r.Host == balancerName && hasLua && r.URL.Path == "/check":
		if n.broken != nil && n.broken(n.running) {
			http.Error(w, "500 Internal Server Error", http.StatusInternalServerError)
			return
		}
		if n.apart {
			http.Error(w, "502 Bad Gateway", http.StatusBadGateway)
			return
		}
		io.WriteString(w, "checked\n")
	default:
		http.NotFound(w, r)
	}
}

// set changes its state.
func (n *fakeNginx) set(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

// proxy is a new berth for it. It never looks for other nginx processes on this machine.
func (n *fakeNginx) proxy(set ...func(*Options)) *Proxy {
	opts := Options{File: n.file, Socket: n.socket, Timeout: 10 * time.Second, Reload: n.reload, Grace: -1, Log: slog.New(slog.DiscardHandler)}
	for _, f := range set {
		f(&opts)
	}
	p := New(opts)
	p.driver.findMaster = func() (int, error) { return 0, nil }
	n.t.Cleanup(p.Close)
	return p
}

// soon shortens the time until giving up on what never comes.
func soon(o *Options) { o.Timeout = 400 * time.Millisecond }

// program writes a stand-in for the nginx binary: it is called with -t -q -c and a file.
func program(t *testing.T, script string) func(*Options) {
	path := filepath.Join(t.TempDir(), "nginx")
	syscall.ForkLock.RLock() // a process started meanwhile would have it open for writing, and it could not be run
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return func(o *Options) { o.Binary = path }
}

// knowsNoBogus is a program that does not know the directive bogus.
const knowsNoBogus = `if grep -q '^ *bogus' "$4"; then echo "nginx: [emerg] unknown directive \"bogus\" in $4:3" >&2; exit 1; fi`

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func onDisk(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return string(b)
}

// onlyText is a configuration that refers to no files.
func onlyText(text string) proxyctl.Config { return proxyctl.Config{Text: text} }

// marked returns a text as it is in the file of n.
func (n *fakeNginx) marked(text string) string {
	m, err := mark(text, n.socket)
	if err != nil {
		n.t.Fatal(err)
	}
	return m.Text
}
