package route

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/consul-template/dependency"
)

// Service is a service with the routes, ports and settings that the labels of its instances ask for.
type Service struct {
	Name   string
	Routes []Route
	Ports  []int
	Settings
	Servers []Server // instances that pass their checks, by name; only known of a service that is exposed

	report func(string)
}

// New reads the labels of a service's TCP instances. It calls report with a line for each label that is left out.
func New(name string, instances []*Instance, allowed Ports, report func(string)) *Service {
	s := &Service{Name: name, report: report}
	if !IsServiceName(name) {
		return s
	}
	r := newReader(name, instances, report)
	s.Routes, s.Ports, s.Settings = r.routes(), r.ports(allowed), r.settings()
	r.reportUnknown()
	r.reportIneffective(s)
	if s.IsExposed() {
		s.Servers = r.servers()
	}
	return s
}

// IsExposed says whether the service asks for a route or a port.
func (s *Service) IsExposed() bool { return len(s.Routes)+len(s.Ports) > 0 }

// NeedsFallback returns the name of the fallback service if this service has no server of its own, else "".
func (s *Service) NeedsFallback() string {
	if len(s.Servers) > 0 {
		return ""
	}
	return s.Fallback
}

// FallBack lets the instances of the service that NeedsFallback names serve for this one. It returns "", so that a template
// can call it.
func (s *Service) FallBack(instances []*Instance) string {
	s.Servers = newReader(s.Fallback, instances, func(reason string) {
		s.report(fmt.Sprintf("service %q: of its route_fallback: %s", s.Name, reason))
	}).servers()
	return ""
}

// Servable returns, sorted, the names of the services that can be looked up, and reports the others: consul-template's
// "service" function takes a dot for the end of a tag, for example, and fails on a blank.
func Servable(services []*dependency.CatalogSnippet, report func(string)) []string {
	kept := make([]string, 0, len(services))
	for _, s := range services {
		if !IsServiceName(s.Name) {
			report(fmt.Sprintf("service %.100q: its name may only have letters, digits, - and _, %d at most; set SERVICE_NAME", s.Name, maxName))
			continue
		}
		kept = append(kept, s.Name)
	}
	slices.Sort(kept)
	return kept
}

// maxName is longer than any sensible name, and short enough for a proxy's command line.
const maxName = 200

// IsServiceName reports whether a service of this name can be looked up and named in a configuration.
func IsServiceName(s string) bool { return consistsOf(s, "-_") }

// consistsOf reports whether s is a name of ASCII letters, digits and the others.
func consistsOf(s, others string) bool {
	return s != "" && len(s) <= maxName && !strings.ContainsFunc(s, func(r rune) bool {
		alphanumeric := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		return !alphanumeric && !strings.ContainsRune(others, r)
	})
}
