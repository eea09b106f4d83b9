package route

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/hashicorp/consul-template/dependency"
)

// Server is one instance of a service. Every value may be written to a configuration as it is.
type Server struct {
	Name    string // unique in its service
	Address string // ip:port, [ip]:port for IPv6
	Weight  int    // 2 to 256; 0 = the proxy's default, which is 1
}

// servers returns the instances that pass their checks and have a valid address.
func (r *reader) servers() []Server {
	var list []Server
	names, taken := serverNames(r.instances), map[string]bool{}
	for n, i := range r.instances {
		if i.Status != dependency.HealthPassing {
			continue
		}
		address, problem := addressOf(i)
		if problem == "" && taken[names[n]] {
			problem = "another instance has the same id on the same node; set SERVICE_ID"
		}
		if problem != "" {
			r.leaveOut(i, problem)
			continue
		}
		taken[names[n]] = true
		weight := i.Weights.Passing
		if weight < 0 || weight > 256 {
			r.leaveOut(i, fmt.Sprintf("its weight %d is not between 1 and 256 and counts as 1; set SERVICE_WEIGHT", weight))
			weight = 1
		}
		if weight == 1 {
			weight = 0
		}
		list = append(list, Server{Name: names[n], Address: address, Weight: weight})
	}
	slices.SortFunc(list, func(a, b Server) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// addressOf returns an instance's ip:port, or the problem with it. Names are refused because HAProxy does not resolve
// them for servers that are added at run time, and 0.0.0.0 because to HAProxy it means the address that the client
// connected to.
func addressOf(i *Instance) (address, problem string) {
	ip, err := netip.ParseAddr(i.Address)
	switch {
	case err != nil:
		return "", fmt.Sprintf("its address %.100q is not an IP address; set SERVICE_ADDRESS to one", i.Address)
	case ip.Zone() != "":
		return "", fmt.Sprintf("its address %.100q has a zone, which only its own host knows; set SERVICE_ADDRESS", i.Address)
	case ip.Unmap().IsUnspecified() || ip.Unmap().IsMulticast():
		return "", fmt.Sprintf("its address %.100q is no server's; set SERVICE_ADDRESS", i.Address)
	case i.Port < 1 || i.Port > 65535:
		return "", fmt.Sprintf("its port %d is not between 1 and 65535; register the port it listens on", i.Port)
	}
	return netip.AddrPortFrom(ip.Unmap(), uint16(i.Port)).String(), ""
}

// serverNames returns a name for every instance: its ID if that is unique and can name a server, else a name made from it.
// An instance keeps its name, whatever the health of the others, as a new name costs a new server.
func serverNames(instances []*Instance) []string {
	count := map[string]int{}
	for _, i := range instances {
		count[i.ID]++
	}
	names := make([]string, len(instances))
	for n, i := range instances {
		names[n] = i.ID
		if count[i.ID] > 1 || !isServerName(i.ID) {
			names[n] = madeUpName(i)
		}
	}
	return names
}

func madeUpName(i *Instance) string {
	base := strings.Map(func(r rune) rune {
		if isServerName(string(r)) {
			return r
		}
		return '_'
	}, i.ID)
	sum := sha256.Sum256([]byte(i.Node + "\x00" + i.ID))
	return fmt.Sprintf("%.180s-%x", base, sum[:4])
}

func isServerName(s string) bool { return consistsOf(s, "-_.:") }
