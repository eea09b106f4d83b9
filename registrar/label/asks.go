package label

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// secretive matches names of labels and variables whose values nobody shows.
var secretive = regexp.MustCompile(`(?i)TOKEN|SECRET|PASS|CREDENTIAL|KEY|AUTH|HEADER`)

// mostAsked and mostAskedValue bound what is shown of a container.
const mostAsked, mostAskedValue = 100, 200

// Asks returns the SERVICE_* labels of a container, and the variables whose keys berth knows, as they are written. A label goes before a
// variable, long values are cut, and those that may be secret are left away.
func (c Container) Asks() map[string]string {
	out := map[string]string{}
	add := func(name, value string) {
		switch {
		case len(out) >= mostAsked:
			return
		case secretive.MatchString(name):
			value = "(not shown)"
		case len(value) > mostAskedValue:
			value = strings.ToValidUTF8(value[:mostAskedValue], "") + "…"
		}
		out[name] = value
	}
	for _, kv := range c.Env {
		if name, value, _ := strings.Cut(kv, "="); isKnown(parseKey(name).name) {
			add(name, value)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Labels)) {
		if parseKey(name).name != "" {
			add(name, c.Labels[name])
		}
	}
	return out
}

// NetworkAddresses returns the networks that the container is on, each with its addresses: "front 172.18.0.5".
func (c Container) NetworkAddresses() (out []string) {
	if c.HostNetwork {
		return []string{"the host's"}
	}
	for _, name := range c.networkNames() {
		line := name
		for _, address := range c.Networks[name] {
			line += fmt.Sprintf(" %s", address)
		}
		out = append(out, line)
	}
	return out
}
