package format

import (
	"regexp"
	"slices"
	"strconv"
)

// Merge returns base overlaid with over, table by table: if both have a table under a key, these are merged. Any other value
// of over replaces the one in base, lists as a whole. The result shares nothing with either.
func Merge(base, over map[string]any) map[string]any {
	out := clone(base).(map[string]any)
	for k, v := range over {
		below, both := out[k].(map[string]any)
		if above, ok := v.(map[string]any); ok && both {
			out[k] = Merge(below, above)
		} else {
			out[k] = clone(v)
		}
	}
	return out
}

func clone(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[k] = clone(e)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = clone(e)
		}
		return out
	}
	return v
}

// Unknown returns the keys of over that defaults lacks, as sorted dotted paths: most likely spelling mistakes. A table that
// is empty in defaults may have any keys. Lists are not searched.
func Unknown(defaults, over map[string]any) []string {
	var out []string
	unknown("", defaults, over, &out)
	slices.Sort(out)
	return out
}

func unknown(prefix string, defaults, over map[string]any, out *[]string) {
	for k := range over {
		known, ok := defaults[k]
		if !ok {
			*out = append(*out, prefix+dotted(k))
			continue
		}
		below, isTable := known.(map[string]any)
		if above, ok := over[k].(map[string]any); ok && isTable && len(below) > 0 {
			unknown(prefix+dotted(k)+".", below, above, out)
		}
	}
}

var bare = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// dotted returns a key as TOML writes it in a path.
func dotted(key string) string {
	if bare.MatchString(key) {
		return key
	}
	return strconv.Quote(key)
}

// Lookup returns the value at a path of keys, and whether it exists. The empty path is the table itself.
func Lookup(table map[string]any, path ...string) (any, bool) {
	var v any = table
	for _, k := range path {
		t, ok := v.(map[string]any)
		if !ok {
			return nil, false
		}
		if v, ok = t[k]; !ok {
			return nil, false
		}
	}
	return v, true
}
