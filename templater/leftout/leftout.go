// Package leftout formats and parses reports on what the rendered texts ignore. Template functions report plain sentences; only
// this package knows how they begin.
package leftout

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// LeftOut is something that the rendered texts ignore, with the reason.
type LeftOut struct {
	Service  string // "" = not about a service
	Instance string // ID in Consul; "" = not about a single instance
	Reason   string // the whole sentence: service "web", instance "web-1": its port 0 is not between 1 and 65535; ...
}

// longest limits names in a sentence, in characters.
const longest = 200

const (
	ofService  = "service "
	ofInstance = ", instance "
	ofReason   = ": "
)

// Sentence returns the report on a service, or on one of its instances; "" = no instance in particular.
func Sentence(service, instance, why string) string {
	subject := ofService + quote(service)
	if instance != "" {
		subject += ofInstance + quote(instance)
	}
	return subject + ofReason + why
}

func quote(name string) string { return fmt.Sprintf("%.*q", longest, name) }

// Parse returns the service and instance of a sentence made by Sentence. Any other sentence has neither.
func Parse(sentence string) LeftOut {
	l := LeftOut{Reason: sentence}
	service, rest, found := cutName(sentence, ofService)
	if !found {
		return l
	}
	instance, after, found := cutName(rest, ofInstance)
	if !found {
		instance, after = "", rest
	}
	if strings.HasPrefix(after, ofReason) {
		l.Service, l.Instance = service, instance
	}
	return l
}

// cutName returns the quoted name that follows beginning in s, and the rest.
func cutName(s, beginning string) (name, rest string, found bool) {
	s, found = strings.CutPrefix(s, beginning)
	if !found {
		return "", "", false
	}
	quoted, err := strconv.QuotedPrefix(s)
	if err != nil {
		return "", "", false
	}
	name, err = strconv.Unquote(quoted)
	return name, s[len(quoted):], err == nil
}

// Compare sorts by service, instance and reason.
func Compare(a, b LeftOut) int {
	return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Instance, b.Instance), cmp.Compare(a.Reason, b.Reason))
}
