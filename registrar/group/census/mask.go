package census

import (
	"encoding"
	"errors"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// masked replaces hidden values.
const masked = "***"

// maxTable limits the total bytes of a table's keys and values, to twice the largest text in Consul. A few lines of YAML can
// expand to gigabytes.
const maxTable = 1 << 20

var errTable = errors.New("the table is too large to show")

var (
	// A key is secret if it contains one of secretParts, or has a word in secretWords, or a word that ends with one of
	// secretEnds and is not innocent.
	secretParts = []string{"password", "passwd", "passphrase", "secret", "credential"}
	secretWords = []string{"pass", "pwd", "pw", "creds", "private"}
	secretEnds  = []string{"token", "tokens", "key", "keys"}
	innocent    = []string{"monkey", "donkey", "turkey", "hockey", "jockey", "whiskey", "lackey", "malarkey", "hotkey"}

	// A word begins at a capital after a small letter, and at the last capital before a small letter.
	camel, capitals = regexp.MustCompile(`([a-z])([A-Z])`), regexp.MustCompile(`([A-Z])([A-Z][a-z])`)
	letters         = regexp.MustCompile(`[a-z]+`)

	// assignment matches a key up to its value, inside a value: in a query string, a DSN, JSON or XML.
	assignment = regexp.MustCompile(`([A-Za-z0-9_.-]+)["'\\\]]*\s*[:=>]\s*`)
	// userinfo matches that of a URL, and login its equivalent elsewhere: user:password@tcp(host). Both end with the last @,
	// because a password may contain one.
	userinfo, login = regexp.MustCompile(`://.*@`), regexp.MustCompile(`[^\s:]+:\S+@`)
)

// secretKey reports whether a key looks secret.
func secretKey(key string) bool {
	lower := strings.ToLower(key)
	plain := strings.Join(letters.FindAllString(lower, -1), "")
	if slices.ContainsFunc(secretParts, func(part string) bool { return strings.Contains(plain, part) }) {
		return true
	}
	split := strings.ToLower(capitals.ReplaceAllString(camel.ReplaceAllString(key, "$1 $2"), "$1 $2"))
	// APIKEYs is one word, whatever its capitals.
	words := append(letters.FindAllString(split, -1), letters.FindAllString(lower, -1)...)
	return slices.ContainsFunc(words, secretWord)
}

func secretWord(word string) bool {
	if slices.Contains(secretWords, word) {
		return true
	}
	ends := slices.ContainsFunc(secretEnds, func(end string) bool { return strings.HasSuffix(word, end) })
	return ends && !slices.Contains(innocent, strings.TrimSuffix(word, "s"))
}

// maskText returns a text without recognizable secrets: values of secret keys, the userinfo of URLs, and private keys.
func maskText(text string) string {
	out, secret := text, -1
	if strings.Contains(text, "@") {
		out = userinfo.ReplaceAllString(text, "://"+masked+"@")
		out = login.ReplaceAllStringFunc(out, func(found string) string {
			if scheme, _, url := strings.Cut(found, "://"+masked+"@"); url && !strings.Contains(scheme, "@") {
				return found
			}
			return masked + "@"
		})
	}
	for from := 0; secret < 0 && strings.ContainsAny(text[from:], ":=>"); {
		at := assignment.FindStringSubmatchIndex(text[from:])
		if at == nil || from+at[1] == len(text) {
			break
		}
		if secretKey(text[from+at[2] : from+at[3]]) {
			secret = from + at[1]
		}
		from += at[1]
	}
	switch {
	case strings.Contains(text, "PRIVATE KEY-----"), secret >= 0 && out != text: // which of them contains the other is a guess
		return masked
	case secret >= 0:
		return text[:secret] + masked // the end of the value is also a guess
	}
	return out
}

// masker makes tables encodable as JSON, and masks what looks secret.
type masker struct {
	show  bool // show secrets, too
	found bool // something was masked
	left  int  // bytes left of maxTable
}

// mask returns a copy of a table in which what looks secret is masked, and whether anything is. With show, nothing is
// masked.
func mask(table map[string]any, show bool) (out any, found bool, err error) {
	m := masker{show: show, left: maxTable}
	out = m.value(table, false)
	if m.left < 0 {
		return nil, false, errTable
	}
	return out, m.found, nil
}

// value masks a value; secret says whether its key looks secret. true, false and null are never secret.
func (m *masker) value(v any, secret bool) any {
	if m.left -= 4; m.left < 0 {
		return nil
	}
	switch v := v.(type) {
	case nil, bool:
		return v
	case map[string]any, []any, string, int64, float64:
	case encoding.TextMarshaler: // a date or a time
		text, err := v.MarshalText()
		if err != nil {
			return m.mask()
		}
		return m.value(string(text), secret)
	default: // tables of package format never contain it
		return m.mask()
	}
	if secret && !m.show {
		return m.mask()
	}
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			m.left -= len(k)
			out[k] = m.value(e, secretKey(k))
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = m.value(e, false)
		}
		return out
	case string:
		if m.left -= len(v); m.left < 0 {
			return nil
		}
		if text := maskText(v); !m.show && text != v {
			m.found = true
			return text
		}
	case float64:
		if math.IsInf(v, 0) || math.IsNaN(v) { // impossible in JSON
			return strconv.FormatFloat(v, 'g', -1, 64)
		}
	}
	return v
}

func (m *masker) mask() string {
	m.found = true
	return masked
}
