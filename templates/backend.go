package templates

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/hashicorp/consul-template/dependency"
)

// Backend is a service that has a route. Every value may be written to a
// configuration as it is.
type Backend struct {
	Name    string
	Servers []Server // those that pass their checks, by name
	Routes  []Route  // all that an instance asks for, in order
}

// Server is one instance of a service.
type Server struct {
	Name    string // unique in its backend
	Address string // ip:port, [ip]:port for IPv6
	Weight  int    // 2 to 256; 0 = the proxy's default, which is 1
}

// maxName is longer than any sensible name, and short enough for a proxy's command line.
const maxName = 200

// servable leaves out the services whose names cannot be looked up: the "service"
// function takes a dot for the end of a tag, for example, and fails on a blank.
func servable(services []*dependency.CatalogSnippet, report func(string)) []*dependency.CatalogSnippet {
	var kept []*dependency.CatalogSnippet
	for _, s := range services {
		if !isServiceName(s.Name) {
			report(fmt.Sprintf("service %.100q: its name may only have letters, digits, - and _, %d at most; set SERVICE_NAME", s.Name, maxName))
			continue
		}
		kept = append(kept, s)
	}
	slices.SortFunc(kept, func(a, b *dependency.CatalogSnippet) int { return cmp.Compare(a.Name, b.Name) })
	return kept
}

// newBackend returns nil if no instance has a valid route. An instance tagged "udp" is
// no HTTP server and does not count.
func newBackend(name string, all []*dependency.HealthService, report func(string)) *Backend {
	if !isServiceName(name) {
		return nil
	}
	instances := slices.DeleteFunc(slices.Clone(all), func(i *dependency.HealthService) bool {
		return slices.Contains(i.Tags, "udp")
	})
	slices.SortFunc(instances, func(a, b *dependency.HealthService) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Node, b.Node),
			cmp.Compare(a.Address, b.Address), cmp.Compare(a.Port, b.Port))
	})
	b := &Backend{Name: name, Routes: routesOf(name, instances, report)}
	if len(b.Routes) == 0 {
		return nil
	}
	b.Servers = servers(name, instances, report)
	return b
}

// servers returns the instances that pass their checks and have a valid address.
func servers(service string, instances []*dependency.HealthService, report func(string)) []Server {
	var list []Server
	names, taken := serverNames(instances), map[string]bool{}
	for n, i := range instances {
		if i.Status != dependency.HealthPassing {
			continue
		}
		leftOut := func(why string) {
			report(fmt.Sprintf("service %q, instance %.100q: %s", service, i.ID, why))
		}
		address, problem := addressOf(i)
		switch {
		case problem != "":
			leftOut(problem)
			continue
		case taken[names[n]]:
			leftOut("another instance has the same id on the same node; set SERVICE_ID")
			continue
		}
		taken[names[n]] = true
		weight := i.Weights.Passing
		if weight < 0 || weight > 256 {
			leftOut(fmt.Sprintf("its weight %d is not between 1 and 256 and counts as 1; set SERVICE_WEIGHT", weight))
		}
		if weight < 2 || weight > 256 {
			weight = 0
		}
		list = append(list, Server{Name: names[n], Address: address, Weight: weight})
	}
	slices.SortFunc(list, func(a, b Server) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// addressOf returns an instance's ip:port, or what is wrong with it. Names are refused
// because HAProxy does not resolve those of servers that are added at run time, and
// 0.0.0.0 because to HAProxy it means the address that the client connected to.
func addressOf(i *dependency.HealthService) (address, problem string) {
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

// serverNames returns a name for every instance: its ID if that can be a server's name
// and no other has it, else one made of it. An instance keeps its name, whatever the
// health of the others, as a new name costs a new server.
func serverNames(instances []*dependency.HealthService) []string {
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

func madeUpName(i *dependency.HealthService) string {
	base := strings.Map(func(r rune) rune {
		if isServerName(string(r)) {
			return r
		}
		return '_'
	}, i.ID)
	sum := sha256.Sum256([]byte(i.Node + "\x00" + i.ID))
	return fmt.Sprintf("%.180s-%x", base, sum[:4])
}

func isServiceName(s string) bool { return consistsOf(s, "-_") }

func isServerName(s string) bool { return consistsOf(s, "-_.:") }

// consistsOf reports whether s is a name of ASCII letters, digits and the others.
func consistsOf(s, others string) bool {
	return s != "" && len(s) <= maxName && !strings.ContainsFunc(s, func(r rune) bool {
		return !isAlphanumeric(r) && !strings.ContainsRune(others, r)
	})
}

func isAlphanumeric(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
}
