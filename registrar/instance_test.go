package registrar

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var host = Host{Name: "vm", EngineID: "ENGINE", Networks: []string{"front", "back"}}

// web is a container on a load balancer's network that exposes 8080/tcp. The functions change it.
func web(change ...func(*Container)) Container {
	c := Container{
		ID: "0123456789abcdef", Name: "web_1", Image: "registry:5000/team/shop:v2",
		Networks: map[string]netip.Addr{"front": netip.MustParseAddr("10.0.0.2")},
		Ports:    []Port{{Number: 8080, Protocol: "tcp"}},
	}
	for _, f := range change {
		f(&c)
	}
	return c
}

func env(kv ...string) func(*Container) { return func(c *Container) { c.Env = append(c.Env, kv...) } }

func label(key, value string) func(*Container) {
	return func(c *Container) {
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		c.Labels[key] = value
	}
}

func ports(p ...Port) func(*Container) { return func(c *Container) { c.Ports = p } }

func networks(kv ...string) func(*Container) {
	return func(c *Container) {
		c.Networks = map[string]netip.Addr{}
		for i := 0; i < len(kv); i += 2 {
			c.Networks[kv[i]] = netip.MustParseAddr(kv[i+1])
		}
	}
}

func tcp(number uint16, published ...string) Port {
	p := Port{Number: number, Protocol: "tcp"}
	for _, s := range published {
		p.Published = append(p.Published, netip.MustParseAddrPort(s))
	}
	return p
}

// inst is what web registers without further ado. Meta without owner and container, which all have.
func inst(change ...func(*Instance)) Instance {
	in := Instance{ID: "vm:web_1:8080", Name: "shop", Address: "10.0.0.2", Port: 8080, Probe: "10.0.0.2:8080", Container: "0123456789abcdef"}
	for _, f := range change {
		f(&in)
	}
	return in
}

func TestInstances(t *testing.T) {
	meta := func(kv ...string) func(*Instance) {
		return func(in *Instance) {
			in.Meta = map[string]string{}
			for i := 0; i < len(kv); i += 2 {
				in.Meta[kv[i]] = kv[i+1]
			}
		}
	}
	name := func(s string) func(*Instance) { return func(in *Instance) { in.Name = s } }
	id := func(s string) func(*Instance) { return func(in *Instance) { in.ID = s } }
	tagged := func(s ...string) func(*Instance) { return func(in *Instance) { in.Tags = s } }
	at := func(address string, port int, probe string) func(*Instance) {
		return func(in *Instance) { in.Address, in.Port, in.Probe = address, port, probe }
	}

	tests := []struct {
		name    string
		in      Container
		want    []Instance
		reasons []string // a part of each
	}{
		{"defaults", web(), []Instance{inst()}, nil},
		{"name from environment", web(env("SERVICE_NAME=app")), []Instance{inst(name("app"))}, nil},
		{"label wins over environment", web(env("SERVICE_NAME=env"), label("SERVICE_NAME", "app")), []Instance{inst(name("app"))}, nil},
		{"a value with =", web(env("SERVICE_X=a=b")), []Instance{inst(meta("x", "a=b"))}, nil},
		{"image with digest", web(func(c *Container) { c.Image = "shop@sha256:12" }), []Instance{inst()}, nil},
		{"id", web(env("SERVICE_ID=app-1")), []Instance{inst(id("app-1"))}, nil},
		{"tags", web(env(`SERVICE_TAGS=a, b,, c\,d`)), []Instance{inst(tagged("a", "b", "c,d"))}, nil},
		{"ignore", web(env("SERVICE_IGNORE=true")), nil, nil},
		{"ignore without address", web(env("SERVICE_IGNORE=1"), networks()), nil, nil},
		{"unknown keys are meta, checks are not", web(label("SERVICE_ROUTE_HOST", "a.example"), env("SERVICE_CHECK_HTTP=/")),
			[]Instance{inst(meta("route_host", "a.example"))}, nil},
		{"meta key with a dot", web(label("SERVICE_A.B", "x")), []Instance{inst()}, []string{`"SERVICE_A.B" is left out`}},
		{"meta value too long", web(env("SERVICE_X=" + strings.Repeat("x", 513))), []Instance{inst()}, []string{"at most 512 bytes"}},
		{"owner cannot be forged", web(label("SERVICE_BERTH-OWNER", "me")), []Instance{inst()}, []string{"berth's own"}},
		{"several ports get a suffix", web(env("SERVICE_NAME=app"), ports(tcp(80), tcp(81))), []Instance{
			inst(name("app-80"), id("vm:web_1:80"), at("10.0.0.2", 80, "10.0.0.2:80")),
			inst(name("app-81"), id("vm:web_1:81"), at("10.0.0.2", 81, "10.0.0.2:81")),
		}, nil},
		{"a port's own keys win, its name gets no suffix", web(env("SERVICE_80_NAME=app", "SERVICE_80_TAGS=x", "SERVICE_TAGS=y", "SERVICE_81_IGNORE=1"), ports(tcp(80), tcp(81))), []Instance{
			inst(name("app"), id("vm:web_1:80"), tagged("x"), at("10.0.0.2", 80, "10.0.0.2:80")),
		}, nil},
		{"udp", web(ports(Port{Number: 53, Protocol: "udp"})), []Instance{
			inst(id("vm:web_1:53:udp"), tagged("udp"), at("10.0.0.2", 53, "")),
		}, nil},
		{"second network in the host's order", web(networks("aaa", "10.9.0.1", "back", "10.1.0.2")), []Instance{
			inst(at("10.1.0.2", 8080, "10.1.0.2:8080")),
		}, nil},
		{"IPv6", web(networks("front", "fd00::2")), []Instance{inst(at("fd00::2", 8080, "[fd00::2]:8080"))}, nil},
		{"published: the node's address, probed inside", web(networks("other", "10.9.0.1"), ports(tcp(8080, "0.0.0.0:32768"))), []Instance{
			inst(at("", 32768, "10.9.0.1:8080")),
		}, nil},
		{"published on one address", web(networks(), ports(tcp(8080, "192.0.2.1:80"))), []Instance{inst(at("192.0.2.1", 80, ""))}, nil},
		{"published on loopback only", web(networks(), ports(tcp(8080, "127.0.0.1:80"))), nil, []string{"other hosts do not reach"}},
		{"a shared network wins over a published port", web(ports(tcp(8080, "0.0.0.0:80"))), []Instance{inst()}, nil},
		{"not reachable", web(networks("other", "10.9.0.1")), nil, []string{"port 8080/tcp: it is not on front, back and the port is not published"}},
		{"ignore without ports", web(env("SERVICE_IGNORE=1"), ports()), nil, nil},
		{"no ports", web(ports()), nil, []string{"exposes no port"}},
		{"host network", web(func(c *Container) { c.HostNetwork = true }), []Instance{inst(at("", 8080, ""))}, nil},
		{"not probed", web(env("SERVICE_READY=none")), []Instance{inst(at("10.0.0.2", 8080, ""))}, nil},
		{"unknown readiness", web(env("SERVICE_READY=maybe")), nil, []string{`SERVICE_READY="maybe" is not known`}},
		{"bad name", web(env("SERVICE_NAME=a/b")), nil, []string{`"a/b" is no service name`}},
		{"hostile name", web(env("SERVICE_NAME=a\n  server evil 1.2.3.4:80")), nil, []string{`"a\n  server evil 1.2.3.4:80" is no service name`}},
		{"bad id", web(env("SERVICE_ID=../x?y")), nil, []string{"is no service ID"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, reasons := Instances(tt.in, host)
			for i := range got {
				if got[i].Meta[metaOwner] != "ENGINE" || got[i].Meta[metaContainer] != tt.in.ID {
					t.Errorf("instance %d does not say whose it is: %v", i, got[i].Meta)
				}
				delete(got[i].Meta, metaOwner)
				delete(got[i].Meta, metaContainer)
			}
			if d := cmp.Diff(tt.want, got, cmpopts.EquateEmpty()); d != "" {
				t.Errorf("instances (-want +got):\n%s", d)
			}
			if len(reasons) != len(tt.reasons) {
				t.Fatalf("reasons: got %q, want %d", reasons, len(tt.reasons))
			}
			for i, r := range reasons {
				if !strings.Contains(r, tt.reasons[i]) {
					t.Errorf("reason %q does not say %q", r, tt.reasons[i])
				}
				if strings.ContainsRune(r, '\n') {
					t.Errorf("reason %q has more than one line", r)
				}
			}
		})
	}
}

func TestMetaRoom(t *testing.T) {
	c := web()
	for i := range 70 {
		label("SERVICE_K"+strings.Repeat("x", i), "v")(&c)
	}
	got, reasons := Instances(c, host)
	if len(got) != 1 || len(got[0].Meta) != maxMeta {
		t.Fatalf("got %d pairs of metadata, want %d", len(got[0].Meta), maxMeta)
	}
	if want := 70 - (maxMeta - 2); len(reasons) != want {
		t.Errorf("got %d reasons, want one for each of %d pairs left out", len(reasons), want)
	}
}
