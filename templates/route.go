package templates

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/consul-template/dependency"
)

// The Meta keys of an instance that ask for a route.
const (
	metaHost = "route_host" // host names, separated by commas
	metaPath = "route_path" // a path prefix
)

// Route sends the requests for a host and below a path to a backend.
type Route struct {
	Host    string // in lower case, without a port; "" = any
	Path    string // a prefix, always with a slash at its end; "/" = any
	Backend string
}

// String is how reports call a route.
func (r Route) String() string { return cmp.Or(r.Host, "*") + r.Path }

// compare puts a host before any host, and then the longest path first. The first route
// that fits a request is then the most specific one, and nobody takes a path away from a
// host that is not his.
func compare(a, b Route) int {
	return cmp.Or(
		cmp.Compare(min(len(b.Host), 1), min(len(a.Host), 1)),
		cmp.Compare(len(b.Path), len(a.Path)),
		cmp.Compare(a.Path, b.Path),
		cmp.Compare(a.Host, b.Host),
		cmp.Compare(a.Backend, b.Backend),
	)
}

// routes returns the routes of all backends in the order in which to try them. Of two
// backends that claim the same one, the first by name has it.
func routes(backends []any, report func(string)) ([]Route, error) {
	var all []Route
	for _, b := range backends {
		backend, ok := b.(*Backend)
		if !ok || backend == nil {
			return nil, fmt.Errorf("routes takes a list of what backend returns, not %T", b)
		}
		all = append(all, backend.Routes...)
	}
	slices.SortFunc(all, compare)
	var rules []Route
	for _, r := range all {
		if n := len(rules); n > 0 && rules[n-1].Host == r.Host && rules[n-1].Path == r.Path {
			report(fmt.Sprintf("service %q: the route %s belongs to service %q; set another SERVICE_ROUTE_HOST or SERVICE_ROUTE_PATH", r.Backend, r, rules[n-1].Backend))
			continue
		}
		rules = append(rules, r)
	}
	return rules, nil
}

// routesOf returns the routes that any of the instances asks for, each once. Replicas
// share their labels, so that what is wrong is reported for the first of them only.
func routesOf(service string, instances []*dependency.HealthService, report func(string)) []Route {
	var all []Route
	type asked struct{ hosts, path string }
	seen := map[asked]bool{}
	for _, i := range instances {
		ask := asked{i.ServiceMeta[metaHost], i.ServiceMeta[metaPath]}
		if ask == (asked{}) || seen[ask] {
			continue
		}
		seen[ask] = true
		all = append(all, parseRoutes(service, ask.hosts, ask.path, func(why string) {
			report(fmt.Sprintf("service %q, instance %.100q: %s", service, i.ID, why))
		})...)
	}
	slices.SortFunc(all, compare)
	return slices.Compact(all)
}

// parseRoutes returns no route rather than a wider one than was asked for.
func parseRoutes(service, hosts, path string, leftOut func(string)) []Route {
	prefix := strings.TrimSuffix(path, "/") + "/"
	if !isPathPrefix(prefix) {
		leftOut(fmt.Sprintf("its route_path %.100q is not a path like /api; set SERVICE_ROUTE_PATH", path))
		return nil
	}
	if hosts == "" {
		return []Route{{"", prefix, service}}
	}
	var all []Route
	for host := range strings.SplitSeq(hosts, ",") {
		host = strings.ToLower(strings.TrimSpace(host))
		if !isHostName(host) {
			leftOut(fmt.Sprintf("its route_host %.100q is not a host name like shop.example.com; set SERVICE_ROUTE_HOST", host))
			continue
		}
		all = append(all, Route{host, prefix, service})
	}
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
