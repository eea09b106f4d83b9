package route

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Fragments passes services from partials to the table. A partial is executed only when the instances of its service change,
// and can return nothing but text. So it keeps the service here, and returns a key that changes whenever the service does.
type Fragments struct {
	byKey     map[string]*fragment
	rendering int // counts
	complete  int // the last rendering that came to its end
}

// fragment is a service with the text that a template has made of it.
type fragment struct {
	Service
	text, stream string // stream is the text for TCP, if the proxy needs that in another place
	used         int    // the last rendering that made or used it
}

// Keep stores a service with its text and returns the key. The same service with the same text has the same key.
func (k *Fragments) Keep(s *Service, text string, stream ...string) string {
	f := &fragment{Service: *s, text: text, stream: strings.Join(stream, ""), used: k.rendering}
	f.Servers, f.report = nil, nil // they are in the text
	sum := sha256.Sum256(fmt.Append(nil, s.Routes, s.Ports, s.Strip, s.Redirect, s.Sticky, len(text), text, f.stream))
	key := fmt.Sprintf("%s-%x", s.Name, sum[:16])
	if k.byKey == nil {
		k.byKey = map[string]*fragment{}
	}
	k.byKey[key] = f
	return key
}

// NewTable begins a rendering with an empty table, and forgets the fragments that the last complete rendering did not use.
// Without tls there is no HTTPS to redirect to. Refused ports are not opened.
func (k *Fragments) NewTable(tls bool, refused *Refused, report func(string)) *Table {
	maps.DeleteFunc(k.byKey, func(_ string, f *fragment) bool { return f.used < k.complete })
	k.rendering++
	return &Table{
		Claims: make([]Claim, 0, len(k.byKey)), fragments: k, tls: tls, refused: refused, report: report,
		routes: make(map[Route]*Service, len(k.byKey)), ports: map[int]*Service{},
	}
}

// Table says which service owns a route or a port. Every rendering makes a new one.
type Table struct {
	Claims []Claim
	Ports  []TCPPort // in order, without refused ports
	Sticky bool      // a client of one of the services stays with its server

	fragments      *Fragments
	tls            bool
	refused        *Refused
	report         func(string)
	routes         map[Route]*Service
	ports          map[int]*Service
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

// addPort gives a port to the first service that asks for it. A refused port keeps its owner, so that it does not pass to
// another service and back.
func (t *Table) addPort(port int, s *Service) {
	if owner := t.ports[port]; owner != nil {
		t.report(fmt.Sprintf("service %q: the port %d belongs to service %q; set another SERVICE_ROUTE_PORT", s.Name, port, owner.Name))
		return
	}
	t.ports[port] = s
	if reason := t.refused.Reason(port); reason != "" {
		t.report(fmt.Sprintf("service %q: port %d: %s; free it or set another SERVICE_ROUTE_PORT", s.Name, port, reason))
		return
	}
	n, _ := slices.BinarySearchFunc(t.Ports, port, func(p TCPPort, port int) int { return cmp.Compare(p.Port, port) })
	t.Ports = slices.Insert(t.Ports, n, TCPPort{port, s.Name})
}

// Text returns the texts of all services, after the last one was added.
func (t *Table) Text() string {
	t.fragments.complete = t.fragments.rendering
	return strings.Join(t.texts, "")
}

// Stream returns the TCP texts of all services, for a proxy that needs them in another place.
func (t *Table) Stream() string { return strings.Join(t.streams, "") }
