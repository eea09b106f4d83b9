package label

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// plain says whether s is text that means the same on its way through JSON, logs and configuration files: valid
// UTF-8 without control characters.
func plain(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// shorten cuts valid UTF-8 to at most so many bytes, between two characters.
func shorten(s string, most int) string {
	if len(s) <= most {
		return s
	}
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most]
}

// quote is a stranger's text in a message: on one line, and not longer than one reads.
func quote(s string) string {
	const most = 80
	if len(s) > most {
		return strconv.Quote(shorten(strings.ToValidUTF8(s, "\uFFFD"), most)) + "…"
	}
	return strconv.Quote(s)
}
