package label

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"berth/templates/claim"
)

const (
	keyPrefix = "SERVICE_"

	maxKeys = 256 // for one port; a container with more is hostile

	maxUnknown = 4 * maxKeys // unknown keys of a container that are compared with the known ones
)

var (
	// claimKeys say which requests an instance asks for. Losing one costs the whole route: without its host, a path would
	// apply to every host.
	claimKeys = append(hostKeys(), claim.KeyPath, claim.KeyPort)

	// restrictingKeys restrict access. Losing one also costs the route.
	restrictingKeys = []string{claim.KeyCheck, claim.KeyRedirect, claim.KeyMaxConn, claim.KeyTo, claim.KeyWeight}

	routeSettings = []string{claim.KeyStrip, claim.KeyRedirect, claim.KeyBalance, claim.KeySticky, claim.KeyCheck,
		claim.KeyMaxConn, claim.KeySlowStart, claim.KeyFallback, claim.KeyTo, claim.KeyHold}

	// knownKeys have a meaning, as do checkPrefix and what follows it. All others are metadata.
	knownKeys = slices.Concat([]string{"name", "id", "tags", "ignore", "oneoff", "weight", "address", "network", "ready", "stop_signal", keyGroup},
		partKeys, settingKeys, replaceKeys, claimKeys, routeSettings)

	// nearKeys are the keys that an unknown key may mean.
	nearKeys = append(checkKeyNames(), knownKeys...)

	// meantKeys maps other tools' keys to berth's. Such a key only gets a hint; it does not cost a route.
	meantKeys = map[string]string{
		"host": claim.KeyHost, "hosts": claim.KeyHost, "hostname": claim.KeyHost, "domain": claim.KeyHost, "vhost": claim.KeyHost,
		"virtual_host": claim.KeyHost, "port": claim.KeyPort, "virtual_port": claim.KeyPort, "path": claim.KeyPath, "prefix": claim.KeyPath,
		"check": "check_http", "health": "check_http", "healthcheck": "check_http", "ip": "address",
	}
)

func hostKeys() (out []string) {
	for n := 1; n <= claim.LastHostKey; n++ {
		out = append(out, claim.HostKey(n))
	}
	return out
}

func checkKeyNames() (out []string) {
	for _, name := range slices.Concat(checkKinds, checkOptions) {
		out = append(out, checkPrefix+name)
	}
	return out
}

func isKnown(key string) bool {
	return slices.Contains(knownKeys, key) || strings.HasPrefix(key, checkPrefix)
}

// costsRoute reports whether losing a key costs the route.
func costsRoute(key string) bool {
	return slices.Contains(claimKeys, key) || slices.Contains(restrictingKeys, key)
}

// containerKeys holds the SERVICE_* values of a container, by key in lower case without prefix and port.
type containerKeys struct {
	general   map[string]string            // SERVICE_NAME
	ports     map[uint16]map[string]string // SERVICE_8080_NAME
	mentioned bool                         // it has a label, or a variable that is, or nearly is, a known key
	dropped   int                          // number of keys beyond maxKeys
	problems  []string
	misspelt  []Misspelt
	noRoute   map[uint16]string // why a port, or with 0 every port, gets no route: part of the claim is misspelt
	near      map[string]string // the known key near to an unknown one, whatever its port
}

// keysOf reads SERVICE_* from environment and labels, as Registrator does: a label overrides the environment, and case does
// not matter. If keys differ only in case, the one in upper case counts. A variable counts only if berth knows its key: the
// environment belongs to the program, and much of it only looks like a label.
func keysOf(c Container) containerKeys {
	keys := containerKeys{general: map[string]string{}, ports: map[uint16]map[string]string{}, noRoute: map[uint16]string{}, near: map[string]string{}}
	var private []string
	for _, kv := range descending(slices.Values(c.Env)) {
		name, value, _ := strings.Cut(kv, "=")
		switch key := parseKey(name); {
		case key.name == "":
		case isKnown(key.name):
			keys.mentioned = true
			keys.set(key, value)
		case keys.isMisspelt(key, value):
			keys.mentioned = true
		default:
			private = append(private, key.spelling())
		}
	}
	for _, name := range descending(maps.Keys(c.Labels)) {
		if key := parseKey(name); key.name != "" {
			keys.mentioned = true
			keys.isMisspelt(key, c.Labels[name])
			keys.set(key, c.Labels[name])
		}
	}
	slices.Sort(keys.problems)
	keys.problems = slices.Compact(keys.problems)
	if len(private) > 0 {
		slices.Sort(private)
		keys.problems = append(keys.problems, someOf(slices.Compact(private))+" in the environment: not known to berth, so not published; metadata comes from labels")
	}
	keys.general, keys.dropped = withoutExcess(keys.general)
	for port, own := range keys.ports {
		kept, dropped := withoutExcess(own)
		keys.ports[port] = kept
		keys.dropped += dropped
	}
	return keys
}

// mostNamed is how many keys a reason names.
const mostNamed = 5

// someOf names the first of several keys.
func someOf(names []string) string {
	if n := len(names) - mostNamed; n > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:mostNamed], ", "), n)
	}
	return strings.Join(names, ", ")
}

// descending sorts keys in descending order, so upper case comes last.
func descending(seq func(yield func(string) bool)) []string {
	return slices.SortedFunc(seq, func(a, b string) int { return strings.Compare(b, a) })
}

// key is the name of a label or variable.
type key struct {
	name    string // in lower case, without prefix and port; "" = not one of berth's
	port    uint16 // 0 = for all ports
	badPort string // text in the place of the port that is not a port
}

// likePort matches what may be meant as a port.
var likePort = regexp.MustCompile(`^[-+]?[0-9][^_]*$`)

func parseKey(name string) key {
	name, ours := strings.CutPrefix(strings.ToLower(strings.TrimSpace(name)), strings.ToLower(keyPrefix))
	number, rest, _ := strings.Cut(name, "_")
	n, err := strconv.Atoi(number)
	switch {
	case !ours:
		return key{}
	case err == nil && rest != "" && n >= 1 && n <= 65535:
		return key{name: rest, port: uint16(n)}
	case isKnown(rest) && likePort.MatchString(number):
		return key{name: name, badPort: number}
	case err == nil && rest != "": // an impossible port
		return key{}
	}
	return key{name: name}
}

func (k key) spelling() string { return spelling(k.port, k.name) }

// spelling returns a key as set on the container.
func spelling(port uint16, key string) string {
	name := keyPrefix + strings.ToUpper(key)
	if port != 0 {
		name = fmt.Sprintf("%s%d_%s", keyPrefix, port, strings.ToUpper(key))
	}
	if isPlain(name) && len(name) <= maxMetaKey {
		return name
	}
	return quote(name)
}

// set sets a value without surrounding whitespace, and without quotes if its key is known.
func (c containerKeys) set(k key, value string) {
	value = strings.TrimSpace(value)
	if isKnown(k.name) && !strings.HasPrefix(k.name, checkPrefix) {
		value = unquoted(value)
	}
	switch {
	case k.port == 0:
		c.general[k.name] = value
	case c.ports[k.port] == nil:
		c.ports[k.port] = map[string]string{k.name: value}
	default:
		c.ports[k.port][k.name] = value
	}
}

// isMisspelt records a key that is close to a known one, and reports whether it is. If the known key is part of a claim, or
// restricts it, the claim is incomplete.
func (c *containerKeys) isMisspelt(k key, value string) bool {
	if isKnown(k.name) {
		return false
	}
	near, called := meantKeys[k.name]
	switch {
	case k.badPort != "":
		near = k.name[len(k.badPort)+1:]
	case !called:
		near = c.nearest(k.name)
	}
	if near == "" {
		return false
	}
	meant, because := spelling(k.port, near), ""
	if k.badPort != "" {
		meant, because = keyPrefix+"<port>_"+strings.ToUpper(near), fmt.Sprintf(", as %s is not a port", quote(k.badPort))
	}
	problem := fmt.Sprintf("%s is an unknown key%s: did you mean %s?", k.spelling(), because, meant)
	c.misspelt = append(c.misspelt, Misspelt{Label: k.spelling(), Meant: meant, reason: problem})
	closes := costsRoute(near) && (near != claim.KeyWeight || isNoWeight(unquoted(strings.TrimSpace(value))))
	if closes && !called && c.noRoute[k.port] == "" {
		c.noRoute[k.port] = problem
	} else {
		c.problems = append(c.problems, problem)
	}
	return true
}

// nearest calls the function nearest once per key of the container.
func (c *containerKeys) nearest(key string) string {
	near, done := c.near[key]
	if !done && len(c.near) < maxUnknown {
		near = nearest(key)
		c.near[key] = near
	}
	return near
}

// nearest returns the known key that an unknown one probably means, or "".
func nearest(key string) string {
	key = strings.ReplaceAll(key, "-", "_")
	switch {
	case isKnown(key):
		return key
	case strings.HasPrefix(key, claim.KeyHost): // route_hosts
		return claim.KeyHost
	case strings.HasPrefix(key, claim.KeyTo+"_"): // route_to_leader
		return claim.KeyTo
	case len(key) > 30:
		return ""
	}
	best, least := "", 3
	for _, known := range nearKeys {
		if n := len(key) - len(known); n >= least || -n >= least {
			continue // too many letters are missing
		}
		d := claim.Distance(key, known)
		if d > 1 && !(len(known) > len(claim.KeyPath) && strings.HasPrefix(key, "route_")) {
			continue // two of four letters are too many
		}
		if d < least {
			best, least = known, d
		}
	}
	return best
}

// withoutExcess returns the values without the keys beyond maxKeys, and the number of these: metadata goes first, then
// headers of checks. All other keys are known ones, fewer than maxKeys. It makes a new map, because a map with deleted keys
// stays slow to copy.
func withoutExcess(values map[string]string) (kept map[string]string, dropped int) {
	if len(values) <= maxKeys {
		return values, 0
	}
	rank := make(map[string]int, len(values))
	for key := range values {
		switch {
		case slices.Contains(knownKeys, key) || isCheckKey(key):
		case strings.HasPrefix(key, checkPrefix):
			rank[key] = 1
		default:
			rank[key] = 2
		}
	}
	kept = map[string]string{}
	for _, key := range slices.SortedFunc(maps.Keys(values), func(a, b string) int {
		return cmp.Or(cmp.Compare(rank[a], rank[b]), strings.Compare(a, b))
	})[:maxKeys] {
		kept[key] = values[key]
	}
	return kept, len(values) - maxKeys
}

// ignores reports whether a port must not be registered. Any value means so, as with Registrator.
func (c containerKeys) ignores(port uint16) bool {
	if own, ok := c.ports[port]["ignore"]; ok {
		return own != ""
	}
	return c.general["ignore"] != ""
}

// ignoresAll reports whether nothing of a container is registered.
func (c containerKeys) ignoresAll(ports []Port) bool {
	if len(ports) == 0 {
		return c.ignores(0)
	}
	return !slices.ContainsFunc(ports, func(p Port) bool { return !c.ignores(p.Number) })
}

// ignoredAgainstTheWord says that a port is ignored although the value says no, or returns nil.
func (c containerKeys) ignoredAgainstTheWord() []string {
	var names []string
	if claim.IsNo(c.general["ignore"]) {
		names = append(names, spelling(0, "ignore"))
	}
	for _, port := range slices.Sorted(maps.Keys(c.ports)) {
		if claim.IsNo(c.ports[port]["ignore"]) {
			names = append(names, spelling(port, "ignore"))
		}
	}
	if len(names) == 0 {
		return nil
	}
	return []string{someOf(names) + " takes effect with any value, even false: remove it to register the port"}
}

// names reports whether a port has its own keys.
func (c containerKeys) names(port uint16) bool {
	return slices.ContainsFunc(slices.Collect(maps.Keys(c.ports[port])), func(key string) bool { return key != "ignore" && isKnown(key) })
}

// opens reports whether a port's own keys say that something is served there, whatever the image exposes.
func (c containerKeys) opens(port uint16) bool {
	return slices.ContainsFunc(append([]string{"name"}, claimKeys...), func(key string) bool { return c.ports[port][key] != "" })
}

// idle returns a reason for keys of ports that do not exist.
func (c containerKeys) idle(ports []Port) (problems []string) {
	there := numbers(ports)
	for _, port := range slices.Sorted(maps.Keys(c.ports)) {
		if there[port] {
			continue
		}
		first := ""
		for _, key := range slices.Sorted(maps.Keys(c.ports[port])) {
			if first == "" && key != "ignore" && isKnown(key) && c.ports[port][key] != "" {
				first = key
			}
		}
		if first != "" {
			problems = append(problems, fmt.Sprintf("%s has no effect because port %d is not exposed: expose it, or set %s", spelling(port, first), port, spelling(port, "name")))
		}
	}
	return problems
}

// empty returns a reason for important keys without a value. compose leaves them empty if a variable is unset.
func (c containerKeys) empty() []string {
	names := c.choose(func(_ map[string]string, key, value string) bool {
		m := checkKey.FindStringSubmatch(key)
		return value == "" && (key == "name" || key == "weight" || (m != nil && slices.Contains(checkKinds, m[2])))
	})
	if len(names) == 0 {
		return nil
	}
	return []string{someOf(names) + " is empty, so it counts as unset"}
}

// withhold deletes keys that look like a secret, and returns one reason for all of them.
func (c containerKeys) withhold() []string {
	names := c.choose(func(values map[string]string, key, value string) bool {
		secret := !isKnown(key) && isSecret(key, value)
		if secret {
			delete(values, key)
		}
		return secret
	})
	if len(names) == 0 {
		return nil
	}
	return []string{someOf(names) + " is not published: it looks like a secret, and everyone who can read the catalog could read it; choose another key, or allow it with --publish-secrets"}
}

// choose returns the labels of the keys chosen by f, sorted. f may delete a key from its values.
func (c containerKeys) choose(f func(values map[string]string, key, value string) bool) []string {
	var names []string
	look := func(port uint16, values map[string]string) {
		for key, value := range values {
			if f(values, key, value) {
				names = append(names, spelling(port, key))
			}
		}
	}
	look(0, c.general)
	for port, values := range c.ports {
		look(port, values)
	}
	slices.Sort(names)
	return names
}

var (
	secretWords = []string{"password", "passwords", "passwd", "passphrase", "pass", "pwd", "pw", "secret", "secrets", "token", "tokens", "key", "keys",
		"apikey", "apikeys", "credential", "credentials", "creds", "private"}

	// urlPassword matches a URL that contains a password.
	urlPassword = regexp.MustCompile(`://[^/@\s]*:[^/@\s]+@`)
)

func isSecret(key, value string) bool {
	words := strings.FieldsFunc(key, func(r rune) bool { return r == '_' || r == '-' || r == '.' })
	return urlPassword.MatchString(value) || slices.ContainsFunc(words, func(word string) bool { return slices.Contains(secretWords, word) })
}

// portKeys holds the values for one port of a container. A key for the port, SERVICE_8080_NAME, overrides the key for all
// ports, SERVICE_NAME.
type portKeys struct {
	values  map[string]string
	own     map[string]string // given for this port
	port    uint16
	near    map[string]string // keys already compared with the known ones, as in containerKeys
	noRoute string            // why the route is incomplete; "" = it is complete
	noCheck []string          // checks that the policy does not allow
	noGroup string            // why the group is unknown; "" = it is known
}

// forPort returns the keys of one port, or with port 0 the keys for all ports.
func (c containerKeys) forPort(port uint16) *portKeys {
	k := &portKeys{values: maps.Clone(c.general), own: c.ports[port], port: port, near: c.near, noRoute: cmp.Or(c.noRoute[port], c.noRoute[0])}
	if slices.ContainsFunc(hostKeys(), k.isOwn) { // a list is one value, even if it takes several keys
		for _, key := range hostKeys() {
			delete(k.values, key)
		}
	}
	maps.Copy(k.values, k.own)
	return k
}

// isOwn reports whether a key was given for this port.
func (k *portKeys) isOwn(key string) bool {
	_, ok := k.own[key]
	return ok
}

// take returns a value and removes it. The remaining values become metadata.
func (k *portKeys) take(key string) string {
	v := k.values[key]
	delete(k.values, key)
	return v
}

// spelling returns a key as set on the container.
func (k *portKeys) spelling(key string) string {
	if k.isOwn(key) {
		return spelling(k.port, key)
	}
	return spelling(0, key)
}

// someOf names the first of several keys as set on the container.
func (k *portKeys) someOf(keys []string) string {
	names := slices.Clone(keys)
	for i := range names[:min(len(names), mostNamed)] {
		names[i] = k.spelling(names[i])
	}
	return someOf(names)
}

// loseRoute records why the route is incomplete. The first reason counts.
func (k *portKeys) loseRoute(format string, args ...any) {
	k.noRoute = cmp.Or(k.noRoute, fmt.Sprintf(format, args...))
}
