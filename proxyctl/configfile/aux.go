package configfile

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

// auxName matches an auxiliary file's name after the configuration file's name and a dot: routes-0123456789abcdef.map, where the
// digits identify the content. No other file is written or removed. The name has no further dot, so a file of haproxy.cfg.b never
// looks like one of haproxy.cfg.
var auxName = regexp.MustCompile(`^[A-Za-z0-9_-]+-[0-9a-f]{16}(\.[A-Za-z0-9_-]+)?$`)

// isAux reports whether path may be an auxiliary file of the configuration.
func (f *File) isAux(path string) bool {
	file, err := filepath.Abs(f.Path)
	rest, ok := strings.CutPrefix(path, file+".")
	return err == nil && ok && auxName.MatchString(rest)
}

// WriteAux writes a configuration's missing auxiliary files, path to content. It must run before anything reads the
// configuration. With all, it also checks files written earlier, since one may have been removed.
func (f *File) WriteAux(files map[string]string, all bool) error {
	for _, path := range slices.Sorted(maps.Keys(files)) {
		if f.written[path] && !all {
			continue
		}
		if !f.isAux(path) {
			return fmt.Errorf("write %s: a file that the configuration refers to must be named %s.<name>-<16 hexadecimal digits>.<extension>, without another dot", path, f.Path)
		}
		has, err := os.ReadFile(path)
		if err == nil && string(has) == files[path] {
			continue
		}
		if err := f.Write(path, files[path]); err != nil {
			return err
		}
		if f.written[path] {
			f.Log.Warn("restored "+path+", which the configuration refers to: it was changed or removed", "file", path)
		}
	}
	f.clean = f.clean && len(files) == len(f.written)
	now := map[string]bool{}
	for path := range files {
		f.clean = f.clean && f.written[path]
		now[path] = true
	}
	f.written = now
	return nil
}

// HasStale reports whether there may be auxiliary files that nothing refers to.
func (f *File) HasStale() bool { return !f.clean }

// RemoveStale removes auxiliary files that are no longer referred to by any of the texts, nor by what the proxy would start with
// or get back. The proxy's workers read theirs when they started.
func (f *File) RemoveStale(texts ...string) {
	for _, path := range []string{f.Path, f.Good(), f.Foreign()} {
		text, err := Read(path)
		if err != nil {
			return // try again next time
		}
		texts = append(texts, text)
	}
	entries, err := os.ReadDir(filepath.Dir(f.Path))
	if err != nil {
		return
	}
	f.clean = true
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), filepath.Base(f.Path)+".")
		if !ok || !auxName.MatchString(rest) || !e.Type().IsRegular() ||
			slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(text, e.Name()) }) {
			continue
		}
		if err := os.Remove(filepath.Join(filepath.Dir(f.Path), e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			f.Log.Warn("cannot remove "+e.Name()+", which no configuration refers to any more", "err", err)
		}
	}
}

// Elsewhere writes the auxiliary files of a text, path to content, to another directory, and returns the text with references to
// them there.
func Elsewhere(dir, text string, files map[string]string) (string, error) {
	for path, content := range files {
		elsewhere := filepath.Join(dir, filepath.Base(path))
		text = strings.ReplaceAll(text, path, elsewhere)
		if err := os.WriteFile(elsewhere, []byte(content), 0o600); err != nil {
			return "", err
		}
	}
	return text, nil
}
