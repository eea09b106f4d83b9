package label

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const (
	maxAsked      = 100 // of a container's labels and variables are told
	maxAskedValue = 200 // bytes of each value

	hidden = "(not shown: it looks like a secret)"
)

// Asked is what somebody asks for by a container's SERVICE_* labels and variables, for an operator to look at.
type Asked struct {
	// Meant says that there is a key that berth knows, or nearly knows, or any SERVICE_ label: somebody meant to register the
	// container. What is run once is what its service's labels describe, but nobody meant that one.
	Meant bool
	// Values are what was read, by the labels in upper case. They are shortened, and what may be a secret is not in them.
	Values   map[string]string
	misspelt []Misspelt
}

// Misspelt is a label or variable that berth does not know, and that is close to one that it does.
type Misspelt struct {
	Label  string // as it stands on the container, in upper case
	Meant  string // the one that it may be meant for
	reason string // as Instances says it, perhaps with something before it
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
		if isKnown(a) != isKnown(b) { // those that mean something come first
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

// MisspeltIn returns the misspelt label that a reason of Instances is about, if it is about one.
func (a Asked) MisspeltIn(reason string) (m Misspelt, is bool) {
	for _, m := range a.misspelt {
		if strings.HasSuffix(reason, m.reason) {
			return m, true
		}
	}
	return m, false
}

var (
	// secretName matches more than isSecret does: hiding a value from a reader costs little.
	secretName = regexp.MustCompile(`(?i)TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|API.?KEY|ACCESS.?KEY|PRIVATE.?KEY|AUTHORIZATION|COOKIE` +
		`|((^|[^MY])PASS|PWD|AUTH|KEYS?)([_.-]|$)|(^|[_.-])(PW|DSN|JWT|PAT)([_.-]|$)`)

	secretValue = regexp.MustCompile(`(?i)(://|^)[^/@:\s]*:[^/@\s]+@|(password|passwd|pwd|token|secret|key)=\S|\b(bearer|basic) +\S|PRIVATE KEY-----`)
)

// shown returns a value as it may be shown.
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
