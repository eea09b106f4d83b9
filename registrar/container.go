package registrar

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"
	"unicode/utf8"

	docker "github.com/fsouza/go-dockerclient"
)

// Container is what decides about a container's registrations: a part of what `docker inspect` says.
type Container struct {
	ID, Name string
	Image    string // as given to docker run
	Created  time.Time
	Started  time.Time // when it was last started
	Env      []string
	Labels   map[string]string

	HostNetwork bool
	NetworkOf   string                // full ID of the container whose network it uses; "" = it has its own
	Network     string                // the network it was started on; it may have joined others since
	Networks    map[string]netip.Addr // its address on each network; IPv4 where it has both
	Ports       []Port                // exposed or published, sorted

	Paused       bool
	Health       string // "starting", "healthy", "unhealthy", or "" without a HEALTHCHECK
	HealthOutput string // of the last HEALTHCHECK, shortened to what Consul keeps
	ExitCode     int    // of the last run

	StopSignal  int           // what docker stop sends
	StopTimeout time.Duration // what docker stop waits before it kills

	ExtraTags    []string // for all its instances, from the registrar's tags template
	ExtraTagsErr string   // why there are none, though there is a template
}

// Port is a port that a container exposes, and where the host publishes it.
type Port struct {
	Number    uint16
	Protocol  string // "tcp", "udp" or "sctp"
	Published []netip.AddrPort
}

const (
	// Docker's own defaults (docker stop, STOPSIGNAL).
	defaultStopSignal  = sigterm
	defaultStopTimeout = 10 * time.Second

	// noStopTimeout stands for docker run --stop-timeout -1: wait for ever.
	noStopTimeout = 24 * time.Hour

	// maxOutput is how much of a check's output a Consul agent keeps.
	maxOutput = 4096
)

// running says whether a container runs. A paused one does; one that waits for its restart has no address.
func running(c *docker.Container) bool {
	return c.State.Running && !c.State.Restarting
}

// fromInspect takes from Docker's answer what a Container holds. What does not parse is left out: Docker wrote it.
// tags is the template of further tags, which may be nil.
func fromInspect(in *docker.Container, tags *template.Template) Container {
	c := Container{
		ID:          in.ID,
		Name:        strings.TrimPrefix(in.Name, "/"),
		Created:     in.Created,
		Started:     in.State.StartedAt,
		Networks:    map[string]netip.Addr{},
		Paused:      in.State.Paused,
		ExitCode:    in.State.ExitCode,
		StopSignal:  defaultStopSignal,
		StopTimeout: defaultStopTimeout,
	}
	if in.Config != nil {
		c.Image, c.Env, c.Labels = in.Config.Image, in.Config.Env, in.Config.Labels
		if n, err := parseSignal(in.Config.StopSignal); err == nil {
			c.StopSignal = n
		}
		switch s := in.Config.StopTimeout; {
		case s < 0 || s > int(noStopTimeout/time.Second):
			c.StopTimeout = noStopTimeout
		case s > 0:
			c.StopTimeout = time.Duration(s) * time.Second
		}
	}
	c.Health, c.HealthOutput = health(in)
	if in.HostConfig != nil {
		mode := in.HostConfig.NetworkMode
		c.HostNetwork = mode == "host"
		c.NetworkOf, _ = strings.CutPrefix(mode, "container:")
		if c.NetworkOf == mode {
			c.NetworkOf = ""
		}
		c.Network = mode
		if mode == "default" {
			c.Network = "bridge"
		}
	}
	if in.NetworkSettings != nil {
		for name, n := range in.NetworkSettings.Networks {
			for _, s := range []string{n.IPAddress, n.GlobalIPv6Address} {
				if a, err := netip.ParseAddr(s); err == nil {
					c.Networks[name] = a
					break
				}
			}
			if n.NetworkID != "" && n.NetworkID == c.Network { // docker run --network takes an ID, too
				c.Network = name
			}
		}
	}
	c.Ports = portsOf(in)
	c.ExtraTags, c.ExtraTagsErr = extraTags(tags, in)
	return c
}

// within is the container as it is reached when it uses other's network: by other's addresses, and where the host
// publishes other's ports. What it exposes itself stays.
func (c Container) within(other Container) Container {
	published := map[portKey][]netip.AddrPort{}
	for _, p := range other.Ports {
		published[p.key()] = p.Published
	}
	c.NetworkOf, c.HostNetwork, c.Network, c.Networks = "", other.HostNetwork, other.Network, other.Networks
	c.Ports = slices.Clone(c.Ports)
	for i, p := range c.Ports {
		c.Ports[i].Published = published[p.key()]
	}
	return c
}

// portKey tells the ports of a container apart.
type portKey struct {
	number   uint16
	protocol string
}

func (p Port) key() portKey { return portKey{p.Number, p.Protocol} }

func (p Port) String() string { return fmt.Sprintf("port %d/%s", p.Number, p.Protocol) }

func (p Port) compare(q Port) int {
	return cmp.Or(cmp.Compare(p.Number, q.Number), strings.Compare(p.Protocol, q.Protocol))
}

// exposes says whether the container has that port.
func (c Container) exposes(number uint16, protocol string) bool {
	return slices.ContainsFunc(c.Ports, func(p Port) bool { return p.key() == portKey{number, protocol} })
}

// portsOf are the ports that a container exposes or that the host publishes for it, sorted.
func portsOf(in *docker.Container) []Port {
	ports := map[portKey]Port{}
	add := func(p docker.Port, bindings []docker.PortBinding) {
		n, err := strconv.ParseUint(p.Port(), 10, 16)
		if err != nil || n == 0 {
			return
		}
		port := Port{uint16(n), p.Proto(), published(bindings)}
		if was := ports[port.key()]; len(port.Published) >= len(was.Published) {
			ports[port.key()] = port
		}
	}
	if in.Config != nil {
		for p := range in.Config.ExposedPorts {
			add(p, nil)
		}
	}
	if in.NetworkSettings != nil {
		for p, bindings := range in.NetworkSettings.Ports {
			add(p, bindings)
		}
	}
	return slices.SortedFunc(maps.Values(ports), Port.compare)
}

// published are the bindings in the order of preference: an address that other hosts reach before loopback, IPv4
// before IPv6, then the lower address and port.
func published(bindings []docker.PortBinding) []netip.AddrPort {
	var out []netip.AddrPort
	for _, b := range bindings {
		ip, err := netip.ParseAddr(cmp.Or(b.HostIP, "0.0.0.0"))
		if err != nil {
			continue
		}
		if n, err := strconv.ParseUint(b.HostPort, 10, 16); err == nil && n > 0 {
			out = append(out, netip.AddrPortFrom(ip, uint16(n)))
		}
	}
	slices.SortFunc(out, preferred)
	return out
}

func preferred(a, b netip.AddrPort) int {
	rank := func(ap netip.AddrPort) (n int) {
		if ap.Addr().IsLoopback() {
			n += 2
		}
		if !ap.Addr().Is4() {
			n++
		}
		return n
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), a.Compare(b))
}

// health is what Docker's HEALTHCHECK of a container says, and the output of its last run; "" if it has none.
func health(in *docker.Container) (status, output string) {
	switch in.State.Health.Status {
	case "starting", "healthy", "unhealthy":
		status = in.State.Health.Status
	default:
		if in.Config == nil || in.Config.Healthcheck == nil {
			return "", ""
		}
		if test := in.Config.Healthcheck.Test; len(test) == 0 || test[0] == "NONE" {
			return "", ""
		}
		status = "starting" // it was not run yet
	}
	if log := in.State.Health.Log; len(log) > 0 {
		output = shorten(strings.TrimSpace(strings.ToValidUTF8(log[len(log)-1].Output, "\uFFFD")), maxOutput)
	}
	return status, output
}

// shorten cuts valid UTF-8 to at most so many bytes, between two characters.
func shorten(s string, most int) string {
	if len(s) <= most {
		return s
	}
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most]
}

// quote is a stranger's text in a message: on one line, and not longer than one reads.
func quote(s string) string {
	const most = 80
	if len(s) > most {
		return strconv.Quote(shorten(strings.ToValidUTF8(s, "\uFFFD"), most)) + "…"
	}
	return strconv.Quote(s)
}
