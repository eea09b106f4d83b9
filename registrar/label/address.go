package label

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// place is where clients reach a port, and where the registrar finds out whether it is ready.
type place struct {
	address string // "" = the node's
	port    int
	probe   string // host:port; "" = the registrar cannot tell
}

// loopback is the node as its own agent sees it.
const loopback = "127.0.0.1"

// locate decides where a port is reached: as its container's labels choose, else as the host is configured, else at its
// published port. reason says why it is not reached. The settings it reads are taken.
func locate(c Container, p Port, s settings, h Host) (at place, reason string) {
	choice, network := s.take("address"), s.take("network")
	if c.NetworkOf != "" {
		return at, fmt.Sprintf("it uses the network of container %.12s, which does not run: start that one", c.NetworkOf)
	}
	if _, on := c.Networks[network]; network != "" && !on {
		return at, fmt.Sprintf("it is not on network %s: attach it, or name another (SERVICE_NETWORK)%s", quote(network), among(c))
	}
	inside, shared := c.inside(network, h)
	own := place{address: inside, port: int(p.Number), probe: hostPort(inside, p.Number)}
	if c.HostNetwork {
		own = place{address: h.IP, port: int(p.Number), probe: hostPort(h.NodeAddress, p.Number)}
	}
	has := inside != "" || c.HostNetwork
	switch choice {
	case "internal":
		if !has {
			return at, "it has no address of its own: attach it to a network, or leave SERVICE_ADDRESS=internal away"
		}
		return own, ""
	case "published":
		if c.HostNetwork {
			return own, ""
		}
		return atPublished(p, h.IP, own.probe)
	case "":
		if c.HostNetwork || shared || (has && h.Internal) {
			return own, ""
		}
		if len(p.Published) == 0 {
			return at, unreachable(c, h)
		}
		return atPublished(p, h.IP, own.probe)
	}
	return atAddress(c, p, choice, own, h)
}

// inside is the container's own address: on the network that a label names, else on the host's first one that it is
// on, else on the network it was started on, else on the first by name. shared says whether it is chosen so, and not
// merely the only one there is.
func (c Container) inside(network string, h Host) (address string, shared bool) {
	for _, n := range append([]string{network}, h.Networks...) {
		if a, on := c.Networks[n]; on {
			return a.String(), true
		}
	}
	for _, n := range append([]string{c.Network}, networkNames(c)...) {
		if a, on := c.Networks[n]; on {
			return a.String(), false
		}
	}
	return "", false
}

// atPublished is a port where the host publishes it. address is what is registered, "" for that of the binding.
//
// A published port accepts whether something listens in the container or not: the container itself is probed.
func atPublished(p Port, address, probe string) (at place, reason string) {
	if len(p.Published) == 0 {
		return at, "it is not published: publish it, or leave SERVICE_ADDRESS=published away"
	}
	first := p.Published[0] // on loopback only if there is nothing else
	if first.Addr().IsLoopback() {
		return at, fmt.Sprintf("it is published on %s only, which other hosts do not reach: publish it on another address", first.Addr())
	}
	if address == "" && !first.Addr().IsUnspecified() {
		address = first.Addr().String()
	}
	return place{address, int(first.Port()), probe}, ""
}

// atAddress is a port at an address that a label gives: one of the container's own, or one behind which the host
// publishes the port, or if it does not, one that is routed to the container without Docker knowing.
func atAddress(c Container, p Port, choice string, own place, h Host) (at place, reason string) {
	a, err := netip.ParseAddr(choice)
	a = a.Unmap()
	switch {
	case err != nil:
		return at, fmt.Sprintf("SERVICE_ADDRESS=%s is not known: use internal, published or an IP address", quote(choice))
	case a.IsUnspecified() || a.IsMulticast() || a.Zone() != "":
		return at, fmt.Sprintf("SERVICE_ADDRESS=%s is no address that clients can connect to", a)
	}
	own.address = a.String()
	mine := func(b netip.Addr) bool { return a == b }
	if c.HostNetwork || h.Internal || len(p.Published) == 0 || slices.ContainsFunc(slices.Collect(maps.Values(c.Networks)), mine) {
		return own, ""
	}
	// The binding on that very address, else one on all addresses, else one that something translates it to.
	for _, fits := range []func(b netip.Addr) bool{
		mine,
		func(b netip.Addr) bool { return b.IsUnspecified() },
		func(b netip.Addr) bool { return !b.IsLoopback() },
	} {
		if n := slices.IndexFunc(p.Published, func(b netip.AddrPort) bool { return fits(b.Addr()) }); n >= 0 {
			own.port = int(p.Published[n].Port())
			return own, ""
		}
	}
	return at, fmt.Sprintf("it is published on %s only, and not on %s (SERVICE_ADDRESS): publish it there", p.Published[0].Addr(), a)
}

// unreachable says why a port that is not published cannot be reached.
func unreachable(c Container, h Host) string {
	on := "it is on no network that the load balancer reaches"
	if len(h.Networks) > 0 {
		on = "it is not on " + strings.Join(h.Networks, ", ")
	}
	return on + " and the port is not published: attach it to such a network (--network) or publish it" + among(c)
}

// among names the networks that there are.
func among(c Container) string {
	if len(c.Networks) == 0 {
		return ""
	}
	return "; it is on " + strings.Join(networkNames(c), ", ")
}

func networkNames(c Container) []string { return slices.Sorted(maps.Keys(c.Networks)) }

// hostPort is "" if there is no host.
func hostPort(host string, port uint16) string {
	if host == "" {
		return ""
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}
