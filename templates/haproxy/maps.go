package haproxy

import (
	"fmt"
	"strings"

	"berth/templates/route"
)

// Map returns the routes for HAProxy's map_beg: "shop.example.com/cart/ cart".
func Map(claims []route.Claim) string {
	var text strings.Builder
	for _, c := range claims {
		for _, part := range [...]string{c.Route.String(), " ", c.Group.Name, "\n"} {
			text.WriteString(part)
		}
	}
	return text.String()
}

// RedirectMap returns the backends that redirect HTTP requests to HTTPS: "shop 1".
func RedirectMap(groups []*route.Group) string {
	var text strings.Builder
	for _, g := range groups {
		if len(g.Routes) > 0 && g.Redirect {
			text.WriteString(g.Name + " 1\n")
		}
	}
	return text.String()
}

// StripMap returns the backends whose path prefix is removed, with the prefix and its number of segments: "shop 2/api/v1".
func StripMap(groups []*route.Group) string {
	var text strings.Builder
	for _, g := range groups {
		if prefix := stripped(g); prefix != "" {
			fmt.Fprintf(&text, "%s %d%s\n", g.Name, strings.Count(prefix, "/"), prefix)
		}
	}
	return text.String()
}

// usualDepth is the number of prefix segments that needs no extra rules.
const usualDepth = 6

// StripDepths returns the numbers from 1 to the largest number of segments in a removed prefix.
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

// stripped returns the path prefix that is removed for a group, without its final slash, "" for none. All routes of a group
// have the same path, because an instance names only one.
func stripped(g *route.Group) string {
	if len(g.Routes) == 0 || !g.Strip {
		return ""
	}
	return strings.TrimSuffix(g.Routes[0].Path, "/")
}
