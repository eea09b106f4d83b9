package file

import (
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"berth/deploy/testenv"
)

// tree returns the files in a directory: texts by relative path.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			name, _ := filepath.Rel(dir, path)
			all[name] = read(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func wantTree(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	if got := tree(t, dir); !maps.Equal(got, want) {
		t.Errorf("there is %q, want %q", got, want)
	}
}

// in returns contents with their paths in a directory.
func in(dir string, contents map[string][]byte) map[string][]byte {
	all := map[string][]byte{}
	for name, content := range contents {
		all[filepath.Join(dir, name)] = content
	}
	return all
}

func newReplacement(t *testing.T, contents map[string][]byte) *Replacement {
	t.Helper()
	r, err := NewReplacement(contents, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestReplacement(t *testing.T) {
	dir := t.TempDir()
	before := map[string]string{"a": "1", "empty": "", "same": "s", "goes": "g"}
	for name, text := range before {
		testenv.File(t, dir, name, text)
	}
	if err := os.Chmod(filepath.Join(dir, "a"), 0o640); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		if err := os.Chown(filepath.Join(dir, "a"), 123, 456); err != nil {
			t.Fatal(err)
		}
	}
	contents := in(dir, map[string][]byte{
		"a": []byte("2"), "empty": []byte("e"), "same": []byte("s"), "goes": nil, "new/sub/b": []byte("b"), "none": nil, "c": {},
	})
	r := newReplacement(t, contents)
	if want := []string{"a", "c", "empty", "goes", "new/sub/b"}; r.Empty() || !slices.Equal(r.Paths(), paths(dir, want)) {
		t.Errorf("%q differ, want %q", r.Paths(), want)
	}
	wantTree(t, dir, before) // nothing is touched yet
	if err := r.Revert(); err != nil {
		t.Error(err)
	}
	wantTree(t, dir, before)

	for range 2 {
		if err := r.Apply(); err != nil {
			t.Fatal(err)
		}
		wantTree(t, dir, map[string]string{"a": "2", "empty": "e", "same": "s", "new/sub/b": "b", "c": ""})
		wantOwner(t, filepath.Join(dir, "a"), 0o640, 123, 456)
		wantOwner(t, filepath.Join(dir, "c"), 0o644, 0, 0)
		if again := newReplacement(t, contents); !again.Empty() {
			t.Errorf("%q differ after all was written", again.Paths())
		}
		if err := r.Revert(); err != nil {
			t.Fatal(err)
		}
		wantTree(t, dir, before)
		wantOwner(t, filepath.Join(dir, "a"), 0o640, 123, 456)
	}
}

func paths(dir string, names []string) (all []string) {
	for _, name := range names {
		all = append(all, filepath.Join(dir, name))
	}
	return all
}

// wantOwner compares a file's mode and, if the test is root, its owner.
func wantOwner(t *testing.T, path string, mode os.FileMode, uid, gid uint32) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	if info.Mode().Perm() != mode || os.Getuid() == 0 && (st.Uid != uid || st.Gid != gid) {
		t.Errorf("%s has mode %o and belongs to %d:%d, want %o, %d:%d", path, info.Mode().Perm(), st.Uid, st.Gid, mode, uid, gid)
	}
}

// Errors that can be known beforehand are reported before anything is touched.
func TestReplacementThatCannotWork(t *testing.T) {
	dir := t.TempDir()
	testenv.File(t, dir, "a", "1")
	if err := os.Symlink("a", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ path, want string }{
		{dir + "/sub", "it is a directory: name the file in it"},
		{dir + "/link", "it is a symbolic link: name the file it points to"},
		{dir + "/pipe", "it is not a regular file"},
		{dir + "/a/b", "not a directory"},
		{"/proc/sys/nosuch", ""}, // not even by root; the reason depends on how it is mounted
	} {
		_, err := NewReplacement(map[string][]byte{dir + "/0": []byte("2"), tt.path: []byte("2")}, slog.New(slog.DiscardHandler))
		if want := "write " + tt.path + ": " + tt.want; fmt.Sprint(err) != want && (tt.want != "" || !strings.HasPrefix(fmt.Sprint(err), want)) {
			t.Errorf("%s:\n got %v\nwant %s", tt.path, err, want)
		}
	}
	if _, err := os.Stat(dir + "/0"); !os.IsNotExist(err) {
		t.Errorf("another file was written: %v", err)
	}
}

// If a step fails only when it is tried, everything stays as it was.
func TestReplacementIsAllOrNothing(t *testing.T) {
	for _, tt := range []struct {
		name    string
		disturb func(dir string) error
		want    string // of the error
	}{
		{"before the first is in place", func(dir string) error { return os.WriteFile(filepath.Join(dir, "new"), []byte("x"), 0o600) }, "/new/z: not a directory"},
		{"after some are in place", func(dir string) error { return os.MkdirAll(filepath.Join(dir, "y", "full"), 0o700) }, "/y: file exists"},
		{"a removal fails", func(dir string) error {
			if err := os.Remove(filepath.Join(dir, "x")); err != nil {
				return err
			}
			return os.MkdirAll(filepath.Join(dir, "x", "full"), 0o700)
		}, "/x: directory not empty"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for _, name := range []string{"a", "b", "x"} {
				testenv.File(t, dir, name, "1")
			}
			r := newReplacement(t, in(dir, map[string][]byte{
				"a": []byte("2"), "b": nil, "c": []byte("2"), "new/z": []byte("2"), "x": nil, "y": []byte("2"),
			}))
			if err := tt.disturb(dir); err != nil {
				t.Fatal(err)
			}
			before := tree(t, dir)
			err := r.Apply()
			if err == nil || err.Error() != "write "+dir+tt.want {
				t.Errorf("%v, want %s", err, tt.want)
			}
			wantTree(t, dir, before)
			if err := r.Revert(); err != nil {
				t.Errorf("nothing is left to take back: %v", err)
			}
		})
	}
}

// A file that cannot be restored is named, and the others are restored.
func TestReplacementRevertsWhatItCan(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a", "b", "c"} {
		testenv.File(t, dir, name, "1")
	}
	r := newReplacement(t, in(dir, map[string][]byte{"a": []byte("2"), "b": []byte("2"), "c": []byte("2")}))
	if err := r.Apply(); err != nil {
		t.Fatal(err)
	}
	b := filepath.Join(dir, "b")
	if err := os.Remove(b); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(b, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := r.Revert(); err == nil || !strings.HasPrefix(err.Error(), "write "+b+": ") || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v, want one about %s", err, b)
	}
	wantTree(t, dir, map[string]string{"a": "1", "c": "1"})
	if err := os.Remove(b); err != nil {
		t.Fatal(err)
	}
	if err := r.Revert(); err != nil {
		t.Error(err)
	}
	wantTree(t, dir, map[string]string{"a": "1", "b": "1", "c": "1"})
}
