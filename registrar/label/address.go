package label

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// target is where clients reach a port, and where the registrar probes whether it is ready.
type target struct {
	address string // "" = the node's
	port    int
	probe   string // host:port; "" = the registrar cannot probe it
}

// loopback is the node's address for its own agent.
const loopback = "127.0.0.1"

// locate decides where a port is reached: as the container's labels choose, else as the host is configured, else at its
// published port. reason says why it cannot be reached. locate takes the settings that it reads.
func locate(c Container, p Port, keys *portKeys, rule Rule, h Host) (at target, reason string) {
	choice, network := strings.ToLower(keys.take("address")), keys.take("network")
	if c.NetworkOf != "" {
		return at, fmt.Sprintf("it uses the network of container %.12s, which is not running: start that container, or recreate this one if it was removed", c.NetworkOf)
	}
	if _, on := c.Networks[network]; network != "" && !on {
		return at, fmt.Sprintf("it is not on network %s: attach it, or name another (SERVICE_NETWORK)%s", quote(network), attached(c))
	}
	inside, shared := c.inside(network, h)
	own := target{address: inside, port: int(p.Number), probe: hostPort(inside, p.Number)}
	if c.HostNetwork {
		own = target{address: h.IP, port: int(p.Number), probe: hostPort(h.NodeAddress, p.Number)}
	}
	has := inside != "" || c.HostNetwork
	switch {
	case choice != "" && choice != "internal" && choice != "published":
		return atAddress(c, p, choice, own, rule, h)
	case choice == "internal" && !has:
		return at, "it has no address of its own: attach it to a network, or remove SERVICE_ADDRESS=internal"
	case choice == "internal", c.HostNetwork, choice == "" && (shared || (has && h.Internal)):
		return own, ""
	case choice == "" && len(p.Published) == 0:
		return at, unreachable(c, h)
	}
	return atPublished(p, h.IP, own.probe)
}

// inside returns the container's own address: on the network that a label names, else on the first of the host's networks
// that the container is on, else on the network it was started on, else on the first by name. shared says whether the label
// or the host chose the network.
func (c Container) inside(network string, h Host) (address string, shared bool) {
	for i, n := range slices.Concat([]string{network}, h.Networks, []string{c.Network}, c.networkNames()) {
		if a, on := c.Networks[n]; on {
			return a[0].String(), i <= len(h.Networks)
		}
	}
	return "", false
}

// atPublished returns the target of a port where the host publishes it. address replaces the address of the binding, unless
// it is "".
//
// A published port accepts connections whether or not anything listens in the container, so the container itself is probed.
func atPublished(p Port, address, probe string) (at target, reason string) {
	if len(p.Published) == 0 {
		return at, "it is not published: publish it, or remove SERVICE_ADDRESS=published"
	}
	first := p.Published[0] // on loopback only if it has no other binding
	if first.Addr().IsLoopback() {
		return at, fmt.Sprintf("it is published on %s only, which other hosts cannot reach: publish it on another address", first.Addr())
	}
	if address == "" && !first.Addr().IsUnspecified() {
		address = first.Addr().String()
	}
	return target{address, int(first.Port()), probe}, ""
}

// atAddress returns the target of a port at an address given by a label: one of the container's own, or one of the host's
// where the host publishes the port. With any other address, a stranger could direct Consul's checks and the load balancer
// to any machine. So only the operator allows one: in the policy, or with --ip.
func atAddress(c Container, p Port, choice string, own target, rule Rule, h Host) (at target, reason string) {
	a, err := netip.ParseAddr(choice)
	a = a.Unmap()
	inPolicy, configured := rule.allowsAddress(a), a == parseAddress(h.IP)
	switch {
	case err != nil:
		return at, fmt.Sprintf("SERVICE_ADDRESS=%s is not known: use internal, published or an IP address", quote(choice))
	case !connectable(a):
		return at, fmt.Sprintf("SERVICE_ADDRESS=%s is not an address that clients can connect to", a)
	case local(a) && !inPolicy && !configured:
		return at, fmt.Sprintf("SERVICE_ADDRESS=%s is a loopback or link-local address, which the operator must allow: name it in the policy (addresses)", a)
	}
	own.address = a.String()
	ofHost := configured || a == parseAddress(h.NodeAddress) || slices.Contains(h.Addresses, a)
	switch {
	case c.HasAddress(a), inPolicy && (c.HostNetwork || h.Internal || len(p.Published) == 0), c.HostNetwork && ofHost:
		return own, ""
	}
	// The binding on that very address, else one on all addresses, else one that is translated to it.
	for _, fits := range []func(b netip.Addr) bool{
		func(b netip.Addr) bool { return b == a },
		func(b netip.Addr) bool { return b.IsUnspecified() && (ofHost || inPolicy) },
		func(b netip.Addr) bool { return !b.IsLoopback() && (configured || inPolicy) },
	} {
		if n := slices.IndexFunc(p.Published, func(b netip.AddrPort) bool { return fits(b.Addr().Unmap()) }); n >= 0 {
			own.port = int(p.Published[n].Port())
			return own, ""
		}
	}
	switch {
	case !ofHost && !inPolicy:
		return at, fmt.Sprintf("SERVICE_ADDRESS=%s is neither its own address nor one of its host's, so the operator must allow it: name it in the policy (addresses)", a)
	case len(p.Published) == 0:
		return at, fmt.Sprintf("SERVICE_ADDRESS=%s is an address of the host, but the port is not published: publish it", a)
	}
	return at, fmt.Sprintf("it is published on %s only, and not on %s (SERVICE_ADDRESS): publish it there", p.Published[0].Addr(), a)
}

// parseAddress returns the address in s, or the zero Addr. IPv4 within IPv6 becomes IPv4.
func parseAddress(s string) netip.Addr {
	a, _ := netip.ParseAddr(s) // zero on an error
	return a.Unmap()
}

// ValidateIP returns an error if an address cannot be registered for published ports.
func ValidateIP(s string) error {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return fmt.Errorf("%q is not an IP address", s)
	case !connectable(a.Unmap()):
		return fmt.Errorf("%s is not an address that clients can connect to: use the one at which they reach this host", s)
	}
	return nil
}

// connectable reports whether an address can mean the same machine for clients on several hosts.
func connectable(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && a.Zone() == ""
}

// local reports whether an address means another machine on every host, or reaches something that only the host itself may
// ask, like a cloud's metadata at 169.254.169.254.
func local(a netip.Addr) bool { return a.IsLoopback() || a.IsLinkLocalUnicast() }

// Endpoint returns the host:port at which clients reach an instance of a container, and the kind of that address.
func (in Instance) Endpoint(c Container) string {
	host, kind := in.Address, "as configured"
	for _, network := range c.networkNames() {
		if slices.Contains(c.Networks[network], parseAddress(in.Address)) {
			kind = "network " + network
		}
	}
	if in.Address == "" {
		host, kind = "<node>", "published"
		if c.HostNetwork {
			kind = "host network"
		}
	}
	return fmt.Sprintf("%s (%s)", net.JoinHostPort(host, strconv.Itoa(in.Port)), kind)
}

// unreachable says why an unpublished port cannot be reached.
func unreachable(c Container, h Host) string {
	on := "it is on no network that the load balancer reaches"
	if len(h.Networks) > 0 {
		on = "it is not on " + strings.Join(h.Networks, ", ")
	}
	return on + " and the port is not published: attach it to such a network (--network) or publish it" + attached(c)
}

// attached names the networks that a container is on.
func attached(c Container) string {
	if len(c.Networks) == 0 {
		return ""
	}
	return "; it is on " + strings.Join(c.networkNames(), ", ")
}

// hostPort joins host and port, or returns "" without a host.
func hostPort(host string, port uint16) string {
	if host == "" {
		return ""
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}
