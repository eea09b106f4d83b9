package render

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"text/template/parse"
)

// defines returns the text of every {{ define }} in a template, as the parser formats it.
func defines(text string) (map[string]string, error) {
	tree := parse.New("")
	tree.Mode = parse.SkipFuncCheck
	all := map[string]*parse.Tree{}
	if _, err := tree.Parse(text, "", "", all); err != nil {
		return nil, err
	}
	texts := map[string]string{}
	for name, t := range all {
		if name != "" && t.Root != nil {
			keepBraces(t.Root)
			texts[name] = fmt.Sprintf("{{define %q}}%s{{end}}", name, t.Root)
		}
	}
	return texts, nil
}

// keepBraces changes text that ends with a brace before an action, as in "server {{{- with .X }}": the parser removed the blanks
// between them, and the braces would be read as one delimiter.
func keepBraces(list *parse.ListNode) {
	if list == nil {
		return
	}
	for _, node := range list.Nodes {
		switch n := node.(type) {
		case *parse.TextNode:
			if rest, ends := bytes.CutSuffix(n.Text, []byte("{")); ends {
				n.Text = append(bytes.Clone(rest), `{{"{"}}`...)
			}
		case *parse.IfNode:
			keepBraces(n.List)
			keepBraces(n.ElseList)
		case *parse.WithNode:
			keepBraces(n.List)
			keepBraces(n.ElseList)
		case *parse.RangeNode:
			keepBraces(n.List)
			keepBraces(n.ElseList)
		}
	}
}

// plainCall matches a call of executeTemplate with a literal name.
var plainCall = regexp.MustCompile(`executeTemplate "[^"\\]*"`)

// closure returns a {{ define }} and all defines that it may execute by name. If it computes a name, these are all defines.
func (v *version) closure(name string) []string {
	need := []string{name}
	for n := 0; n < len(need); n++ {
		text := v.defines[need[n]]
		computes := strings.Contains(plainCall.ReplaceAllString(text, ""), "executeTemplate")
		for other := range v.defines {
			called := strings.Contains(text, fmt.Sprintf("{{template %q", other)) || strings.Contains(text, fmt.Sprintf("executeTemplate %q", other))
			if (computes || called) && !slices.Contains(need, other) {
				need = append(need, other)
			}
		}
	}
	return need
}
