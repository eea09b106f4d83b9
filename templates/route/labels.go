// Package route turns the labels of services into routes, ports, settings and servers, the same for every proxy, and says
// which service has which route and port.
package route

import (
	"cmp"
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

// keys lists the known keys.
var keys = []string{KeyHost, KeyPath, KeyPort,
	KeyStrip, KeyRedirect, KeyBalance, KeySticky, KeyCheck, KeyMaxConn, KeySlowStart, KeyFallback}

// label returns the label of a container that sets a key.
func label(key string) string { return "SERVICE_" + strings.ToUpper(key) }

// reader reads the instances of a service.
type reader struct {
	service   string
	instances []*Instance // in order
	report    func(string)
	effective []string // the keys of the settings that are not the default
}

// newReader sorts the instances and leaves out UDP and SCTP.
func newReader(service string, instances []*Instance, report func(string)) *reader {
	list := slices.DeleteFunc(slices.Clone(instances), func(i *Instance) bool {
		return slices.Contains(i.Tags, "udp") || slices.Contains(i.Tags, "sctp")
	})
	slices.SortFunc(list, func(a, b *Instance) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Node, b.Node),
			cmp.Compare(a.Address, b.Address), cmp.Compare(a.Port, b.Port))
	})
	return &reader{service: service, instances: list, report: report}
}

func (r *reader) leaveOut(i *Instance, why string) {
	r.report(fmt.Sprintf("service %q, instance %.100q: %s", r.service, i.ID, why))
}

// each calls use once for each combination of values of one or two keys, with the first instance that has it, unless all
// values are empty. Replicas share their labels, and a mistake in them is reported once.
func (r *reader) each(keys []string, use func(i *Instance, values [2]string)) {
	seen := map[[2]string]bool{}
	for _, i := range r.instances {
		var values [2]string
		for n, key := range keys {
			values[n] = i.ServiceMeta[key]
		}
		if values != ([2]string{}) && !seen[values] {
			seen[values] = true
			use(i, values)
		}
	}
}

// setting returns the value of a key for the service as a whole: the first instance with a valid value decides. parse
// returns zero for an invalid value, and problem says why that is invalid; "" = every value is valid.
func setting[T comparable](r *reader, key, problem string, parse func(string) T) T {
	var value, zero T
	var first *Instance
	r.each([]string{key}, func(i *Instance, values [2]string) {
		v := parse(strings.TrimSpace(values[0]))
		switch {
		case v == zero && problem != "":
			r.leaveOut(i, fmt.Sprintf("its %s %.100q %s; set %s", key, values[0], problem, label(key)))
		case first == nil:
			value, first = v, i
		case v != value:
			r.leaveOut(i, fmt.Sprintf("its %s %.100q does not count, as instance %.100q says %.100q; set the same %s for all",
				key, values[0], first.ID, first.ServiceMeta[key], label(key)))
		}
	})
	if value != zero {
		r.effective = append(r.effective, key)
	}
	return value
}

// ports returns the TCP ports that the instances ask for, each once, in order.
func (r *reader) ports(allowed Ports) []int {
	var all []int
	r.each([]string{KeyPort}, func(i *Instance, values [2]string) {
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
		r.leaveOut(i, fmt.Sprintf("its %s %.100q %s; %s", KeyPort, values[0], problem, remedy))
	})
	slices.Sort(all)
	return slices.Compact(all)
}

// reportUnknown reports unknown keys, which are often misspelt.
func (r *reader) reportUnknown() {
	seen := map[string]bool{}
	for _, i := range r.instances {
		for _, key := range slices.Sorted(maps.Keys(i.ServiceMeta)) {
			if strings.HasPrefix(key, keyPrefix) && !slices.Contains(keys, key) && !seen[key] {
				seen[key] = true
				r.leaveOut(i, fmt.Sprintf("its %.100q is no label that means anything here; remove it, or spell it as the documentation does", key))
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

var (
	// parseBalance accepts the algorithms that let servers come and go at run time.
	parseBalance = regexp.MustCompile(`^(roundrobin|leastconn|random|first|source|uri|hdr\([A-Za-z0-9-]{1,64}\))$`).FindString
	parseCheck   = regexp.MustCompile(`^/[A-Za-z0-9_.~%+:@=/?&,;-]{0,511}$`).FindString
)

func (r *reader) settings() Settings {
	return Settings{
		Strip:    setting(r, KeyStrip, "", isYes),
		Redirect: setting(r, KeyRedirect, "is not https", func(s string) bool { return strings.ToLower(s) == "https" }),
		Sticky:   setting(r, KeySticky, "", isYes),
		Balance: setting(r, KeyBalance, "is none of roundrobin, leastconn, random, first, source, uri and hdr(<name>)",
			parseBalance),
		Check:     setting(r, KeyCheck, "is not a path like /health", parseCheck),
		MaxConn:   setting(r, KeyMaxConn, "is not a number between 1 and 1000000", parseMaxConn),
		SlowStart: setting(r, KeySlowStart, "is not a duration between 1s and 1h", parseSlowStart),
		Fallback:  setting(r, KeyFallback, "is not the name of another service", r.parseFallback),
	}
}

// isYes takes everything but a clear no for yes, as the registrar does.
func isYes(s string) bool {
	return !slices.Contains([]string{"", "false", "0", "no"}, strings.ToLower(s))
}

func parseMaxConn(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > 1_000_000 {
		return 0
	}
	return n
}

// parseSlowStart rounds to whole seconds, in which HAProxy counts.
func parseSlowStart(s string) time.Duration {
	d, err := time.ParseDuration(s)
	if err != nil || d < time.Second || d > time.Hour {
		return 0
	}
	return d.Round(time.Second)
}

// parseFallback accepts the name of any other service, even of one without a route.
func (r *reader) parseFallback(s string) string {
	if !IsServiceName(s) || s == r.service {
		return ""
	}
	return s
}

// reportIneffective reports the settings that need another label to have an effect.
func (r *reader) reportIneffective(s *Service) {
	if len(s.Routes) > 0 {
		return
	}
	asked := slices.ContainsFunc(r.instances, func(i *Instance) bool {
		return i.ServiceMeta[KeyHost]+i.ServiceMeta[KeyPath]+i.ServiceMeta[KeyPort] != ""
	})
	for _, key := range r.effective {
		switch {
		case !asked:
			r.report(fmt.Sprintf("service %q: it has a %s but no route; set SERVICE_ROUTE_HOST, SERVICE_ROUTE_PATH or SERVICE_ROUTE_PORT", s.Name, key))
		case len(s.Ports) > 0 && (key == KeyStrip || key == KeyRedirect || key == KeySticky || key == KeyBalance && s.needsHTTP()):
			r.report(fmt.Sprintf("service %q: its %s is for HTTP, and it has only a port; set SERVICE_ROUTE_HOST or SERVICE_ROUTE_PATH", s.Name, key))
		}
	}
}

// ForTCP returns the settings for connections, where there are no requests to look at.
func (s Settings) ForTCP() Settings {
	s.Strip, s.Redirect, s.Sticky = false, false, false
	if s.needsHTTP() {
		s.Balance = ""
	}
	return s
}

// IsHash says whether the algorithm sends equal requests to the same server.
func (s Settings) IsHash() bool { return s.Balance == "source" || s.needsHTTP() }

// needsHTTP says whether the algorithm looks at requests.
func (s Settings) needsHTTP() bool { return s.Balance == "uri" || s.BalanceHeader() != "" }

// BalanceHeader returns the name of the header that the algorithm looks at, "" if it looks at none.
func (s Settings) BalanceHeader() string {
	_, header, _ := strings.Cut(strings.TrimSuffix(s.Balance, ")"), "hdr(")
	return header
}
