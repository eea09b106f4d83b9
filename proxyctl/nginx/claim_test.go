package nginx

import (
	"errors"
	"testing"

	"berth/proxyctl"
)

// A service does not get a port that the configuration itself listens on.
func TestClaimedPort(t *testing.T) {
	for _, tt := range []struct {
		http, stream string
		port         int // 0 for none
	}{
		{"server { listen 8080; }", "server { listen 9080; proxy_pass db.tcp; }", 0},
		{"server { listen 9080; }", "server { listen 9080 so_keepalive=60s:10s:6; proxy_pass db.tcp; }", 9080},
		{"server { listen [::]:9080; }", "server { listen 9080; listen [::]:9080; proxy_pass db.tcp; }", 9080},
		{"server { listen 127.0.0.1:9080 default_server; }", "server { listen 9080; proxy_pass db.tcp; }", 9080},
		{"server { listen 10.0.0.1; }", "server { listen 80; proxy_pass db.tcp; }", 80},
		{"", "server { listen 9000-9100; proxy_pass mine; }\nserver { listen 9080; proxy_pass db.tcp; }", 9080},
		{"server { listen 9080 quic; }", "server { listen 9080 udp; proxy_pass mine; }\nserver { listen 9080; proxy_pass db.tcp; }", 0},
		{"server { listen unix:/run/9080; }", "server { listen 9080; proxy_pass db.tcp; }", 0},
		{"server { }", "server { listen 9080; proxy_pass mine; }\nserver { listen 9080; proxy_pass db.tcp; }", 9080},
		{"server { listen 9080; }", "server { listen 9080; proxy_pass mine; }", 0}, // the operator's own business
	} {
		d := &driver{opts: Options{Socket: "/run/nginx/berth.sock"}}
		_, err := d.Mark("events {}\nhttp {\n"+tt.http+"\n}\nstream {\n"+tt.stream+"\n}\n", nil)
		var port *proxyctl.PortError
		switch {
		case tt.port == 0 && err == nil:
		case tt.port == 0 || !errors.As(err, &port) || port.Port != tt.port || !errors.Is(err, proxyctl.ErrRefused):
			t.Errorf("%s and %s: error %v, want one of port %d", tt.http, tt.stream, err, tt.port)
		}
	}
}
