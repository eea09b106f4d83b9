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

// Routes are the routes of all services in nginx's maps.
type Routes struct {
	Maps   []RouteMap // in the order of look-up; the last map is for any host and path
	Depths []int      // how many segments the paths of routes have, each number once, without 0
}

// RouteMap is the routes of one rank that have the same number of segments in their paths. A request has at most one.
type RouteMap struct {
	Name    string // for variables
	Rank    string // the variable that the keys begin with: "$host", "$berth_domain", or "" for any host
	Path    string // the variable with as many segments of the request's path, and a slash before and after them; "/" = none
	Entries []RouteEntry
	Found   string // the variable of the upstream that was found in it or in the next maps
	Next    string // the variable of the next map, "" = this is the last one
}

// RouteEntry is a key, in lower case, and the routes that it may stand for: nginx looks keys up without regard to the
// case of letters, and paths are compared with regard to it.
type RouteEntry struct{ Key, Routes string }

// mostSegments is the largest number of segments in a path by which nginx routes. Each number that occurs costs a
// request that has so many another look-up.
const mostSegments = 16

// level is the rank and the depth of the routes in one map.
type level struct{ rank, depth int }

// longestValue is less than nginx takes for one word (NGX_CONF_BUFFER).
const longestValue = 4000

// NewRoutes puts the routes of services into maps. It calls lose with the routes that do not fit into any, and why.
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

// flags returns how requests for a service are changed or answered, separated by commas; "-" = not at all.
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
