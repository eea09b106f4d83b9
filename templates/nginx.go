package templates

import (
	"cmp"
	"crypto/sha256"
	_ "embed"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

//go:embed nginx.conf.ctmpl
var nginx string

//go:embed balancer.lua
var balancer string

// Proxied is a service that has a route, as nginx has it. Every value may be written to a configuration as it is.
type Proxied struct {
	Exposed
	lua bool
}

// Upstream is a group of servers in nginx.
type Upstream struct {
	Name    string // unique, whatever the case of letters
	Servers []Server
	Most    int    // connections that a server gets at once; 0 = no limit
	Zone    int    // kilobytes of memory that all workers share; 0 = none is needed
	Method  string // how a server is chosen; "" = the default, which is roundrobin
	Lua     string // the function of balancer.lua that chooses one instead; "" = none
}

// proxied is exposed for nginx: it reports what nginx has not.
func (s *service) proxied(lua bool) *Proxied {
	e := s.exposed()
	if e == nil {
		return nil
	}
	for _, lacking := range []struct {
		asked bool
		why   string
	}{
		{s.balance == "first", "nginx has no balance first, so roundrobin is used; set another SERVICE_ROUTE_BALANCE"},
		{s.check != "", "nginx does not check servers, so its route_check has no effect; set SERVICE_CHECK_HTTP, by which Consul takes out what is ill"},
		{s.slowStart != 0, "nginx gives a server its full share at once, so its route_slowstart has no effect; unset SERVICE_ROUTE_SLOWSTART"},
	} {
		if lacking.asked {
			s.report(fmt.Sprintf("service %q: %s", s.service, lacking.why))
		}
	}
	return &Proxied{*e, lua}
}

// HTTP is for requests, nil if the service has no route for them.
func (p *Proxied) HTTP() *Upstream {
	s := p.service
	if len(s.routes) == 0 {
		return nil
	}
	u := s.upstream(upstreamName(s.service))
	key := hashKey(s.balance)
	if s.sticky {
		key = "berth_sticky"
	}
	u.Method = method(s.balance, key)
	if p.lua && s.maxConn == 0 && u.Method != leastConn {
		u.Lua = luaCall(u.Name, s.balance, key)
		u.Method = ""
	}
	return u
}

// TCP is for connections to the service's port, nil if it has none.
func (p *Proxied) TCP() *Upstream {
	s := p.service
	if len(s.ports) == 0 {
		return nil
	}
	u := s.upstream(upstreamName(s.service) + ".tcp")
	balance := s.balanceOfTCP()
	u.Method = method(balance, hashKey(balance))
	return u
}

func (s *service) upstream(name string) *Upstream {
	u := &Upstream{Name: name, Servers: s.servers, Most: s.maxConn}
	if u.Most > 0 {
		// Without it each worker would count for itself. A server takes less than a kilobyte.
		u.Zone = (len(u.Servers)/64 + 1) * 128
	}
	return u
}

// upstreamName is unique also for nginx, to which two names in other letters are the same. No service has a dot.
func upstreamName(service string) string {
	if strings.ToLower(service) == service {
		return service
	}
	sum := sha256.Sum256([]byte(service))
	return fmt.Sprintf("%s.%x", service, sum[:4])
}

const leastConn = "least_conn"

// method is the directive for an algorithm. key is the variable that a hash is of.
func method(balance, key string) string {
	switch {
	case key != "":
		return "hash $" + key + " consistent"
	case balance == "leastconn":
		return leastConn
	case balance == "random":
		return "random two least_conn" // HAProxy's is the same
	}
	return ""
}

// hashKey is the variable that an algorithm looks at, "" if it does not.
func hashKey(balance string) string {
	switch {
	case balance == "source":
		return "remote_addr"
	case balance == "uri":
		return "berth_path"
	case byHeader.MatchString(balance):
		name := strings.TrimSuffix(strings.TrimPrefix(balance, "hdr("), ")")
		return "http_" + strings.ReplaceAll(strings.ToLower(name), "-", "_")
	}
	return ""
}

func luaCall(upstream, balance, key string) string {
	switch {
	case key != "":
		return fmt.Sprintf("balance(%q, ngx.var.%s)", upstream, key)
	case balance == "random":
		return fmt.Sprintf("random(%q)", upstream)
	}
	return fmt.Sprintf("balance(%q)", upstream)
}

// RouteMap is the routes of one rank that have the same number of segments in their paths. A request has at most one.
type RouteMap struct {
	Name    string // for variables
	Rank    string // of what the keys begin with: "$host", "$berth_domain", or "" for any host
	Path    string // as many segments of the request's path
	Entries []RouteEntry
	Found   string // the variable of the upstream that was found in it or in the next maps
	Next    string // that of the next map, "" = this is the last one
}

// RouteEntry is a key, in lower case, and the routes that it may stand for: nginx looks keys up without regard to the
// case of letters, and paths are compared with regard to it.
type RouteEntry struct{ Key, Routes string }

// mostSegments is the largest number of segments in a path by which nginx routes. Each number that occurs costs a
// request that has so many another look-up.
const mostSegments = 16

// level is what the routes of a map have in common.
type level struct{ rank, depth int }

// longestValue is less than what nginx takes for one word (NGX_CONF_BUFFER).
const longestValue = 4000

// RouteMaps are in the order in which a request is to be looked up. The last one is for any host and path.
func (t *Table) RouteMaps() []RouteMap {
	entries := map[level][]RouteEntry{{2, 0}: nil}
	index := map[level]map[string]int{} // of an entry, by its key
	for _, c := range t.claims {
		l, key, path := place(c.route)
		if l.depth > mostSegments {
			t.report(fmt.Sprintf("service %q: the path of its route %.100s has more than %d segments, which is too many for nginx; set a shorter SERVICE_ROUTE_PATH", c.service, c.route, mostSegments))
			continue
		}
		route := upstreamName(c.service) + " " + cmp.Or(t.flags[c.service], "-") + " " + path
		if index[l] == nil {
			index[l] = map[string]int{}
		}
		if n, there := index[l][key]; there {
			if len(entries[l][n].Routes)+len(route) >= longestValue {
				t.report(fmt.Sprintf("service %q: for nginx, too many routes differ from its route %.100s only in the case of letters; set another SERVICE_ROUTE_PATH", c.service, c.route))
				continue
			}
			entries[l][n].Routes += " " + route
			continue
		}
		index[l][key] = len(entries[l])
		entries[l] = append(entries[l], RouteEntry{key, route})
	}
	levels := slices.SortedFunc(maps.Keys(entries), func(a, b level) int {
		return cmp.Or(a.rank-b.rank, b.depth-a.depth)
	})
	all := make([]RouteMap, len(levels))
	for n, l := range levels {
		all[n] = RouteMap{
			Name:    fmt.Sprintf("%s_%d", [...]string{"host", "domain", "any"}[l.rank], l.depth),
			Rank:    [...]string{"$host", "$berth_domain", ""}[l.rank],
			Path:    pathVariable(l.depth),
			Entries: entries[l],
			Found:   "berth_found",
		}
		if n > 0 {
			all[n].Found += "_" + all[n].Name
			all[n-1].Next = all[n].Found
		}
	}
	return all
}

// place says which map a route is in, by which key, and what its path is.
func place(route string) (l level, key, path string) {
	host, path, _ := strings.Cut(route, "/")
	r := Route{Host: host, Path: "/" + path}
	if host == "*" {
		r.Host = ""
	}
	return level{r.rank(), strings.Count(path, "/")}, strings.TrimPrefix(r.Host, "*.") + strings.ToLower(r.Path), r.Path
}

// pathVariable is as many segments of a request's path, with a slash before and after them.
func pathVariable(segments int) string {
	if segments == 0 {
		return "/"
	}
	return fmt.Sprintf("$berth_path_%d", segments)
}

// PathDepths are the numbers of segments for which there are routes, but for none.
func (t *Table) PathDepths() []int {
	var all []int
	for _, c := range t.claims {
		if depth := strings.Count(c.route, "/") - 1; depth > 0 && depth <= mostSegments {
			all = append(all, depth)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Certificate is one that nginx serves.
type Certificate struct {
	File, Key string
	Names     []string // none of them in another; the first certificate's may be none
}

// inNginx returns the certificates in a directory. The first is for clients that ask for another host.
func (s *certificateStore) inNginx(path string, names []string, sum string) []Certificate {
	s.load(path, names, sum)
	var all []Certificate
	taken := map[string]bool{}
	for _, c := range s.files {
		var free []string
		for _, name := range c.names {
			if !taken[name] {
				taken[name] = true
				free = append(free, name)
			}
		}
		if len(free) == 0 && len(all) > 0 {
			if !c.readable {
				s.report(s.leftOut(c.file, "berth may not read it and so does not know its hosts; make it readable for berth, and put its key into a file of its own"))
			}
			continue
		}
		all = append(all, Certificate{c.file, c.key, free})
	}
	return all
}

// controlDirectory is where the control socket is, "" without one.
func controlDirectory(socket string) string {
	if socket == "" {
		return ""
	}
	return path.Dir(socket)
}
