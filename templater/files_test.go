package templater

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/deploy/testenv"
)

func TestDirectory(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) { testenv.File(t, dir, name, text) }
	write("b.pem", "1")
	write(".hidden", "1")
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	r := newHarness(t, newFakeConsul(t), Options{Templates: one(
		`{{ with directory "` + dir + `" }}{{ join "," .Names }} {{ .Sum }}{{ end }}|{{ (directory "` + dir + `/none").Names }}`)}).run()
	first := r.next()
	if !strings.HasPrefix(first, "b.pem ") || !strings.HasSuffix(first, "|[]") {
		t.Fatalf("%q", first)
	}
	write("b.pem", "23")
	second := r.next()
	if !strings.HasPrefix(second, "b.pem ") || first == second {
		t.Errorf("changed: %q, before %q", second, first)
	}
	write("a.pem", "1")
	if third := r.next(); !strings.HasPrefix(third, "a.pem,b.pem ") {
		t.Errorf("one more: %q", third)
	}
}

func TestTemplateFileIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.ctmpl")
	write := func(text string) { testenv.File(t, filepath.Dir(path), filepath.Base(path), text) }
	write(`1 {{ range service "web" }}{{ .Port }}{{ end }}`)
	consul := newFakeConsul(t)
	consul.set("web", 1)
	consul.set("api", 2)
	r := newHarness(t, consul, Options{Templates: []Template{{Name: "out", File: path}}}).run()
	r.want("1 1")

	write("2\n{{ if }}")
	r.waitLogged(path + ":2: missing value for if")
	testenv.Until(t, deadline, "the reason", func() bool {
		err := r.Ready()
		return err != nil && strings.Contains(err.Error(), "A changed template is not used: "+path+":2")
	})
	consul.set("web", 3)
	r.want("1 3")

	write(`3 {{ range service "api" }}{{ index .Tags 7 }}{{ end }}`)
	r.waitLogged(" has changed and fails, keeping the previous version")
	consul.set("web", 4)
	r.want("1 4")

	write(`4 {{ range service "api" }}{{ .Port }}{{ end }}`)
	r.want("4 2")
	r.waitReady()
	consul.set("api", 5)
	r.want("4 5")

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	r.Reread()
	r.waitLogged("cannot read the template")
	consul.set("api", 6)
	r.want("4 6")
	r.wantNothingMore()
}

func TestRereadAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.ctmpl")
	state := func() os.FileInfo {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	if err := os.WriteFile(path, []byte("a"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := newHarness(t, newFakeConsul(t), Options{Templates: []Template{{Name: "out", File: path}}}).run()
	r.want("a")
	// An edit that changes only the content.
	before := state()
	if err := os.WriteFile(path, []byte("b"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, before.ModTime(), before.ModTime()); err != nil {
		t.Fatal(err)
	}
	r.Reread()
	r.want("b")
}

// A pipe, such as a shell's <(...), is read once.
func TestTemplateInAPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	consul := newFakeConsul(t)
	consul.set("web", 1)
	go os.WriteFile(path, []byte(`{{ range service "web" }}{{ .Port }}{{ end }}`), 0o600)
	r := newHarness(t, consul, Options{Templates: []Template{{Name: "out", File: path}}}).run()
	r.want("1")
	r.Reread()
	time.Sleep(2 * lookEvery)
	consul.set("web", 2)
	r.want("2")
	r.waitReady()
	r.wantLogged("level=ERROR", 0)
}

func TestOnce(t *testing.T) {
	consul := newFakeConsul(t)
	consul.set("web", 1)
	r := newHarness(t, consul, Options{Templates: one(everyService)})
	got, err := r.Once(t.Context())
	if err != nil || got["out"].Text != "web:1 " {
		t.Errorf("%q, %v", got, err)
	}
	if n := consul.asks("/v1/health/service/web"); n != 1 {
		t.Errorf("%d queries for a service, want 1 that does not block", n)
	}
	r = newHarness(t, consul, Options{Templates: one(`{{ range service "web" }}{{ index .Tags 7 }}{{ end }}`)})
	if _, err := r.Once(t.Context()); err == nil || !strings.Contains(err.Error(), "out.ctmpl:1:28") {
		t.Errorf("a template that fails: %v", err)
	}
}

func TestTemplateMovedAwayAndBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.ctmpl")
	if err := os.WriteFile(path, []byte("a"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := newHarness(t, newFakeConsul(t), Options{Templates: []Template{{Name: "out", File: path}}}).run()
	r.want("a")
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	r.Reread()
	r.waitNotReady("cannot read")
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	r.waitReady()
}

func TestEditWhileTheTemplateFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.ctmpl")
	write := func(text string) { testenv.File(t, filepath.Dir(path), filepath.Base(path), text) }
	write(`{{ range service "web" }}{{ index .Tags 7 }}{{ end }}`)
	consul := newFakeConsul(t)
	consul.set("web", 1)
	r := newHarness(t, consul, Options{Templates: []Template{{Name: "out", File: path}}}).run()
	r.waitLogged(" failed, publishing nothing until it works")
	write(`{{ range service "web" }}{{ index .Tags 8 }}{{ end }}`)
	r.waitLogged("index .Tags 8")
	write(`{{ range service "web" }}{{ .Port }}{{ end }}`)
	r.want("1")
	r.waitReady()
}
