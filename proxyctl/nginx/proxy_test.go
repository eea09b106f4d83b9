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
	badText     = strings.Replace(newText, "keepalive 64;\n", "keepalive 64;\n        bogus on;\n", 1) // it shares nothing with the others
	foreignText = "events {}\nhttp { server { listen 80; } }\n"
)

// step is an Apply with the expected results.
type step struct {
	set    func(*fakeNginx)
	text   string
	action proxyctl.Action
	reason string // part of it
	err    error  // the error wraps it
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
		if took := time.Since(began); errors.Is(s.err, proxyctl.ErrUnreachable) && took > 2*p.driver.opts.Timeout+5*time.Second {
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
		if good := onDisk(n.t, p.driver.opts.File+".good"); good != "" {
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
		running string // text that nginx runs and has in its file
		options func(*Options)
		steps   func(n *fakeNginx) []step
	}{
		{name: "reload, then nothing to do", running: oldText, steps: func(n *fakeNginx) []step {
			return []step{
				{text: newText, action: reload, reason: "upstream app: 1 → 2 servers", file: m(n, newText), loads: 1},
				{text: newText, action: none, file: m(n, newText), loads: 1},
				{text: oldText, action: reload, reason: "upstream app: 2 → 1 server", file: m(n, oldText), loads: 2},
			}
		}},
		{name: "a restart of berth costs no reload", running: oldText, steps: func(n *fakeNginx) []step {
			return []step{{text: oldText, action: none, file: m(n, oldText)}}
		}},
		{name: "layout is no change, and comes to the file", running: oldText, steps: func(n *fakeNginx) []step {
			return []step{
				{text: "\n" + oldText, action: none, file: m(n, "\n"+oldText)},
				{text: "\n" + oldText, action: none, file: m(n, "\n"+oldText)},
			}
		}},
		{name: "a comment is a change: it may tell that a certificate is another", running: oldText, steps: func(n *fakeNginx) []step {
			return []step{{text: "# sum 2\n" + oldText, action: reload, reason: "comments changed", file: m(n, "# sum 2\n"+oldText), loads: 1}}
		}},
		{name: "refused: the old file goes back", running: oldText, steps: func(n *fakeNginx) []step {
			return []step{
				{text: newText, action: reload, file: m(n, newText), loads: 1},
				{text: badText, err: refused, says: `refused by nginx: unknown directive "bogus"`, file: m(n, newText), loads: 2},
				{text: badText, err: refused, says: `refused by nginx: unknown directive "bogus"`, file: m(n, newText), loads: 3},
				{text: newText, action: none, file: m(n, newText), loads: 3},
				{text: oldText, action: reload, file: m(n, oldText), loads: 4},
			}
		}},
		{name: "what would serve nothing is not shown to nginx", running: oldText, steps: func(n *fakeNginx) []step {
			return []step{
				{err: refused, says: "no server block", file: m(n, oldText)},
				{text: "events {}\nhttp { upstream a { server b:80; } }\n", err: refused, says: "no server block", file: m(n, oldText)},
				{text: "events {\n", err: refused, says: "line 1: events has no }", file: m(n, oldText)},
				{text: oldText, action: none, file: m(n, oldText)},
			}
		}},
		{name: "a reload that never takes", running: oldText, options: soon, steps: func(n *fakeNginx) []step {
			return []step{
				{set: func(n *fakeNginx) { n.deaf = true }, text: newText, err: refused, says: "did not load " + n.file + " within 400ms", file: m(n, oldText), loads: 1},
				{set: func(n *fakeNginx) { n.deaf = false }, text: newText, action: reload, file: m(n, newText), loads: 2},
			}
		}},
		{name: "an address in use, of which nginx says no more than that", running: oldText, options: soon, steps: func(n *fakeNginx) []step {
			return []step{{set: func(n *fakeNginx) {
				n.refuse = func(string) { n.logs("bind() to 0.0.0.0:80 failed (98: Address already in use)") }
			}, text: newText, err: refused, says: "refused by nginx: bind() to 0.0.0.0:80 failed (98: Address already in use)", file: m(n, oldText), loads: 1}}
		}},
		{name: "a reload by a command that fails", running: oldText, options: func(o *Options) {
			o.Reload = func(context.Context) error { return errors.New("no such container") }
		}, steps: func(n *fakeNginx) []step {
			return []step{{text: newText, err: unreachable, says: "no such container", file: m(n, oldText)}}
		}},
		{name: "nobody to tell", running: oldText, options: func(o *Options) { o.Reload = nil }, steps: func(n *fakeNginx) []step {
			return []step{{text: newText, err: unreachable, says: "cannot see nginx's master process", file: m(n, oldText)}}
		}},
		{name: "one that hangs is reported, not waited for", running: oldText, options: soon, steps: func(n *fakeNginx) []step {
			return []step{
				{set: func(n *fakeNginx) { n.hang = true }, text: newText, err: unreachable, says: "does not answer on " + n.socket + " within 400ms", file: m(n, oldText)},
				{set: func(n *fakeNginx) { n.hang = false }, text: newText, action: reload, file: m(n, newText), loads: 1},
			}
		}},
		{name: "one that hangs as soon as it is told to reload", running: oldText, options: soon, steps: func(n *fakeNginx) []step {
			return []step{
				{set: func(n *fakeNginx) { n.refuse = func(string) { n.hang = true } }, text: newText, err: unreachable, says: "does not answer on " + n.socket + " within 400ms", file: m(n, oldText), loads: 1},
			}
		}},
		{name: "somebody else listens there", running: oldText, steps: func(n *fakeNginx) []step {
			return []step{
				{set: func(n *fakeNginx) { n.says = "<h1>It works!</h1>\n" }, text: newText, err: unreachable, says: "not the nginx that berth configures", file: m(n, oldText)},
				{set: func(n *fakeNginx) { n.says = "a.b x 1.26" }, text: newText, err: unreachable, says: "reports worker", file: m(n, oldText)},
				{set: func(n *fakeNginx) { n.says = " \n" }, text: newText, err: unreachable, says: "not the nginx that berth configures", file: m(n, oldText)},
			}
		}},
		{name: "it runs another text than its file", running: oldText, steps: func(n *fakeNginx) []step {
			return []step{{set: func(n *fakeNginx) { write(n.t, n.file, m(n, newText)) }, text: text(frame, "10.0.0.3:80"), action: reload, reason: "does not run the configuration in its file", file: m(n, text(frame, "10.0.0.3:80")), loads: 1}}
		}},
		{name: "the right text in it and not in the file", running: oldText, steps: func(n *fakeNginx) []step {
			return []step{{set: func(n *fakeNginx) { write(n.t, n.file, m(n, newText)) }, text: oldText, action: none, file: m(n, oldText)}}
		}},
		{name: "the right text in the file and not in it", running: oldText, steps: func(n *fakeNginx) []step {
			return []step{{set: func(n *fakeNginx) { write(n.t, n.file, m(n, newText)) }, text: newText, action: reload, reason: "does not run the configuration in its file", file: m(n, newText), loads: 1}}
		}},
		{name: "edited behind our back, and maybe loaded", running: oldText, steps: func(n *fakeNginx) []step {
			edit := func(n *fakeNginx) {
				n.running = strings.Replace(onDisk(n.t, n.file), "keepalive 64", "keepalive 1", 1)
				write(n.t, n.file, n.running)
			}
			return []step{
				{set: edit, text: oldText, action: reload, reason: "not as berth wrote it", file: m(n, oldText), loads: 1},
				{text: oldText, action: none, file: m(n, oldText), loads: 1},
				{set: edit, text: newText, action: reload, reason: "not as berth wrote it", file: m(n, newText), loads: 2},
				{set: edit, text: badText, err: refused, says: "bogus", file: m(n, newText), loads: 3}, // and not the edited one
			}
		}},
		{name: "edited behind our back, and nginx does not load the right one", running: oldText, steps: func(n *fakeNginx) []step {
			return []step{{set: func(n *fakeNginx) {
				write(n.t, n.file, strings.Replace(onDisk(n.t, n.file), "keepalive 64", "keepalive 1", 1))
				n.refuse = func(string) { n.logs("no, thanks") }
			}, text: oldText, err: refused, says: "refused by nginx: no, thanks", file: m(n, oldText), loads: 1}}
		}},
		{name: "removed behind our back", running: oldText, steps: func(n *fakeNginx) []step {
			remove := func(n *fakeNginx) { os.Remove(n.file) }
			return []step{
				{set: remove, text: oldText, action: reload, reason: "the configuration file was removed", file: m(n, oldText), loads: 1},
				{set: remove, text: newText, action: reload, reason: "the configuration file was removed", file: m(n, newText), loads: 2},
				{set: remove, text: badText, err: refused, says: "bogus", file: m(n, newText), loads: 3},
			}
		}},
		{name: "replaced by somebody's own: that is kept, and goes back if ours is refused", running: oldText, steps: func(n *fakeNginx) []step {
			foreign := func(n *fakeNginx) { write(n.t, n.file, foreignText) }
			return []step{
				{set: foreign, text: badText, err: refused, says: "bogus", file: foreignText, loads: 1},
				{set: foreign, text: oldText, action: reload, reason: "not as berth wrote it", file: m(n, oldText), loads: 2},
			}
		}},
		{name: "its program refuses", running: oldText, options: program(t, knowsNoBogus), steps: func(n *fakeNginx) []step {
			return []step{
				{text: badText, err: refused, says: `by nginx -t (exit status 1): unknown directive "bogus" in `, file: m(n, oldText)},
				{text: newText, action: reload, file: m(n, newText), loads: 1},
				{text: newText, action: none, file: m(n, newText), loads: 1},
			}
		}},
		{name: "its program hangs", running: oldText, options: func(o *Options) { soon(o); program(t, "exec sleep 60")(o) }, steps: func(n *fakeNginx) []step {
			return []step{{text: newText, says: "-t did not finish within 400ms", file: m(n, oldText)}}
		}},
		{name: "its program is not there", running: oldText, options: func(o *Options) { o.Binary = "/nonexistent/nginx" }, steps: func(n *fakeNginx) []step {
			return []step{{text: newText, says: "validate: ", file: m(n, oldText)}}
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

// nginx retries a failed bind; it has given up when it logs something else.
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

// log returns the number of messages.
func (n *fakeNginx) log() int {
	return strings.Count(onDisk(n.t, filepath.Join(filepath.Dir(n.socket), "error.log")), "\n")
}

// Earlier messages are not about this reload, and messages of workers that go on do not count.
func TestErrorLog(t *testing.T) {
	l := errorLog{path: filepath.Join(t.TempDir(), "error.log")}
	line := func(s string) string { return "2026/01/02 03:04:05 [emerg] 7#7: " + s + "\n" }
	for i, tt := range []struct {
		before, after string
		complaint     string
		final         bool
	}{
		{before: ""},
		{before: line("old")},
		{before: line("old"), after: line("old") + line(`unknown directive "x" in /f:1`) + line("second"), complaint: `unknown directive "x" in /f:1`, final: true},
		{before: "", after: line("bind() to [::]:80 failed (98: in use)") + line("bind() to [::]:80 failed (98: in use)"), complaint: "bind() to [::]:80 failed (98: in use)"},
		{before: "", after: line("bind() to [::]:80 failed (98: in use)") + line("still could not bind()"), complaint: "bind() to [::]:80 failed (98: in use)", final: true},
		{before: "", after: line("io_setup() failed (38: Function not implemented)")},
		{before: "", after: "2026/01/02 03:04:05 [emerg] 7#7: not yet all of"},
		{before: "", after: "2026/01/02 03:04:05 [error] 7#7: *1 open() failed\n"},
		{before: line("a long one that is emptied"), after: line("new"), complaint: "new", final: true},
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

// A running nginx that has no configuration of berth's gets it. Its own is kept.
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
		{name: "at once", text: newText, file: newText, loads: 1},
		{name: "refused: what was there goes back", text: badText, unknown: []string{"bogus"}, says: "no such file", loads: 1},
		{name: "the address is in use: its log is berth's by then", text: newText, set: func(n *fakeNginx) {
			n.refuse = func(string) {
				n.logs("bind() to 0.0.0.0:80 failed (98: Address already in use)")
				n.logs("still could not bind()")
			}
		}, says: "refused by nginx: bind() to", loads: 1},
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
			if got := onDisk(t, p.driver.opts.File+".before-berth"); got != foreignText {
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

// While nginx is down, its file has the text it will start with.
func TestDown(t *testing.T) {
	const (
		noBinary = iota
		binary
		supervised // with a program, and started by berth
	)
	for _, tt := range []struct {
		name  string
		how   int
		there string // "marked" for berth's old text, "doubt" for one that was not judged, next to the good old one
		text  string
		err   error
		says  string
		file  string // "there", "new", "old"
		ready bool   // Prepared is called
		kept  bool   // the old file is kept as a foreign one
	}{
		{name: "no file", how: noBinary, text: newText, err: proxyctl.ErrUnreachable, says: "no such file", file: "new"},
		{name: "no file, and a program", how: binary, text: newText, err: proxyctl.ErrUnreachable, says: "no such file", file: "new"},
		{name: "no file, and a bad text", how: binary, text: badText, err: proxyctl.ErrRefused, says: "bogus", file: "there"},
		{name: "what nobody judged replaces nothing", how: noBinary, there: "marked", text: newText, err: proxyctl.ErrUnreachable, says: "no such file", file: "there"},
		{name: "what its program takes replaces", how: binary, there: "marked", text: newText, err: proxyctl.ErrUnreachable, says: "no such file", file: "new"},
		{name: "what its program refuses does not", how: binary, there: "marked", text: badText, err: proxyctl.ErrRefused, says: `unknown directive "bogus"`, file: "there"},
		{name: "somebody's file", how: noBinary, there: foreignText, text: newText, err: proxyctl.ErrUnreachable, says: "no such file", file: "there"},
		{name: "somebody's file, and a program", how: binary, there: foreignText, text: newText, err: proxyctl.ErrUnreachable, says: "no such file", file: "new", kept: true},
		{name: "the same text", how: noBinary, there: "marked", text: oldText, err: proxyctl.ErrUnreachable, says: "no such file", file: "there"},
		{name: "supervised", how: supervised, there: "marked", text: newText, err: proxyctl.ErrUnreachable, says: "no such file", file: "new", ready: true},
		{name: "supervised, somebody's file", how: supervised, there: foreignText, text: newText, err: proxyctl.ErrUnreachable, says: "no such file", file: "new", ready: true, kept: true},
		{name: "supervised, a bad text", how: supervised, there: "marked", text: badText, err: proxyctl.ErrRefused, says: "bogus", file: "there"},
		{name: "supervised, the same", how: supervised, there: "marked", text: oldText, err: proxyctl.ErrUnreachable, says: "no such file", file: "there", ready: true},
		{name: "berth was killed while nginx judged the file", how: noBinary, there: "doubt", text: newText, err: proxyctl.ErrUnreachable, says: "no such file", file: "old"},
		{name: "and its program takes it", how: binary, there: "doubt", text: newText, err: proxyctl.ErrUnreachable, says: "no such file", file: "new"},
		{name: "and its program refuses it", how: binary, there: "doubt", text: badText, err: proxyctl.ErrRefused, says: "bogus", file: "old"},
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
			p.driver.findMaster = func() (int, error) { return 0, nil }
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
			if kept := onDisk(t, p.driver.opts.File+".before-berth") == foreignText; kept != tt.kept {
				t.Errorf("what was there is kept: %v", kept)
			}
			if onDisk(t, p.driver.opts.File+".good") != "" {
				t.Error("the copy of the last good text is left behind")
			}
			if tt.err == proxyctl.ErrRefused || there == foreignText && tt.how == noBinary {
				return
			}
			n.start()
			p.driver.opts.Reload = n.reload
			if _, err := p.Apply(t.Context(), onlyText(tt.text), true); err != nil {
				t.Errorf("once nginx is up: %v", err)
			}
		})
	}
}

// A control socket left behind by a killed nginx would keep it from starting. A socket in use stays.
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
	if again := p.driver.Tend(t.Context()); again != 0 || removeStale(n.socket) {
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
	if again := p.driver.Tend(t.Context()); again <= 0 {
		t.Error("nobody looks after the socket any more")
	}
	if _, err := os.Stat(n.socket); err == nil {
		t.Fatal("the socket is there")
	}
	n.start()
	if err := os.Chtimes(n.socket, old, old); err != nil {
		t.Fatal(err)
	}
	p.driver.Tend(t.Context()) // it is not known yet that nginx is up
	if _, err := os.Stat(n.socket); err != nil {
		t.Fatal("the socket of an nginx that runs was removed")
	}
	if res, err := p.Apply(t.Context(), onlyText(oldText), true); err != nil || res.Action != proxyctl.None {
		t.Errorf("%+v, %v", res, err)
	}
	if again := p.driver.Tend(t.Context()); again != 0 {
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

// While nginx restarts with berth's own file, it is not told to reload.
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
	p.driver.away = time.Now().Add(-startTime) // it may run with another file, and never have loaded this one
	n.running = foreignText
	if res, err := p.Apply(t.Context(), onlyText(newText), true); err != nil || res.Action != proxyctl.Reload || n.loads != 1 {
		t.Errorf("%+v, %v, %d reloads", res, err, n.loads)
	}
}

// berth is killed after it wrote the new text and before nginx judged it. The next berth ends in the right state.
func TestKilled(t *testing.T) {
	third := text(frame, "10.0.0.3:80")
	for _, file := range []string{newText, badText} { // the one that was not judged
		for _, loaded := range []bool{false, true} { // whether nginx has loaded it meanwhile
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

// The caller sets the pace of reloads.
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

// A write failure is one line that stays the same, so that it is logged once, and nothing else happens.
func TestUnwritableDirectory(t *testing.T) {
	n := startFake(t, "")
	write(t, n.file, n.marked(oldText))
	n.start()
	path := filepath.Join(filepath.Dir(n.file), "nosuch", "nginx.conf")
	p := n.proxy(func(o *Options) { o.File = path })
	_, first := p.Apply(t.Context(), onlyText(newText), true)
	_, second := p.Apply(t.Context(), onlyText(newText), true)
	if first == nil || second == nil || first.Error() != second.Error() || !strings.HasPrefix(first.Error(), "write "+path) || n.loads != 0 {
		t.Errorf("errors that are to be logged once: %v; %v; %d reloads", first, second, n.loads)
	}
}

// The directory of the control socket is created, accessible only to nginx and berth.
func TestSocketDirectory(t *testing.T) {
	n := startFake(t, "")
	p := n.proxy(func(o *Options) {
		o.Reload = nil
		o.Socket = filepath.Join(filepath.Dir(n.file), "more", "run", "berth.sock")
	})
	if _, err := p.Apply(t.Context(), onlyText(newText), true); !errors.Is(err, proxyctl.ErrUnreachable) {
		t.Errorf("error %v", err)
	}
	if info, err := os.Stat(filepath.Dir(p.driver.opts.Socket)); err != nil || info.Mode().Perm()&0o007 != 0 {
		t.Errorf("%v, %v", info, err)
	}
}

// If berth cannot tell which nginx to reload, it changes nothing.
func TestSeveralMasters(t *testing.T) {
	n := startFake(t, "")
	write(t, n.file, foreignText)
	p := n.proxy(func(o *Options) { o.Reload = nil })
	several := errors.New("there are 2 nginx master processes here")
	p.driver.findMaster = func() (int, error) { return 0, several }
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

// A process that is not nginx's is no master, and is never told anything.
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
