package label

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"berth/templates/claim"
)

const neitherYesNorNo = "is neither yes nor no: write true or false"

// isUnclear reports whether a value is set but is neither yes nor no. It is a mistake and does not count as yes.
func isUnclear(value string) bool { return value != "" && !claim.IsYes(value) && !claim.IsNo(value) }

// unquoted returns a value without a surrounding pair of quotes: compose's list form of an environment and docker's
// --env-file keep the quotes that a shell would remove.
func unquoted(value string) string {
	if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] &&
		!strings.ContainsRune(value[1:n-1], rune(value[0])) {
		return strings.TrimSpace(value[1 : n-1])
	}
	return value
}

// isPlain reports whether s survives JSON, logs and configuration files unchanged: it is valid UTF-8 without control
// characters.
func isPlain(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// quote returns foreign text for a message: on one line, and limited in length.
func quote(s string) string {
	const most = 80
	if len(s) <= most {
		return strconv.Quote(s)
	}
	s = strings.ToValidUTF8(s, "\uFFFD")
	return strconv.Quote(strings.ToValidUTF8(s[:min(len(s), most)], "")) + "…" // do not cut a character in half
}
