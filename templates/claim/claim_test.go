package claim

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func meta(keysAndValues ...string) map[string]string {
	m := map[string]string{}
	for n := 0; n < len(keysAndValues); n += 2 {
		m[keysAndValues[n]] = keysAndValues[n+1]
	}
	return m
}

// A route is complete or dropped: nothing that is ignored makes a claim wider.
func TestParseRoutes(t *testing.T) {
	manyHosts := meta(KeyPath, "/")
	var many []string
	for n := range 30 {
		host := fmt.Sprintf("a-rather-long-name-%02d.example.com", n)
		key := HostKey(1 + n/12)
		manyHosts[key] += host + ","
		many = append(many, host+"/")
	}
	for _, tt := range []struct {
		name       string
		meta       map[string]string
		routes     string
		restricted bool
		problems   []string // a part of each
	}{
		{"nothing", meta("SERVICE", "x"), "", false, nil},
		{"a host", meta(KeyHost, "a.com"), "a.com/", true, nil},
		{"two lines, as a YAML block", meta(KeyHost, "a.com\nb.com\n", KeyPath, "/"), "a.com/ b.com/", true, nil},
		{"whitespace of any kind", meta(KeyHost, " A.com ,b.com\tc.com\r\nd.com\u00a0e.com,,"), "a.com/ b.com/ c.com/ d.com/ e.com/", true, nil},
		{"thirty hosts in several keys", manyHosts, strings.Join(many, " "), true, nil},
		{"more hosts without the first", meta(HostKey(2), "a.com", KeyPath, "/x"), "a.com/x/", true, nil},
		{"the last key", meta(KeyHost, "a.com", HostKey(9), "b.com"), "a.com/ b.com/", true, nil},
		{"one too many", meta(KeyHost, "a.com", "route_host_10", "b.com"), "", true, []string{`its key "route_host_10" is unknown, so it has no route; did you mean SERVICE_ROUTE_HOST?`}},
		{"an empty host", meta(KeyHost, "", KeyPath, "/"), "", true, []string{`its route_host is empty, so it gets no HTTP route; set SERVICE_ROUTE_HOST, or remove it`}},
		{"a blank host", meta(KeyHost, " ,\n", KeyPath, "/"), "", true, []string{"route_host is empty"}},
		{"an empty path", meta(KeyHost, "a.com", KeyPath, ""), "", true, []string{"route_path is empty"}},
		{"an empty path alone", meta(KeyPath, " "), "", true, []string{"route_path is empty"}},
		{"an empty port", meta(KeyPort, "", KeyHost, "a.com"), "a.com/", true, []string{"route_port is empty"}},
		{"a path with a line's end", meta(KeyHost, "a.com", KeyPath, "/api\n"), "a.com/api/", true, nil},
		{"a bad host", meta(KeyHost, "a.com,bad_host!,b.com", KeyPath, "/"), "a.com/ b.com/", true, []string{`"bad_host!" is not a host name`}},
		{"a list as in YAML", meta(KeyHost, "- a.com\n- b.com\n"), "a.com/ b.com/", true, []string{"its route_host has the dashes of a YAML list; write the names without dashes"}},
		{"only a bad host", meta(KeyHost, "bad!", KeyPath, "/"), "", true, []string{`"bad!" is not a host name`}},
		{"a bad path", meta(KeyHost, "a.com", KeyPath, "api", KeyPort, "5432"), "port 5432", true, []string{`its route_path "api" is not a path like /api; set SERVICE_ROUTE_PATH`}},
		{"a bad path and a bad host", meta(KeyHost, "a!", KeyPath, "api"), "", true, []string{"route_path", "route_host"}},
		{"a port", meta(KeyPort, " 5432\n"), "port 5432", true, nil},
		{"no port", meta(KeyPort, "http"), "", true, []string{`its route_port "http" is not a port between 1 and 65535; set another SERVICE_ROUTE_PORT`}},
		{"the registrar's word", meta(KeyHost, "a.com", KeyNoRoute, "its port 80 has the route"), "", true, []string{"it takes part in no route: its port 80 has the route"}},
		{"a misspelt label that the registrar names", meta("route_hosts", "a.com", KeyNoRoute, "SERVICE_ROUTE_HOSTS is an unknown key: did you mean SERVICE_ROUTE_HOST?"), "", true,
			[]string{"it takes part in no route: SERVICE_ROUTE_HOSTS is an unknown key"}},
		{"one for a port", meta("route-host", "a.com", KeyNoRoute, `"SERVICE_80_ROUTE-HOST" is an unknown key: did you mean SERVICE_80_ROUTE_HOST?`), "", true,
			[]string{`it takes part in no route: "SERVICE_80_ROUTE-HOST"`}},
		{"one that the registrar names, and one that it does not", meta("route_hosts", "a.com", "route_hos", "b.com", KeyNoRoute, "SERVICE_ROUTE_HOSTS is an unknown key: did you mean SERVICE_ROUTE_HOST?"), "", true,
			[]string{`its key "route_hos" is unknown`, "it takes part in no route: SERVICE_ROUTE_HOSTS"}},
		{"the registrar's word without a route", meta(KeyNoRoute, "its hosts are too long"), "", true, []string{"its hosts are too long"}},
		// An invalid restriction must not open a route.
		{"a bad check", meta(KeyHost, "a.com", KeyCheck, "health"), "", true, []string{`its route_check "health" is not a path like /health, so it has no route; set SERVICE_ROUTE_CHECK`}},
		{"a bad check without a route", meta(KeyCheck, "health"), "", true, []string{"route_check"}},
		{"a bad redirect", meta(KeyHost, "a.com", KeyRedirect, "http"), "", true, []string{"route_redirect"}},
		{"a bad maxconn", meta(KeyHost, "a.com", KeyPort, "5432", KeyMaxConn, "many"), "", true, []string{"route_maxconn"}},
		{"a misspelt host", meta("route_hosts", "a.com", KeyPath, "/"), "", true, []string{`its key "route_hosts" is unknown, so it has no route; did you mean SERVICE_ROUTE_HOST?`}},
		{"a host in another spelling", meta("Route-Host", "a.com", KeyPath, "/"), "", true, []string{"did you mean SERVICE_ROUTE_HOST?"}},
		{"a misspelt prefix", meta("rout_host", "a.com", KeyPath, "/"), "", true, []string{"did you mean SERVICE_ROUTE_HOST?"}},
		{"a longer name", meta("route_hostname", "a.com", KeyPath, "/"), "", true, []string{"did you mean SERVICE_ROUTE_HOST?"}},
		{"a misspelt path", meta(KeyHost, "a.com", "route_pth", "/x"), "", true, []string{"did you mean SERVICE_ROUTE_PATH?"}},
		{"a misspelt check", meta(KeyHost, "a.com", "route_chekc", "/x"), "", true, []string{"did you mean SERVICE_ROUTE_CHECK?"}},
		{"a bad leader", meta(KeyHost, "a.com", KeyTo, "leeder"), "", true, []string{`its route_to "leeder" is neither leader nor all, so it has no route; did you mean SERVICE_ROUTE_TO=leader?`}},
		{"several leaders", meta(KeyHost, "a.com", KeyTo, "leaders,"), "", true, []string{"did you mean SERVICE_ROUTE_TO=leader?"}},
		{"almost all", meta(KeyHost, "a.com", KeyTo, "al"), "", true, []string{"did you mean SERVICE_ROUTE_TO=all?"}},
		{"a follower", meta(KeyHost, "a.com", KeyTo, "follower"), "", true, []string{`its route_to "follower" is neither leader nor all, so it has no route; set SERVICE_ROUTE_TO to leader, or remove it`}},
		{"a leader of an instance that names no route", meta(KeyTo, "leader"), "", false, nil},
		{"a misspelt leader", meta(KeyHost, "a.com", "route_too", "leader"), "", true, []string{`its key "route_too" is unknown, so it has no route; did you mean SERVICE_ROUTE_TO?`}},
		{"a leader as a key", meta(KeyHost, "a.com", "route_to_leader", "true"), "", true, []string{"did you mean SERVICE_ROUTE_TO?"}},
		// Other keys do not matter.
		{"a misspelt balance", meta(KeyHost, "a.com", "route_ballance", "uri"), "a.com/", true, []string{`its key "route_ballance" is unknown; did you mean SERVICE_ROUTE_BALANCE?`}},
		{"a bad balance", meta(KeyHost, "a.com", KeyBalance, "best"), "a.com/", true, []string{"route_balance"}},
		{"an unknown key", meta(KeyHost, "a.com", "route_timeout", "5s"), "a.com/", true, []string{`its key "route_timeout" is unknown and has no effect`}},
		{"other metadata", meta(KeyHost, "a.com", "note_path", "x", "hosts", "y", "weight", "0", "version", "1"), "a.com/", true, nil},
	} {
		c := Parse(tt.meta)
		var routes []string
		for _, r := range c.Routes {
			routes = append(routes, r.String())
		}
		if got := strings.Join(routes, " "); got != tt.routes || c.Restricted != tt.restricted {
			t.Errorf("%s: %q, restricted %t", tt.name, got, c.Restricted)
		}
		if !slices.EqualFunc(c.Problems, tt.problems, strings.Contains) {
			t.Errorf("%s: problems %q, want %q", tt.name, c.Problems, tt.problems)
		}
	}
}

func TestParseHostsAndPaths(t *testing.T) {
	for _, tt := range []struct {
		hosts, path string
		want        string
		leftOut     int
	}{
		{"a.com", "/", "a.com/", 0},
		{"*", "/", "", 1},
		{"a.com", "/api/", "a.com/api/", 0},
		{"a.com", "/api/v1.2/~me+you=us:80@home%20x", "a.com/api/v1.2/~me+you=us:80@home%20x/", 0},
		{"my_app,localhost,10.0.0.1", "/x", "10.0.0.1/x/ localhost/x/ my_app/x/", 0},
		{"a.com,A.com", "/", "a.com/", 0},
		{"a.com", "//", "", 1},
		{"a.com", "/a//b", "", 1},
		{"a.com", "/a/../b", "", 1},
		{"a.com", "/.", "", 1},
		{"a.com", "/a?b", "", 1},
		{"a.com", "/a b", "", 1},
		{"a.com", "/" + strings.Repeat("a", 511), "", 1},
		{"a.com:80", "/", "", 1},
		{"*.a.com", "/x", "*.a.com/x/", 0},
		{"*.", "/", "", 1},
		{"*a.com", "/", "", 1},
		{"*.*.com", "/", "", 1},
		{"a.*.com", "/", "", 1},
		{"a..com", "/", "", 1},
		{"a.com.", "/", "", 1},
		{"-a.com", "/", "", 1},
		{"a-.com", "/", "", 1},
		{"[::1]", "/", "", 1},
		{"https://a.com", "/", "", 1},
		{strings.Repeat("a", 64) + ".com", "/", "", 1},
		{strings.Repeat("a.", 127), "/", "", 1},
	} {
		c := Parse(meta(KeyHost, tt.hosts, KeyPath, tt.path))
		var got []string
		for _, r := range c.Routes {
			got = append(got, r.String())
		}
		if strings.Join(got, " ") != tt.want || len(c.Problems) != tt.leftOut {
			t.Errorf("%q, %q: %q, left out %q, want %q, %d", tt.hosts, tt.path, got, c.Problems, tt.want, tt.leftOut)
		}
	}
}

func TestParsePort(t *testing.T) {
	for s, want := range map[string]int{
		"1": 1, "65535": 65535, "0": 0, "65536": 0, "65557": 0, // 21 in 16 bits
		"+80": 0, "-80": 0, "80,81": 0, "": 0, "8e1": 0,
	} {
		if got := ParsePort(s); got != want {
			t.Errorf("%q: %d", s, got)
		}
	}
}

func TestParseSettings(t *testing.T) {
	for _, tt := range []struct {
		key   string
		good  map[string]Settings
		wrong []string // is left out
		worse []string // costs the routes
	}{
		{KeyStrip, map[string]Settings{"true": {Strip: true}, "On": {Strip: true}, "1": {Strip: true}, "enabled": {Strip: true},
			"No": {}, "off": {}, "disabled": {}, "false": {}, "0": {}, "none": {}}, []string{"maybe", "", "2"}, nil},
		{KeySticky, map[string]Settings{" yes": {Sticky: true}, "n": {}}, []string{"cookie"}, nil},
		{KeyRedirect, map[string]Settings{"https": {Redirect: true}, " HTTPS\n": {Redirect: true}, "true": {Redirect: true}, "yes": {Redirect: true},
			"no": {}, "off": {}}, []string{""}, []string{"http", "https://a.com", "301"}},
		{KeyTo, map[string]Settings{"leader": {ToLeader: true}, " LEADER\n": {ToLeader: true}, "all": {}, "All": {}}, []string{"", " "}, nil},
		{KeyBalance, map[string]Settings{"leastconn": {Balance: "leastconn"}, " uri ": {Balance: "uri"}, "hdr(X-User)": {Balance: "hdr(X-User)"}},
			[]string{"static-rr", "LEASTCONN", "uri depth 2", "hdr()", "hdr(a b)", "hdr(a)(b)", "source consistent", "roundrobin # x"}, nil},
		{KeyCheck, map[string]Settings{"/": {Check: "/"}, "/health?a=b&c=%20d;e,f\n": {Check: "/health?a=b&c=%20d;e,f"}}, []string{""},
			[]string{"health", "/a b", "/a\tb", "/a#b", "/a'", "/a\"", "/a$HOME", "/a\\b", "/é", "/" + strings.Repeat("a", 512)}},
		{KeyMaxConn, map[string]Settings{"0": {}, "1": {MaxConn: 1}, "1000000": {MaxConn: 1000000}}, []string{""},
			[]string{"-1", "1000001", "10x", "1e3", "0x10", "+1"}},
		{KeySlowStart, map[string]Settings{"1s": {SlowStart: time.Second}, "1m30s": {SlowStart: 90 * time.Second}, "1499ms": {SlowStart: time.Second}, "1h": {SlowStart: time.Hour}},
			[]string{"10", "0s", "-10s", "999ms", "61m", "10 s", "1d"}, nil},
		{KeyHold, map[string]Settings{"30s": {Hold: 30 * time.Second}, " 1m30s": {Hold: 90 * time.Second}, "5m": {Hold: 5 * time.Minute}, "1.5s": {Hold: 1500 * time.Millisecond},
			"1ns": {Hold: time.Millisecond}, "1001us": {Hold: 2 * time.Millisecond}, "0": {Hold: NoHold}, "0s": {Hold: NoHold}, "no": {Hold: NoHold}, "OFF": {Hold: NoHold}},
			[]string{"", "30", "-1s", "5m1ns", "5m1s", "10 s", "yes", "1d", "true"}, nil},
		{KeyFallback, map[string]Settings{"sorry": {Fallback: "sorry"}, " Web_App.v1": {Fallback: "Web_App.v1"}}, []string{"no service", ".", "a/b", "é"}, nil},
	} {
		check := func(value string, want Settings, problems, routes int) {
			c := Parse(meta(KeyPath, "/", tt.key, value))
			if diff := cmp.Diff(want, c.Settings); diff != "" || len(c.Problems) != problems || len(c.Routes) != routes {
				t.Errorf("%s %q: %s%q, %v", tt.key, value, diff, c.Problems, c.Routes)
			}
		}
		for value, want := range tt.good {
			check(value, want, 0, 1)
		}
		for _, value := range tt.wrong {
			check(value, Settings{}, 1, 1)
		}
		for _, value := range tt.worse {
			check(value, Settings{}, 1, 0)
		}
	}
}

func TestHoldOr(t *testing.T) {
	for hold, want := range map[time.Duration]time.Duration{0: 10 * time.Second, NoHold: 0, time.Minute: time.Minute} {
		if got := (Settings{Hold: hold}).HoldOr(10 * time.Second); got != want {
			t.Errorf("%d: %v, want %v", hold, got, want)
		}
	}
}

func TestCompare(t *testing.T) {
	want := []Route{
		{Host: "a.com", Path: "/api/v1/"}, {Host: "a.com", Path: "/api/"}, {Host: "b.com", Path: "/api/"}, {Host: "b.com", Path: "/"},
		{Host: "*.com", Path: "/api/"}, {Path: "/api/v1/v2/"}, {Path: "/"}, {Port: 80}, {Port: 5432},
	}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, Compare)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// Replicas ask for the same, regardless of the registrar's own keys.
func TestSame(t *testing.T) {
	one := map[string]string{KeyHost: "a.com", "berth-container": "1", KeyStarted: "2026-11-01T00:00:00Z"}
	for _, tt := range []struct {
		name  string
		other map[string]string
		want  bool
	}{
		{"a replica", map[string]string{KeyHost: "a.com", "berth-container": "2", KeyStarted: "2026-11-02T00:00:00Z"}, true},
		{"another host", map[string]string{KeyHost: "b.com", "berth-container": "1", KeyStarted: "2026-11-01T00:00:00Z"}, false},
		{"another key", map[string]string{KeyPath: "a.com", "berth-container": "1", KeyStarted: "2026-11-01T00:00:00Z"}, false},
		{"more", map[string]string{KeyHost: "a.com", KeyPath: "/", "berth-container": "1", KeyStarted: "2026-11-01T00:00:00Z"}, false},
		{"no route", map[string]string{KeyHost: "a.com", KeyNoRoute: "another port has it", KeyStarted: "2026-11-01T00:00:00Z"}, false},
		{"a path in place of what the registrar says", map[string]string{KeyHost: "a.com", KeyPath: "/api", "version": "1"}, false},
	} {
		if Same(one, tt.other) != tt.want || Same(tt.other, one) != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, !tt.want, tt.want)
		}
	}
}
