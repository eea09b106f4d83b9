package docker

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/template"
	"time"

	docker "github.com/fsouza/go-dockerclient"

	"berth/registrar/label"
)

const (
	// Docker's own defaults (docker stop, STOPSIGNAL).
	defaultStopSignal  = int(syscall.SIGTERM)
	defaultStopTimeout = 10 * time.Second

	// noStopTimeout stands for docker run --stop-timeout -1: wait forever.
	noStopTimeout = 24 * time.Hour

	// maxOutput is how much of a check's output a Consul agent keeps.
	maxOutput = 4096
)

// Running reports whether a container runs. A paused container does. A container that waits for its restart has no address.
func Running(c *docker.Container) bool {
	return c.State.Running && !c.State.Restarting
}

// FromInspect converts Docker's answer to inspect. It ignores values that do not parse. tags is the template of further tags
// and may be nil.
func FromInspect(in *docker.Container, tags *template.Template) label.Container {
	c := label.Container{
		ID:          in.ID,
		Name:        strings.TrimPrefix(in.Name, "/"),
		Created:     in.Created,
		Started:     in.State.StartedAt,
		Networks:    map[string][]netip.Addr{},
		Paused:      in.State.Paused,
		ExitCode:    in.State.ExitCode,
		StopSignal:  defaultStopSignal,
		StopTimeout: defaultStopTimeout,
	}
	if in.Config != nil {
		c.Image, c.Env, c.Labels = in.Config.Image, in.Config.Env, in.Config.Labels
		if n, err := label.ParseSignal(in.Config.StopSignal); err == nil {
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
		if id, shared := strings.CutPrefix(mode, "container:"); shared {
			c.NetworkOf = id
		}
		c.HostPorts = hostPorts(in.HostConfig.PortBindings)
		c.Network = mode
		if mode == "default" {
			c.Network = "bridge"
		}
	}
	if in.NetworkSettings != nil {
		for name, n := range in.NetworkSettings.Networks {
			for _, s := range []string{n.IPAddress, n.GlobalIPv6Address} {
				if a, err := netip.ParseAddr(s); err == nil {
					c.Networks[name] = append(c.Networks[name], a)
				}
			}
			if n.NetworkID != "" && n.NetworkID == c.Network { // docker run --network also takes an ID
				c.Network = name
			}
		}
	}
	c.Ports = portsOf(in)
	c.ExtraTags, c.ExtraTagsErr = extraTags(tags, in)
	return c
}

// portsOf returns the exposed and published ports of a container, sorted.
func portsOf(in *docker.Container) []label.Port {
	ports := map[string]label.Port{}
	add := func(p docker.Port, bindings []docker.PortBinding) {
		n, err := strconv.ParseUint(p.Port(), 10, 16)
		if err != nil || n == 0 {
			return
		}
		port := label.Port{Number: uint16(n), Protocol: p.Proto(), Published: published(bindings)}
		if was := ports[port.String()]; len(port.Published) >= len(was.Published) {
			ports[port.String()] = port
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
	return slices.SortedFunc(maps.Values(ports), label.Port.Compare)
}

// hostPorts returns the host ports that were requested individually. Docker chooses the others, from a range or freely.
func hostPorts(all map[docker.Port][]docker.PortBinding) (out []uint16) {
	for _, bindings := range all {
		for _, b := range bindings {
			if n, err := strconv.ParseUint(b.HostPort, 10, 16); err == nil && n > 0 {
				out = append(out, uint16(n))
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// published returns the bindings in order of preference: addresses that other hosts reach before loopback, IPv4 before IPv6,
// then the lower address and port.
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

// health returns the status of a container's HEALTHCHECK, or "" if it has none, and the output of its last run.
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
		status = "starting" // it has not run yet
	}
	if log := in.State.Health.Log; len(log) > 0 {
		output = strings.TrimSpace(strings.ToValidUTF8(log[len(log)-1].Output, "\uFFFD"))
		output = strings.ToValidUTF8(output[:min(len(output), maxOutput)], "")
	}
	return status, output
}
