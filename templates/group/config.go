package group

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"berth/templates/claim"
)

// noKeyError means that the configuration lacks a key.
type noKeyError struct{ key, near string }

func (e *noKeyError) Error() string {
	if e.near != "" {
		return fmt.Sprintf("there is no key %.200q (did you mean %.200q?)", e.key, e.near)
	}
	return fmt.Sprintf("there is no key %.200q: give it a default, or use cfgOrDefault", e.key)
}

// lookUp returns the value at a path of keys. A key with dots that does not exist itself is split at the dots.
func lookUp(table map[string]any, path []string) (any, error) {
	var value any = table
	var at []string // the keys so far
	for _, key := range path {
		keys := []string{key}
		if t, ok := value.(map[string]any); ok && !has(t, key) {
			keys = strings.Split(key, ".")
		}
		for n, key := range keys {
			t, ok := value.(map[string]any)
			if !ok {
				return nil, fmt.Errorf("there is no key %.200q, because %.200q is %s, not a table",
					strings.Join(append(at, keys[n:]...), "."), strings.Join(at, "."), kind(value))
			}
			if !has(t, key) {
				e := &noKeyError{key: strings.Join(append(slices.Clone(at), key), ".")}
				if near := nearest(key, t); near != "" {
					e.near = strings.Join(append(at, near), ".")
				}
				return nil, e
			}
			value, at = t[key], append(at, key)
		}
	}
	return usable(value), nil
}

// lookUpOr is like lookUp, except that the last argument is the default.
func lookUpOr(table map[string]any, key string, rest []any) (any, error) {
	if len(rest) == 0 {
		return nil, fmt.Errorf("a default is missing after the key %.200q", key)
	}
	path := []string{key}
	for _, arg := range rest[:len(rest)-1] {
		key, ok := arg.(string)
		if !ok {
			return nil, fmt.Errorf("keys are strings, and the last argument is the default: %v is no key", arg)
		}
		path = append(path, key)
	}
	value, err := lookUp(table, path)
	if errors.As(err, new(*noKeyError)) {
		return rest[len(rest)-1], nil
	}
	return value, err
}

// has reports whether a table has a value for a key. A null does not count: a layer uses it to remove a value of a lower
// layer.
func has(t map[string]any, key string) bool { return t[key] != nil }

// usable returns a copy of a value for a template: a list of strings becomes a []string, which the function join accepts.
func usable(value any) any {
	switch v := value.(type) {
	case map[string]any:
		table := make(map[string]any, len(v))
		for key, value := range v {
			table[key] = usable(value)
		}
		return table
	case []any:
		list, texts := make([]any, len(v)), make([]string, len(v))
		all := true
		for n, value := range v {
			text, is := value.(string)
			list[n], texts[n], all = usable(value), text, all && is
		}
		if all {
			return texts
		}
		return list
	default:
		return value
	}
}

func kind(value any) string {
	switch value.(type) {
	case []any:
		return "a list"
	case string:
		return "a string"
	case bool:
		return "a bool"
	default:
		return "a single value"
	}
}

// nearest returns the key of a table that another key probably means; "" without one.
func nearest(key string, t map[string]any) string {
	const longest = 50 // longer comparisons are slow
	if len(key) > longest {
		return ""
	}
	best, least := "", 1+min(3, max(1, len(key)/3))
	for _, known := range slices.Sorted(maps.Keys(t)) {
		if len(known) > longest || !has(t, known) {
			continue
		}
		if d := claim.Distance(strings.ToLower(key), strings.ToLower(known)); d < least {
			best, least = known, d
		}
	}
	return best
}
