// Package format parses configuration text in TOML, YAML or JSON into tables, and merges tables.
//
// A table is a map[string]any. Its values are tables, []any, string, bool, int64, float64, nil, and the dates and times of
// TOML and YAML.
package format

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"path"
	"strings"
	"unicode/utf8"
)

// Kind is a format.
type Kind string

const (
	TOML Kind = "toml"
	YAML Kind = "yaml"
	JSON Kind = "json"
	Any  Kind = "" // unknown: Parse detects it
)

func (k Kind) String() string { return strings.ToUpper(string(k)) }

const (
	// maxDepth limits the nesting of tables and lists.
	maxDepth = 100
	// maxValues limits the values of a YAML document with its aliases expanded. It exceeds the number of characters in the
	// largest text in Consul.
	maxValues = 1 << 20
)

// KindOf returns the Kind for a file name's extension, or Any for an unknown one.
func KindOf(file string) Kind {
	switch strings.ToLower(path.Ext(file)) {
	case ".toml":
		return TOML
	case ".yaml", ".yml":
		return YAML
	case ".json":
		return JSON
	}
	return Any
}

// Parse parses a text into a table, and returns its Kind. With the hint Any it tries JSON, TOML and YAML in this order, and
// returns the error of the format that got farthest. Errors name the format, the line and the column, both from 1; columns
// count bytes in TOML and JSON. Parse also refuses duplicate keys, more than one document, text that is not a table, and
// what is too deep or too large.
func Parse(text []byte, hint Kind) (table map[string]any, kind Kind, err error) {
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	kinds := []Kind{hint}
	if hint == Any {
		kinds = []Kind{JSON, TOML, YAML}
	}
	var farthest *syntaxError
	for _, k := range kinds {
		table, err := parse(text, k)
		if err == nil {
			return table, k, nil
		}
		err.kind = k
		if farthest == nil || err.after(farthest) {
			farthest = err
		}
	}
	return nil, farthest.kind, farthest
}

func parse(text []byte, k Kind) (table map[string]any, failed *syntaxError) {
	if i := invalid(text); i >= 0 {
		return nil, at(text, i, "this is not UTF-8 text")
	}
	// The text is foreign. A library that panics on it must not end the process.
	defer func() {
		if p := recover(); p != nil {
			table, failed = nil, &syntaxError{line: 1, column: 1, text: fmt.Sprint("it cannot be parsed: ", p)}
		}
	}()
	var value any
	switch k {
	case TOML:
		value, failed = parseTOML(text)
	case YAML:
		value, failed = parseYAML(text)
	case JSON:
		value, failed = parseJSON(text)
	default:
		return nil, &syntaxError{line: 1, column: 1, text: "unknown format: use toml, yaml or json"}
	}
	if failed != nil {
		return nil, failed
	}
	value, err := normal(value, 0)
	if err != nil {
		return nil, &syntaxError{line: 1, column: 1, text: err.Error()}
	}
	table, ok := value.(map[string]any)
	if !ok {
		return nil, &syntaxError{line: 1, column: 1, text: fmt.Sprintf("it is %s, not a table of keys and values", describe(value))}
	}
	return table, nil
}

// invalid returns the offset of the first invalid UTF-8, or -1.
func invalid(text []byte) int {
	if utf8.Valid(text) {
		return -1
	}
	for i := 0; ; {
		r, size := utf8.DecodeRune(text[i:])
		if r == utf8.RuneError && size <= 1 {
			return i
		}
		i += size
	}
}

// syntaxError is an error at a place in a text.
type syntaxError struct {
	kind         Kind
	line, column int
	text         string
}

func (e *syntaxError) Error() string {
	return fmt.Sprintf("%s: line %d, column %d: %s", e.kind, e.line, e.column, e.text)
}

func (e *syntaxError) after(other *syntaxError) bool {
	return cmp.Or(cmp.Compare(e.line, other.line), cmp.Compare(e.column, other.column)) > 0
}

// at returns a syntaxError at an offset.
func at(text []byte, offset int, what string) *syntaxError {
	before := text[:min(max(offset, 0), len(text))]
	return &syntaxError{
		line:   1 + bytes.Count(before, []byte("\n")),
		column: len(before) - bytes.LastIndexByte(before, '\n'),
		text:   what,
	}
}

var errDeep = errors.New("it is nested too deeply: at most 100 levels")

// normal returns a deep copy of a parsed value. Integers are int64 where they fit, and float64 otherwise.
func normal(v any, depth int) (any, error) {
	if depth > maxDepth {
		return nil, errDeep
	}
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			n, err := normal(e, depth+1)
			if err != nil {
				return nil, err
			}
			out[k] = n
		}
		return out, nil
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			n, err := normal(e, depth+1)
			if err != nil {
				return nil, err
			}
			out[i] = n
		}
		return out, nil
	case int:
		return int64(v), nil
	case uint64:
		if int64(v) >= 0 {
			return int64(v), nil
		}
		return float64(v), nil
	case []byte: // YAML's !!binary
		return string(v), nil
	}
	return v, nil
}

func describe(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case []any:
		return "a list"
	case string:
		return "a string"
	case bool:
		return "true or false"
	case int64, float64:
		return "a number"
	}
	return "a single value"
}
