package file

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/google/renameio/v2"
)

// write brings the file to text, and reports whether its content had to change.
func (f *File) write(text string) (written bool, err error) {
	info, err := os.Stat(f.opts.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		info = nil
	case err != nil:
		return false, err
	case info.IsDir():
		return false, fmt.Errorf("write %s: it is a directory: name the file in it", f.opts.Path)
	case !info.Mode().IsRegular():
		return false, fmt.Errorf("write %s: it is not a regular file", f.opts.Path)
	default:
		has, err := os.ReadFile(f.opts.Path)
		if err != nil {
			return false, err
		}
		if string(has) == text {
			return false, f.adjust(info)
		}
	}
	if err := os.MkdirAll(filepath.Dir(f.opts.Path), 0o755); err != nil {
		return false, fmt.Errorf("write %s: %w", f.opts.Path, plain(err))
	}
	f.note()
	if err := f.replace(text, info); err != nil {
		if !f.due {
			f.unnote()
		}
		return false, fmt.Errorf("write %s: %w", f.opts.Path, plain(err))
	}
	f.due = f.opts.Action != nil
	return true, nil
}

// replace writes a new file, replacing the old one if there is one.
func (f *File) replace(text string, old fs.FileInfo) error {
	t, unowned, err := pending(f.opts.Path, f.opts.Mode, old)
	if err != nil {
		return err
	}
	defer func() { _ = t.Cleanup() }()
	if unowned != nil && f.opts.Owner == nil && !f.warned {
		f.warned = true
		f.opts.Log.Warn(f.opts.Path+" cannot keep its owner", "file", f.opts.Path, "err", unowned)
	}
	if o := f.opts.Owner; o != nil {
		if err := t.Chown(o.UID, o.GID); err != nil {
			return fmt.Errorf("change its owner to user %d, group %d: %w", o.UID, o.GID, plain(err))
		}
	}
	if _, err := t.WriteString(text); err != nil {
		return err
	}
	return t.CloseAtomicallyReplace()
}

// pending returns an empty file to replace the old one, if there is one. It has the old owner and, if mode is 0, the old mode.
// unowned says why it cannot have that owner.
func pending(path string, mode fs.FileMode, old fs.FileInfo) (t *renameio.PendingFile, unowned, err error) {
	switch {
	case mode != 0:
	case old != nil:
		mode = old.Mode().Perm()
	default:
		mode = 0o644
	}
	t, err = renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithStaticPermissions(mode))
	if err != nil || old == nil {
		return t, nil, err
	}
	if st, ok := old.Sys().(*syscall.Stat_t); ok {
		if err := t.Chown(int(st.Uid), int(st.Gid)); err != nil {
			unowned = fmt.Errorf("change its owner to user %d, group %d: %w", st.Uid, st.Gid, plain(err))
		}
	}
	return t, unowned, nil
}

// adjust sets the requested mode and owner on a file that has the right text.
func (f *File) adjust(info fs.FileInfo) error {
	if f.opts.Mode != 0 && info.Mode().Perm() != f.opts.Mode {
		if err := os.Chmod(f.opts.Path, f.opts.Mode); err != nil {
			return err
		}
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if o := f.opts.Owner; o != nil && ok && (o.UID != -1 && o.UID != int(st.Uid) || o.GID != -1 && o.GID != int(st.Gid)) {
		return os.Chown(f.opts.Path, o.UID, o.GID)
	}
	return nil
}

// plain removes the names of temporary files from an error, so that the same failure always reads the same in the log, and adds
// what to do about it.
func plain(err error) error {
	var (
		at   *fs.PathError
		link *os.LinkError
	)
	switch {
	case errors.As(err, &at):
		err = at.Err
	case errors.As(err, &link):
		err = link.Err
	}
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: its directory must be writable for user %d", err, os.Getuid())
	case errors.Is(err, syscall.EBUSY), errors.Is(err, syscall.EXDEV):
		return fmt.Errorf("%w: mount its directory, not the single file", err)
	}
	return err
}

// notePath returns the path of an empty file next to the file, which marks the action as due. The next berth reads it if this one
// ends before the action has succeeded. If it cannot be written, that action is lost.
func (f *File) notePath() string {
	return filepath.Join(filepath.Dir(f.opts.Path), "."+filepath.Base(f.opts.Path)+".action-due")
}

func (f *File) note() {
	if f.opts.Action == nil {
		return
	}
	if note, err := os.OpenFile(f.notePath(), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600); err == nil {
		note.Close()
	}
}

func (f *File) unnote() {
	if f.opts.Action != nil {
		_ = os.Remove(f.notePath())
	}
}

func (f *File) isNoted() bool {
	_, err := os.Lstat(f.notePath())
	return err == nil && f.opts.Action != nil
}
