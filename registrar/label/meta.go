package label

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"berth/templates/claim"
)

// Metadata that berth writes with every registration. Owner and container decide whose it is.
const (
	ownPrefix     = "berth-"
	MetaOwner     = ownPrefix + "owner"     // Docker engine ID of the host whose registrar made the registration
	MetaContainer = ownPrefix + "container" // full container ID
	MetaChecks    = ownPrefix + "checks"    // fingerprint of the instance's checks, written by package agent
	MetaStarted   = ownPrefix + "started"   // when its process was started (RFC 3339), likewise

	ownMeta = 8 // room for these pairs, others like them, and those that berth computes
)

// Limits of service metadata in Consul's catalog (Consul API, agent/service/register).
const (
	maxMeta        = 64
	maxMetaKey     = 128
	maxMetaValue   = claim.MaxValue
	reservedPrefix = "consul-"
)

// isMetaKey reports whether Consul accepts a key.
func isMetaKey(key string) bool {
	return key != "" && len(key) <= maxMetaKey && !strings.ContainsFunc(key, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-'
	})
}

// meta returns the remaining keys as metadata, as far as Consul accepts them and the taken pairs leave room, and the reasons
// for the others.
func (k *portKeys) meta(taken int) (meta map[string]string, problems []string) {
	meta = map[string]string{}
	left := map[string][]string{} // ignored keys, by reason
	for _, key := range slices.Sorted(maps.Keys(k.values)) {
		if key == "ignore" || key == "oneoff" || isGroupKey(key) || slices.Contains(replaceKeys, key) {
			continue
		}
		why := badMeta(key, k.values[key])
		if why == "" && taken+len(meta) >= maxMeta-ownMeta {
			why = fmt.Sprintf("Consul takes at most %d pairs of metadata, and %d are berth's own", maxMeta, ownMeta)
		}
		if why != "" {
			left[why] = append(left[why], key)
			continue
		}
		meta[key] = k.values[key]
	}
	for _, why := range slices.Sorted(maps.Keys(left)) {
		problems = append(problems, k.someOf(left[why])+" is ignored: "+why)
	}
	return meta, problems
}

// badMeta says why a pair cannot be metadata, or returns "".
func badMeta(key, value string) string {
	switch {
	case strings.HasPrefix(key, ownPrefix):
		return fmt.Sprintf("keys that begin with %q are berth's own", ownPrefix)
	case strings.HasPrefix(key, reservedPrefix):
		return fmt.Sprintf("Consul keeps keys that begin with %q for itself", reservedPrefix)
	case !isMetaKey(key):
		return fmt.Sprintf("Consul allows only letters, digits, - and _ in a key, and at most %d of them", maxMetaKey)
	case len(value) > maxMetaValue:
		return fmt.Sprintf("Consul takes at most %d bytes in a value, and this one has %d", maxMetaValue, len(value))
	case !isPlain(value):
		return "its value has control characters or is not UTF-8"
	}
	return ""
}

// parseMeta parses the key=value pairs of berth service.
func parseMeta(pairs []string) (map[string]string, error) {
	meta := map[string]string{}
	for _, pair := range pairs {
		key, value, ok := strings.Cut(pair, "=")
		if _, twice := meta[key]; twice {
			return nil, fmt.Errorf("meta has %s twice: give it once", quote(key))
		}
		why := badMeta(key, value)
		switch {
		case !ok:
			why = "write it as key=value"
		case value == "" && slices.Contains(claimKeys, key):
			why = "it is empty: give it a value, or remove it"
		case strings.HasPrefix(key, checkPrefix), key == "ignore":
			why = "this key is for containers only"
		}
		if why != "" {
			return nil, fmt.Errorf("meta %s: %s", quote(pair), why)
		}
		meta[key] = value
	}
	if most := maxMeta - ownMeta; len(meta) > most {
		return nil, fmt.Errorf("meta has %d pairs, but Consul takes %d: give fewer", len(meta), most)
	}
	return meta, nil
}
