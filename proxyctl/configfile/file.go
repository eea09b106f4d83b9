// Package configfile keeps a proxy's configuration file and the files next to it: the last good text while the proxy judges
// another one, the text that was there before berth, and the auxiliary files that texts refer to.
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

// File is a configuration file. WriteAux, HasStale and RemoveStale must be called from one goroutine. All other methods may be
// called from any goroutine, as LazyWriter does, since they read only the exported fields.
type File struct {
	Path   string                 // its directory must be writable
	Marked func(text string) bool // reports whether berth wrote a text, even if it was changed since
	Log    *slog.Logger
	// Beside, if not nil, returns the files that belong to a text and keep their names when they change, path to content. Between
	// returns contents for these files that suit both texts: a proxy that starts with either one serves what it can.
	Beside  func(text string) map[string]string
	Between func(from, to string) map[string]string

	unowned sync.Once       // whether the lost owner was logged
	written map[string]bool // auxiliary files of the newest text, all in place
	clean   bool            // there are no auxiliary files that nothing refers to
}

// Good is the path of a copy of the running text while the proxy judges another one. It can be restored if berth is killed
// meanwhile.
func (f *File) Good() string { return f.Path + ".good" }

// Candidate is the path of a text that is being checked, next to the file that it may replace.
func Candidate(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".candidate")
}

// Foreign is the path of the copy of a configuration that berth found and did not write.
func (f *File) Foreign() string { return f.Path + ".before-berth" }

// Read returns the text of a file, "" if there is no such file.
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

// Write replaces a file atomically. The file gets the permissions and the owner of the configuration file: it may hold secrets,
// and the proxy must be able to read it even if berth is root and the proxy is not. A configuration that is a symbolic link
// remains one. Other links are replaced; otherwise a user who can create links here could have berth write to any target.
//
// The Beside files are written with the configuration file: first contents that suit both texts, then the text, then the final
// contents. If berth is killed in between, the proxy can start with what is there.
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

// writes returns the writes that put a text and its Beside files in place, in order.
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
	switch { // these errors name a temporary file
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

// InStep reports whether the Beside files of a text exist with the right contents.
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

// give changes the owner of a file. Without permission to do so, it tries to set at least the group, which berth may be a member
// of.
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

// ownerOf returns the user and the group of a file, if it exists.
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

// Replace puts a text in place of last, and keeps last until Replaced is called with the outcome.
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
	if now, _ := Read(f.Path); now == text { // only a Beside file failed
		return f.Replaced(last, err)
	}
	f.ForgetGood() // the proxy judges nothing
	return err
}

// Replaced restores last if the proxy did not accept the text that replaced it. If last is empty, it removes the file, so that no
// restart loads a refused text. It returns failed, joined with the error of restoring.
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

// InDoubt reports whether berth was killed between Replace and Replaced.
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

// KeepForeign keeps a copy of a configuration that berth did not write, before berth overwrites it for the first time.
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

// writeMissing writes the Beside files of a text that do not exist. Existing ones belong to the text in place.
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

// Validate has check look at a text as a candidate, next to the file that it may replace, for at most timeout. name is the name
// of the check in the error if it takes longer.
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
