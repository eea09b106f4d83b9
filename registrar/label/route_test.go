package label

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"berth/templates/claim"
)

func policyOf(rule Rule) Host { return with(func(h *Host) { h.Policy = []Rule{rule} }) }

// A route is made complete, or the instance takes part in none: losing a part never makes it wider.
func TestRouteIsWholeOrNone(t *testing.T) {
	var thirty []string
	for n := range 30 {
		thirty = append(thirty, fmt.Sprintf("a-rather-long-name-%02d.example.com", n))
	}
	var tooMany []string
	for n := range 200 {
		tooMany = append(tooMany, fmt.Sprintf("a-rather-long-name-%03d.example.com", n))
	}
	long := "/" + strings.Repeat("x", 512)
	hostAnd := func(change ...func(*Container)) Container {
		return web(append([]func(*Container){label("SERVICE_ROUTE_HOST", "shop.example.com")}, change...)...)
	}
	tests := []struct {
		name    string
		in      Container
		h       Host
		routes  string // separated by blanks; "" = none
		noRoute string // a part of why, "" = the instance may serve its service's routes
		reason  string // a part of the only reason, "" = there is none
	}{
		{"no route asked for", web(), host, "", "", ""},
		{"host", hostAnd(), host, "shop.example.com/", "", ""},
		{"host and path", hostAnd(label("SERVICE_ROUTE_PATH", "/api")), host, "shop.example.com/api/", "", ""},
		{"port", web(label("SERVICE_ROUTE_PORT", " 5432\n")), host, "port 5432", "", ""},

		// Lists.
		{"a block of YAML", web(label("SERVICE_ROUTE_HOST", "a.example\nb.example\n"), label("SERVICE_ROUTE_PATH", "/")), host, "a.example/ b.example/", "", ""},
		{"whitespace of any kind", web(label("SERVICE_ROUTE_HOST", " a.example,\r\n\tb.example c.example,, ")), host, "a.example/ b.example/ c.example/", "", ""},
		{"thirty hosts", web(label("SERVICE_ROUTE_HOST", strings.Join(thirty, ",")), label("SERVICE_ROUTE_PATH", "/")), host, strings.Join(thirty, "/ ") + "/", "", ""},
		{"hosts in several keys", web(label("SERVICE_ROUTE_HOST", "a.example"), label("SERVICE_ROUTE_HOST_2", "b.example")), host, "a.example/ b.example/", "", ""},
		{"hosts of the port replace all of the container's", web(label("SERVICE_ROUTE_HOST", "a.example"), label("SERVICE_ROUTE_HOST_2", "b.example"), label("SERVICE_8080_ROUTE_HOST", "c.example")), host, "c.example/", "", ""},
		{"more hosts than there is room for", web(label("SERVICE_ROUTE_HOST", strings.Join(tooMany, ",")), label("SERVICE_ROUTE_PATH", "/")), host, "",
			"SERVICE_ROUTE_HOST cannot be stored: Consul takes at most 512 bytes in a value, and berth uses at most 9 values", "no route: SERVICE_ROUTE_HOST cannot be stored"},
		{"a host longer than a value", web(label("SERVICE_ROUTE_HOST", strings.Repeat("x", 513)+".example"), label("SERVICE_ROUTE_PATH", "/")), host, "",
			"SERVICE_ROUTE_HOST cannot be stored: Consul takes at most 512 bytes", "no route: "},
		{"a host that is no text", web(label("SERVICE_ROUTE_HOST", "a\x00b"), label("SERVICE_ROUTE_PATH", "/")), host, "", "SERVICE_ROUTE_HOST cannot be stored: its value has control characters or is not UTF-8", "no route: "},

		// Hosts as people write them.
		{"in quotes", web(env(`SERVICE_ROUTE_HOST="shop.example.com"`)), host, "shop.example.com/", "", ""},
		{"each in quotes", web(env(`SERVICE_ROUTE_HOST="a.example","b.example"`)), host, "a.example/ b.example/", "", ""},
		{"URL", web(label("SERVICE_ROUTE_HOST", "https://shop.example.com/")), host, "shop.example.com/", "", ""},
		{"with the dot of DNS", web(label("SERVICE_ROUTE_HOST", "shop.example.com.")), host, "shop.example.com/", "", ""},
		{"in capitals, twice", web(label("SERVICE_ROUTE_HOST", "SHOP.example.com,shop.example.com")), host, "shop.example.com/", "", ""},
		{"wildcard", web(label("SERVICE_ROUTE_HOST", "*.example.com")), host, "*.example.com/", "", ""},
		{"URL with a path", web(label("SERVICE_ROUTE_HOST", "https://shop.example.com/api")), host, "", `"https://shop.example.com/api" is not a host name`, `no route: its route_host "https://shop.example.com/api" is not a host name`},
		{"with a port", web(label("SERVICE_ROUTE_HOST", "shop.example.com:8080")), host, "", `"shop.example.com:8080" is not a host name`, "no route: "},
		{"umlaut", web(label("SERVICE_ROUTE_HOST", "müller.example")), host, "", "is not a host name", "in the form that DNS carries (xn--…)"},
		{"one bad host of two costs only its own", web(label("SERVICE_ROUTE_HOST", "a.example,b!.example")), host, "a.example/", "", `its route_host "b!.example" is not a host name`},
		{"Traefik's rule", web(label("SERVICE_ROUTE_HOST", "Host(`a.example`)")), host, "", "is not a host name", "no route: "},

		// Paths as people write them.
		{"a path with a line's end", hostAnd(label("SERVICE_ROUTE_PATH", "/api\n")), host, "shop.example.com/api/", "", ""},
		{"a path without the slash", hostAnd(label("SERVICE_ROUTE_PATH", "api")), host, "shop.example.com/api/", "", ""},
		{"a path in quotes", hostAnd(env(`SERVICE_ROUTE_PATH='/api'`)), host, "shop.example.com/api/", "", ""},
		{"a path that is not ASCII", hostAnd(label("SERVICE_ROUTE_PATH", "/müller")), host, "", `its route_path "/müller" is not a path like /api`, "no route: "},
		{"a pattern", hostAnd(label("SERVICE_ROUTE_PATH", "/api/*")), host, "", `its route_path "/api/*" is not a path`, "no route: "},
		{"two paths", hostAnd(label("SERVICE_ROUTE_PATH", "/a\n/b\n")), host, "", "SERVICE_ROUTE_PATH cannot be stored: its value has control characters or is not UTF-8", "no route: "},
		{"two paths and a comma", hostAnd(label("SERVICE_ROUTE_PATH", "/a,/b")), host, "", `its route_path "/a,/b" is not a path`, "no route: "},
		{"a path over 512 bytes", hostAnd(label("SERVICE_ROUTE_PATH", long)), host, "", "SERVICE_ROUTE_PATH cannot be stored: Consul takes at most 512 bytes in a value, and this one has 513", "no route: "},

		// Empty, as compose leaves a variable that is not set.
		{"empty host", web(label("SERVICE_ROUTE_HOST", ""), label("SERVICE_ROUTE_PATH", "/")), host, "", "SERVICE_ROUTE_HOST is empty: set it, or remove it", "no route: SERVICE_ROUTE_HOST is empty"},
		{"host of commas", web(label("SERVICE_ROUTE_HOST", " , "), label("SERVICE_ROUTE_PATH", "/")), host, "", "SERVICE_ROUTE_HOST is empty", "no route: "},
		{"empty path", hostAnd(label("SERVICE_ROUTE_PATH", " ")), host, "", "SERVICE_ROUTE_PATH is empty", "no route: "},
		{"empty port", hostAnd(label("SERVICE_ROUTE_PORT", "")), host, "", "SERVICE_ROUTE_PORT is empty", "no route: "},
		{"empty host in the environment", web(env("SERVICE_ROUTE_HOST=", "SERVICE_ROUTE_PATH=/")), host, "", "SERVICE_ROUTE_HOST is empty", "no route: "},
		{"an empty restriction is none", hostAnd(label("SERVICE_ROUTE_REDIRECT", ""), label("SERVICE_ROUTE_CHECK", "")), host, "shop.example.com/", "", ""},

		// Restrictions.
		{"a check over 512 bytes", hostAnd(label("SERVICE_ROUTE_CHECK", long)), host, "", "SERVICE_ROUTE_CHECK cannot be stored", "no route: "},
		{"a redirect that is no text", hostAnd(label("SERVICE_ROUTE_REDIRECT", "https\x00")), host, "", "SERVICE_ROUTE_REDIRECT cannot be stored", "no route: "},
		{"a bad limit", hostAnd(label("SERVICE_ROUTE_MAXCONN", "many")), host, "", `its route_maxconn "many"`, "no route: "},
		{"to the leader", hostAnd(label("SERVICE_ROUTE_TO", "leader")), host, "shop.example.com/", "", ""},
		{"to somebody else", hostAnd(label("SERVICE_ROUTE_TO", "leeder")), host, "", `its route_to "leeder"`, "no route: its route_to"},
		{"to what is no text", hostAnd(label("SERVICE_ROUTE_TO", "leader\x00")), host, "", "SERVICE_ROUTE_TO cannot be stored", "no route: "},
		{"a bad limit of an instance that names no route", web(label("SERVICE_ROUTE_MAXCONN", "\x00")), host, "", "SERVICE_ROUTE_MAXCONN cannot be stored", "no route: "},
		{"a bad weight", hostAnd(label("SERVICE_WEIGHT", "half")), host, "", `SERVICE_WEIGHT="half" is not a weight`, "no route: "},
		{"weight 0", hostAnd(label("SERVICE_WEIGHT", "0")), host, "shop.example.com/", "", ""},
		{"a setting that closes nothing", hostAnd(label("SERVICE_ROUTE_BALANCE", "x\x00")), host, "shop.example.com/", "", "SERVICE_ROUTE_BALANCE is ignored: its value has control characters"},

		// Policy.
		{"policy without hosts", hostAnd(label("SERVICE_ROUTE_PATH", "/")), policyOf(Rule{Keys: []string{"name", "route_path"}}), "",
			"the policy does not allow SERVICE_ROUTE_HOST for this container", ""},
		{"policy without paths", hostAnd(label("SERVICE_ROUTE_PATH", "/api")), policyOf(Rule{Keys: []string{"name", "route_host"}}), "",
			"the policy does not allow SERVICE_ROUTE_PATH for this container", ""},
		{"policy without a restriction", hostAnd(label("SERVICE_ROUTE_REDIRECT", "https")), policyOf(Rule{Keys: []string{"route_host"}}), "",
			"the policy does not allow SERVICE_ROUTE_REDIRECT for this container", ""},
		{"policy without leaders", hostAnd(label("SERVICE_ROUTE_TO", "leader")), policyOf(Rule{Keys: []string{"route_host"}}), "",
			"the policy does not allow SERVICE_ROUTE_TO for this container", ""},
		{"policy without weight", hostAnd(label("SERVICE_WEIGHT", "0")), policyOf(Rule{Keys: []string{"route_host"}}), "",
			"the policy does not allow SERVICE_WEIGHT for this container", ""},

		// Misspelt.
		{"misspelt host", web(label("SERVICE_ROUT_HOST", "shop.example.com"), label("SERVICE_ROUTE_PATH", "/")), host, "",
			"SERVICE_ROUT_HOST is an unknown key: did you mean SERVICE_ROUTE_HOST?", "no route: SERVICE_ROUT_HOST is an unknown key"},
		{"misspelt host in the environment", web(env("SERVICE_ROUTE_HSOT=shop.example.com", "SERVICE_ROUTE_PATH=/")), host, "",
			"SERVICE_ROUTE_HSOT is an unknown key: did you mean SERVICE_ROUTE_HOST?", "no route: "},
		{"more than a host", web(label("SERVICE_ROUTE_HOSTNAME", "shop.example.com"), label("SERVICE_ROUTE_PATH", "/")), host, "",
			"did you mean SERVICE_ROUTE_HOST?", "no route: "},
		{"with a hyphen", web(label("SERVICE_ROUTE-HOST", "shop.example.com"), label("SERVICE_ROUTE_PATH", "/")), host, "",
			"did you mean SERVICE_ROUTE_HOST?", "no route: "},
		{"misspelt host of the port", web(label("SERVICE_8080_ROUTE_HOTS", "shop.example.com"), label("SERVICE_ROUTE_PATH", "/")), host, "",
			"SERVICE_8080_ROUTE_HOTS is an unknown key: did you mean SERVICE_8080_ROUTE_HOST?", "no route: "},
		{"misspelt port", web(label("SERVICE_8O80_ROUTE_HOST", "shop.example.com"), label("SERVICE_ROUTE_PATH", "/")), host, "",
			`SERVICE_8O80_ROUTE_HOST is an unknown key, as "8o80" is not a port: did you mean SERVICE_<port>_ROUTE_HOST?`, "no route: "},
		{"a port that cannot be", web(label("SERVICE_80800_ROUTE_HOST", "shop.example.com"), label("SERVICE_ROUTE_PATH", "/")), host, "",
			`as "80800" is not a port`, "no route: "},
		{"misspelt setting that closes nothing", hostAnd(label("SERVICE_ROUTE_BALLANCE", "source")), host, "shop.example.com/", "", "did you mean SERVICE_ROUTE_BALANCE?"},
		{"misspelt check", hostAnd(label("SERVICE_ROUTE_CHEKC", "/health")), host, "", "did you mean SERVICE_ROUTE_CHECK?", "no route: "},
		{"misspelt leader", hostAnd(label("SERVICE_ROUTE_T0", "leader")), host, "", "did you mean SERVICE_ROUTE_TO?", "no route: "},
		{"a leader as a key in the environment", hostAnd(env("SERVICE_ROUTE_TO_LEADER=true")), host, "", "did you mean SERVICE_ROUTE_TO?", "no route: "},
		{"misspelt weight that closes", hostAnd(label("SERVICE_WEIGTH", "0")), host, "", "did you mean SERVICE_WEIGHT?", "no route: "},
		{"misspelt weight that closes, in quotes", hostAnd(label("SERVICE_WEIGTH", `"00"`)), host, "", "did you mean SERVICE_WEIGHT?", "no route: "},
		{"misspelt weight", hostAnd(label("SERVICE_WEIGTH", "5")), host, "shop.example.com/", "", "SERVICE_WEIGTH is an unknown key: did you mean SERVICE_WEIGHT?"},
		{"a key of a template of one's own", hostAnd(label("SERVICE_ROUTE_TIMEOUT", "5s")), host, "shop.example.com/", "", `its key "route_timeout" is unknown and has no effect`},

		// Case.
		{"lower case", web(label("service_route_host", "shop.example.com"), label("Service_8080_Route_Path", "/x")), host, "shop.example.com/x/", "", ""},
		{"lower case in the environment", web(env("service_route_host=shop.example.com")), host, "shop.example.com/", "", ""},

		// What the proxy does not take.
		{"udp", web(ports(udp(53)), label("SERVICE_ROUTE_PORT", "53")), host, "", "", "port 53/udp: SERVICE_ROUTE_PORT is not routed: the proxy accepts TCP only"},
		{"udp, named", web(ports(tcp(80), udp(53)), label("SERVICE_80_IGNORE", "1"), label("SERVICE_53_ROUTE_PORT", "53")), host, "", "", "port 53/udp: SERVICE_53_ROUTE_PORT is not routed: the proxy accepts TCP only"},

		// The proxy itself.
		{"loopback, the proxy's port", web(label("SERVICE_ADDRESS", "127.0.0.1"), label("SERVICE_ROUTE_PATH", "/")), allowing("127.0.0.1"), "",
			"its address is 127.0.0.1:8080, where the proxy itself listens", "no route: its address is 127.0.0.1:8080"},
		{"loopback, another port", web(ports(tcp(8080, "127.0.0.1:3000")), label("SERVICE_ADDRESS", "127.0.0.1"), label("SERVICE_ROUTE_PATH", "/")), allowing("127.0.0.1"), "*/", "", ""},
		{"loopback of IPv6", web(hostNetwork, label("SERVICE_ADDRESS", "::1"), label("SERVICE_ROUTE_PATH", "/")), allowing("::1"), "", "its address is [::1]:8080", "no route: "},
		{"loopback, the port that it asks for", web(hostNetwork, ports(tcp(5432)), label("SERVICE_ADDRESS", "127.0.0.1"), label("SERVICE_ROUTE_PORT", "5432")), allowing("127.0.0.1"), "",
			"its address is 127.0.0.1:5432", "no route: "},
		{"loopback, the port that it asks for, in more digits", web(hostNetwork, ports(tcp(5432)), label("SERVICE_ADDRESS", "127.0.0.1"), label("SERVICE_ROUTE_PORT", "05432")), allowing("127.0.0.1"), "",
			"its address is 127.0.0.1:5432", "no route: "},
		{"loopback, without a route of its own", web(label("SERVICE_ADDRESS", "127.0.0.1")), allowing("127.0.0.1"), "", "its address is 127.0.0.1:8080", ""},
		{"node on loopback", web(hostNetwork, label("SERVICE_ROUTE_PATH", "/")), with(func(h *Host) { h.NodeAddress = "127.0.0.1" }), "", "its address is 127.0.0.1:8080", "no route: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, reasons := Instances(tt.in, tt.h)
			if len(got) != 1 {
				t.Fatalf("registers %+v: %q", got, reasons)
			}
			in := got[0]
			routes := strings.Fields(strings.Join(in.Routes(), " "))
			want := strings.Fields(tt.routes)
			slices.Sort(routes)
			slices.Sort(want)
			if !slices.Equal(routes, want) {
				t.Errorf("routes %q, want %q, of %v", routes, want, in.Meta)
			}
			if why := in.NoRoute(); (why == "") != (tt.noRoute == "") || !strings.Contains(why, tt.noRoute) {
				t.Errorf("no route because of %q, want %q", why, tt.noRoute)
			}
			if _, whole := in.Meta[claim.KeyNoRoute]; whole {
				for key := range in.Meta {
					if strings.HasPrefix(key, "route_") && isKnown(key) {
						t.Errorf("there is %s all the same", key)
					}
				}
			}
			if tt.reason != "" || len(tt.h.Policy) == 0 {
				expectReason(t, reasons, tt.reason)
			}
			for _, reason := range reasons {
				if strings.Contains(reason, "xn--") && !strings.Contains(reason, "is not a host name") {
					t.Errorf("%q is the remedy for a host", reason)
				}
			}
			for key, value := range in.Meta {
				if why := badMeta(key, value); why != "" && !strings.HasPrefix(key, ownPrefix) || len(value) > maxMetaValue {
					t.Errorf("Consul does not take %s: %s", key, why)
				}
			}
		})
	}
}

// An instance does not pass without a check that was meant to restrict it, even if the policy does not allow that check.
func TestPolicyAgainstChecks(t *testing.T) {
	got, reasons := Instances(web(env("SERVICE_CHECK_HTTP=/health")), policyOf(Rule{Keys: []string{"name"}}))
	if len(got) != 1 || len(got[0].Checks) != 1 || got[0].Checks[0].Status != "critical" {
		t.Errorf("registers %+v", got)
	}
	expectReason(t, reasons, "SERVICE_CHECK_HTTP: the policy does not allow it for this container; critical until this is fixed")
	got, reasons = Instances(web(env(`SERVICE_CHECK_HTTP="off"`)), policyOf(Rule{Keys: []string{"name"}}))
	if len(got) != 1 || len(got[0].Checks) != 0 {
		t.Errorf("of a check that is switched off it registers %+v", got)
	}
	expectReason(t, reasons, "SERVICE_CHECK_HTTP is ignored: the policy does not allow it")
}

// One of a container's ports gets the route asked for on the whole container.
func TestRouteChoice(t *testing.T) {
	general := label("SERVICE_ROUTE_HOST", "ci.example.com")
	tests := []struct {
		name   string
		in     Container
		want   string // port=choice, or port! for one without a route
		reason string
	}{
		{"one port", web(general), "8080=0", ""},
		{"no route", web(ports(tcp(8080), tcp(50000))), "8080=0 50000=0", ""},
		{"Jenkins", web(general, ports(tcp(8080), tcp(50000))), "8080=1 50000=2", ""},
		{"GitLab", web(general, ports(tcp(22), tcp(80), tcp(443))), "22=2 80=1 443=3", ""},
		{"a port of the proxy", web(label("SERVICE_ROUTE_PORT", "5000"), ports(tcp(3000), tcp(2000))), "2000=1 3000=2", ""},
		{"the only one that is named", web(general, label("SERVICE_50000_NAME", "ci"), ports(tcp(80), tcp(8080), tcp(50000))), "80=2 8080=3 50000=1", ""},
		{"several are named", web(general, label("SERVICE_50000_NAME", "a"), label("SERVICE_8080_NAME", "b"), ports(tcp(8080), tcp(50000))), "8080=1 50000=2", ""},
		{"one has a route of its own", web(general, label("SERVICE_50000_ROUTE_HOST", "agent.example.com"), ports(tcp(8080), tcp(50000))), "8080=0 50000=0", ""},
		{"all have routes of their own", web(label("SERVICE_50000_ROUTE_HOST", "a.example"), label("SERVICE_8080_ROUTE_HOST", "b.example"), label("SERVICE_ROUTE_PATH", "/x"), ports(tcp(8080), tcp(50000))), "8080=0 50000=0", ""},
		{"one adds to the general one", web(general, label("SERVICE_50000_ROUTE_PATH", "/x"), ports(tcp(8080), tcp(50000))), "8080! 50000=0",
			"port 8080/tcp: no route: SERVICE_ROUTE_HOST goes to port 50000: set SERVICE_8080_ROUTE_HOST for this one"},
		{"a host for one, a path for all", web(label("SERVICE_ROUTE_PATH", "/"), label("SERVICE_8080_ROUTE_HOST", "a.example"), ports(tcp(8080), tcp(50000))), "8080=0 50000!",
			"port 50000/tcp: no route: SERVICE_ROUTE_PATH goes to port 8080: set SERVICE_50000_ROUTE_PATH for this one"},
		{"ignored ports do not count", web(general, label("SERVICE_50000_IGNORE", "1"), ports(tcp(8080), tcp(50000))), "8080=0", ""},
		{"nor does UDP", web(general, ports(tcp(53), udp(53))), "53=0 53=0", ""},
		{"a label names a port that is not exposed", web(label("SERVICE_3000_ROUTE_HOST", "a.example")), "3000=0 8080=0", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			instances, reasons := Instances(tt.in, host)
			var got []string
			for _, in := range instances {
				choice := fmt.Sprintf("=%d", in.RouteChoice)
				if in.NoRoute() != "" {
					choice = "!"
				}
				got = append(got, fmt.Sprint(in.Inside)+choice)
			}
			if strings.Join(got, " ") != tt.want {
				t.Errorf("got %v, want %s", got, tt.want)
			}
			expectReason(t, reasons, tt.reason)
		})
	}
}

func TestWithoutRoutes(t *testing.T) {
	instances, _ := Instances(web(label("SERVICE_ROUTE_HOST", "ci.example.com"), label("SERVICE_ROUTE_CHECK", "/"), label("SERVICE_TEAM", "a"), ports(tcp(8080, "0.0.0.0:80"), tcp(50000)), networks()), host)
	if len(instances) != 1 {
		t.Fatalf("%+v", instances)
	}
	instances, _ = Instances(web(label("SERVICE_ROUTE_HOST", "ci.example.com"), label("SERVICE_ROUTE_CHECK", "/"), label("SERVICE_TEAM", "a"), ports(tcp(8080), tcp(50000))), host)
	before := len(instances[1].Meta)
	got := instances[1].WithoutRoutes(instances[0])
	want := "SERVICE_ROUTE_HOST goes to port 8080: set SERVICE_50000_ROUTE_HOST for this one"
	if got.NoRoute() != want || got.Meta["berth-no-route"] != want || len(got.Routes()) != 0 || got.RouteChoice != 0 {
		t.Errorf("got %+v", got)
	}
	if got.Meta["team"] != "a" || got.Meta[MetaContainer] == "" || got.Meta["route_check"] != "" {
		t.Errorf("its metadata is %v", got.Meta)
	}
	if len(instances[1].Meta) != before || len(instances[1].Routes()) != 1 {
		t.Error("the instance itself was changed")
	}
}

// Thirty hosts take several keys, each as long as Consul takes it.
func TestHostsAreSpread(t *testing.T) {
	var hosts []string
	for n := range 30 {
		hosts = append(hosts, fmt.Sprintf("a-rather-long-name-%02d.example.com", n))
	}
	got, _ := Instances(web(label("SERVICE_ROUTE_HOST", strings.Join(hosts, "\n"))), host)
	var all []string
	for n := 1; n <= claim.LastHostKey; n++ {
		value := got[0].Meta[claim.HostKey(n)]
		if len(value) > claim.MaxValue {
			t.Errorf("%s has %d bytes", claim.HostKey(n), len(value))
		}
		if value != "" {
			all = append(all, strings.Split(value, ",")...)
		}
	}
	if !slices.Equal(all, hosts) || got[0].Meta["route_host_2"] == "" {
		t.Errorf("got %q", all)
	}
}

// Whatever happens to a part of a claim, the instance never asks for more than the whole claim does.
func TestNeverWider(t *testing.T) {
	whole := map[string]string{
		"SERVICE_ROUTE_HOST": "a.example,b.example", "SERVICE_ROUTE_PATH": "/api", "SERVICE_ROUTE_PORT": "5432",
		"SERVICE_ROUTE_CHECK": "/health", "SERVICE_ROUTE_REDIRECT": "https", "SERVICE_ROUTE_MAXCONN": "10", "SERVICE_WEIGHT": "5",
	}
	before, _ := Instances(web(func(c *Container) { c.Labels = whole }), host)
	asked := before[0].Routes()
	if len(asked) != 3 {
		t.Fatalf("the whole claim is %q", asked)
	}
	values := []string{"", " ", "\x00", "x!\ny!\nz!", strings.Repeat("x", 600), "${UNSET}", "*", "/*", "\"", "\"\"", "\xff", "-maybe-/"}
	for n := range 200 {
		values[1] += fmt.Sprintf(" a-rather-long-name-%03d.example.com", n)
	}
	for key := range whole {
		for _, value := range values {
			if key == "SERVICE_ROUTE_PATH" && value == "-maybe-/" {
				continue // it is a path
			}
			c := web(func(c *Container) { c.Labels = rebuilt(whole) })
			c.Labels[key] = value
			narrower(t, fmt.Sprintf("%s=%.20q", key, value), c, host, asked)
		}
		for n := len(keyPrefix); n < len(key); n++ { // a letter is missing, or two are swapped
			for _, wrong := range []string{key[:n] + key[n+1:], key[:n] + key[min(n+1, len(key)-1):n+1] + key[n:], key[:n] + "X" + key[n:]} {
				if wrong == key {
					continue
				}
				c := web(func(c *Container) { c.Labels = rebuilt(whole) })
				delete(c.Labels, key)
				c.Labels[wrong] = whole[key]
				narrower(t, wrong, c, host, asked)
				delete(c.Labels, wrong)
				c.Env = []string{wrong + "=" + whole[key]}
				narrower(t, wrong+" in the environment", c, host, asked)
			}
		}
		allowed := []string{}
		for other := range whole {
			if other != key {
				allowed = append(allowed, strings.ToLower(strings.TrimPrefix(other, keyPrefix)))
			}
		}
		narrower(t, "a policy without "+key, web(func(c *Container) { c.Labels = whole }), policyOf(Rule{Keys: allowed}), asked)
	}
}

func narrower(t *testing.T, what string, c Container, h Host, asked []string) {
	t.Helper()
	got, reasons := Instances(c, h)
	for _, in := range got {
		for _, route := range in.Routes() {
			if !slices.Contains(asked, route) && !strings.HasPrefix(route, "port ") {
				t.Errorf("%s: asks for %s", what, route)
			}
		}
	}
	if len(reasons) == 0 && !slices.Equal(got[0].Routes(), asked) {
		t.Errorf("%s: nothing is said", what)
	}
}
