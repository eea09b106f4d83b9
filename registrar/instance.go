package registrar

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Metadata that berth writes with every registration. It is what ownership is decided by.
const (
	ownPrefix     = "berth-"
	metaOwner     = ownPrefix + "owner"     // Docker engine ID of the host whose registrar made the registration
	metaContainer = ownPrefix + "container" // full container ID
)

// Host is what is the same for all containers of a Docker host.
type Host struct {
	Name     string   // Docker's name of the host, first part of default service IDs
	EngineID string   // owner of the registrations
	Networks []string // networks that load balancers reach containers on, in order of preference
}

// Instance is one port of one container as it is to stand in Consul.
type Instance struct {
	ID, Name  string
	Tags      []string
	Meta      map[string]string
	Address   string // "" = the address of the Consul node
	Port      int
	Container string // full container ID
	Started   time.Time
	Probe     string // host:port that must accept before the instance is registered; "" = none
}

var (
	// What Consul resolves by DNS and consul-template can query by name.
	serviceName = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9_-]*[a-zA-Z0-9])?$`)
	// What goes into a URL path, a server name and a log line without harm.
	serviceID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.:@/-]*$`)
)

const (
	maxName = 63  // DNS label
	maxID   = 200 // HAProxy server name
)

// Instances says what a container registers, and gives a reason for each thing it does not. It is a pure function of
// its arguments: the same container always gives the same answer.
func Instances(c Container, h Host) (instances []Instance, reasons []string) {
	if len(c.Ports) == 0 {
		if settingsFor(c, 0).ignored() {
			return nil, nil
		}
		return nil, []string{"it exposes no port: add EXPOSE to the image or publish one"}
	}
	type endpoint struct {
		port  Port
		place place
	}
	var endpoints []endpoint
	for _, p := range c.Ports {
		at, reason := locate(c, p, h)
		if reason != "" {
			if !settingsFor(c, p.Number).ignored() {
				reasons = append(reasons, reason)
			}
			continue
		}
		endpoints = append(endpoints, endpoint{p, at})
	}
	for _, e := range endpoints {
		in, why := instance(c, e.port, e.place, h, len(endpoints) > 1)
		reasons = append(reasons, why...)
		if in != nil {
			instances = append(instances, *in)
		}
	}
	return instances, reasons
}

// instance is the registration of one port, nil if there is to be none.
func instance(c Container, p Port, at place, h Host, several bool) (*Instance, []string) {
	s := settingsFor(c, p.Number)
	if s.ignored() {
		return nil, nil // asked for, so there is nothing to explain
	}
	where := fmt.Sprintf("port %d/%s", p.Number, p.Protocol)

	name := s.take("name")
	if name == "" {
		name = imageName(c.Image)
	}
	if several && !s.own["name"] {
		name += "-" + strconv.Itoa(int(p.Number))
	}
	if !serviceName.MatchString(name) || len(name) > maxName {
		return nil, []string{fmt.Sprintf("%s: %q is no service name: use up to %d letters, digits, - and _ (SERVICE_NAME)", where, name, maxName)}
	}

	id := s.take("id")
	if id == "" {
		id = fmt.Sprintf("%s:%s:%d", h.Name, c.Name, p.Number)
		if p.Protocol == "udp" {
			id += ":udp"
		}
	}
	if !serviceID.MatchString(id) || len(id) > maxID {
		return nil, []string{fmt.Sprintf("%s: %q is no service ID: use up to %d letters, digits and _.:@/- (SERVICE_ID)", where, id, maxID)}
	}

	in := Instance{ID: id, Name: name, Address: at.address, Port: at.port, Container: c.ID, Started: c.Started, Probe: at.probe}
	in.Tags = tags(s.take("tags"))
	if p.Protocol == "udp" {
		in.Tags = append(in.Tags, "udp")
	}
	switch ready := s.take("ready"); {
	case ready == "none" || p.Protocol != "tcp":
		in.Probe = ""
	case ready != "" && ready != "tcp":
		return nil, []string{fmt.Sprintf("%s: SERVICE_READY=%q is not known: use tcp or none", where, ready)}
	}
	meta, problems := s.meta(maxMeta - 2)
	meta[metaOwner], meta[metaContainer] = h.EngineID, c.ID
	in.Meta = meta
	for i := range problems {
		problems[i] = where + ": " + problems[i]
	}
	return &in, problems
}

// imageName is the service name that an image gives: its last part without tag and digest.
func imageName(image string) string {
	image, _, _ = strings.Cut(image, "@")
	image = image[strings.LastIndexByte(image, '/')+1:]
	image, _, _ = strings.Cut(image, ":")
	return image
}

// place is where clients reach a port, and where the registrar probes it.
type place struct {
	address string // "" = the node's
	port    int
	probe   string
}

// locate decides the address of a port: the container's own on the first of the host's networks that it is on, else the
// published port. reason says why there is none.
func locate(c Container, p Port, h Host) (at place, reason string) {
	if c.HostNetwork {
		return place{port: int(p.Number)}, ""
	}
	for _, n := range h.Networks {
		if a, ok := c.Networks[n]; ok {
			return place{a.String(), int(p.Number), hostPort(a, p.Number)}, ""
		}
	}
	if len(p.Published) == 0 {
		on := "it is on no network that the load balancer reaches and"
		if len(h.Networks) > 0 {
			on = fmt.Sprintf("it is not on %s and", strings.Join(h.Networks, ", "))
		}
		return at, fmt.Sprintf("port %d/%s: %s the port is not published: attach it to such a network (--network) or publish it", p.Number, p.Protocol, on)
	}
	first := p.Published[0] // loopback only if there is nothing else
	if first.Addr().IsLoopback() {
		return at, fmt.Sprintf("port %d/%s: it is published on %s only, which other hosts do not reach: publish it on another address", p.Number, p.Protocol, first.Addr())
	}
	at.port = int(first.Port())
	if !first.Addr().IsUnspecified() {
		at.address = first.Addr().String()
	}
	// A published port accepts whether something listens in the container or not, so the container's own address
	// is probed.
	for _, n := range sortedNetworks(c) {
		at.probe = hostPort(c.Networks[n], p.Number)
		break
	}
	return at, ""
}

func sortedNetworks(c Container) []string {
	var names []string
	for n := range c.Networks {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

func hostPort(a netip.Addr, port uint16) string {
	return net.JoinHostPort(a.String(), strconv.Itoa(int(port)))
}
