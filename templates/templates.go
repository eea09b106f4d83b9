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

// HAProxy returns the template for HAProxy 2.6 to 3.2, in consul-template's language. It needs Funcs, and of the
// templater partial, asFile and directory.
func HAProxy() string { return haproxy }

// Options are what the operator says, not the catalog.
type Options struct {
	// TLSDirectory is where HAProxy and berth find certificates, an absolute path; "" = no TLS.
	TLSDirectory string
	// TCPPorts are those that services may ask for; nil = DefaultPorts.
	TCPPorts Ports
}

// Funcs returns the template functions that shipped templates use. Everything in the catalog may have been written by a
// stranger: what does not pass is left out, the rest is served, and report is called with one line that says what
// and why. The functions are for one template; they must not be called at the same time.
//
//	servable SERVICES            names of those services that the "service" function takes, sorted
//	exposed NAME INSTANCES       the *Exposed of a service, nil if it has no route
//	table CERTIFICATES           an empty *Table; CERTIFICATES is "" if there is no TLS
//	claim TABLE NAME TEXT        Table.Add, for each service
//	tlsDirectory                 Options.TLSDirectory
//	certificates PATH NAMES SUM  the crt-list of the files in a directory that HAProxy can load, "" if there is none
func Funcs(o Options) func(report func(string)) template.FuncMap {
	if o.TCPPorts == nil {
		o.TCPPorts = DefaultPorts()
	}
	return func(report func(string)) template.FuncMap {
		store := &certificateStore{report: report}
		return template.FuncMap{
			"servable": func(services []*dependency.CatalogSnippet) []string {
				return servable(services, report)
			},
			"exposed": func(name string, instances []*dependency.HealthService) *Exposed {
				return newService(name, instances, o.TCPPorts, report).exposed()
			},
			"table":        func(certificates string) *Table { return newTable(certificates != "", report) },
			"claim":        (*Table).Add,
			"tlsDirectory": func() string { return o.TLSDirectory },
			"certificates": store.list,
		}
	}
}
