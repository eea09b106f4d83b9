package templates

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

type instance = dependency.HealthService

// The Meta keys of an instance that say how its service is served. Each is the label SERVICE_<key>, in lower case.
const (
	metaPrefix = "route_"

	metaHost = "route_host" // host names, separated by commas
	metaPath = "route_path" // a path prefix
	metaPort = "route_port" // a TCP port

	metaStrip     = "route_strip"     // remove the path prefix
	metaRedirect  = "route_redirect"  // https
	metaBalance   = "route_balance"   // an algorithm
	metaSticky    = "route_sticky"    // a client stays with its server
	metaCheck     = "route_check"     // a path that healthy servers answer
	metaMaxConn   = "route_maxconn"   // connections or requests that a server takes at once
	metaSlowStart = "route_slowstart" // time in which a server that is back gets its full share
	metaFallback  = "route_fallback"  // a service that serves while this one has no instance
)

// asks says whether a key asks for something to be served. The others say how.
func asks(key string) bool { return key == metaHost || key == metaPath || key == metaPort }

func isKnown(key string) bool {
	switch key {
	case metaStrip, metaRedirect, metaBalance, metaSticky, metaCheck, metaMaxConn, metaSlowStart, metaFallback:
		return true
	}
	return asks(key)
}

// label is how a container spells a key.
func label(key string) string { return "SERVICE_" + strings.ToUpper(key) }

// labels are those of the instances of a service.
type labels struct {
	service   string
	instances []*instance // in order
	report    func(string)
}

func (l labels) leftOut(i *instance, why string) {
	l.report(fmt.Sprintf("service %q, instance %.100q: %s", l.service, i.ID, why))
}

// each calls use for the first instance that has these values for these keys, if they are not all empty. Replicas
// share their labels, so that what is wrong with them is reported once.
func (l labels) each(keys []string, use func(i *instance, values []string)) {
	seen := map[string]bool{"": true}
	for _, i := range l.instances {
		values := make([]string, len(keys))
		all := ""
		for n, key := range keys {
			values[n] = i.ServiceMeta[key]
			if values[n] != "" {
				all += fmt.Sprintf("%d%q", n, values[n])
			}
		}
		if !seen[all] {
			seen[all] = true
			use(i, values)
		}
	}
}

// setting returns the value of a key that is for the service as a whole: that of the first instance with a value that
// makes sense. parse says what is wrong with one.
func setting[T comparable](l labels, key string, parse func(string) (T, string)) T {
	var (
		value T
		first *instance
	)
	l.each([]string{key}, func(i *instance, values []string) {
		v, problem := parse(values[0])
		switch {
		case problem != "":
			l.leftOut(i, fmt.Sprintf("its %s %.100q %s; set %s", key, values[0], problem, label(key)))
		case first == nil:
			value, first = v, i
		case v != value:
			l.leftOut(i, fmt.Sprintf("its %s %.100q does not count, as instance %.100q says %.100q; set the same %s for all",
				key, values[0], first.ID, first.ServiceMeta[key], label(key)))
		}
	})
	return value
}

// ports returns the TCP ports that any of the instances asks for, each once, in order.
func (l labels) ports(allowed Ports) []int {
	var all []int
	l.each([]string{metaPort}, func(i *instance, values []string) {
		port := parsePort(strings.TrimSpace(values[0]))
		problem := ""
		switch {
		case port == 0:
			problem = "is not a port between 1 and 65535"
		case port == 8080 || port == 8443 || port == 8404:
			problem = "is a port of the proxy's own"
		case !allowed.contain(port):
			problem = fmt.Sprintf("is not one of the ports that may be asked for (%s)", allowed)
		default:
			all = append(all, port)
			return
		}
		l.leftOut(i, fmt.Sprintf("its %s %.100q %s; set another %s", metaPort, values[0], problem, label(metaPort)))
	})
	slices.Sort(all)
	return slices.Compact(all)
}

// unknown reports keys that mean nothing, which is often a slip of the pen.
func (l labels) unknown() {
	seen := map[string]bool{}
	for _, i := range l.instances {
		for _, key := range slices.Sorted(maps.Keys(i.ServiceMeta)) {
			if strings.HasPrefix(key, metaPrefix) && !isKnown(key) && !seen[key] {
				seen[key] = true
				l.leftOut(i, fmt.Sprintf("its %.100q is no label that means anything here; remove it, or spell it as the documentation does", key))
			}
		}
	}
}

// settings are what the labels say of a service as a whole.
type settings struct {
	strip, redirect, sticky bool
	balance, check          string // "" = not said
	maxConn                 int    // 0 = not said
	slowStart               time.Duration
	fallback                string // name of a service; "" = none
}

func (l labels) settings() settings {
	return settings{
		strip:     setting(l, metaStrip, parseYes),
		redirect:  setting(l, metaRedirect, parseRedirect),
		sticky:    setting(l, metaSticky, parseYes),
		balance:   setting(l, metaBalance, parseBalance),
		check:     setting(l, metaCheck, parseCheck),
		maxConn:   setting(l, metaMaxConn, parseMaxConn),
		slowStart: setting(l, metaSlowStart, parseSlowStart),
		fallback:  setting(l, metaFallback, l.parseFallback),
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
var byHeader = regexp.MustCompile(`^hdr\([A-Za-z0-9-]{1,64}\)$`)

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

// hashes says whether an algorithm sends what is alike to the same server.
func hashes(balance string) bool { return balance == "source" || ofHTTP(balance) }

// ofHTTP says whether an algorithm looks at requests.
func ofHTTP(balance string) bool { return balance == "uri" || byHeader.MatchString(balance) }

func parseCheck(s string) (string, string) {
	s = strings.TrimSpace(s)
	if !strings.HasPrefix(s, "/") || len(s) > 512 || !hasOnly(s, "-_.~%+:@=/?&,;") {
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
	if !isServiceName(s) || s == l.service {
		return "", "is not the name of another service"
	}
	return s, ""
}

// parseSlowStart takes what HAProxy counts in: whole seconds.
func parseSlowStart(s string) (time.Duration, string) {
	d, err := time.ParseDuration(strings.TrimSpace(s))
	if err != nil || d < time.Second || d > time.Hour {
		return 0, "is not a duration between 1s and 1h"
	}
	return d.Round(time.Second), ""
}
