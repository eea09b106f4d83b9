package templates

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Table says which service has a route or a port. It is made anew for every configuration.
type Table struct {
	tls    bool
	report func(string)

	routes map[string]string // service by route
	ports  map[int]string    // service by port
	claims []claim           // of routes, in order of the services
	flags  map[string]string // by service

	sections, tcp []string
}

// claim is a route that a service has.
type claim struct{ route, service string }

// TCPPort is a port on which connections are for one service.
type TCPPort struct {
	Port    int
	Service string
}

func newTable(tls bool, report func(string)) *Table {
	return &Table{
		tls: tls, report: report, routes: map[string]string{}, ports: map[int]string{}, flags: map[string]string{},
		sections: []string{""}, tcp: []string{""}, // so that the first one has an empty line before it
	}
}

// The words that begin the lines of claims.
const (
	claimRoute = "http"  // and a route
	claimPort  = "tcp"   // and a port
	claimFlags = "flags" // and a list of flags, separated by commas
)

// What a service wants of the requests that come by its routes.
const (
	flagStrip    = "strip"    // of the route's path
	flagRedirect = "redirect" // to https
	flagSticky   = "sticky"   // the client stays with its server
)

// sectionsOfTCP is a line between the sections for HTTP and those for TCP, for a proxy that has them apart.
const sectionsOfTCP = "\n\n# TCP\n\n"

// Add takes what the template makes of a service: claims, then sections. It gives the service what it claims, unless
// one that was added before has it. It returns "", so that a template can call it.
func (t *Table) Add(service, text string) string {
	claims, sections, _ := strings.Cut(text, "\n\n")
	if claims == "" {
		return ""
	}
	t.addSections("\n\n" + sections)
	for line := range strings.Lines(claims) {
		kind, what, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		switch kind {
		case claimRoute:
			t.addRoute(service, what)
		case claimPort:
			t.addPort(service, parsePort(what))
		case claimFlags:
			t.addFlags(service, what)
		}
	}
	return ""
}

// addSections takes them with the empty line before them.
func (t *Table) addSections(text string) {
	sections, tcp, _ := strings.Cut(text, sectionsOfTCP)
	for _, part := range []struct {
		list *[]string
		text string
	}{{&t.sections, sections}, {&t.tcp, tcp}} {
		if text := strings.TrimPrefix(part.text, "\n\n"); text != "" {
			*part.list = append(*part.list, text)
		}
	}
}

func (t *Table) addRoute(service, route string) {
	if owner, taken := t.routes[route]; taken {
		t.report(fmt.Sprintf("service %q: the route %s belongs to service %q; set another SERVICE_ROUTE_HOST or SERVICE_ROUTE_PATH", service, route, owner))
		return
	}
	t.routes[route] = service
	t.claims = append(t.claims, claim{route, service})
}

func (t *Table) addPort(service string, port int) {
	if owner, taken := t.ports[port]; taken {
		t.report(fmt.Sprintf("service %q: the port %d belongs to service %q; set another SERVICE_ROUTE_PORT", service, port, owner))
		return
	}
	t.ports[port] = service
}

func (t *Table) addFlags(service, flags string) {
	t.flags[service] = flags
	if !t.tls && slices.Contains(strings.Split(flags, ","), flagRedirect) {
		t.report(fmt.Sprintf("service %q: its route_redirect is not followed, as there is no certificate for HTTPS; give berth one, or unset SERVICE_ROUTE_REDIRECT", service))
	}
}

// Wants says whether a service has a flag.
func (t *Table) Wants(flag string) bool {
	for _, flags := range t.flags {
		if slices.Contains(strings.Split(flags, ","), flag) {
			return true
		}
	}
	return false
}

// Map is the routes as HAProxy's map_beg reads them: "shop.example.com/cart/ cart".
func (t *Table) Map() string {
	var text strings.Builder
	for _, c := range t.claims {
		text.WriteString(c.route)
		text.WriteByte(' ')
		text.WriteString(c.service)
		text.WriteByte('\n')
	}
	return text.String()
}

// Ports are in order.
func (t *Table) Ports() []TCPPort {
	var all []TCPPort
	for port, service := range t.ports {
		all = append(all, TCPPort{port, service})
	}
	slices.SortFunc(all, func(a, b TCPPort) int { return a.Port - b.Port })
	return all
}

// Sections are those of all services, after an empty line.
func (t *Table) Sections() string { return strings.Join(t.sections, "\n\n") }

// SectionsOfTCP are those that come after a line "# TCP", after an empty line.
func (t *Table) SectionsOfTCP() string { return strings.Join(t.tcp, "\n\n") }

// claims is what Table.Add reads.
func (s *service) claims() string {
	var b strings.Builder
	for _, r := range s.routes {
		b.WriteString(claimRoute + " " + r.String() + "\n")
	}
	for _, p := range s.ports {
		b.WriteString(claimPort + " " + strconv.Itoa(p) + "\n")
	}
	var flags []string
	for _, f := range []struct {
		set  bool
		name string
	}{{s.strip, flagStrip}, {s.redirect, flagRedirect}, {s.sticky, flagSticky}} {
		if f.set && len(s.routes) > 0 {
			flags = append(flags, f.name)
		}
	}
	if len(flags) > 0 {
		b.WriteString(claimFlags + " " + strings.Join(flags, ",") + "\n")
	}
	return strings.TrimSuffix(b.String(), "\n")
}
