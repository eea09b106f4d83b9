package file

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// Replacement brings several files to new contents, all of them or none, and can undo that. It must be used from one goroutine.
type Replacement struct {
	log   *slog.Logger
	steps []*step
}

// step is the change of one file.
type step struct {
	path    string
	to, was []byte      // nil = no such file
	old     fs.FileInfo // nil = no such file
	done    bool        // by Apply
}

// NewReplacement compares contents, by path, with the files; nil means that the file should not exist. It changes nothing. It
// returns an error if a differing file cannot be written, as far as that is known in advance.
func NewReplacement(contents map[string][]byte, log *slog.Logger) (*Replacement, error) {
	r := &Replacement{log: log}
	for _, path := range slices.Sorted(maps.Keys(contents)) {
		s := &step{path: path, to: contents[path]}
		err := s.read()
		if err == nil && s.differs() {
			r.steps = append(r.steps, s)
			err = writable(filepath.Dir(path))
		}
		if err != nil {
			return nil, s.failed(err)
		}
	}
	return r, nil
}

// Empty reports whether all files already have their contents.
func (r *Replacement) Empty() bool { return len(r.steps) == 0 }

// Paths returns the files that differ, sorted.
func (r *Replacement) Paths() []string {
	var paths []string
	for _, s := range r.steps {
		paths = append(paths, s.path)
	}
	return paths
}

// Apply writes the files. Each is replaced atomically and keeps its mode and owner. A new file has mode 0644, and its directory
// is created. Steps that may fail for lack of space or permission come before the first file changes. After an error, all files
// are as NewReplacement found them, unless the error says otherwise.
func (r *Replacement) Apply() error {
	files := make([]*renameio.PendingFile, len(r.steps))
	defer func() {
		for _, f := range files {
			if f != nil {
				_ = f.Cleanup()
			}
		}
	}()
	for n, s := range r.steps {
		var err error
		if files[n], err = s.prepare(s.to, r.log); err != nil {
			return err
		}
	}
	for n, s := range r.steps {
		err := s.commit(files[n])
		if err == nil {
			s.done = true
			continue
		}
		if back := r.Revert(); back != nil {
			return fmt.Errorf("%w; and the old contents cannot be put back: %w", err, back)
		}
		return err
	}
	return nil
}

// Revert undoes what Apply has done, file by file. The error names the files that could not be restored.
func (r *Replacement) Revert() error {
	var errs []error
	for _, s := range r.steps {
		if !s.done {
			continue
		}
		f, err := s.prepare(s.was, r.log)
		if err == nil {
			err = s.commit(f)
		}
		s.done = err != nil
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// prepare returns a pending file with the content, not yet in its place; nil for no content.
func (s *step) prepare(content []byte, log *slog.Logger) (*renameio.PendingFile, error) {
	if content == nil {
		return nil, nil
	}
	if err := os.MkdirAll(filepath.Dir(s.path), 0o755); err != nil {
		return nil, s.failed(err)
	}
	f, unowned, err := pending(s.path, 0, s.old)
	if err != nil {
		return nil, s.failed(err)
	}
	if unowned != nil {
		log.Warn(s.path+" cannot keep its owner", "file", s.path, "err", unowned)
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		_ = f.Cleanup()
		return nil, s.failed(err)
	}
	return f, nil
}

// commit puts a file in its place; nil removes the existing one.
func (s *step) commit(f *renameio.PendingFile) error {
	if f != nil {
		defer func() { _ = f.Cleanup() }()
		return s.failed(f.CloseAtomicallyReplace())
	}
	if err := os.Remove(s.path); !errors.Is(err, fs.ErrNotExist) {
		return s.failed(err)
	}
	return nil
}

// failed adds the file's path to an error.
func (s *step) failed(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("write %s: %w", s.path, plain(err))
}

// read reads the existing file.
func (s *step) read() (err error) {
	info, err := os.Lstat(s.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.IsDir():
		return errors.New("it is a directory: name the file in it")
	case info.Mode()&fs.ModeSymlink != 0:
		return errors.New("it is a symbolic link: name the file it points to")
	case !info.Mode().IsRegular():
		return errors.New("it is not a regular file")
	}
	s.old = info
	s.was, err = os.ReadFile(s.path)
	return err
}

// differs reports whether there is something to do.
func (s *step) differs() bool {
	return (s.to == nil) != (s.old == nil) || !bytes.Equal(s.to, s.was)
}

// writable returns why no file can be created in a directory, which may not exist yet.
func writable(dir string) error {
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) && filepath.Dir(dir) != dir {
		return writable(filepath.Dir(dir))
	}
	switch {
	case err != nil:
		return err
	case !info.IsDir():
		return fmt.Errorf("%s is not a directory", dir)
	}
	return unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS)
}
