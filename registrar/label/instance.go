// Package label turns a container, as described by Docker, into the instances that it registers in Consul, and into reasons
// for what it does not register. It reads Registrator's SERVICE_* environment variables and labels and berth's own, subject
// to the operator's policy. The package is pure: no I/O, no goroutines.
package label

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth/templates/claim"
)

// Instance is one port of one container as it will be in Consul.
type Instance struct {
	ID, Name  string
	Tags      []string
	Meta      map[string]string
	Address   string // "" = the address of the Consul node
	Port      int
	Weight    int // 0 = Consul's default, 1
	Checks    []Check
	Container string // full container ID
	Started   time.Time
	Ready     Ready

	Inside   uint16 // the port within the container
	Protocol string // "tcp", "udp" or "sctp"

	// RouteChoice is 0 unless several ports of a container could have the route asked for on the whole container
	// (SERVICE_ROUTE_HOST). Only one of them gets it: 1 is the first choice. All others are registered WithoutRoutes.
	RouteChoice int

	Group Group // of its container
}

var (
	// Safe in a URL path, a configuration and a log line.
	serviceName = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9_.-]*$`)
	// Safe in a URL path, a server name and a log line.
	serviceID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.:@/-]*$`)
)

const (
	maxName    = 200
	maxDNSName = 63  // DNS label
	maxID      = 200 // HAProxy server name

	maxWeight = 256 // HAProxy's; Consul takes more

	maxPorts   = 256 // a container with more exposes ports that it does not use, or is hostile
	maxReasons = 20
)

// Instances returns what a container registers, and a reason for each thing that it does not. It is a pure function of its
// arguments: the same container always gives the same answer, in whatever order Docker lists its parts. A container that
// uses another's network must be resolved by Within first.
func Instances(c Container, h Host) (instances []Instance, reasons []string) {
	keys := keysOf(c)
	c.Ports = c.withNamedPorts(keys)
	rule, reason := ruleFor(c, h.Policy)
	if asked, why := startsFirst(c, keys, h.Policy); asked && why == "" {
		c.Name = c.besideOld()
	}
	switch {
	case keys.ignoresAll(c.Ports):
		return nil, keys.ignoredAgainstTheWord() // the other ports are ignored on purpose
	case c.isOneOff() && !(claim.IsYes(keys.general["oneoff"]) && matches(rule.Keys, "oneoff")):
		return nil, []string{"it is a one-off container of docker-compose run: set SERVICE_ONEOFF=true to register it"}
	case reason != "":
		return nil, []string{reason}
	case len(c.Ports) == 0:
		return nil, []string{"it exposes no port: add EXPOSE to the image, publish one, or set SERVICE_<port>_NAME"}
	}
	reasons = slices.Concat(keys.problems, keys.ignoredAgainstTheWord(), keys.empty(), keys.idle(c.Ports))
	if !h.PublishSecrets {
		reasons = append(reasons, keys.withhold()...)
	}
	if word := keys.general["oneoff"]; isUnclear(word) {
		reasons = append(reasons, fmt.Sprintf("SERVICE_ONEOFF=%s %s", quote(word), neitherYesNorNo))
	}
	if c.ExtraTagsErr != "" {
		reasons = append(reasons, "the tags of --tags are ignored: "+c.ExtraTagsErr)
	}
	if keys.dropped > 0 {
		reasons = append(reasons, fmt.Sprintf("%d of its SERVICE_ keys are ignored: at most %d are used, metadata last", keys.dropped, maxKeys))
	}
	candidates, problems := candidatesOf(c, keys, rule, h)
	reasons = append(reasons, problems...)
	holder := map[string]Port{}
	for _, p := range candidates {
		if keys.ignores(p.Number) {
			continue
		}
		in, problems, err := instance(c, p, rule, h, severalFor(p, candidates))
		if other, taken := holder[in.ID]; taken && err == nil {
			problems, err = nil, fmt.Errorf("%s already has the service ID %s: give each port its own (SERVICE_%d_ID)", other, in.ID, p.Number)
		}
		if err == nil {
			holder[in.ID] = p.Port
			instances = append(instances, in)
		} else {
			problems = append(problems, err.Error())
		}
		reasons = append(reasons, prefixed(p.Port, problems)...)
	}
	reasons = append(reasons, chooseRoutes(instances, keys)...)
	reasons = append(reasons, joinGroup(instances, c, keys, rule)...)
	reasons = append(reasons, keys.replacement(c, rule, h.Policy)...)
	return instances, truncate(reasons)
}

// joinGroup sets the group settings of a container's instances. The group is that of the first instance's service.
func joinGroup(instances []Instance, c Container, keys containerKeys, rule Rule) (problems []string) {
	g, problems := groupOf(c, keys, rule)
	for i := range instances {
		instances[i].Group = g
	}
	if g != (Group{}) && slices.ContainsFunc(instances, func(in Instance) bool { return in.Name != instances[0].Name }) {
		problems = append(problems, fmt.Sprintf("it takes part only in the group of %s, the service of its lowest port", instances[0].Name))
	}
	return problems
}

// severalFor reports whether a port shares its container's name with others. A port named only by a label does not change
// the names of other ports.
func severalFor(p candidate, all []candidate) bool {
	return slices.ContainsFunc(all, func(q candidate) bool { return q.Port.Compare(p.Port) != 0 && (p.ByLabel || !q.ByLabel) })
}

// prefixed prefixes reasons with their port.
func prefixed(p Port, reasons []string) (out []string) {
	for _, reason := range reasons {
		out = append(out, p.String()+": "+reason)
	}
	return out
}

// truncate keeps a container from filling the log: it returns the first reasons, and the number of the others.
func truncate(reasons []string) []string {
	if n := len(reasons) - maxReasons; n > 0 {
		return append(reasons[:maxReasons:maxReasons], fmt.Sprintf("and %d more reasons", n))
	}
	return reasons
}

// candidate is a reachable port.
type candidate struct {
	Port
	keys *portKeys
	target
}

// candidatesOf returns the reachable ports of a container, and the reasons for the others. Ignored ports count, because they
// affect names, but need no reason.
func candidatesOf(c Container, keys containerKeys, rule Rule, h Host) (out []candidate, reasons []string) {
	ports := slices.SortedFunc(slices.Values(c.Ports), Port.Compare)
	if len(ports) > maxPorts {
		reasons = append(reasons, fmt.Sprintf("it has %d ports, and only the first %d are used: expose fewer", len(ports), maxPorts))
		slices.SortStableFunc(ports, func(p, q Port) int { // ports with their own keys come first
			return -cmp.Compare(len(keys.ports[p.Number]), len(keys.ports[q.Number]))
		})
		ports = slices.SortedFunc(slices.Values(ports[:maxPorts]), Port.Compare)
	}
	for _, p := range ports {
		own := keys.forPort(p.Number)
		problems := rule.restrict(own)
		at, reason := locate(c, p, own, rule, h)
		if reason == "" {
			out = append(out, candidate{p, own, at})
		} else {
			problems = append(problems, reason)
		}
		if !keys.ignores(p.Number) {
			reasons = append(reasons, prefixed(p, problems)...)
		}
	}
	return out, reasons
}

// instance returns the registration of one port with its problems, or an error if it cannot be registered. several says
// whether the container has more ports.
func instance(c Container, p candidate, rule Rule, h Host, several bool) (in Instance, problems []string, err error) {
	in = Instance{Address: p.address, Port: p.port, Container: c.ID, Started: c.Started, Inside: p.Number, Protocol: p.Protocol}
	if in.Name, err = nameOf(c, p, several, h); err != nil {
		return in, nil, err
	}
	if !matches(rule.Services, in.Name) {
		return in, nil, fmt.Errorf("the policy does not allow it to register the service %s", in.Name)
	}
	if in.ID, err = idOf(c, p, h); err != nil {
		return in, nil, err
	}
	problems = append(problems, undiscoverable(in.Name)...)
	ready := p.keys.take("ready")
	var more, protocol []string
	in.Checks, more = checks(c, p.Port, p.keys, in, ready, h)
	problems = append(problems, more...)
	if in.Ready, err = readiness(c, p.Port, ready, p.probe, in.Checks); err != nil {
		return in, problems, err
	}
	if p.Protocol != "tcp" {
		protocol = []string{p.Protocol}
	}
	in.Tags, more = validTags(SplitTags(p.keys.take("tags")), c.ExtraTags, protocol)
	problems = append(problems, more...)
	if signal := p.keys.take("stop_signal"); signal != "" {
		if _, err := ParseSignal(signal); err != nil { // it applies to the container, see StopSignal
			problems = append(problems, "SERVICE_STOP_SIGNAL is ignored: "+err.Error())
		}
	}
	weight := p.keys.take("weight")
	in.Weight, more = p.keys.weight(weight)
	problems = append(problems, more...)
	asked := p.keys.firstClaim()
	loop := p.keys.loop(in, h)
	if asked != "" && loop != "" {
		p.keys.loseRoute("%s", loop)
	}
	in.Meta, more = p.keys.routeMeta()
	problems = append(problems, more...)
	if loop != "" {
		in.Meta = unrouted(in.Meta, loop)
	}
	if isNoWeight(weight) {
		in.Meta[claim.KeyWeight] = "0"
	}
	rest, more := p.keys.meta(len(in.Meta))
	problems = append(problems, more...)
	maps.Copy(in.Meta, rest)
	switch {
	case p.Protocol == "tcp" && (asked != "" || p.keys.noRoute != ""):
		problems = append(problems, in.judge(p.keys.near)...)
	case asked != "" && (p.keys.isOwn(asked) || !c.exposesAny("tcp")) && !c.exposes(p.Number, "tcp"):
		problems = append(problems, p.keys.spelling(asked)+" is not routed: the proxy accepts TCP only")
	}
	in.Meta[MetaOwner], in.Meta[MetaContainer] = h.EngineID, c.ID
	return in, problems, nil
}

// nameOf returns the service name: the given or the image's name, followed by the port if the container has several and the
// name was not given for this port.
func nameOf(c Container, p candidate, several bool, h Host) (string, error) {
	given := p.keys.isOwn("name")
	name := p.keys.take("name")
	if name == "" {
		if h.Explicit {
			return "", errors.New("it has no SERVICE_NAME, which --explicit requires")
		}
		given = false
		if name = imageName(c.Image); name == "" {
			return "", fmt.Errorf("no service name can be derived from image %s: set SERVICE_NAME", quote(c.Image))
		}
	}
	if several && !given {
		name += "-" + strconv.Itoa(int(p.Number))
	}
	name, err := p.keys.inGroup(name)
	if err != nil {
		return "", err
	}
	if !validName(name) {
		return "", fmt.Errorf("%s is not a service name: use up to %d letters, digits, -, _ and dots (SERVICE_NAME)", quote(name), maxName)
	}
	return name, nil
}

func validName(name string) bool { return serviceName.MatchString(name) && len(name) <= maxName }

// undiscoverable warns of a name that Consul registers but does not resolve by DNS. Consul resolves underscores, whatever
// its log says.
func undiscoverable(name string) []string {
	if !strings.Contains(name, ".") && len(name) <= maxDNSName {
		return nil
	}
	return []string{fmt.Sprintf("Consul's DNS does not answer for the service name %s: to use it, choose up to %d letters, digits, - and _ (SERVICE_NAME)", quote(name), maxDNSName)}
}

// imageName derives a service name from an image: the last part without tag and digest, with - for characters that DNS
// lacks. An image known only by its ID gives no name.
func imageName(image string) string {
	if strings.HasPrefix(image, "sha256:") {
		return ""
	}
	name := untagged(image)
	name = name[strings.LastIndexByte(name, '/')+1:]
	return strings.Trim(strings.ReplaceAll(name, ".", "-"), "-_")
}

// idOf returns the ID of the instance: the given one, or the ID that Registrator would use, with Docker's name of the host.
func idOf(c Container, p candidate, h Host) (string, error) {
	id := p.keys.take("id")
	if id == "" {
		id = fmt.Sprintf("%s:%s:%d", h.Name, c.Name, p.Number)
		if p.Protocol != "tcp" {
			id += ":" + p.Protocol
		}
	}
	if !validID(id) {
		return "", fmt.Errorf("%s is not a service ID: use up to %d letters, digits and _.:@/- (SERVICE_ID)", quote(id), maxID)
	}
	return id, nil
}

// validID reports whether Consul and the proxies can handle an ID. In a URL, a path like a/../b would mean another ID.
func validID(id string) bool {
	return serviceID.MatchString(id) && len(id) <= maxID && path.Clean(id) == id
}

// isNoWeight reports whether a weight means no new requests. Consul's own weights begin at 1.
func isNoWeight(s string) bool {
	n, err := strconv.Atoi(s)
	return claim.IsNo(s) || (err == nil && n == 0)
}

// weight returns the weight of the instance, or 0 for Consul's default. A bad weight costs the route, because it may have
// been meant to stop requests.
func (k *portKeys) weight(s string) (weight int, problems []string) {
	n, err := strconv.Atoi(s)
	switch {
	case s == "" || isNoWeight(s):
		return 0, nil
	case err != nil || n < 0:
		k.loseRoute("%s=%s is not a weight: use a number from 0 (no new requests) to %d", k.spelling("weight"), quote(s), maxWeight)
		return 0, nil
	case n > maxWeight:
		return maxWeight, []string{fmt.Sprintf("%s=%s counts as %d, the maximum", k.spelling("weight"), quote(s), maxWeight)}
	}
	return n, nil
}

// firstClaim returns the first key that asks for a route, or "".
func (k *portKeys) firstClaim() string {
	for _, key := range claimKeys {
		if _, asked := k.values[key]; asked {
			return key
		}
	}
	return ""
}

// StopSignal returns the signal in a container's SERVICE_STOP_SIGNAL, or 0 if it has none that the policy allows.
func StopSignal(c Container, policy []Rule) int {
	rule, reason := ruleFor(c, policy)
	keys := keysOf(c).forPort(0)
	rule.restrict(keys)
	n, err := ParseSignal(keys.values["stop_signal"])
	if err != nil || reason != "" {
		return 0
	}
	return n
}
