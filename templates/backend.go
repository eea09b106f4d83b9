package templates

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/hashicorp/consul-template/dependency"
)

// service is what the instances of one say and ask for.
type service struct {
	labels
	settings
	routes  []Route
	ports   []int
	servers []Server // those that pass their checks, by name
}

// newService reads the labels. An instance of another protocol than TCP does not count.
func newService(name string, all []*instance, allowed Ports, report func(string)) *service {
	s := &service{labels: labels{service: name, report: report}}
	if !isServiceName(name) {
		return s
	}
	s.instances = ofTCP(all)
	s.routes, s.ports, s.settings = s.labels.routes(), s.labels.ports(allowed), s.labels.settings()
	s.unknown()
	s.useless()
	if s.isExposed() {
		s.servers = servers(s.service, s.instances, s.report)
	}
	return s
}

// ofTCP returns the instances that count, in order.
func ofTCP(all []*instance) []*instance {
	list := slices.DeleteFunc(slices.Clone(all), func(i *instance) bool {
		return slices.Contains(i.Tags, "udp") || slices.Contains(i.Tags, "sctp")
	})
	slices.SortFunc(list, func(a, b *instance) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Node, b.Node),
			cmp.Compare(a.Address, b.Address), cmp.Compare(a.Port, b.Port))
	})
	return list
}

// isExposed says whether it has a route. Only then are its servers known.
func (s *service) isExposed() bool { return len(s.routes)+len(s.ports) > 0 }

// needsFallback returns the name of the service whose servers are to be asked for, as it has none of its own; "" = none.
func (s *service) needsFallback() string {
	if len(s.servers) > 0 {
		return ""
	}
	return s.fallback
}

// fallBack has the servers of another service, that named by needsFallback, serve for it.
func (s *service) fallBack(instances []*instance) {
	s.servers = servers(s.fallback, ofTCP(instances), func(reason string) {
		s.report(fmt.Sprintf("service %q: of its route_fallback: %s", s.service, reason))
	})
}

// useless reports the settings that need another label to have an effect.
func (s *service) useless() {
	asked := slices.ContainsFunc(s.instances, func(i *instance) bool {
		return i.ServiceMeta[metaHost]+i.ServiceMeta[metaPath]+i.ServiceMeta[metaPort] != ""
	})
	for _, setting := range []struct {
		key      string
		set, tcp bool
	}{
		{metaStrip, s.strip, false},
		{metaRedirect, s.redirect, false},
		{metaSticky, s.sticky, false},
		{metaBalance, s.balance != "", !ofHTTP(s.balance)},
		{metaCheck, s.check != "", true},
		{metaMaxConn, s.maxConn != 0, true},
		{metaSlowStart, s.slowStart != 0, true},
		{metaFallback, s.fallback != "", true},
	} {
		switch {
		case !setting.set || len(s.routes) > 0:
		case !asked:
			s.report(fmt.Sprintf("service %q: it has a %s but no route; set SERVICE_ROUTE_HOST, SERVICE_ROUTE_PATH or SERVICE_ROUTE_PORT", s.service, setting.key))
		case len(s.ports) > 0 && !setting.tcp:
			s.report(fmt.Sprintf("service %q: its %s is for HTTP, and it has only a port; set SERVICE_ROUTE_HOST or SERVICE_ROUTE_PATH", s.service, setting.key))
		}
	}
}

// Exposed is a service that has a route.
type Exposed struct {
	Claims string // the routes and ports that it asks for, for Table.Add

	// Fallback is the service whose instances are to be asked for and given to FallBack, as this one has none that
	// passes its checks; "" = none.
	Fallback string

	service *service
}

// FallBack has the instances of the other service serve. It returns "", so that a template can call it.
func (e *Exposed) FallBack(instances []*dependency.HealthService) string {
	e.service.fallBack(instances)
	return ""
}

// Backend is a service as HAProxy has it. Every value may be written to a configuration as it is.
type Backend struct {
	Name           string
	TCP            bool     // connections, not requests
	Servers        []Server // those that pass their checks, by name
	Balance        string   // algorithm; "" = the default
	Hash           bool     // that algorithm is a hash
	Cookie         string   // its name; "" = clients do not stay with a server
	Check          string   // what health checks ask for; "" = whether the port accepts
	CheckHost      string   // the host that they ask for; "" = none
	ServerDefaults string   // keywords for all servers
	Redirect       bool     // to https
	Strip          []Strip
}

// Server is one instance of a service.
type Server struct {
	Name    string // unique in its backend
	Address string // ip:port, [ip]:port for IPv6
	Weight  int    // 2 to 256; 0 = the proxy's default, which is 1
	Cookie  string // value that clients of the server send; "" = none
	ID      int    // place in a hash; 0 = any
}

// exposed returns nil for a service without a route.
func (s *service) exposed() *Exposed {
	if !s.isExposed() {
		return nil
	}
	return &Exposed{Claims: s.claims(), Fallback: s.needsFallback(), service: s}
}

// Backends are those of HAProxy: one for HTTP, one for TCP.
func (e *Exposed) Backends() []*Backend {
	s := e.service
	var all []*Backend
	if len(s.routes) > 0 {
		b := s.backend(s.service, s.balance)
		b.Redirect = s.redirect
		if s.strip {
			b.Strip = strips(s.routes)
		}
		if s.sticky {
			b.Cookie = s.cookie()
			for n := range b.Servers {
				b.Servers[n].Cookie = cookieOf(b.Servers[n].Name)
			}
		}
		all = append(all, b)
	}
	if len(s.ports) > 0 {
		b := s.backend(s.service+".tcp", s.balanceOfTCP())
		b.TCP = true
		all = append(all, b)
	}
	return all
}

// cookie is the name of that by which clients stay: services of one host share its cookies.
func (s *service) cookie() string { return "berth-" + s.service }

// balanceOfTCP is what an algorithm comes to where there are no requests.
func (s *service) balanceOfTCP() string {
	if ofHTTP(s.balance) {
		return ""
	}
	return s.balance
}

// backend returns what HTTP and TCP have in common.
func (s *service) backend(name, balance string) *Backend {
	b := &Backend{Name: name, Balance: balance, Hash: hashes(balance), Servers: slices.Clone(s.servers)}
	if b.Hash {
		numberServers(b.Servers)
	}
	if s.check != "" {
		b.Check = "GET " + s.check
		if len(s.routes) > 0 && s.routes[0].rank() == 0 {
			b.Check += " HTTP/1.1"
			b.CheckHost = s.routes[0].Host
		}
	}
	var defaults []string
	if s.maxConn > 0 {
		defaults = append(defaults, fmt.Sprint("maxconn ", s.maxConn))
	}
	if s.slowStart > 0 {
		defaults = append(defaults, fmt.Sprintf("slowstart %ds", int(s.slowStart.Seconds())))
	}
	b.ServerDefaults = strings.Join(defaults, " ")
	return b
}

// cookieOf returns a value that does not tell the server's name.
func cookieOf(name string) string {
	sum := sha256.Sum256([]byte(name))
	return fmt.Sprintf("%x", sum[:8])
}

// numberServers gives each an ID of its own, made of its name: HAProxy places a server in a hash by its ID, and without
// one by its place in the file, so that most clients would change servers whenever one comes or goes.
func numberServers(servers []Server) {
	taken := map[int]bool{}
	for n := range servers {
		sum := sha256.Sum256([]byte(servers[n].Name))
		id := int(binary.BigEndian.Uint32(sum[:])%999_999_999) + 1
		for taken[id] {
			id = id%999_999_999 + 1
		}
		taken[id] = true
		servers[n].ID = id
	}
}

// maxName is longer than any sensible name, and short enough for a proxy's command line.
const maxName = 200

// servable leaves out the services whose names cannot be looked up: the "service"
// function takes a dot for the end of a tag, for example, and fails on a blank.
func servable(services []*dependency.CatalogSnippet, report func(string)) []string {
	kept := make([]string, 0, len(services))
	for _, s := range services {
		if !isServiceName(s.Name) {
			report(fmt.Sprintf("service %.100q: its name may only have letters, digits, - and _, %d at most; set SERVICE_NAME", s.Name, maxName))
			continue
		}
		kept = append(kept, s.Name)
	}
	slices.Sort(kept)
	return kept
}

// servers returns the instances that pass their checks and have a valid address.
func servers(service string, instances []*instance, report func(string)) []Server {
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
func addressOf(i *instance) (address, problem string) {
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
func serverNames(instances []*instance) []string {
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

func madeUpName(i *instance) string {
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
	return s != "" && len(s) <= maxName && hasOnly(s, others)
}

// hasOnly reports whether s has no other characters than ASCII letters, digits and the others.
func hasOnly(s, others string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool {
		return !isAlphanumeric(r) && !strings.ContainsRune(others, r)
	})
}

func isAlphanumeric(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
}
