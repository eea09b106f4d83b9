// Package configfile keeps a proxy's configuration file, and what berth has beside it: the last good text while the
// proxy judges another one, the text that was there before berth, and the auxiliary files that texts refer to.
package configfile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
)

// File is a configuration file. WriteAux, HasStale and RemoveStale are called from one goroutine; all other methods may
// be called from any, as a LazyWriter does, since they read nothing but the exported fields.
type File struct {
	Path   string                 // its directory must be writable
	Marked func(text string) bool // says whether berth wrote a text, whatever became of it since
	Log    *slog.Logger

	written map[string]bool // auxiliary files of the newest text; they are in place
	clean   bool            // there are no auxiliary files that nothing refers to
}

// Good is where the text that the proxy runs is kept while it judges another: it is what can go back if berth is
// killed meanwhile.
func (f *File) Good() string { return f.Path + ".good" }

// Foreign is where a configuration is kept that berth found and did not write.
func (f *File) Foreign() string { return f.Path + ".before-berth" }

// Read returns the text of a file, "" when there is none.
func Read(path string) (string, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read configuration: %w", err)
	}
	return string(b), nil
}

// Write replaces a file at once. It gets the permissions of the configuration file, which may hold secrets.
func (f *File) Write(path, text string) error {
	mode := fs.FileMode(0o644)
	if info, err := os.Stat(f.Path); err == nil {
		mode = info.Mode().Perm()
	}
	err := renameio.WriteFile(path, []byte(text), mode)
	var (
		at   *fs.PathError
		link *os.LinkError
	)
	switch { // they name a temporary file
	case errors.As(err, &at):
		err = fmt.Errorf("%w: the directory must be writable for user %d", at.Err, os.Getuid())
	case errors.As(err, &link):
		err = fmt.Errorf("put it in place: %w", link.Err)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// Replace puts a text in place of last, which is kept until Replaced is called with how it went.
func (f *File) Replace(last, text string) error {
	if last != "" {
		if err := f.Write(f.Good(), last); err != nil {
			return err
		}
	}
	if err := f.KeepForeign(last); err != nil {
		return err
	}
	return f.Write(f.Path, text)
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
		f.Log.Warn("cannot remove the copy of an earlier configuration", "err", err)
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
	f.Log.Warn("the configuration that was there is not berth's: it is replaced, and kept in another file", "file", f.Path, "kept", f.Foreign())
	return nil
}

// Validate has check look at a text as a candidate next to the file that it may replace, for so long at most. name is
// what the check is called in the error when it takes longer.
func (f *File) Validate(ctx context.Context, timeout time.Duration, name, text string, check func(ctx context.Context, path string) error) error {
	candidate := filepath.Join(filepath.Dir(f.Path), "."+filepath.Base(f.Path)+".candidate")
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
