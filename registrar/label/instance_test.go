package label

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var host = Host{Name: "vm", EngineID: "ENGINE", Networks: []string{"front", "back"}}

// with is host with changes.
func with(change func(*Host)) Host {
	h := host
	change(&h)
	return h
}

// web is a container on a load balancer's network that exposes 8080/tcp. The functions change it.
func web(change ...func(*Container)) Container {
	c := Container{
		ID: "0123456789abcdef", Name: "web_1", Image: "registry:5000/team/shop:v2",
		Networks: map[string][]netip.Addr{"front": {netip.MustParseAddr("10.0.0.2")}},
		Ports:    []Port{tcp(8080)},
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

func image(name string) func(*Container) { return func(c *Container) { c.Image = name } }

func healthIs(status string) func(*Container) { return func(c *Container) { c.Health = status } }

func ports(p ...Port) func(*Container) { return func(c *Container) { c.Ports = p } }

func networks(kv ...string) func(*Container) {
	return func(c *Container) {
		c.Networks = map[string][]netip.Addr{}
		for i := 0; i < len(kv); i += 2 {
			c.Networks[kv[i]] = append(c.Networks[kv[i]], netip.MustParseAddr(kv[i+1]))
		}
	}
}

func addrs(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func hostNetwork(c *Container) { c.HostNetwork, c.Networks = true, nil }

func tcp(number uint16, published ...string) Port  { return port("tcp", number, published...) }
func udp(number uint16, published ...string) Port  { return port("udp", number, published...) }
func sctp(number uint16, published ...string) Port { return port("sctp", number, published...) }

func port(protocol string, number uint16, published ...string) Port {
	p := Port{Number: number, Protocol: protocol}
	for _, s := range published {
		p.Published = append(p.Published, netip.MustParseAddrPort(s))
	}
	return p
}

// inst is what web registers without further ado. Meta without owner and container, which all have.
func inst(change ...func(*Instance)) Instance {
	in := Instance{
		ID: "vm:web_1:8080", Name: "shop", Address: "10.0.0.2", Port: 8080, Container: "0123456789abcdef",
		Ready: Ready{Kind: ReadyTCP, Address: "10.0.0.2:8080"},
	}
	for _, f := range change {
		f(&in)
	}
	return in
}

func name(s string) func(*Instance)      { return func(in *Instance) { in.Name = s } }
func id(s string) func(*Instance)        { return func(in *Instance) { in.ID = s } }
func tagged(s ...string) func(*Instance) { return func(in *Instance) { in.Tags = s } }

// at is where an instance is registered, and where it is probed, "" for nowhere.
func at(address string, port int, probe string) func(*Instance) {
	return func(in *Instance) {
		in.Address, in.Port, in.Ready = address, port, Ready{}
		if probe != "" {
			in.Ready = Ready{Kind: ReadyTCP, Address: probe}
		}
	}
}

func ready(r Ready) func(*Instance) { return func(in *Instance) { in.Ready = r } }

func checked(c ...Check) func(*Instance) { return func(in *Instance) { in.Checks = c } }

func meta(kv ...string) func(*Instance) {
	return func(in *Instance) {
		in.Meta = map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			in.Meta[kv[i]] = kv[i+1]
		}
	}
}

// row is a container and what Instances says of it.
type row struct {
	name    string
	in      Container
	want    []Instance
	reasons []string // a part of each
}

func (r row) run(t *testing.T, h Host) {
	t.Run(r.name, func(t *testing.T) {
		got, reasons := Instances(r.in, h)
		for i := range got {
			if got[i].Meta[MetaOwner] != "ENGINE" || got[i].Meta[MetaContainer] != r.in.ID {
				t.Errorf("instance %d does not say whose it is: %v", i, got[i].Meta)
			}
			delete(got[i].Meta, MetaOwner)
			delete(got[i].Meta, MetaContainer)
		}
		if d := cmp.Diff(r.want, got, cmpopts.EquateEmpty()); d != "" {
			t.Errorf("instances (-want +got):\n%s", d)
		}
		if len(reasons) != len(r.reasons) {
			t.Fatalf("reasons: got %q, want %d", reasons, len(r.reasons))
		}
		for i, reason := range reasons {
			if !strings.Contains(reason, r.reasons[i]) {
				t.Errorf("reason %q does not say %q", reason, r.reasons[i])
			}
			if !isPlain(reason) {
				t.Errorf("reason %q is not one line of text", reason)
			}
		}
	})
}

func TestInstances(t *testing.T) {
	long := strings.Repeat("x", 300)
	on := func(port int) func(*Instance) {
		return func(in *Instance) {
			p := hostPort("10.0.0.2", uint16(port))
			at("10.0.0.2", port, p)(in)
			in.ID = "vm:web_1:" + p[len("10.0.0.2:"):]
		}
	}
	for _, tt := range []row{
		{"defaults", web(), []Instance{inst()}, nil},

		// Names.
		{"name", web(env("SERVICE_NAME=app")), []Instance{inst(name("app"))}, nil},
		{"name of the port", web(env("SERVICE_8080_NAME=app", "SERVICE_NAME=all")), []Instance{inst(name("app"))}, nil},
		{"name of another port", web(env("SERVICE_80_NAME=app")), []Instance{inst()}, nil},
		{"empty name", web(env("SERVICE_NAME=")), []Instance{inst()}, nil},
		{"name from an image without registry", web(image("redis")), []Instance{inst(name("redis"))}, nil},
		{"name from an image with digest", web(image("shop@sha256:12")), []Instance{inst()}, nil},
		{"name from an image with tag and digest", web(image("a/shop:v1@sha256:12")), []Instance{inst()}, nil},
		{"name from an image with what DNS does not have", web(image("team/_node.js_")), []Instance{inst(name("node-js"))}, nil},
		{"image without a name", web(image("sha256:12345")), nil, []string{`image "sha256:12345" has no name to register: set SERVICE_NAME`}},
		{"underscores", web(env("SERVICE_NAME=my_app")), []Instance{inst(name("my_app"))}, nil},
		{"bad name", web(env("SERVICE_NAME=a/b")), nil, []string{`"a/b" is no service name`}},
		{"name with a dot", web(env("SERVICE_NAME=a.b")), nil, []string{`"a.b" is no service name`}},
		{"long name", web(env("SERVICE_NAME=" + long)), nil, []string{`is no service name: use up to 63`}},
		{"hostile name", web(env("SERVICE_NAME=a\n  server evil 1.2.3.4:80")), nil, []string{`"a\n  server evil 1.2.3.4:80" is no service name`}},

		// IDs.
		{"id", web(env("SERVICE_ID=app-1")), []Instance{inst(id("app-1"))}, nil},
		{"id of the port", web(env("SERVICE_8080_ID=app-1")), []Instance{inst(id("app-1"))}, nil},
		{"bad id", web(env("SERVICE_ID=../x?y")), nil, []string{"is no service ID"}},
		{"id that is another path", web(env("SERVICE_ID=a/../../leave")), nil, []string{"is no service ID"}},
		{"id with an empty part", web(env("SERVICE_ID=a//b")), nil, []string{"is no service ID"}},
		{"long id", web(env("SERVICE_ID=" + long)), nil, []string{"is no service ID: use up to 200"}},
		{"one id for two ports", web(env("SERVICE_ID=app", "SERVICE_NAME=app"), ports(tcp(80), tcp(81))), []Instance{
			inst(name("app-80"), on(80), id("app")),
		}, []string{"port 81/tcp: port 80/tcp has the service ID app already: give each port its own (SERVICE_81_ID)"}},

		// Tags.
		{"tags", web(env(`SERVICE_TAGS=a, b,, c\,d`)), []Instance{inst(tagged("a", "b", "c,d"))}, nil},
		{"tags of the port", web(env(`SERVICE_TAGS=a`, `SERVICE_8080_TAGS=b`)), []Instance{inst(tagged("b"))}, nil},
		{"a tag given twice", web(env("SERVICE_TAGS=a,b,a"), func(c *Container) { c.ExtraTags = []string{"b", "c"} }), []Instance{inst(tagged("a", "b", "c"))}, nil},
		{"hostile tag", web(env("SERVICE_TAGS=a,b\nc")), []Instance{inst(tagged("a"))}, []string{`tag "b\nc" is left out: it has characters`}},
		{"long tag", web(env("SERVICE_TAGS=a," + long)), []Instance{inst(tagged("a"))}, []string{`is left out: it is longer than 255 bytes`}},
		{"tags template failed", web(func(c *Container) { c.ExtraTagsErr = "no such field" }), []Instance{inst()}, []string{"the tags of --tags are left out: no such field"}},

		// Ignored.
		{"ignore", web(env("SERVICE_IGNORE=true")), nil, nil},
		{"ignore, whatever the value", web(env("SERVICE_IGNORE=false")), nil, nil},
		{"ignore, without a value", web(env("SERVICE_IGNORE=")), []Instance{inst()}, nil},
		{"ignore without address", web(env("SERVICE_IGNORE=1"), networks()), nil, nil},
		{"ignore without ports", web(env("SERVICE_IGNORE=1"), ports()), nil, nil},
		{"ignore one port, which counts for the name all the same", web(env("SERVICE_80_IGNORE=1"), ports(tcp(80), tcp(81))), []Instance{
			inst(name("shop-81"), on(81)),
		}, nil},
		{"ignore all but one port", web(env("SERVICE_IGNORE=1", "SERVICE_81_IGNORE="), ports(tcp(80), tcp(81))), []Instance{
			inst(name("shop-81"), on(81)),
		}, nil},

		// Ports.
		{"no ports", web(ports()), nil, []string{"exposes no port"}},
		{"several ports get a suffix", web(env("SERVICE_NAME=app"), ports(tcp(80), tcp(81))), []Instance{
			inst(name("app-80"), on(80)), inst(name("app-81"), on(81)),
		}, nil},
		{"ports in any order", web(env("SERVICE_NAME=app"), ports(tcp(81), tcp(80))), []Instance{
			inst(name("app-80"), on(80)), inst(name("app-81"), on(81)),
		}, nil},
		{"a port's own keys win, its name gets no suffix", web(env("SERVICE_80_NAME=app", "SERVICE_80_TAGS=x", "SERVICE_TAGS=y", "SERVICE_81_IGNORE=1"), ports(tcp(80), tcp(81))), []Instance{
			inst(name("app"), on(80), tagged("x")),
		}, nil},
		{"a port's empty name is none", web(env("SERVICE_80_NAME="), ports(tcp(80), tcp(81))), []Instance{
			inst(name("shop-80"), on(80)), inst(name("shop-81"), on(81)),
		}, nil},
		{"udp", web(env("SERVICE_TAGS=a"), ports(udp(53))), []Instance{
			inst(id("vm:web_1:53:udp"), tagged("a", "udp"), at("10.0.0.2", 53, "")),
		}, nil},
		{"udp with an id of its own", web(env("SERVICE_ID=dns"), ports(udp(53))), []Instance{
			inst(id("dns"), tagged("udp"), at("10.0.0.2", 53, "")),
		}, nil},
		{"sctp", web(ports(sctp(9))), []Instance{
			inst(id("vm:web_1:9:sctp"), tagged("sctp"), at("10.0.0.2", 9, "")),
		}, nil},
		{"tcp and udp of one number", web(ports(udp(53), tcp(53))), []Instance{
			inst(name("shop-53"), on(53)),
			inst(name("shop-53"), id("vm:web_1:53:udp"), tagged("udp"), at("10.0.0.2", 53, "")),
		}, nil},

		// Meta.
		{"other keys", web(label("SERVICE_ROUTE_HOST", "a.example"), env("SERVICE_REGION=us-east", "SERVICE_8080_X=y")),
			[]Instance{inst(meta("route_host", "a.example", "region", "us-east", "x", "y"))}, nil},
		{"a value with =", web(env("SERVICE_X=a=b")), []Instance{inst(meta("x", "a=b"))}, nil},
		{"no value", web(env("SERVICE_X=", "SERVICE_Y")), []Instance{inst(meta("x", ""))}, nil},
		{"a number only", web(env("SERVICE_80=x")), []Instance{inst(meta("80", "x"))}, nil},
		{"not quite ours", web(env("SERVICE=x", "SERVICES_NAME=y", "service_name=z"), label("MY_SERVICE_NAME", "q")), []Instance{inst()}, nil},
		{"key with a dot", web(label("SERVICE_A.B", "x")), []Instance{inst()}, []string{`SERVICE_A.B is left out: Consul takes letters`}},
		{"long value", web(env("SERVICE_X=" + strings.Repeat("x", 513))), []Instance{inst()}, []string{"SERVICE_X is left out: Consul takes at most 512 bytes in a value, this has 513"}},
		{"long key", web(env("SERVICE_" + long + "=")), []Instance{inst()}, []string{"at most 128 of them"}},
		{"several lines", web(env("SERVICE_8080_X=a\nb")), []Instance{inst()}, []string{"SERVICE_8080_X is left out: its value has characters that are no text"}},
		{"no UTF-8", web(env("SERVICE_X=\xff")), []Instance{inst()}, []string{"SERVICE_X is left out: its value has characters that are no text"}},
		{"hostile key", web(label("SERVICE_A\nB", "x")), []Instance{inst()}, []string{`"SERVICE_A\nB" is left out`}},
		{"owner cannot be forged", web(label("SERVICE_BERTH-OWNER", "me")), []Instance{inst()}, []string{"berth's own"}},
		{"what Consul keeps for itself", web(label("SERVICE_CONSUL-X", "me")), []Instance{inst()}, []string{"Consul keeps keys that begin with"}},

		// Weight and stop signal.
		{"weight", web(env("SERVICE_WEIGHT=256")), []Instance{inst(func(in *Instance) { in.Weight = 256 })}, nil},
		{"no weight", web(env("SERVICE_WEIGHT=")), []Instance{inst()}, nil},
		{"weight 0", web(env("SERVICE_WEIGHT=0")), []Instance{inst()}, []string{`SERVICE_WEIGHT="0" is left out: a weight is a number from 1 to 256`}},
		{"weight 257", web(env("SERVICE_WEIGHT=257")), []Instance{inst()}, []string{`SERVICE_WEIGHT="257" is left out`}},
		{"weight in words", web(env("SERVICE_WEIGHT=heavy")), []Instance{inst()}, []string{`SERVICE_WEIGHT="heavy" is left out`}},
		{"stop signal", web(env("SERVICE_STOP_SIGNAL=term")), []Instance{inst()}, nil},
		{"stop signal by number", web(env("SERVICE_STOP_SIGNAL=3")), []Instance{inst()}, nil},
		{"no signal", web(env("SERVICE_STOP_SIGNAL=HALT")), []Instance{inst()}, []string{`SERVICE_STOP_SIGNAL is left out: "HALT" is no signal`}},
	} {
		tt.run(t, host)
	}
}

func TestInstancesExplicit(t *testing.T) {
	h := with(func(h *Host) { h.Explicit = true })
	for _, tt := range []row{
		{"without a name", web(), nil, []string{"port 8080/tcp: it has no SERVICE_NAME"}},
		{"with a name", web(env("SERVICE_NAME=app")), []Instance{inst(name("app"))}, nil},
		{"one of two ports", web(env("SERVICE_8080_NAME=app"), ports(tcp(80), tcp(8080))), []Instance{inst(name("app"))}, []string{"port 80/tcp: it has no SERVICE_NAME"}},
	} {
		tt.run(t, h)
	}
}

func TestMetaRoom(t *testing.T) {
	c := web()
	for i := range 70 {
		label("SERVICE_K"+strings.Repeat("x", i), "v")(&c)
	}
	got, reasons := Instances(c, host)
	if n := len(got[0].Meta); n+1 != maxMeta { // the fingerprint of the checks comes later
		t.Fatalf("got %d pairs of metadata, want %d", n, maxMeta-1)
	}
	if want := 70 - (maxMeta - ownMeta); len(reasons) != want {
		t.Errorf("got %d reasons, want one for each of %d pairs left out", len(reasons), want)
	}
}

// A container that asks for everything at once keeps nobody else waiting.
func TestTooMuch(t *testing.T) {
	c := web(ports())
	for n := 65535; n > 0; n-- {
		c.Ports = append(c.Ports, tcp(uint16(n)))
	}
	for i := range 1000 {
		label("SERVICE_X."+strings.Repeat("x", i), "v")(&c)
	}
	started := time.Now() // it takes tens of milliseconds
	got, reasons := Instances(c, host)
	if took := time.Since(started); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	if len(got) != maxPorts || got[maxPorts-1].Port != maxPorts {
		t.Errorf("%d instances, the last of which has port %d; want the first %d ports", len(got), got[len(got)-1].Port, maxPorts)
	}
	if len(reasons) != maxReasons+1 || !strings.Contains(reasons[0], "744 of its SERVICE_ keys") || !strings.Contains(reasons[1], "65535 ports") || !strings.Contains(reasons[maxReasons], "reasons more") {
		t.Errorf("%d reasons, from %q to %q", len(reasons), reasons[0], reasons[len(reasons)-1])
	}
}

// expectReason fails unless there is exactly one reason that says so, or none at all if there is to be none.
func expectReason(t *testing.T, reasons []string, want string) {
	t.Helper()
	if want == "" {
		if len(reasons) > 0 {
			t.Errorf("reasons %q, want none", reasons)
		}
		return
	}
	if len(reasons) != 1 || !strings.Contains(reasons[0], want) {
		t.Errorf("reasons %q, want one that says %q", reasons, want)
	}
}
