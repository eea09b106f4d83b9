package label

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strings"

	"berth/templates/claim"
)

// Rule says what some containers may register. The first rule that matches a container decides. If there are rules and none
// matches, the container registers nothing. In every list one match is enough, and an empty list matches everything.
//
// Patterns are those of path.Match: * stands for any characters but /, ? for one, [a-z] for one of these. Image names,
// projects and labels are chosen by whoever starts a container.
type Rule struct {
	// Image is matched with the name that the container was created from, as given, and with that name without tag and
	// digest: "registry.example/team/*" matches "registry.example/team/shop:v2", and so does its full name.
	Image []string `mapstructure:"image"`
	// Project is matched with the name of the compose project.
	Project []string `mapstructure:"project"`
	// Label is matched with the container's labels, "key=value", or "key" for any value. Here * also stands for /.
	Label []string `mapstructure:"label"`

	// Services are the names that may be registered, in their final form, with a port's suffix.
	Services []string `mapstructure:"services"`
	// Keys are the SERVICE_* keys that count, in lower case without prefix and port: "tags", "check_*", "route_*".
	// SERVICE_IGNORE and SERVICE_SINGLE always count.
	Keys []string `mapstructure:"keys"`
	// Addresses are IP addresses and networks, "203.0.113.7" or "203.0.113.0/24", that SERVICE_ADDRESS may name in addition
	// to the container's and the host's own. Unlike the lists above, an empty one allows none. Loopback and link-local
	// addresses need an entry that begins with one: 0.0.0.0/0 does not allow 127.0.0.1.
	Addresses []string `mapstructure:"addresses"`
}

// projectLabel is where compose writes the name of a container's project.
const projectLabel = "com.docker.compose.project"

// ValidatePolicy returns an error naming the first pattern that can never match.
func ValidatePolicy(rules []Rule) error {
	for i, r := range rules {
		for _, list := range []struct {
			name     string
			patterns []string
		}{
			{"image", r.Image}, {"project", r.Project}, {"label", r.Label}, {"services", r.Services}, {"keys", r.Keys},
		} {
			for _, p := range list.patterns {
				if err := validPattern(list.name, p); err != nil {
					return fmt.Errorf("rule %d: %s %q: %w", i+1, list.name, p, err)
				}
			}
		}
		for _, a := range r.Addresses {
			if _, err := parseNetwork(a); err != nil {
				return fmt.Errorf("rule %d: addresses %q: %w", i+1, a, err)
			}
		}
	}
	return nil
}

// parseNetwork parses an entry of Rule.Addresses.
func parseNetwork(s string) (netip.Prefix, error) {
	network, err := netip.ParsePrefix(s)
	if err != nil {
		if a, _ := netip.ParseAddr(s); a.Zone() == "" { // the zero Addr makes no valid Prefix
			network = netip.PrefixFrom(a, a.BitLen())
		}
	}
	first := network.Masked().Addr()
	switch {
	case !network.IsValid():
		return network, errors.New("write an IP address, or a network like 203.0.113.0/24")
	case first.Is4In6():
		return network, errors.New("this is IPv4 written as IPv6: write it as IPv4, like 203.0.113.0/24")
	case first != network.Addr():
		return network, fmt.Errorf("this is an address within %s: write that network, or the address without the prefix length", network.Masked())
	case first.IsMulticast() || network.IsSingleIP() && first.IsUnspecified():
		return network, errors.New("clients cannot connect to such an address: remove it")
	}
	return network, nil
}

// allowsAddress reports whether the rule allows an address in SERVICE_ADDRESS.
func (r Rule) allowsAddress(a netip.Addr) bool {
	return slices.ContainsFunc(r.Addresses, func(s string) bool {
		network, err := parseNetwork(s)
		return err == nil && network.Contains(a) && (local(network.Addr()) || !local(a))
	})
}

func validPattern(list, pattern string) error {
	key, value, _ := strings.Cut(pattern, "=")
	if list != "label" {
		key, value = pattern, ""
	}
	for _, p := range []string{key, value} {
		if _, err := path.Match(p, ""); err != nil {
			return fmt.Errorf("%w: put a backslash before a [, ?, * or \\ that stands for itself", err)
		}
	}
	switch {
	case pattern == "":
		return errors.New("an empty pattern matches nothing: omit the list to match anything")
	case list == "keys" && strings.HasPrefix(strings.ToLower(pattern), strings.ToLower(keyPrefix)):
		return fmt.Errorf("write the key without %s", keyPrefix)
	case list == "keys" && pattern != strings.ToLower(pattern):
		return errors.New("keys are compared in lower case")
	}
	return nil
}

// ruleFor returns the rule for a container. reason says why the container may register nothing.
func ruleFor(c Container, policy []Rule) (rule Rule, reason string) {
	if len(policy) == 0 {
		return Rule{}, ""
	}
	n := slices.IndexFunc(policy, func(r Rule) bool { return r.fits(c) })
	if n < 0 {
		return Rule{}, "no rule of the policy matches it: add one for its image, project or labels"
	}
	return policy[n], ""
}

func (r Rule) fits(c Container) bool {
	return matches(r.Image, c.Image, untagged(c.Image)) && matches(r.Project, c.Labels[projectLabel]) &&
		(len(r.Label) == 0 || slices.ContainsFunc(r.Label, func(pattern string) bool { return hasLabel(c, pattern) }))
}

// restrict deletes the keys that the rule does not allow, and returns a reason for them. What that costs is recorded in keys.
func (r Rule) restrict(keys *portKeys) (problems []string) {
	var left []string
	for _, key := range slices.Sorted(maps.Keys(keys.values)) {
		if key == "ignore" || key == keySingle || matches(r.Keys, key) {
			continue
		}
		value := keys.take(key)
		m := checkKey.FindStringSubmatch(key)
		switch {
		case key == keyGroup && value != "" && value != "default":
			keys.noGroup = fmt.Sprintf("the policy does not allow %s for this container, and without it the container would join another group", keys.spelling(key))
			continue // reported with the name
		case costsRoute(key):
			keys.loseRoute("the policy does not allow %s for this container", keys.spelling(key))
		case m != nil && slices.Contains(checkKinds, m[2]) && value != "" && !claim.IsNo(unquoted(value)):
			keys.noCheck = append(keys.noCheck, keys.spelling(key))
			continue // reported with the check
		}
		left = append(left, key)
	}
	if len(left) > 0 {
		problems = append(problems, keys.someOf(left)+" is ignored: the policy does not allow it for this container")
	}
	return problems
}

// hasLabel reports whether the container has a matching label.
func hasLabel(c Container, pattern string) bool {
	key, value, valued := strings.Cut(pattern, "=")
	for k, v := range c.Labels {
		if matchAcrossSlashes(key, k) && (!valued || matchAcrossSlashes(value, v)) {
			return true
		}
	}
	return false
}

// matchAcrossSlashes is path.Match for text in which a slash is an ordinary character.
func matchAcrossSlashes(pattern, s string) bool {
	const stroke = "\x00"
	ok, _ := path.Match(strings.ReplaceAll(pattern, "/", stroke), strings.ReplaceAll(s, "/", stroke))
	return ok
}

// matches reports whether a pattern matches one of the names, or there are no patterns.
func matches(patterns []string, names ...string) bool {
	fits := func(pattern string) bool {
		return slices.ContainsFunc(names, func(name string) bool { ok, _ := path.Match(pattern, name); return ok })
	}
	return len(patterns) == 0 || slices.ContainsFunc(patterns, fits)
}

// untagged returns the name of an image without tag and digest. A colon before a slash belongs to a registry's port.
func untagged(image string) string {
	image, _, _ = strings.Cut(image, "@")
	slash := strings.LastIndexByte(image, '/') + 1
	name, _, _ := strings.Cut(image[slash:], ":")
	return image[:slash] + name
}
