package label

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Group says which of its service's group settings a container uses, and how. The zero Group uses nothing. Groups are
// comparable.
type Group struct {
	Config   string // path in the container of the file for the applied text; "" = none
	OnChange Reaction
	Files    string // path in the container of the directory for the service's files; "" = none
	OnFile   Reaction
	Strategy string // "rolling", "at-once" or "none", unless the operator names one; "" = the container is not changed
	Leader   bool   // its first instance is a candidate for the lead
	Priority int    // among the candidates
}

// Reaction says how a container reacts when a file of its group has changed. The zero Reaction does nothing.
type Reaction struct {
	Restart bool
	Signal  int // 0 = none
}

const (
	keyGroup    = "group"
	keyConfig   = "config"
	keyFiles    = "files"
	keyStrategy = "config_strategy"
	keyTopology = "topology"
	keyPriority = "leader_priority"
	keyOnChange = "config_on_change"
	keyOnFile   = "on_file"
)

var (
	// partKeys select the parts of its group that a container uses, and settingKeys say how. They apply to containers, not
	// to ports.
	partKeys    = []string{keyConfig, keyFiles, keyTopology}
	settingKeys = []string{keyOnChange, keyStrategy, keyOnFile, keyPriority}

	strategies = []string{"rolling", "at-once", "none"}

	// groupName is what `berth config apply app.prod` accepts after the dot.
	groupName = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9_-]*$`)
)

func isGroupKey(key string) bool {
	return slices.Contains(partKeys, key) || slices.Contains(settingKeys, key)
}

// inGroup returns the name in Consul of a service's group.
func (k *portKeys) inGroup(name string) (string, error) {
	group := k.take(keyGroup)
	switch {
	case k.noGroup != "":
		return "", errors.New(k.noGroup)
	case group == "" || group == "default":
		return name, nil
	case !groupName.MatchString(group):
		return "", fmt.Errorf("%s=%s is not a group name: use letters, digits, - and _", k.spelling(keyGroup), quote(group))
	}
	return name + "-" + group, nil
}

// groupOf returns the group settings that a container uses, and reasons for those it does not. A part is used whole or not
// at all: a bad value may have been meant to protect the container from a restart.
func groupOf(c Container, keys containerKeys, rule Rule) (g Group, problems []string) {
	for _, port := range sortedPorts(keys) {
		for _, key := range slices.Concat(partKeys, settingKeys) {
			if keys.ports[port][key] != "" {
				problems = append(problems, fmt.Sprintf("%s is ignored: it applies to the whole container; set %s", spelling(port, key), spelling(0, key)))
			}
		}
	}
	values := map[string]string{}
	for _, key := range slices.Concat(partKeys, settingKeys) {
		value := keys.general[key]
		switch {
		case value == "":
		case matches(rule.Keys, key):
			values[key] = value
		case slices.Contains(settingKeys, key):
			return Group{}, append(problems, fmt.Sprintf("it does not take part in its group: the policy does not allow %s for this container", spelling(0, key)))
		}
	}
	g, err := parseGroup(c, values)
	if err != nil {
		return Group{}, append(problems, "it does not take part in its group: "+err.Error())
	}
	for key, part := range map[string]string{keyOnChange: keyConfig, keyOnFile: keyFiles, keyPriority: keyTopology} {
		if values[key] != "" && values[part] == "" {
			problems = append(problems, fmt.Sprintf("%s has no effect without %s", spelling(0, key), spelling(0, part)))
		}
	}
	slices.Sort(problems)
	return g, problems
}

func sortedPorts(keys containerKeys) (ports []uint16) {
	for port := range keys.ports {
		ports = append(ports, port)
	}
	slices.Sort(ports)
	return ports
}

func parseGroup(c Container, values map[string]string) (g Group, err error) {
	g.Config, g.Files = values[keyConfig], strings.TrimSuffix(values[keyFiles], "/")
	for _, p := range []struct{ key, path string }{{keyConfig, g.Config}, {keyFiles, g.Files}} {
		if values[p.key] != "" && (!isPlain(p.path) || !path.IsAbs(p.path) || path.Clean(p.path) != p.path || p.path == "/") {
			return g, fmt.Errorf("%s=%s is not an absolute path, or has a part like .. or //", spelling(0, p.key), quote(values[p.key]))
		}
	}
	if g.Config != "" && path.Dir(g.Config) == g.Files {
		return g, fmt.Errorf("%s is in the directory of %s, where a file with that name would replace it: choose another directory", spelling(0, keyConfig), spelling(0, keyFiles))
	}
	if g.OnChange, err = parseReaction(c, keyOnChange, values[keyOnChange], Reaction{Restart: true}); err != nil {
		return g, err
	}
	if g.OnFile, err = parseReaction(c, keyOnFile, values[keyOnFile], g.OnChange); err != nil {
		return g, err
	}
	if g.Config == "" {
		g.OnChange = Reaction{}
	}
	if g.Files == "" {
		g.OnFile = Reaction{}
	}
	switch g.Strategy = values[keyStrategy]; {
	case g.Strategy == "" && g.Config+g.Files != "":
		g.Strategy = strategies[0]
	case g.Strategy != "" && !slices.Contains(strategies, g.Strategy):
		return g, fmt.Errorf("%s=%s is not a strategy: use %s", spelling(0, keyStrategy), quote(g.Strategy), strings.Join(strategies, ", "))
	}
	switch topology := values[keyTopology]; topology {
	case "":
	case "leader":
		g.Leader = true
	default:
		return g, fmt.Errorf("%s=%s is not a topology: use leader, or remove it", spelling(0, keyTopology), quote(topology))
	}
	if s := values[keyPriority]; s != "" {
		if g.Priority, err = strconv.Atoi(s); err != nil {
			return g, fmt.Errorf("%s=%s is not a number", spelling(0, keyPriority), quote(s))
		}
	}
	return g, nil
}

// AsksForFiles reports whether labels ask for a group's configuration or files, even if badly.
func AsksForFiles(labels map[string]string) bool {
	for name := range labels {
		if k := parseKey(name); k.name == keyConfig || k.name == keyFiles {
			return true
		}
	}
	return false
}

func parseReaction(c Container, key, s string, otherwise Reaction) (Reaction, error) {
	switch strings.ToLower(s) {
	case "":
		return otherwise, nil
	case "restart":
		return Reaction{Restart: true}, nil
	case "none":
		return Reaction{}, nil
	}
	n, err := ParseSignal(s)
	switch {
	case err != nil:
		return Reaction{}, fmt.Errorf("%s=%s is not known: use restart, none, or a signal like HUP", spelling(0, key), quote(s))
	case n == sigkill || n == c.StopSignal:
		return Reaction{}, fmt.Errorf("%s=%s ends the container: use restart", spelling(0, key), quote(s))
	}
	return Reaction{Signal: n}, nil
}

const sigkill = 9

// String describes the settings in the words of the labels, or returns "" if there are none.
func (g Group) String() string {
	var parts []string
	if g.Config != "" {
		parts = append(parts, fmt.Sprintf("configuration in %s (%s)", g.Config, g.OnChange))
	}
	if g.Files != "" {
		parts = append(parts, fmt.Sprintf("files in %s (%s)", g.Files, g.OnFile))
	}
	if g.Strategy != "" {
		parts = append(parts, "strategy "+g.Strategy)
	}
	if g.Leader {
		parts = append(parts, fmt.Sprintf("topology leader, priority %d", g.Priority))
	}
	return strings.Join(parts, ", ")
}

// String returns the reaction as in a label.
func (r Reaction) String() string {
	switch {
	case r.Restart:
		return "restart"
	case r.Signal != 0:
		return strings.TrimPrefix(SignalName(r.Signal), "SIG")
	}
	return "none"
}
