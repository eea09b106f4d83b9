package registrar

import (
	"net/netip"
	"sort"
	"strconv"
	"strings"
	"time"

	docker "github.com/fsouza/go-dockerclient"
)

// Container is what decides about a running container's registrations: a part of what `docker inspect` says.
type Container struct {
	ID, Name    string
	Image       string // as given to docker run
	Created     time.Time
	Started     time.Time // when it was last started
	Env         []string
	Labels      map[string]string
	HostNetwork bool
	Networks    map[string]netip.Addr // its address on each network; IPv4 where it has both
	Ports       []Port                // exposed or published, sorted
}

// Port is a port that a container exposes, and where the host publishes it.
type Port struct {
	Number    uint16
	Protocol  string // "tcp", "udp" or "sctp"
	Published []netip.AddrPort
}

// running says whether a container can be reached: a paused one accepts connections that nobody answers, and one
// that waits for its restart has no address.
func running(c *docker.Container) bool {
	return c.State.Running && !c.State.Restarting && !c.State.Paused
}

// fromInspect takes from Docker's answer what a Container holds. What does not parse is left out: Docker wrote it.
func fromInspect(in *docker.Container) Container {
	c := Container{
		ID:       in.ID,
		Name:     strings.TrimPrefix(in.Name, "/"),
		Created:  in.Created,
		Started:  in.State.StartedAt,
		Networks: map[string]netip.Addr{},
	}
	ports := map[docker.Port][]docker.PortBinding{}
	if in.Config != nil {
		c.Image, c.Env, c.Labels = in.Config.Image, in.Config.Env, in.Config.Labels
		for p := range in.Config.ExposedPorts {
			ports[p] = nil
		}
	}
	c.HostNetwork = in.HostConfig != nil && in.HostConfig.NetworkMode == "host"
	if in.NetworkSettings != nil {
		for name, n := range in.NetworkSettings.Networks {
			for _, s := range []string{n.IPAddress, n.GlobalIPv6Address} {
				if a, err := netip.ParseAddr(s); err == nil {
					c.Networks[name] = a
					break
				}
			}
		}
		for p, b := range in.NetworkSettings.Ports {
			ports[p] = b
		}
	}
	for p, bindings := range ports {
		n, err := strconv.ParseUint(p.Port(), 10, 16)
		if err != nil || n == 0 {
			continue
		}
		c.Ports = append(c.Ports, Port{uint16(n), p.Proto(), published(bindings)})
	}
	sort.Slice(c.Ports, func(i, j int) bool {
		a, b := c.Ports[i], c.Ports[j]
		if a.Number != b.Number {
			return a.Number < b.Number
		}
		return a.Protocol < b.Protocol
	})
	return c
}

// published are the bindings in the order of preference: an address that other hosts reach before loopback, IPv4
// before IPv6, then the lower port.
func published(bindings []docker.PortBinding) []netip.AddrPort {
	var out []netip.AddrPort
	for _, b := range bindings {
		if b.HostIP == "" {
			b.HostIP = "0.0.0.0"
		}
		ip, err := netip.ParseAddr(b.HostIP)
		if err != nil {
			continue
		}
		if n, err := strconv.ParseUint(b.HostPort, 10, 16); err == nil && n > 0 {
			out = append(out, netip.AddrPortFrom(ip, uint16(n)))
		}
	}
	sort.Slice(out, func(i, j int) bool {
		a, b := out[i], out[j]
		switch {
		case a.Addr().IsLoopback() != b.Addr().IsLoopback():
			return b.Addr().IsLoopback()
		case a.Addr().Is4() != b.Addr().Is4():
			return a.Addr().Is4()
		default:
			return a.Compare(b) < 0
		}
	})
	return out
}
