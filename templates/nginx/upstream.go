// Package nginx turns services with routes into values for an nginx configuration.
package nginx

import (
	"crypto/sha256"
	"fmt"
	"strings"

	"berth/templater/leftout"
	"berth/templates/claim"
	"berth/templates/route"
)

// Upstream is a group of servers in nginx.
type Upstream struct {
	Name    string // unique, whatever the case of letters
	Servers []route.Server
	MaxConn int      // most connections per server; 0 = no limit
	Zone    int      // kilobytes of memory shared by all workers; 0 = none
	Method  string   // how a server is chosen; "" = roundrobin, the default
	Lua     string   // the function of balancer.lua that chooses instead; "" = none
	Posted  []string // settings for balancer.lua in addition to the servers, such as "hold 30000"
}

// Upstreams are the upstreams of a group.
type Upstreams struct {
	HTTP *Upstream // for requests; nil = no HTTP route
	TCP  *Upstream // for connections; nil = no ports
}

// NewUpstreams returns a group's upstreams, and reports settings that nginx does not support. With lua, the Lua balancer
// chooses servers where it can.
func NewUpstreams(g *route.Group, lua bool, report func(string)) Upstreams {
	for _, lacking := range []struct {
		asked bool
		why   string
	}{
		{g.Balance == "first", "nginx does not support balance first and uses roundrobin; set another SERVICE_ROUTE_BALANCE"},
		{g.Check != "", "nginx does not check servers, so its route_check has no effect; set SERVICE_CHECK_HTTP, so that Consul finds unhealthy instances"},
		{g.SlowStart != 0, "nginx gives a server its full share at once, so its route_slowstart has no effect; unset SERVICE_ROUTE_SLOWSTART"},
	} {
		if lacking.asked {
			report(leftout.Sentence(g.Service, "", lacking.why))
		}
	}
	var u Upstreams
	if len(g.Routes) > 0 {
		u.HTTP = newUpstream(g, UpstreamName(g), g.Settings)
		if lua && g.MaxConn == 0 && u.HTTP.Method != leastConn {
			u.HTTP.Method, u.HTTP.Lua = "", luaCall(u.HTTP.Name, g.Settings)
			u.HTTP.Posted = posted(g)
		}
	}
	switch holds := u.HTTP != nil && u.HTTP.Lua != ""; {
	case g.Hold <= 0 || holds:
	case !lua:
		report(leftout.Sentence(g.Service, "", "requests cannot wait in nginx without Lua, so its route_hold has no effect; unset SERVICE_ROUTE_HOLD, or see --nginx-lua"))
	case u.HTTP == nil:
		report(leftout.Sentence(g.Service, "", "TCP connections cannot wait in nginx, so its route_hold has no effect; unset SERVICE_ROUTE_HOLD"))
	default:
		report(leftout.Sentence(g.Service, "", "nginx itself picks its servers, so its route_hold has no effect; unset SERVICE_ROUTE_HOLD, or SERVICE_ROUTE_MAXCONN and SERVICE_ROUTE_BALANCE=leastconn"))
	}
	if g.Paused > 0 && (u.HTTP == nil || u.HTTP.Lua == "") {
		report(leftout.Sentence(g.Service, "", "it is paused, but its requests cannot wait in nginx: waiting needs --nginx-lua, an HTTP route, and neither SERVICE_ROUTE_MAXCONN nor SERVICE_ROUTE_BALANCE=leastconn"))
	}
	if len(g.Ports) > 0 {
		u.TCP = newUpstream(g, UpstreamName(g)+".tcp", g.ForTCP())
	}
	return u
}

// posted returns balancer.lua's settings for a group: how many milliseconds requests wait for a server, if the service says
// so, and its pause.
func posted(g *route.Group) (lines []string) {
	if g.Hold != 0 {
		lines = append(lines, fmt.Sprintf("hold %d", g.HoldOr(0).Milliseconds()))
	}
	if g.Paused > 0 {
		lines = append(lines, fmt.Sprintf("paused %d", g.Paused.Milliseconds()))
	}
	return lines
}

func newUpstream(g *route.Group, name string, settings claim.Settings) *Upstream {
	u := &Upstream{Name: name, MaxConn: g.MaxConn, Method: method(settings)}
	for _, server := range g.Servers {
		if !server.Drained { // nginx has no weight 0
			u.Servers = append(u.Servers, server)
		}
	}
	if u.MaxConn > 0 {
		// Without it each worker would count separately. A server uses less than a kilobyte.
		u.Zone = (len(u.Servers)/64 + 1) * 128
	}
	return u
}

// UpstreamName returns the name of a group's upstream. To nginx, App and app are the same name, so a name with capitals
// gets a suffix after a dot, unless it has one.
func UpstreamName(g *route.Group) string {
	if strings.ToLower(g.Name) == g.Name || g.Name != g.Service {
		return g.Name
	}
	sum := sha256.Sum256([]byte(g.Name))
	return fmt.Sprintf("%s.%x", g.Name, sum[:4])
}

const leastConn = "least_conn"

// method returns the directive that chooses servers.
func method(s claim.Settings) string {
	switch key := hashKey(s); {
	case key != "":
		return "hash $" + key + " consistent"
	case s.Balance == "leastconn":
		return leastConn
	case s.Balance == "random":
		return "random two least_conn" // like HAProxy's
	}
	return ""
}

// luaCall returns the call of balancer.lua that chooses a server of an upstream.
func luaCall(upstream string, s claim.Settings) string {
	switch key := hashKey(s); {
	case key != "":
		return fmt.Sprintf("balance(%q, ngx.var.%s)", upstream, key)
	case s.Balance == "random":
		return fmt.Sprintf("random(%q)", upstream)
	}
	return fmt.Sprintf("balance(%q)", upstream)
}

// hashKey returns the variable whose hash chooses a server, "" without one.
func hashKey(s claim.Settings) string {
	switch header := s.BalanceHeader(); {
	case s.Sticky:
		return "berth_sticky"
	case s.Balance == "source":
		return "remote_addr"
	case s.Balance == "uri":
		return "berth_path"
	case header != "":
		return "http_" + strings.ReplaceAll(strings.ToLower(header), "-", "_")
	}
	return ""
}
