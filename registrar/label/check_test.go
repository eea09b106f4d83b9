package label

import (
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

// check is the default check of web. The functions change it.
func check(d api.AgentServiceCheck, change ...func(*Check)) Check {
	if d.Interval == "" {
		d.Interval = "10s"
	}
	c := Check{Definition: d}
	for _, f := range change {
		f(&c)
	}
	return c
}

func httpCheck(change ...func(*Check)) Check {
	return check(api.AgentServiceCheck{Name: "HTTP GET /health", HTTP: "http://10.0.0.2:8080/health"}, change...)
}

func ttl(name, d string) Check {
	t, err := time.ParseDuration(d)
	if err != nil {
		panic(err)
	}
	return Check{Definition: api.AgentServiceCheck{Name: name, TTL: d}, TTL: t}
}

// critical is the check in place of one that cannot be made as declared.
func critical(keys ...string) func(*Instance) {
	return func(in *Instance) {
		in.Checks = nil
		for _, key := range keys {
			in.Checks = append(in.Checks, impossible(key, ""))
		}
	}
}

func dockerHealth() Check {
	c := ttl("Docker HEALTHCHECK", "24h0m0s")
	c.Health = true
	return c
}

// asks returns the readiness of an instance of web with a check: that check's request.
func asks(url string) func(*Instance) { return ready(Ready{Kind: ReadyHTTP, URL: url}) }

func TestChecks(t *testing.T) {
	var (
		health     = asks("http://10.0.0.2:8080/health")
		tlsHealth  = ready(Ready{Kind: ReadyHTTP, URL: "https://10.0.0.2:8080/health", Insecure: true})
		healthy    = ready(Ready{Kind: ReadyHealthcheck})
		definition = func(f func(d *api.AgentServiceCheck)) func(*Check) {
			return func(c *Check) { f(&c.Definition) }
		}
		httpsCheck = func(change ...func(*Check)) Check {
			return check(api.AgentServiceCheck{Name: "HTTPS GET /health", HTTP: "https://10.0.0.2:8080/health"}, change...)
		}
		tcpCheck  = check(api.AgentServiceCheck{Name: "TCP connect", TCP: "10.0.0.2:8080"})
		grpcCheck = func(change ...func(*Check)) Check {
			return check(api.AgentServiceCheck{Name: "gRPC health", GRPC: "10.0.0.2:8080"}, change...)
		}
		skipVerify = definition(func(d *api.AgentServiceCheck) { d.TLSSkipVerify = true })
		interval   = func(s string) func(*Check) {
			return definition(func(d *api.AgentServiceCheck) { d.Interval = s })
		}
	)
	for _, tt := range []row{
		// One kind each.
		{"http", web(env("SERVICE_CHECK_HTTP=/health")), []Instance{inst(checked(httpCheck()), health)}, nil},
		{"http of the port", web(env("SERVICE_8080_CHECK_HTTP=/health", "SERVICE_CHECK_HTTP=/all")), []Instance{inst(checked(httpCheck()), health)}, nil},
		{"http of another port", web(env("SERVICE_80_CHECK_HTTP=/health")), []Instance{inst()}, []string{"SERVICE_80_CHECK_HTTP has no effect because port 80 is not exposed: expose it, or set SERVICE_80_NAME"}},
		{"an image's check switched off by a label", web(env("SERVICE_CHECK_HTTP=/health"), label("SERVICE_CHECK_HTTP", "")), []Instance{inst()}, []string{"SERVICE_CHECK_HTTP is empty, so it counts as unset"}},
		{"http with a query", web(env("SERVICE_CHECK_HTTP=/health?deep=1")), []Instance{inst(
			checked(check(api.AgentServiceCheck{Name: "HTTP GET /health?deep=1", HTTP: "http://10.0.0.2:8080/health?deep=1"})), asks("http://10.0.0.2:8080/health?deep=1"))}, nil},
		{"http with a method", web(env("SERVICE_CHECK_HTTP=/health", "SERVICE_CHECK_HTTP_METHOD=HEAD", "SERVICE_CHECK_HTTPS_METHOD=POST")), []Instance{inst(
			checked(httpCheck(definition(func(d *api.AgentServiceCheck) { d.Method, d.Name = "HEAD", "HTTP HEAD /health" }))),
			ready(Ready{Kind: ReadyHTTP, URL: "http://10.0.0.2:8080/health", Method: "HEAD"}))}, nil},
		{"https", web(env("SERVICE_CHECK_HTTPS=/health")), []Instance{inst(checked(httpsCheck()), tlsHealth)}, nil},
		{"https with a method", web(env("SERVICE_CHECK_HTTPS=/health", "SERVICE_CHECK_HTTPS_METHOD=POST", "SERVICE_CHECK_HTTP_METHOD=HEAD")), []Instance{inst(
			checked(httpsCheck(definition(func(d *api.AgentServiceCheck) { d.Method, d.Name = "POST", "HTTPS POST /health" }))),
			ready(Ready{Kind: ReadyHTTP, URL: "https://10.0.0.2:8080/health", Method: "POST", Insecure: true}))}, nil},
		{"https without verification", web(env("SERVICE_CHECK_HTTPS=/health", "SERVICE_CHECK_TLS_SKIP_VERIFY=true")), []Instance{inst(checked(httpsCheck(skipVerify)), tlsHealth)}, nil},
		{"tcp", web(env("SERVICE_CHECK_TCP=true")), []Instance{inst(checked(tcpCheck))}, nil},
		{"tcp, whatever means yes", web(env("SERVICE_CHECK_TCP=on")), []Instance{inst(checked(tcpCheck))}, nil},
		{"tcp, no", web(env("SERVICE_CHECK_TCP=False")), []Instance{inst()}, nil},
		{"grpc", web(env("SERVICE_CHECK_GRPC=true")), []Instance{inst(checked(grpcCheck()))}, nil},
		{"grpc, no", web(env("SERVICE_CHECK_GRPC=0")), []Instance{inst()}, nil},
		{"grpc with TLS", web(env("SERVICE_CHECK_GRPC=true", "SERVICE_CHECK_GRPC_USE_TLS=true")), []Instance{inst(
			checked(grpcCheck(definition(func(d *api.AgentServiceCheck) { d.GRPCUseTLS = true }))))}, nil},
		{"grpc with TLS, without verification", web(env("SERVICE_CHECK_GRPC=true", "SERVICE_CHECK_GRPC_USE_TLS=true", "SERVICE_CHECK_TLS_SKIP_VERIFY=1")), []Instance{inst(
			checked(grpcCheck(skipVerify, definition(func(d *api.AgentServiceCheck) { d.GRPCUseTLS = true }))))}, nil},
		{"grpc without TLS has nothing to verify", web(env("SERVICE_CHECK_GRPC=true", "SERVICE_CHECK_GRPC_USE_TLS=no", "SERVICE_CHECK_TLS_SKIP_VERIFY=1")), []Instance{inst(checked(grpcCheck()))}, nil},
		{"ttl", web(env("SERVICE_CHECK_TTL=30s")), []Instance{inst(checked(ttl("TTL 30s", "30s")))}, nil},
		{"script, not allowed", web(env("SERVICE_CHECK_SCRIPT=true")), []Instance{inst(critical("SERVICE_CHECK_SCRIPT"))}, []string{"SERVICE_CHECK_SCRIPT: scripts run as the Consul agent, so the operator must allow them"}},
		{"cmd, not allowed", web(env("SERVICE_8080_CHECK_CMD=true")), []Instance{inst(critical("SERVICE_8080_CHECK_CMD"))}, []string{"SERVICE_8080_CHECK_CMD: scripts run"}},

		// What they have in common.
		{"interval and timeout", web(env("SERVICE_CHECK_HTTP=/health", "SERVICE_CHECK_INTERVAL=15s", "SERVICE_CHECK_TIMEOUT=500ms")), []Instance{inst(
			checked(httpCheck(definition(func(d *api.AgentServiceCheck) { d.Interval, d.Timeout = "15s", "500ms" }))), health)}, nil},
		{"interval of the port", web(env("SERVICE_CHECK_HTTP=/health", "SERVICE_CHECK_INTERVAL=15s", "SERVICE_8080_CHECK_INTERVAL=5s")), []Instance{inst(checked(httpCheck(interval("5s"))), health)}, nil},
		{"the shortest interval", web(env("SERVICE_CHECK_HTTP=/health", "SERVICE_CHECK_INTERVAL=100ms")), []Instance{inst(checked(httpCheck(interval("1s"))), health)}, nil},
		{"initial status", web(env("SERVICE_CHECK_HTTP=/health", "SERVICE_CHECK_INITIAL_STATUS=critical")), []Instance{inst(
			checked(httpCheck(func(c *Check) { c.Status = "critical" })), health)}, nil},
		{"deregister after", web(env("SERVICE_CHECK_HTTP=/health", "SERVICE_CHECK_DEREGISTER_AFTER=10m")), []Instance{inst(
			checked(httpCheck(definition(func(d *api.AgentServiceCheck) { d.DeregisterCriticalServiceAfter = "10m0s" }))), health)}, nil},
		{"deregister after the shortest time", web(env("SERVICE_CHECK_TTL=30s", "SERVICE_CHECK_DEREGISTER_AFTER=1s", "SERVICE_CHECK_INITIAL_STATUS=warning")), []Instance{inst(
			checked(func() Check {
				c := ttl("TTL 30s", "30s")
				c.Definition.DeregisterCriticalServiceAfter, c.Status = "1m0s", "warning"
				return c
			}()))}, nil},
		{"headers", web(env("SERVICE_CHECK_HTTP=/health", "SERVICE_CHECK_HEADER_X_API_KEY= s3cret ", "SERVICE_CHECK_HEADER_HOST=shop.example", "SERVICE_CHECK_HEADER_ACCEPT=a/b")), []Instance{inst(
			checked(httpCheck(definition(func(d *api.AgentServiceCheck) {
				d.Header = map[string][]string{"X-Api-Key": {"s3cret"}, "Host": {"shop.example"}, "Accept": {"a/b"}}
			}))),
			ready(Ready{Kind: ReadyHTTP, URL: "http://10.0.0.2:8080/health", Host: "shop.example", Headers: "Accept: a/b\r\nX-Api-Key: s3cret\r\n"}))}, nil},
		{"options without a check", web(env("SERVICE_CHECK_INTERVAL=15s", "SERVICE_CHECK_TIMEOUT=x")), []Instance{inst()}, nil},

		// Several.
		{"all kinds at once", web(env("SERVICE_CHECK_TTL=30s", "SERVICE_CHECK_TCP=1", "SERVICE_CHECK_HTTPS=/health", "SERVICE_CHECK_HTTP=/health", "SERVICE_CHECK_GRPC=1")), []Instance{inst(
			checked(httpCheck(), httpsCheck(), tcpCheck, grpcCheck(), ttl("TTL 30s", "30s")), health)}, nil},
		{"numbered ones have everything of their own", web(env(
			"SERVICE_CHECK_TCP=1", "SERVICE_CHECK_INTERVAL=20s", "SERVICE_CHECK_2_HTTP=/health", "SERVICE_CHECK_2_INTERVAL=5s", "SERVICE_CHECK_2_HEADER_A=b", "SERVICE_8080_CHECK_1_TTL=30s")), []Instance{inst(
			checked(
				check(api.AgentServiceCheck{Name: "TCP connect", TCP: "10.0.0.2:8080", Interval: "20s"}),
				ttl("TTL 30s", "30s"),
				httpCheck(interval("5s"), definition(func(d *api.AgentServiceCheck) { d.Header = map[string][]string{"A": {"b"}} }))),
			ready(Ready{Kind: ReadyHTTP, URL: "http://10.0.0.2:8080/health", Headers: "A: b\r\n"}))}, nil},
		{"ten is too many", web(env("SERVICE_CHECK_10_HTTP=/health")), []Instance{inst(critical("SERVICE_CHECK_10_HTTP"))}, []string{"SERVICE_CHECK_10_HTTP: unknown key"}},

		// Bad ones.
		{"misspelt", web(env("SERVICE_CHECK_HTPP=/health", "SERVICE_CHECK_2_URL=/")), []Instance{inst(critical("SERVICE_CHECK_HTPP", "SERVICE_CHECK_2_URL"))}, []string{"SERVICE_CHECK_HTPP: unknown key: did you mean SERVICE_CHECK_HTTP?; critical until", "SERVICE_CHECK_2_URL: unknown key"}},
		{"path without slash", web(env("SERVICE_CHECK_HTTP=health")), []Instance{inst(checked(httpCheck()), health)}, nil},
		{"path in a block of YAML", web(label("SERVICE_CHECK_HTTP", " /health\n")), []Instance{inst(checked(httpCheck()), health)}, nil},
		{"path in quotes", web(env(`SERVICE_CHECK_HTTP="/health"`)), []Instance{inst(checked(httpCheck()), health)}, nil},
		{"a whole URL", web(env("SERVICE_CHECK_HTTP=http://localhost:8080/health")), []Instance{inst(critical("SERVICE_CHECK_HTTP"))}, []string{`"http://localhost:8080/health" is not a path like /health`}},
		{"host and port", web(env("SERVICE_CHECK_HTTP=localhost:8080/health")), []Instance{inst(critical("SERVICE_CHECK_HTTP"))}, []string{`is not a path like /health`}},
		{"yes is no path", web(env("SERVICE_CHECK_HTTP=true")), []Instance{inst(critical("SERVICE_CHECK_HTTP"))}, []string{`"true" is not a path like /health`}},
		{"no is no check", web(env("SERVICE_CHECK_HTTP=off", "SERVICE_CHECK_HTTPS=None", "SERVICE_CHECK_TCP=disabled", "SERVICE_CHECK_GRPC=n", "SERVICE_CHECK_TTL=0")), []Instance{inst()}, nil},
		{"neither yes nor no", web(env("SERVICE_CHECK_TCP=8080")), []Instance{inst(critical("SERVICE_CHECK_TCP"))}, []string{`SERVICE_CHECK_TCP: "8080" is neither yes nor no: write true or false; critical until this is fixed`}},
		{"an option that says neither", web(env("SERVICE_CHECK_GRPC=on", "SERVICE_CHECK_GRPC_USE_TLS=maybe")), []Instance{inst(critical("SERVICE_CHECK_GRPC"))}, []string{`SERVICE_CHECK_GRPC: SERVICE_CHECK_GRPC_USE_TLS="maybe" is neither yes nor no`}},
		{"one that is good beside a bad one", web(env("SERVICE_CHECK_HTTP=/a b", "SERVICE_CHECK_TCP=1")), []Instance{inst(checked(impossible("SERVICE_CHECK_HTTP", ""), tcpCheck))}, []string{"has spaces"}},
		{"an unknown option of a good one", web(env("SERVICE_CHECK_HTTP=/health", "SERVICE_CHECK_RETRIES=3")), []Instance{inst(checked(httpCheck()), health)}, []string{"SERVICE_CHECK_RETRIES is ignored: unknown key"}},
		{"path with another host", web(env("SERVICE_CHECK_HTTP=@evil.example/")), []Instance{inst(critical("SERVICE_CHECK_HTTP"))}, []string{`"@evil.example/" is not a path like /health`}},
		{"path with a blank", web(env("SERVICE_CHECK_HTTP=/a b")), []Instance{inst(critical("SERVICE_CHECK_HTTP"))}, []string{"has spaces"}},
		{"path of several lines", web(env("SERVICE_CHECK_HTTP=/a\nb")), []Instance{inst(critical("SERVICE_CHECK_HTTP"))}, []string{"has spaces"}},
		{"path with a bad escape", web(env("SERVICE_CHECK_HTTP=/a%zz")), []Instance{inst(critical("SERVICE_CHECK_HTTP"))}, []string{`"/a%zz" is not a URL path`}},
		{"long path", web(env("SERVICE_CHECK_HTTP=/" + strings.Repeat("x", maxPath))), []Instance{inst(critical("SERVICE_CHECK_HTTP"))}, []string{"is longer than 1024 bytes"}},
		{"bad method", web(env("SERVICE_CHECK_HTTP=/", "SERVICE_CHECK_HTTP_METHOD=GET /")), []Instance{inst(critical("SERVICE_CHECK_HTTP"))}, []string{`SERVICE_CHECK_HTTP: SERVICE_CHECK_HTTP_METHOD="GET /" is not an HTTP method`}},
		{"seconds without a unit", web(env("SERVICE_CHECK_HTTP=/health", "SERVICE_CHECK_INTERVAL=15", "SERVICE_CHECK_TIMEOUT= 5 S", "SERVICE_CHECK_TTL=30")), []Instance{inst(
			checked(httpCheck(interval("15s"), definition(func(d *api.AgentServiceCheck) { d.Timeout = "5s" })), ttl("TTL 30s", "30s")), health)}, nil},
		{"bad interval", web(env("SERVICE_CHECK_HTTP=/", "SERVICE_CHECK_INTERVAL=often", "SERVICE_CHECK_TTL=30s")), []Instance{inst(checked(impossible("SERVICE_CHECK_HTTP", ""), ttl("TTL 30s", "30s")))}, []string{`SERVICE_CHECK_HTTP: SERVICE_CHECK_INTERVAL="often" is not a duration: write it like 10s`}},
		{"status and method in any case", web(env("SERVICE_CHECK_HTTP=/health", "SERVICE_CHECK_INITIAL_STATUS=Critical", "SERVICE_CHECK_HTTP_METHOD=head")), []Instance{inst(
			checked(httpCheck(func(c *Check) {
				c.Status, c.Definition.Method, c.Definition.Name = "critical", "HEAD", "HTTP HEAD /health"
			})), ready(Ready{Kind: ReadyHTTP, URL: "http://10.0.0.2:8080/health", Method: "HEAD"}))}, nil},
		{"bad timeout", web(env("SERVICE_CHECK_2_TCP=1", "SERVICE_CHECK_2_TIMEOUT=-1s")), []Instance{inst(critical("SERVICE_CHECK_2_TCP"))}, []string{`SERVICE_CHECK_2_TCP: SERVICE_CHECK_2_TIMEOUT="-1s" is not a duration`}},
		{"bad status", web(env("SERVICE_CHECK_TCP=1", "SERVICE_CHECK_INITIAL_STATUS=good")), []Instance{inst(critical("SERVICE_CHECK_TCP"))}, []string{`SERVICE_CHECK_INITIAL_STATUS="good" is not a status: use passing, warning or critical`}},
		{"bad time to deregister", web(env("SERVICE_CHECK_TCP=1", "SERVICE_CHECK_DEREGISTER_AFTER=soon")), []Instance{inst(critical("SERVICE_CHECK_TCP"))}, []string{`SERVICE_CHECK_DEREGISTER_AFTER="soon" is not a duration`}},
		{"bad ttl", web(env("SERVICE_CHECK_TTL=0s")), []Instance{inst(critical("SERVICE_CHECK_TTL"))}, []string{`SERVICE_CHECK_TTL: "0s" is not a duration of 1s or more`}},
		{"bad header", web(label("SERVICE_CHECK_HTTP", "/"), label("SERVICE_CHECK_HEADER_A:B", "x")), []Instance{inst(critical("SERVICE_CHECK_HTTP"))}, []string{"SERVICE_CHECK_HEADER_A:B is not a header name"}},
		{"header without a name", web(label("SERVICE_CHECK_HTTP", "/"), label("SERVICE_CHECK_HEADER_", "x")), []Instance{inst(critical("SERVICE_CHECK_HTTP"))}, []string{"SERVICE_CHECK_HEADER_ is not a header name"}},
		{"header with a line of its own", web(label("SERVICE_CHECK_HTTP", "/"), label("SERVICE_CHECK_HEADER_A", "x\r\nB: s3cret")), []Instance{inst(critical("SERVICE_CHECK_HTTP"))}, []string{"SERVICE_CHECK_HTTP: the value of SERVICE_CHECK_HEADER_A has control characters or is not UTF-8"}},

		// Docker's own.
		{"healthcheck", web(healthIs("starting")), []Instance{inst(checked(dockerHealth()), healthy)}, nil},
		{"healthcheck beside others", web(healthIs("healthy"), env("SERVICE_CHECK_HTTP=/health")), []Instance{inst(checked(httpCheck(), dockerHealth()), healthy)}, nil},
		{"healthcheck not wanted", web(healthIs("unhealthy"), env("SERVICE_CHECK_DOCKER=no")), []Instance{inst()}, nil},
		{"healthcheck wanted", web(healthIs("unhealthy"), env("SERVICE_CHECK_DOCKER=true")), []Instance{inst(checked(dockerHealth()), healthy)}, nil},
		{"healthcheck, or not", web(healthIs("unhealthy"), env("SERVICE_CHECK_DOCKER=maybe")), []Instance{inst(checked(dockerHealth()), healthy)}, []string{`SERVICE_CHECK_DOCKER="maybe" is neither yes nor no`}},
		{"healthcheck switched off in other words", web(healthIs("unhealthy"), env("SERVICE_CHECK_DOCKER=Off")), []Instance{inst()}, nil},
		{"something else says what ready is", web(healthIs("starting"), env("SERVICE_READY=tcp")), []Instance{inst(checked(func() Check { c := dockerHealth(); c.Starting = true; return c }()))}, nil},
		{"the healthcheck itself says what ready is, in capitals", web(healthIs("starting"), env("SERVICE_READY=HealthCheck")), []Instance{inst(checked(dockerHealth()), healthy)}, nil},
		{"the healthcheck itself says what ready is", web(healthIs("starting"), env("SERVICE_READY=healthcheck")), []Instance{inst(checked(dockerHealth()), healthy)}, nil},
		{"no healthcheck to want", web(env("SERVICE_CHECK_DOCKER=true")), []Instance{inst()}, nil},

		// Not TCP.
		{"checks for all ports are not for UDP", web(ports(udp(53)), env("SERVICE_CHECK_HTTP=/", "SERVICE_CHECK_TCP=1", "SERVICE_CHECK_GRPC=1", "SERVICE_CHECK_TTL=30s")), []Instance{
			inst(id("vm:web_1:53:udp"), tagged("udp"), at("10.0.0.2", 53, ""), checked(ttl("TTL 30s", "30s"))),
		}, nil},
		{"a check for this UDP port", web(ports(udp(53)), env("SERVICE_53_CHECK_TCP=1")), []Instance{
			inst(id("vm:web_1:53:udp"), tagged("udp"), at("10.0.0.2", 53, ""), critical("SERVICE_53_CHECK_TCP")),
		}, []string{"port 53/udp: SERVICE_53_CHECK_TCP: nothing answers it on a udp port"}},
		{"a check for its TCP twin", web(ports(tcp(53), udp(53)), env("SERVICE_53_CHECK_TCP=1", "SERVICE_53_NAME=dns")), []Instance{
			inst(name("dns"), id("vm:web_1:53"), at("10.0.0.2", 53, "10.0.0.2:53"), checked(check(api.AgentServiceCheck{Name: "TCP connect", TCP: "10.0.0.2:53"}))),
			inst(name("dns"), id("vm:web_1:53:udp"), tagged("udp"), at("10.0.0.2", 53, "")),
		}, nil},
	} {
		tt.run(t, host)
	}
}

func TestScripts(t *testing.T) {
	h := with(func(h *Host) { h.Scripts, h.NodeAddress = true, "192.0.2.7" })
	script := func(args ...string) func(*Instance) {
		name := args[0]
		if name == "/bin/sh" {
			name = "script"
		}
		return checked(check(api.AgentServiceCheck{Name: name, Args: args}))
	}
	for _, tt := range []row{
		{"script", web(env("SERVICE_CHECK_SCRIPT=nc $SERVICE_IP $SERVICE_PORT | grep OK")), []Instance{inst(script("/bin/sh", "-c", "nc 10.0.0.2 8080 | grep OK"))}, nil},
		{"script for a published port", web(networks(), ports(tcp(8080, "0.0.0.0:80")), env("SERVICE_CHECK_SCRIPT=nc $SERVICE_IP $SERVICE_PORT")), []Instance{
			inst(at("", 80, ""), script("/bin/sh", "-c", "nc 192.0.2.7 80"))}, nil},
		{"script for UDP", web(ports(udp(53)), env("SERVICE_CHECK_SCRIPT=dig")), []Instance{
			inst(id("vm:web_1:53:udp"), tagged("udp"), at("10.0.0.2", 53, ""), script("/bin/sh", "-c", "dig"))}, nil},
		{"cmd", web(env("SERVICE_CHECK_CMD=/bin/ok now")), []Instance{inst(script("check-cmd", "0123456789ab", "8080", "/bin/ok now"))}, nil},
		{"NUL in a script", web(label("SERVICE_CHECK_SCRIPT", "a\x00b")), []Instance{inst(critical("SERVICE_CHECK_SCRIPT"))}, []string{"NUL"}},
		{"NUL in a command", web(label("SERVICE_CHECK_CMD", "a\x00b")), []Instance{inst(critical("SERVICE_CHECK_CMD"))}, []string{"NUL"}},
		{"scripts have interval and timeout, too", web(env("SERVICE_CHECK_SCRIPT=true", "SERVICE_CHECK_INTERVAL=1m", "SERVICE_CHECK_TIMEOUT=2s")), []Instance{inst(
			checked(check(api.AgentServiceCheck{Name: "script", Args: []string{"/bin/sh", "-c", "true"}, Interval: "1m0s", Timeout: "2s"})))}, nil},
	} {
		tt.run(t, h)
	}
}

// Where the agent sends its checks, for each kind of address.
func TestCheckTargets(t *testing.T) {
	node := with(func(h *Host) { h.NodeAddress = "2001:db8::7" })
	tests := []struct {
		name string
		in   Container
		h    Host
		want string
	}{
		{"the instance's address", web(), node, "10.0.0.2:8080"},
		{"the instance's IPv6 address", web(networks("front", "fd00::2")), node, "[fd00::2]:8080"},
		{"a published port", web(networks(), ports(tcp(8080, "0.0.0.0:80"))), with(func(h *Host) { h.NodeAddress = "192.0.2.7" }), "192.0.2.7:80"},
		{"a published port on an IPv6 node", web(networks(), ports(tcp(8080, "0.0.0.0:80"))), node, "[2001:db8::7]:80"},
		{"a published port, node not known", web(networks(), ports(tcp(8080, "0.0.0.0:80"))), host, "127.0.0.1:80"},
		{"a port published on one address", web(networks(), ports(tcp(8080, "192.0.2.1:80"))), node, "192.0.2.1:80"},
		{"the host's network", web(hostNetwork), node, "[2001:db8::7]:8080"},
		{"the host's network, node not known", web(hostNetwork), host, "127.0.0.1:8080"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			env("SERVICE_CHECK_TCP=1", "SERVICE_CHECK_HTTP=/a", "SERVICE_CHECK_GRPC=1")(&tt.in)
			got, reasons := Instances(tt.in, tt.h)
			if len(got) != 1 || len(got[0].Checks) != 3 {
				t.Fatalf("got %+v %q", got, reasons)
			}
			if d := got[0].Checks[0].Definition.HTTP; d != "http://"+tt.want+"/a" {
				t.Errorf("HTTP %s, want http://%s/a", d, tt.want)
			}
			if d := got[0].Checks[1].Definition.TCP; d != tt.want {
				t.Errorf("TCP %s, want %s", d, tt.want)
			}
			if d := got[0].Checks[2].Definition.GRPC; d != tt.want {
				t.Errorf("gRPC %s, want %s", d, tt.want)
			}
		})
	}
}

func TestRegistrarTTL(t *testing.T) {
	h := with(func(h *Host) { h.TTL = time.Minute })
	for _, tt := range []row{
		{"on every instance", web(), []Instance{inst(checked(ttl("berth registrar", "1m0s")))}, nil},
		{"after all others", web(env("SERVICE_CHECK_TTL=30s"), healthIs("healthy")), []Instance{inst(
			checked(ttl("TTL 30s", "30s"), dockerHealth(), ttl("berth registrar", "1m0s")), ready(Ready{Kind: ReadyHealthcheck}))}, nil},
		{"on UDP", web(ports(udp(53))), []Instance{inst(id("vm:web_1:53:udp"), tagged("udp"), at("10.0.0.2", 53, ""), checked(ttl("berth registrar", "1m0s")))}, nil},
	} {
		tt.run(t, h)
	}
}
