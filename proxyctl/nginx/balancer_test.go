package nginx

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth/proxyctl"
)

// lua is a text with a Lua balancer that has these servers.
func lua(servers ...string) string { return text(luaFrame, servers...) }

// posted is what its balancer should have.
func posted(servers ...string) string {
	var b strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&b, "app %s 1\n", s)
	}
	return b.String()
}

// startLua starts an nginx with a Lua balancer of one server.
func startLua(t *testing.T, set ...func(*Options)) (*fakeNginx, *Proxy) {
	n := startFake(t, "")
	write(t, n.file, n.marked(lua("10.0.0.1:80")))
	n.start()
	p := n.proxy(set...)
	if _, err := p.Apply(t.Context(), onlyText(lua("10.0.0.1:80")), true); err != nil {
		t.Fatal(err)
	}
	return n, p
}

// holding is a text whose upstream has a hold.
func holding(text string) string {
	return strings.Replace(text, "upstream app {\n", "upstream app {\n        # hold 30000\n", 1)
}

// luaStep is an Apply to an nginx with a Lua balancer, with the expected results.
type luaStep struct {
	set    func(*fakeNginx)
	text   string
	action proxyctl.Action
	says   string // part of the reason, or of the error
	err    error
	loads  int    // reloads so far
	dict   string // what the balancers have afterwards
	file   string // the text in the file
}

func TestLua(t *testing.T) {
	one, two, three := lua("10.0.0.1:80"), lua("10.0.0.1:80", "10.0.0.2:80"), lua("10.0.0.3:80")
	inOne, inTwo, inThree := posted("10.0.0.1:80"), posted("10.0.0.1:80", "10.0.0.2:80"), posted("10.0.0.3:80")
	other := strings.Replace(three, "keepalive 64", "keepalive 65", 1)
	const none, runtime, reload = proxyctl.None, proxyctl.Runtime, proxyctl.Reload
	refused, unreachable := proxyctl.ErrRefused, proxyctl.ErrUnreachable
	bad := func(text string) string { return strings.Replace(text, "http {\n", "http {\n    bogus on;\n", 1) }
	for _, tt := range []struct {
		name  string
		set   func(*Options)
		steps []luaStep
	}{
		{name: "servers come and go without a reload", steps: []luaStep{
			{text: one, action: none, dict: inOne, file: one},
			{text: two, action: runtime, says: "servers of the Lua balancer", dict: inTwo, file: two},
			{text: two, action: none, dict: inTwo, file: two},
			{text: lua("10.0.0.1:80 max_fails=9", "10.0.0.2:80"), action: none, dict: inTwo, file: lua("10.0.0.1:80 max_fails=9", "10.0.0.2:80")},
			{text: lua("127.0.0.1:1 down"), action: runtime, dict: "app\n", file: lua("127.0.0.1:1 down")},
			{text: three, action: runtime, dict: inThree, file: three},
			{text: other, action: reload, says: "keepalive changed", loads: 1, dict: inThree, file: other},
			{text: lua("db.example:80"), action: reload, says: "upstream app: 1 server, 1 replaced", loads: 2, dict: inThree, file: lua("db.example:80")},
			{text: three, action: reload, says: "upstream app: 1 server, 1 replaced", loads: 3, dict: inThree, file: three},
		}},
		{name: "for how long requests wait changes without a reload", steps: []luaStep{
			{text: holding(one), action: runtime, says: "servers of the Lua balancer", dict: "app hold 30000\n" + inOne, file: holding(one)},
			{text: holding(two), action: runtime, dict: "app hold 30000\n" + inTwo, file: holding(two)},
			{text: holding(lua("127.0.0.1:1 down")), action: runtime, dict: "app hold 30000\n", file: holding(lua("127.0.0.1:1 down"))},
			{text: two, action: runtime, dict: inTwo, file: two},
		}},
		{name: "other servers than it was given", steps: []luaStep{
			{text: two, action: runtime, dict: inTwo, file: two},
			{set: func(n *fakeNginx) { n.dict = inThree }, text: two, action: runtime, dict: inTwo, file: two},
			{set: func(n *fakeNginx) { n.dict = inTwo + "gone 10.0.0.9:80 1\n" }, text: two, action: runtime, dict: inTwo, file: two},
			{set: func(n *fakeNginx) { n.dict = "" }, text: two, action: runtime, dict: inTwo, file: two},
		}},
		{name: "no room: those in the file serve", steps: []luaStep{
			{set: func(n *fakeNginx) { n.room = 20 }, text: two, action: reload, says: "the dictionary is too small", loads: 1, file: two},
			{text: two, action: none, loads: 1, file: two},
			{text: three, action: runtime, loads: 1, dict: inThree, file: three},
			{text: two, action: runtime, loads: 1, file: two},                                               // nginx has loaded these
			{set: func(n *fakeNginx) { n.dict = inThree }, text: two, action: runtime, loads: 1, file: two}, // someone else's, and must not serve
			{text: lua("10.0.0.5:80", "10.0.0.6:80"), action: reload, says: "nginx answers 507: the dictionary is too small", loads: 2, file: lua("10.0.0.5:80", "10.0.0.6:80")},
			{set: func(n *fakeNginx) { n.room = 0 }, text: two, action: runtime, loads: 2, dict: inTwo, file: two},
		}},
		{name: "an answer of its own: nothing is left to do but a reload, which fails, too", steps: []luaStep{
			{set: func(n *fakeNginx) { n.status = http.StatusInternalServerError }, text: two, says: "nginx answers 500: no, thanks", err: refused, loads: 2, dict: inOne, file: one},
			{set: func(n *fakeNginx) { n.status = http.StatusBadRequest }, text: two, says: "nginx answers 400: no, thanks", err: refused, loads: 4, dict: inOne, file: one},
			{text: one, says: "refuses its servers: nginx answers 400", loads: 4, dict: inOne, file: one},
			{set: func(n *fakeNginx) { n.status = 0 }, text: two, action: runtime, loads: 4, dict: inTwo, file: two},
		}},
		{name: "a balancer that does not work: what was there is loaded again, with its servers", steps: []luaStep{
			{text: two, action: runtime, dict: inTwo, file: two},
			{set: func(n *fakeNginx) {
				n.broken = func(text string) bool { return strings.Contains(text, "keepalive 65") }
			}, text: other, says: "its Lua balancer does not work: nginx answers 500", err: refused, loads: 2, dict: inTwo, file: two},
			{text: two, action: none, loads: 2, dict: inTwo, file: two},
			{text: three, action: runtime, loads: 2, dict: inThree, file: three},
		}},
		{name: "with another memory, which does not work either", steps: []luaStep{
			{text: two, action: runtime, dict: inTwo, file: two},
			{set: func(n *fakeNginx) { n.broken = func(text string) bool { return strings.Contains(text, " 2m;") } },
				text: strings.Replace(two, " 1m;", " 2m;", 1), says: "its Lua balancer does not work", err: refused, loads: 2, dict: inTwo, file: two},
			{set: func(n *fakeNginx) { n.broken = nil }, text: strings.Replace(three, " 1m;", " 2m;", 1), says: "its Lua balancer does not work", err: refused, loads: 2, dict: inThree, file: three}, // only servers differ: it is too early
			{text: strings.Replace(three, " 1m;", " 2m;", 1), action: reload, says: "lua_shared_dict changed", loads: 3, dict: inThree, file: strings.Replace(three, " 1m;", " 2m;", 1)},
		}},
		{name: "a refused text: servers come all the same", steps: []luaStep{
			{text: bad(two), says: "bogus", err: refused, loads: 1, dict: inTwo, file: two},
			{text: bad(three), says: "bogus", err: refused, loads: 1, dict: inThree, file: three}, // only servers differ: it is too early
			{text: bad(three), says: "bogus", err: refused, loads: 2, dict: inThree, file: three},
			{text: two, action: runtime, loads: 2, dict: inTwo, file: two},
		}},
		{name: "workers that cannot connect to the control socket: the balancer works", steps: []luaStep{
			{set: func(n *fakeNginx) { n.apart = true }, text: other, action: reload, loads: 1, dict: inThree, file: other},
		}},
		{name: "a restart: the balancers are empty, and the file's serve until they have theirs", steps: []luaStep{
			{text: two, action: runtime, dict: inTwo, file: two},
			{set: func(n *fakeNginx) { n.dict, n.worker = "", n.worker+1 }, text: two, action: runtime, dict: inTwo, file: two},
			{set: func(n *fakeNginx) { n.dict, n.running = "", onDisk(n.t, n.file) }, text: three, action: runtime, dict: inThree, file: three},
		}},
		{name: "the file is not as berth wrote it", steps: []luaStep{
			{text: two, action: runtime, dict: inTwo, file: two},
			{set: func(n *fakeNginx) { os.Remove(n.file) }, text: two, action: reload, says: "removed", loads: 1, dict: inTwo, file: two},
			{set: func(n *fakeNginx) {
				write(n.t, n.file, strings.Replace(onDisk(n.t, n.file), "10.0.0.2", "10.0.0.7", 1))
			}, text: two, action: reload, says: "not as berth wrote it", loads: 2, dict: inTwo, file: two},
			{set: func(n *fakeNginx) { write(n.t, n.file, n.marked(one)) }, text: two, action: none, loads: 2, dict: inTwo, file: two},
		}},
		{name: "it hangs", set: soon, steps: []luaStep{
			{set: func(n *fakeNginx) { n.hang = true }, text: two, says: "does not answer", err: unreachable, dict: inOne, file: one},
			{set: func(n *fakeNginx) { n.hang = false }, text: two, action: runtime, dict: inTwo, file: two},
		}},
		{name: "by reloads only", set: func(o *Options) { o.ReloadOnly = true }, steps: []luaStep{
			{text: one, action: none, file: one},
			{text: two, action: reload, says: "upstream app: 1 → 2 servers", loads: 1, file: two},
			{text: two, action: none, loads: 1, file: two},
			{set: func(n *fakeNginx) { n.dict = inOne }, text: two, action: runtime, loads: 1, file: two}, // of an earlier berth
			{text: lua("127.0.0.1:1 down"), action: reload, says: "upstream app: 2 → 0 servers", loads: 2, file: lua("127.0.0.1:1 down")},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			set := tt.set
			if set == nil {
				set = func(*Options) {}
			}
			n, p := startLua(t, set)
			for i, s := range tt.steps {
				if s.set != nil {
					n.set(func() { s.set(n) })
				}
				res, err := p.Apply(t.Context(), onlyText(s.text), true)
				p.Close()
				p.driver.Tend(t.Context())
				says := res.Reason
				if err != nil {
					says = err.Error()
				}
				if (err != nil) != (s.action == "") || s.err != nil && !errors.Is(err, s.err) || res.Action != s.action && err == nil || !strings.Contains(says, s.says) || strings.Contains(says, "\n") {
					t.Fatalf("step %d: %+v, %v; want %s saying %q", i, res, err, s.action, s.says)
				}
				n.mu.Lock()
				if n.loads != s.loads || n.dict != s.dict {
					t.Errorf("step %d: %d reloads, the balancers have %q; want %d and %q", i, n.loads, n.dict, s.loads, s.dict)
				}
				n.mu.Unlock()
				if d := cmp.Diff(n.marked(s.file), onDisk(t, n.file)); d != "" {
					t.Errorf("step %d: the file (-want +got):\n%s", i, d)
				}
			}
		})
	}
}

// The previous configuration cannot be loaded again: that is reported, and done as soon as possible.
func TestLuaBackFails(t *testing.T) {
	n, p := startLua(t, soon)
	one := lua("10.0.0.1:80")
	n.set(func() { n.broken = func(string) bool { n.deaf = true; return true } })
	_, err := p.Apply(t.Context(), onlyText(strings.Replace(one, "keepalive 64", "keepalive 65", 1)), true)
	if !errors.Is(err, proxyctl.ErrRefused) || strings.Contains(err.Error(), "\n") ||
		!strings.Contains(err.Error(), "does not work: nginx answers 500: 500 Internal Server Error; see nginx's error log; and the last good configuration cannot be loaded again: ") {
		t.Errorf("error %v", err)
	}
	if onDisk(t, n.file) != n.marked(one) {
		t.Error("the good file did not go back")
	}
	n.set(func() { n.broken, n.deaf = nil, false })
	if res, err := p.Apply(t.Context(), onlyText(one), true); err != nil || res.Action != proxyctl.Reload || n.running != n.marked(one) || n.dict != posted("10.0.0.1:80") {
		t.Errorf("%+v, %v; the balancers have %q", res, err, n.dict)
	}
}

// Changes are reported by backend.
func TestLuaReportsChanges(t *testing.T) {
	_, p := startLua(t)
	res, err := p.Apply(t.Context(), onlyText(lua("10.0.0.2:80", "10.0.0.3:80")), true)
	if err != nil || len(res.Changes) != 1 || !reflect.DeepEqual(res.Changes[0], proxyctl.Change{
		Backend: "app", Before: 1, After: 2, Added: 2, Removed: 1, In: []string{"10.0.0.2:80", "10.0.0.3:80"}, Out: []string{"10.0.0.1:80"},
	}) {
		t.Errorf("%+v, %v", res, err)
	}
}

// Changes without a reload do not wait for the next reload.
func TestLuaNotYet(t *testing.T) {
	n, p := startLua(t)
	if res, err := p.Apply(t.Context(), onlyText(lua("10.0.0.2:80")), false); err != nil || res.Action != proxyctl.Runtime {
		t.Errorf("%+v, %v", res, err)
	}
	n.set(func() { n.room = 10 })
	if res, err := p.Apply(t.Context(), onlyText(lua("10.0.0.3:80")), false); !errors.Is(err, proxyctl.ErrNotYet) || n.dict != posted("10.0.0.2:80") {
		t.Errorf("%+v, %v; the balancers have %q", res, err, n.dict)
	}
}

// A new berth learns from nginx what the old one knew.
func TestLuaTakeOver(t *testing.T) {
	n, p := startLua(t)
	two := lua("10.0.0.1:80", "10.0.0.2:80")
	if _, err := p.Apply(t.Context(), onlyText(two), true); err != nil {
		t.Fatal(err)
	}
	p.Close()
	write(t, n.file, n.marked(lua("10.0.0.1:80"))) // the old one was killed before it updated the file
	n.posts = nil
	q := n.proxy()
	if res, err := q.Apply(t.Context(), onlyText(two), true); err != nil || res.Action != proxyctl.None || n.loads != 0 || len(n.posts) != 0 {
		t.Errorf("%+v, %v, %d reloads, posted %q", res, err, n.loads, n.posts)
	}
	q.Close()
	if onDisk(t, n.file) != n.marked(two) {
		t.Error("the file is not in step")
	}
	r := n.proxy(func(o *Options) { o.ReloadOnly = true })
	if res, err := r.Apply(t.Context(), onlyText(two), true); err != nil || res.Action != proxyctl.Reload || n.dict != "" {
		t.Errorf("by reloads only: %+v, %v, the balancers have %q", res, err, n.dict)
	}
	s := n.proxy(func(o *Options) { o.ReloadOnly = true })
	none := lua("127.0.0.1:1 down")
	if res, err := s.Apply(t.Context(), onlyText(none), true); err != nil || res.Action != proxyctl.Reload || onDisk(t, n.file) != n.marked(none) {
		t.Errorf("by reloads only, to none: %+v, %v", res, err)
	}
	if res, err := s.Apply(t.Context(), onlyText(strings.Replace(none, "    keepalive", "  keepalive", 1)), true); err != nil || n.dict != "" {
		t.Errorf("by reloads only, another layout: %+v, %v", res, err)
	}
}

// The file for servers that nginx has is only written if nginx would start with it.
func TestFileInStepIsValidated(t *testing.T) {
	n, p := startLua(t)
	program(t, `echo "nginx: [emerg] no, thanks" >&2; exit 1`)(&p.driver.opts)
	two := lua("10.0.0.1:80", "10.0.0.2:80")
	if res, err := p.Apply(t.Context(), onlyText(two), true); err != nil || res.Action != proxyctl.Runtime {
		t.Fatalf("%+v, %v", res, err)
	}
	p.Close()
	if onDisk(t, n.file) != n.marked(lua("10.0.0.1:80")) {
		t.Error("what nginx would not start with is in its file")
	}
	if _, err := p.Apply(t.Context(), onlyText(two), true); !errors.Is(err, proxyctl.ErrRefused) || !strings.Contains(err.Error(), "a restart would bring back earlier ones") || !strings.Contains(err.Error(), "no, thanks") {
		t.Errorf("error %v", err)
	}
	p.Close()
	p.driver.opts.Binary = ""
	_, _ = p.Apply(t.Context(), onlyText(two), true) // it is tried again, and known the next time
	p.Close()
	if res, err := p.Apply(t.Context(), onlyText(two), true); err != nil || res.Action != proxyctl.None || onDisk(t, n.file) != n.marked(two) {
		t.Errorf("%+v, %v", res, err)
	}
}

// Files that a text refers to exist before nginx loads it, and are removed when nothing refers to them.
func TestFiles(t *testing.T) {
	n := startFake(t, "")
	write(t, n.file, n.marked(oldText))
	n.start()
	p := n.proxy()
	path := func(content string) string {
		return fmt.Sprintf("%s.routes-%x.map", n.file, sha256.Sum256([]byte(content)))[:len(n.file)+len(".routes-")+16] + ".map"
	}
	config := func(text, content string) proxyctl.Config {
		return proxyctl.Config{
			Text:  strings.Replace(text, "http {\n", "http {\n    include "+path(content)+";\n", 1),
			Files: map[string]string{path(content): content},
		}
	}
	n.refuse = func(text string) {
		all, _ := parseText(text)
		for _, d := range all.block {
			for _, line := range d.block {
				if _, err := os.Stat(line.words[len(line.words)-1]); line.name() == "include" && err != nil {
					n.logs(err.Error())
				}
			}
		}
	}
	write(t, path("of an earlier berth"), "of an earlier berth")
	for i, step := range []struct {
		set    func()
		config proxyctl.Config
		action proxyctl.Action
		err    error
		files  []string // afterwards, by content
	}{
		{config: config(newText, "one"), action: proxyctl.Reload, files: []string{"one"}},
		{config: config(newText, "one"), action: proxyctl.None, files: []string{"one"}},
		{config: config(newText, "two"), action: proxyctl.Reload, files: []string{"two"}},
		{config: config(badText, "three"), err: proxyctl.ErrRefused, files: []string{"two", "three"}},
		{set: func() { n.hang = true; soon(&p.driver.opts); p.driver.control.timeout = p.driver.opts.Timeout }, config: config(oldText, "four"), err: proxyctl.ErrUnreachable, files: []string{"two", "three", "four"}},
		{set: func() { n.hang = false }, config: config(newText, "two"), action: proxyctl.None, files: []string{"two"}},
		{set: func() { os.Remove(path("two")) }, config: config(newText, "two"), action: proxyctl.None, files: []string{"two"}},
		{config: proxyctl.Config{Text: "events {", Files: map[string]string{path("no"): "no"}}, err: proxyctl.ErrRefused, files: []string{"two"}},
		{config: onlyText(newText), action: proxyctl.Reload},
	} {
		if step.set != nil {
			n.set(step.set)
		}
		res, err := p.Apply(t.Context(), step.config, true)
		if !errors.Is(err, step.err) || res.Action != step.action && err == nil {
			t.Fatalf("step %d: %+v, %v; want %s, %v", i, res, err, step.action, step.err)
		}
		p.driver.Tend(t.Context())
		has, err := filepath.Glob(n.file + ".routes-*")
		if err != nil || len(has) != len(step.files) {
			t.Errorf("step %d: the files are %q, want those of %q", i, has, step.files)
		}
		for _, content := range step.files {
			if onDisk(t, path(content)) != content {
				t.Errorf("step %d: the file of %q is gone", i, content)
			}
		}
	}
	if _, err := p.Apply(t.Context(), proxyctl.Config{Text: newText, Files: map[string]string{"/etc/passwd": "x"}}, true); err == nil || !strings.Contains(err.Error(), "must be named") {
		t.Errorf("error %v", err)
	}
}

// What nginx was given is recognised as the rendered text.
func TestUnmarkedFile(t *testing.T) {
	n := startFake(t, "")
	write(t, n.file, n.marked(oldText))
	n.start()
	p := n.proxy()
	if _, err := p.Apply(t.Context(), onlyText(newText), true); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(newText, Unmarked(onDisk(t, n.file))); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	for _, text := range []string{"", foreignText, "events {"} {
		if got := Unmarked(text); got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
}

// The program checks a text in another directory, with the files next to its place.
func TestCheck(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "nginx.conf")
	write(t, file, "what is there")
	write(t, filepath.Join(dir, "mime.types"), "types {}")
	var o Options
	program(t, knowsNoBogus+`
		cd "$(dirname "$4")" && test -e mime.types && test -e nginx.conf.routes.map || { echo "nginx: [emerg] a file is missing" >&2; exit 1; }
		grep -q `+dir+` nginx.conf && { echo "nginx: [emerg] not away from there" >&2; exit 1; }; exit 0`)(&o)
	files := map[string]string{file + ".routes.map": "x"}
	with := func(text string) string {
		return strings.Replace(text, "http {\n", "http {\n    include "+file+".routes.map;\n", 1)
	}
	for _, tt := range []struct{ text, says string }{
		{with(newText), ""},
		{with(badText), `unknown directive "bogus"`},
		{"events {", "line 1"},
	} {
		err := Check(t.Context(), o.Binary, file, filepath.Join(t.TempDir(), "berth.sock"), tt.text, files)
		if tt.says == "" && err != nil || tt.says != "" && (!errors.Is(err, proxyctl.ErrRefused) || !strings.Contains(err.Error(), tt.says)) {
			t.Errorf("%v, want one that says %q", err, tt.says)
		}
	}
	if err := Check(t.Context(), "/nonexistent", file, filepath.Join(t.TempDir(), "berth.sock"), newText, nil); err == nil || errors.Is(err, proxyctl.ErrRefused) {
		t.Errorf("no program: %v", err)
	}
	if onDisk(t, file) != "what is there" {
		t.Error("the file was changed")
	}
}

// Waiting requests are counted often while there are some or no server, and otherwise rarely.
func TestLuaWaiting(t *testing.T) {
	var log strings.Builder
	n, p := startLua(t, func(o *Options) {
		o.Waiting = proxyctl.NewWaiting(nil, slog.New(slog.NewTextHandler(&log, nil)))
	})
	for _, tt := range []struct {
		text, waiting string
		again         time.Duration
		log           string // newly
	}{
		{lua("10.0.0.1:80"), "", seldomWaiting, ""},
		{lua("127.0.0.1:1 down"), "", oftenWaiting, ""},
		{lua("127.0.0.1:1 down"), "app 2 3 40\napp.0123abcd 1 1 70\n", oftenWaiting, "requests for app wait: it has no server"},
		{lua("10.0.0.1:80"), "app 2 3 50\napp.0123abcd 0 2 1500\n", oftenWaiting, ""},
		{lua("10.0.0.1:80"), "nonsense\n", seldomWaiting, ""},
		{lua("10.0.0.1:80"), "app 0 3 60\napp.0123abcd 0 2 1500\n", seldomWaiting, "requests for app no longer wait: 5 waited, 1.5s at most"},
		{strings.Replace(holding(lua("10.0.0.1:80")), "hold", "paused", 1), "app 1 4 0 paused\n", oftenWaiting, "requests for app wait: it is paused"},
		{text(frame, "10.0.0.1:80"), "", 0, ""},
	} {
		log.Reset()
		n.set(func() { n.waiting = tt.waiting })
		if _, err := p.Apply(t.Context(), onlyText(tt.text), true); err != nil {
			t.Fatal(err)
		}
		if again := p.driver.Tend(t.Context()); again != tt.again {
			t.Errorf("%q: again in %v, want %v", tt.waiting, again, tt.again)
		}
		if !strings.Contains(log.String(), tt.log) || tt.log == "" && log.Len() > 0 {
			t.Errorf("%q: log %q, want %q", tt.waiting, &log, tt.log)
		}
	}
}

// Servers of a refused text go live at run time and by a reload at once: both are reported.
func TestRefusedPartInTwoSteps(t *testing.T) {
	with := func(app, plain string) string {
		return strings.Replace(lua(app), "    server {\n", "    upstream plain { server "+plain+"; }\n    server {\n", 1)
	}
	n := startFake(t, "")
	first := with("10.0.0.1:80", "10.0.1.1:80")
	write(t, n.file, n.marked(first))
	n.start()
	p := n.proxy()
	if _, err := p.Apply(t.Context(), onlyText(first), true); err != nil {
		t.Fatal(err)
	}
	res, err := p.Apply(t.Context(), onlyText(bogus(with("10.0.0.2:80", "10.0.1.2:80"))), true)
	want := []proxyctl.Change{
		{Backend: "app", Before: 1, After: 1, Added: 1, Removed: 1, In: []string{"10.0.0.2:80"}, Out: []string{"10.0.0.1:80"}},
		{Backend: "plain", Before: 1, After: 1, Added: 1, Removed: 1, In: []string{"10.0.1.2:80"}, Out: []string{"10.0.1.1:80"}},
	}
	if !errors.Is(err, proxyctl.ErrRefused) || res.Action != proxyctl.Reload || !reflect.DeepEqual(res.Changes, want) {
		t.Errorf("%+v, %v", res, err)
	}
}
