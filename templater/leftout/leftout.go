// Package leftout words what is left out of the rendered texts, and tells what it is about. Template functions report plain
// sentences; only here is it known how these begin.
package leftout

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// LeftOut is something that no rendered text has, and why.
type LeftOut struct {
	Service  string // "" if it is about no service
	Instance string // its ID in Consul; "" if it is not about a single one
	Reason   string // the whole sentence: service "web", instance "web-1": its port 0 is not between 1 and 65535; ...
}

// longest bounds the names in a sentence, in characters.
const longest = 200

const (
	ofService  = "service "
	ofInstance = ", instance "
	ofReason   = ": "
)

// Sentence says why something of a service is left out, or of one of its instances; "" = of none in particular.
func Sentence(service, instance, why string) string {
	subject := ofService + quote(service)
	if instance != "" {
		subject += ofInstance + quote(instance)
	}
	return subject + ofReason + why
}

func quote(name string) string { return fmt.Sprintf("%.*q", longest, name) }

// Parse returns what a sentence is about. One that Sentence did not make is about nothing.
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

// cutName returns the quoted name that s has behind its beginning, and the rest.
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
