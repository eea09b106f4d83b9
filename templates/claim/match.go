package claim

import "strings"

// Matches reports whether a request belongs to the route. The host may be in either case and have a port; the path is as
// sent by the client.
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
