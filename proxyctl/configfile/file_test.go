package configfile

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const ours = "# berth's\n"

func newFile(t *testing.T) *File {
	return &File{
		Path: filepath.Join(t.TempDir(), "proxy.cfg"), Log: slog.New(slog.DiscardHandler),
		Marked: func(text string) bool { return strings.HasPrefix(text, ours) },
	}
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func has(t *testing.T, path, want string) {
	t.Helper()
	if got, err := Read(path); err != nil || got != want {
		t.Errorf("%s has %q, %v; want %q", filepath.Base(path), got, err, want)
	}
}

// A text replaces another one, which is restored if the new one is refused.
func TestReplace(t *testing.T) {
	no := errors.New("no")
	for _, tt := range []struct {
		name    string
		last    string
		failed  error
		file    string // afterwards
		foreign string
	}{
		{"taken", ours + "1", nil, ours + "2", ""},
		{"not taken", ours + "1", no, ours + "1", ""},
		{"the first, taken", "", nil, ours + "2", ""},
		{"the first, not taken", "", no, "", ""}, // a restart must not load what was refused
		{"somebody's, taken", "theirs", nil, ours + "2", "theirs"},
		{"somebody's, not taken", "theirs", no, "theirs", "theirs"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFile(t)
			if tt.last != "" {
				put(t, f.Path, tt.last)
			}
			if err := f.Replace(tt.last, ours+"2"); err != nil {
				t.Fatal(err)
			}
			has(t, f.Path, ours+"2")
			has(t, f.Good(), tt.last) // meanwhile
			if f.InDoubt() != (tt.last != "") {
				t.Errorf("in doubt: %v", f.InDoubt())
			}
			if err := f.Replaced(tt.last, tt.failed); err != tt.failed {
				t.Errorf("error %v", err)
			}
			has(t, f.Path, tt.file)
			has(t, f.Foreign(), tt.foreign)
			if f.InDoubt() {
				t.Error("in doubt for good")
			}
		})
	}
}

// A foreign text is kept once, and not overwritten by a later foreign text.
func TestKeepForeign(t *testing.T) {
	f := newFile(t)
	for _, text := range []string{"", ours, "first", "second"} {
		if err := f.KeepForeign(text); err != nil {
			t.Fatal(err)
		}
	}
	has(t, f.Foreign(), "first")
}

// If the last good text cannot be restored, both errors are reported, and it can still be restored later.
func TestReplacedFails(t *testing.T) {
	f := newFile(t)
	if err := f.Replace(ours+"1", ours+"2"); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(f.Path); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(f.Path, "in the way"), 0o755); err != nil {
		t.Fatal(err)
	}
	no := errors.New("no")
	err := f.Replaced(ours+"1", no)
	if !errors.Is(err, no) || !strings.Contains(err.Error(), "write "+f.Path) {
		t.Errorf("error %v", err)
	}
	has(t, f.Good(), ours+"1")
}

// Every file has the permissions of the configuration, which may hold secrets.
func TestMode(t *testing.T) {
	f := newFile(t)
	expect := func(path string, mode fs.FileMode) {
		t.Helper()
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v; want %v", path, info, err, mode)
		}
	}
	if err := f.Write(f.Path, "first"); err != nil {
		t.Fatal(err)
	}
	expect(f.Path, 0o644)
	if err := os.Chmod(f.Path, 0o640); err != nil {
		t.Fatal(err)
	}
	path := f.Path + ".routes-0123456789abcdef.map"
	if err := f.WriteAux(map[string]string{path: "x"}, false); err != nil {
		t.Fatal(err)
	}
	if err := f.Replace("first", ours); err != nil {
		t.Fatal(err)
	}
	candidate := ""
	err := f.Validate(t.Context(), time.Minute, "the check", "candidate", func(_ context.Context, file string) error {
		candidate = file
		for _, p := range []string{f.Path, path, candidate, f.Good(), f.Foreign()} {
			expect(p, 0o640)
		}
		has(t, candidate, "candidate")
		return nil
	})
	if err != nil || candidate == "" {
		t.Fatalf("%v, candidate %q", err, candidate)
	}
	has(t, candidate, "")
}

// A write error names the file, not a temporary one, and stays the same.
func TestUnwritable(t *testing.T) {
	f := newFile(t)
	f.Path = filepath.Join(f.Path, "nosuch", "proxy.cfg")
	first, second := f.Write(f.Path, "x"), f.Write(f.Path, "x")
	if first == nil || second == nil || first.Error() != second.Error() || !strings.HasPrefix(first.Error(), "write "+f.Path+": ") {
		t.Errorf("errors %v; %v", first, second)
	}
	if _, err := Read(filepath.Dir(filepath.Dir(filepath.Dir(f.Path)))); err == nil {
		t.Error("a directory was read as a text")
	}
}

// A replaced file keeps its owner: berth may be root, and the proxy must be able to read the file at its next start.
func TestOwner(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root gives files away")
	}
	f := newFile(t)
	put(t, f.Path, "theirs")
	if err := errors.Join(os.Chmod(f.Path, 0o640), os.Chown(f.Path, 99, 98)); err != nil {
		t.Fatal(err)
	}
	aux := f.Path + ".routes-0123456789abcdef.map"
	if err := errors.Join(f.WriteAux(map[string]string{aux: "x"}, false), f.Replace("theirs", ours)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{f.Path, aux, f.Good(), f.Foreign()} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if uid, gid, _ := ownerOf(info); uid != 99 || gid != 98 || info.Mode().Perm() != 0o640 {
			t.Errorf("%s is of user %d, group %d, mode %v", filepath.Base(path), uid, gid, info.Mode())
		}
	}
}

// A configuration that is a symbolic link remains one: its target is replaced and keeps its owner and mode.
func TestSymbolicLink(t *testing.T) {
	f := newFile(t)
	target := filepath.Join(t.TempDir(), "real.cfg")
	put(t, target, ours+"1")
	if err := errors.Join(os.Chmod(target, 0o600), os.Symlink(target, f.Path)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Replace(ours+"1", ours+"2"), f.Replaced(ours+"1", nil)); err != nil {
		t.Fatal(err)
	}
	has(t, target, ours+"2")
	info, err := os.Lstat(f.Path)
	if err != nil || info.Mode().Type() != fs.ModeSymlink {
		t.Errorf("%v, %v", info, err)
	}
	if info, err := os.Stat(target); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

// A text that cannot be put in place leaves nothing in doubt.
func TestReplaceFails(t *testing.T) {
	f := newFile(t)
	if err := os.MkdirAll(filepath.Join(f.Path, "in the way"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := f.Replace(ours+"1", ours+"2"); err == nil {
		t.Error("no error")
	}
	if f.InDoubt() {
		t.Error("in doubt")
	}
	if _, err := Read(f.Path); err == nil || !strings.Contains(err.Error(), "is a directory: name one file in it") {
		t.Errorf("error %v", err)
	}
}

// A warning says if the proxy may be unable to read the new file.
func TestOwnerNotKept(t *testing.T) {
	for _, tt := range []struct {
		name        string
		user, group bool // whether each may be changed
		mode        fs.FileMode
		said        bool
	}{
		{"given away", true, true, 0o600, false},
		{"the group reads it", false, true, 0o640, false},
		{"the group has no part in it", false, true, 0o600, true},
		{"neither", false, false, 0o640, true},
		{"all read it", false, false, 0o644, false},
	} {
		var out bytes.Buffer
		f := newFile(t)
		f.Log = slog.New(slog.NewTextHandler(&out, nil))
		f.give(func(uid, _ int) error {
			if uid >= 0 && !tt.user || !tt.group {
				return syscall.EPERM
			}
			return nil
		}, 99, 98, tt.mode)
		if said := strings.Contains(out.String(), "cannot keep its owner"); said != tt.said {
			t.Errorf("%s: said: %v, want %v:\n%s", tt.name, said, tt.said, &out)
		}
	}
}

// A link next to the configuration does not make berth write to its target.
func TestPlantedLink(t *testing.T) {
	f := newFile(t)
	target := filepath.Join(t.TempDir(), "precious")
	put(t, target, "precious")
	put(t, f.Path, ours+"1")
	if err := os.Symlink(target, f.Good()); err != nil {
		t.Fatal(err)
	}
	if err := f.Replace(ours+"1", ours+"2"); err != nil {
		t.Fatal(err)
	}
	has(t, target, "precious")
	has(t, f.Good(), ours+"1")
}

// A foreign configuration that cannot be kept is not replaced, and leaves nothing in doubt.
func TestForeignCannotBeKept(t *testing.T) {
	f := newFile(t)
	f.Path = filepath.Join(t.TempDir(), strings.Repeat("x", 228)) // the name of a temporary file with a longer ending would be too long
	put(t, f.Path, "theirs")
	if err := f.Replace("theirs", ours+"1"); err == nil {
		t.Error("no error")
	}
	if f.InDoubt() {
		t.Error("in doubt")
	}
	has(t, f.Path, "theirs")
}

// If berth is killed between two writes, the Beside files already suit both texts, and the next berth continues.
func TestKilledBetween(t *testing.T) {
	const before, after = ours + "1", ours + "2"
	for killed := range 6 {
		f := newFile(t)
		dir := filepath.Dir(f.Path)
		beside := func(a, b, c string) map[string]string {
			return map[string]string{filepath.Join(dir, "a"): a, filepath.Join(dir, "b"): b, filepath.Join(dir, "c"): c}
		}
		f.Beside = func(text string) map[string]string {
			return map[string]map[string]string{before: beside("1", "1", "1"), after: beside("2", "2", "2")}[text]
		}
		f.Between = func(from, to string) map[string]string {
			if from == to {
				return f.Beside(to)
			}
			return beside("1", "2", "1+2")
		}
		if err := f.Write(f.Path, before); err != nil {
			t.Fatal(err)
		}
		writes, err := f.writes(after)
		if err != nil {
			t.Fatal(err)
		}
		var order []string
		for _, w := range writes {
			order = append(order, filepath.Base(w.path)+"="+strings.TrimPrefix(w.text, ours))
		}
		if got := strings.Join(order, " "); got != "b=2 c=1+2 proxy.cfg=2 a=2 c=2" {
			t.Fatalf("it writes %s", got)
		}
		for _, w := range writes[:killed] {
			put(t, w.path, w.text)
		}
		if there, _ := Read(f.Path); there == after && f.InStep(after) != (killed == 5) {
			t.Errorf("after %d writes all is in step: %v", killed, killed != 5)
		}
		if err := f.Write(f.Path, after); err != nil || !f.InStep(after) {
			t.Errorf("the next berth: %v", err)
		}
		has(t, f.Path, after)
	}
}

// If a Beside file cannot be written after the text, the previous text is restored.
func TestReplaceFailsAfterwards(t *testing.T) {
	f := newFile(t)
	put(t, f.Path, ours+"1")
	f.Beside = func(text string) map[string]string {
		if text == ours+"1" {
			return nil
		}
		return map[string]string{filepath.Join(filepath.Dir(f.Path), "away", "a"): text}
	}
	f.Between = func(_, _ string) map[string]string { return nil }
	if err := f.Replace(ours+"1", ours+"2"); err == nil {
		t.Error("no error")
	}
	has(t, f.Path, ours+"1")
	if f.InDoubt() {
		t.Error("in doubt")
	}
}
