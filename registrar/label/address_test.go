package label

import (
	"strings"
	"testing"
)

func TestAddress(t *testing.T) {
	tests := []struct {
		row
		h Host
	}{
		// On the host's networks, else published.
		{row{"on a network of the host", web(), []Instance{inst()}, nil}, host},
		{row{"the first network in the host's order", web(networks("aaa", "10.9.0.1", "back", "10.1.0.2", "front", "10.0.0.2")), []Instance{inst()}, nil}, host},
		{row{"the second network in the host's order", web(networks("aaa", "10.9.0.1", "back", "10.1.0.2")), []Instance{inst(at("10.1.0.2", 8080, "10.1.0.2:8080"))}, nil}, host},
		{row{"IPv6", web(networks("front", "fd00::2")), []Instance{inst(at("fd00::2", 8080, "[fd00::2]:8080"))}, nil}, host},
		{row{"a network wins over a published port", web(ports(tcp(8080, "0.0.0.0:80"))), []Instance{inst()}, nil}, host},
		{row{"published: the node's address, probed inside", web(networks("other", "10.9.0.1"), ports(tcp(8080, "0.0.0.0:32768"))), []Instance{
			inst(at("", 32768, "10.9.0.1:8080")),
		}, nil}, host},
		{row{"published on IPv6 only", web(networks("other", "10.9.0.1"), ports(tcp(8080, "[::]:32768"))), []Instance{
			inst(at("", 32768, "10.9.0.1:8080")),
		}, nil}, host},
		{row{"published udp is not probed", web(networks("other", "10.9.0.1"), ports(udp(53, "0.0.0.0:5353"))), []Instance{
			inst(id("vm:web_1:53:udp"), tagged("udp"), at("", 5353, "")),
		}, nil}, host},
		{row{"published on one address", web(networks(), ports(tcp(8080, "192.0.2.1:80"))), []Instance{inst(at("192.0.2.1", 80, ""))}, nil}, host},
		{row{"published on one address of IPv6", web(networks(), ports(tcp(8080, "[2001:db8::1]:80"))), []Instance{inst(at("2001:db8::1", 80, ""))}, nil}, host},
		{row{"published on several ports: the first", web(networks(), ports(tcp(8080, "0.0.0.0:81", "0.0.0.0:82", "[::]:80"))), []Instance{inst(at("", 81, ""))}, nil}, host},
		{row{"published on loopback only", web(networks(), ports(tcp(8080, "127.0.0.1:80"))), nil, []string{"port 8080/tcp: it is published on 127.0.0.1 only, which other hosts cannot reach"}}, host},
		{row{"published on loopback of IPv6 only", web(networks(), ports(tcp(8080, "[::1]:80"))), nil, []string{"it is published on ::1 only"}}, host},
		{row{"exposed only", web(networks("other", "10.9.0.1")), nil, []string{"port 8080/tcp: it is not on front, back and the port is not published: attach it to such a network (--network) or publish it; it is on other"}}, host},
		{row{"exposed only, no networks known", web(), nil, []string{"it is on no network that the load balancer reaches and the port is not published"}}, Host{EngineID: "ENGINE"}},
		{row{"one port of two is published: that is the only one", web(networks(), ports(tcp(8080, "0.0.0.0:80"), tcp(9090))), []Instance{inst(at("", 80, ""))}, []string{"port 9090/tcp"}}, host},
		{row{"no network at all", web(networks()), nil, []string{"the port is not published"}}, host},

		// The host's network.
		{row{"host network", web(hostNetwork), []Instance{inst(at("", 8080, ""))}, nil}, host},
		{row{"host network, node known", web(hostNetwork), []Instance{inst(at("", 8080, "192.0.2.7:8080"))}, nil}, with(func(h *Host) { h.NodeAddress = "192.0.2.7" })},
		{row{"host network, node on IPv6", web(hostNetwork), []Instance{inst(at("", 8080, "[2001:db8::7]:8080"))}, nil}, with(func(h *Host) { h.NodeAddress = "2001:db8::7" })},

		// Another container's network.
		{row{"unresolved network of another container", web(networks(), func(c *Container) { c.NetworkOf = "fedcba9876543210" }), nil, []string{
			"port 8080/tcp: it uses the network of container fedcba987654, which is not running: start that container",
		}}, host},
		{row{"unresolved, and ignored", web(networks(), env("SERVICE_IGNORE=1"), func(c *Container) { c.NetworkOf = "fedcba9876543210" }), nil, nil}, host},

		// Registrator's -internal and -ip.
		{row{"internal: its own address", web(networks("b", "10.9.0.2", "a", "10.9.0.1")), []Instance{inst(at("10.9.0.1", 8080, "10.9.0.1:8080"))}, nil}, with(func(h *Host) { h.Internal = true })},
		{row{"internal: the network it was started on first", web(networks("b", "10.9.0.2", "a", "10.9.0.1"), func(c *Container) { c.Network = "b" }), []Instance{inst(at("10.9.0.2", 8080, "10.9.0.2:8080"))}, nil}, with(func(h *Host) { h.Internal = true })},
		{row{"internal: the host's networks before that", web(networks("b", "10.9.0.2", "back", "10.9.0.1"), func(c *Container) { c.Network = "b" }), []Instance{inst(at("10.9.0.1", 8080, "10.9.0.1:8080"))}, nil}, with(func(h *Host) { h.Internal = true })},
		{row{"internal wins over published", web(networks("b", "10.9.0.2"), ports(tcp(8080, "0.0.0.0:80"))), []Instance{inst(at("10.9.0.2", 8080, "10.9.0.2:8080"))}, nil}, with(func(h *Host) { h.Internal = true })},
		{row{"internal on the host's network", web(hostNetwork), []Instance{inst(at("", 8080, ""))}, nil}, with(func(h *Host) { h.Internal = true })},
		{row{"internal without an address", web(networks()), nil, []string{"the port is not published"}}, with(func(h *Host) { h.Internal = true })},
		{row{"ip", web(networks("b", "10.9.0.2"), ports(tcp(8080, "0.0.0.0:80"))), []Instance{inst(at("203.0.113.5", 80, "10.9.0.2:8080"))}, nil}, with(func(h *Host) { h.IP = "203.0.113.5" })},
		{row{"ip wins over the address of the binding", web(networks(), ports(tcp(8080, "192.0.2.1:80"))), []Instance{inst(at("203.0.113.5", 80, ""))}, nil}, with(func(h *Host) { h.IP = "203.0.113.5" })},
		{row{"ip on the host's network", web(hostNetwork), []Instance{inst(at("203.0.113.5", 8080, ""))}, nil}, with(func(h *Host) { h.IP = "203.0.113.5" })},
		{row{"ip is not for addresses of containers", web(), []Instance{inst()}, nil}, with(func(h *Host) { h.IP = "203.0.113.5" })},

		// SERVICE_NETWORK.
		{row{"network", web(label("SERVICE_NETWORK", "other"), networks("front", "10.0.0.2", "other", "10.9.0.1")), []Instance{inst(at("10.9.0.1", 8080, "10.9.0.1:8080"))}, nil}, host},
		{row{"network of the port", web(label("SERVICE_8080_NETWORK", "other"), networks("front", "10.0.0.2", "other", "10.9.0.1")), []Instance{inst(at("10.9.0.1", 8080, "10.9.0.1:8080"))}, nil}, host},
		{row{"network that it is not on", web(label("SERVICE_NETWORK", "other")), nil, []string{`port 8080/tcp: it is not on network "other": attach it, or name another (SERVICE_NETWORK); it is on front`}}, host},
		{row{"network, published", web(label("SERVICE_NETWORK", "other"), label("SERVICE_ADDRESS", "published"), networks("front", "10.0.0.2", "other", "10.9.0.1"), ports(tcp(8080, "0.0.0.0:80"))), []Instance{inst(at("", 80, "10.9.0.1:8080"))}, nil}, host},
		{row{"network on the host's network", web(hostNetwork, label("SERVICE_NETWORK", "front")), nil, []string{`it is not on network "front"`}}, host},

		// SERVICE_ADDRESS.
		{row{"address internal", web(label("SERVICE_ADDRESS", "internal"), networks("b", "10.9.0.2"), ports(tcp(8080, "0.0.0.0:80"))), []Instance{inst(at("10.9.0.2", 8080, "10.9.0.2:8080"))}, nil}, host},
		{row{"address internal, without one", web(label("SERVICE_ADDRESS", "internal"), networks()), nil, []string{"it has no address of its own"}}, host},
		{row{"address internal on the host's network", web(hostNetwork, label("SERVICE_ADDRESS", "internal")), []Instance{inst(at("", 8080, ""))}, nil}, host},
		{row{"address published", web(label("SERVICE_ADDRESS", "published"), ports(tcp(8080, "0.0.0.0:80"))), []Instance{inst(at("", 80, "10.0.0.2:8080"))}, nil}, host},
		{row{"address published, not published", web(label("SERVICE_ADDRESS", "published")), nil, []string{"it is not published: publish it"}}, host},
		{row{"address published on the host's network", web(hostNetwork, label("SERVICE_ADDRESS", "published")), []Instance{inst(at("", 8080, ""))}, nil}, host},
		{row{"address published, loopback only", web(label("SERVICE_ADDRESS", "published"), ports(tcp(8080, "127.0.0.1:80"))), nil, []string{"it is published on 127.0.0.1 only"}}, host},
		{row{"an address of its own", web(label("SERVICE_ADDRESS", "10.0.0.2"), ports(tcp(8080, "0.0.0.0:80"))), []Instance{inst()}, nil}, host},
		{row{"an address behind which it is published", web(label("SERVICE_ADDRESS", "203.0.113.5"), ports(tcp(8080, "0.0.0.0:80"))), []Instance{inst(at("203.0.113.5", 80, "10.0.0.2:8080"))}, nil}, allowing("203.0.113.0/24")},
		{row{"an address on which it is published", web(label("SERVICE_ADDRESS", "192.0.2.1"), ports(tcp(8080, "0.0.0.0:80", "192.0.2.1:81"))), []Instance{inst(at("192.0.2.1", 81, "10.0.0.2:8080"))}, nil}, host},
		{row{"an address that is translated", web(label("SERVICE_ADDRESS", "203.0.113.5"), ports(tcp(8080, "192.0.2.1:81"))), []Instance{inst(at("203.0.113.5", 81, "10.0.0.2:8080"))}, nil}, allowing("203.0.113.0/24")},
		{row{"an address that is routed to it", web(label("SERVICE_ADDRESS", "203.0.113.5")), []Instance{inst(at("203.0.113.5", 8080, "10.0.0.2:8080"))}, nil}, allowing("203.0.113.0/24")},
		{row{"an address, internal", web(label("SERVICE_ADDRESS", "203.0.113.5"), ports(tcp(8080, "0.0.0.0:80"))), []Instance{inst(at("203.0.113.5", 8080, "10.0.0.2:8080"))}, nil}, with(func(h *Host) { h.Internal, h.Policy = true, allowing("203.0.113.5").Policy })},
		{row{"an address on the host's network", web(hostNetwork, label("SERVICE_ADDRESS", "2001:db8::9")), []Instance{inst(at("2001:db8::9", 8080, ""))}, nil}, allowing("2001:db8::/64")},
		{row{"an IPv4 address written as IPv6", web(label("SERVICE_ADDRESS", "::ffff:203.0.113.5")), []Instance{inst(at("203.0.113.5", 8080, "10.0.0.2:8080"))}, nil}, allowing("203.0.113.0/24")},
		{row{"loopback, asked for", web(label("SERVICE_ADDRESS", "127.0.0.1"), ports(tcp(8080, "127.0.0.1:80"))), []Instance{inst(at("127.0.0.1", 80, "10.0.0.2:8080"))}, nil}, allowing("127.0.0.1")},
		{row{"an address where it is not published", web(label("SERVICE_ADDRESS", "203.0.113.5"), ports(tcp(8080, "127.0.0.1:80"))), nil, []string{"it is published on 127.0.0.1 only, and not on 203.0.113.5 (SERVICE_ADDRESS)"}}, allowing("203.0.113.0/24")},
		{row{"no address", web(label("SERVICE_ADDRESS", "shop.example")), nil, []string{`SERVICE_ADDRESS="shop.example" is not known: use internal, published or an IP address`}}, host},
		{row{"an address of nobody", web(label("SERVICE_ADDRESS", "0.0.0.0")), nil, []string{"SERVICE_ADDRESS=0.0.0.0 is not an address that clients can connect to"}}, host},
		{row{"an address of many", web(label("SERVICE_ADDRESS", "224.0.0.1")), nil, []string{"is not an address that clients can connect to"}}, host},
		{row{"an address of one link", web(label("SERVICE_ADDRESS", "fe80::1%eth0")), nil, []string{"is not an address that clients can connect to"}}, host},
	}
	for _, tt := range tests {
		tt.run(t, tt.h)
	}
}

// allowing returns host with a policy that allows these addresses.
func allowing(addresses ...string) Host {
	return with(func(h *Host) { h.Policy = []Rule{{Addresses: addresses}} })
}

// A label must not direct Consul's checks and the load balancer to machines of its choice.
func TestForeignAddress(t *testing.T) {
	const (
		foreign = "is neither its own address nor one of its host's, so the operator must allow it: name it in the policy (addresses)"
		special = "is a loopback or link-local address, which the operator must allow: name it in the policy (addresses)"
		never   = "is not an address that clients can connect to"
	)
	var (
		exposed   = web()
		published = web(ports(tcp(8080, "0.0.0.0:80")))
		onHost    = web(hostNetwork)
		node      = func(h *Host) { h.NodeAddress = "192.0.2.7" }
		internal  = func(h *Host) { h.Internal = true }
		ip        = func(s string) func(*Host) { return func(h *Host) { h.IP = s } }
		policy    = func(addresses ...string) func(*Host) {
			return func(h *Host) { h.Policy = []Rule{{Addresses: addresses}} }
		}
	)
	tests := []struct {
		name    string
		in      Container
		address string // SERVICE_ADDRESS
		host    []func(*Host)
		want    string // host:port registered, "" = none
		reason  string
	}{
		// Without a policy.
		{name: "a neighbour", in: exposed, address: "10.0.0.3", reason: foreign},
		{name: "a neighbour of IPv6", in: exposed, address: "fd00::3", reason: foreign},
		{name: "a neighbour, published", in: published, address: "10.0.0.3", reason: foreign},
		{name: "a neighbour, on the host's network", in: onHost, address: "10.0.0.3", reason: foreign},
		{name: "a neighbour, with --internal", in: exposed, address: "10.0.0.3", host: []func(*Host){internal}, reason: foreign},
		{name: "a neighbour, published, with --internal", in: published, address: "10.0.0.3", host: []func(*Host){internal}, reason: foreign},
		{name: "a neighbour as IPv6", in: exposed, address: "::ffff:10.0.0.3", reason: "SERVICE_ADDRESS=10.0.0.3 " + foreign},
		{name: "a neighbour as IPv6 in hexadecimal", in: exposed, address: "::ffff:a00:3", reason: "SERVICE_ADDRESS=10.0.0.3 " + foreign},
		{name: "within IPv6 by translation", in: exposed, address: "64:ff9b::a9fe:a9fe", reason: foreign},
		{name: "within IPv6, compatible", in: exposed, address: "::169.254.169.254", reason: foreign},
		{name: "all of a network", in: exposed, address: "255.255.255.255", reason: foreign},
		{name: "its own", in: exposed, address: "10.0.0.2", want: "10.0.0.2:8080"},
		{name: "its own as IPv6", in: exposed, address: "::ffff:10.0.0.2", want: "10.0.0.2:8080"},
		{name: "its own of IPv6", in: web(networks("front", "10.0.0.2", "front", "fd00::2")), address: "fd00::2", want: "[fd00::2]:8080"},
		{name: "its own on another network", in: web(networks("front", "10.0.0.2", "other", "10.9.0.1")), address: "10.9.0.1", want: "10.9.0.1:8080"},
		{name: "where it is published", in: web(ports(tcp(8080, "192.0.2.1:81"))), address: "192.0.2.1", want: "192.0.2.1:81"},
		{name: "where another port is published", in: web(ports(tcp(8080), tcp(9090, "192.0.2.1:81"))), address: "192.0.2.1", want: "192.0.2.1:81", reason: "port 8080/tcp: SERVICE_ADDRESS=192.0.2.1 " + foreign},

		// The host's.
		{name: "the node", in: published, address: "192.0.2.7", host: []func(*Host){node}, want: "192.0.2.7:80"},
		{name: "the node, written differently", in: published, address: "::ffff:192.0.2.7", host: []func(*Host){node}, want: "192.0.2.7:80"},
		{name: "the node, not published", in: exposed, address: "192.0.2.7", host: []func(*Host){node}, reason: "SERVICE_ADDRESS=192.0.2.7 is an address of the host, but the port is not published: publish it"},
		{name: "the node, not published, with --internal", in: exposed, address: "192.0.2.7", host: []func(*Host){node, internal}, reason: "the port is not published"},
		{name: "the node, published elsewhere", in: web(ports(tcp(8080, "192.0.2.1:81"))), address: "192.0.2.7", host: []func(*Host){node}, reason: "it is published on 192.0.2.1 only, and not on 192.0.2.7 (SERVICE_ADDRESS): publish it there"},
		{name: "the node, on the host's network", in: onHost, address: "192.0.2.7", host: []func(*Host){node}, want: "192.0.2.7:8080"},
		{name: "another of the host's, on its network", in: onHost, address: "192.0.2.8", host: []func(*Host){func(h *Host) { h.Addresses = addrs("192.0.2.8", "fe80::1") }}, want: "192.0.2.8:8080"},
		{name: "the host's own of its link", in: onHost, address: "fe80::1", host: []func(*Host){func(h *Host) { h.Addresses = addrs("192.0.2.8", "fe80::1") }}, reason: special},
		{name: "--ip", in: published, address: "203.0.113.5", host: []func(*Host){ip("203.0.113.5")}, want: "203.0.113.5:80"},
		{name: "--ip as IPv6", in: published, address: "203.0.113.5", host: []func(*Host){ip("::ffff:203.0.113.5")}, want: "203.0.113.5:80"},
		{name: "--ip, translated", in: web(ports(tcp(8080, "192.0.2.1:81"))), address: "203.0.113.5", host: []func(*Host){ip("203.0.113.5")}, want: "203.0.113.5:81"},
		{name: "--ip, on the host's network", in: onHost, address: "203.0.113.5", host: []func(*Host){ip("203.0.113.5")}, want: "203.0.113.5:8080"},
		{name: "--ip, not published", in: exposed, address: "203.0.113.5", host: []func(*Host){ip("203.0.113.5")}, reason: "the port is not published"},
		{name: "--ip is loopback", in: published, address: "127.0.0.1", host: []func(*Host){ip("127.0.0.1")}, want: "127.0.0.1:80"},

		// Addresses of every host, or of services that only the host may ask.
		{name: "metadata of a cloud", in: exposed, address: "169.254.169.254", reason: "SERVICE_ADDRESS=169.254.169.254 " + special},
		{name: "metadata, on the host's network", in: onHost, address: "169.254.169.254", reason: special},
		{name: "metadata as IPv6", in: exposed, address: "::ffff:169.254.169.254", reason: "SERVICE_ADDRESS=169.254.169.254 " + special},
		{name: "of one link", in: exposed, address: "fe80::1", reason: special},
		{name: "loopback", in: published, address: "127.0.0.1", reason: special},
		{name: "any loopback", in: onHost, address: "127.1.2.3", reason: special},
		{name: "loopback of IPv6", in: onHost, address: "::1", reason: special},
		{name: "loopback as IPv6", in: onHost, address: "::ffff:7f00:1", reason: "SERVICE_ADDRESS=127.0.0.1 " + special},
		{name: "loopback where it is published", in: web(ports(tcp(8080, "127.0.0.1:80"))), address: "127.0.0.1", reason: special},
		{name: "nobody as IPv6", in: exposed, address: "::ffff:0.0.0.0", reason: never},
		{name: "many", in: exposed, address: "ff02::1", reason: never},

		// With a policy.
		{name: "a network of the policy", in: exposed, address: "203.0.113.5", host: []func(*Host){policy("198.51.100.1", "203.0.113.0/24")}, want: "203.0.113.5:8080"},
		{name: "an address of the policy", in: exposed, address: "2001:db8::5", host: []func(*Host){policy("2001:db8::5")}, want: "[2001:db8::5]:8080"},
		{name: "not of the policy", in: exposed, address: "203.0.113.5", host: []func(*Host){policy("203.0.113.0/30")}, reason: foreign},
		{name: "loopback of the policy", in: onHost, address: "127.0.0.1", host: []func(*Host){policy("127.0.0.1")}, want: "127.0.0.1:8080"},
		{name: "link-local of the policy", in: exposed, address: "169.254.170.2", host: []func(*Host){policy("169.254.170.0/24")}, want: "169.254.170.2:8080"},
		{name: "everything is not loopback", in: onHost, address: "127.0.0.1", host: []func(*Host){policy("0.0.0.0/0", "::/0")}, reason: special},
		{name: "everything is not metadata", in: exposed, address: "::ffff:169.254.169.254", host: []func(*Host){policy("0.0.0.0/0", "::/0")}, reason: special},
		{name: "everything is not nobody", in: exposed, address: "0.0.0.0", host: []func(*Host){policy("0.0.0.0/0")}, reason: never},
		{name: "everything is not many", in: exposed, address: "224.0.0.1", host: []func(*Host){policy("0.0.0.0/0")}, reason: never},
		{name: "everything of IPv6 is not IPv4", in: exposed, address: "203.0.113.5", host: []func(*Host){policy("::/0")}, reason: foreign},
		{name: "a policy without addresses", in: exposed, address: "203.0.113.5", host: []func(*Host){policy()}, reason: foreign},
		{name: "only the rule that fits counts", in: exposed, address: "203.0.113.5", host: []func(*Host){func(h *Host) { h.Policy = []Rule{{}, {Addresses: []string{"203.0.113.5"}}} }}, reason: foreign},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			label("SERVICE_ADDRESS", tt.address)(&tt.in)
			defer delete(tt.in.Labels, "SERVICE_ADDRESS")
			env("SERVICE_CHECK_TCP=1")(&tt.in)
			h := host
			for _, change := range tt.host {
				change(&h)
			}
			got, reasons := Instances(tt.in, h)
			var at []string
			for _, in := range got {
				at = append(at, hostPort(in.Address, uint16(in.Port)))
				if asked := in.Checks[0].Definition.TCP; asked != at[len(at)-1] {
					t.Errorf("its check asks %s", asked)
				}
			}
			if strings.Join(at, " ") != tt.want {
				t.Errorf("registered at %q, want %q", at, tt.want)
			}
			expectReason(t, reasons, tt.reason)
		})
	}
}
