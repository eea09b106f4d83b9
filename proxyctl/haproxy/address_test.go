package haproxy

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth/proxyctl"
)

func TestNewAddresses(t *testing.T) {
	after := strings.Replace(sample, "bind :8080", "bind :8080\n bind 10.0.0.9:8404\n bind :443 ssl crt /x\n bind ipv4@127.0.0.1:444\n bind ${IP}:445", 1)
	var got []string
	for _, a := range newAddresses(parse(sample, nil), parse(after, nil)) {
		got = append(got, a.String())
	}
	want := []string{":443", "127.0.0.1:444"} // 8404 is already HAProxy's own
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if all := newAddresses(&config{}, parse(sample, nil)); len(all) != 4 {
		t.Errorf("%d new addresses in all, want 4: %v", len(all), all)
	}
}

// An address is tried as HAProxy binds it: as IPv4, unless it is written otherwise.
func TestAddressAsHAProxyBindsIt(t *testing.T) {
	const on4, on6, onAll6 = "127.0.0.1:0", "[::1]:0", "[::]:0"
	for _, tt := range []struct {
		bind   string // with %d for the port
		listen string // where another program listens
		inUse  bool
	}{
		{"bind :%d", on4, true},
		{"bind *:%d", on4, true},
		{"bind 0.0.0.0:%d", on4, true},
		{"bind ipv4@:%d", on4, true},
		{"bind 127.0.0.1:%d", on4, true},
		{"bind 127.0.0.2:%d", on4, false},
		{"bind :::%d v6only", on4, false},
		{"bind :::%d", on4, true},
		{"bind [::]:%d v4v6", on4, true},
		{"bind [::1]:%d", on4, false},
		{"bind :%d", on6, false},
		{"bind *:%d", on6, false},
		{"bind 127.0.0.1:%d", on6, false},
		{"bind :%d", onAll6, false},
		{"bind [::1]:%d", on6, true},
		{"bind ipv6@:%d", on6, true},
		{"bind :::%d v6only", on6, true},
	} {
		network := "tcp6"
		if tt.listen == on4 {
			network = "tcp4"
		}
		got := !tt.inUse
		for range 5 { // another program may happen to listen on the same port of the other family
			l, err := net.Listen(network, tt.listen) // one per try: the kernel remembers who used a port
			if err != nil {
				t.Fatal(err)
			}
			line := fmt.Sprintf(tt.bind, l.Addr().(*net.TCPAddr).Port)
			addresses := newAddresses(&config{}, parse("frontend f\n "+line+"\n", nil))
			if len(addresses) != 1 {
				t.Fatalf("%s: addresses %v", line, addresses)
			}
			got = addresses[0].inUse(t.Context())
			l.Close()
			if got == tt.inUse {
				break
			}
		}
		if got != tt.inUse {
			t.Errorf("%s with another program on %s: in use: %v", tt.bind, tt.listen, got)
		}
	}
}

// A service does not get a port that the configuration itself listens on: HAProxy would let both have it.
func TestClaimedPort(t *testing.T) {
	const claim = "frontend tcp.9080.in\n bind :9080\n default_backend db.tcp\n"
	for _, tt := range []struct {
		other string
		port  int // 0 for none
	}{
		{"frontend http.in\n bind :8080\n", 0},
		{"frontend admin\n bind :9080\n", 9080},
		{"frontend admin\n bind 127.0.0.1:8080,127.0.0.1:9080 ssl\n", 9080},
		{"listen admin\n bind [::]:9080 v4v6\n", 9080},
		{"listen admin\n bind *:9000-9100\n", 9080},
		{"global\n stats socket ipv4@127.0.0.1:9080 level admin\n", 9080},
		{"global\n stats socket /run/haproxy:9080 level admin\n", 0},
		{"peers mine\n bind :9080\n", 9080},
		{"frontend quic\n bind quic4@:9080 ssl\n", 0},
		{"frontend admin\n bind unix@/run/x:9080\n bind :9079\n", 0},
		{"frontend a\n bind :80\nfrontend b\n bind :80\n", 0}, // the operator's own business
	} {
		_, err := newDriver(Options{}).Mark(tt.other+claim, nil)
		var port *proxyctl.PortError
		switch {
		case tt.port == 0 && err == nil:
		case tt.port == 0 || !errors.As(err, &port) || port.Port != tt.port || !errors.Is(err, proxyctl.ErrRefused):
			t.Errorf("%q: error %v, want one of port %d", tt.other, err, tt.port)
		}
	}
}
