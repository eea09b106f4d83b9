package label

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"berth/templates/claim"
)

// Container is the part of `docker inspect` that determines a container's registrations.
type Container struct {
	ID, Name string
	Image    string // as given to docker run
	Created  time.Time
	Started  time.Time // when it was last started
	Env      []string
	Labels   map[string]string

	HostNetwork bool
	NetworkOf   string                  // full ID of the container whose network it uses; "" = its own
	Network     string                  // the network it was started on; it may have joined others since
	Networks    map[string][]netip.Addr // its addresses on each network, at least one, the one to register first
	Ports       []Port                  // exposed or published, sorted
	HostPorts   []uint16                // host ports that it requests individually, sorted
	Shared      []Port                  // ports of the container whose network it uses

	Paused       bool
	Health       string // "starting", "healthy", "unhealthy", or "" without a HEALTHCHECK
	HealthOutput string // of the last HEALTHCHECK, shortened to what Consul keeps
	ExitCode     int    // of the last run

	StopSignal  int           // sent by docker stop
	StopTimeout time.Duration // how long docker stop waits before it kills

	ExtraTags    []string // for all its instances, from the registrar's tags template
	ExtraTagsErr string   // why there are no extra tags although there is a template
}

// Port is a port that a container exposes, and where the host publishes it.
type Port struct {
	Number    uint16
	Protocol  string // "tcp", "udp" or "sctp"
	Published []netip.AddrPort

	ByLabel bool // named by a label only
}

// Within returns the container as it is reached in other's network: at other's addresses, and where the host publishes
// other's ports. It keeps the ports that it exposes itself.
func (c Container) Within(other Container) Container {
	published := map[string][]netip.AddrPort{}
	for _, p := range other.Ports {
		published[p.String()] = p.Published
	}
	c.NetworkOf, c.HostNetwork, c.Network, c.Networks = "", other.HostNetwork, other.Network, other.Networks
	c.Shared = other.Ports
	c.Ports = slices.Clone(c.Ports)
	for i, p := range c.Ports {
		c.Ports[i].Published = published[p.String()]
	}
	return c
}

// networkNames returns the names of the networks that the container is on, sorted.
func (c Container) networkNames() []string { return slices.Sorted(maps.Keys(c.Networks)) }

// HasAddress reports whether an address is the container's own.
func (c Container) HasAddress(a netip.Addr) bool {
	for _, own := range c.Networks {
		if slices.Contains(own, a) {
			return true
		}
	}
	return false
}

func (p Port) String() string { return fmt.Sprintf("port %d/%s", p.Number, p.Protocol) }

// Compare orders ports by number, then by protocol.
func (p Port) Compare(q Port) int {
	return cmp.Or(cmp.Compare(p.Number, q.Number), strings.Compare(p.Protocol, q.Protocol))
}

// exposes reports whether the container has a port.
func (c Container) exposes(number uint16, protocol string) bool {
	return slices.ContainsFunc(c.Ports, func(p Port) bool { return p.Number == number && p.Protocol == protocol })
}

// exposesAny reports whether the container has a port with this protocol.
func (c Container) exposesAny(protocol string) bool {
	return slices.ContainsFunc(c.Ports, func(p Port) bool { return p.Protocol == protocol })
}

// withNamedPorts adds the ports that a label names and the image does not expose: SERVICE_3000_NAME means that something
// listens on 3000.
func (c Container) withNamedPorts(keys containerKeys) []Port {
	out, there := slices.Clone(c.Ports), numbers(c.Ports)
	for number := range keys.ports {
		if there[number] || !keys.opens(number) {
			continue
		}
		p := Port{Number: number, Protocol: "tcp", ByLabel: true}
		for _, other := range c.Shared {
			if other.Number == p.Number && other.Protocol == p.Protocol {
				p.Published = other.Published
			}
		}
		out = append(out, p)
	}
	return out
}

// numbers returns the numbers of ports.
func numbers(ports []Port) map[uint16]bool {
	out := make(map[uint16]bool, len(ports))
	for _, p := range ports {
		out[p.Number] = true
	}
	return out
}

// oneOffLabel is where compose marks containers made by docker-compose run.
const oneOffLabel = "com.docker.compose.oneoff"

func (c Container) isOneOff() bool { return claim.IsYes(c.Labels[oneOffLabel]) }
