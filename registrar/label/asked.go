package label

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const (
	maxAsked      = 100 // most labels and variables shown of a container
	maxAskedValue = 200 // most bytes shown of each value

	hidden = "(not shown: it looks like a secret)"
)

// Asked is what a container's SERVICE_* labels and variables ask for, to show to an operator.
type Asked struct {
	// Meant says that the container has a key that berth knows or nearly knows, or any SERVICE_ label, so somebody meant to
	// register it. A one-off container has its service's labels, but was not meant itself.
	Meant bool
	// Values are the values read, by label in upper case. They are shortened, and possible secrets are hidden.
	Values   map[string]string
	misspelt []Misspelt
}

// Misspelt is an unknown label or variable that is close to a known one.
type Misspelt struct {
	Label  string // as set on the container, in upper case
	Meant  string // the known label that may be meant
	reason string // as in Instances, perhaps with a prefix
}

// AskedOf returns what a container asks for.
func AskedOf(c Container) Asked {
	keys := keysOf(c)
	a := Asked{Meant: keys.mentioned && (!c.isOneOff() || keys.general["oneoff"] != ""), Values: map[string]string{}}
	a.misspelt = keys.misspelt[:min(len(keys.misspelt), maxAsked)]
	a.add(0, keys.general)
	for _, port := range slices.Sorted(maps.Keys(keys.ports)) {
		a.add(port, keys.ports[port])
	}
	return a
}

func (a Asked) add(port uint16, values map[string]string) {
	for _, key := range slices.SortedFunc(maps.Keys(values), func(a, b string) int {
		if isKnown(a) != isKnown(b) { // known keys come first
			return map[bool]int{true: -1, false: 1}[isKnown(a)]
		}
		return strings.Compare(a, b)
	}) {
		if len(a.Values) == maxAsked {
			return
		}
		a.Values[spelling(port, key)] = shown(key, values[key])
	}
}

// MisspeltIn returns the misspelt label that a reason of Instances is about, if any.
func (a Asked) MisspeltIn(reason string) (m Misspelt, is bool) {
	for _, m := range a.misspelt {
		if strings.HasSuffix(reason, m.reason) {
			return m, true
		}
	}
	return m, false
}

var (
	// secretName matches more than isSecret does: hiding a value costs the reader little.
	secretName = regexp.MustCompile(`(?i)TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|API.?KEY|ACCESS.?KEY|PRIVATE.?KEY|AUTHORIZATION|COOKIE` +
		`|((^|[^MY])PASS|PWD|AUTH|KEYS?)([_.-]|$)|(^|[_.-])(PW|DSN|JWT|PAT)([_.-]|$)`)

	secretValue = regexp.MustCompile(`(?i)(://|^)[^/@:\s]*:[^/@\s]+@|(password|passwd|pwd|token|secret|key)=\S|\b(bearer|basic) +\S|PRIVATE KEY-----`)
)

// shown returns a value in the form that may be shown.
func shown(key, value string) string {
	if isSecret(key, value) || secretName.MatchString(key) || secretValue.MatchString(value) {
		return hidden
	}
	if value = strings.ToValidUTF8(value, "\uFFFD"); !isPlain(value) {
		value = strconv.Quote(value)
	}
	if len(value) > maxAskedValue {
		value = strings.ToValidUTF8(value[:maxAskedValue-len("…")], "") + "…"
	}
	return value
}
