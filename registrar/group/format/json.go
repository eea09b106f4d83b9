package format

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

func parseJSON(text []byte) (any, *syntaxError) {
	// Unmarshal checks the whole text before it decodes anything, and limits the depth.
	var whole json.RawMessage
	if err := json.Unmarshal(text, &whole); err != nil {
		offset := len(text)
		if failed, ok := errors.AsType[*json.SyntaxError](err); ok && offset > 0 && !strings.HasPrefix(failed.Error(), "unexpected end") {
			offset = int(failed.Offset) - 1 // it includes the wrong character
		}
		return nil, at(text, offset, err.Error())
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	value, err := valueJSON(d, 0)
	if err != nil {
		return nil, at(text, int(d.InputOffset())-1, err.Error())
	}
	return value, nil
}

// valueJSON reads the next value. Decode would accept duplicate keys, and keep the last one.
func valueJSON(d *json.Decoder, depth int) (any, error) {
	if depth > maxDepth {
		return nil, errDeep
	}
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch token := token.(type) {
	case json.Number:
		return number(token)
	case json.Delim:
		if token == '[' {
			list := []any{}
			for d.More() {
				v, err := valueJSON(d, depth+1)
				if err != nil {
					return nil, err
				}
				list = append(list, v)
			}
			_, err := d.Token()
			return list, err
		}
		table := map[string]any{}
		for d.More() {
			token, err := d.Token()
			if err != nil {
				return nil, err
			}
			key := token.(string)
			if _, twice := table[key]; twice {
				return nil, fmt.Errorf("the key %q occurs twice", key)
			}
			if table[key], err = valueJSON(d, depth+1); err != nil {
				return nil, err
			}
		}
		_, err := d.Token()
		return table, err
	}
	return token, nil
}

// number returns an int64 for an integer that fits, and a float64 otherwise.
func number(n json.Number) (any, error) {
	if i, err := n.Int64(); err == nil {
		return i, nil
	}
	f, err := n.Float64()
	if errors.Is(err, strconv.ErrRange) {
		return nil, fmt.Errorf("the number %.40s is out of range", n)
	}
	return f, err
}
