// Package templates holds the templates that berth ships, and the functions that
// check what comes from the catalog before it reaches a proxy's configuration.
package templates

import (
	_ "embed"
	"text/template"

	"github.com/hashicorp/consul-template/dependency"
)

//go:embed haproxy.cfg.ctmpl
var haproxy string

// HAProxy returns the template for HAProxy 2.6 to 3.2, in consul-template's language.
// It needs Funcs.
func HAProxy() string { return haproxy }

// Funcs returns the template functions that shipped templates use. Everything in the
// catalog may have been written by a stranger: what does not pass is left out, the
// rest is served, and report is called with one line that says what and why.
//
//	servable services       those services whose names the "service" function takes
//	backend NAME INSTANCES  the *Backend of a service, nil if it has no route
//	routes BACKENDS         the []Route of all, in the order in which to try them
func Funcs(report func(string)) template.FuncMap {
	return template.FuncMap{
		"servable": func(services []*dependency.CatalogSnippet) []*dependency.CatalogSnippet {
			return servable(services, report)
		},
		"backend": func(name string, instances []*dependency.HealthService) *Backend {
			return newBackend(name, instances, report)
		},
		"routes": func(backends []any) ([]Route, error) {
			return routes(backends, report)
		},
	}
}
