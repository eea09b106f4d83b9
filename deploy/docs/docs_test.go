package docs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"text/template/parse"

	"github.com/goccy/go-yaml"
)

const (
	repository = "../../"

	readmeLines   = 120
	sentenceWords = 40
)

// pages returns the documentation: all Markdown files of the repository.
func pages(t *testing.T) (all []*page) {
	t.Helper()
	err := filepath.WalkDir(repository, func(path string, entry fs.DirEntry, err error) error {
		switch name := entry.Name(); {
		case err != nil:
			return err
		case entry.IsDir() && (name == "build" || strings.HasPrefix(name, ".") && path != repository):
			return fs.SkipDir
		case filepath.Ext(path) != ".md":
			return nil
		}
		p, err := readPage(path)
		all = append(all, p)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, needed := range []string{"README.md", "CHANGELOG.md", "docs/README.md", "docs/reference/cli.md"} {
		if !slices.ContainsFunc(all, func(p *page) bool { return p.file == repository+needed }) {
			t.Fatalf("%s is missing", needed)
		}
	}
	return all
}

// Every relative link leads to a file of the repository, and every anchor to a heading.
func TestDocsLinks(t *testing.T) {
	count := 0
	for _, p := range pages(t) {
		for _, link := range p.links {
			if err := checkLink(p, link.text); err != nil {
				t.Errorf("%s: %v", link.where, err)
			}
			count++
		}
	}
	t.Logf("%d links", count)
}

// lineAnchor matches the anchor of a line in a file that is no page.
var lineAnchor = regexp.MustCompile(`^L\d+(-L\d+)?$`)

func checkLink(p *page, link string) error {
	to, err := url.Parse(link)
	if err != nil || to.Scheme != "" || to.Host != "" {
		return err
	}
	target := p
	if to.Path != "" {
		path := filepath.Join(filepath.Dir(p.file), filepath.FromSlash(to.Path))
		if in, err := filepath.Rel(repository, path); err != nil || !filepath.IsLocal(in) || strings.HasPrefix(to.Path, "/") {
			return fmt.Errorf("link %s leads out of the repository", link)
		}
		info, err := os.Stat(path)
		if err != nil {
			return fmt.Errorf("link %s: %w", link, err)
		}
		if info.IsDir() {
			path = filepath.Join(path, "README.md")
		}
		switch {
		case to.Fragment == "", lineAnchor.MatchString(to.Fragment) && filepath.Ext(path) != ".md":
			return nil
		}
		if target, err = readPage(path); err != nil {
			return fmt.Errorf("link %s: %w", link, err)
		}
	}
	if to.Fragment != "" && !slices.Contains(target.anchors, to.Fragment) {
		return fmt.Errorf("link %s: no heading of %s has this anchor", link, filepath.Base(target.file))
	}
	return nil
}

// Every code block of YAML and every template can be parsed.
func TestDocsCode(t *testing.T) {
	ofYAML, templates := 0, 0
	for _, p := range pages(t) {
		for _, b := range p.blocks {
			if text, ok := yamlOf(b); ok {
				ofYAML++
				if err := checkYAML(text); err != nil {
					t.Errorf("%s: this is no YAML: %v", b.where, err)
				}
			}
			if isTemplate(b) {
				templates++
				if err := checkTemplate(b.text); err != nil {
					t.Errorf("%s: this is no template: %v", b.where, err)
				}
			}
		}
	}
	t.Logf("%d blocks of YAML, %d templates", ofYAML, templates)
}

// firstKey matches a line with which YAML begins.
var firstKey = regexp.MustCompile(`^[A-Za-z_][\w.-]*:(\s|$)`)

// command matches the line of a command below YAML, after a blank line.
var command = regexp.MustCompile(`\n\n[a-z][\w-]* [^:\n]*(\n|$)`)

// yamlOf returns the YAML of a block that is marked as YAML, or has no language and begins with a key after comments. Such
// a block may end with a command for the YAML.
func yamlOf(b block) (string, bool) {
	if b.language != "" {
		return b.text, b.language == "yaml" || b.language == "yml"
	}
	for line := range strings.Lines(b.text) {
		if strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if !firstKey.MatchString(line) {
			break
		}
		if at := command.FindStringIndex(b.text); at != nil {
			return b.text[:at[0]+1], true
		}
		return b.text, true
	}
	return "", false
}

func checkYAML(text string) error {
	for decoder := yaml.NewDecoder(strings.NewReader(text)); ; {
		var document any
		if err := decoder.Decode(&document); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// isTemplate reports whether a block is or contains a template. Among the languages of fenced blocks, Handlebars has {{ as
// well.
func isTemplate(b block) bool {
	return strings.Contains(b.text, "{{") && !slices.Contains([]string{"handlebars", "yaml", "yml"}, b.language)
}

// checkTemplate parses a template and accepts any function name.
func checkTemplate(text string) error {
	tree := parse.New("template")
	tree.Mode = parse.SkipFuncCheck
	_, err := tree.Parse(text, "", "", map[string]*parse.Tree{})
	return err
}

// No sentence is too long.
func TestDocsSentences(t *testing.T) {
	count := 0
	for _, p := range pages(t) {
		for _, s := range p.sentences {
			if n := words(s.text); n > sentenceWords {
				t.Errorf("%s: a sentence of %d words, more than %d: %s", s.where, n, sentenceWords, s.text)
			}
			count++
		}
	}
	t.Logf("%d sentences", count)
}

func TestDocsReadmeLength(t *testing.T) {
	p, err := readPage(repository + "README.md")
	if err != nil {
		t.Fatal(err)
	}
	if p.lines > readmeLines {
		t.Errorf("README.md has %d lines, at most %d are read", p.lines, readmeLines)
	}
}
