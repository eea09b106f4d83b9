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

// masked stands for what is not shown.
const masked = "***"

// maxTable is how many bytes the keys and values of a table may have together, twice as many as the largest text in Consul.
// A few lines of YAML can stand for gigabytes.
const maxTable = 1 << 20

var errTable = errors.New("the table is too large to show")

var (
	// A key with one of secretParts anywhere in it is that of a secret, as is one that has a word of secretWords, or a word
	// that ends with one of secretEnds and is no innocent one.
	secretParts = []string{"password", "passwd", "passphrase", "secret", "credential"}
	secretWords = []string{"pass", "pwd", "pw", "creds", "private"}
	secretEnds  = []string{"token", "tokens", "key", "keys"}
	innocent    = []string{"monkey", "donkey", "turkey", "hockey", "jockey", "whiskey", "lackey", "malarkey", "hotkey"}

	// A word begins with the capital after a small letter, and with the last of the capitals before a small letter.
	camel, capitals = regexp.MustCompile(`([a-z])([A-Z])`), regexp.MustCompile(`([A-Z])([A-Z][a-z])`)
	letters         = regexp.MustCompile(`[a-z]+`)

	// assignment is a key, up to its value, within a value: of a query string, a DSN, JSON, XML.
	assignment = regexp.MustCompile(`([A-Za-z0-9_.-]+)["'\\\]]*\s*[:=>]\s*`)
	// userinfo is that of a URL, and login what stands for a URL elsewhere: user:password@tcp(host). Both end with the last @,
	// since a password may have one.
	userinfo, login = regexp.MustCompile(`://.*@`), regexp.MustCompile(`[^\s:]+:\S+@`)
)

// secretKey reports whether a key looks like that of a secret.
func secretKey(key string) bool {
	lower := strings.ToLower(key)
	plain := strings.Join(letters.FindAllString(lower, -1), "")
	if slices.ContainsFunc(secretParts, func(part string) bool { return strings.Contains(plain, part) }) {
		return true
	}
	split := strings.ToLower(capitals.ReplaceAllString(camel.ReplaceAllString(key, "$1 $2"), "$1 $2"))
	// APIKEYs is one word, whatever its letters say.
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

// maskText returns a text without the secrets that can be told from it: what follows the key of one, the userinfo of URLs,
// and private keys.
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
	case strings.Contains(text, "PRIVATE KEY-----"), secret >= 0 && out != text: // which of them is within the other is a guess
		return masked
	case secret >= 0:
		return text[:secret] + masked // where the value ends is a guess, too
	}
	return out
}

// masker makes tables fit to be encoded in JSON, and masks what looks like a secret.
type masker struct {
	show  bool // secrets, too
	found bool // something was masked
	left  int  // of maxTable
}

// mask returns a copy of a table in which what looks like a secret is masked, and whether anything is. With show nothing is.
func mask(table map[string]any, show bool) (out any, found bool, err error) {
	m := masker{show: show, left: maxTable}
	out = m.value(table, false)
	if m.left < 0 {
		return nil, false, errTable
	}
	return out, m.found, nil
}

// value is a value; secret is whether its key looks like that of one. What is true, false or null is none.
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
	default: // no table of package format has it
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
		if math.IsInf(v, 0) || math.IsNaN(v) { // not in JSON
			return strconv.FormatFloat(v, 'g', -1, 64)
		}
	}
	return v
}

func (m *masker) mask() string {
	m.found = true
	return masked
}
