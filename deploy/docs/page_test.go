package docs

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/text"
)

// page is a Markdown file as rendered by GitHub.
type page struct {
	file      string
	lines     int
	anchors   []string // of its headings
	links     []located
	blocks    []block
	sentences []located
}

// located is a text with its place, for errors.
type located struct{ where, text string }

// block is a code block.
type block struct {
	located
	language string // "" if it is indented, or fenced without a language
}

func readPage(file string) (*page, error) {
	source, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return parsePage(file, source), nil
}

func parsePage(file string, source []byte) *page {
	p := &page{file: file, lines: bytes.Count(source, []byte("\n"))}
	root := goldmark.New(goldmark.WithExtensions(extension.GFM)).Parser().Parse(text.NewReader(source))
	here := ""
	_ = ast.Walk(root, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		if !entering {
			return ast.WalkContinue, nil
		}
		if n.Type() == ast.TypeBlock && n.Lines().Len() > 0 {
			here = fmt.Sprintf("%s:%d", strings.TrimPrefix(file, repository), 1+bytes.Count(source[:n.Lines().At(0).Start], []byte("\n")))
		}
		switch n := n.(type) {
		case *ast.Heading:
			p.anchors = append(p.anchors, p.anchor(proseOf(n, source, func(code string) string { return code })))
		case *ast.Link:
			p.links = append(p.links, located{here, string(n.Destination)})
		case *ast.Image:
			p.links = append(p.links, located{here, string(n.Destination)})
		case *ast.FencedCodeBlock:
			p.blocks = append(p.blocks, block{located{here, string(n.Lines().Value(source))}, string(n.Language(source))})
		case *ast.CodeBlock:
			p.blocks = append(p.blocks, block{located{here, string(n.Lines().Value(source))}, ""})
		case *ast.Paragraph, *ast.TextBlock:
			// A code span counts as one word, and its dots end no sentence.
			for _, s := range sentences(proseOf(n, source, func(string) string { return "code" })) {
				p.sentences = append(p.sentences, located{here, s})
			}
		}
		return ast.WalkContinue, nil
	})
	return p
}

// anchor returns the anchor of the next heading, as GitHub makes it from the text.
func (p *page) anchor(heading string) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-', unicode.In(r, unicode.L, unicode.M, unicode.N, unicode.Pc):
			return unicode.ToLower(r)
		}
		return -1
	}, heading)
	unique := name
	for n := 1; slices.Contains(p.anchors, unique); n++ {
		unique = name + "-" + strconv.Itoa(n)
	}
	return unique
}

// proseOf returns the visible text of a block in one line. code returns the replacement for a code span.
func proseOf(block ast.Node, source []byte, code func(string) string) string {
	var prose strings.Builder
	_ = ast.Walk(block, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		if !entering {
			return ast.WalkContinue, nil
		}
		switch n := n.(type) {
		case *ast.CodeSpan:
			var text strings.Builder
			for c := n.FirstChild(); c != nil; c = c.NextSibling() {
				if t, ok := c.(*ast.Text); ok {
					text.Write(t.Segment.Value(source))
				}
			}
			prose.WriteString(code(text.String()))
			return ast.WalkSkipChildren, nil
		case *ast.Image:
			return ast.WalkSkipChildren, nil
		case *ast.AutoLink:
			prose.WriteString("address")
		case *ast.Text:
			prose.Write(n.Segment.Value(source))
			if n.SoftLineBreak() || n.HardLineBreak() {
				prose.WriteByte(' ')
			}
		}
		return ast.WalkContinue, nil
	})
	return strings.TrimSpace(prose.String())
}

// sentenceEnd matches the end of a sentence. The next sentence may begin with a small letter, as berth does.
var sentenceEnd = regexp.MustCompile(`[^.][.!?]["')\]]*\s+`)

// sentences returns the sentences of a paragraph.
func sentences(paragraph string) (all []string) {
	for paragraph != "" {
		end := len(paragraph)
		for _, at := range sentenceEnd.FindAllStringIndex(paragraph, -1) {
			if before := paragraph[:at[1]]; !strings.HasSuffix(before, "e.g. ") && !strings.HasSuffix(before, "i.e. ") && !strings.HasSuffix(before, "vs. ") {
				end = at[1]
				break
			}
		}
		all = append(all, strings.TrimSpace(paragraph[:end]))
		paragraph = paragraph[end:]
	}
	return all
}

// words returns the number of words in a sentence, not counting signs between them.
func words(sentence string) (n int) {
	for word := range strings.FieldsSeq(sentence) {
		if strings.ContainsFunc(word, func(r rune) bool { return unicode.IsLetter(r) || unicode.IsNumber(r) }) {
			n++
		}
	}
	return n
}
