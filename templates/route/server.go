package route

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/hashicorp/consul/api"

	"berth/templates/claim"
)

// Server is an instance of a service. Every value is safe in a configuration.
type Server struct {
	Name    string // unique in its service
	Address string // ip:port, [ip]:port for IPv6
	Weight  int    // 2 to 256; 0 = the proxy's default, which is 1
	Drained bool   // gets no new requests
	Check   string // path that it answers while healthy; "" = none
}

// serving returns the members that serve, and their servers, by name. An instance with a warning serves with Consul's
// weight for warnings. If that is 0, it serves only while no other instance does.
func (r *reader) serving(members []*instance) ([]*instance, []Server) {
	usable := func(status string) []*instance {
		return slices.DeleteFunc(slices.Clone(members), func(i *instance) bool { return i.status != status || i.name == "" })
	}
	passing, warning := usable(api.HealthPassing), usable(api.HealthWarning)
	all := passing
	for _, i := range warning {
		if len(passing) == 0 || i.weights.Warning > 0 {
			all = append(all, i)
		}
	}
	slices.SortFunc(all, func(a, b *instance) int { return cmp.Compare(a.name, b.name) })
	servers := make([]Server, len(all))
	for n, i := range all {
		servers[n] = Server{Name: i.name, Address: i.address, Weight: r.weight(i), Drained: i.drained}
	}
	return all, servers
}

// weight returns the share of an instance in its state of health.
func (r *reader) weight(i *instance) int {
	weight := i.weights.Passing
	if i.status == api.HealthWarning {
		weight = max(i.weights.Warning, 1)
	}
	if weight < 0 || weight > 256 {
		r.leaveOut(i, fmt.Sprintf("its weight %d is not between 0 and 256 and counts as 1; set SERVICE_WEIGHT", weight))
	}
	if weight < 2 || weight > 256 {
		return 0
	}
	return weight
}

// takesRequests reports whether any server takes new requests.
func takesRequests(servers []Server) bool {
	return slices.ContainsFunc(servers, func(s Server) bool { return !s.Drained })
}

// addressOf returns an instance's ip:port, or the problem with it. Names are refused because HAProxy does not resolve them
// for servers added at run time. 0.0.0.0 is refused because to HAProxy it means the address that the client connected to.
func addressOf(host string, port int) (address, problem string) {
	ip, err := netip.ParseAddr(host)
	switch {
	case err != nil:
		return "", fmt.Sprintf("its address %.100q is not an IP address; set SERVICE_ADDRESS to one", host)
	case ip.Zone() != "":
		return "", fmt.Sprintf("its address %.100q has a zone, which is valid only on its own host; set SERVICE_ADDRESS", host)
	case ip.Unmap().IsUnspecified() || ip.Unmap().IsMulticast():
		return "", fmt.Sprintf("its address %.100q cannot be a server's; set SERVICE_ADDRESS", host)
	case port < 1 || port > 65535:
		return "", fmt.Sprintf("its port %d is not between 1 and 65535; register the port it listens on", port)
	}
	return netip.AddrPortFrom(ip.Unmap(), uint16(port)).String(), ""
}

// nameServers names every instance that can be a server: its ID if that is unique and a valid server name, otherwise a name
// made from it. An instance keeps its name whatever the health of the others, because a new name means a new server.
func nameServers(instances []*instance) {
	count := map[string]int{}
	for _, i := range instances {
		count[i.id]++
	}
	taken := map[string]bool{}
	for _, i := range instances {
		name := i.id
		if count[i.id] > 1 || !isServerName(i.id) {
			name = madeUpName(i)
		}
		switch {
		case i.problem != "":
		case i.isWell() && taken[name]:
			i.problem = "another instance has the same id on the same node; set SERVICE_ID"
		default:
			i.name = name
			taken[name] = taken[name] || i.isWell()
		}
	}
}

// isWell reports whether an instance's state of health lets it serve.
func (i *instance) isWell() bool {
	return i.status == api.HealthPassing || i.status == api.HealthWarning
}

func madeUpName(i *instance) string {
	base := strings.Map(func(r rune) rune {
		if isServerName(string(r)) {
			return r
		}
		return '_'
	}, i.id)
	sum := sha256.Sum256([]byte(i.node + "\x00" + i.id))
	return fmt.Sprintf("%.180s-%x", base, sum[:4])
}

func isServerName(s string) bool { return claim.ConsistsOf(s, "-_.:") }
