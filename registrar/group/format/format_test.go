package format

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	for name, tt := range map[string]struct {
		text string
		hint Kind
		kind Kind
		want map[string]any
	}{
		"TOML":               {"a = 1\nb = 1.0\n[c]\nd = ['x', true]", Any, TOML, map[string]any{"a": int64(1), "b": 1.0, "c": map[string]any{"d": []any{"x", true}}}},
		"tables in TOML":     {"[[a]]\nb = 1\n[[a]]\nb = 2", TOML, TOML, map[string]any{"a": []any{map[string]any{"b": int64(1)}, map[string]any{"b": int64(2)}}}},
		"JSON":               {`{"a": 1, "b": 1.0, "c": {"d": [null, "x"]}}`, Any, JSON, map[string]any{"a": int64(1), "b": 1.0, "c": map[string]any{"d": []any{nil, "x"}}}},
		"numbers in JSON":    {`{"a": 9223372036854775807, "b": 9223372036854775808, "c": -1, "d": 1e3}`, JSON, JSON, map[string]any{"a": int64(9223372036854775807), "b": 9223372036854775808.0, "c": int64(-1), "d": 1000.0}},
		"YAML":               {"a: 1\nb: 1.0\nc:\n  d: [x, -2, ~]", Any, YAML, map[string]any{"a": int64(1), "b": 1.0, "c": map[string]any{"d": []any{"x", int64(-2), nil}}}},
		"numbers in YAML":    {"a: 9223372036854775807\nb: 9223372036854775808\nc: 0x10", YAML, YAML, map[string]any{"a": int64(9223372036854775807), "b": 9223372036854775808.0, "c": int64(16)}},
		"keys in YAML":       {"1: a\nnull: b", YAML, YAML, map[string]any{"1": "a", "null": "b"}},
		"aliases":            {"a: &x {b: 1}\nc: *x\nd:\n  <<: *x\n  e: 2", YAML, YAML, map[string]any{"a": map[string]any{"b": int64(1)}, "c": map[string]any{"b": int64(1)}, "d": map[string]any{"b": int64(1), "e": int64(2)}}},
		"JSON is YAML":       {`{"a": 1}`, YAML, YAML, map[string]any{"a": int64(1)}},
		"document markers":   {"%YAML 1.2\n---\na: 1\n...\n", YAML, YAML, map[string]any{"a": int64(1)}},
		"empty":              {"", Any, TOML, map[string]any{}},
		"a comment in YAML":  {"# nothing\n", YAML, YAML, map[string]any{}},
		"empty document":     {"---\n", YAML, YAML, map[string]any{}},
		"byte order mark":    {"\ufeffa = 1", Any, TOML, map[string]any{"a": int64(1)}},
		"lines end in CR LF": {"a = 1\r\nb = 2\r\n", Any, TOML, map[string]any{"a": int64(1), "b": int64(2)}},
		"a hundred levels":   {strings.Repeat(`{"a":`, 100) + "1" + strings.Repeat("}", 100), YAML, YAML, nested(100)},
	} {
		t.Run(name, func(t *testing.T) {
			got, kind, err := Parse([]byte(tt.text), tt.hint)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" || kind != tt.kind {
				t.Errorf("kind %q, table (-want +got):\n%s", kind, diff)
			}
		})
	}
}

func nested(levels int) map[string]any {
	var v any = int64(1)
	for range levels {
		v = map[string]any{"a": v}
	}
	return v.(map[string]any)
}

func TestParseErrors(t *testing.T) {
	for name, tt := range map[string]struct {
		text string
		hint Kind
		want string
	}{
		"TOML":                   {"a = 1\nb = = 2", TOML, "TOML: line 2, column 5: "},
		"JSON":                   {"{\n \"a\": 1,\n \"b\": x\n}", JSON, "JSON: line 3, column 7: invalid character 'x'"},
		"JSON that ends early":   {"{\n \"a\": 1", JSON, "JSON: line 2, column 8: unexpected end"},
		"empty JSON":             {"", JSON, "JSON: line 1, column 1: unexpected end"},
		"more after JSON":        {`{"a": 1} x`, JSON, "JSON: line 1, column 10: "},
		"YAML":                   {"a: 1\nb: c: d", YAML, "YAML: line 2, column 4: "},
		"tab in YAML":            {"a:\n\tb: 1", YAML, "YAML: line 2, column 1: "},
		"farthest":               {"a = 1\nb = 2\nc = !", Any, "TOML: line 3, column 5: "},
		"farthest is JSON":       {"{\"a\": 1,\n\"b\": 2,\n\"c\": \"}", Any, "JSON: line 3, column 8: "},
		"plain text":             {"hello", Any, "TOML: line 1, column 5: expected '='"},
		"list in JSON":           {"[1]", JSON, "JSON: line 1, column 1: it is a list, not a table"},
		"list in YAML":           {"- a", YAML, "YAML: line 1, column 1: it is a list, not a table"},
		"duplicate in TOML":      {"a = 1\na = 2", TOML, "TOML: line 2, column 1: key a is already defined"},
		"table twice in TOML":    {"[a]\n[b]\n[a]", TOML, "TOML: line 3, column 2: table a already exists"},
		"duplicate in JSON":      {"{\"a\": 1,\n \"a\": 2}", JSON, "JSON: line 2, column 4: the key \"a\" occurs twice"},
		"duplicate in YAML":      {"a: 1\nb: {c: 1, c: 2}", YAML, `YAML: line 2, column 11: mapping key "c" already defined`},
		"documents":              {"a: 1\n---\nb: 2", YAML, "YAML: line 3, column 2: a second document begins here"},
		"documents after an end": {"a: 1\n...\nb: 2", YAML, "YAML: line 3, column 2: a second document begins here"},
		"no UTF-8":               {"a = 1\nb = \"\xff\"", Any, "JSON: line 2, column 6: this is not UTF-8 text"},
		"number":                 {`{"a": 1e999}`, JSON, "JSON: line 1, column 11: the number 1e999 is out of range"},
		"number in TOML":         {"a = 99999999999999999999", TOML, "TOML: line 1, column 5: "},
		"alias":                  {"a: *x", YAML, "YAML: line 1, column 4: the alias *x has no anchor before it"},
		"alias of itself":        {"a: &x [*x]", YAML, "YAML: line 1, column 8: the alias *x has no anchor before it"},
		"billion laughs":         {laughs("[@, @, @, @, @, @, @, @, @]"), YAML, "YAML: line 7, column 25: its aliases expand to too many values"},
		"billion merges":         {laughs("{p: {<<: @}, q: {<<: @}, r: {<<: @}, s: {<<: @}, t: {<<: @}, u: {<<: @}}"), YAML, "expand to too many values"},
		"format":                 {"a", "ini", "INI: line 1, column 1: unknown format"},
	} {
		t.Run(name, func(t *testing.T) {
			table, _, err := Parse([]byte(tt.text), tt.hint)
			if err == nil {
				t.Fatalf("it is %v", table)
			}
			if !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%q, want %q", err, tt.want)
			}
		})
	}
}

// laughs defines nine anchors, each with aliases of the previous one in place of "@".
func laughs(of string) string {
	text := "a0: &a0 {x: 1}\n"
	for i := range 9 {
		text += fmt.Sprintf("a%d: &a%d ", i+1, i+1) + strings.ReplaceAll(of, "@", fmt.Sprintf("*a%d", i)) + "\n"
	}
	return text
}

// A text nested as deeply as its size allows is refused at once, and does not overflow the stack.
func TestParseDeep(t *testing.T) {
	const size = 500 << 10
	for name, tt := range map[string]struct {
		text string
		hint Kind
	}{
		"JSON lists":              {strings.Repeat("[", size), JSON},
		"JSON tables":             {strings.Repeat(`{"a":`, 200) + "1" + strings.Repeat("}", 200), JSON},
		"TOML lists":              {"a = " + strings.Repeat("[", size), TOML},
		"TOML inline tables":      {"a = " + strings.Repeat("{a = ", 200) + "1" + strings.Repeat("}", 200), TOML},
		"TOML dotted key":         {strings.Repeat("a.", size/2) + "a = 1", TOML},
		"TOML table":              {"[" + strings.Repeat("a.", size/2) + "a]\n", TOML},
		"YAML lists":              {"a: " + strings.Repeat("[", size), YAML},
		"YAML tables":             {strings.Repeat("{a: ", size/4), YAML},
		"YAML compact lists":      {strings.Repeat("- ", size/2), YAML},
		"YAML compact lists in a": {"a:\n  " + strings.Repeat("- ", size/2), YAML},
		"YAML keys":               {strings.Repeat("? ", size/2), YAML},
		"YAML values":             {strings.Repeat("a: ", size/3), YAML},
		"YAML tags":               {"a: " + strings.Repeat("!t ", size/3), YAML},
		"YAML tags in lines":      {"a:\n" + strings.Repeat(" !t\n", size/4), YAML},
		"YAML anchors in lines":   {"a:\n" + strings.Repeat(" &t\n", size/4), YAML},
		"YAML keys in a list":     {"[" + strings.Repeat("? ", size/2), YAML},
		"YAML indented":           {indented(900), YAML},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			if _, _, err := Parse([]byte(tt.text), tt.hint); err == nil {
				t.Error("it is not refused")
			} else if took := time.Since(start); took > time.Minute {
				t.Errorf("refused after %v: %.100v", took, err)
			} else {
				t.Logf("after %v: %.100v", took, err)
			}
		})
	}
}

func indented(levels int) string {
	var b strings.Builder
	for i := range levels {
		b.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	return b.String()
}

func TestKindOf(t *testing.T) {
	for file, want := range map[string]Kind{"a.toml": TOML, "/x/a.YAML": YAML, "a.yml": YAML, "a.b.json": JSON, "toml": Any, "-": Any, "a.conf": Any} {
		if got := KindOf(file); got != want {
			t.Errorf("%s: %q, want %q", file, got, want)
		}
	}
}

func table(t *testing.T, text string) map[string]any {
	t.Helper()
	out, _, err := Parse([]byte(text), TOML)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestMerge(t *testing.T) {
	for name, tt := range map[string]struct{ base, over, want string }{
		"tables":              {"a = 1\n[b]\nc = 1\nd = 1", "[b]\nd = 2\ne = 2", "a = 1\n[b]\nc = 1\nd = 2\ne = 2"},
		"deeper":              {"[a.b]\nc = 1\nd = 1", "[a.b]\nc = 2", "[a.b]\nc = 2\nd = 1"},
		"lists":               {"a = [1, 2]", "a = [3]", "a = [3]"},
		"table over a scalar": {"a = 1", "[a]\nb = 2", "[a]\nb = 2"},
		"scalar over a table": {"[a]\nb = 1", "a = 2", "a = 2"},
		"nothing over":        {"a = 1", "", "a = 1"},
		"over nothing":        {"", "[a]\nb = 1", "[a]\nb = 1"},
	} {
		t.Run(name, func(t *testing.T) {
			base, over := table(t, tt.base), table(t, tt.over)
			got := Merge(base, over)
			if diff := cmp.Diff(table(t, tt.want), got); diff != "" {
				t.Error(diff)
			}
			spoil(got)
			if !reflect.DeepEqual(base, table(t, tt.base)) || !reflect.DeepEqual(over, table(t, tt.over)) {
				t.Error("the result shares something with what it was made from")
			}
		})
	}
	if got := Merge(nil, nil); got == nil || len(got) != 0 {
		t.Errorf("of nothing: %v", got)
	}
}

// spoil changes everything changeable in a value.
func spoil(v any) {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			spoil(e)
			v[k] = "spoilt"
		}
	case []any:
		for i, e := range v {
			spoil(e)
			v[i] = "spoilt"
		}
	}
}

func TestUnknown(t *testing.T) {
	defaults := "greeting = 'Hello'\n[log]\nlevel = 'info'\n[labels]\n[a.b]\nc = 1"
	for name, tt := range map[string]struct {
		over string
		want []string
	}{
		"all known":                {"greeting = 'Sup'\n[log]\nlevel = 'debug'", nil},
		"misspelt":                 {"greting = 'Sup'\n[log]\nlevle = 'debug'\n[a.b]\nd = 1", []string{"a.b.d", "greting", "log.levle"}},
		"a table is named once":    {"[x.y]\nz = 1", []string{"x"}},
		"free-form table":          {"[labels]\nx = 1", nil},
		"a table where none was":   {"[greeting]\nx = 1", nil},
		"keys with dots are clear": {"'x.y' = 1\n[log]\n'a b' = 1", []string{`"x.y"`, `log."a b"`}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, Unknown(table(t, defaults), table(t, tt.over))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestLookup(t *testing.T) {
	in := table(t, "a = 1\n[b.c]\nd = 'x'")
	for _, tt := range []struct {
		path  []string
		want  any
		found bool
	}{
		{[]string{"a"}, int64(1), true}, {[]string{"b", "c", "d"}, "x", true}, {nil, in, true},
		{[]string{"x"}, nil, false}, {[]string{"a", "b"}, nil, false}, {[]string{"b", "x", "d"}, nil, false},
	} {
		if got, found := Lookup(in, tt.path...); found != tt.found || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%v: %v, %t", tt.path, got, found)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range []string{"", "a = 1", "a: 1", `{"a": [1, {"b": null}]}`, "[[a]]\n[a.b]", "a: &x [1]\nb: *x\n<<: *x", "? a\n: - b", "a: |\n  b", "!!binary a", "\"\\u", "- - a", "%YAML\n---\n...", "a: !!int [1]", "a: !!timestamp x", "&a *a"} {
		for _, hint := range []string{"", "toml", "yaml", "json"} {
			f.Add([]byte(text), hint)
		}
	}
	f.Fuzz(func(t *testing.T, text []byte, hint string) {
		defer time.AfterFunc(20*time.Second, func() { panic(fmt.Sprintf("%q hangs on %q", hint, text)) }).Stop()
		got, kind, err := Parse(text, Kind(hint))
		if (err == nil) != (got != nil) {
			t.Fatalf("%v and %v", got, err)
		}
		if err == nil {
			again, _, err := Parse(text, kind)
			if err != nil || fmt.Sprint(again) != fmt.Sprint(got) { // NaN is not equal to itself
				t.Fatalf("as %s it is %v, %v; want %v", kind, again, err, got)
			}
			Unknown(Merge(got, got), got)
		}
	})
}
