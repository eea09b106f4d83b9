// Package templates holds the templates that berth ships and the functions that they call, which check every value of the
// catalog before it reaches a proxy's configuration.
package templates

import (
	_ "embed"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"text/template"

	"github.com/hashicorp/consul-template/dependency"

	"berth/templates/haproxy"
	"berth/templates/nginx"
	"berth/templates/route"
)

//go:embed haproxy.cfg.ctmpl
var haproxyTemplate string

//go:embed nginx.conf.ctmpl
var nginxTemplate string

//go:embed balancer.lua
var balancer string

// HAProxy returns the template for HAProxy 2.6 to 3.2, in consul-template's language. It needs Funcs, and of the
// templater partial, asFile and directory.
func HAProxy() string { return haproxyTemplate }

// Nginx returns the template for nginx 1.22 to 1.30, in consul-template's language. It needs Funcs, and of the templater
// partial and directory.
func Nginx() string { return nginxTemplate }

// Options are the operator's choices.
type Options struct {
	// TLSDirectory is where the proxy and berth find certificates, an absolute path; "" = no TLS.
	TLSDirectory string
	// TCPPorts are the ports that services may ask for.
	TCPPorts route.Ports
	// Refused are the ports that the proxy could not open lately; nil = none.
	Refused *route.Refused
	// NginxSocket is the path of berth's control socket in nginx, absolute, with no need for quotes in a
	// configuration; beside it is the log in which berth reads why nginx refused a configuration. "" = neither.
	NginxSocket string
	// NginxClosing is the path of a file that is there while a reload of nginx is near: clients are then told to come back
	// over new connections. "" = never.
	NginxClosing string
	// NginxAtLeast says whether nginx has this version, as in "1.27.4", or a later one. nil = the version is unknown, and
	// nothing is at least anything.
	NginxAtLeast func(version string) bool
	// Lua has nginx pick servers by a balancer in Lua, which is told of them through NginxSocket, so that a change of
	// them takes no reload. nginx needs the module lua-nginx-module.
	Lua bool
}

// Funcs returns the template functions that shipped templates use. Everything in the catalog may have been written by a
// stranger: a value that does not pass is left out, the rest is served, and report is called with one line that names the
// value and the reason. The functions are for one template; they must not be called at the same time.
//
// The comment at the head of each template lists the functions that it calls.
func Funcs(o Options) func(report func(string)) template.FuncMap {
	return func(report func(string)) template.FuncMap {
		var kept route.Fragments
		all := certificates{report: report}
		return template.FuncMap{
			"servable": func(services []*dependency.CatalogSnippet) []string {
				return route.Servable(services, report)
			},
			"routed": func(name string, instances []*route.Instance) *route.Service {
				if s := route.New(name, instances, o.TCPPorts, report); s.IsExposed() {
					return s
				}
				return nil
			},
			"keep": kept.Keep,
			"table": func(certificates any) *route.Table {
				tls, _ := template.IsTrue(certificates)
				return kept.NewTable(tls, o.Refused, report)
			},
			"assign":           (*route.Table).Assign,
			"tlsDirectory":     func() string { return o.TLSDirectory },
			"certificateFiles": all.list,

			"backends":  haproxy.Backends,
			"routesMap": func(t *route.Table) string { return haproxy.Map(t.Claims) },

			"upstreams":         func(s *route.Service) nginx.Upstreams { return nginx.NewUpstreams(s, o.Lua, report) },
			"upstreamName":      nginx.UpstreamName,
			"nginxRoutes":       func(t *route.Table) nginx.Routes { return nginx.NewRoutes(t.Claims, report) },
			"namedCertificates": func(files []certificate) []certificate { return namedCertificates(files, report) },
			"controlSocket":     func() string { return o.NginxSocket },
			"closingFile":       func() string { return o.NginxClosing },
			"nginxAtLeast":      o.nginxAtLeast,
			"lua":               func() bool { return o.Lua },
			"luaBalancer":       func() string { return strings.TrimSuffix(balancer, "\n") },

			"claim": gone, "exposed": gone, "proxied": gone,
			"certificates": gone, "serverCertificates": gone, "controlDirectory": gone, "routeMaps": gone, "pathDepths": gone,
		}
	}
}

// gone stands in for functions that older templates call.
func gone(...any) (string, error) {
	return "", errors.New("this function is no longer there: copy berth's built-in template again, and make your changes in the copy")
}

var versionNumber = regexp.MustCompile(`^[0-9]+(\.[0-9]+)*$`)

func (o Options) nginxAtLeast(version string) (bool, error) {
	if !versionNumber.MatchString(version) {
		return false, fmt.Errorf("nginxAtLeast %q: a version is numbers and dots, as 1.27.4", version)
	}
	return o.NginxAtLeast != nil && o.NginxAtLeast(version), nil
}
