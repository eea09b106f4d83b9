package label

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"berth/templates/claim"
)

// Routes returns the routes that an instance asks for, in the form used in reports.
func (in Instance) Routes() (out []string) {
	if in.Protocol != "tcp" {
		return nil
	}
	for _, r := range claim.Parse(in.Meta).Routes {
		out = append(out, r.String())
	}
	return out
}

// ToLeader returns the key by which a container asks that only the leader of its service gets requests, or "".
func ToLeader(c Container) string {
	keys := keysOf(c)
	if strings.EqualFold(keys.general[claim.KeyTo], "leader") {
		return spelling(0, claim.KeyTo)
	}
	for _, port := range sortedPorts(keys) {
		if strings.EqualFold(keys.ports[port][claim.KeyTo], "leader") {
			return spelling(port, claim.KeyTo)
		}
	}
	return ""
}

// NoRoute says why an instance takes part in no route, not even in one that its service asks for elsewhere, or returns "".
func (in Instance) NoRoute() string {
	if reason := in.Meta[claim.KeyNoRoute]; reason != "" || in.Protocol != "tcp" {
		return reason
	}
	if c := claim.Parse(in.Meta); c.Restricted && len(c.Routes) == 0 {
		return strings.Join(c.Problems, "; ")
	}
	return ""
}

// WithoutRoutes returns the instance as registered when the route of the whole container goes to another of its ports: it
// takes part in no route.
func (in Instance) WithoutRoutes(to Instance) Instance {
	key := claim.KeyHost
	for _, k := range claimKeys {
		if _, asked := in.Meta[k]; asked {
			key = k
			break
		}
	}
	in.Meta = unrouted(in.Meta, fmt.Sprintf("%s goes to port %d: set %s for this one", spelling(0, key), to.Inside, spelling(in.Inside, key)))
	in.RouteChoice = 0
	return in
}

// unrouted returns metadata without its route keys, and with the reason.
func unrouted(meta map[string]string, reason string) map[string]string {
	meta = maps.Clone(meta)
	maps.DeleteFunc(meta, func(key, _ string) bool {
		return slices.Contains(claimKeys, key) || slices.Contains(routeSettings, key)
	})
	if len(reason) > claim.MaxValue { // do not cut a character in half
		reason = strings.ToValidUTF8(reason[:claim.MaxValue], "")
	}
	meta[claim.KeyNoRoute] = reason
	return meta
}

// routeMeta takes the routing keys of an instance and returns them as metadata, with reasons for the ignored ones. If a
// route cannot be kept complete, only the reason remains.
func (k *portKeys) routeMeta() (meta map[string]string, problems []string) {
	meta = map[string]string{}
	k.routeHosts(meta)
	for _, key := range slices.Concat([]string{claim.KeyPath, claim.KeyPort}, routeSettings) {
		value, given := k.values[key]
		delete(k.values, key)
		why := badMeta(key, value)
		switch {
		case !given:
		case value == "" && slices.Contains(claimKeys, key):
			k.loseRoute("%s is empty: set it, or remove it", k.spelling(key))
		case value == "": // a label cancels the image's environment
		case why != "" && costsRoute(key):
			k.loseRoute("%s cannot be stored: %s", k.spelling(key), why)
		case why != "":
			problems = append(problems, fmt.Sprintf("%s is ignored: %s", k.spelling(key), why))
		case key == claim.KeyPath:
			meta[key] = plainPath(value)
		default:
			meta[key] = value
		}
	}
	if k.noRoute != "" {
		meta = unrouted(meta, k.noRoute)
	}
	return meta, problems
}

// routeHosts takes the hosts, and spreads them over as many keys as needed.
func (k *portKeys) routeHosts(meta map[string]string) {
	var hosts []string
	first := ""
	for _, key := range hostKeys() {
		value, given := k.values[key]
		delete(k.values, key)
		if !given {
			continue
		}
		first = cmp.Or(first, key)
		for _, host := range claim.Hosts(value) {
			if host = plainHost(host); !slices.Contains(hosts, host) {
				hosts = append(hosts, host)
			}
		}
	}
	if first != "" && len(hosts) == 0 {
		k.loseRoute("%s is empty: set it, or remove it", k.spelling(first))
	}
	n := 1
	for _, host := range hosts {
		list := host
		if before := meta[claim.HostKey(n)]; before != "" {
			list = before + "," + host
		}
		if len(list) > claim.MaxValue && list != host {
			n, list = n+1, host
		}
		switch {
		case n > claim.LastHostKey:
			k.loseRoute("%s cannot be stored: Consul takes at most %d bytes in a value, and berth uses at most %d values", k.spelling(first), claim.MaxValue, claim.LastHostKey)
			return
		case badMeta(claim.KeyHost, list) != "":
			k.loseRoute("%s cannot be stored: %s", k.spelling(first), badMeta(claim.KeyHost, list))
			return
		}
		meta[claim.HostKey(n)] = list
	}
}

// plainHost returns the host name in what people write: with quotes, as a URL from a browser, or with DNS's trailing dot. A
// value that names more than a host, like a port or a path, stays unchanged: without that part the route would be wider.
func plainHost(s string) string {
	host := unquoted(s)
	for _, scheme := range []string{"http://", "https://"} {
		if len(host) > len(scheme) && strings.EqualFold(host[:len(scheme)], scheme) {
			host = host[len(scheme):]
		}
	}
	host = strings.TrimSuffix(strings.TrimSuffix(host, "/"), ".")
	if claim.IsHostName(strings.TrimPrefix(host, "*.")) {
		return host
	}
	return s
}

// judge says why the templater will ignore routes or settings of the instance. Keys near to known ones were already reported
// with the container's keys.
func (in Instance) judge(near map[string]string) (problems []string) {
	meta := maps.Clone(in.Meta)
	maps.DeleteFunc(meta, func(key, _ string) bool { return near[key] != "" })
	c := claim.Parse(meta)
	_, said := in.Meta[claim.KeyNoRoute]
	for _, problem := range c.Problems {
		if strings.HasPrefix(problem, "its "+claim.KeyHost+" ") && strings.ContainsFunc(problem, func(r rune) bool { return r > unicode.MaxASCII }) {
			problem += " in the form that DNS carries (xn--…)"
		}
		switch {
		case said: // it is the only problem that counts
			return []string{"no route: " + in.Meta[claim.KeyNoRoute]}
		case c.Restricted && len(c.Routes) == 0:
			problem = "no route: " + problem
		}
		problems = append(problems, problem)
	}
	return problems
}

// proxyPorts are the ports on which the proxy listens with a built-in template.
var proxyPorts = []int{8080, 8443, 8404}

// loop says why an instance may be the proxy itself, or returns "". A loopback address with a port of the proxy means the
// proxy on its host and in its container, and each request would loop.
func (k *portKeys) loop(in Instance, h Host) string {
	address := cmp.Or(in.Address, h.NodeAddress)
	if !parseAddress(address).IsLoopback() || !(slices.Contains(proxyPorts, in.Port) || claim.ParsePort(k.values[claim.KeyPort]) == in.Port) {
		return ""
	}
	return fmt.Sprintf("its address is %s, where the proxy itself listens, so requests would loop: publish another port, or register another address",
		net.JoinHostPort(address, strconv.Itoa(in.Port)))
}

// chooseRoutes decides which of a container's ports gets the route asked for on the whole container. A port with its own
// route (SERVICE_8080_ROUTE_HOST) keeps it. If that route takes part of its settings from the general one, no other port
// gets the general one. Otherwise one of the others gets it: RouteChoice ranks them, and the registrar picks the first ready
// one.
func chooseRoutes(instances []Instance, keys containerKeys) (problems []string) {
	var holder *Instance
	var contenders []*Instance
	for i := range instances {
		in := &instances[i]
		if in.Protocol != "tcp" || in.Meta[claim.KeyNoRoute] != "" {
			continue
		}
		own, general := keys.asks(in.Inside)
		switch {
		case own && general && holder == nil:
			holder = in
		case !own && general:
			contenders = append(contenders, in)
		}
	}
	if holder != nil {
		for _, in := range contenders {
			*in = in.WithoutRoutes(*holder)
			problems = append(problems, fmt.Sprintf("port %d/tcp: no route: %s", in.Inside, in.NoRoute()))
		}
		return problems
	}
	if len(contenders) < 2 {
		return nil
	}
	named := 0
	for _, in := range contenders {
		if keys.names(in.Inside) {
			named++
		}
	}
	rank := func(in *Instance) int {
		switch {
		case named == 1 && keys.names(in.Inside):
			return 0
		case in.Inside == 80:
			return 1
		}
		return 2
	}
	slices.SortStableFunc(contenders, func(a, b *Instance) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Inside, b.Inside))
	})
	for n, in := range contenders {
		in.RouteChoice = n + 1
	}
	return nil
}

// asks reports whether a port asks for a route with its own keys, and with keys for all ports.
func (c containerKeys) asks(port uint16) (own, general bool) {
	given := func(values map[string]string, key string) bool { _, ok := values[key]; return ok }
	for _, key := range claimKeys {
		own = own || given(c.ports[port], key)
	}
	ownHosts := slices.ContainsFunc(hostKeys(), func(key string) bool { return given(c.ports[port], key) })
	for _, key := range claimKeys {
		overridden := given(c.ports[port], key) || (ownHosts && slices.Contains(hostKeys(), key))
		general = general || (given(c.general, key) && !overridden)
	}
	return own, general
}
