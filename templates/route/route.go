package route

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

// String returns the name of a route in reports, which is its key in HAProxy's map.
func (r Route) String() string { return cmp.Or(r.Host, "*") + r.Path }

// Rank returns 0 for a host, 1 for a wildcard, 2 for any host. The lower rank wins, whatever the paths: a service without a
// host takes no path away from a service with one.
func (r Route) Rank() int {
	switch {
	case r.Host == "":
		return 2
	case strings.HasPrefix(r.Host, "*"):
		return 1
	}
	return 0
}

// Compare sorts routes: of two routes that fit a request, the first one wins.
func Compare(a, b Route) int {
	return cmp.Or(
		cmp.Compare(a.Rank(), b.Rank()),
		cmp.Compare(len(b.Path), len(a.Path)),
		cmp.Compare(a.Path, b.Path),
		cmp.Compare(a.Host, b.Host),
	)
}

// routes returns the routes that the instances ask for, each once, in order.
func (r *reader) routes() []Route {
	var all []Route
	r.each([]string{KeyHost, KeyPath}, func(i *Instance, values [2]string) {
		all = append(all, parseRoutes(values[0], values[1], func(why string) { r.leaveOut(i, why) })...)
	})
	slices.SortFunc(all, Compare)
	return slices.Compact(all)
}

// parseRoutes leaves a bad route out rather than return a wider one.
func parseRoutes(hosts, path string, leaveOut func(string)) []Route {
	prefix := strings.TrimSuffix(path, "/") + "/"
	if !isPathPrefix(prefix) {
		leaveOut(fmt.Sprintf("its route_path %.100q is not a path like /api; set SERVICE_ROUTE_PATH", path))
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
		if !IsHostName(strings.TrimPrefix(host, "*.")) {
			leaveOut(fmt.Sprintf("its route_host %.100q is not a host name like shop.example.com or *.example.com; set SERVICE_ROUTE_HOST", host))
			continue
		}
		all = append(all, Route{host, prefix})
	}
	return all
}

// IsHostName accepts DNS names, and underscores in them, because Docker uses these.
func IsHostName(s string) bool {
	return len(s) <= 253 && !slices.ContainsFunc(strings.Split(s, "."), func(label string) bool {
		return !consistsOf(label, "-_") || len(label) > 63 || strings.Trim(label, "-") != label
	})
}

// isPathPrefix accepts / and segments between slashes, in characters that need no quotes in a configuration; s ends with a
// slash. Proxies compare the path as the client sent it, without . and .. segments.
func isPathPrefix(s string) bool {
	segments := strings.Split(strings.TrimSuffix(s, "/"), "/")
	return len(s) <= 512 && segments[0] == "" && !slices.ContainsFunc(segments[1:], func(segment string) bool {
		return segment == "." || segment == ".." || !consistsOf(segment, "-_.~%+:@=")
	})
}
