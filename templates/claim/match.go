package claim

import "strings"

// Matches reports whether a request for a host, in either case and with or without a port, and a path, as the client sent it,
// is one of the route's.
func (r Route) Matches(host, path string) bool {
	if r.Port != 0 {
		return false
	}
	host = strings.ToLower(host)
	if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
		host = host[:i]
	}
	path, _, _ = strings.Cut(path, "?")
	fits := r.Host == "" || r.Host == host
	if rest, is := strings.CutPrefix(r.Host, "*"); is {
		label, found := strings.CutSuffix(host, rest)
		fits = found && label != "" && !strings.Contains(label, ".")
	}
	return fits && strings.HasPrefix(path+"/", r.Path)
}
