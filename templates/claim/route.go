package claim

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// Route is the requests for a host and below a path, or the connections to a port.
type Route struct {
	Host string // in lower case, without a port; *.example.com = any single label before it; "" = any
	Path string // a prefix, always with a slash at its end; "/" = any
	Port int    // a TCP port, without host and path; 0 = an HTTP route
}

// String returns the name of a route in reports. For HTTP routes it is also the key in HAProxy's map.
func (r Route) String() string {
	if r.Port != 0 {
		return fmt.Sprintf("port %d", r.Port)
	}
	return cmp.Or(r.Host, "*") + r.Path
}

// Rank returns 0 for a host, 1 for a wildcard, 2 for any host, 3 for a port. The lower rank wins, whatever the paths: a
// service without a host takes no path from a service with one.
func (r Route) Rank() int {
	switch {
	case r.Port != 0:
		return 3
	case r.Host == "":
		return 2
	case strings.HasPrefix(r.Host, "*"):
		return 1
	}
	return 0
}

// Compare sorts routes: of two routes that match a request, the first wins. Ports come last.
func Compare(a, b Route) int {
	return cmp.Or(
		cmp.Compare(a.Rank(), b.Rank()),
		cmp.Compare(len(b.Path), len(a.Path)),
		cmp.Compare(a.Path, b.Path),
		cmp.Compare(a.Host, b.Host),
		cmp.Compare(a.Port, b.Port),
	)
}

// ParsePort returns 0 if s is no TCP port. It accepts only digits, whereas Atoi accepts a sign.
func ParsePort(s string) int {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0
	}
	return int(n)
}

// IsHostName accepts DNS names, including underscores, because Docker uses them.
func IsHostName(s string) bool {
	return len(s) <= 253 && !slices.ContainsFunc(strings.Split(s, "."), func(label string) bool {
		return !ConsistsOf(label, "-_") || len(label) > 63 || strings.Trim(label, "-") != label
	})
}

// isPathPrefix accepts / and segments between slashes, with characters that need no quotes in a configuration. s ends with
// a slash. Proxies compare the path as sent by the client, so . and .. segments are invalid.
func isPathPrefix(s string) bool {
	segments := strings.Split(strings.TrimSuffix(s, "/"), "/")
	return len(s) <= 512 && segments[0] == "" && !slices.ContainsFunc(segments[1:], func(segment string) bool {
		return segment == "." || segment == ".." || !ConsistsOf(segment, "-_.~%+:@=")
	})
}

// MaxName is longer than any sensible name and short enough for a proxy's command line.
const MaxName = 200

// IsServiceName reports whether a service of this name can be looked up and named in a configuration.
func IsServiceName(s string) bool {
	return ConsistsOf(s, "-_.") && strings.Trim(s, ".") == s
}

// ConsistsOf reports whether s is a name of ASCII letters, digits and the given other characters.
func ConsistsOf(s, others string) bool {
	return s != "" && len(s) <= MaxName && !strings.ContainsFunc(s, func(r rune) bool {
		alphanumeric := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		return !alphanumeric && !strings.ContainsRune(others, r)
	})
}

// isSpace reports whether r is whitespace, or invisible and easily pasted with a name.
func isSpace(r rune) bool { return unicode.IsSpace(r) || r == '\u200b' || r == '\ufeff' }
