package claim

import "testing"

func TestRouteMatches(t *testing.T) {
	for _, c := range []struct {
		route      Route
		host, path string
		want       bool
	}{
		{Route{Host: "a.example.com", Path: "/"}, "A.example.com:8080", "/x", true},
		{Route{Host: "a.example.com", Path: "/"}, "b.example.com", "/x", false},
		{Route{Host: "*.example.com", Path: "/"}, "b.example.com", "/", true},
		{Route{Host: "*.example.com", Path: "/"}, "c.b.example.com", "/", false},
		{Route{Host: "*.example.com", Path: "/"}, "example.com", "/", false},
		{Route{Path: "/api/"}, "any", "/api", true},
		{Route{Path: "/api/"}, "any", "/api/v1?q=/x", true},
		{Route{Path: "/api/"}, "any", "/apix", false},
		{Route{Path: "/api/"}, "any", "/API", false},
		{Route{Path: "/"}, "[::1]:80", "", true},
		{Route{Port: 5432}, "any", "/", false},
	} {
		if got := c.route.Matches(c.host, c.path); got != c.want {
			t.Errorf("%v matches %s%s: %v, want %v", c.route, c.host, c.path, got, c.want)
		}
	}
}
