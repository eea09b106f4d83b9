// Package templates holds berth's built-in templates and their functions. The functions check every value of the catalog
// before it reaches a proxy's configuration.
package templates

import (
	_ "embed"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"text/template"
	"time"

	"github.com/hashicorp/consul-template/dependency"

	"berth/templates/haproxy"
	"berth/templates/nginx"
	"berth/templates/route"
)

//go:embed haproxy.cfg.ctmpl
var haproxyTemplate string

//go:embed nginx.conf.ctmpl
var nginxTemplate string

//go:embed pause.lua
var pause string

//go:embed balancer.lua
var balancer string

// HAProxy returns the template for HAProxy 2.6 to 3.4, in consul-template's language. It needs Funcs and the templater's
// functions partial, asFile, asMap and directory.
func HAProxy() string { return haproxyTemplate }

// Nginx returns the template for nginx 1.22 to 1.30, in consul-template's language. It needs Funcs and the templater's
// functions partial and directory.
func Nginx() string { return nginxTemplate }

// MostHeld is the highest Options.HoldMax: each waiting request uses memory of the proxy.
const MostHeld = 20_000

// Options are the operator's choices.
type Options struct {
	// TLSDirectory is the absolute path at which the proxy and berth find certificates; "" = no TLS.
	TLSDirectory string
	// Expiries receives the expiry times of the certificates. May be nil.
	Expiries *Expiries
	// TCPPorts are the ports that services may ask for.
	TCPPorts route.Ports
	// Ledger remembers the owner of each route; nil = nothing is remembered, and no route is held for departed services.
	Ledger *route.Ledger
	// Refused are the ports that the proxy recently could not open; nil = none.
	Refused *route.Refused
	// NginxSocket is the absolute path of berth's control socket in nginx, and must need no quotes in a configuration. Next
	// to it is the log in which berth reads why nginx refused a configuration. "" = neither.
	NginxSocket string
	// NginxClosing is the path of a file that exists while a reload of nginx is near: clients are then told to come back
	// over new connections. "" = never.
	NginxClosing string
	// HAProxyAtLeast and NginxAtLeast report whether the proxy has this version, such as "1.27.4", or a later one. nil =
	// the version is unknown and counts as lower than any.
	HAProxyAtLeast, NginxAtLeast func(version string) bool
	// HAProxyLua reports whether HAProxy has Lua; nil = it has.
	HAProxyLua func() bool
	// IPv6 makes the proxy listen on IPv6 in addition to IPv4. Without IPv6 in the kernel it would not start.
	IPv6 bool
	// TrustedProxies are the networks of proxies in front whose information about a client is trusted; nil = none.
	TrustedProxies []netip.Prefix
	// ProxyProtocol are the ports on which trusted proxies speak the PROXY protocol.
	ProxyProtocol route.Ports
	// ErrorDetails makes error pages say what an operator can do. They then name labels and services, which not every
	// visitor should see.
	ErrorDetails bool
	// Hold is how long requests wait for a service without a server, unless its instances say otherwise; 0 = not at all.
	// HoldMax is how many may wait at once, at most MostHeld.
	Hold    time.Duration
	HoldMax int
	// Lua makes nginx pick servers with a Lua balancer, which receives them through NginxSocket, so changes need no reload.
	// nginx needs the module lua-nginx-module.
	Lua bool
}

// Funcs returns the functions of the built-in templates. Catalog values are untrusted: a value that fails its check is
// ignored, the rest is served, and report is called with one line that names the value and the reason. The functions are
// for one template and must not be called concurrently.
//
// The comment at the head of each template lists the functions that it calls.
func Funcs(o Options) func(report func(string)) template.FuncMap {
	return func(report func(string)) template.FuncMap {
		ledger := o.Ledger
		if ledger == nil {
			ledger = route.NewLedger(0)
		}
		kept := route.NewFragments(ledger)
		all := certificates{report: report, expiries: o.Expiries}
		var defaults haproxy.DefaultsInUse
		return template.FuncMap{
			"servable": func(services []*dependency.CatalogSnippet) []string {
				return kept.Servable(services, report)
			},
			"routed": func(name string, instances any, paused ...map[string]time.Duration) ([]*route.Group, error) {
				list, is := instances.([]*route.Instance)
				if !is { // from the function service
					return nil, errGone
				}
				groups := kept.New(name, list, o.TCPPorts, report)
				for _, services := range paused { // for a proxy whose group text includes pauses
					for _, g := range groups {
						g.Paused = services[name]
					}
				}
				return groups, nil
			},
			"keep": kept.Keep,
			"table": func(certificates any, paused ...map[string]time.Duration) *route.Table {
				tls, _ := template.IsTrue(certificates)
				t := kept.NewTable(tls, o.Refused, report)
				for _, services := range paused { // older templates do not pass it
					t.Pause(services)
				}
				return t
			},
			"assign":           (*route.Table).Assign,
			"clientHeaders":    clientHeaderPattern,
			"clientHeaderList": func() []string { return clientHeaders },
			"hops":             hops,
			"trustedProxies":   func() []netip.Prefix { return o.TrustedProxies },
			"proxyProtocol":    o.ProxyProtocol.Contain,
			"ipv6":             func() bool { return o.IPv6 },
			"errorDetails":     func() bool { return o.ErrorDetails },
			"departed":         (*route.Table).Departed,
			"tlsDirectory":     func() string { return o.TLSDirectory },
			"certificateFiles": all.list,

			"backends":       haproxy.Backends,
			"haproxyAtLeast": atLeast("haproxyAtLeast", o.HAProxyAtLeast),
			"routesMap":      func(t *route.Table) string { return haproxy.Map(t.Claims()) },
			"hold":           func() int64 { return o.Hold.Milliseconds() },
			"holdMap":        func(t *route.Table) string { return haproxy.HoldMap(t, o.Hold) },
			"holdMax":        func() int { return o.HoldMax },
			"inspectDelay":   func(t *route.Table) string { return haproxy.InspectDelay(t, o.Hold) },
			"pausedMap":      haproxy.PausedMap,
			"pauses":         haproxy.Pauses,
			"haproxyLua":     func() bool { return haproxyLua(o, report) },
			"luaPause":       func() string { return pause },
			"tcpPorts":       func() route.Ports { return o.TCPPorts },
			"redirectMap":    func(t *route.Table) string { return haproxy.RedirectMap(t.Groups()) },
			"stripMap":       func(t *route.Table) string { return haproxy.StripMap(t.Groups()) },
			"stripDepths":    func(t *route.Table) []int { return haproxy.StripDepths(t.Groups()) },
			"defaultsInUse":  func(t *route.Table) []haproxy.Defaults { return defaults.Of(t.Groups()) },

			"upstreams":         func(g *route.Group) nginx.Upstreams { return nginx.NewUpstreams(g, o.Lua, report) },
			"upstreamName":      nginx.UpstreamName,
			"nginxRoutes":       func(t *route.Table) nginx.Routes { return nginx.NewRoutes(t.Claims(), t.Lose) },
			"namedCertificates": func(files []certificate) []certificate { return namedCertificates(files, report) },
			"controlSocket":     func() string { return o.NginxSocket },
			"closingFile":       func() string { return o.NginxClosing },
			"nginxAtLeast":      atLeast("nginxAtLeast", o.NginxAtLeast),
			"lua":               func() bool { return o.Lua },
			"luaBalancer":       func() string { return strings.TrimSuffix(balancer, "\n") },

			"claim": gone, "exposed": gone, "proxied": gone,
			"certificates": gone, "serverCertificates": gone, "controlDirectory": gone, "routeMaps": gone, "pathDepths": gone,
		}
	}
}

// haproxyLua reports whether HAProxy has Lua, and reports the features missing without it.
func haproxyLua(o Options, report func(string)) bool {
	if o.HAProxyLua == nil || o.HAProxyLua() {
		return true
	}
	what := "requests and TCP connections"
	if o.HAProxyAtLeast != nil && o.HAProxyAtLeast("3.2") {
		what = "TCP connections"
	}
	if what != "TCP connections" || len(o.TCPPorts) > 0 {
		report("HAProxy was built without Lua, so " + what + " cannot wait for a service without a server (SERVICE_ROUTE_HOLD); run a HAProxy with Lua, such as the official image or Debian's package")
	}
	return false
}

// gone replaces functions that older templates call, or call differently.
func gone(...any) (string, error) { return "", errGone }

var errGone = errors.New("this function no longer exists: copy berth's built-in template again, and make your changes in the copy")

var versionNumber = regexp.MustCompile(`^[0-9]+(\.[0-9]+)*$`)

// atLeast returns the template function with the given name. is may be nil if the version is unknown.
func atLeast(name string, is func(string) bool) func(string) (bool, error) {
	return func(version string) (bool, error) {
		if !versionNumber.MatchString(version) {
			return false, fmt.Errorf("%s %q: a version consists of numbers and dots, such as 1.27.4", name, version)
		}
		return is != nil && is(version), nil
	}
}
