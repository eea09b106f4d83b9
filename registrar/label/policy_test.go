package label

import (
	"strings"
	"testing"
)

func TestPolicy(t *testing.T) {
	shop := func(change ...func(*Container)) Container {
		return web(append([]func(*Container){label(projectLabel, "store"), label("team", "a/b"), env("SERVICE_NAME=shop")}, change...)...)
	}
	const none = "no rule of the policy matches it: add one for its image, project or labels"
	tests := []struct {
		name   string
		policy []Rule
		in     Container
		want   string // name of the one service registered
		reason string
	}{
		{"none", nil, shop(), "shop", ""},
		{"one for all", []Rule{{}}, shop(), "shop", ""},

		// Which containers.
		{"image as it was given", []Rule{{Image: []string{"registry:5000/team/shop:v2"}}}, shop(), "shop", ""},
		{"image without tag", []Rule{{Image: []string{"registry:5000/team/*"}}}, shop(), "shop", ""},
		{"image with any tag", []Rule{{Image: []string{"registry:5000/team/shop:*"}}}, shop(), "shop", ""},
		{"image with a digest", []Rule{{Image: []string{"shop"}}}, shop(image("shop@sha256:12")), "shop", ""},
		{"one image of several", []Rule{{Image: []string{"a", "registry:5000/*/shop"}}}, shop(), "shop", ""},
		{"image of another tag", []Rule{{Image: []string{"registry:5000/team/shop:v1"}}}, shop(), "", none},
		{"image of another registry", []Rule{{Image: []string{"shop", "*"}}}, shop(), "", none},
		{"project", []Rule{{Project: []string{"st*"}}}, shop(), "shop", ""},
		{"another project", []Rule{{Project: []string{"other"}}}, shop(), "", none},
		{"any project, without one", []Rule{{Project: []string{"?*"}}}, web(), "", none},
		{"label", []Rule{{Label: []string{"team=a/b"}}}, shop(), "shop", ""},
		{"label with any value", []Rule{{Label: []string{"te*"}}}, shop(), "shop", ""},
		{"label, across slashes", []Rule{{Label: []string{"team=*"}}}, shop(), "shop", ""},
		{"another value", []Rule{{Label: []string{"team=c*"}}}, shop(), "", none},
		{"one label of several", []Rule{{Label: []string{"x", "team=a/?"}}}, shop(), "shop", ""},
		{"all that a rule asks for", []Rule{{Project: []string{"store"}, Label: []string{"x"}}}, shop(), "", none},
		{"ignored is ignored", []Rule{{Project: []string{"other"}}}, shop(env("SERVICE_IGNORE=1")), "", ""},

		// What they may.
		{"service", []Rule{{Services: []string{"a", "sh?p"}}}, shop(), "shop", ""},
		{"another service", []Rule{{Services: []string{"a"}}}, shop(), "", "port 8080/tcp: the policy does not allow it to register the service shop"},
		{"the first rule decides", []Rule{{Project: []string{"store"}, Services: []string{"a"}}, {}}, shop(), "", "the policy does not allow it to register the service shop"},
		{"a later rule", []Rule{{Project: []string{"other"}, Services: []string{"a"}}, {}}, shop(), "shop", ""},
		{"keys", []Rule{{Keys: []string{"name", "check_*"}}}, shop(env("SERVICE_CHECK_2_HTTP=/")), "shop", ""},
		{"another key", []Rule{{Keys: []string{"name"}}}, shop(env("SERVICE_8080_TAGS=a")), "shop", "port 8080/tcp: SERVICE_8080_TAGS is ignored: the policy does not allow it for this container"},
		{"the name is a key", []Rule{{Keys: []string{"tags"}}}, shop(image("other")), "other", "SERVICE_NAME is ignored"},
		{"ignoring is always allowed", []Rule{{Keys: []string{"name"}}}, shop(env("SERVICE_8080_IGNORE=1", "SERVICE_TAGS=a")), "", ""},
		{"the address is a key", []Rule{{Keys: []string{"name"}}}, shop(label("SERVICE_ADDRESS", "203.0.113.5")), "shop", "SERVICE_ADDRESS is ignored"},
		{"a bad pattern matches nothing", []Rule{{Project: []string{"["}}}, shop(), "", none},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			instances, reasons := Instances(tt.in, with(func(h *Host) { h.Policy = tt.policy }))
			got := ""
			for _, in := range instances {
				got += in.Name
				if in.Address != "10.0.0.2" || len(in.Tags) > 0 {
					t.Errorf("registers %+v", in)
				}
			}
			if got != tt.want {
				t.Errorf("registers %q, want %q", got, tt.want)
			}
			expectReason(t, reasons, tt.reason)
		})
	}
}

func TestPolicySeesThePortInTheName(t *testing.T) {
	h := with(func(h *Host) { h.Policy = []Rule{{Services: []string{"shop-80"}}} })
	got, reasons := Instances(web(ports(tcp(80), tcp(81))), h)
	if len(got) != 1 || got[0].Name != "shop-80" {
		t.Errorf("registers %+v, want shop-80", got)
	}
	expectReason(t, reasons, "the policy does not allow it to register the service shop-81")
}

func TestValidatePolicy(t *testing.T) {
	tests := []struct {
		name string
		in   []Rule
		want string // part of the error
	}{
		{"none", nil, ""},
		{"all kinds", []Rule{{Image: []string{"a/*:v[0-9]"}, Project: []string{"?"}, Label: []string{"a=b", "c"}, Services: []string{`a\*`}, Keys: []string{"route_*"}}}, ""},
		{"bad pattern", []Rule{{}, {Services: []string{"a", "[b"}}}, `rule 2: services "[b": syntax error in pattern: put a backslash before`},
		{"bad pattern in a label's value", []Rule{{Label: []string{"a=[b"}}}, `rule 1: label "a=[b"`},
		{"bad pattern that looks good as a whole", []Rule{{Label: []string{"a[=]b"}}}, `rule 1: label "a[=]b"`},
		{"empty", []Rule{{Image: []string{""}}}, `rule 1: image "": an empty pattern matches nothing`},
		{"key in upper case", []Rule{{Keys: []string{"TAGS"}}}, `rule 1: keys "TAGS": keys are compared in lower case`},
		{"addresses", []Rule{{Addresses: []string{"203.0.113.7", "203.0.113.0/24", "2001:db8::/64", "fd00::1", "127.0.0.0/8", "0.0.0.0/0"}}}, ""},
		{"a name as an address", []Rule{{Addresses: []string{"shop.example"}}}, `rule 1: addresses "shop.example": write an IP address, or a network like 203.0.113.0/24`},
		{"too long a prefix", []Rule{{}, {Addresses: []string{"203.0.113.7", "203.0.113.0/33"}}}, `rule 2: addresses "203.0.113.0/33": write an IP address, or a network`},
		{"an address within a network", []Rule{{Addresses: []string{"203.0.113.7/24"}}}, `this is an address within 203.0.113.0/24: write that network, or the address without the prefix length`},
		{"IPv4 as IPv6", []Rule{{Addresses: []string{"::ffff:203.0.113.7"}}}, `this is IPv4 written as IPv6: write it as IPv4`},
		{"a network of IPv4 as IPv6", []Rule{{Addresses: []string{"::ffff:203.0.113.0/120"}}}, `this is IPv4 written as IPv6`},
		{"an address with a zone", []Rule{{Addresses: []string{"fe80::1%eth0"}}}, `rule 1: addresses "fe80::1%eth0": write an IP address`},
		{"the address of nobody", []Rule{{Addresses: []string{"::"}}}, "clients cannot connect to such an address: remove it"},
		{"addresses of many", []Rule{{Addresses: []string{"224.0.0.0/4"}}}, "clients cannot connect to such an address"},
		{"no address", []Rule{{Addresses: []string{""}}}, `rule 1: addresses "": write an IP address`},
		{"whole key", []Rule{{Keys: []string{"service_tags"}}}, `rule 1: keys "service_tags": write the key without SERVICE_`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := ValidatePolicy(tt.in)
			if (err == nil) != (tt.want == "") || (err != nil && !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}
