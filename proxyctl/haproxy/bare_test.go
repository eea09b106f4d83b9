package haproxy

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth/proxyctl"
)

// bareText is a text with bare backends, each with one server of the same name, and a map of these names.
func bareText(file string, names ...string) string {
	var text, routes strings.Builder
	text.WriteString("defaults rr\n  mode http\n  default-server check\ndefaults lc\n  mode http\n  balance leastconn\nfrontend f from rr\n  bind :80\n" +
		"  use_backend %[path,map_beg(" + file + ".routes.map)]\n")
	for _, name := range names {
		text.WriteString("backend " + name + " from rr\n  server " + name + "-1 10.0.0.1:80\n")
		routes.WriteString("/" + name + "/ " + name + "\n")
	}
	return WithMaps(text.String(), map[string]string{file + ".routes.map": routes.String()})
}

func TestBareSections(t *testing.T) {
	defaults := "defaults rr\n  mode http\n"
	for name, tt := range map[string]struct {
		text string
		bare []string
	}{
		"bare":                                {defaults + "backend a from rr\n  server s 10.0.0.1:80\nbackend b from rr # empty\n", []string{"a", "b"}},
		"of defaults that are not there":      {defaults + "backend a from other\n", nil},
		"of any defaults":                     {defaults + "backend a\n", nil},
		"with a line":                         {defaults + "backend a from rr\n  option httpchk\nbackend b from rr\n", []string{"b"}},
		"with default-server":                 {defaults + "backend a from rr\n  default-server maxconn 3\n", nil},
		"with more in its head":               {defaults + "backend a from rr guid x\n", nil},
		"a listen section":                    {defaults + "listen a from rr\n", nil},
		"two sections of one name":            {defaults + "backend a from rr\nbackend a from rr\n", nil},
		"two defaults of one name":            {defaults + defaults + "backend a from rr\n", nil},
		"conditional blocks":                  {defaults + ".if 1\nbackend a from rr\nbackend b from rr\n.endif\n", nil},
		"a name with a semicolon":             {defaults + "backend 'a;b' from rr\n", nil},
		"defaults of a name with a semicolon": {"defaults 'r;r'\nbackend a from 'r;r'\n", nil},
	} {
		c := parse(tt.text, nil)
		var got []string
		for _, s := range c.sections {
			if s.bare {
				got = append(got, s.name)
			}
		}
		if !slices.Equal(got, tt.bare) || len(c.bare) != len(tt.bare) {
			t.Errorf("%s: bare are %q, want %q", name, got, tt.bare)
		}
	}
}

func TestBackendsAtRunTime(t *testing.T) {
	frame := "defaults rr\n  mode http\n  default-server check inter 1s\ndefaults lc\n  balance leastconn\nfrontend f\n  bind :80\n"
	tests := []struct {
		name, before, after string
		leaving             []string // of before
		want                string   // operations, or the reason for a reload
	}{
		{"a new one", "", "backend a from rr\n  server s 10.0.0.1:80\n",
			nil, "add backend a from rr; add a/s; publish backend a"},
		{"one that is gone", "backend a from rr\n  server s 10.0.0.1:80\n", "",
			nil, "remove backend a; remove a/s"},
		{"one for another", "backend a from rr\n  server s 10.0.0.1:80\n", "backend b from rr\n  server s 10.0.0.1:80\n",
			nil, "add backend b from rr; add b/s; publish backend b; remove backend a; remove a/s"},
		{"in another order", "backend a from rr\nbackend b from rr\n", "backend b from rr\nbackend a from rr\n",
			nil, ""},
		{"of other defaults", "backend a from rr\n", "backend a from lc\n",
			nil, "backend a: now from lc, was from rr"},
		{"that is no longer bare", "backend a from rr\n", "backend a from rr\n  option httpchk\n",
			nil, "backend a from rr added"},
		{"with a server that takes a reload", "", "backend a from rr\n  server s app.example:80\n",
			nil, `backend a: server s: its address "app.example:80" is not ip:port`},
		{"one that comes back", "backend a from rr\n  server s 10.0.0.1:80\n", "backend a from rr\n  server s 10.0.0.1:80\n",
			[]string{"a"}, "publish backend a"},
		{"one that stays away", "backend a from rr\n", "", []string{"a"}, ""},
		{"to which a line refers", "backend a from rr\nbackend x\n  http-request deny if { nbsrv(a) eq 0 }\n", "backend x\n  http-request deny if { nbsrv(a) eq 0 }\n",
			nil, "backend a removed, but the configuration seems to refer to it"},
		{"other defaults", "", "defaults x\nbackend a from x\n",
			nil, "defaults x added"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before, after := parse(frame+tt.before, nil), parse(frame+tt.after, nil)
			before = before.clone()
			for _, name := range tt.leaving {
				before.bare[name] = bare{from: before.bare[name].from, leaving: true}
			}
			p := compare(before, after)
			got := p.Reload
			if got == "" {
				var ops []string
				for _, o := range p.Ops {
					ops = append(ops, o.String())
				}
				got = strings.Join(ops, "; ")
			}
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestMarkLeavesOutBareBackends(t *testing.T) {
	one, other := mark(bareText("/h.cfg", "a", "b"), nil), mark(bareText("/h.cfg", "b"), nil)
	if !one.Generation.SameShape(other.Generation) || one.Generation == other.Generation {
		t.Errorf("marks %s and %s", one.Generation, other.Generation)
	}
	if third := mark(bareText("/h.cfg", "b")+"backend c from rr\n  option httpchk\n", nil); third.Generation.SameShape(one.Generation) {
		t.Error("a backend with lines of its own is not in the shape")
	}
}

// bareBench is a HAProxy with a Proxy for it.
type bareBench struct {
	*testing.T
	m    *masterSocket
	dir  string
	file string
	p    *Proxy
}

func newBareBench(t *testing.T, version string) *bareBench {
	b := &bareBench{T: t, dir: t.TempDir()}
	b.m = startMaster(t, b.dir)
	b.m.version, b.file = version, filepath.Join(b.dir, "haproxy.cfg")
	b.restart()
	return b
}

// restart starts another berth.
func (b *bareBench) restart() {
	if b.p != nil {
		b.p.Close()
	}
	b.p = New(Options{
		File: b.file, Socket: filepath.Join(b.dir, "master.sock"), Timeout: 500 * time.Millisecond, Grace: -1,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	b.Cleanup(b.p.Close)
}

// apply applies bareText of names, expects the action, and returns the commands.
func (b *bareBench) apply(want proxyctl.Action, names ...string) []string {
	b.Helper()
	b.m.mu.Lock()
	b.m.commands = nil
	b.m.mu.Unlock()
	res, err := b.p.Apply(b.Context(), proxyctl.Config{Text: bareText(b.file, names...)}, true)
	if err != nil || res.Action != want {
		b.Errorf("%v: action %q (%s), %v; want %q", names, res.Action, res.Reason, err, want)
	}
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	return slices.Clone(b.m.commands)
}

// has expects these backends; those in brackets are not published.
func (b *bareBench) has(want ...string) {
	b.Helper()
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	var got []string
	for name, published := range b.m.backends {
		if !published {
			name = "(" + name + ")"
		}
		got = append(got, name)
	}
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		b.Errorf("HAProxy's backends (-want +got)\n%s", diff)
	}
}

// tend tends until nothing leaves any more.
func (b *bareBench) tend() {
	b.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		again := b.p.driver.Tend(b.Context())
		if again == 0 {
			return
		}
		if time.Now().After(deadline) {
			b.Fatal("something still leaves")
		}
		time.Sleep(again)
	}
}

func TestBackendsComeAndGo(t *testing.T) {
	b := newBareBench(t, "3.4.7")
	routes := b.file + ".routes.map"
	b.apply(proxyctl.Reload, "a")
	got := b.apply(proxyctl.Runtime, "a", "b")
	want := []string{
		"add backend b from rr", "add server b/b-1 10.0.0.1:80 id 1 check", "enable health b/b-1", "enable server b/b-1",
		"publish backend b", "add map " + routes + " /b/ b",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("commands (-want +got)\n%s", diff)
	}
	got = b.apply(proxyctl.Runtime, "b")
	want = []string{"del map " + routes + " /a/", "unpublish backend a", "set server a/a-1 state maint", "del server a/a-1"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("commands (-want +got)\n%s", diff)
	}
	b.has("(a)", "b")
	b.tend()
	b.has("b")
	b.apply(proxyctl.Runtime, "a", "b") // added again
	b.has("a", "b")

	b.p.Close()
	if text, _ := os.ReadFile(b.file); string(text) != markText(bareText(b.file, "a", "b")) {
		t.Errorf("the file is not in step:\n%s", text)
	}
	b.restart()
	if got := b.apply(proxyctl.None, "a", "b"); len(got) > 0 {
		t.Errorf("another berth has commands for what is right: %q", got)
	}
	b.m.mu.Lock()
	text, _ := os.ReadFile(b.file)
	b.m.worker++
	b.m.run(string(text)) // HAProxy was restarted
	b.m.mu.Unlock()
	b.apply(proxyctl.None, "a", "b")
	b.apply(proxyctl.Runtime, "a", "b", "c")
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	if len(b.m.loaded) != 1 {
		t.Errorf("%d reloads", len(b.m.loaded))
	}
}

func TestBackendComesBackWhileItLeaves(t *testing.T) {
	b := newBareBench(t, "3.4.7")
	b.apply(proxyctl.Reload, "a", "b")
	b.m.mu.Lock()
	b.m.servers[0].busy = true
	b.m.mu.Unlock()
	b.apply(proxyctl.Runtime, "b")
	for deadline := time.Now().Add(5 * time.Second); ; {
		again := b.p.driver.Tend(t.Context())
		b.m.mu.Lock()
		tried := slices.Index(b.m.commands, "del server a/a-1") < len(b.m.commands)-1
		b.m.mu.Unlock()
		if tried {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing is tried")
		}
		time.Sleep(again)
	}
	b.has("(a)", "b")
	if got := b.apply(proxyctl.Runtime, "a", "b"); !slices.Contains(got, "publish backend a") || !slices.Contains(got, "set server a/a-1 state ready") {
		t.Errorf("commands %q", got)
	}
	b.has("a", "b")
	b.tend()
	b.has("a", "b")
}

func TestOlderHAProxyIsReloadedForBackends(t *testing.T) {
	b := newBareBench(t, "3.2.1")
	b.apply(proxyctl.Reload, "a")
	b.apply(proxyctl.Reload, "a", "b")
	if got := b.apply(proxyctl.Reload, "b"); slices.ContainsFunc(got, func(c string) bool { return strings.Contains(c, "backend") }) {
		t.Errorf("commands %q", got)
	}
}

func TestBackendsAreRepaired(t *testing.T) {
	for name, tt := range map[string]struct {
		version string
		do      func(m *masterSocket)
		want    proxyctl.Action
	}{
		"deleted": {"3.4.7", func(m *masterSocket) {
			delete(m.backends, "a")
			m.servers = slices.DeleteFunc(m.servers, func(s fakeServer) bool { return s.backend == "a" })
		}, proxyctl.Runtime},
		"unpublished": {"3.4.7", func(m *masterSocket) { m.backends["a"] = false }, proxyctl.Runtime},
		"not loaded by an older version": {"3.2.1", func(m *masterSocket) {
			delete(m.backends, "a")
			m.servers = slices.DeleteFunc(m.servers, func(s fakeServer) bool { return s.backend == "a" })
		}, proxyctl.Reload},
		"somebody's own": {"3.4.7", func(m *masterSocket) { m.backends["mine"] = true }, proxyctl.None},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBareBench(t, tt.version)
			b.apply(proxyctl.Reload, "a", "b")
			b.m.mu.Lock()
			tt.do(b.m)
			all := []string{"a", "b"}
			if b.m.backends["mine"] {
				all = append(all, "mine")
			}
			b.m.mu.Unlock()
			b.apply(tt.want, "a", "b")
			b.has(all...)
			b.apply(proxyctl.None, "a", "b")
		})
	}
}

func TestRefusedBackend(t *testing.T) {
	b := newBareBench(t, "3.4.7")
	b.apply(proxyctl.Reload, "a")
	b.m.mu.Lock()
	b.m.backends["b"] = true // by someone else, since berth's last inspection
	b.m.mu.Unlock()
	b.apply(proxyctl.Reload, "a", "b")
	b.has("a", "b")

	b.m.mu.Lock()
	b.m.says["add backend"] = "Dynamic backends are not for today.\n\n"
	b.m.mu.Unlock()
	b.apply(proxyctl.Reload, "a", "b", "c")
	if got := b.apply(proxyctl.Reload, "a", "b", "c", "d"); slices.Contains(got, "add backend d from rr") {
		t.Errorf("what was refused is tried again: %q", got)
	}
}

func TestBackendsWhileATextIsRefused(t *testing.T) {
	b := newBareBench(t, "3.4.7")
	b.apply(proxyctl.Reload, "a")
	text := bareText(b.file, "b") + "backend odd from rr\n  bogus\n"
	text = strings.Replace(text, "#  /b/ b\n", "#  /b/ b\n#  /odd/ odd\n", 1)
	_, err := b.p.Apply(t.Context(), proxyctl.Config{Text: text}, true)
	if !errors.Is(err, proxyctl.ErrRefused) {
		t.Fatal(err)
	}
	b.has("(a)", "b")
	b.m.mu.Lock()
	if diff := cmp.Diff(entries{"/b/": "b"}, b.m.maps[b.file+".routes.map"]); diff != "" {
		t.Errorf("the map (-want +got)\n%s", diff)
	}
	b.m.mu.Unlock()
	b.apply(proxyctl.Runtime, "b", "c")
}

func TestHeldBackBackendsKeepTheirRoutes(t *testing.T) {
	b := newBareBench(t, "3.4.7")
	b.apply(proxyctl.Reload, "a", "b")
	b.restart()
	b.p = New(Options{File: b.file, Socket: filepath.Join(b.dir, "master.sock"), Grace: time.Minute, Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(b.p.Close)
	_, err := b.p.Apply(t.Context(), proxyctl.Config{Text: bareText(b.file, "b", "c")}, true)
	if held := (*proxyctl.HoldError)(nil); !errors.As(err, &held) || !slices.Equal(held.Backends, []string{"a"}) {
		t.Fatal(err)
	}
	b.has("a", "b", "c")
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	if diff := cmp.Diff(entries{"/a/": "a", "/b/": "b", "/c/": "c"}, b.m.maps[b.file+".routes.map"]); diff != "" {
		t.Errorf("the map (-want +got)\n%s", diff)
	}
}

func TestParseBackends(t *testing.T) {
	got, err := parseBackends("# pxname,svname,qcur,status,weight\na,BACKEND,0,UP,1\nb,BACKEND,0,UP (UNPUB),1\n\nNo such proxy.\n\n# pxname,svname,status\nc,BACKEND,DOWN\n")
	if diff := cmp.Diff(map[string]bool{"a": true, "b": false, "c": true}, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got)\n%s", err, diff)
	}
	if _, err := parseBackends("Unknown command\n"); !errors.Is(err, proxyctl.ErrUnreachable) {
		t.Errorf("error %v", err)
	}
}

// A backend that takes a reload gets its routes with that reload. Until then, they lead to the previous backend, which stays as
// long.
func TestBackendStaysWhileItHasRoutes(t *testing.T) {
	for name, tt := range map[string]struct {
		maps map[string]string // of the new text
		more string            // for it
	}{
		"until another one is loaded": {map[string]string{"routes": "/a/ c\n/b/ b\n"}, "backend c from rr\n  option httpchk\n  server c-1 10.0.0.3:80\n"},
		"until another map is loaded": {map[string]string{"routes": "/b/ b\n", "strip": ""}, ""},
		"until an entry is loaded":    {map[string]string{"routes": "/b/ b\n/b;c/ b\n"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBareBench(t, "3.4.7")
			b.apply(proxyctl.Reload, "a", "b")
			contents := map[string]string{}
			for name, content := range tt.maps {
				contents[b.file+"."+name+".map"] = content
			}
			_, rest := cutMaps(bareText(b.file, "b"))
			text := WithMaps(rest+tt.more, contents)
			if _, err := b.p.Apply(t.Context(), proxyctl.Config{Text: text}, false); !errors.Is(err, proxyctl.ErrNotYet) {
				t.Fatal(err)
			}
			if to := b.m.maps[b.file+".routes.map"]["/a/"]; to != "a" || !b.m.backends["a"] {
				t.Errorf("/a/ is for %q, and the backends are %v", to, b.m.backends)
			}
			if res, err := b.p.Apply(t.Context(), proxyctl.Config{Text: text}, true); err != nil || res.Action != proxyctl.Reload {
				t.Error(res, err)
			}
		})
	}
}

// When a new route leads a request to a backend, the other maps already have everything about that backend.
func TestRoutesComeLast(t *testing.T) {
	with := func(more string, contents ...string) *config {
		return parse(WithMaps(newText+more, map[string]string{
			"/h.cfg.routes.map": contents[0], "/h.cfg.redirect.map": contents[1], "/h.cfg.strip.map": contents[2],
		}), nil)
	}
	const other = "backend other\n  server o 10.0.0.9:80\n"
	one, both := with(other, "/a/ app\n", "", ""), with(other, "/a/ app\n/b/ other\n", "other 1\n", "other 1/b\n")
	for _, tt := range []struct {
		before, after *config
		want          []string
	}{
		{one, both, []string{"add to map h.cfg.redirect.map: other 1", "add to map h.cfg.strip.map: other 1/b", "add to map h.cfg.routes.map: /b/ other"}},
		{both, one, []string{"delete from map h.cfg.routes.map: /b/", "delete from map h.cfg.redirect.map: other", "delete from map h.cfg.strip.map: other"}},
	} {
		var got []string
		for _, o := range compareMaps(tt.before, tt.after).Ops {
			got = append(got, o.String())
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Error(diff)
		}
	}
}

// A backend that is wanted again while it leaves does not wait for a refused text.
func TestBackendComesBackWhileATextIsRefused(t *testing.T) {
	b := newBareBench(t, "3.4.7")
	b.apply(proxyctl.Reload, "a", "b")
	b.m.mu.Lock()
	b.m.servers[0].busy = true
	b.m.mu.Unlock()
	for _, names := range [][]string{{"b"}, {"a", "b"}} {
		text := bareText(b.file, names...) + "backend odd\n  bogus\n"
		if _, err := b.p.Apply(t.Context(), proxyctl.Config{Text: text}, true); !errors.Is(err, proxyctl.ErrRefused) {
			t.Fatal(err)
		}
	}
	b.has("a", "b")
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	if s := b.m.servers[0]; s.name != "a-1" || s.admin != 0 || b.m.maps[b.file+".routes.map"]["/a/"] != "a" {
		t.Errorf("%+v, %v", s, b.m.maps)
	}
}
