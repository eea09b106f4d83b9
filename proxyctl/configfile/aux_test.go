package configfile

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const digits = "-0123456789abcdef.map"

// Files are written before a text that refers to them, and again if one was changed or removed.
func TestWriteAux(t *testing.T) {
	f := newFile(t)
	a, b := f.Path+".a"+digits, f.Path+".b"+digits
	place := func(all bool, paths ...string) {
		t.Helper()
		files := map[string]string{}
		for _, path := range paths {
			files[path] = "content"
		}
		if err := f.WriteAux(files, all); err != nil {
			t.Fatal(err)
		}
	}
	place(false, a)
	has(t, a, "content")
	put(t, a, "edited")
	place(false, a)
	has(t, a, "edited") // files in place are not read for every text
	place(true, a)
	has(t, a, "content")
	os.Remove(a)
	place(false, b)
	has(t, b, "content")
	place(false, a, b)
	has(t, a, "content")
	before, err := os.Stat(a)
	if err != nil {
		t.Fatal(err)
	}
	place(true, a, b)
	if after, err := os.Stat(a); err != nil || !os.SameFile(before, after) {
		t.Error("what is right was written again")
	}
}

// Rewriting a file is logged only when it happens.
func TestAuxCannotBeWrittenAgain(t *testing.T) {
	var out strings.Builder
	f := newFile(t)
	f.Log = slog.New(slog.NewTextHandler(&out, nil))
	name := f.Path + ".a" + digits
	files := map[string]string{name: "content"}
	if err := f.WriteAux(files, false); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(name), os.MkdirAll(filepath.Join(name, "in the way"), 0o755)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := f.WriteAux(files, true); err == nil {
			t.Error("no error")
		}
	}
	if out.Len() > 0 {
		t.Errorf("it is said:\n%s", &out)
	}
	if err := errors.Join(os.RemoveAll(name), f.WriteAux(files, true)); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "restored "); n != 1 {
		t.Errorf("said %d times", n)
	}
}

// There may be stale files after a start, and when a text refers to other files than the previous one.
func TestHasStale(t *testing.T) {
	f := newFile(t)
	a, b := f.Path+".a"+digits, f.Path+".b"+digits
	for i, step := range []struct {
		files    []string
		littered bool
	}{
		{nil, true}, // of an earlier berth
		{nil, false},
		{[]string{a}, true},
		{[]string{a}, false},
		{[]string{b}, true},
		{[]string{b}, false},
		{nil, true},
		{nil, false},
	} {
		files := map[string]string{}
		for _, path := range step.files {
			files[path] = "x"
		}
		if err := f.WriteAux(files, i%2 == 1); err != nil {
			t.Fatal(err)
		}
		if got := f.HasStale(); got != step.littered {
			t.Errorf("step %d: littered: %v", i, got)
		}
		f.RemoveStale(strings.Join(step.files, "\n"))
	}
}

// Files that a loadable text refers to are kept, and nothing else.
func TestRemoveStale(t *testing.T) {
	f := newFile(t)
	text := func(name string) string {
		path := f.Path + "." + name + digits
		put(t, path, name)
		return "map " + path + "\n"
	}
	text("none")
	put(t, f.Path, text("file"))
	put(t, f.Good(), text("good"))
	put(t, f.Foreign(), text("foreign"))
	f.RemoveStale(text("wanted"), text("running"))
	for _, name := range []string{"file", "good", "foreign", "wanted", "running"} {
		has(t, f.Path+"."+name+digits, name)
	}
	has(t, f.Path+".none"+digits, "")
	if f.HasStale() {
		t.Error("it is to be done again")
	}
	// An unreadable file may refer to anything.
	f = newFile(t)
	text("unknown")
	if err := os.MkdirAll(filepath.Join(f.Good(), "in the way"), 0o755); err != nil {
		t.Fatal(err)
	}
	f.RemoveStale()
	has(t, f.Path+".unknown"+digits, "unknown")
	if !f.HasStale() {
		t.Error("it is not to be done again")
	}
}

// Only files named as this configuration's are written or removed.
func TestFilesOfOthers(t *testing.T) {
	f := newFile(t)
	dir := filepath.Dir(f.Path)
	t.Chdir(t.TempDir()) // a relative path would be in this directory
	for _, path := range []string{
		filepath.Join(t.TempDir(), "passwd"), filepath.Join(t.TempDir(), "proxy.cfg.x"+digits), "relative" + digits,
		f.Path, f.Good(), f.Foreign(), f.Path + ".routes.map", f.Path + ".routes-0123.map", f.Path + "." + digits[1:],
		f.Path + "./../x" + digits, f.Path + ".x/y" + digits, f.Path + ".." + digits, dir + "/x/../proxy.cfg.x" + digits,
		f.Path + ".b.routes" + digits, f.Path + ".routes\n" + digits, dir + "/other.cfg.routes" + digits, f.Path + ".routes" + digits + ".good",
	} {
		if err := f.WriteAux(map[string]string{path: "x"}, true); err == nil || !strings.Contains(err.Error(), "must be named "+f.Path+".<name>-") {
			t.Errorf("%q: error %v", path, err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("%v, %v", entries, err)
	}
	theirs := []string{
		f.Path + ".routes.map", f.Path + ".routes-0123456789abcde.map", f.Path + ".routes-0123456789ABCDEF.map", f.Path + ".b.routes" + digits,
		dir + "/routes" + digits, dir + "/other.cfg.routes" + digits, f.Path + ".routes" + digits + ".bak", f.Path + "routes" + digits, f.Path + "-routes" + digits,
	}
	for _, path := range theirs {
		put(t, path, "theirs")
	}
	if err := os.Mkdir(f.Path+".routes"+digits, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(theirs[0], f.Path+".routes-l"+digits); err != nil {
		t.Fatal(err)
	}
	f.RemoveStale()
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != len(theirs)+2 {
		t.Errorf("what berth did not write was removed: %v, %v", entries, err)
	}
}
