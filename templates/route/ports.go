package route

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Ports are ranges of TCP ports.
type Ports []PortRange

// PortRange is the ports from First to Last, both included.
type PortRange struct{ First, Last int }

const noPorts = "none"

// ParsePorts reads ports and ranges that are separated by commas: "5432,6000-6999", or "none".
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
		r := PortRange{parsePort(first), parsePort(last)}
		if r.First == 0 || r.Last < r.First {
			return nil, fmt.Errorf("%q is no port between 1 and 65535 and no range of ports like 6000-6999", part)
		}
		all = append(all, r)
	}
	return all, nil
}

// String returns the ports as ParsePorts reads them.
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

// Without returns the same ports but for one: the port of berth's own listener, for example, which no label may take.
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

func (p Ports) contain(port int) bool {
	return slices.ContainsFunc(p, func(r PortRange) bool { return r.First <= port && port <= r.Last })
}

// parsePort returns 0 if s is no port. It takes digits only, where Atoi takes a sign.
func parsePort(s string) int {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || s[0] == '+' {
		return 0
	}
	return int(n)
}
