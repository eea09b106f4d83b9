package haproxy

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
func (p *Proxy) isBeside(path string) bool {
	file, err := filepath.Abs(p.opts.File)
	rest, ok := strings.CutPrefix(path, file+".")
	return err == nil && ok && besideName.MatchString(rest)
}

// placeFiles writes the files of a configuration that are not there yet, before anything reads its text. With all, it
// looks after those, too, that it has placed earlier: somebody may have removed one.
func (p *Proxy) placeFiles(files map[string]string, all bool) error {
	for _, path := range slices.Sorted(maps.Keys(files)) {
		if p.files[path] && !all {
			continue
		}
		if !p.isBeside(path) {
			return fmt.Errorf("write %s: a file that the configuration refers to must be named %s.<name>-<16 hexadecimal digits>.<extension>, without another dot", path, p.opts.File)
		}
		has, err := os.ReadFile(path)
		if err == nil && string(has) == files[path] {
			continue
		}
		if p.files[path] {
			p.opts.Log.Warn("a file that the configuration refers to was changed or removed: it is written again", "file", path)
		}
		if err := p.write(path, files[path]); err != nil {
			return err
		}
	}
	p.litter = p.litter || len(files) != len(p.files)
	now := map[string]bool{}
	for path := range files {
		p.litter = p.litter || !p.files[path]
		now[path] = true
	}
	p.files = now
	return nil
}

// sweep removes the files beside the configuration that nothing refers to any more: not what is wanted, not what HAProxy
// runs, nor what it would start with or gets back. Its workers have read theirs when they started.
func (p *Proxy) sweep() {
	p.file.settle()
	texts := []string{p.want.text, p.has.text}
	for _, path := range []string{p.opts.File, p.good(), p.foreign()} {
		text, err := readFile(path)
		if err != nil {
			return // the next Apply tries again
		}
		texts = append(texts, text)
	}
	entries, err := os.ReadDir(filepath.Dir(p.opts.File))
	if err != nil {
		return
	}
	p.litter = false
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), filepath.Base(p.opts.File)+".")
		if !ok || !besideName.MatchString(rest) || !e.Type().IsRegular() ||
			slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(text, e.Name()) }) {
			continue
		}
		if err := os.Remove(filepath.Join(filepath.Dir(p.opts.File), e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			p.opts.Log.Warn("cannot remove a file that no configuration refers to any more", "err", err)
		}
	}
}
