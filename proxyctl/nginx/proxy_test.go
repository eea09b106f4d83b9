package nginx

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth/proxyctl"
)

var (
	oldText     = text(frame, "10.0.0.1:80")
	newText     = text(frame, "10.0.0.1:80", "10.0.0.2:80")
	badText     = strings.Replace(newText, "http {\n", "http {\n    bogus on;\n", 1)
	foreignText = "events {}\nhttp { server { listen 80; } }\n"
)

// step is an Apply, and what is to come of it.
type step struct {
	set    func(*fakeNginx)
	text   string
	action proxyctl.Action
	reason string // part of it
	err    error  // that the error is
	says   string // part of the error
	file   string // afterwards
	loads  int    // reloads so far
}

func (n *fakeNginx) walk(p *Proxy, steps []step) {
	n.t.Helper()
	for i, s := range steps {
		if s.set != nil {
			n.set(func() { s.set(n) })
		}
		began := time.Now()
		res, err := p.Apply(n.t.Context(), onlyText(s.text), true)
		if took := time.Since(began); errors.Is(s.err, proxyctl.ErrUnreachable) && took > 2*p.opts.Timeout+5*time.Second {
			n.t.Errorf("step %d: Apply took %v", i, took)
		}
		if (err != nil) != (s.err != nil || s.says != "") || s.err != nil && !errors.Is(err, s.err) || err != nil && !strings.Contains(err.Error(), s.says) {
			n.t.Fatalf("step %d: %+v, error %v; want %v saying %q", i, res, err, s.err, s.says)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			n.t.Errorf("step %d: an error of several lines: %q", i, err)
		}
		if err == nil && (res.Action != s.action || !strings.Contains(res.Reason, s.reason)) {
			n.t.Errorf("step %d: %s for %q, want %s for %q", i, res.Action, res.Reason, s.action, s.reason)
		}
		p.Close()
		if d := cmp.Diff(s.file, onDisk(n.t, n.file)); d != "" {
			n.t.Errorf("step %d: the file (-want +got):\n%s", i, d)
		}
		n.set(func() {
			if n.loads != s.loads {
				n.t.Errorf("step %d: %d reloads so far, want %d", i, n.loads, s.loads)
			}
		})
		if left, _ := filepath.Glob(filepath.Dir(n.file) + "/.nginx*"); len(left) > 0 {
			n.t.Errorf("step %d: %s is left behind", i, left)
		}
		if good := onDisk(n.t, p.conf.Good()); good != "" {
			n.t.Errorf("step %d: the copy of the last good text is left behind", i)
		}
	}
}

func TestApply(t *testing.T) {
	const none, reload = proxyctl.None, proxyctl.Reload
	refused, unreachable := proxyctl.ErrRefused, proxyctl.ErrUnreachable
	m := (*fakeNginx).marked
	for _, tt := range []struct {
		name    string
		running string // text that nginx runs, and has in its file
		options func(*Options)
		steps   func(n *fakeNginx) []step
	}{
		{"reload, then nothing to do", oldText, nil, func(n *fakeNginx) []step {
			return []step{
				{nil, newText, reload, "upstream app: 1 → 2 servers", nil, "", m(n, newText), 1},
				{nil, newText, none, "", nil, "", m(n, newText), 1},
				{nil, oldText, reload, "upstream app: 2 → 1 server", nil, "", m(n, oldText), 2},
			}
		}},
		{"a restart of berth costs no reload", oldText, nil, func(n *fakeNginx) []step {
			return []step{{nil, oldText, none, "", nil, "", m(n, oldText), 0}}
		}},
		{"layout is no change, and comes to the file", oldText, nil, func(n *fakeNginx) []step {
			return []step{
				{nil, "\n" + oldText, none, "", nil, "", m(n, "\n"+oldText), 0},
				{nil, "\n" + oldText, none, "", nil, "", m(n, "\n"+oldText), 0},
			}
		}},
		{"a comment is a change: it may tell that a certificate is another", oldText, nil, func(n *fakeNginx) []step {
			return []step{{nil, "# sum 2\n" + oldText, reload, "comments changed", nil, "", m(n, "# sum 2\n"+oldText), 1}}
		}},
		{"refused: the old file goes back", oldText, nil, func(n *fakeNginx) []step {
			return []step{
				{nil, newText, reload, "", nil, "", m(n, newText), 1},
				{nil, badText, "", "", refused, `refused by nginx: unknown directive "bogus"`, m(n, newText), 2},
				{nil, badText, "", "", refused, `refused by nginx: unknown directive "bogus"`, m(n, newText), 3},
				{nil, newText, none, "", nil, "", m(n, newText), 3},
				{nil, oldText, reload, "", nil, "", m(n, oldText), 4},
			}
		}},
		{"what would serve nothing is not shown to nginx", oldText, nil, func(n *fakeNginx) []step {
			return []step{
				{nil, "", "", "", refused, "no server block", m(n, oldText), 0},
				{nil, "events {}\nhttp { upstream a { server b:80; } }\n", "", "", refused, "no server block", m(n, oldText), 0},
				{nil, "events {\n", "", "", refused, "line 1: events has no }", m(n, oldText), 0},
				{nil, oldText, none, "", nil, "", m(n, oldText), 0},
			}
		}},
		{"a reload that never takes", oldText, soon, func(n *fakeNginx) []step {
			return []step{
				{func(n *fakeNginx) { n.deaf = true }, newText, "", "", refused, "did not load " + n.file + " within 400ms", m(n, oldText), 1},
				{func(n *fakeNginx) { n.deaf = false }, newText, reload, "", nil, "", m(n, newText), 2},
			}
		}},
		{"an address in use, of which nginx says no more than that", oldText, soon, func(n *fakeNginx) []step {
			return []step{{func(n *fakeNginx) {
				n.refuse = func(string) { n.logs("bind() to 0.0.0.0:80 failed (98: Address already in use)") }
			}, newText, "", "", refused, "refused by nginx: bind() to 0.0.0.0:80 failed (98: Address already in use)", m(n, oldText), 1}}
		}},
		{"a reload by a command that fails", oldText, func(o *Options) {
			o.Reload = func(context.Context) error { return errors.New("no such container") }
		}, func(n *fakeNginx) []step {
			return []step{{nil, newText, "", "", unreachable, "no such container", m(n, oldText), 0}}
		}},
		{"nobody to tell", oldText, func(o *Options) { o.Reload = nil }, func(n *fakeNginx) []step {
			return []step{{nil, newText, "", "", unreachable, "cannot be seen from here", m(n, oldText), 0}}
		}},
		{"one that hangs is reported, not waited for", oldText, soon, func(n *fakeNginx) []step {
			return []step{
				{func(n *fakeNginx) { n.hang = true }, newText, "", "", unreachable, "does not answer on " + n.socket + " within 400ms", m(n, oldText), 0},
				{func(n *fakeNginx) { n.hang = false }, newText, reload, "", nil, "", m(n, newText), 1},
			}
		}},
		{"one that hangs as soon as it is told to reload", oldText, soon, func(n *fakeNginx) []step {
			return []step{
				{func(n *fakeNginx) { n.refuse = func(string) { n.hang = true } }, newText, "", "", unreachable, "does not answer on " + n.socket + " within 400ms", m(n, oldText), 1},
			}
		}},
		{"somebody else listens there", oldText, nil, func(n *fakeNginx) []step {
			return []step{
				{func(n *fakeNginx) { n.says = "<h1>It works!</h1>\n" }, newText, "", "", unreachable, "not the nginx that berth configures", m(n, oldText), 0},
				{func(n *fakeNginx) { n.says = "a.b x 1.26" }, newText, "", "", unreachable, "calls its worker", m(n, oldText), 0},
				{func(n *fakeNginx) { n.says = " \n" }, newText, "", "", unreachable, "not the nginx that berth configures", m(n, oldText), 0},
			}
		}},
		{"it runs another text than its file", oldText, nil, func(n *fakeNginx) []step {
			return []step{{func(n *fakeNginx) { write(n.t, n.file, m(n, newText)) }, text(frame, "10.0.0.3:80"), reload, "another configuration than its file", nil, "", m(n, text(frame, "10.0.0.3:80")), 1}}
		}},
		{"the right text in it and not in the file", oldText, nil, func(n *fakeNginx) []step {
			return []step{{func(n *fakeNginx) { write(n.t, n.file, m(n, newText)) }, oldText, none, "", nil, "", m(n, oldText), 0}}
		}},
		{"the right text in the file and not in it", oldText, nil, func(n *fakeNginx) []step {
			return []step{{func(n *fakeNginx) { write(n.t, n.file, m(n, newText)) }, newText, reload, "another configuration than its file", nil, "", m(n, newText), 1}}
		}},
		{"edited behind our back, and maybe loaded", oldText, nil, func(n *fakeNginx) []step {
			edit := func(n *fakeNginx) {
				n.running = strings.Replace(onDisk(n.t, n.file), "keepalive 64", "keepalive 1", 1)
				write(n.t, n.file, n.running)
			}
			return []step{
				{edit, oldText, reload, "not as berth wrote it", nil, "", m(n, oldText), 1},
				{nil, oldText, none, "", nil, "", m(n, oldText), 1},
				{edit, newText, reload, "not as berth wrote it", nil, "", m(n, newText), 2},
				{edit, badText, "", "", refused, "bogus", m(n, newText), 3}, // and not the edited one
			}
		}},
		{"edited behind our back, and nginx does not load the right one", oldText, nil, func(n *fakeNginx) []step {
			return []step{{func(n *fakeNginx) {
				write(n.t, n.file, strings.Replace(onDisk(n.t, n.file), "keepalive 64", "keepalive 1", 1))
				n.refuse = func(string) { n.logs("no, thanks") }
			}, oldText, "", "", refused, "refused by nginx: no, thanks", m(n, oldText), 1}}
		}},
		{"removed behind our back", oldText, nil, func(n *fakeNginx) []step {
			remove := func(n *fakeNginx) { os.Remove(n.file) }
			return []step{
				{remove, oldText, reload, "the configuration file was removed", nil, "", m(n, oldText), 1},
				{remove, newText, reload, "the configuration file was removed", nil, "", m(n, newText), 2},
				{remove, badText, "", "", refused, "bogus", m(n, newText), 3},
			}
		}},
		{"replaced by somebody's own: that is kept, and goes back if ours is refused", oldText, nil, func(n *fakeNginx) []step {
			foreign := func(n *fakeNginx) { write(n.t, n.file, foreignText) }
			return []step{
				{foreign, badText, "", "", refused, "bogus", foreignText, 1},
				{foreign, oldText, reload, "not as berth wrote it", nil, "", m(n, oldText), 2},
			}
		}},
		{"its program refuses", oldText, program(t, knowsNoBogus), func(n *fakeNginx) []step {
			return []step{
				{nil, badText, "", "", refused, `by nginx -t (exit status 1): unknown directive "bogus" in `, m(n, oldText), 0},
				{nil, newText, reload, "", nil, "", m(n, newText), 1},
				{nil, newText, none, "", nil, "", m(n, newText), 1},
			}
		}},
		{"its program hangs", oldText, func(o *Options) { soon(o); program(t, "exec sleep 60")(o) }, func(n *fakeNginx) []step {
			return []step{{nil, newText, "", "", nil, "-t did not finish within 400ms", m(n, oldText), 0}}
		}},
		{"its program is not there", oldText, func(o *Options) { o.Binary = "/nonexistent/nginx" }, func(n *fakeNginx) []step {
			return []step{{nil, newText, "", "", nil, "validate: ", m(n, oldText), 0}}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n := startFake(t, "")
			n.running = n.marked(tt.running)
			write(t, n.file, n.running)
			n.listen()
			if tt.options == nil {
				tt.options = func(*Options) {}
			}
			n.walk(n.proxy(tt.options), tt.steps(n))
		})
	}
}

// A bind that fails is tried again by nginx: it has given up when it says something else.
func TestBindIsTriedAgain(t *testing.T) {
	for _, goesOn := range []bool{false, true} {
		n := startFake(t, "")
		n.running = n.marked(oldText)
		write(t, n.file, n.running)
		n.listen()
		n.refuse = func(string) { n.logs("bind() to 0.0.0.0:80 failed (98: Address already in use)") }
		p := n.proxy()
		n.done.Go(func() {
			for n.log() != 1 {
				time.Sleep(time.Millisecond)
			}
			n.set(func() {
				n.logs("bind() to 0.0.0.0:80 failed (98: Address already in use)")
				if goesOn {
					n.running = onDisk(t, n.file)
				} else {
					n.logs("still could not bind()")
				}
			})
		})
		_, err := p.Apply(t.Context(), onlyText(newText), true)
		if goesOn {
			if err != nil || onDisk(t, n.file) != n.marked(newText) {
				t.Errorf("it could bind at last: %v", err)
			}
			continue
		}
		if !errors.Is(err, proxyctl.ErrRefused) || !strings.Contains(err.Error(), "bind() to 0.0.0.0:80 failed (98: Address already in use)") {
			t.Errorf("error %v", err)
		}
		if n.log() != 3 || onDisk(t, n.file) != n.marked(oldText) {
			t.Errorf("berth did not wait for nginx to give up: %d messages", n.log())
		}
	}
}

// log is how many messages there are.
func (n *fakeNginx) log() int {
	return strings.Count(onDisk(n.t, filepath.Join(filepath.Dir(n.socket), "error.log")), "\n")
}

// Messages of before are not about this reload, and those of workers that go on do not count.
func TestErrorLog(t *testing.T) {
	l := errorLog{path: filepath.Join(t.TempDir(), "error.log")}
	line := func(s string) string { return "2026/01/02 03:04:05 [emerg] 7#7: " + s + "\n" }
	for i, tt := range []struct {
		before, after string
		complaint     string
		final         bool
	}{
		{"", "", "", false},
		{line("old"), "", "", false},
		{line("old"), line("old") + line(`unknown directive "x" in /f:1`) + line("second"), `unknown directive "x" in /f:1`, true},
		{"", line("bind() to [::]:80 failed (98: in use)") + line("bind() to [::]:80 failed (98: in use)"), "bind() to [::]:80 failed (98: in use)", false},
		{"", line("bind() to [::]:80 failed (98: in use)") + line("still could not bind()"), "bind() to [::]:80 failed (98: in use)", true},
		{"", line("io_setup() failed (38: Function not implemented)"), "", false},
		{"", "2026/01/02 03:04:05 [emerg] 7#7: not yet all of", "", false},
		{"", "2026/01/02 03:04:05 [error] 7#7: *1 open() failed\n", "", false},
		{line("a long one that is emptied"), line("new"), "new", true},
	} {
		write(t, l.path, tt.before)
		l.begin()
		write(t, l.path, tt.after)
		if complaint, final := l.refusal(); complaint != tt.complaint || final != tt.final {
			t.Errorf("%d: %q, %v; want %q, %v", i, complaint, final, tt.complaint, tt.final)
		}
	}
	l.path += ".none"
	l.begin()
	if complaint, final := l.refusal(); complaint != "" || final {
		t.Errorf("no log: %q, %v", complaint, final)
	}
}

// An nginx that runs, and has none of berth's configurations, gets it. What it had is kept.
func TestAdopt(t *testing.T) {
	for _, tt := range []struct {
		name    string
		text    string
		unknown []string
		set     func(*fakeNginx)
		says    string // part of the error
		file    string
		loads   int
	}{
		{"at once", newText, nil, nil, "", newText, 1},
		{"refused: what was there goes back", badText, []string{"bogus"}, nil, "no such file", "", 1},
		{"the address is in use: its log is berth's by then", newText, nil, func(n *fakeNginx) {
			n.refuse = func(string) {
				n.logs("bind() to 0.0.0.0:80 failed (98: Address already in use)")
				n.logs("still could not bind()")
			}
		}, "refused by nginx: bind() to", "", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n := startFake(t, "")
			write(t, n.file, foreignText)
			n.running, n.unknown = foreignText, tt.unknown
			if tt.set != nil {
				tt.set(n)
			}
			p := n.proxy(func(o *Options) {
				if tt.says != "" {
					soon(o)
				}
			})
			if _, err := p.Apply(t.Context(), onlyText(tt.text), false); !errors.Is(err, proxyctl.ErrNotYet) || n.loads != 0 {
				t.Errorf("no reload is allowed yet: %v, %d reloads", err, n.loads)
			}
			res, err := p.Apply(t.Context(), onlyText(tt.text), true)
			file := n.marked(tt.text)
			switch {
			case tt.says != "":
				if err == nil || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("%+v, %v; want an error that says %q", res, err, tt.says)
				}
				file = foreignText
			case err != nil || res.Action != proxyctl.Reload || !strings.Contains(res.Reason, "does not have berth's configuration yet") || len(res.Changes) != 1:
				t.Errorf("%+v, %v", res, err)
			}
			if d := cmp.Diff(file, onDisk(t, n.file)); d != "" || n.loads != tt.loads {
				t.Errorf("%d reloads, want %d; the file (-want +got):\n%s", n.loads, tt.loads, d)
			}
			if got := onDisk(t, p.conf.Foreign()); got != foreignText {
				t.Errorf("what was there is kept as %q", got)
			}
			if tt.says != "" {
				return
			}
			if res, err := p.Apply(t.Context(), onlyText(tt.text), true); err != nil || res.Action != proxyctl.None || n.loads != tt.loads {
				t.Errorf("and again: %+v, %v, %d reloads", res, err, n.loads)
			}
		})
	}
}

// An nginx that was just starting with berth's configuration is not told to load another.
func TestStarting(t *testing.T) {
	n := startFake(t, "")
	write(t, n.file, foreignText)
	p := n.proxy(func(o *Options) {
		o.Reload = func(context.Context) error {
			write(t, n.file, n.marked(oldText))
			n.start()
			return nil
		}
	})
	if _, err := p.Apply(t.Context(), onlyText(newText), true); !errors.Is(err, proxyctl.ErrUnreachable) || !strings.Contains(err.Error(), "nginx is starting") {
		t.Errorf("error %v", err)
	}
}

// While nginx is down, what is in its file is what it will start with.
func TestDown(t *testing.T) {
	const (
		noBinary = iota
		binary
		supervised // with a program, and started by berth
	)
	for _, tt := range []struct {
		name  string
		how   int
		there string // "marked" for berth's old text, "doubt" for one that was not judged, beside the good old one
		text  string
		err   error
		says  string
		file  string // "there", "new", "old"
		ready bool   // Prepared is called
		kept  bool   // what was there is kept as somebody else's
	}{
		{"no file", noBinary, "", newText, proxyctl.ErrUnreachable, "no such file", "new", false, false},
		{"no file, and a program", binary, "", newText, proxyctl.ErrUnreachable, "no such file", "new", false, false},
		{"no file, and a bad text", binary, "", badText, proxyctl.ErrRefused, "bogus", "there", false, false},
		{"what nobody judged replaces nothing", noBinary, "marked", newText, proxyctl.ErrUnreachable, "no such file", "there", false, false},
		{"what its program takes replaces", binary, "marked", newText, proxyctl.ErrUnreachable, "no such file", "new", false, false},
		{"what its program refuses does not", binary, "marked", badText, proxyctl.ErrRefused, `unknown directive "bogus"`, "there", false, false},
		{"somebody's file", noBinary, foreignText, newText, proxyctl.ErrUnreachable, "no such file", "there", false, false},
		{"somebody's file, and a program", binary, foreignText, newText, proxyctl.ErrUnreachable, "no such file", "new", false, true},
		{"the same text", noBinary, "marked", oldText, proxyctl.ErrUnreachable, "no such file", "there", false, false},
		{"supervised", supervised, "marked", newText, proxyctl.ErrUnreachable, "no such file", "new", true, false},
		{"supervised, somebody's file", supervised, foreignText, newText, proxyctl.ErrUnreachable, "no such file", "new", true, true},
		{"supervised, a bad text", supervised, "marked", badText, proxyctl.ErrRefused, "bogus", "there", false, false},
		{"supervised, the same", supervised, "marked", oldText, proxyctl.ErrUnreachable, "no such file", "there", true, false},
		{"berth was killed while nginx judged the file", noBinary, "doubt", newText, proxyctl.ErrUnreachable, "no such file", "old", false, false},
		{"and its program takes it", binary, "doubt", newText, proxyctl.ErrUnreachable, "no such file", "new", false, false},
		{"and its program refuses it", binary, "doubt", badText, proxyctl.ErrRefused, "bogus", "old", false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n := startFake(t, "")
			there := tt.there
			switch tt.there {
			case "marked":
				there = n.marked(oldText)
			case "doubt":
				there = n.marked(tt.text)
				write(t, n.file+".good", n.marked(oldText))
			}
			if there != "" {
				write(t, n.file, there)
			}
			ready := false
			p := n.proxy(func(o *Options) {
				o.Reload = nil
				switch tt.how {
				case noBinary:
				default:
					program(t, knowsNoBogus)(o)
				}
				if tt.how == supervised {
					o.Prepared = func() { ready = true }
				}
			})
			p.find = func() (int, error) { return 0, nil }
			for range 2 {
				if _, err := p.Apply(t.Context(), onlyText(tt.text), true); !errors.Is(err, tt.err) || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("error %v, want %v saying %q", err, tt.err, tt.says)
				}
			}
			want := map[string]string{"there": there, "old": n.marked(oldText)}[tt.file]
			switch tt.file {
			case "new":
				want = n.marked(tt.text)
			}
			if d := cmp.Diff(want, onDisk(t, n.file)); d != "" || ready != tt.ready {
				t.Errorf("Prepared was called: %v, want %v; the file (-want +got):\n%s", ready, tt.ready, d)
			}
			if kept := onDisk(t, p.conf.Foreign()) == foreignText; kept != tt.kept {
				t.Errorf("what was there is kept: %v", kept)
			}
			if onDisk(t, p.conf.Good()) != "" {
				t.Error("the copy of the last good text is left behind")
			}
			if tt.err == proxyctl.ErrRefused || there == foreignText && tt.how == noBinary {
				return
			}
			n.start()
			p.opts.Reload = n.reload
			if _, err := p.Apply(t.Context(), onlyText(tt.text), true); err != nil {
				t.Errorf("once nginx is up: %v", err)
			}
		})
	}
}

// A control socket that a killed nginx left behind would keep it from starting. One that is in use stays.
func TestStaleSocket(t *testing.T) {
	n := startFake(t, "")
	write(t, n.file, n.marked(oldText))
	n.start()
	p := n.proxy()
	if _, err := p.Apply(t.Context(), onlyText(oldText), true); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-2 * staleAfter)
	if err := os.Chtimes(n.socket, old, old); err != nil {
		t.Fatal(err)
	}
	if again := p.Tend(t.Context()); again != 0 || removeStale(n.socket) {
		t.Errorf("the socket of an nginx that runs was removed, or is to be in %v", again)
	}
	n.kill()
	if _, err := os.Stat(n.socket); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	if err := os.Chtimes(n.socket, now, now); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Apply(t.Context(), onlyText(oldText), true); !errors.Is(err, proxyctl.ErrUnreachable) {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(n.socket); err != nil {
		t.Error("the socket of an nginx that may be about to listen was removed")
	}
	if err := os.Chtimes(n.socket, old, old); err != nil {
		t.Fatal(err)
	}
	if again := p.Tend(t.Context()); again <= 0 {
		t.Error("nobody looks after the socket any more")
	}
	if _, err := os.Stat(n.socket); err == nil {
		t.Fatal("the socket is there")
	}
	n.start()
	if err := os.Chtimes(n.socket, old, old); err != nil {
		t.Fatal(err)
	}
	p.Tend(t.Context()) // that nginx is up is not known yet
	if _, err := os.Stat(n.socket); err != nil {
		t.Fatal("the socket of an nginx that runs was removed")
	}
	if res, err := p.Apply(t.Context(), onlyText(oldText), true); err != nil || res.Action != proxyctl.None {
		t.Errorf("%+v, %v", res, err)
	}
	if again := p.Tend(t.Context()); again != 0 {
		t.Errorf("again in %v", again)
	}
	if err := os.Remove(n.socket); err != nil {
		t.Fatal(err)
	}
	write(t, n.socket, "a file")
	if err := os.Chtimes(n.socket, old, old); err != nil || removeStale(n.socket) {
		t.Error("what is no socket was removed")
	}
}

// While nginx restarts with berth's own file, nobody tells it to reload.
func TestRestart(t *testing.T) {
	n := startFake(t, "")
	write(t, n.file, n.marked(oldText))
	n.start()
	p := n.proxy()
	if _, err := p.Apply(t.Context(), onlyText(oldText), true); err != nil {
		t.Fatal(err)
	}
	n.kill()
	os.Remove(n.socket)
	for _, text := range []string{oldText, newText} {
		if _, err := p.Apply(t.Context(), onlyText(text), true); !errors.Is(err, proxyctl.ErrUnreachable) {
			t.Errorf("error %v", err)
		}
	}
	if n.loads != 0 || onDisk(t, n.file) != n.marked(oldText) {
		t.Errorf("%d reloads, the file is\n%s", n.loads, onDisk(t, n.file))
	}
	p.down = time.Now().Add(-startTime) // it may run with another file, and never have loaded this one
	n.running = foreignText
	if res, err := p.Apply(t.Context(), onlyText(newText), true); err != nil || res.Action != proxyctl.Reload || n.loads != 1 {
		t.Errorf("%+v, %v, %d reloads", res, err, n.loads)
	}
}

// berth is killed between the new text in the file and nginx's word about it. The next one ends right.
func TestKilled(t *testing.T) {
	third := text(frame, "10.0.0.3:80")
	for _, file := range []string{newText, badText} { // that was not judged
		for _, loaded := range []bool{false, true} { // and nginx has loaded it meanwhile
			for _, next := range []string{oldText, newText, third, badText} {
				if loaded && file == badText {
					continue
				}
				n := startFake(t, "")
				write(t, n.file, n.marked(oldText))
				n.start()
				write(t, n.file+".good", n.marked(oldText))
				write(t, n.file, n.marked(file))
				want := oldText
				if loaded {
					_ = n.reload(t.Context())
					want = newText
				}
				p := n.proxy()
				_, err := p.Apply(t.Context(), onlyText(next), true)
				p.Close()
				what := fmt.Sprintf("bad in the file %v, loaded %v, then bad %v", file == badText, loaded, next == badText)
				if (next == badText) != errors.Is(err, proxyctl.ErrRefused) || next != badText && err != nil {
					t.Errorf("%s: %v", what, err)
				}
				if next != badText {
					want = next
				}
				if d := cmp.Diff(n.marked(want), onDisk(t, n.file)); d != "" || n.running != n.marked(want) {
					t.Errorf("%s: the file (-want +got):\n%s\nnginx runs\n%s", what, d, n.running)
				}
			}
		}
	}
}

// The pace of reloads is the caller's.
func TestNotYet(t *testing.T) {
	n := startFake(t, "")
	write(t, n.file, n.marked(oldText))
	n.start()
	p := n.proxy()
	for range 2 {
		if res, err := p.Apply(t.Context(), onlyText(newText), false); !errors.Is(err, proxyctl.ErrNotYet) || n.loads != 0 {
			t.Errorf("%+v, %v, %d reloads", res, err, n.loads)
		}
		if onDisk(t, n.file) != n.marked(oldText) {
			t.Error("the file has changed")
		}
	}
	if res, err := p.Apply(t.Context(), onlyText(newText), true); err != nil || res.Action != proxyctl.Reload || len(res.Changes) != 1 || res.Changes[0].String() != "app: 1 → 2 servers" {
		t.Errorf("%+v, %v", res, err)
	}
}

func TestCancelledWhileNginxHangs(t *testing.T) {
	n := startFake(t, "")
	write(t, n.file, n.marked(oldText))
	n.start()
	n.hang = true
	p := n.proxy(func(o *Options) { o.Timeout = time.Minute })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, err := p.Apply(ctx, onlyText(newText), true); done <- err }()
	cancel()
	select {
	case err := <-done:
		if err == nil {
			t.Error("no error")
		}
	case <-time.After(20 * time.Second):
		t.Fatal("Apply waits for an nginx that hangs, though it was cancelled")
	}
}

// A failure to write is one line that stays the same, so that it is logged once, and nothing else happens.
func TestUnwritableDirectory(t *testing.T) {
	n := startFake(t, "")
	write(t, n.file, n.marked(oldText))
	n.start()
	p := n.proxy()
	p.conf.Path = filepath.Join(filepath.Dir(n.file), "nosuch", "nginx.conf")
	p.opts.File = p.conf.Path
	_, first := p.Apply(t.Context(), onlyText(newText), true)
	_, second := p.Apply(t.Context(), onlyText(newText), true)
	if first == nil || second == nil || first.Error() != second.Error() || !strings.HasPrefix(first.Error(), "write "+p.conf.Path) || n.loads != 0 {
		t.Errorf("errors that are to be logged once: %v; %v; %d reloads", first, second, n.loads)
	}
}

// The directory of the control socket is made, for nginx and berth alone.
func TestSocketDirectory(t *testing.T) {
	n := startFake(t, "")
	p := n.proxy(func(o *Options) {
		o.Reload = nil
		o.Socket = filepath.Join(filepath.Dir(n.file), "more", "run", "berth.sock")
	})
	if _, err := p.Apply(t.Context(), onlyText(newText), true); !errors.Is(err, proxyctl.ErrUnreachable) {
		t.Errorf("error %v", err)
	}
	if info, err := os.Stat(filepath.Dir(p.opts.Socket)); err != nil || info.Mode().Perm()&0o007 != 0 {
		t.Errorf("%v, %v", info, err)
	}
}

// Where nginx stands and how it is told are two things: several nginx are no reason to tell the wrong one.
func TestSeveralMasters(t *testing.T) {
	n := startFake(t, "")
	write(t, n.file, foreignText)
	p := n.proxy(func(o *Options) { o.Reload = nil })
	several := errors.New("there are 2 nginx master processes here")
	p.find = func() (int, error) { return 0, several }
	if _, err := p.Apply(t.Context(), onlyText(newText), true); !errors.Is(err, several) || onDisk(t, n.file) != foreignText {
		t.Errorf("error %v", err)
	}
}

func TestRunning(t *testing.T) {
	n := startFake(t, "")
	if pid, err := Running(n.socket); pid != 0 || err != nil {
		t.Errorf("no socket: %d, %v", pid, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: n.socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-2 * staleAfter)
	if err := os.Chtimes(n.socket, old, old); err != nil {
		t.Fatal(err)
	}
	if pid, err := Running(n.socket); pid != os.Getpid() || err != nil {
		t.Errorf("%d, %v; want this process", pid, err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if pid, err := Running(n.socket); pid != 0 || err != nil {
		t.Errorf("nobody listens: %d, %v", pid, err)
	}
	if _, err := os.Stat(n.socket); err == nil {
		t.Error("the socket that was left behind is there")
	}
}

// A process that is none of nginx is no master, and is never told anything.
func TestProcesses(t *testing.T) {
	own := os.Getpid()
	if isMaster(own) || isMaster(0) || masterOf(own, own) != 0 || masterOf(0, own) != 0 {
		t.Error("this process is taken for nginx")
	}
	if parent(own) != os.Getppid() || parent(0) != 0 {
		t.Errorf("the parent is %d, want %d", parent(own), os.Getppid())
	}
	if err := hangup(own); !errors.Is(err, proxyctl.ErrUnreachable) {
		t.Errorf("error %v", err)
	}
	if serving, leaving := workers(own); len(serving)+len(leaving) != 0 {
		t.Errorf("workers %d and %d", serving, leaving)
	}
}
