package label

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

const (
	keyPrefix = "SERVICE_"

	maxKeys = 256 // that apply to one port; a container with more means harm
)

// MentionsService reports whether the container has any SERVICE_ key: somebody meant to register it.
func (c Container) MentionsService() bool {
	for key := range c.Labels {
		if strings.HasPrefix(key, keyPrefix) {
			return true
		}
	}
	return slices.ContainsFunc(c.Env, func(kv string) bool { return strings.HasPrefix(kv, keyPrefix) })
}

// containerKeys holds the SERVICE_* values of a container, keyed in lower case without prefix and port.
type containerKeys struct {
	general map[string]string            // SERVICE_NAME
	ports   map[uint16]map[string]string // SERVICE_8080_NAME
	dropped int                          // how many keys there were beyond maxKeys
}

// keysOf reads SERVICE_* from environment and labels, as Registrator does: a label wins over the environment. Of keys
// that differ in case only, the one in upper case counts.
func keysOf(c Container) containerKeys {
	keys := containerKeys{general: map[string]string{}, ports: map[uint16]map[string]string{}}
	for _, kv := range descending(slices.Values(c.Env)) {
		if key, value, ok := strings.Cut(kv, "="); ok {
			keys.set(key, value)
		}
	}
	for _, key := range descending(maps.Keys(c.Labels)) {
		keys.set(key, c.Labels[key])
	}
	keys.dropped = dropExcess(keys.general)
	for _, own := range keys.ports {
		keys.dropped += dropExcess(own)
	}
	return keys
}

// dropExcess deletes keys beyond maxKeys, and returns how many.
func dropExcess(values map[string]string) int {
	if len(values) <= maxKeys {
		return 0
	}
	excess := slices.Sorted(maps.Keys(values))[maxKeys:]
	for _, key := range excess {
		delete(values, key)
	}
	return len(excess)
}

// descending sorts keys in descending order, so upper case comes last.
func descending(seq func(yield func(string) bool)) []string {
	return slices.SortedFunc(seq, func(a, b string) int { return strings.Compare(b, a) })
}

func (c containerKeys) set(key, value string) {
	key, ok := strings.CutPrefix(key, keyPrefix)
	if !ok || key == "" {
		return
	}
	key = strings.ToLower(key)
	number, rest, _ := strings.Cut(key, "_")
	n, err := strconv.Atoi(number)
	switch {
	case err != nil || rest == "":
		c.general[key] = value
	case n < 1 || n > 65535: // for a port that cannot be
	case c.ports[uint16(n)] == nil:
		c.ports[uint16(n)] = map[string]string{rest: value}
	default:
		c.ports[uint16(n)][rest] = value
	}
}

// ignores reports whether a port is not to be registered. Any value means so, as with Registrator.
func (c containerKeys) ignores(port uint16) bool {
	if own, ok := c.ports[port]["ignore"]; ok {
		return own != ""
	}
	return c.general["ignore"] != ""
}

// ignoresAll reports whether nothing of a container is to be registered.
func (c containerKeys) ignoresAll(ports []Port) bool {
	if len(ports) == 0 {
		return c.ignores(0)
	}
	return !slices.ContainsFunc(ports, func(p Port) bool { return !c.ignores(p.Number) })
}

// portKeys holds the values that apply to one port of a container. A key for the port, SERVICE_8080_NAME, wins over the
// key for all ports, SERVICE_NAME.
type portKeys struct {
	values map[string]string
	own    map[string]string // given for this very port
	port   uint16
}

// forPort returns the keys of one port, or with port 0 the keys for all ports.
func (c containerKeys) forPort(port uint16) portKeys {
	k := portKeys{maps.Clone(c.general), c.ports[port], port}
	maps.Copy(k.values, k.own)
	return k
}

// isOwn reports whether a key was given for this very port.
func (k portKeys) isOwn(key string) bool {
	_, ok := k.own[key]
	return ok
}

// take returns a value and removes it. The values left at the end become metadata.
func (k portKeys) take(key string) string {
	v := k.values[key]
	delete(k.values, key)
	return v
}

// spelling returns a key as it stands on the container.
func (k portKeys) spelling(key string) string {
	name := keyPrefix + strings.ToUpper(key)
	if k.isOwn(key) {
		name = fmt.Sprintf("%s%d_%s", keyPrefix, k.port, strings.ToUpper(key))
	}
	if isPlain(name) && len(name) <= maxMetaKey {
		return name
	}
	return quote(name)
}

// isNo reports whether a value means no: Registrator takes any other for yes.
func isNo(value string) bool {
	switch strings.ToLower(strings.TrimSpace(value)) {
	case "", "false", "0", "no":
		return true
	}
	return false
}
