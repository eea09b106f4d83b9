package nginx

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth/proxyctl"
)

// Texts for nginx 1.27.4 and later, and for older ones.
var (
	plainText = newText
	fullText  = strings.Replace(newText, "http {\n", "http {\n    bogus on;\n", 1)
)

// templates stands for the templates: what they render depends on the known version.
type templates struct {
	version string
	calls   int
	mute    bool   // no other text comes
	more    string // is also in all of them
}

func (r *templates) text() string {
	if proxyctl.AtLeast(r.version, "1.27.4") && !r.mute {
		return r.more + fullText
	}
	return r.more + plainText
}

func (r *templates) set(version string) (rendered bool) {
	before := proxyctl.AtLeast(r.version, "1.27.4")
	r.version = version
	r.calls++
	return before != proxyctl.AtLeast(version, "1.27.4")
}

// bring applies rendered texts until no other one comes.
func (r *templates) bring(t *testing.T, p *Proxy) (proxyctl.Result, error) {
	t.Helper()
	for range 5 {
		text := r.text()
		res, err := p.Apply(t.Context(), onlyText(text), true)
		if text == r.text() {
			return res, err
		}
	}
	t.Fatal("the text changes back and forth")
	return proxyctl.Result{}, nil
}

// ofVersion makes a program of a version, which knows what that version knows.
func ofVersion(t *testing.T, version string) func(*Options) {
	script := `if [ "$1" = -v ]; then echo "nginx version: nginx/` + version + `" >&2; exit; fi; `
	if !proxyctl.AtLeast(version, "1.27.4") {
		script += knowsNoBogus
	}
	return program(t, script)
}

// An older nginx never gets what it does not know, a newer one gets everything, and neither takes an unnecessary reload.
func TestVersions(t *testing.T) {
	const older, newer = "1.26.3", "1.30.0"
	for _, tt := range []struct {
		name    string
		there   string // the text that nginx runs, or "foreign"
		version string // of nginx
		program string // the version of the available program
		known   string // what the templates know at first
		loads   int
		file    string
	}{
		{
			name:    "a newer one with a text for an older one",
			there:   plainText,
			version: newer,
			loads:   1,
			file:    fullText,
		},
		{
			name:    "berth starts beside a newer one",
			there:   fullText,
			version: newer,
			file:    fullText,
		},
		{
			name:    "berth starts beside a newer one, and has asked it",
			there:   fullText,
			version: newer,
			known:   newer,
			file:    fullText,
		},
		{
			name:    "berth starts beside an older one",
			there:   plainText,
			version: older,
			file:    plainText,
		},
		{
			name:    "an older one is adopted",
			there:   foreignText,
			version: older,
			loads:   1,
			file:    plainText,
		},
		{
			name:    "a newer one is adopted",
			there:   foreignText,
			version: newer,
			loads:   2,
			file:    fullText,
		},
		{
			name:    "a newer one is adopted, and its program is here",
			there:   foreignText,
			version: newer,
			program: newer,
			loads:   1,
			file:    fullText,
		},
		{
			name:    "its program was replaced by a newer one",
			there:   oldText,
			version: older,
			program: newer,
			loads:   1,
			file:    plainText,
		},
		{
			name:    "its program was replaced by an older one",
			there:   oldText,
			version: newer,
			program: older,
			loads:   1,
			file:    plainText,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n := startFake(t, "")
			n.version = tt.version
			if proxyctl.AtLeast(tt.version, "1.27.4") {
				n.unknown = nil
			}
			text := tt.there
			if text != foreignText {
				text = n.marked(text)
			}
			write(t, n.file, text)
			n.start()
			r := &templates{version: tt.known}
			p := n.proxy(func(o *Options) {
				o.Version = r.set
				if tt.program != "" {
					ofVersion(t, tt.program)(o)
				}
			})
			if _, err := r.bring(t, p); err != nil {
				t.Error(err)
			}
			if d := cmp.Diff(n.marked(tt.file), onDisk(t, n.file)); d != "" || n.running != n.marked(tt.file) || n.loads != tt.loads {
				t.Errorf("%d reloads, want %d; the file (-want +got):\n%s", n.loads, tt.loads, d)
			}
			calls := r.calls
			if res, err := r.bring(t, p); err != nil || res.Action != proxyctl.None || r.calls != calls {
				t.Errorf("and again: %+v, %v, told %d times", res, err, r.calls-calls)
			}
		})
	}
}

// nginx is replaced by another version, and starts with what that one knows.
func TestVersionChanges(t *testing.T) {
	const older, newer = "1.26.3", "1.30.0"
	for _, tt := range []struct {
		name          string
		before, after string // versions
		program       bool   // is available
		restarted     bool   // berth, too
		more          bool   // and there is more to serve by then
		file          string // that nginx should find while it is down
		long          bool   // after a while
		loads         int    // once it is up
	}{
		{
			name:   "by a newer one",
			before: older,
			after:  newer,
			file:   plainText,
			loads:  1,
		},
		{
			name:   "by an older one",
			before: newer,
			after:  older,
			file:   plainText,
			long:   true,
		},
		{
			name:   "by an older one, just now: it may only restart",
			before: newer,
			after:  newer,
			file:   fullText,
		},
		{
			name:    "by an older one whose program is here",
			before:  newer,
			after:   older,
			program: true,
			file:    plainText,
		},
		{
			name:      "and berth, too",
			before:    newer,
			after:     older,
			restarted: true,
			file:      plainText,
			long:      true,
		},
		{
			name:      "and berth, too, with its program",
			before:    newer,
			after:     older,
			program:   true,
			restarted: true,
			file:      plainText,
		},
		{
			name:   "what nobody has judged replaces nothing, also after a while",
			before: newer,
			after:  newer,
			more:   true,
			file:   fullText,
			long:   true,
			loads:  1,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n := startFake(t, "")
			know := func(version string) {
				n.version, n.unknown = version, nil
				if !proxyctl.AtLeast(version, "1.27.4") {
					n.unknown = []string{"bogus"}
				}
			}
			know(tt.before)
			r := &templates{version: tt.before}
			write(t, n.file, n.marked(r.text()))
			n.start()
			set := func(o *Options) {
				o.Version = r.set
				if tt.program {
					ofVersion(t, tt.before)(o)
				}
			}
			p := n.proxy(set)
			if _, err := r.bring(t, p); err != nil || n.loads != 0 {
				t.Fatalf("at first: %v, %d reloads", err, n.loads)
			}
			n.kill()
			os.Remove(n.socket)
			if tt.program {
				time.Sleep(2 * time.Millisecond) // so that the program's file has another time
				ofVersion(t, tt.after)(&p.driver.opts)
				p.driver.version.Binary = p.driver.opts.Binary
			}
			if tt.restarted {
				p.Close()
				binary := p.driver.opts.Binary
				*r = templates{}
				p = n.proxy(set, func(o *Options) { o.Binary = binary })
			}
			if tt.more {
				r.more = "worker_rlimit_nofile 9;\n"
			}
			p.driver.opts.Reload = nil // there is no nginx to tell
			for range 2 {
				if _, err := r.bring(t, p); !errors.Is(err, proxyctl.ErrUnreachable) {
					t.Errorf("while it is down: %v", err)
				}
				if tt.long {
					p.driver.away = time.Now().Add(-2 * startTime)
				}
			}
			if d := cmp.Diff(n.marked(tt.file), onDisk(t, n.file)); d != "" {
				t.Errorf("while it is down, the file (-want +got):\n%s", d)
			}
			know(tt.after)
			n.start()
			p.driver.opts.Reload = n.reload
			if _, err := r.bring(t, p); err != nil || n.loads != tt.loads {
				t.Errorf("when it is up: %v, %d reloads, want %d", err, n.loads, tt.loads)
			}
		})
	}
}

// If no other text comes for a version, the current one is applied after all.
func TestNoTextForVersion(t *testing.T) {
	n := startFake(t, "")
	n.version = "1.30.0"
	write(t, n.file, n.marked(oldText))
	n.start()
	r := &templates{mute: true}
	p := n.proxy(func(o *Options) { o.Version = r.set })
	if _, err := p.Apply(t.Context(), onlyText(plainText), true); !errors.Is(err, proxyctl.ErrUnreachable) || !strings.Contains(err.Error(), "being rendered for its version (1.30.0)") || n.loads != 0 {
		t.Errorf("%v, %d reloads", err, n.loads)
	}
	p.driver.version.Rendered()
	if res, err := p.Apply(t.Context(), onlyText(plainText), true); err != nil || res.Action != proxyctl.Reload {
		t.Errorf("%+v, %v", res, err)
	}
}

func TestIsLessThan(t *testing.T) {
	const all = `events {}
http {
    keepalive_min_timeout 10s;
    upstream app { server 10.0.0.1:80; keepalive 64; }
    server { listen 80; http2 on; location / { proxy_pass http://app; } }
}
stream { server { listen 5432; } }
`
	for name, tt := range map[string]struct {
		before, after string
		want          bool
	}{
		"the same":                     {before: "", want: true},
		"a directive less":             {before: "    keepalive_min_timeout 10s;\n", want: true},
		"one less in a server":         {before: " http2 on;", want: true},
		"a block less":                 {before: "stream { server { listen 5432; } }\n", want: true},
		"other servers":                {before: "server 10.0.0.1:80;", after: "server 10.0.0.2:80; server 10.0.0.3:80 weight=2;", want: true},
		"servers with names":           {before: "server 10.0.0.1:80;", after: "server db.example:80;"},
		"no servers":                   {before: "server 10.0.0.1:80;"},
		"another directive":            {before: "keepalive_min_timeout 10s", after: "keepalive_timeout 10s"},
		"another argument":             {before: "listen 80", after: "listen 81"},
		"another listener":             {before: "listen 5432;", after: "listen 5432; listen 5433;"},
		"another order":                {before: "listen 80; http2 on;", after: "http2 on; listen 80;"},
		"a server that serves is more": {before: "stream {", after: "stream { server { listen 5433; }"},
	} {
		if got := mustParse(t, strings.Replace(all, tt.before, tt.after, 1)).isLessThan(mustParse(t, all)); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if mustParse(t, all).isLessThan(nil) {
		t.Error("less than nothing")
	}
}
