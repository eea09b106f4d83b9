package label

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"berth/templates/claim"
)

const (
	keyReplace = "replace"
	keySingle  = "single"

	// StartFirst is the value of SERVICE_REPLACE that starts a container before the one it replaces.
	StartFirst = "start-first"
	stopFirst  = "stop-first"

	// Where compose stores a container's project, service and version.
	serviceLabel = "com.docker.compose.service"
	versionLabel = "com.docker.compose.version"

	// ReplaceLabel is set by compose (v2) on a container that it creates to replace another one. The label stays forever.
	ReplaceLabel = "com.docker.compose.replace"
)

// replaceKeys are for containers, not for ports.
var replaceKeys = []string{keyReplace, keySingle}

// temporaryName matches the name that compose gives a replacing container: until the old container is gone, the first twelve
// digits of the old ID precede the name.
var temporaryName = regexp.MustCompile(`^([0-9a-f]{12})_(.+)$`)

// Replaces returns the first digits of the ID of the container that a container created by compose (v2) replaces, and the
// name that it gets afterwards. The digits are "" if it replaces none, or already has.
func Replaces(name string, labels map[string]string) (old, later string) {
	m := temporaryName.FindStringSubmatch(name)
	if _, marked := labels[ReplaceLabel]; !marked || m == nil {
		return "", name
	}
	return m[1], m[2]
}

// AsksToStartFirst reports whether labels ask to start a container before the one it replaces, even if badly.
func AsksToStartFirst(labels map[string]string) bool {
	for name, value := range labels {
		if k := parseKey(name); k.name == keyReplace && k.port == 0 {
			value = unquoted(strings.TrimSpace(value))
			return value != "" && value != stopFirst
		}
	}
	return false
}

// SameService reports whether compose made two containers for the same service of one project.
func (c Container) SameService(other Container) bool {
	same := func(name string) bool { return c.Labels[name] != "" && c.Labels[name] == other.Labels[name] }
	return same(projectLabel) && same(serviceLabel)
}

// besideOld replaces the container's name in default service IDs while both the container and the one it replaces are
// registered. It does not change when the container gets its final name.
func (c Container) besideOld() string {
	_, later := Replaces(c.Name, c.Labels)
	return fmt.Sprintf("%s-%.12s", later, c.ID)
}

// StartsFirst reports whether a container asks to start before the one it replaces, and why it cannot, or "" if it can.
func StartsFirst(c Container, policy []Rule) (asked bool, why string) {
	return startsFirst(c, keysOf(c), policy)
}

func startsFirst(c Container, keys containerKeys, policy []Rule) (asked bool, why string) {
	value := keys.general[keyReplace]
	if value == "" || value == stopFirst {
		return false, ""
	}
	rule, _ := ruleFor(c, policy)
	signal := StopSignal(c, policy)
	switch {
	case value != StartFirst:
		why = fmt.Sprintf("this is not a way to replace a container: use %s or %s", StartFirst, stopFirst)
	case !matches(rule.Keys, keyReplace):
		why = "the policy does not allow it for this container"
	case !AsksToStartFirst(c.Labels):
		why = "it is set in the environment: make it a label"
	case strings.HasPrefix(c.Labels[versionLabel], "1."):
		why = "docker-compose 1.29 stops the old container before it creates the new one: use docker compose (v2)"
	case c.Labels[projectLabel] == "" || c.Labels[serviceLabel] == "":
		why = "only docker compose replaces containers, and it did not create this one"
	case signal == 0 || signal == c.StopSignal:
		why = "the old container must keep serving after Docker's stop signal: set stop_signal: SIGCONT, and the real signal in SERVICE_STOP_SIGNAL"
	case keys.single() != "":
		why = "SERVICE_SINGLE forbids two at the same time"
	case len(c.HostPorts) > 0:
		why = fmt.Sprintf("two containers cannot have the host port %d: publish the proxy's port only, or remove the host port", c.HostPorts[0])
	case c.HostNetwork || c.NetworkOf != "":
		why = "two containers cannot have the same port in one network namespace: give it its own network"
	case slices.ContainsFunc(append(slices.Collect(maps.Values(keys.ports)), keys.general), func(k map[string]string) bool { return k["id"] != "" }):
		why = "two instances cannot have the same SERVICE_ID: remove it"
	}
	return true, why
}

// Single returns the value of SERVICE_SINGLE, which forbids two of a container at the same time, or "" if it is unset.
func Single(c Container) string { return keysOf(c).single() }

func (c containerKeys) single() string {
	if value := c.general[keySingle]; !claim.IsNo(value) {
		return value
	}
	return ""
}

// replacement returns the reasons why SERVICE_REPLACE has no effect.
func (c containerKeys) replacement(of Container, rule Rule, policy []Rule) (problems []string) {
	for _, port := range sortedPorts(c) {
		for _, key := range replaceKeys {
			if c.ports[port][key] != "" {
				problems = append(problems, fmt.Sprintf("%s is ignored: it applies to the whole container; set %s", spelling(port, key), spelling(0, key)))
			}
		}
	}
	if asked, why := startsFirst(of, c, policy); asked && why != "" && matches(rule.Keys, keyReplace) { // otherwise it was already reported
		problems = append(problems, fmt.Sprintf("%s=%s has no effect: %s", spelling(0, keyReplace), quote(c.general[keyReplace]), why))
	}
	if single := c.general[keySingle]; isUnclear(single) {
		problems = append(problems, fmt.Sprintf("%s=%s %s", spelling(0, keySingle), quote(single), neitherYesNorNo))
	}
	return problems
}
