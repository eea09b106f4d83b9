package haproxy

import (
	"errors"
	"strings"
	"testing"

	"berth/proxyctl"
)

func TestLexicalError(t *testing.T) {
	for _, tt := range []struct{ text, says string }{
		{"", ""},
		{"global\n  log stdout format raw local0 # it's fine\n", ""},
		{"server a 127.0.0.1:9001 " + strings.Repeat("check ", 61), ""},
		{"global\nserver a 127.0.0.1:9001 " + strings.Repeat("check ", 62), "line 2: 65 words, HAProxy takes at most 64"},
		{"# " + strings.Repeat("word ", 100), ""},
		{"  http-request return string \"it's\"\n  acl a hdr(x) \\\"\n  acl b str('\"')\n", ""},
		{"\n  acl a hdr(x) \"b\n", "line 2: unclosed quote"},
		{"  acl a hdr(x) 'b\\'\n", ""},
		{".if defined(X)\n\t.if 1\n.elif 2\n.else\n.endif\n.endif\n", ""},
		{".if defined(X)\n.if 1\n.endif\n", "line 1: .if without .endif"},
		{".endif\n", "line 1: .endif without .if"},
	} {
		err := lexicalError(tt.text)
		if (err == nil) != (tt.says == "") || err != nil && (!errors.Is(err, proxyctl.ErrRefused) || !strings.HasSuffix(err.Error(), tt.says)) {
			t.Errorf("%.60q: %v, want %q", tt.text, err, tt.says)
		}
	}
}
