package format

import (
	"errors"
	"fmt"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

func parseYAML(text []byte) (any, *syntaxError) {
	tokens := lexer.Tokenize(string(text))
	if t := tooDeep(tokens); t != nil {
		return nil, atToken(t, errDeep.Error())
	}
	file, err := parser.Parse(tokens, 0)
	if err != nil {
		return nil, errorYAML(err)
	}
	var body ast.Node
	for _, doc := range file.Docs {
		switch {
		case doc.Body == nil || doc.Body.Type() == ast.CommentType || doc.Body.Type() == ast.DirectiveType:
		case body != nil:
			return nil, atToken(doc.Body.GetToken(), "a second document begins here: use only one")
		default:
			body = doc.Body
		}
	}
	if body == nil {
		return map[string]any{}, nil
	}
	if _, failed := (sizes{}).of(body, 0); failed != nil {
		return nil, failed
	}
	var value any
	if err := yaml.NodeToValue(body, &value); err != nil {
		return nil, errorYAML(err)
	}
	if value == nil && body.Type() == ast.NullType {
		value = map[string]any{}
	}
	return value, nil
}

// tooDeep returns the token at which collections are nested too deeply for the parser. The parser recurses without a limit,
// and its time grows with the square of the depth. Indentation is not counted: a text of this size has no room for much of
// it.
func tooDeep(tokens token.Tokens) *token.Token {
	flow, opened, line := 0, 0, 0
	for _, t := range tokens {
		if t.Position.Line != line && !property(t) {
			opened, line = 0, t.Position.Line
		}
		switch {
		case t.Type == token.MappingStartType || t.Type == token.SequenceStartType:
			flow++
		case t.Type == token.MappingEndType || t.Type == token.SequenceEndType:
			flow = max(0, flow-1)
		case t.Type == token.CollectEntryType:
			opened = 0
		case t.Type == token.SequenceEntryType || t.Type == token.MappingKeyType || t.Type == token.MappingValueType || property(t):
			opened++
		}
		if flow > maxDepth || opened > maxDepth {
			return t
		}
	}
	return nil
}

// property reports whether a token is a tag, or begins or names an anchor.
func property(t *token.Token) bool {
	return t.Type == token.TagType || t.Type == token.AnchorType || (t.Prev != nil && t.Prev.Type == token.AnchorType)
}

// sizes holds the number of values behind each anchor.
type sizes map[string]int

// of counts the values of a node, with its aliases expanded: a few lines of nested aliases can expand to billions.
func (s sizes) of(node ast.Node, depth int) (size int, failed *syntaxError) {
	if depth > 3*maxDepth { // a level of tables has up to three nodes
		return 0, atToken(node.GetToken(), errDeep.Error())
	}
	var parts []ast.Node
	switch n := node.(type) {
	case *ast.MappingNode:
		for _, v := range n.Values {
			parts = append(parts, v)
		}
	case *ast.MappingValueNode:
		parts = []ast.Node{n.Key, n.Value}
	case *ast.MappingKeyNode:
		parts = []ast.Node{n.Value}
	case *ast.SequenceNode:
		parts = n.Values
	case *ast.TagNode:
		parts = []ast.Node{n.Value}
	case *ast.AnchorNode:
		parts = []ast.Node{n.Value}
		defer func() { s[n.Name.GetToken().Value] = size }()
	case *ast.AliasNode:
		name := n.Value.GetToken().Value
		size, known := s[name]
		if !known {
			return 0, atToken(n.GetToken(), fmt.Sprintf("the alias *%s has no anchor before it", name))
		}
		return size, nil
	}
	size = 1
	for _, part := range parts {
		if part == nil {
			continue
		}
		n, failed := s.of(part, depth+1)
		if failed != nil {
			return 0, failed
		}
		if size += n; size > maxValues {
			return 0, atToken(part.GetToken(), "its aliases expand to too many values")
		}
	}
	return size, nil
}

func errorYAML(err error) *syntaxError {
	var failed yaml.Error
	if errors.As(err, &failed) && failed.GetToken() != nil {
		return atToken(failed.GetToken(), failed.GetMessage())
	}
	return &syntaxError{line: 1, column: 1, text: strings.SplitN(err.Error(), "\n", 2)[0]}
}

func atToken(t *token.Token, what string) *syntaxError {
	if t == nil || t.Position == nil {
		return &syntaxError{line: 1, column: 1, text: what}
	}
	return &syntaxError{line: t.Position.Line, column: t.Position.Column, text: what}
}
