package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// besideName is how the name of a file that a configuration refers to goes on behind that of the configuration file and
// a dot: routes-0123456789abcdef.map, where the digits tell the content. No other is written or removed. There is no dot
// in <name>: what is beside a configuration haproxy.cfg.b does not look as if it were beside haproxy.cfg.
var besideName = regexp.MustCompile(`^[A-Za-z0-9_-]+-[0-9a-f]{16}(\.[A-Za-z0-9_-]+)?$`)

// isBeside says whether path is that of a file that a configuration may refer to.
func (f *File) isBeside(path string) bool {
	file, err := filepath.Abs(f.Path)
	rest, ok := strings.CutPrefix(path, file+".")
	return err == nil && ok && besideName.MatchString(rest)
}

// Place writes the files of a configuration, path to content, that are not there yet, before anything reads its text.
// With all, it looks after those, too, that it has placed earlier: somebody may have removed one.
func (f *File) Place(files map[string]string, all bool) error {
	for _, path := range slices.Sorted(maps.Keys(files)) {
		if f.placed[path] && !all {
			continue
		}
		if !f.isBeside(path) {
			return fmt.Errorf("write %s: a file that the configuration refers to must be named %s.<name>-<16 hexadecimal digits>.<extension>, without another dot", path, f.Path)
		}
		has, err := os.ReadFile(path)
		if err == nil && string(has) == files[path] {
			continue
		}
		if f.placed[path] {
			f.Log.Warn("a file that the configuration refers to was changed or removed: it is written again", "file", path)
		}
		if err := f.Write(path, files[path]); err != nil {
			return err
		}
	}
	f.swept = f.swept && len(files) == len(f.placed)
	now := map[string]bool{}
	for path := range files {
		f.swept = f.swept && f.placed[path]
		now[path] = true
	}
	f.placed = now
	return nil
}

// Littered says whether there may be files beside the configuration that nothing refers to.
func (f *File) Littered() bool { return !f.swept }

// Sweep removes the files beside the configuration that nothing refers to any more: none of the texts, nor what the
// proxy would start with or gets back. Its workers have read theirs when they started.
func (f *File) Sweep(texts ...string) {
	for _, path := range []string{f.Path, f.Good(), f.Foreign()} {
		text, err := Read(path)
		if err != nil {
			return // the next time
		}
		texts = append(texts, text)
	}
	entries, err := os.ReadDir(filepath.Dir(f.Path))
	if err != nil {
		return
	}
	f.swept = true
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), filepath.Base(f.Path)+".")
		if !ok || !besideName.MatchString(rest) || !e.Type().IsRegular() ||
			slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(text, e.Name()) }) {
			continue
		}
		if err := os.Remove(filepath.Join(filepath.Dir(f.Path), e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			f.Log.Warn("cannot remove a file that no configuration refers to any more", "err", err)
		}
	}
}
