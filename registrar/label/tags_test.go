package label

import (
	"slices"
	"testing"
)

func TestSplitTags(t *testing.T) {
	tests := []struct {
		in   string
		want []string
	}{
		{"", nil}, {",", nil}, {" , ,", nil},
		{"a", []string{"a"}}, {"a,b", []string{"a", "b"}}, {",a,,b,", []string{"a", "b"}}, {" a , b c ", []string{"a", "b c"}},
		{`"a", 'b c',"d`, []string{"a", "b c", `"d`}}, {"a\nb\r\n", []string{"a", "b"}},
		{`a\,b,c`, []string{"a,b", "c"}}, {`\,`, []string{","}}, {`a\b`, []string{`a\b`}}, {`a\`, []string{`a\`}}, {`a\\,b`, []string{`a\,b`}},
		{`/(;\,:-_)/`, []string{"/(;,:-_)/"}}, // of Registrator's documentation
	}
	for _, tt := range tests {
		if got := SplitTags(tt.in); !slices.Equal(got, tt.want) {
			t.Errorf("SplitTags(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}
