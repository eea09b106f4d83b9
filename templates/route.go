package templates

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Route is the requests for a host and below a path.
type Route struct {
	Host string // in lower case, without a port; *.example.com = any one label before it; "" = any
	Path string // a prefix, always with a slash at its end; "/" = any
}

// String is how reports call a route, and its key in HAProxy's map.
func (r Route) String() string { return cmp.Or(r.Host, "*") + r.Path }

// rank is 0 for a host, 1 for a wildcard, 2 for any host. A lower one goes before a higher one, whatever the paths, so
// that nobody takes a path away from a host that is not his.
func (r Route) rank() int {
	switch {
	case r.Host == "":
		return 2
	case strings.HasPrefix(r.Host, "*"):
		return 1
	}
	return 0
}

// compare puts the route first that goes before the other where both fit a request.
func compare(a, b Route) int {
	return cmp.Or(
		cmp.Compare(a.rank(), b.rank()),
		cmp.Compare(len(b.Path), len(a.Path)),
		cmp.Compare(a.Path, b.Path),
		cmp.Compare(a.Host, b.Host),
	)
}

// routes returns those that any of the instances asks for, each once, in order.
func (l labels) routes() []Route {
	var all []Route
	l.each([]string{metaHost, metaPath}, func(i *instance, values []string) {
		all = append(all, parseRoutes(values[0], values[1], func(why string) { l.leftOut(i, why) })...)
	})
	slices.SortFunc(all, compare)
	return slices.Compact(all)
}

// parseRoutes returns no route rather than a wider one than was asked for.
func parseRoutes(hosts, path string, leftOut func(string)) []Route {
	prefix := strings.TrimSuffix(path, "/") + "/"
	if !isPathPrefix(prefix) {
		leftOut(fmt.Sprintf("its route_path %.100q is not a path like /api; set SERVICE_ROUTE_PATH", path))
		return nil
	}
	if hosts == "" {
		return []Route{{"", prefix}}
	}
	var all []Route
	seen := map[string]bool{}
	for host := range strings.SplitSeq(hosts, ",") {
		host = strings.ToLower(strings.TrimSpace(host))
		if seen[host] {
			continue
		}
		seen[host] = true
		if !isHostName(strings.TrimPrefix(host, "*.")) {
			leftOut(fmt.Sprintf("its route_host %.100q is not a host name like shop.example.com or *.example.com; set SERVICE_ROUTE_HOST", host))
			continue
		}
		all = append(all, Route{host, prefix})
	}
	return all
}

// Strip is how a path prefix is removed from requests.
type Strip struct {
	Prefix string   // without the slash at its end
	Field  int      // number of the field of the path that follows it, where / separates fields and the first is empty
	Keys   []string // lists of the routes with this prefix, of which one must fit; none = all requests have the prefix
}

// mostPatterns is how many routes are compared in one line. HAProxy takes 64 words on one.
const mostPatterns = 40

// strips returns how to remove the prefix of the route that a request came by. The longest is the first, and the first
// one that fits is the right one: txn.key begins with the host or wildcard by which the route was found.
func strips(routes []Route) []Strip {
	keys := map[string][]string{} // by path
	for _, r := range routes {
		keys[r.Path] = append(keys[r.Path], r.String())
	}
	var all []Strip
	for path := range keys {
		prefix := strings.TrimSuffix(path, "/")
		if prefix == "" {
			continue
		}
		s := Strip{Prefix: prefix, Field: strings.Count(path, "/") + 1}
		if len(keys) > 1 {
			for some := range slices.Chunk(keys[path], mostPatterns) {
				s.Keys = append(s.Keys, strings.Join(some, " "))
			}
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b Strip) int {
		return cmp.Or(cmp.Compare(len(b.Prefix), len(a.Prefix)), cmp.Compare(a.Prefix, b.Prefix))
	})
	return all
}

// isHostName takes names as DNS has them, with underscores, which Docker uses.
func isHostName(s string) bool {
	if len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if !consistsOf(label, "-_") || len(label) > 63 || strings.Trim(label, "-") != label {
			return false
		}
	}
	return true
}

// isPathPrefix takes /, and segments between slashes in characters that need no quotes
// in a configuration. Proxies compare the path as the client sent it, where . and ..
// do not occur.
func isPathPrefix(s string) bool {
	if s == "/" {
		return true
	}
	if len(s) > 512 || len(s) < 3 || s[0] != '/' || s[len(s)-1] != '/' {
		return false
	}
	for segment := range strings.SplitSeq(s[1:len(s)-1], "/") {
		if segment == "." || segment == ".." || !consistsOf(segment, "-_.~%+:@=") {
			return false
		}
	}
	return true
}
