package label

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// maxTag limits the length of a tag. Consul has no limit; this one is DNS's limit for a name, which may contain a tag.
const maxTag = 255

var listItem = regexp.MustCompile(`(?:\\,|[^,\r\n])+`)

// SplitTags splits a list at its commas and line ends; `\,` is a comma within a tag.
func SplitTags(list string) []string {
	var out []string
	for _, item := range listItem.FindAllString(list, -1) {
		if tag := unquoted(strings.TrimSpace(strings.ReplaceAll(item, `\,`, ","))); tag != "" {
			out = append(out, tag)
		}
	}
	return out
}

// validTags returns the distinct tags of all lists, and reasons for those that Consul and its readers cannot handle.
func validTags(lists ...[]string) (out, problems []string) {
	seen := map[string]bool{}
	for _, tag := range slices.Concat(lists...) {
		switch {
		case seen[tag]:
		case !isPlain(tag):
			problems = append(problems, fmt.Sprintf("tag %s is ignored: it has control characters or is not UTF-8", quote(tag)))
		case len(tag) > maxTag:
			problems = append(problems, fmt.Sprintf("tag %s is ignored: it is longer than %d bytes", quote(tag), maxTag))
		default:
			out = append(out, tag)
		}
		seen[tag] = true
	}
	return out, problems
}
