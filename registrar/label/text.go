package label

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// isPlain reports whether s means the same on its way through JSON, logs and configuration files: it is valid UTF-8
// without control characters.
func isPlain(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// quote returns a stranger's text for a message: on one line, and not longer than one reads.
func quote(s string) string {
	const most = 80
	if len(s) <= most {
		return strconv.Quote(s)
	}
	s = strings.ToValidUTF8(s, "\uFFFD")
	return strconv.Quote(strings.ToValidUTF8(s[:min(len(s), most)], "")) + "…" // without half a character at the end
}
