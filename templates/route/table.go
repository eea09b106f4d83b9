package route

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Table says which service has a route or a port. It is made anew for every configuration.
type Table struct {
	Claims []Claim
	Sticky bool // a client of one of the services stays with its server

	fragments      *Fragments
	tls            bool
	refused        *Refused
	report         func(string)
	routes         map[Route]*Service
	owners         map[int]*Service // by port
	ports          []TCPPort
	texts, streams []string
}

// Claim is a route that a service has.
type Claim struct {
	Route
	Service *Service
}

// TCPPort is a port on which connections are for one service.
type TCPPort struct {
	Port    int
	Service string
}

// Assign gives the service of a key each route and port that it asks for, unless a service before it has them. A service
// without a route has no key, and gets nothing. Assign returns "", so that a template can call it.
func (t *Table) Assign(key string) (string, error) {
	if key == "" {
		return "", nil
	}
	f := t.fragments.byKey[key]
	if f == nil {
		return "", fmt.Errorf("no service was kept under the key %.100q", key)
	}
	f.used = t.fragments.rendering
	t.texts, t.streams = append(t.texts, f.text), append(t.streams, f.stream)
	s := &f.Service
	for _, r := range s.Routes {
		if owner := t.routes[r]; owner != nil {
			t.report(fmt.Sprintf("service %q: the route %s belongs to service %q; set another SERVICE_ROUTE_HOST or SERVICE_ROUTE_PATH", s.Name, r, owner.Name))
			continue
		}
		t.routes[r] = s
		t.Claims = append(t.Claims, Claim{r, s})
	}
	for _, p := range s.Ports {
		t.addPort(p, s)
	}
	if len(s.Routes) > 0 {
		t.Sticky = t.Sticky || s.Sticky
		if s.Redirect && !t.tls {
			t.report(fmt.Sprintf("service %q: its route_redirect is not followed, as there is no certificate for HTTPS; give berth one, or unset SERVICE_ROUTE_REDIRECT", s.Name))
		}
	}
	return "", nil
}

// addPort leaves a refused port with its owner, so that it does not pass to another service and back.
func (t *Table) addPort(port int, s *Service) {
	if owner := t.owners[port]; owner != nil {
		t.report(fmt.Sprintf("service %q: the port %d belongs to service %q; set another SERVICE_ROUTE_PORT", s.Name, port, owner.Name))
		return
	}
	t.owners[port] = s
	if reason := t.refused.Reason(port); reason != "" {
		t.report(fmt.Sprintf("service %q: port %d: %s; free it or set another SERVICE_ROUTE_PORT", s.Name, port, reason))
		return
	}
	t.ports = append(t.ports, TCPPort{port, s.Name})
}

// Ports returns the open ports in order.
func (t *Table) Ports() []TCPPort {
	slices.SortFunc(t.ports, func(a, b TCPPort) int { return cmp.Compare(a.Port, b.Port) })
	return t.ports
}

// Text returns the texts of all services, after the last one was added.
func (t *Table) Text() string {
	t.fragments.complete = t.fragments.rendering
	return strings.Join(t.texts, "")
}

// Stream returns the texts of all services for TCP, where a proxy has these in another place.
func (t *Table) Stream() string { return strings.Join(t.streams, "") }
