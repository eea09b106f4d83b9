package haproxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/proxyctl"
)

// masterSocket is a HAProxy master as 3.0 (or, silent, as 2.6) answers it. It loads the file at a reload.
type masterSocket struct {
	path, file string
	silent     bool            // 2.6: no reply to reload
	hang       map[string]bool // commands that are never answered
	refuse     func(text string) string
	elsewhere  bool // it reads another file than berth's

	mu      sync.Mutex
	running string // text of the serving worker
	worker  int
	failed  int
	loaded  []string
	release chan struct{}
}

func startMaster(t *testing.T, dir string) *masterSocket {
	m := &masterSocket{
		path: filepath.Join(dir, "master.sock"), file: filepath.Join(dir, "haproxy.cfg"),
		hang: map[string]bool{}, worker: 100, release: make(chan struct{}),
		refuse: func(text string) string {
			if strings.Contains(text, "bogus") {
				return "config : parsing [/etc/haproxy/haproxy.cfg:3] : unknown keyword 'bogus' in 'frontend' section"
			}
			return ""
		},
	}
	l, err := net.Listen("unix", m.path)
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { m.serve(conn) })
		}
	})
	t.Cleanup(func() { close(m.release); l.Close(); conns.Wait() })
	return m
}

func (m *masterSocket) serve(conn net.Conn) {
	defer conn.Close()
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return
	}
	line = strings.TrimSpace(line)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.hang[line] {
		m.mu.Unlock()
		<-m.release
		m.mu.Lock()
		return
	}
	switch line {
	case "show proc":
		fmt.Fprintf(conn, "#<PID>          <type>          <reloads>       <uptime>        <version>\n"+
			"1               master          5 [failed: %d]     0d00h00m05s     3.0.11\n# workers\n"+
			"%d               worker          0               0d00h00m04s     3.0.11\n# old workers\n"+
			"%d               worker          1               0d00h00m09s     3.0.11\n# programs\n\n", m.failed, m.worker, m.worker-1)
	case "@1 show env " + markName:
		if g := generation(m.running); g != "" {
			fmt.Fprintf(conn, "%s=%s\n", markName, g)
		}
		fmt.Fprintln(conn)
	case "@1 show info":
		fmt.Fprintf(conn, "Name: HAProxy\nPid: %d\nUptime_sec: 1\n\n", m.worker)
	case "reload":
		text, _ := os.ReadFile(m.file)
		m.loaded = append(m.loaded, string(text))
		why := m.refuse(string(text))
		if why == "" {
			m.worker++
			m.failed = 0
			if !m.elsewhere {
				m.running = string(text)
			}
		} else {
			m.failed++
		}
		switch {
		case m.silent:
		case why == "":
			fmt.Fprintf(conn, "Success=1\n--\n[NOTICE]   (1) : Loading success.\n")
		default:
			fmt.Fprintf(conn, "Success=0\n--\n[NOTICE]   (1) : haproxy version is 3.0.11\n[ALERT]    (1) : %s\n[ALERT]    (1) : config : Fatal errors found in configuration.\n[WARNING]  (1) : Loading failure!\n", why)
		}
	default:
		io.WriteString(conn, "Unknown command\n")
	}
}

const (
	oldText = "frontend f\n  bind :80\n"
	newText = "frontend f\n  bind :80\nbackend app\n  server a 10.0.0.1:80\n"
	badText = "frontend f\n  bind :80\n  bogus\n"
)

func newProxy(dir string) *Proxy {
	return New(Options{
		File: filepath.Join(dir, "haproxy.cfg"), Socket: filepath.Join(dir, "master.sock"),
		Timeout: 500 * time.Millisecond, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func onDisk(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return string(b)
}

func TestApply(t *testing.T) {
	type step struct {
		text   string
		action proxyctl.Action
		err    error  // sentinel, nil for success
		says   string // part of the error
		file   string // afterwards
		loads  int    // reloads so far
	}
	tests := []struct {
		name  string
		start string // file at the beginning
		good  string // kept from an earlier run
		set   func(*masterSocket)
		steps []step
	}{
		{"reload, then nothing to do", oldText, "", nil, []step{
			{newText, proxyctl.Reload, nil, "", mark(newText), 1},
			{newText, proxyctl.None, nil, "", mark(newText), 1},
		}},
		{"a restart of berth costs no reload", mark(newText), "", func(m *masterSocket) { m.running = mark(newText) }, []step{
			{newText, proxyctl.None, nil, "", mark(newText), 0},
		}},
		{"the file is right and the worker runs another", mark(newText), "", func(m *masterSocket) { m.running = mark(oldText) }, []step{
			{newText, proxyctl.Reload, nil, "", mark(newText), 1},
		}},
		{"no file yet", "", "", nil, []step{{newText, proxyctl.Reload, nil, "", mark(newText), 1}}},
		{"a missing last line end is added", oldText, "", nil, []step{
			{strings.TrimSuffix(newText, "\n"), proxyctl.Reload, nil, "", mark(newText), 1},
		}},
		{"refused: the old file goes back", oldText, "", nil, []step{
			{newText, proxyctl.Reload, nil, "", mark(newText), 1},
			{badText, "", proxyctl.ErrRefused, "unknown keyword 'bogus'", mark(newText), 2},
			{newText, proxyctl.None, nil, "", mark(newText), 2},
		}},
		{"refused at the first go: what was there goes back", oldText, "", nil, []step{
			{badText, "", proxyctl.ErrRefused, "unknown keyword 'bogus'", oldText, 1},
		}},
		{"refused after a crash that left a bad file: the last good one goes back", mark(badText), mark(oldText), func(m *masterSocket) { m.running = mark(oldText) }, []step{
			{badText + "# other\n", "", proxyctl.ErrRefused, "unknown keyword", mark(oldText), 1},
		}},
		// HAProxy up to 3.0 hands the variable on to a worker whose configuration does not set it.
		{"refused, and an operator's own file was there: that goes back, not berth's last", oldText, mark(newText), func(m *masterSocket) { m.running = mark(newText) }, []step{
			{badText, "", proxyctl.ErrRefused, "unknown keyword", oldText, 1},
		}},
		{"HAProxy reads another file", oldText, "", func(m *masterSocket) { m.elsewhere = true }, []step{
			{newText, "", nil, "HAProxy reloaded, but not from", oldText, 1},
		}},
		{"no listener", oldText, "", nil, []step{
			{"", "", proxyctl.ErrRefused, "would serve nothing", oldText, 0},
			{"backend a\n  bind :80\n", "", proxyctl.ErrRefused, "would serve nothing", oldText, 0},
		}},
		{"changed on disk behind our back", oldText, "", func(m *masterSocket) {
			n := 0
			m.refuse = func(string) string { // somebody writes the file right after the first reload
				if n++; n == 1 {
					_ = os.WriteFile(m.file, []byte("edited by hand\n"), 0o644)
				}
				return ""
			}
		}, []step{
			{newText, proxyctl.Reload, nil, "", "edited by hand\n", 1},
			{newText, proxyctl.Reload, nil, "", mark(newText), 2},
		}},
		{"2.6 says nothing: success is read from the processes", oldText, "", func(m *masterSocket) { m.silent = true }, []step{
			{newText, proxyctl.Reload, nil, "", mark(newText), 1},
			{badText, "", proxyctl.ErrRefused, "its log says why", mark(newText), 2},
		}},
		{"a master that hangs is reported, not waited for", oldText, "", func(m *masterSocket) { m.hang["@1 show env "+markName] = true }, []step{
			{newText, "", proxyctl.ErrUnreachable, "within 500ms", oldText, 0},
		}},
		{"a reload that hangs is taken back", oldText, "", func(m *masterSocket) { m.hang["reload"] = true }, []step{
			{newText, "", proxyctl.ErrUnreachable, `no answer to "reload" within 500ms`, oldText, 0},
		}},
		{"a worker that never answers is no success", oldText, "", func(m *masterSocket) { m.hang["@1 show info"] = true }, []step{
			{newText, "", proxyctl.ErrUnreachable, "", oldText, 1},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			m := startMaster(t, dir)
			if tt.set != nil {
				tt.set(m)
			}
			p := newProxy(dir)
			if tt.start != "" {
				write(t, m.file, tt.start)
			}
			if tt.good != "" {
				write(t, p.good(), tt.good)
			}
			for i, s := range tt.steps {
				res, err := p.Apply(t.Context(), s.text)
				if (err != nil) != (s.err != nil || s.says != "") || (s.err != nil && !errors.Is(err, s.err)) || (err != nil && !strings.Contains(err.Error(), s.says)) {
					t.Fatalf("step %d: error %v, want %v saying %q", i, err, s.err, s.says)
				}
				if err != nil && strings.Contains(err.Error(), "\n") {
					t.Errorf("step %d: an error of several lines: %q", i, err)
				}
				if res.Action != s.action {
					t.Errorf("step %d: %s, want %s", i, res.Action, s.action)
				}
				if got := onDisk(t, m.file); got != s.file {
					t.Errorf("step %d: file is %q, want %q", i, got, s.file)
				}
				m.mu.Lock()
				if len(m.loaded) != s.loads {
					t.Errorf("step %d: %d reloads so far, want %d", i, len(m.loaded), s.loads)
				}
				m.mu.Unlock()
			}
		})
	}
}

func TestApplyReportsChanges(t *testing.T) {
	dir := t.TempDir()
	m := startMaster(t, dir)
	write(t, m.file, oldText)
	res, err := newProxy(dir).Apply(t.Context(), newText)
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Changes) != 1 || res.Changes[0].String() != "app: 0 → 1 server" {
		t.Errorf("changes %v", res.Changes)
	}
	if res.OldWorkers != 1 {
		t.Errorf("%d old workers, the master lists 1", res.OldWorkers)
	}
}

func TestApplyWhileDown(t *testing.T) {
	dir := t.TempDir()
	p := newProxy(dir)
	_, err := p.Apply(t.Context(), oldText)
	if !errors.Is(err, proxyctl.ErrUnreachable) {
		t.Fatalf("error %v", err)
	}
	if got := onDisk(t, p.opts.File); got != mark(oldText) {
		t.Errorf("the file is %q: without one HAProxy cannot start", got)
	}
	if _, err := p.Apply(t.Context(), newText); !errors.Is(err, proxyctl.ErrUnreachable) {
		t.Fatalf("error %v", err)
	}
	if got := onDisk(t, p.opts.File); got != mark(oldText) {
		t.Errorf("a file that nobody validated replaced the one that was there: %q", got)
	}
	startMaster(t, dir)
	if res, err := p.Apply(t.Context(), newText); err != nil || res.Action != proxyctl.Reload {
		t.Errorf("once HAProxy is up: %v, %v", res, err)
	}
}

// program writes a stand-in for the haproxy binary that refuses what contains "bogus".
func program(t *testing.T, script string) string {
	path := filepath.Join(t.TempDir(), "haproxy")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestValidate(t *testing.T) {
	dir := t.TempDir()
	m := startMaster(t, dir)
	write(t, m.file, oldText)
	p := newProxy(dir)
	p.opts.Binary = program(t, `if grep -q bogus "$3"; then echo "[ALERT]    (7) : config : unknown keyword 'bogus'" >&2; exit 1; fi`)
	if _, err := p.Apply(t.Context(), badText); !errors.Is(err, proxyctl.ErrRefused) || !strings.Contains(err.Error(), "by haproxy -c (exit status 1): config : unknown keyword 'bogus'") {
		t.Errorf("error %v", err)
	}
	if len(m.loaded) != 0 || onDisk(t, m.file) != oldText {
		t.Errorf("what validation refused reached HAProxy or its file")
	}
	if _, err := p.Apply(t.Context(), newText); err != nil {
		t.Error(err)
	}
	files, _ := os.ReadDir(dir)
	for _, f := range files {
		if strings.Contains(f.Name(), "candidate") {
			t.Errorf("%s is left behind", f.Name())
		}
	}
	p.opts.Binary = program(t, "exec sleep 60")
	if _, err := p.Apply(t.Context(), oldText); err == nil || !strings.Contains(err.Error(), "did not finish within") {
		t.Errorf("error %v", err)
	}
}

func TestAddressInUse(t *testing.T) {
	dir := t.TempDir()
	m := startMaster(t, dir)
	write(t, m.file, oldText)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = newProxy(dir).Apply(t.Context(), fmt.Sprintf("frontend f\n  bind :80\n  bind %s\n", l.Addr()))
	if !errors.Is(err, proxyctl.ErrRefused) || !strings.Contains(err.Error(), "another program listens there") {
		t.Errorf("error %v", err)
	}
	if len(m.loaded) != 0 {
		t.Errorf("HAProxy was reloaded, which would have closed its listeners for two seconds")
	}
}

func TestParseProcesses(t *testing.T) {
	tests := []struct {
		name, reply string
		want        processes
	}{
		{"3.0", "#<PID> <type> <reloads> <uptime> <version>\n1 master 2 [failed: 0] 0d00h00m05s 3.0.11\n# workers\n9 worker 0 0d 3.0\n# old workers\n7 worker 1 0d 3.0\n8 worker 1 0d 3.0\n# programs\n\n", processes{9, 0, []int{7, 8}}},
		{"2.6 after failures", "#<PID> <type>\n27823 master 5 [failed: 3] 0d 2.6.12\n# workers\n27983 worker 3 0d 2.6.12\n# programs\n", processes{27983, 3, nil}},
		{"3.2 after a failure lists the serving worker as old", "#<PID> <type>\n12229 master 3 [failed: 1] 0d 3.2\n# workers\n# old workers\n4344 worker 1 0d 3.2\n", processes{4344, 1, nil}},
		{"a reload under way", "#<PID> <type>\n1 master 3 [failed: 0] 0d 3.2\n# workers\n# old workers\n", processes{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := parseProcesses(tt.reply)
			if fmt.Sprint(got) != fmt.Sprint(tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestForeignConfigurationIsKept(t *testing.T) {
	dir := t.TempDir()
	m := startMaster(t, dir)
	p := newProxy(dir)
	write(t, m.file, oldText)
	if err := os.Chmod(m.file, 0o640); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{newText, oldText, newText} {
		if _, err := p.Apply(t.Context(), text); err != nil {
			t.Fatal(err)
		}
	}
	if got := onDisk(t, p.foreign()); got != oldText {
		t.Errorf("what was there before berth is kept as %q", got)
	}
	for _, file := range []string{m.file, p.good(), p.foreign()} {
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o640 {
			t.Errorf("%s has mode %v, %v; the configuration may hold secrets and had 0640", file, info.Mode(), err)
		}
	}
}

func TestUnwritableDirectory(t *testing.T) {
	dir := t.TempDir()
	startMaster(t, dir)
	p := newProxy(dir)
	p.opts.File = filepath.Join(dir, "nosuch", "haproxy.cfg")
	_, first := p.Apply(t.Context(), newText)
	_, second := p.Apply(t.Context(), newText)
	if first == nil || second == nil || first.Error() != second.Error() || !strings.Contains(first.Error(), p.opts.File) {
		t.Errorf("errors that are to be logged once: %v; %v", first, second)
	}
}

func TestCancelledWhileHAProxyHangs(t *testing.T) {
	dir := t.TempDir()
	m := startMaster(t, dir)
	m.hang["@1 show env "+markName] = true
	p := newProxy(dir)
	p.master.timeout = time.Minute
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, err := p.Apply(ctx, newText); done <- err }()
	cancel()
	select {
	case err := <-done:
		if err == nil {
			t.Error("no error")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Apply waits for a HAProxy that hangs, though it was cancelled")
	}
}

func TestMark(t *testing.T) {
	a, b := mark("a\n"), mark("b\n")
	if generation(a) == "" || generation(a) == generation(b) || generation("a\n") != "" {
		t.Errorf("marks %q and %q", generation(a), generation(b))
	}
	if mark("a") != a {
		t.Error("a missing line end makes another text")
	}
}
