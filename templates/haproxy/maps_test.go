package haproxy

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth/templates/claim"
	"berth/templates/route"
)

func TestMaps(t *testing.T) {
	deep := claim.Route{Path: "/1/2/3/4/5/6/7/8/"}
	groups := []*route.Group{
		{Name: "api", Routes: []claim.Route{{Path: "/api/v1/"}}, Settings: claim.Settings{Strip: true, Redirect: true}},
		{Name: "all", Routes: []claim.Route{{Path: "/"}}, Settings: claim.Settings{Strip: true}},
		{Name: "db", Ports: []int{5432}, Settings: claim.Settings{Strip: true, Redirect: true}},
		{Name: "deep", Routes: []claim.Route{deep}},
		{Name: "encoded", Routes: []claim.Route{{Path: "/a%20b/"}}, Settings: claim.Settings{Strip: true}},
	}
	if diff := cmp.Diff("api 1\n", RedirectMap(groups)); diff != "" {
		t.Errorf("redirects %s", diff)
	}
	if diff := cmp.Diff("api 2/api/v1\nencoded 1/a%20b\n", StripMap(groups)); diff != "" {
		t.Errorf("prefixes %s", diff)
	}
	if got := StripDepths(groups); !slices.Equal(got, []int{1, 2, 3, 4, 5, 6}) {
		t.Errorf("depths %v", got)
	}
	groups[3].Strip = true
	if got := StripDepths(groups); len(got) != 8 || got[7] != 8 {
		t.Errorf("depths %v of a deep one", got)
	}
}

func TestDefaults(t *testing.T) {
	http := func(balance string) *route.Group {
		return &route.Group{Routes: []claim.Route{{Path: "/"}}, Settings: claim.Settings{Balance: balance}}
	}
	tcp := func(balance string) *route.Group {
		return &route.Group{Ports: []int{5432}, Settings: claim.Settings{Balance: balance}}
	}
	var u DefaultsInUse
	for n, step := range []struct {
		groups []*route.Group
		want   []string
	}{
		{nil, []string{"http.roundrobin"}},
		{[]*route.Group{http(""), http("roundrobin"), tcp(""), tcp("uri")}, []string{"http.roundrobin"}},
		{[]*route.Group{http("leastconn"), tcp("source")}, []string{"http.leastconn", "http.roundrobin", "tcp.source"}},
		{nil, []string{"http.leastconn", "http.roundrobin", "tcp.source"}}, // a removal alone changes nothing
		{[]*route.Group{http("hdr(X-User)")}, []string{"http.hdr-X-User", "http.roundrobin"}},
	} {
		var got []string
		for _, d := range u.Of(step.groups) {
			got = append(got, d.Name)
			if d.Hash != (d.Balance == "source" || d.Balance == "hdr(X-User)") {
				t.Errorf("step %d: %+v", n, d)
			}
		}
		if !slices.Equal(got, step.want) {
			t.Errorf("step %d: %q, want %q", n, got, step.want)
		}
	}
	if b := Backends(tcp("uri"))[0]; b.Defaults.Name != "tcp.defaults" {
		t.Errorf("a TCP backend has %+v", b.Defaults)
	}
	if b := Backends(tcp("leastconn"))[0]; b.Defaults.Name != "tcp.leastconn" || b.Defaults.Base() != "tcp.defaults" {
		t.Errorf("a TCP backend has %+v", b.Defaults)
	}
}
