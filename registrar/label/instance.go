// Package label turns a container, as Docker describes it, into the instances that it registers in Consul, and into
// reasons for what it does not register. It reads Registrator's SERVICE_* environment variables and labels and berth's
// own, under the operator's policy. Everything in it is pure: no I/O, no goroutines.
package label

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Instance is one port of one container as it is to stand in Consul.
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
}

var (
	// What Consul resolves by DNS and consul-template can query by name.
	serviceName = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9_-]*[a-zA-Z0-9])?$`)
	// What goes into a URL path, a server name and a log line without harm.
	serviceID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.:@/-]*$`)
)

const (
	maxName = 63  // DNS label
	maxID   = 200 // HAProxy server name

	maxWeight = 256 // HAProxy's; Consul takes more

	maxPorts   = 256 // a container with more exposes ports that it does not listen on, or means harm
	maxReasons = 20
)

// Instances returns what a container registers, and a reason for each thing it does not. It is a pure function of its
// arguments: the same container always gives the same answer, in whatever order Docker tells it. A container that uses
// another's network has to be resolved by Within first.
func Instances(c Container, h Host) (instances []Instance, reasons []string) {
	keys := keysOf(c)
	rule, reason := ruleFor(c, h.Policy)
	switch {
	case keys.ignoresAll(c.Ports):
		return nil, nil // asked for, so there is nothing to explain
	case reason != "":
		return nil, []string{reason}
	case len(c.Ports) == 0:
		return nil, []string{"it exposes no port: add EXPOSE to the image or publish one"}
	}
	if c.ExtraTagsErr != "" {
		reasons = append(reasons, "the tags of --tags are left out: "+c.ExtraTagsErr)
	}
	if keys.dropped > 0 {
		reasons = append(reasons, fmt.Sprintf("%d of its SERVICE_ keys are left out: %d are taken, as they come in the alphabet", keys.dropped, maxKeys))
	}
	candidates, problems := candidatesOf(c, keys, rule, h)
	reasons = append(reasons, problems...)
	holder := map[string]Port{}
	for _, p := range candidates {
		if keys.ignores(p.Number) {
			continue
		}
		in, problems, err := instance(c, p, rule, h, len(candidates) > 1)
		if other, taken := holder[in.ID]; taken && err == nil {
			problems, err = nil, fmt.Errorf("%s has the service ID %s already: give each port its own (SERVICE_%d_ID)", other, in.ID, p.Number)
		}
		if err == nil {
			holder[in.ID] = p.Port
			instances = append(instances, in)
		} else {
			problems = append(problems, err.Error())
		}
		reasons = append(reasons, prefixed(p.Port, problems)...)
	}
	return instances, truncate(reasons)
}

// prefixed returns reasons with the port that they are about.
func prefixed(p Port, reasons []string) (out []string) {
	for _, reason := range reasons {
		out = append(out, p.String()+": "+reason)
	}
	return out
}

// truncate keeps a container from filling the log: it returns the first reasons, and how many more there are.
func truncate(reasons []string) []string {
	if n := len(reasons) - maxReasons; n > 0 {
		return append(reasons[:maxReasons:maxReasons], fmt.Sprintf("and %d reasons more", n))
	}
	return reasons
}

// candidate is a port that can be reached.
type candidate struct {
	Port
	keys portKeys
	target
}

// candidatesOf returns the ports of a container that can be reached, and the reasons for the others. Ports that are
// ignored count, since they decide about names, but need no reason.
func candidatesOf(c Container, keys containerKeys, rule Rule, h Host) (out []candidate, reasons []string) {
	ports := slices.SortedFunc(slices.Values(c.Ports), Port.Compare)
	if len(ports) > maxPorts {
		reasons = append(reasons, fmt.Sprintf("it has %d ports, and only the first %d are looked at: expose fewer", len(ports), maxPorts))
		ports = ports[:maxPorts]
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

// instance returns the registration of one port, with the problems that it has all the same, or an error if there is to be
// none. several says whether the container has more ports.
func instance(c Container, p candidate, rule Rule, h Host, several bool) (in Instance, problems []string, err error) {
	in = Instance{Address: p.address, Port: p.port, Container: c.ID, Started: c.Started}
	if in.Name, err = nameOf(c, p, several, h); err != nil {
		return in, nil, err
	}
	if !matches(rule.Services, in.Name) {
		return in, nil, fmt.Errorf("the policy does not allow it the service %s", in.Name)
	}
	if in.ID, err = idOf(c, p, h); err != nil {
		return in, nil, err
	}
	in.Checks, problems = checks(c, p.Port, p.keys, in, h)
	if in.Ready, err = readiness(c, p.Port, p.keys.take("ready"), p.probe, in.Checks); err != nil {
		return in, problems, err
	}
	var protocol, more []string
	if p.Protocol != "tcp" {
		protocol = []string{p.Protocol}
	}
	in.Tags, more = validTags(SplitTags(p.keys.take("tags")), c.ExtraTags, protocol)
	problems = append(problems, more...)
	if in.Weight, err = parseWeight(p.keys.take("weight")); err != nil {
		problems = append(problems, err.Error())
	}
	if signal := p.keys.take("stop_signal"); signal != "" {
		if _, err := ParseSignal(signal); err != nil { // it has its effect on the container, see StopSignal
			problems = append(problems, "SERVICE_STOP_SIGNAL is left out: "+err.Error())
		}
	}
	in.Meta, more = p.keys.meta()
	in.Meta[MetaOwner], in.Meta[MetaContainer] = h.EngineID, c.ID
	return in, append(problems, more...), nil
}

// nameOf returns the name of the service: the given one or the image's, followed by the port if there are several and
// the name was not given for this port.
func nameOf(c Container, p candidate, several bool, h Host) (string, error) {
	given := p.keys.isOwn("name")
	name := p.keys.take("name")
	if name == "" {
		if h.Explicit {
			return "", errors.New("it has no SERVICE_NAME, and only what has one is registered (--explicit)")
		}
		given = false
		if name = imageName(c.Image); name == "" {
			return "", fmt.Errorf("image %s has no name to register: set SERVICE_NAME", quote(c.Image))
		}
	}
	if several && !given {
		name += "-" + strconv.Itoa(int(p.Number))
	}
	if !validName(name) {
		return "", fmt.Errorf("%s is no service name: use up to %d letters, digits, - and _ (SERVICE_NAME)", quote(name), maxName)
	}
	return name, nil
}

func validName(name string) bool { return serviceName.MatchString(name) && len(name) <= maxName }

// imageName returns the service name that an image gives: its last part without tag and digest, with - for what DNS does
// not have. An image that is known by its ID only gives none.
func imageName(image string) string {
	if strings.HasPrefix(image, "sha256:") {
		return ""
	}
	name := untagged(image)
	name = name[strings.LastIndexByte(name, '/')+1:]
	return strings.Trim(strings.ReplaceAll(name, ".", "-"), "-_")
}

// idOf returns the ID of the instance: the given one, or the ID that Registrator gives, with Docker's name of the host.
func idOf(c Container, p candidate, h Host) (string, error) {
	id := p.keys.take("id")
	if id == "" {
		id = fmt.Sprintf("%s:%s:%d", h.Name, c.Name, p.Number)
		if p.Protocol != "tcp" {
			id += ":" + p.Protocol
		}
	}
	if !validID(id) {
		return "", fmt.Errorf("%s is no service ID: use up to %d letters, digits and _.:@/- (SERVICE_ID)", quote(id), maxID)
	}
	return id, nil
}

// validID reports whether Consul and the proxies can carry an ID. In a URL a path like a/../b is another one.
func validID(id string) bool {
	return serviceID.MatchString(id) && len(id) <= maxID && path.Clean(id) == id
}

// parseWeight returns 0 for Consul's default.
func parseWeight(s string) (int, error) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > maxWeight {
		return 0, fmt.Errorf("SERVICE_WEIGHT=%s is left out: a weight is a number from 1 to %d", quote(s), maxWeight)
	}
	return n, nil
}

// StopSignal returns the signal in a container's SERVICE_STOP_SIGNAL, or 0 if there is none that the policy allows. The
// signal counts for a container that registers nothing, too: nobody else would send it.
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
