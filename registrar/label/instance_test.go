package label

import (
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var host = Host{Name: "vm", EngineID: "ENGINE", Networks: []string{"front", "back"}}

// with returns host with changes.
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

// inst is what web registers by default. Meta is without owner and container, which all instances have.
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

// at sets where an instance is registered, and where it is probed, "" for nowhere.
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

// row is a container and the expected result of Instances.
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
			got[i].Inside, got[i].Protocol = 0, ""
			for n := range got[i].Checks {
				got[i].Checks[n].Definition.Notes = "" // the reason
			}
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
		{"name of a port that is not exposed: it is there, and changes no other name", web(env("SERVICE_80_NAME=app")), []Instance{inst(name("app"), on(80)), inst()}, nil},
		{"tags of a port that is not exposed", web(env("SERVICE_80_TAGS=app")), []Instance{inst()}, []string{"SERVICE_80_TAGS has no effect because port 80 is not exposed: expose it, or set SERVICE_80_NAME"}},
		{"empty name", web(env("SERVICE_NAME=")), []Instance{inst()}, []string{"SERVICE_NAME is empty, so it counts as unset"}},
		{"name from an image without registry", web(image("redis")), []Instance{inst(name("redis"))}, nil},
		{"name from an image with digest", web(image("shop@sha256:12")), []Instance{inst()}, nil},
		{"name from an image with tag and digest", web(image("a/shop:v1@sha256:12")), []Instance{inst()}, nil},
		{"name from an image with what DNS does not have", web(image("team/_node.js_")), []Instance{inst(name("node-js"))}, nil},
		{"image without a name", web(image("sha256:12345")), nil, []string{`no service name can be derived from image "sha256:12345": set SERVICE_NAME`}},
		{"underscores", web(env("SERVICE_NAME=my_app")), []Instance{inst(name("my_app"))}, nil},
		{"bad name", web(env("SERVICE_NAME=a/b")), nil, []string{`"a/b" is not a service name`}},
		{"name as Registrator has it", web(env("SERVICE_NAME=Web_App.v1")), []Instance{inst(name("Web_App.v1"))}, []string{`Consul's DNS does not answer for the service name "Web_App.v1"`}},
		{"name longer than DNS has it", web(env("SERVICE_NAME=" + long[:200])), []Instance{inst(name(long[:200]))}, []string{`Consul's DNS does not answer`}},
		{"long name", web(env("SERVICE_NAME=" + long[:201])), nil, []string{`is not a service name: use up to 200`}},
		{"name of dots", web(env("SERVICE_NAME=..")), nil, []string{`is not a service name`}},
		{"name with a blank", web(env("SERVICE_NAME=a b")), nil, []string{`"a b" is not a service name`}},
		{"name in quotes", web(env(`SERVICE_NAME="app" `)), []Instance{inst(name("app"))}, nil},
		{"hostile name", web(env("SERVICE_NAME=a\n  server evil 1.2.3.4:80")), nil, []string{`"a\n  server evil 1.2.3.4:80" is not a service name`}},

		// IDs.
		{"id", web(env("SERVICE_ID=app-1")), []Instance{inst(id("app-1"))}, nil},
		{"id of the port", web(env("SERVICE_8080_ID=app-1")), []Instance{inst(id("app-1"))}, nil},
		{"bad id", web(env("SERVICE_ID=../x?y")), nil, []string{"is not a service ID"}},
		{"id that is another path", web(env("SERVICE_ID=a/../../leave")), nil, []string{"is not a service ID"}},
		{"id with an empty part", web(env("SERVICE_ID=a//b")), nil, []string{"is not a service ID"}},
		{"long id", web(env("SERVICE_ID=" + long)), nil, []string{"is not a service ID: use up to 200"}},
		{"one id for two ports", web(env("SERVICE_ID=app", "SERVICE_NAME=app"), ports(tcp(80), tcp(81))), []Instance{
			inst(name("app-80"), on(80), id("app")),
		}, []string{"port 81/tcp: port 80/tcp already has the service ID app: give each port its own (SERVICE_81_ID)"}},

		// Tags.
		{"tags", web(env(`SERVICE_TAGS=a, b,, c\,d`)), []Instance{inst(tagged("a", "b", "c,d"))}, nil},
		{"tags of the port", web(env(`SERVICE_TAGS=a`, `SERVICE_8080_TAGS=b`)), []Instance{inst(tagged("b"))}, nil},
		{"a tag given twice", web(env("SERVICE_TAGS=a,b,a"), func(c *Container) { c.ExtraTags = []string{"b", "c"} }), []Instance{inst(tagged("a", "b", "c"))}, nil},
		{"tags on lines of their own", web(label("SERVICE_TAGS", "a\nb\r\n,c\n")), []Instance{inst(tagged("a", "b", "c"))}, nil},
		{"hostile tag", web(env("SERVICE_TAGS=a,b\x00c")), []Instance{inst(tagged("a"))}, []string{`tag "b\x00c" is ignored: it has control characters`}},
		{"long tag", web(env("SERVICE_TAGS=a," + long)), []Instance{inst(tagged("a"))}, []string{`is ignored: it is longer than 255 bytes`}},
		{"tags template failed", web(func(c *Container) { c.ExtraTagsErr = "no such field" }), []Instance{inst()}, []string{"the tags of --tags are ignored: no such field"}},

		// Ignored.
		{"ignore", web(env("SERVICE_IGNORE=true")), nil, nil},
		{"ignore, whatever the value", web(env("SERVICE_IGNORE=false")), nil, []string{"SERVICE_IGNORE takes effect with any value, even false: remove it"}},
		{"ignore a port, whatever the value", web(env("SERVICE_80_IGNORE=no"), ports(tcp(80), tcp(81))), []Instance{inst(name("shop-81"), on(81))}, []string{"SERVICE_80_IGNORE takes effect with any value"}},
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
		}, []string{"SERVICE_80_NAME is empty"}},
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
		{"other keys", web(label("SERVICE_ROUTE_HOST", "a.example"), label("SERVICE_REGION", "us-east"), label("SERVICE_8080_X", "y")),
			[]Instance{inst(meta("route_host", "a.example", "region", "us-east", "x", "y"))}, nil},
		{"a value with =", web(label("SERVICE_X", "a=b")), []Instance{inst(meta("x", "a=b"))}, nil},
		{"no value", web(label("SERVICE_X", "")), []Instance{inst(meta("x", ""))}, nil},
		{"a number only", web(label("SERVICE_80", "x")), []Instance{inst(meta("80", "x"))}, nil},
		{"not quite ours", web(env("SERVICE=x", "SERVICES_NAME=y"), label("MY_SERVICE_NAME", "q")), []Instance{inst()}, nil},
		{"key with a dot", web(label("SERVICE_A.B", "x")), []Instance{inst()}, []string{`SERVICE_A.B is ignored: Consul allows only letters`}},
		{"long value", web(label("SERVICE_X", strings.Repeat("x", 513))), []Instance{inst()}, []string{"SERVICE_X is ignored: Consul takes at most 512 bytes in a value, and this one has 513"}},
		{"long key", web(label("SERVICE_"+long, "")), []Instance{inst()}, []string{"at most 128 of them"}},
		{"several lines", web(label("SERVICE_8080_X", "a\nb")), []Instance{inst()}, []string{"SERVICE_8080_X is ignored: its value has control characters or is not UTF-8"}},
		{"no UTF-8", web(label("SERVICE_X", "\xff")), []Instance{inst()}, []string{"SERVICE_X is ignored: its value has control characters or is not UTF-8"}},
		{"hostile key", web(label("SERVICE_A\nB", "x")), []Instance{inst()}, []string{`"SERVICE_A\nB" is ignored`}},
		{"owner cannot be forged", web(label("SERVICE_BERTH-OWNER", "me")), []Instance{inst()}, []string{"berth's own"}},
		{"what Consul keeps for itself", web(label("SERVICE_CONSUL-X", "me")), []Instance{inst()}, []string{"Consul keeps keys that begin with"}},

		// Weight and stop signal.
		{"weight", web(env("SERVICE_WEIGHT=256")), []Instance{inst(func(in *Instance) { in.Weight = 256 })}, nil},
		{"no weight", web(env("SERVICE_WEIGHT=")), []Instance{inst()}, []string{"SERVICE_WEIGHT is empty"}},
		{"weight 0", web(env("SERVICE_WEIGHT=0")), []Instance{inst(meta("weight", "0"))}, nil},
		{"weight off", web(env("SERVICE_WEIGHT=Off")), []Instance{inst(meta("weight", "0"))}, nil},
		{"weight 257", web(env("SERVICE_WEIGHT=257")), []Instance{inst(func(in *Instance) { in.Weight = 256 })}, []string{`SERVICE_WEIGHT="257" counts as 256`}},
		{"weight in words", web(env("SERVICE_WEIGHT=heavy")), []Instance{inst(meta("berth-no-route", `SERVICE_WEIGHT="heavy" is not a weight: use a number from 0 (no new requests) to 256`))},
			[]string{`port 8080/tcp: no route: SERVICE_WEIGHT="heavy" is not a weight`}},
		{"weight below 0", web(env("SERVICE_8080_WEIGHT=-1")), []Instance{inst(meta("berth-no-route", `SERVICE_8080_WEIGHT="-1" is not a weight: use a number from 0 (no new requests) to 256`))},
			[]string{`no route: SERVICE_8080_WEIGHT="-1" is not a weight`}},
		{"stop signal", web(env("SERVICE_STOP_SIGNAL=term")), []Instance{inst()}, nil},
		{"stop signal by number", web(env("SERVICE_STOP_SIGNAL=3")), []Instance{inst()}, nil},
		{"no signal", web(env("SERVICE_STOP_SIGNAL=HALT")), []Instance{inst()}, []string{`SERVICE_STOP_SIGNAL is ignored: "HALT" is not a signal`}},
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

// What berth needs takes precedence: metadata gets the remaining room.
func TestMetaRoom(t *testing.T) {
	c := web(label("SERVICE_ROUTE_HOST", "z.example"), label("SERVICE_ROUTE_PATH", "/z"))
	for i := range 70 {
		label("SERVICE_K"+strings.Repeat("x", i), "v")(&c)
	}
	got, reasons := Instances(c, host)
	if n := len(got[0].Meta); n != maxMeta-ownMeta+2 { // with owner and container; the others come later
		t.Fatalf("got %d pairs of metadata, want %d", n, maxMeta-ownMeta+2)
	}
	if routes := got[0].Routes(); len(routes) != 1 || routes[0] != "z.example/z/" {
		t.Errorf("its routes are %q", routes)
	}
	want := fmt.Sprintf("SERVICE_K%s and %d more is ignored: Consul takes at most", strings.Repeat("X", maxMeta-ownMeta+2), 72-(maxMeta-ownMeta)-mostNamed)
	if len(reasons) != 1 || !strings.Contains(reasons[0], want) {
		t.Errorf("reasons %q, want one that says %q", reasons, want)
	}
}

// The same holds for its keys.
func TestManyKeys(t *testing.T) {
	c := web(label("SERVICE_NAME", "app"), label("SERVICE_ROUTE_HOST", "a.example"), label("SERVICE_CHECK_TCP", "true"), label("SERVICE_WEIGHT", "7"))
	for i := range 300 {
		label(fmt.Sprintf("SERVICE_A%03d", i), "v")(&c)
		label(fmt.Sprintf("SERVICE_CHECK_HEADER_A%03d", i), "v")(&c)
	}
	got, _ := Instances(c, host)
	if len(got) != 1 || got[0].Name != "app" || got[0].Weight != 7 || len(got[0].Checks) != 1 || len(got[0].Routes()) != 1 {
		t.Errorf("registers %+v", got)
	}
}

// A container that asks for everything at once does not delay others.
func TestTooMuch(t *testing.T) {
	every := web(ports())
	for n := 65535; n > 0; n-- {
		every.Ports = append(every.Ports, tcp(uint16(n)))
	}
	policy := with(func(h *Host) { h.Policy = []Rule{{Keys: []string{"name"}}} })
	for _, tt := range []struct {
		name      string
		key       func(i int) string
		n         int
		host      Host
		instances int
		reasons   []string
	}{
		{"keys that Consul does not take", func(i int) string { return "SERVICE_X." + strings.Repeat("x", i) }, 1000, host, maxPorts, []string{"744 of its SERVICE_ keys", "65535 ports"}},
		{"metadata", func(i int) string { return fmt.Sprint("SERVICE_X", i) }, 1000, host, maxPorts, []string{"744 of its SERVICE_ keys", "65535 ports"}},
		{"keys that the policy forbids", func(i int) string { return fmt.Sprint("SERVICE_X", i) }, 1000, policy, maxPorts, []string{"744 of its SERVICE_ keys", "65535 ports"}},
		{"unknown keys of the length of known ones", func(i int) string { return fmt.Sprintf("SERVICE_ABCDE_%06d", i) }, 10000, host, maxPorts, []string{"9744 of its SERVICE_ keys", "65535 ports"}},
		{"an unknown key of each port", func(i int) string { return fmt.Sprintf("SERVICE_%d_ABCDE_FGHIJ", i+1) }, 10000, host, maxPorts, []string{"65535 ports"}},
		{"a known key of each port", func(i int) string { return fmt.Sprintf("SERVICE_%d_TAGS", i+1) }, 10000, host, maxPorts, []string{"65535 ports"}},
		{"a name of each port", func(i int) string { return fmt.Sprintf("SERVICE_%d_NAME", i+1) }, 10000, host, maxPorts, []string{"65535 ports"}},
		{"misspelt routes", func(i int) string { return fmt.Sprintf("SERVICE_%d_ROUT_HOST", i+1) }, 10000, host, maxPorts, []string{"65535 ports"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := every
			for i := range tt.n {
				label(tt.key(i), "v")(&c)
			}
			before := processorTime(t) // not the clock's, which other programs slow down
			got, reasons := Instances(c, tt.host)
			if took := processorTime(t) - before; took > 3*time.Second { // it takes a tenth of a second, and with -race ten times as long
				t.Errorf("took %v of a processor", took)
			}
			if len(got) != tt.instances || got[len(got)-1].Port != maxPorts {
				t.Errorf("%d instances, the last of which has port %d; want the first %d ports", len(got), got[len(got)-1].Port, maxPorts)
			}
			for i, want := range tt.reasons {
				if len(reasons) <= i || !strings.Contains(reasons[i], want) {
					t.Errorf("%d reasons, none of which is %q at %d: %.1000q", len(reasons), want, i, reasons)
				}
			}
			if len(reasons) > maxReasons+1 {
				t.Errorf("%d reasons", len(reasons))
			}
		})
	}
}

// processorTime returns the processor time used by this process.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// A container as compose makes it.
func BenchmarkInstances(b *testing.B) {
	c := web(ports(tcp(8080), tcp(9090)), env("PATH=/bin", "LANG=C", "SERVICE_PASSWORD_POSTGRES=x", "HOME=/root"),
		label("SERVICE_NAME", "shop"), label("SERVICE_TAGS", "a,b"), label("SERVICE_ROUTE_HOST", "shop.example.com"), label("SERVICE_ROUTE_PATH", "/api"),
		label("SERVICE_CHECK_HTTP", "/health"), label("SERVICE_CHECK_INTERVAL", "10s"), label("SERVICE_VERSION", "1.2"), label("SERVICE_TEAM", "a"),
		label("com.docker.compose.project", "p"), label("com.docker.compose.service", "shop"), label("org.opencontainers.image.source", "x"))
	b.ReportAllocs()
	for b.Loop() {
		Instances(c, host)
	}
}

// expectReason fails unless reasons is exactly one reason with this text, or empty if none is expected.
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
