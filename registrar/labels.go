package registrar

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// settings are the SERVICE_* values that apply to one port of a container, keyed in lower case without the prefix.
type settings struct {
	values map[string]string
	own    map[string]bool // keys that were given for this port: SERVICE_8080_NAME
}

const keyPrefix = "SERVICE_"

// mentionsService says whether whoever runs the container thought of registering it.
func (c Container) mentionsService() bool {
	for key := range c.Labels {
		if strings.HasPrefix(key, keyPrefix) {
			return true
		}
	}
	return slices.ContainsFunc(c.Env, func(kv string) bool { return strings.HasPrefix(kv, keyPrefix) })
}

// settingsFor reads SERVICE_* from environment and labels, as Registrator does: a label wins over the environment, and
// SERVICE_<port>_KEY over SERVICE_KEY.
func settingsFor(c Container, port uint16) settings {
	s := settings{map[string]string{}, map[string]bool{}}
	set := func(key, value string) {
		key, ok := strings.CutPrefix(key, keyPrefix)
		if !ok || key == "" {
			return
		}
		key = strings.ToLower(key)
		if number, rest, ok := strings.Cut(key, "_"); ok && rest != "" {
			if n, err := strconv.Atoi(number); err == nil {
				if n == int(port) {
					s.values[rest], s.own[rest] = value, true
				}
				return
			}
		}
		if !s.own[key] {
			s.values[key] = value
		}
	}
	for _, kv := range c.Env {
		if key, value, ok := strings.Cut(kv, "="); ok {
			set(key, value)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(c.Labels)) {
		set(key, c.Labels[key])
	}
	return s
}

// ignored says whether the port is not to be registered. Any value does, as with Registrator.
func (s settings) ignored() bool { return s.values["ignore"] != "" }

// take returns a value and removes it, so that what is left over at the end is Meta.
func (s settings) take(key string) string {
	v := s.values[key]
	delete(s.values, key)
	return v
}

// tags splits a list at its commas; `\,` is a comma within a tag.
func tags(list string) []string {
	var out []string
	var tag strings.Builder
	end := func() {
		if t := strings.TrimSpace(tag.String()); t != "" {
			out = append(out, t)
		}
		tag.Reset()
	}
	for i := 0; i < len(list); i++ {
		switch {
		case list[i] == '\\' && i+1 < len(list) && list[i+1] == ',':
			tag.WriteByte(',')
			i++
		case list[i] == ',':
			end()
		default:
			tag.WriteByte(list[i])
		}
	}
	end()
	return out
}

// What Consul's catalog takes as service metadata (Consul API, agent/service/register).
const (
	maxMeta      = 64
	maxMetaKey   = 128
	maxMetaValue = 512
)

var metaKey = regexp.MustCompile(`^[a-zA-Z0-9_-]+$`)

// meta is what is left of the settings, without the keys of health checks, as far as Consul takes it. room is how
// many pairs there is place for.
func (s settings) meta(room int) (meta map[string]string, problems []string) {
	meta = map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(s.values)) {
		value := s.values[key]
		label := keyPrefix + strings.ToUpper(key)
		switch {
		case strings.HasPrefix(key, "check_"):
		case strings.HasPrefix(key, ownPrefix):
			problems = append(problems, fmt.Sprintf("%q is left out: keys that begin with %q are berth's own", label, ownPrefix))
		case !metaKey.MatchString(key) || len(key) > maxMetaKey:
			problems = append(problems, fmt.Sprintf("%q is left out: Consul takes letters, digits, - and _ in a key, at most %d of them", label, maxMetaKey))
		case len(value) > maxMetaValue:
			problems = append(problems, fmt.Sprintf("%q is left out: Consul takes at most %d bytes in a value, this has %d", label, maxMetaValue, len(value)))
		case len(meta) == room:
			problems = append(problems, fmt.Sprintf("%q is left out: Consul takes at most %d pairs of metadata", label, maxMeta))
		default:
			meta[key] = value
		}
	}
	return meta, problems
}
