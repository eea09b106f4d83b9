package haproxy

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/proxyctl"
	"berth/proxyctl/configfile"
)

// beside returns the path of a file next to the configuration file, as the renderer derives it from the content.
func beside(file, name, content string) string {
	ext := filepath.Ext(name)
	sum := sha256.Sum256([]byte(content))
	return fmt.Sprintf("%s.%s-%x%s", file, strings.TrimSuffix(name, ext), sum[:8], ext)
}

// withMap is a configuration that refers to a map with this content.
func withMap(file, text, content string) proxyctl.Config {
	path := beside(file, "routes.map", content)
	return proxyctl.Config{
		Text:  strings.Replace(text, "  bind :80\n", "  bind :80\n  use_backend %[path,map("+path+")]\n", 1),
		Files: map[string]string{path: content},
	}
}

// besides returns the files next to the configuration, except berth's copies of it.
func besides(t testing.TB, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.Contains(e.Name(), "routes") {
			names = append(names, e.Name())
		}
	}
	return names
}

// A map exists before HAProxy or its program reads the text that refers to it, and is removed when nothing refers to it.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	m := startMaster(t, dir)
	p := newProxy(dir)
	defer p.Close()
	p.driver.opts.Binary = program(t, `grep -o "map([^)]*" "$3" | cut -c5- | while read -r f; do test -e "$f" || { echo "[ALERT] (7) : no $f" >&2; exit 1; }; done`)
	config := func(text, content string) proxyctl.Config { return withMap(m.file, text, content) }
	name := func(content string) string { return filepath.Base(beside(m.file, "routes.map", content)) }
	more := newText + "  server b 10.0.0.2:80\n"
	ancient := beside(m.file, "routes.map", "of an earlier berth")
	write(t, ancient, "of an earlier berth")
	for i, step := range []struct {
		set    func()
		config proxyctl.Config
		action proxyctl.Action
		err    error
		files  []string // afterwards, by content
	}{
		{nil, config(newText, "one"), proxyctl.Reload, nil, []string{"one"}},
		{nil, config(newText, "one"), proxyctl.None, nil, []string{"one"}},
		{nil, config(more, "one"), proxyctl.Runtime, nil, []string{"one"}},
		{nil, config(more, "two"), proxyctl.Reload, nil, []string{"two"}},
		{nil, config(badText, "three"), "", proxyctl.ErrRefused, []string{"two", "three"}},
		{nil, config(badText, "four"), "", proxyctl.ErrRefused, []string{"two", "four"}},
		{func() { m.hang["reload"] = true }, config(oldText, "five"), "", proxyctl.ErrUnreachable, []string{"two", "four", "five"}},
		{func() { m.hang["reload"] = false }, config(more, "two"), proxyctl.None, nil, []string{"two"}},
		{func() { os.Remove(beside(m.file, "routes.map", "two")) }, config(more, "two"), proxyctl.None, nil, []string{"two"}},
		{func() { write(t, beside(m.file, "routes.map", "two"), "edited") }, config(more, "two"), proxyctl.None, nil, []string{"two"}},
		{nil, onlyText(more), proxyctl.Reload, nil, nil},
		{nil, config(more, ""), proxyctl.Reload, nil, []string{""}},
	} {
		if step.set != nil {
			m.mu.Lock()
			step.set()
			m.mu.Unlock()
		}
		res, err := p.Apply(t.Context(), step.config, true)
		if !errors.Is(err, step.err) || res.Action != step.action {
			t.Fatalf("step %d: %+v, %v; want %s, %v", i, res, err, step.action, step.err)
		}
		p.driver.Tend(t.Context())
		want := map[string]bool{}
		for _, content := range step.files {
			want[name(content)] = true
		}
		has := besides(t, dir)
		for _, n := range has {
			if !want[n] {
				t.Errorf("step %d: %s is there", i, n)
			}
		}
		if len(has) != len(want) {
			t.Errorf("step %d: the files are %q, want those of %q", i, has, step.files)
		}
		for path, content := range step.config.Files {
			if got := onDisk(t, path); got != content {
				t.Errorf("step %d: %s has %q", i, path, got)
			}
		}
	}
}

// If berth was killed before HAProxy had judged another text, the files of the last good text stay, and those of the text that
// HAProxy starts with, too.
func TestFilesOfTheLastGoodText(t *testing.T) {
	dir := t.TempDir()
	m := startMaster(t, dir)
	one, two, three := withMap(m.file, newText, "one"), withMap(m.file, newText, "two"), withMap(m.file, newText, "three")
	p := newProxy(dir)
	for _, c := range []proxyctl.Config{one, two, three} {
		if err := (&configfile.File{Path: m.file}).WriteAux(c.Files, true); err != nil {
			t.Fatal(err)
		}
	}
	m.run(markText(one.Text))
	write(t, p.driver.opts.File+".good", markText(one.Text))
	write(t, m.file, markText(two.Text))
	m.refuse = func(string) string { return "no" }
	p = newProxy(dir)
	defer p.Close()
	bad := withMap(m.file, oldText, "bad")
	if _, err := p.Apply(t.Context(), bad, true); !errors.Is(err, proxyctl.ErrRefused) {
		t.Fatal(err)
	}
	p.driver.Tend(t.Context())
	if got := onDisk(t, m.file); got != markText(one.Text) {
		t.Fatalf("the file is\n%s", got)
	}
	if has := besides(t, dir); len(has) != 2 {
		t.Errorf("the files are %q, want those of the last good text and of the one that is wanted", has)
	}
	for path, content := range one.Files {
		if onDisk(t, path) != content {
			t.Errorf("%s is gone", path)
		}
	}
}

// If a file cannot be written, that is a one-line error, before HAProxy is asked for anything.
func TestFilesUnwritable(t *testing.T) {
	dir := t.TempDir()
	m := startMaster(t, dir)
	p := newProxy(dir)
	defer p.Close()
	c := withMap(m.file, newText, "one")
	if _, err := p.Apply(t.Context(), onlyText(oldText), true); err != nil {
		t.Fatal(err)
	}
	for path := range c.Files {
		if err := os.MkdirAll(path+"/in the way", 0o755); err != nil {
			t.Fatal(err)
		}
		_, first := p.Apply(t.Context(), c, true)
		_, second := p.Apply(t.Context(), c, true)
		if first == nil || second == nil || first.Error() != second.Error() || !strings.HasPrefix(first.Error(), "write "+path+": ") {
			t.Errorf("errors that are to be logged once: %v; %v", first, second)
		}
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
	if len(m.loaded) != 1 {
		t.Errorf("%d reloads, want that of the first text", len(m.loaded))
	}
	if res, err := p.Apply(t.Context(), c, true); err != nil || res.Action != proxyctl.Reload {
		t.Errorf("%+v, %v", res, err)
	}
}
