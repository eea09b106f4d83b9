package nginx

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"berth/templates/claim"
	"berth/templates/route"
)

// Routes are the routes of all services, in nginx's maps.
type Routes struct {
	Maps   []RouteMap // in the order of look-up; the last map is for any host and path
	Depths []int      // numbers of segments in the routes' paths, each once, without 0
}

// RouteMap is the routes of one rank with the same number of path segments. At most one of them matches a request.
type RouteMap struct {
	Name    string // for variables
	Rank    string // the variable that the keys begin with: "$host", "$berth_domain", or "" for any host
	Path    string // the variable with this many segments of the request's path, with a slash before and after; "/" = none
	Entries []RouteEntry
	Found   string // the variable of the upstream found in this map or the next ones
	Next    string // the variable of the next map; "" = none
}

// RouteEntry is a key, in lower case, and the routes it may stand for: nginx looks up keys case-insensitively, but paths
// are compared case-sensitively.
type RouteEntry struct{ Key, Routes string }

// mostSegments is the largest number of path segments by which nginx routes. Each number in use costs another lookup for
// requests with that many segments.
const mostSegments = 16

// level is the rank and depth of the routes in one map.
type level struct{ rank, depth int }

// longestValue is below nginx's limit for one word (NGX_CONF_BUFFER).
const longestValue = 4000

// NewRoutes puts the routes of services into maps. It calls lose for routes that fit into no map, with the reason.
func NewRoutes(claims []route.Claim, lose func(c route.Claim, why string)) Routes {
	entries := map[level][]RouteEntry{{2, 0}: nil}
	index := map[string]int{} // of an entry in its map, by host and path
	for _, c := range claims {
		l := level{c.Rank(), depth(c.Route)}
		if l.depth > mostSegments {
			lose(c, fmt.Sprintf("the path of its route %.100s has more than %d segments, which is too many for nginx; set a shorter SERVICE_ROUTE_PATH", c.Route, mostSegments))
			continue
		}
		key := c.Host + strings.ToLower(c.Path)
		found := UpstreamName(c.Group) + " " + flags(c.Group) + " " + c.Path
		if n, there := index[key]; there {
			if len(entries[l][n].Routes)+len(found) >= longestValue {
				lose(c, fmt.Sprintf("nginx cannot serve its route %.100s: too many routes differ from it only in the case of letters; set another SERVICE_ROUTE_PATH", c.Route))
				continue
			}
			entries[l][n].Routes += " " + found
			continue
		}
		index[key] = len(entries[l])
		entries[l] = append(entries[l], RouteEntry{strings.TrimPrefix(key, "*."), found})
	}
	levels := slices.SortedFunc(maps.Keys(entries), func(a, b level) int {
		return cmp.Or(a.rank-b.rank, b.depth-a.depth)
	})
	all := make([]RouteMap, len(levels))
	depths := map[int]bool{}
	for n, l := range levels {
		all[n] = RouteMap{
			Name:    fmt.Sprintf("%s_%d", [...]string{"host", "domain", "any"}[l.rank], l.depth),
			Rank:    [...]string{"$host", "$berth_domain", ""}[l.rank],
			Path:    "/",
			Entries: entries[l],
			Found:   "berth_found",
		}
		if l.depth > 0 {
			depths[l.depth] = true
			all[n].Path = fmt.Sprintf("$berth_path_%d", l.depth)
		}
		if n > 0 {
			all[n].Found += "_" + all[n].Name
			all[n-1].Next = all[n].Found
		}
	}
	return Routes{all, slices.Sorted(maps.Keys(depths))}
}

// depth returns the number of segments in a route's path.
func depth(r claim.Route) int { return strings.Count(r.Path, "/") - 1 }

// flags returns how requests for a service are modified or answered, separated by commas; "-" = no flags.
func flags(g *route.Group) string {
	var all []string
	for _, f := range []struct {
		set  bool
		name string
	}{{g.Strip, "strip"}, {g.Redirect, "redirect"}, {g.Sticky, "sticky"}} {
		if f.set {
			all = append(all, f.name)
		}
	}
	return cmp.Or(strings.Join(all, ","), "-")
}
