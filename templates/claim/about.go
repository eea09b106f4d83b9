package claim

import (
	"strconv"
	"strings"
)

// About returns the service that a reason for leaving something out begins with, and the instance: service "shop", instance "shop-1": …
// Both are quoted there as by %q. They are "" where it is about none.
func About(reason string) (service, instance string) {
	service, rest := quoted(reason, "service ")
	instance, _ = quoted(rest, ", instance ")
	return service, instance
}

// quoted returns what is quoted after a word, and what follows; "" and nothing if s does not begin so.
func quoted(s, word string) (value, rest string) {
	s, is := strings.CutPrefix(s, word)
	prefix, err := strconv.QuotedPrefix(s)
	if !is || err != nil {
		return "", ""
	}
	value, err = strconv.Unquote(prefix)
	if err != nil {
		return "", ""
	}
	return value, s[len(prefix):]
}
