package haproxy

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth/proxyctl"
)

// inRoutes is a configuration whose frontend uses a map with this content.
func inRoutes(file, text, content string) proxyctl.Config {
	path := file + ".routes.map"
	text = strings.Replace(text, "  bind :80\n", "  bind :80\n  use_backend %[path,map("+path+")]\n", 1)
	return onlyText(WithMaps(text, map[string]string{path: content}))
}

func TestWithMaps(t *testing.T) {
	for _, contents := range []map[string]string{
		nil,
		{"/etc/haproxy.cfg.a.map": ""},
		{"/etc/haproxy.cfg.a.map": "x y\n", "/etc/haproxy.cfg.b.map": "# c\n\n  z  u v \n"},
	} {
		text := WithMaps(newText, contents)
		got, rest := cutMaps(text)
		if diff := cmp.Diff(contents, got); diff != "" || rest != newText {
			t.Errorf("%v: %s, and the rest is %q", contents, diff, rest)
		}
		if c := parse(text, nil); c.shape() != parse(newText, nil).shape() || c.text() != text {
			t.Errorf("%v: the configuration is\n%s", contents, c.text())
		}
	}
	edited := strings.Replace(WithMaps(newText, map[string]string{"/a.map": "x y\n"}), "#  x", "x", 1)
	if got, rest := cutMaps(edited); got != nil || rest != edited {
		t.Errorf("an edited text has the maps %v", got)
	}
}

func TestParseEntries(t *testing.T) {
	got := parseEntries("# c\n\na 1\n b\t two words \nc\na 2\n")
	if diff := cmp.Diff(entries{"a": "1", "b": "two words", "c": ""}, got); diff != "" {
		t.Error(diff)
	}
	if got := readEntries("0x55d0 a 1\n0x55d1 b two words\n0x55d2 a 2\n\n"); got["a"] != "1" || got["b"] != "two words" || len(got) != 2 {
		t.Errorf("HAProxy has %v", got)
	}
}

func TestCompareMaps(t *testing.T) {
	const path = "/h.cfg.routes.map"
	with := func(content string) *config {
		return parse(WithMaps(newText, map[string]string{path: content, "/h.cfg.held.map": ""}), nil)
	}
	for _, tt := range []struct{ before, after, want string }{
		{"a 1\n", "a 1\n", ""},
		{"a 1\n", "# another comment\na 1", ""},
		{"a 1\nb 1\n", "b 2\nc 3\n", "change in map h.cfg.routes.map: b 2, add to map h.cfg.routes.map: c 3, delete from map h.cfg.routes.map: a"},
		{"a 1\n", "a 1\nb;quit 2\n", "reload: map h.cfg.routes.map: the entry of \"b;quit\" cannot be written in a command"},
		{"a 1\n", "a 1\nb 2 3\n", "reload: map h.cfg.routes.map: the entry of \"b\" cannot be written in a command"},
		{"a 1\nx\\y 2\n", "a 1\n", "reload: map h.cfg.routes.map: the entry of \"x\\\\y\" cannot be written in a command"},
	} {
		p := compare(with(tt.before), with(tt.after))
		got := ""
		for n, o := range p.Ops {
			if n > 0 {
				got += ", "
			}
			got += o.String()
		}
		if p.Reload != "" {
			got = "reload: " + p.Reload
		}
		if got != tt.want {
			t.Errorf("%q to %q: %s, want %s", tt.before, tt.after, got, tt.want)
		}
	}
	if p := compare(parse(newText, nil), with("")); p.Reload == "" {
		t.Error("a new map takes no reload")
	}
}

func TestMaps(t *testing.T) {
	dir := t.TempDir()
	m := startMaster(t, dir)
	p := newProxy(dir)
	path := m.file + ".routes.map"
	config := func(text, content string) proxyctl.Config { return inRoutes(m.file, text, content) }
	more := newText + "  server b 10.0.0.2:80\n"
	for i, step := range []struct {
		set    func()
		config proxyctl.Config
		action proxyctl.Action
		err    error
		has    entries
		file   string // of the map
	}{
		{nil, config(newText, "/a app\n"), proxyctl.Reload, nil, entries{"/a": "app"}, "/a app\n"},
		{nil, config(newText, "/a app\n/b app\n"), proxyctl.Runtime, nil, entries{"/a": "app", "/b": "app"}, "/a app\n/b app\n"},
		{nil, config(more, "/b other\n"), proxyctl.Runtime, nil, entries{"/b": "other"}, "/b other\n"},
		{nil, config(more, "/b other\n"), proxyctl.None, nil, entries{"/b": "other"}, "/b other\n"},
		// Someone else changes it, in HAProxy and on disk.
		{func() { m.maps[path]["/c"] = "app" }, config(more, "/b other\n"), proxyctl.Runtime, nil, entries{"/b": "other"}, "/b other\n"},
		{func() { os.Remove(path) }, config(more, "/b other\n"), proxyctl.None, nil, entries{"/b": "other"}, "/b other\n"},
		{func() { write(t, path, "edited") }, config(more, "/b other\n"), proxyctl.None, nil, entries{"/b": "other"}, "/b other\n"},
		// The map of a refused text is still used.
		{nil, config(badText, "/d app\n"), proxyctl.Runtime, proxyctl.ErrRefused, entries{"/d": "app"}, "/d app\n"},
		{nil, config(strings.Replace(more, "10.0.0.2:80", "10.0.0.2:81", 1)+"  bogus\n", "/e app\n"), proxyctl.Runtime, proxyctl.ErrRefused, entries{"/e": "app"}, "/e app\n"},
		// A key that cannot be written in a command.
		{nil, config(more, "/b;c app\n"), proxyctl.Reload, nil, entries{"/b;c": "app"}, "/b;c app\n"},
		{nil, config(more, "/b\n"), "", proxyctl.ErrRefused, entries{"/b;c": "app"}, "/b;c app\n"},
		{nil, onlyText(WithMaps(more, map[string]string{"/etc/passwd": "a b\n"})), "", proxyctl.ErrRefused, entries{"/b;c": "app"}, "/b;c app\n"},
		// HAProxy does not make the change it was told to.
		{func() { m.says["add map"] = "\n" }, config(more, "/b;c app\n/f app\n"), proxyctl.Reload, nil, entries{"/b;c": "app", "/f": "app"}, "/b;c app\n/f app\n"},
	} {
		m.mu.Lock()
		clear(m.says)
		if step.set != nil {
			step.set()
		}
		m.mu.Unlock()
		res, err := p.Apply(t.Context(), step.config, true)
		if !errors.Is(err, step.err) || res.Action != step.action {
			t.Fatalf("step %d: %+v, %v; want %q, %v", i, res, err, step.action, step.err)
		}
		p.Close()
		if diff := cmp.Diff(step.has, m.maps[path]); diff != "" {
			t.Errorf("step %d: HAProxy has another map: %s", i, diff)
		}
		if got := onDisk(t, path); got != step.file {
			t.Errorf("step %d: the file has %q, want %q", i, got, step.file)
		}
	}
	// A berth that has just started.
	clear(m.says)
	loads := len(m.loaded)
	p = newProxy(dir)
	defer p.Close()
	res, err := p.Apply(t.Context(), config(more, "/g app\n/b;c app\n/f app\n"), true)
	if err != nil || res.Action != proxyctl.Runtime || len(m.loaded) != loads {
		t.Errorf("after a start: %+v, %v, and %d reloads", res, err, len(m.loaded)-loads)
	}
}
