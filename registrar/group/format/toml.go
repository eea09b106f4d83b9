package format

import (
	"errors"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

func parseTOML(text []byte) (any, *syntaxError) {
	table := map[string]any{}
	err := toml.Unmarshal(text, &table)
	if err == nil {
		return table, nil
	}
	what := strings.TrimPrefix(err.Error(), "toml: ")
	if failed, ok := errors.AsType[*toml.DecodeError](err); ok {
		line, column := failed.Position()
		return nil, &syntaxError{line: line, column: column, text: what}
	}
	return nil, &syntaxError{line: 1, column: 1, text: what}
}
