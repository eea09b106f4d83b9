package haproxy

import (
	"fmt"
	"strings"

	"berth/templates/route"
)

// Map returns the routes as HAProxy's map_beg reads them: "shop.example.com/cart/ cart".
func Map(claims []route.Claim) string {
	var text strings.Builder
	for _, c := range claims {
		for _, part := range [...]string{c.Route.String(), " ", c.Group.Name, "\n"} {
			text.WriteString(part)
		}
	}
	return text.String()
}

// RedirectMap returns the backends whose requests over HTTP are redirected: "shop 1".
func RedirectMap(groups []*route.Group) string {
	var text strings.Builder
	for _, g := range groups {
		if len(g.Routes) > 0 && g.Redirect {
			text.WriteString(g.Name + " 1\n")
		}
	}
	return text.String()
}

// StripMap returns the backends that are not told a prefix of the path, each with the number of that prefix's parts and the
// prefix: "shop 2/api/v1".
func StripMap(groups []*route.Group) string {
	var text strings.Builder
	for _, g := range groups {
		if prefix := stripped(g); prefix != "" {
			fmt.Fprintf(&text, "%s %d%s\n", g.Name, strings.Count(prefix, "/"), prefix)
		}
	}
	return text.String()
}

// usualDepth is how many parts a prefix may have that takes no other rules than any.
const usualDepth = 6

// StripDepths returns the numbers from 1 to as many parts as a prefix may have that one of the groups is not told.
func StripDepths(groups []*route.Group) []int {
	deepest := usualDepth
	for _, g := range groups {
		deepest = max(deepest, strings.Count(stripped(g), "/"))
	}
	depths := make([]int, deepest)
	for n := range depths {
		depths[n] = n + 1
	}
	return depths
}

// stripped returns the prefix that a group's servers are not told, without the slash at its end, "" for none. All routes of a
// group have the same path, as an instance names one path only.
func stripped(g *route.Group) string {
	if len(g.Routes) == 0 || !g.Strip {
		return ""
	}
	return strings.TrimSuffix(g.Routes[0].Path, "/")
}
