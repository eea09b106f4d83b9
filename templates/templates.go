// Package templates holds the templates that berth ships, and the functions that
// check what comes from the catalog before it reaches a proxy's configuration.
package templates

import (
	_ "embed"
	"fmt"
	"regexp"
	"strings"
	"text/template"

	"github.com/hashicorp/consul-template/dependency"
)

//go:embed haproxy.cfg.ctmpl
var haproxy string

// HAProxy returns the template for HAProxy 2.6 to 3.2, in consul-template's language. It needs Funcs, and of the
// templater partial, asFile and directory.
func HAProxy() string { return haproxy }

// Nginx returns the template for nginx 1.22 to 1.30, in consul-template's language. It needs Funcs, and of the templater
// partial and directory.
func Nginx() string { return nginx }

// Options are what the operator says, not the catalog.
type Options struct {
	// TLSDirectory is where the proxy and berth find certificates, an absolute path; "" = no TLS.
	TLSDirectory string
	// TCPPorts are those that services may ask for; nil = DefaultPorts.
	TCPPorts Ports
	// NginxSocket is the path of berth's control socket in nginx, an absolute one that needs no quotes in a
	// configuration; beside it is the log in which berth reads why nginx refused a configuration. "" = neither.
	NginxSocket string
	// NginxClosing is the path of a file that is there while a reload of nginx is near: clients are then told to come back
	// over new connections. "" = never.
	NginxClosing string
	// NginxAtLeast says whether nginx is of a version or a later one. It is called with numbers that dots separate. nil =
	// the version is not known, and no nginx is.
	NginxAtLeast func(version string) bool
	// Lua has nginx pick servers by a balancer in Lua, which is told of them through NginxSocket, so that a change of
	// them takes no reload. nginx needs the module lua-nginx-module.
	Lua bool
}

// Funcs returns the template functions that shipped templates use. Everything in the catalog may have been written by a
// stranger: what does not pass is left out, the rest is served, and report is called with one line that says what
// and why. The functions are for one template; they must not be called at the same time.
//
//	servable SERVICES      names of those services that the "service" function takes, sorted
//	table CERTIFICATES     an empty *Table; CERTIFICATES are empty if there is no TLS
//	claim TABLE NAME TEXT  Table.Add, for each service
//	tlsDirectory           Options.TLSDirectory
//
// For HAProxy:
//
//	exposed NAME INSTANCES       the *Exposed of a service, nil if it has no route
//	certificates PATH NAMES SUM  the crt-list of the files in a directory that HAProxy can load, "" if there is none
//
// For nginx:
//
//	proxied NAME INSTANCES             the *Proxied of a service, nil if it has no route
//	upstreamName NAME                  that of the upstream of a service
//	serverCertificates PATH NAMES SUM  the []Certificate in a directory that nginx can load
//	controlSocket, controlDirectory    Options.NginxSocket, and where it is
//	closingFile                        Options.NginxClosing
//	nginxAtLeast VERSION               Options.NginxAtLeast
//	lua, luaBalancer                   Options.Lua, and the balancer
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
			"table": func(certificates any) *Table {
				tls, _ := template.IsTrue(certificates)
				return newTable(tls, report)
			},
			"claim":        (*Table).Add,
			"tlsDirectory": func() string { return o.TLSDirectory },
			"certificates": store.list,

			"proxied": func(name string, instances []*dependency.HealthService) *Proxied {
				return newService(name, instances, o.TCPPorts, report).proxied(o.Lua)
			},
			"upstreamName":       upstreamName,
			"serverCertificates": store.inNginx,
			"controlSocket":      func() string { return o.NginxSocket },
			"controlDirectory":   func() string { return controlDirectory(o.NginxSocket) },
			"closingFile":        func() string { return o.NginxClosing },
			"nginxAtLeast":       o.nginxAtLeast,
			"lua":                func() bool { return o.Lua },
			"luaBalancer":        func() string { return strings.TrimSuffix(balancer, "\n") },
		}
	}
}

var versionNumber = regexp.MustCompile(`^[0-9]+(\.[0-9]+)*$`)

func (o Options) nginxAtLeast(version string) (bool, error) {
	if !versionNumber.MatchString(version) {
		return false, fmt.Errorf("nginxAtLeast %q: a version is numbers and dots, as 1.27.4", version)
	}
	return o.NginxAtLeast != nil && o.NginxAtLeast(version), nil
}
