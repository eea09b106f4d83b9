package label

import "testing"

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
		{row{"published on loopback only", web(networks(), ports(tcp(8080, "127.0.0.1:80"))), nil, []string{"port 8080/tcp: it is published on 127.0.0.1 only, which other hosts do not reach"}}, host},
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
			"port 8080/tcp: it uses the network of container fedcba987654, which does not run: start that one",
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
		{row{"an address behind which it is published", web(label("SERVICE_ADDRESS", "203.0.113.5"), ports(tcp(8080, "0.0.0.0:80"))), []Instance{inst(at("203.0.113.5", 80, "10.0.0.2:8080"))}, nil}, host},
		{row{"an address on which it is published", web(label("SERVICE_ADDRESS", "192.0.2.1"), ports(tcp(8080, "0.0.0.0:80", "192.0.2.1:81"))), []Instance{inst(at("192.0.2.1", 81, "10.0.0.2:8080"))}, nil}, host},
		{row{"an address that is translated", web(label("SERVICE_ADDRESS", "203.0.113.5"), ports(tcp(8080, "192.0.2.1:81"))), []Instance{inst(at("203.0.113.5", 81, "10.0.0.2:8080"))}, nil}, host},
		{row{"an address that is routed to it", web(label("SERVICE_ADDRESS", "203.0.113.5")), []Instance{inst(at("203.0.113.5", 8080, "10.0.0.2:8080"))}, nil}, host},
		{row{"an address, internal", web(label("SERVICE_ADDRESS", "203.0.113.5"), ports(tcp(8080, "0.0.0.0:80"))), []Instance{inst(at("203.0.113.5", 8080, "10.0.0.2:8080"))}, nil}, with(func(h *Host) { h.Internal = true })},
		{row{"an address on the host's network", web(hostNetwork, label("SERVICE_ADDRESS", "2001:db8::9")), []Instance{inst(at("2001:db8::9", 8080, ""))}, nil}, host},
		{row{"an IPv4 address written as IPv6", web(label("SERVICE_ADDRESS", "::ffff:203.0.113.5")), []Instance{inst(at("203.0.113.5", 8080, "10.0.0.2:8080"))}, nil}, host},
		{row{"loopback, asked for", web(label("SERVICE_ADDRESS", "127.0.0.1"), ports(tcp(8080, "127.0.0.1:80"))), []Instance{inst(at("127.0.0.1", 80, "10.0.0.2:8080"))}, nil}, host},
		{row{"an address where it is not published", web(label("SERVICE_ADDRESS", "203.0.113.5"), ports(tcp(8080, "127.0.0.1:80"))), nil, []string{"it is published on 127.0.0.1 only, and not on 203.0.113.5 (SERVICE_ADDRESS)"}}, host},
		{row{"no address", web(label("SERVICE_ADDRESS", "shop.example")), nil, []string{`SERVICE_ADDRESS="shop.example" is not known: use internal, published or an IP address`}}, host},
		{row{"an address of nobody", web(label("SERVICE_ADDRESS", "0.0.0.0")), nil, []string{"SERVICE_ADDRESS=0.0.0.0 is no address that clients can connect to"}}, host},
		{row{"an address of many", web(label("SERVICE_ADDRESS", "224.0.0.1")), nil, []string{"is no address that clients can connect to"}}, host},
		{row{"an address of one link", web(label("SERVICE_ADDRESS", "fe80::1%eth0")), nil, []string{"is no address that clients can connect to"}}, host},
	}
	for _, tt := range tests {
		tt.run(t, tt.h)
	}
}
