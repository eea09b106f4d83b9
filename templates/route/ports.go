package route

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"berth/templates/claim"
)

// Ports are ranges of TCP ports.
type Ports []PortRange

// PortRange is the ports from First to Last, inclusive.
type PortRange struct{ First, Last int }

const noPorts = "none"

// ParsePorts reads comma-separated ports and ranges: "5432,6000-6999", or "none".
func ParsePorts(s string) (Ports, error) {
	if s == noPorts {
		return nil, nil
	}
	var all Ports
	for part := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			last = first
		}
		r := PortRange{claim.ParsePort(first), claim.ParsePort(last)}
		if r.First == 0 || r.Last < r.First {
			return nil, fmt.Errorf("%q is neither a port between 1 and 65535 nor a range of ports like 6000-6999", part)
		}
		all = append(all, r)
	}
	return all, nil
}

// String returns the ports in the format of ParsePorts.
func (p Ports) String() string {
	if len(p) == 0 {
		return noPorts
	}
	var all []string
	for _, r := range p {
		if r.First == r.Last {
			all = append(all, strconv.Itoa(r.First))
			continue
		}
		all = append(all, fmt.Sprintf("%d-%d", r.First, r.Last))
	}
	return strings.Join(all, ",")
}

// Without returns the ports except one, for example the port of berth's own listener, which no label may use.
func (p Ports) Without(port int) Ports {
	var rest Ports
	for _, r := range p {
		for _, part := range []PortRange{{r.First, min(r.Last, port-1)}, {max(r.First, port+1), r.Last}} {
			if part.First <= part.Last {
				rest = append(rest, part)
			}
		}
	}
	return rest
}

// Contain reports whether the ports contain a port.
func (p Ports) Contain(port int) bool {
	return slices.ContainsFunc(p, func(r PortRange) bool { return r.First <= port && port <= r.Last })
}

// problem returns why a port may not be asked for, "" if it may.
func (p Ports) problem(port int) string {
	if port == 0 { // an HTTP route
		return ""
	}
	problem, remedy := "", "set another "+claim.Label(KeyPort)
	switch {
	case port == 8080 || port == 8443 || port == 8404:
		problem = "is one of the proxy's own ports"
	case len(p) == 0:
		problem, remedy = "is not allowed, because no ports are", fmt.Sprintf("give the templater --tcp-ports %d", port)
	case !p.Contain(port):
		problem = fmt.Sprintf("is not one of the allowed ports (%s)", p)
		remedy += fmt.Sprintf(", or give the templater --tcp-ports %s,%d", p, port)
	default:
		return ""
	}
	return fmt.Sprintf("its %s %q %s; %s", KeyPort, strconv.Itoa(port), problem, remedy)
}
