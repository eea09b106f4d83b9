// Package configfile keeps a proxy's configuration file, and what berth has beside it: the last good text while the
// proxy judges another one, the text that was there before berth, and the auxiliary files that texts refer to.
package configfile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
)

// File is a configuration file. WriteAux, HasStale and RemoveStale are called from one goroutine; all other methods may
// be called from any, as a LazyWriter does, since they read nothing but the exported fields.
type File struct {
	Path   string                 // its directory must be writable
	Marked func(text string) bool // says whether berth wrote a text, whatever became of it since
	Log    *slog.Logger
	// Beside, if not nil, returns the contents of the files that a text has beside it under names that stay the same, by path.
	// Between returns contents of these files with which a proxy that starts serves what it can with either text.
	Beside  func(text string) map[string]string
	Between func(from, to string) map[string]string

	unowned sync.Once       // it was said that the owner cannot be kept
	written map[string]bool // auxiliary files of the newest text; they are in place
	clean   bool            // there are no auxiliary files that nothing refers to
}

// Good is where the text that the proxy runs is kept while it judges another: it is what can go back if berth is
// killed meanwhile.
func (f *File) Good() string { return f.Path + ".good" }

// Candidate is where a text is put to be checked, next to the file that it may replace.
func Candidate(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".candidate")
}

// Foreign is where a configuration is kept that berth found and did not write.
func (f *File) Foreign() string { return f.Path + ".before-berth" }

// Read returns the text of a file, "" when there is none.
func Read(path string) (string, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if errors.Is(err, syscall.EISDIR) {
		return "", fmt.Errorf("read configuration: %s is a directory: name one file in it for berth", path)
	}
	if err != nil {
		return "", fmt.Errorf("read configuration: %w", err)
	}
	return string(b), nil
}

// Write replaces a file at once. It gets the permissions and the owner of the configuration file, which may hold secrets, and
// which the proxy has to be able to read: berth may be root, and the proxy is not. A configuration that is a symbolic link stays
// one. Other links are replaced, or whoever makes one here could have berth write to where it leads.
//
// With a text in place of the configuration file come the files beside it: first as they fit both texts, and after the text as
// they are meant to be. Wherever berth is killed meanwhile, the proxy can start with what is there.
func (f *File) Write(path, text string) error {
	if path != f.Path || f.Beside == nil {
		return f.replace(path, text)
	}
	writes, err := f.writes(text)
	if err != nil {
		return err
	}
	for _, w := range writes {
		if err := f.replace(w.path, w.text); err != nil {
			return err
		}
	}
	return nil
}

type write struct{ path, text string }

// writes returns what puts a text in place with the files beside it, in this order.
func (f *File) writes(text string) (writes []write, err error) {
	from, err := Read(f.Path)
	if err != nil {
		return nil, err
	}
	between, after := f.Between(from, text), f.Beside(text)
	for _, path := range slices.Sorted(maps.Keys(between)) {
		if has, err := os.ReadFile(path); err != nil || string(has) != between[path] {
			writes = append(writes, write{path, between[path]})
		}
	}
	writes = append(writes, write{f.Path, text})
	for _, path := range slices.Sorted(maps.Keys(after)) {
		if between[path] != after[path] {
			writes = append(writes, write{path, after[path]})
		}
	}
	return writes, nil
}

// replace replaces one file.
func (f *File) replace(path, text string) error {
	if to, err := filepath.EvalSymlinks(path); err == nil && path == f.Path {
		path = to
	}
	err := f.write(path, text)
	var (
		at   *fs.PathError
		link *os.LinkError
	)
	switch { // they name a temporary file
	case errors.As(err, &at) && isForbidden(at.Err):
		err = fmt.Errorf("%w: the directory must be writable for user %d", at.Err, os.Getuid())
	case errors.As(err, &at):
		err = at.Err
	case errors.As(err, &link) && errors.Is(link.Err, syscall.EBUSY):
		err = fmt.Errorf("put it in place: %w: share its directory, not the single file", link.Err)
	case errors.As(err, &link):
		err = fmt.Errorf("put it in place: %w", link.Err)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// InStep says whether the files that a text has beside it are there, with the right contents.
func (f *File) InStep(text string) bool {
	if f.Beside == nil {
		return true
	}
	for path, wants := range f.Beside(text) {
		if has, err := os.ReadFile(path); err != nil || string(has) != wants {
			return false
		}
	}
	return true
}

func isForbidden(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS)
}

func (f *File) write(path, text string) error {
	mode := fs.FileMode(0o644)
	like, err := os.Stat(f.Path)
	if err == nil {
		mode = like.Mode().Perm()
	}
	file, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithStaticPermissions(mode))
	if err != nil {
		return err
	}
	defer func() { _ = file.Cleanup() }()
	if uid, gid, ok := ownerOf(like); ok && (uid != os.Geteuid() || gid != os.Getegid()) {
		f.give(file.Chown, uid, gid, mode)
	}
	if _, err := file.WriteString(text); err != nil {
		return err
	}
	return file.CloseAtomicallyReplace()
}

// give hands a file to another owner. Without the right to do so, the group at least may be one of berth's.
func (f *File) give(chown func(uid, gid int) error, uid, gid int, mode fs.FileMode) {
	const group, others = 0o040, 0o004
	err := chown(uid, gid)
	if err == nil {
		return
	}
	inGroup := chown(-1, gid) == nil
	if mode&others != 0 || inGroup && mode&group != 0 {
		return
	}
	f.unowned.Do(func() {
		f.Log.Warn(f.Path+" cannot keep its owner: the proxy may be unable to read it at its next start; run berth as root or as that owner",
			"file", f.Path, "uid", uid, "gid", gid, "mode", mode, "err", err)
	})
}

// ownerOf returns the user and the group of a file, if it is there.
func ownerOf(info fs.FileInfo) (uid, gid int, ok bool) {
	if info == nil {
		return 0, 0, false
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, false
	}
	return int(s.Uid), int(s.Gid), true
}

// Replace puts a text in place of last, which is kept until Replaced is called with how it went.
func (f *File) Replace(last, text string) error {
	if err := f.KeepForeign(last); err != nil {
		return err
	}
	if last != "" {
		if err := f.Write(f.Good(), last); err != nil {
			return err
		}
	}
	err := f.Write(f.Path, text)
	if err == nil {
		return nil
	}
	if now, _ := Read(f.Path); now == text { // but for a file beside it
		return f.Replaced(last, err)
	}
	f.ForgetGood() // nothing is judged
	return err
}

// Replaced puts last back if the proxy did not take the text that replaced it; without a last one the file is removed,
// so that no restart meets a refused text. It returns failed, joined with the error of putting back.
func (f *File) Replaced(last string, failed error) error {
	switch {
	case failed == nil:
	case last == "":
		if err := os.Remove(f.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return errors.Join(failed, err)
		}
	default:
		if err := f.Write(f.Path, last); err != nil {
			return errors.Join(failed, err)
		}
	}
	f.ForgetGood()
	return failed
}

// InDoubt says whether berth was killed between Replace and Replaced.
func (f *File) InDoubt() bool {
	_, err := os.Stat(f.Good())
	return err == nil
}

// ForgetGood removes the copy that Replace made.
func (f *File) ForgetGood() {
	if err := os.Remove(f.Good()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		f.Log.Warn("cannot remove "+f.Good()+", the copy of an earlier configuration", "err", err)
	}
}

// KeepForeign keeps a configuration that berth did not write, the first time it would overwrite one.
func (f *File) KeepForeign(text string) error {
	if text == "" || f.Marked(text) {
		return nil
	}
	if _, err := os.Stat(f.Foreign()); err == nil {
		return nil
	}
	if err := f.Write(f.Foreign(), text); err != nil {
		return err
	}
	f.Log.Warn("berth did not write "+f.Path+": kept it as "+f.Foreign()+" before replacing it", "file", f.Path, "kept", f.Foreign())
	return nil
}

// writeMissing writes the files beside a text that are not there. The others belong to the text that is there.
func (f *File) writeMissing(text string) error {
	if f.Beside == nil {
		return nil
	}
	files := f.Beside(text)
	for _, path := range slices.Sorted(maps.Keys(files)) {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := f.replace(path, files[path]); err != nil {
			return err
		}
	}
	return nil
}

// Validate has check look at a text as a candidate next to the file that it may replace, for so long at most. name is
// what the check is called in the error when it takes longer.
func (f *File) Validate(ctx context.Context, timeout time.Duration, name, text string, check func(ctx context.Context, path string) error) error {
	if err := f.writeMissing(text); err != nil {
		return err
	}
	candidate := Candidate(f.Path)
	if err := f.Write(candidate, text); err != nil {
		return err
	}
	defer os.Remove(candidate)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := check(ctx, candidate)
	if ctx.Err() != nil {
		return fmt.Errorf("%s did not finish within %s", name, timeout)
	}
	return err
}
