// Package claim reads from an instance's metadata which requests and connections the instance asks for, and how to serve
// them. A claim is never wider than its author meant: an invalid part of a route drops the whole route, and an invalid
// restriction drops all routes.
package claim

import (
	"fmt"
	"slices"
	"strings"
)

// The Meta keys of an instance for its routes and their settings. Each is the label SERVICE_<key>, in upper case.
const (
	KeyHost = "route_host" // host names, separated by commas or whitespace; continued in route_host_2 to route_host_9
	KeyPath = "route_path" // a path prefix
	KeyPort = "route_port" // a TCP port

	KeyStrip     = "route_strip"     // remove the path prefix
	KeyRedirect  = "route_redirect"  // https
	KeyBalance   = "route_balance"   // an algorithm
	KeySticky    = "route_sticky"    // clients stay with their server
	KeyCheck     = "route_check"     // path that healthy servers answer
	KeyMaxConn   = "route_maxconn"   // most connections or requests per server
	KeySlowStart = "route_slowstart" // time until a returning server gets its full share
	KeyFallback  = "route_fallback"  // service that serves while this one has no instance
	KeyTo        = "route_to"        // leader or all
	KeyHold      = "route_hold"      // time that requests wait for a server
)

// Meta keys that berth's registrar writes and that are no labels.
const (
	KeyNoRoute = "berth-no-route" // why the instance gets no route
	KeyStarted = "berth-started"  // start of its process, in RFC 3339
	KeyWeight  = "weight"         // "0" = no new requests, which Consul's own weights cannot express
)

// ownPrefix is the prefix of keys that no label sets.
const ownPrefix = "berth-"

// LastHostKey is the number of the last continuation key of the list of hosts.
const LastHostKey = 9

// HostKey returns the nth key of the list of hosts: route_host, route_host_2, and so on up to LastHostKey.
func HostKey(n int) string { return hostKeys[n-1] }

var hostKeys = func() []string {
	all := []string{KeyHost}
	for n := 2; n <= LastHostKey; n++ {
		all = append(all, fmt.Sprintf("%s_%d", KeyHost, n))
	}
	return all
}()

// MaxValue is the longest value that Consul accepts, in bytes.
const MaxValue = 512

var keys = []string{KeyHost, KeyPath, KeyPort,
	KeyStrip, KeyRedirect, KeyBalance, KeySticky, KeyCheck, KeyMaxConn, KeySlowStart, KeyFallback, KeyTo, KeyHold}

// Label returns the container label that sets a key.
func Label(key string) string { return "SERVICE_" + strings.ToUpper(key) }

// Claim is an instance's request for routes.
type Claim struct {
	Routes   []Route // sorted, unique
	Settings Settings
	Says     []string // keys of the settings that it has, even if no or zero
	// Restricted means that the instance serves only its own routes, which may be none if some were invalid. An
	// unrestricted instance names no route and serves all routes of its service.
	Restricted bool
	// Problems are sentences about the instance with what was ignored and the remedy: `its route_path "x" is not a path
	// like /api; set SERVICE_ROUTE_PATH`.
	Problems []string
}

// parser collects the claim of one instance.
type parser struct {
	Claim
	meta   map[string]string
	refuse bool // drop all routes
}

// Parse reads the claim in an instance's metadata. It does not check whether a TCP port is allowed.
func Parse(meta map[string]string) Claim {
	p := parser{meta: meta}
	p.http()
	p.port()
	p.settings()
	p.misspelt()
	if reason, there := meta[KeyNoRoute]; there {
		p.drop("it takes part in no route: %.200s", reason)
	}
	if p.refuse {
		p.Routes, p.Restricted = nil, true
	}
	slices.SortFunc(p.Routes, Compare)
	p.Routes = slices.Compact(p.Routes)
	return p.Claim
}

// Same reports whether the metadata of two instances ask for the same, regardless of the values of the registrar's own keys
// other than KeyNoRoute. When in doubt it returns false.
func Same(a, b map[string]string) bool {
	reasonA, noneA := a[KeyNoRoute]
	reasonB, noneB := b[KeyNoRoute]
	if len(a) != len(b) || noneA != noneB || reasonA != reasonB {
		return false
	}
	for key, value := range a {
		if other, there := b[key]; !there || other != value && !strings.HasPrefix(key, ownPrefix) {
			return false
		}
	}
	return true
}

func (p *parser) problem(format string, args ...any) {
	p.Problems = append(p.Problems, fmt.Sprintf(format, args...))
}

// drop reports a problem and drops all routes.
func (p *parser) drop(format string, args ...any) {
	p.refuse = true
	p.problem(format, args...)
}

// http reads the HTTP routes: hosts and a path.
func (p *parser) http() {
	hosts, hasHosts := p.hosts()
	path, hasPath := p.meta[KeyPath]
	if !hasHosts && !hasPath {
		return
	}
	p.Restricted = true
	path = strings.TrimSpace(path)
	prefix := strings.TrimSuffix(path, "/") + "/"
	isKept := true
	switch {
	case hasPath && path == "":
		isKept = false
		p.problem("its %s is empty, so it gets no HTTP route; set %s, or remove it", KeyPath, Label(KeyPath))
	case !isPathPrefix(prefix):
		isKept = false
		p.problem("its %s %.100q is not a path like /api; set %s", KeyPath, path, Label(KeyPath))
	}
	if !hasHosts {
		if isKept {
			p.Routes = append(p.Routes, Route{Path: prefix})
		}
		return
	}
	if len(hosts) == 0 {
		p.problem("its %s is empty, so it gets no HTTP route; set %s, or remove it", KeyHost, Label(KeyHost))
	}
	seen := map[string]bool{}
	for _, host := range hosts {
		host = strings.ToLower(host)
		if seen[host] {
			continue
		}
		seen[host] = true
		if host == "-" { // from a YAML list
			p.problem("its %s has the dashes of a YAML list; write the names without dashes in %s, one per line or separated by commas", KeyHost, Label(KeyHost))
			continue
		}
		if !IsHostName(strings.TrimPrefix(host, "*.")) {
			p.problem("its %s %.100q is not a host name like shop.example.com or *.example.com; set %s", KeyHost, host, Label(KeyHost))
			continue
		}
		if isKept {
			p.Routes = append(p.Routes, Route{Host: host, Path: prefix})
		}
	}
}

// hosts returns the list of hosts, and whether it exists.
func (p *parser) hosts() (list []string, there bool) {
	for _, key := range hostKeys {
		value, has := p.meta[key]
		there = there || has
		list = append(list, Hosts(value)...)
	}
	return list, there
}

// Hosts splits a list of hosts, separated by commas and any whitespace.
func Hosts(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || isSpace(r) })
}

func (p *parser) port() {
	value, there := p.meta[KeyPort]
	if !there {
		return
	}
	p.Restricted = true
	value = strings.TrimSpace(value)
	switch port := ParsePort(value); {
	case value == "":
		p.problem("its %s is empty, so it has no port; set %s, or remove it", KeyPort, Label(KeyPort))
	case port == 0:
		p.problem("its %s %.100q is not a port between 1 and 65535; set another %s", KeyPort, value, Label(KeyPort))
	default:
		p.Routes = append(p.Routes, Route{Port: port})
	}
}

// closing are the restricting keys: without them, more would be served than their author meant.
var closing = []string{KeyHost, KeyPath, KeyPort, KeyCheck, KeyRedirect, KeyMaxConn, KeyTo}

// misspelt reports keys that resemble a known key, and drops all routes if that key restricts. It skips keys named in the
// registrar's reason.
func (p *parser) misspelt() {
	var unknown []string
	for key := range p.meta {
		if !isKnown[key] && !strings.HasPrefix(key, ownPrefix) && !names(p.meta[KeyNoRoute], key) {
			unknown = append(unknown, key)
		}
	}
	slices.Sort(unknown)
	for _, key := range unknown {
		switch near := nearest(key); {
		case slices.Contains(closing, near):
			p.drop("its key %.100q is unknown, so it has no route; did you mean %s?", key, Label(near))
		case near != "":
			p.problem("its key %.100q is unknown; did you mean %s?", key, Label(near))
		case strings.HasPrefix(key, keyPrefix):
			p.problem("its key %.100q is unknown and has no effect; remove it, or correct its spelling", key)
		}
	}
}

// names reports whether the registrar's reason names the label of a key, such as SERVICE_ROUTE_HOSTS or
// SERVICE_80_ROUTE_HOSTS.
func names(reason, key string) bool {
	return slices.ContainsFunc(strings.Fields(reason), func(word string) bool {
		return strings.HasSuffix(strings.Trim(word, `",:;?`), "_"+strings.ToUpper(key))
	})
}

const keyPrefix = "route_"

var isKnown = func() map[string]bool {
	all := map[string]bool{}
	for _, key := range slices.Concat(keys, hostKeys) {
		all[key] = true
	}
	return all
}()

// nearest returns the known key that a key probably means, "" without one.
func nearest(key string) string {
	if len(key) > 30 {
		return ""
	}
	key = strings.ReplaceAll(strings.ToLower(key), "-", "_")
	best, least := "", 3
	for _, known := range keys {
		if !strings.HasPrefix(key, known[:2]) && !strings.HasSuffix(key, known[len(known)-4:]) || len(key)+2 < len(known) {
			continue // a fast path for most metadata
		}
		d := Distance(key, known)
		switch {
		case strings.HasPrefix(key, known): // route_hosts, route_hostname
			d = 0
		case d > 1 && (len(known) <= len(KeyPath) || !strings.HasPrefix(key, keyPrefix)):
			continue // two of four letters are too many
		}
		if d < least {
			best, least = known, d
		}
	}
	return best
}
