package label

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const keyPrefix = "SERVICE_"

// MentionsService says whether whoever runs the container thought of registering it.
func (c Container) MentionsService() bool {
	for key := range c.Labels {
		if strings.HasPrefix(key, keyPrefix) {
			return true
		}
	}
	return slices.ContainsFunc(c.Env, func(kv string) bool { return strings.HasPrefix(kv, keyPrefix) })
}

// labels are the SERVICE_* values of a container, keyed in lower case without prefix and port.
type labels struct {
	general map[string]string            // SERVICE_NAME
	ports   map[uint16]map[string]string // SERVICE_8080_NAME
	dropped int                          // keys beyond those that are taken
}

// labelsOf reads SERVICE_* from environment and labels, as Registrator does: a label wins over the environment. Of keys
// that differ in case only, the one in upper case counts.
func labelsOf(c Container) labels {
	l := labels{general: map[string]string{}, ports: map[uint16]map[string]string{}}
	for _, kv := range backwards(slices.Values(c.Env)) {
		if key, value, ok := strings.Cut(kv, "="); ok {
			l.set(key, value)
		}
	}
	for _, key := range backwards(maps.Keys(c.Labels)) {
		l.set(key, c.Labels[key])
	}
	l.dropped = limit(l.general)
	for _, own := range l.ports {
		l.dropped += limit(own)
	}
	return l
}

// limit drops what is beyond maxKeys, and says how many that are.
func limit(values map[string]string) int {
	if len(values) <= maxKeys {
		return 0
	}
	beyond := slices.Sorted(maps.Keys(values))[maxKeys:]
	for _, key := range beyond {
		delete(values, key)
	}
	return len(beyond)
}

// backwards sorts what may come in any order, upper case last.
func backwards(seq func(yield func(string) bool)) []string {
	return slices.SortedFunc(seq, func(a, b string) int { return strings.Compare(b, a) })
}

func (l labels) set(key, value string) {
	key, ok := strings.CutPrefix(key, keyPrefix)
	if !ok || key == "" {
		return
	}
	key = strings.ToLower(key)
	number, rest, _ := strings.Cut(key, "_")
	n, err := strconv.Atoi(number)
	switch {
	case err != nil || rest == "":
		l.general[key] = value
	case n < 1 || n > 65535: // for a port that cannot be
	case l.ports[uint16(n)] == nil:
		l.ports[uint16(n)] = map[string]string{rest: value}
	default:
		l.ports[uint16(n)][rest] = value
	}
}

// ignores says whether a port is not to be registered. Any value does, as with Registrator.
func (l labels) ignores(port uint16) bool {
	if own, ok := l.ports[port]["ignore"]; ok {
		return own != ""
	}
	return l.general["ignore"] != ""
}

// ignoresAll says whether nothing of a container is to be registered.
func (l labels) ignoresAll(ports []Port) bool {
	if len(ports) == 0 {
		return l.ignores(0)
	}
	return !slices.ContainsFunc(ports, func(p Port) bool { return !l.ignores(p.Number) })
}

// settings are the values that apply to one port of a container. One for the port, SERVICE_8080_NAME, wins over one
// for all, SERVICE_NAME.
type settings struct {
	values map[string]string
	own    map[string]string // those for this port
	port   uint16
}

func (l labels) of(port uint16) settings {
	s := settings{maps.Clone(l.general), l.ports[port], port}
	maps.Copy(s.values, s.own)
	return s
}

// settingsFor are the settings of one port, or with port 0 those for all ports.
func settingsFor(c Container, port uint16) settings { return labelsOf(c).of(port) }

// has says whether a key was given for this very port.
func (s settings) has(key string) bool {
	_, ok := s.own[key]
	return ok
}

// take returns a value and removes it, so that what is left over at the end is Meta.
func (s settings) take(key string) string {
	v := s.values[key]
	delete(s.values, key)
	return v
}

// label is how a key was spelt on the container.
func (s settings) label(key string) string {
	name := keyPrefix + strings.ToUpper(key)
	if s.has(key) {
		name = fmt.Sprintf("%s%d_%s", keyPrefix, s.port, strings.ToUpper(key))
	}
	if plain(name) && len(name) <= maxMetaKey {
		return name
	}
	return quote(name)
}

// off says whether a value means no: Registrator takes any value for yes.
func off(value string) bool {
	switch strings.ToLower(strings.TrimSpace(value)) {
	case "", "false", "0", "no":
		return true
	}
	return false
}

// What Consul's catalog takes as service metadata (Consul API, agent/service/register).
const (
	maxMeta        = 64
	maxMetaKey     = 128
	maxMetaValue   = 512
	reservedPrefix = "consul-"
)

var metaKey = regexp.MustCompile(`^[a-zA-Z0-9_-]+$`)

// meta is what is left of the settings, as far as Consul takes it, without the keys of health checks.
func (s settings) meta() (meta map[string]string, problems []string) {
	meta = map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(s.values)) {
		value := s.values[key]
		var why string
		switch {
		case strings.HasPrefix(key, checkPrefix), key == "ignore":
			continue
		case strings.HasPrefix(key, ownPrefix):
			why = fmt.Sprintf("keys that begin with %q are berth's own", ownPrefix)
		case strings.HasPrefix(key, reservedPrefix):
			why = fmt.Sprintf("Consul keeps keys that begin with %q for itself", reservedPrefix)
		case !metaKey.MatchString(key) || len(key) > maxMetaKey:
			why = fmt.Sprintf("Consul takes letters, digits, - and _ in a key, at most %d of them", maxMetaKey)
		case len(value) > maxMetaValue:
			why = fmt.Sprintf("Consul takes at most %d bytes in a value, this has %d", maxMetaValue, len(value))
		case !plain(value):
			why = "its value has characters that are no text"
		case len(meta) == maxMeta-ownMeta:
			why = fmt.Sprintf("Consul takes at most %d pairs of metadata, and %d are berth's own", maxMeta, ownMeta)
		default:
			meta[key] = value
			continue
		}
		problems = append(problems, fmt.Sprintf("%s is left out: %s", s.label(key), why))
	}
	return meta, problems
}
