package label

import (
	"net/http"
	"testing"
)

func TestReady(t *testing.T) {
	tests := []struct {
		name   string
		in     Container
		want   Ready
		reason string
	}{
		{"tcp by default", web(), Ready{Kind: ReadyTCP, Address: "10.0.0.2:8080"}, ""},
		{"tcp", web(env("SERVICE_READY=tcp", "SERVICE_CHECK_HTTP=/health")), Ready{Kind: ReadyTCP, Address: "10.0.0.2:8080"}, ""},
		{"tcp of the port", web(env("SERVICE_READY=none", "SERVICE_8080_READY=tcp")), Ready{Kind: ReadyTCP, Address: "10.0.0.2:8080"}, ""},
		{"none", web(env("SERVICE_READY=none"), healthIs("healthy")), Ready{}, ""},
		{"http", web(env("SERVICE_READY=http:/up?x=1")), Ready{Kind: ReadyHTTP, URL: "http://10.0.0.2:8080/up?x=1"}, ""},
		{"https", web(env("SERVICE_READY=https:/up")), Ready{Kind: ReadyHTTP, URL: "https://10.0.0.2:8080/up", Insecure: true}, ""},
		{"http on IPv6", web(networks("front", "fd00::2"), env("SERVICE_READY=http:/up")), Ready{Kind: ReadyHTTP, URL: "http://[fd00::2]:8080/up"}, ""},
		{"the first HTTP check", web(env("SERVICE_CHECK_1_HTTP=/a", "SERVICE_CHECK_TCP=1", "SERVICE_CHECK_2_HTTP=/b")), Ready{Kind: ReadyHTTP, URL: "http://10.0.0.2:8080/a"}, ""},
		{"the first HTTPS check", web(env("SERVICE_CHECK_HTTPS=/a")), Ready{Kind: ReadyHTTP, URL: "https://10.0.0.2:8080/a", Insecure: true}, ""},
		{"no HTTP check because it is bad", web(env("SERVICE_CHECK_HTTP=/a b")), Ready{Kind: ReadyTCP, Address: "10.0.0.2:8080"}, "SERVICE_CHECK_HTTP: "},
		{"healthcheck by default", web(healthIs("starting"), env("SERVICE_CHECK_HTTP=/a")), Ready{Kind: ReadyHealthcheck}, ""},
		{"healthcheck", web(healthIs("starting"), env("SERVICE_READY=healthcheck", "SERVICE_CHECK_DOCKER=false")), Ready{Kind: ReadyHealthcheck}, ""},
		{"healthcheck not wanted", web(healthIs("starting"), env("SERVICE_CHECK_DOCKER=false")), Ready{Kind: ReadyTCP, Address: "10.0.0.2:8080"}, ""},
		{"no healthcheck", web(env("SERVICE_READY=healthcheck")), Ready{Kind: "unregistered"}, "the container has no HEALTHCHECK: give it one, or use tcp or http:/path"},
		{"unknown", web(env("SERVICE_READY=maybe")), Ready{Kind: "unregistered"}, `SERVICE_READY="maybe" is not known: use tcp, http:/path, https:/path, healthcheck or none`},
		{"http without a path", web(env("SERVICE_READY=http")), Ready{Kind: "unregistered"}, `SERVICE_READY=http has no path: write it like http:/health`},
		{"with blanks", web(label("SERVICE_READY", " http: /up\n")), Ready{Kind: ReadyHTTP, URL: "http://10.0.0.2:8080/up"}, ""},
		{"without the slash", web(env("SERVICE_READY=HTTP:up")), Ready{Kind: ReadyHTTP, URL: "http://10.0.0.2:8080/up"}, ""},
		{"in capitals", web(env("SERVICE_READY=TCP")), Ready{Kind: ReadyTCP, Address: "10.0.0.2:8080"}, ""},
		{"a whole URL", web(env("SERVICE_READY=http://evil.example/")), Ready{Kind: "unregistered"}, `SERVICE_READY="http://evil.example/" is not known`},
		{"http with a blank", web(env("SERVICE_READY=http:/a b")), Ready{Kind: "unregistered"}, `SERVICE_READY: "/a b" has spaces`},

		// Where the registrar asks.
		{"published: the container, not the published port", web(networks("other", "10.9.0.1"), ports(tcp(8080, "0.0.0.0:80")), env("SERVICE_CHECK_HTTP=/a")), Ready{Kind: ReadyHTTP, URL: "http://10.9.0.1:8080/a"}, ""},
		{"published, without an address of its own", web(networks(), ports(tcp(8080, "0.0.0.0:80")), env("SERVICE_CHECK_HTTP=/a")), Ready{}, ""},
		{"host network, node not known", web(hostNetwork, env("SERVICE_READY=http:/up")), Ready{}, ""},
		{"udp", web(ports(udp(53)), env("SERVICE_READY=tcp")), Ready{}, ""},
		{"udp with a healthcheck", web(ports(udp(53)), healthIs("starting")), Ready{Kind: ReadyHealthcheck}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			instances, reasons := Instances(tt.in, host)
			got := Ready{Kind: "unregistered"}
			if len(instances) == 1 {
				got = instances[0].Ready
			}
			if got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			expectReason(t, reasons, tt.reason)
		})
	}
}

func TestReadyRequest(t *testing.T) {
	r := Ready{Kind: ReadyHTTP, URL: "http://10.0.0.2:8080/up", Method: "HEAD", Host: "shop.example", Headers: "A: b\r\nX-Api-Key: s3cret\r\n"}
	req, err := r.Request(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if req.Method != "HEAD" || req.URL.String() != r.URL || req.Host != r.Host || req.Header.Get("X-Api-Key") != "s3cret" || len(req.Header) != 2 {
		t.Errorf("asks %s %s of %s with %v", req.Method, req.URL, req.Host, req.Header)
	}
	req, err = Ready{Kind: ReadyHTTP, URL: "http://10.0.0.2:8080/up"}.Request(t.Context())
	if err != nil || req.Method != http.MethodGet || req.Host != "" || len(req.Header) != 0 {
		t.Errorf("asks %+v: %v", req, err)
	}
}
