package templates

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"berth/templates/route"
)

func TestParseNetworks(t *testing.T) {
	for _, tt := range []struct{ text, want, err string }{
		{"", "[]", ""},
		{"10.0.0.0/8, fd00::/8,192.0.2.1,::1", "[10.0.0.0/8 fd00::/8 192.0.2.1/32 ::1/128]", ""},
		{"10.0.0.0/33", "", `"10.0.0.0/33" is neither a network like 10.0.0.0/8 or fd00::/8 nor an address`},
		{"10.0.0.1/8", "", `"10.0.0.1/8" has bits after its /8: the network is 10.0.0.0/8`},
		{"10.0.0.0/8,", "", `"" is neither a network`},
		{"lb.example.com", "", `"lb.example.com" is neither a network`},
		{"fe80::1%eth0", "", `"fe80::1%eth0" is neither a network`},
		{"::ffff:10.0.0.0/104", "", `is neither a network`},
		{"10.0.0.0/8;x", "", `is neither a network`},
	} {
		got, err := ParseNetworks(tt.text)
		if tt.err == "" && (err != nil || fmt.Sprint(got) != tt.want) || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("%q: %v, %v", tt.text, got, err)
		}
	}
}

func TestParseListeners(t *testing.T) {
	for _, tt := range []struct{ text, want, err string }{
		{"", "none", ""},
		{"none", "none", ""},
		{"http", "8080", ""},
		{"http, https,5432,6000-6001", "8080,8443,5432,6000-6001", ""},
		{"ftp", "", `"ftp" is neither a port`},
		{"0", "", `"0" is neither a port`},
	} {
		got, err := ParseListeners(tt.text)
		if tt.err == "" && (err != nil || got.String() != tt.want) || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("%q: %v, %v", tt.text, got, err)
		}
	}
}

// Both proxies remove the same headers.
func TestClientHeaders(t *testing.T) {
	pattern := regexp.MustCompile(clientHeaderPattern())
	nginx := renderNginx(t, oneService(), Options{}).text
	seen := map[string]bool{}
	for _, name := range slices.Concat(clientHeaders, forwardedHeaders) {
		if low := strings.ToLower(name); seen[low] || !pattern.MatchString(low) || !pattern.MatchString(strings.ReplaceAll(low, "-", "_")) {
			t.Errorf("%s: twice, or not removed by HAProxy", name)
		}
		seen[strings.ToLower(name)] = true
		if strings.Count(nginx, "proxy_set_header "+name+" ") != 1 {
			t.Errorf("%s: not set once by nginx", name)
		}
	}
	for _, name := range []string{"x-forward", "x-api-key", "authorization", "cookie", "host", "x-hostname", "x-http-method-override", "via", "x-request-id", "traceparent"} {
		if pattern.MatchString(name) {
			t.Errorf("%s is removed", name)
		}
	}
}

func TestTrustedProxiesAndListeners(t *testing.T) {
	networks, err := ParseNetworks("10.0.0.0/8,fd00::/8")
	if err != nil {
		t.Fatal(err)
	}
	c := oneService()
	c.with("db", "db-1", "10.0.0.1", 5432, route.KeyPort, "5432")
	o := Options{TrustedProxies: networks, ProxyProtocol: route.Ports{{First: 5432, Last: 5432}, {First: 8080, Last: 8080}}, IPv6: true}
	for _, text := range []string{renderWith(t, c, o, inOrder).text, renderNginx(t, c, o).text} {
		for _, network := range []string{"10.0.0.0/8", "fd00::/8"} {
			if !strings.Contains(text, network) {
				t.Errorf("%s is not in\n%s", network, text)
			}
		}
		for _, port := range []string{"8080", "8404", "5432"} {
			if !regexp.MustCompile(`(?m)^ +(bind|listen) \[::\]:` + port + `\b`).MatchString(text) {
				t.Errorf("nothing listens on port %s of IPv6 in\n%s", port, text)
			}
		}
	}
	for _, text := range []string{renderWith(t, c, Options{}, inOrder).text, renderNginx(t, c, Options{}).text} {
		if strings.Contains(text, "[::]:") || strings.Contains(text, "proxied") || strings.Contains(text, "proxy_protocol") && !strings.Contains(text, "$proxy_protocol_addr") || strings.Contains(text, "real_ip") {
			t.Errorf("without options:\n%s", text)
		}
	}
}
