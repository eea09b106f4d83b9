// Package route turns the labels of services into routes, ports, settings and servers, the same for every proxy, and says
// which service has which route and port.
package route

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/consul-template/dependency"
)

// Instance is an instance of a service, as consul-template hands it to a template.
type Instance = dependency.HealthService

// The Meta keys of an instance that say how its service is served. Each is the label SERVICE_<key>, in lower case.
const (
	keyPrefix = "route_"

	KeyHost = "route_host" // host names, separated by commas
	KeyPath = "route_path" // a path prefix
	KeyPort = "route_port" // a TCP port

	KeyStrip     = "route_strip"     // remove the path prefix
	KeyRedirect  = "route_redirect"  // https
	KeyBalance   = "route_balance"   // an algorithm
	KeySticky    = "route_sticky"    // a client stays with its server
	KeyCheck     = "route_check"     // a path that healthy servers answer
	KeyMaxConn   = "route_maxconn"   // connections or requests that a server takes at once
	KeySlowStart = "route_slowstart" // time in which a server that is back gets its full share
	KeyFallback  = "route_fallback"  // a service that serves while this one has no instance
)

func isKnown(key string) bool {
	switch key {
	case KeyHost, KeyPath, KeyPort,
		KeyStrip, KeyRedirect, KeyBalance, KeySticky, KeyCheck, KeyMaxConn, KeySlowStart, KeyFallback:
		return true
	}
	return false
}

// label is how a container spells a key.
func label(key string) string { return "SERVICE_" + strings.ToUpper(key) }

// labels reads the labels of a service's instances.
type labels struct {
	service   string
	instances []*Instance // in order
	report    func(string)
}

func (l labels) leaveOut(i *Instance, why string) {
	l.report(fmt.Sprintf("service %q, instance %.100q: %s", l.service, i.ID, why))
}

// each calls use for the first instance that has these values for one or two keys, if they are not all empty. Replicas
// share their labels, so that a mistake in them is reported once.
func (l labels) each(keys []string, use func(i *Instance, values [2]string)) {
	seen := map[[2]string]bool{{}: true}
	for _, i := range l.instances {
		var values [2]string
		for n, key := range keys {
			values[n] = i.ServiceMeta[key]
		}
		if !seen[values] {
			seen[values] = true
			use(i, values)
		}
	}
}

// setting returns the value of a key that is for the service as a whole: the first instance with a value that makes sense
// decides. parse returns the value or the problem with it.
func setting[T comparable](l labels, key string, parse func(string) (T, string)) T {
	var (
		value T
		first *Instance
	)
	l.each([]string{key}, func(i *Instance, values [2]string) {
		v, problem := parse(values[0])
		switch {
		case problem != "":
			l.leaveOut(i, fmt.Sprintf("its %s %.100q %s; set %s", key, values[0], problem, label(key)))
		case first == nil:
			value, first = v, i
		case v != value:
			l.leaveOut(i, fmt.Sprintf("its %s %.100q does not count, as instance %.100q says %.100q; set the same %s for all",
				key, values[0], first.ID, first.ServiceMeta[key], label(key)))
		}
	})
	return value
}

// ports returns the TCP ports that any of the instances asks for, each once, in order.
func (l labels) ports(allowed Ports) []int {
	var all []int
	l.each([]string{KeyPort}, func(i *Instance, values [2]string) {
		port := parsePort(strings.TrimSpace(values[0]))
		problem, remedy := "", "set another "+label(KeyPort)
		switch {
		case port == 0:
			problem = "is not a port between 1 and 65535"
		case port == 8080 || port == 8443 || port == 8404:
			problem = "is a port of the proxy's own"
		case len(allowed) == 0:
			problem, remedy = "is not allowed, as no ports are", fmt.Sprintf("give the templater --tcp-ports %d", port)
		case !allowed.contain(port):
			problem = fmt.Sprintf("is not one of the ports that may be asked for (%s)", allowed)
			remedy += fmt.Sprintf(", or give the templater --tcp-ports %s,%d", allowed, port)
		default:
			all = append(all, port)
			return
		}
		l.leaveOut(i, fmt.Sprintf("its %s %.100q %s; %s", KeyPort, values[0], problem, remedy))
	})
	slices.Sort(all)
	return slices.Compact(all)
}

// reportUnknown reports keys that mean nothing, which is often a slip of the pen.
func (l labels) reportUnknown() {
	seen := map[string]bool{}
	for _, i := range l.instances {
		for _, key := range slices.Sorted(maps.Keys(i.ServiceMeta)) {
			if strings.HasPrefix(key, keyPrefix) && !isKnown(key) && !seen[key] {
				seen[key] = true
				l.leaveOut(i, fmt.Sprintf("its %.100q is no label that means anything here; remove it, or spell it as the documentation does", key))
			}
		}
	}
}

// Settings say how a service as a whole is served.
type Settings struct {
	Strip, Redirect, Sticky bool
	Balance, Check          string // "" = not said
	MaxConn                 int    // 0 = not said
	SlowStart               time.Duration
	Fallback                string // name of a service; "" = none
}

func (l labels) settings() Settings {
	return Settings{
		Strip:     setting(l, KeyStrip, parseYes),
		Redirect:  setting(l, KeyRedirect, parseRedirect),
		Sticky:    setting(l, KeySticky, parseYes),
		Balance:   setting(l, KeyBalance, parseBalance),
		Check:     setting(l, KeyCheck, parseCheck),
		MaxConn:   setting(l, KeyMaxConn, parseMaxConn),
		SlowStart: setting(l, KeySlowStart, parseSlowStart),
		Fallback:  setting(l, KeyFallback, l.parseFallback),
	}
}

// parseYes takes anything for yes that does not say no, as the registrar does.
func parseYes(s string) (bool, string) {
	switch strings.ToLower(strings.TrimSpace(s)) {
	case "", "false", "0", "no":
		return false, ""
	}
	return true, ""
}

func parseRedirect(s string) (bool, string) {
	if strings.ToLower(strings.TrimSpace(s)) != "https" {
		return false, "is not https"
	}
	return true, ""
}

// byHeader is a hash of a header of the request.
var byHeader = regexp.MustCompile(`^hdr\(([A-Za-z0-9-]{1,64})\)$`)

// parseBalance takes the algorithms with which servers can be added and removed at run time.
func parseBalance(s string) (string, string) {
	s = strings.TrimSpace(s)
	switch s {
	case "roundrobin", "leastconn", "random", "first", "source", "uri":
		return s, ""
	}
	if byHeader.MatchString(s) {
		return s, ""
	}
	return "", "is none of roundrobin, leastconn, random, first, source, uri and hdr(<name>)"
}

// IsHash says whether an algorithm sends requests that are alike to the same server.
func IsHash(balance string) bool { return balance == "source" || NeedsHTTP(balance) }

// NeedsHTTP says whether an algorithm looks at requests.
func NeedsHTTP(balance string) bool { return balance == "uri" || BalanceHeader(balance) != "" }

// BalanceHeader returns the name of the header that an algorithm looks at, "" if it looks at none.
func BalanceHeader(balance string) string {
	if m := byHeader.FindStringSubmatch(balance); m != nil {
		return m[1]
	}
	return ""
}

func parseCheck(s string) (string, string) {
	s = strings.TrimSpace(s)
	if !strings.HasPrefix(s, "/") || len(s) > 512 || !HasOnly(s, "-_.~%+:@=/?&,;") {
		return "", "is not a path like /health"
	}
	return s, ""
}

const mostConnections = 1_000_000

func parseMaxConn(s string) (int, string) {
	n, err := strconv.Atoi(strings.TrimSpace(s))
	if err != nil || n < 1 || n > mostConnections {
		return 0, fmt.Sprintf("is not a number between 1 and %d", mostConnections)
	}
	return n, ""
}

// parseFallback takes the name of any service that can be looked up. It may have no route.
func (l labels) parseFallback(s string) (string, string) {
	s = strings.TrimSpace(s)
	if !IsServiceName(s) || s == l.service {
		return "", "is not the name of another service"
	}
	return s, ""
}

// parseSlowStart rounds to whole seconds, in which HAProxy counts.
func parseSlowStart(s string) (time.Duration, string) {
	d, err := time.ParseDuration(strings.TrimSpace(s))
	if err != nil || d < time.Second || d > time.Hour {
		return 0, "is not a duration between 1s and 1h"
	}
	return d.Round(time.Second), ""
}
