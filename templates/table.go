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
	text   strings.Builder

	sections []string
}

// TCPPort is a port on which connections are for one service.
type TCPPort struct {
	Port    int
	Service string
}

func newTable(tls bool, report func(string)) *Table {
	return &Table{
		tls: tls, report: report, routes: map[string]string{}, ports: map[int]string{},
		sections: []string{""}, // so that the first one has an empty line before it
	}
}

// The words that begin the lines of claims.
const (
	claimRoute    = "http" // and a route
	claimPort     = "tcp"  // and a port
	claimRedirect = "redirect"
)

// Add takes what the template makes of an Exposed: claims, then sections. It gives the service what it claims, unless
// one that was added before has it. It returns "", so that a template can call it.
func (t *Table) Add(service, text string) string {
	claims, sections, _ := strings.Cut(text, "\n\n")
	if claims == "" {
		return ""
	}
	t.sections = append(t.sections, sections)
	for line := range strings.Lines(claims) {
		kind, what, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		switch kind {
		case claimRoute:
			t.addRoute(service, what)
		case claimPort:
			t.addPort(service, parsePort(what))
		case claimRedirect:
			if !t.tls {
				t.report(fmt.Sprintf("service %q: its route_redirect is not followed, as there is no certificate for HTTPS; give berth one, or unset SERVICE_ROUTE_REDIRECT", service))
			}
		}
	}
	return ""
}

func (t *Table) addRoute(service, route string) {
	if owner, taken := t.routes[route]; taken {
		t.report(fmt.Sprintf("service %q: the route %s belongs to service %q; set another SERVICE_ROUTE_HOST or SERVICE_ROUTE_PATH", service, route, owner))
		return
	}
	t.routes[route] = service
	t.text.WriteString(route)
	t.text.WriteByte(' ')
	t.text.WriteString(service)
	t.text.WriteByte('\n')
}

func (t *Table) addPort(service string, port int) {
	if owner, taken := t.ports[port]; taken {
		t.report(fmt.Sprintf("service %q: the port %d belongs to service %q; set another SERVICE_ROUTE_PORT", service, port, owner))
		return
	}
	t.ports[port] = service
}

// Map is the routes as HAProxy's map_beg reads them: "shop.example.com/cart/ cart".
func (t *Table) Map() string { return t.text.String() }

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

// claims is what Table.Add reads.
func (s *service) claims() string {
	var b strings.Builder
	for _, r := range s.routes {
		b.WriteString(claimRoute + " " + r.String() + "\n")
	}
	for _, p := range s.ports {
		b.WriteString(claimPort + " " + strconv.Itoa(p) + "\n")
	}
	if s.redirect && len(s.routes) > 0 {
		b.WriteString(claimRedirect + "\n")
	}
	return strings.TrimSuffix(b.String(), "\n")
}
