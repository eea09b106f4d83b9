package label

import (
	"fmt"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Metadata that berth writes with every registration. Owner and container decide whose it is.
const (
	ownPrefix     = "berth-"
	MetaOwner     = ownPrefix + "owner"     // Docker engine ID of the host whose registrar made the registration
	MetaContainer = ownPrefix + "container" // full container ID
	MetaChecks    = ownPrefix + "checks"    // fingerprint of the instance's checks, which the agent package writes

	ownMeta = 3 // how many pairs these are
)

// Host is what is the same for all containers of a Docker host.
type Host struct {
	Name        string       // Docker's name of the host, first part of default service IDs
	EngineID    string       // owner of the registrations
	NodeAddress string       // of the Consul agent's node; "" = not known
	Addresses   []netip.Addr // further ones of the node
	Networks    []string     // networks that load balancers reach containers on, in order of preference

	Internal bool          // containers are reached at their own address on any network
	Explicit bool          // only what has a SERVICE_NAME is registered
	IP       string        // registered for published ports and the host's network; "" = what the node has
	Scripts  bool          // containers may declare checks that the Consul agent runs as programs
	TTL      time.Duration // of a check on every instance, by which Consul notices that its registrar is gone; 0 = none
	Policy   []Rule        // which containers may register what; empty = all may everything
}

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

	// A container with more than that exposes ports it does not listen on, or means harm.
	maxPorts   = 256
	maxKeys    = 256 // that apply to one port
	maxReasons = 20
)

func validName(name string) bool { return serviceName.MatchString(name) && len(name) <= maxName }

// validID says whether Consul and the proxies can carry an ID. In a URL a path like a/../b is another one.
func validID(id string) bool {
	return serviceID.MatchString(id) && len(id) <= maxID && path.Clean(id) == id
}

// Instances says what a container registers, and gives a reason for each thing it does not. It is a pure function of
// its arguments: the same container always gives the same answer, in whatever order Docker tells it. A container that
// uses another's network has to be resolved by Within.
func Instances(c Container, h Host) (instances []Instance, reasons []string) {
	l := labelsOf(c)
	rule, reason := ruleFor(c, h.Policy)
	switch {
	case l.ignoresAll(c.Ports):
		return nil, nil // asked for, so there is nothing to explain
	case reason != "":
		return nil, []string{reason}
	case len(c.Ports) == 0:
		return nil, []string{"it exposes no port: add EXPOSE to the image or publish one"}
	}
	if c.ExtraTagsErr != "" {
		reasons = append(reasons, "the tags of --tags are left out: "+c.ExtraTagsErr)
	}
	if l.dropped > 0 {
		reasons = append(reasons, fmt.Sprintf("%d of its SERVICE_ keys are left out: %d are taken, as they come in the alphabet", l.dropped, maxKeys))
	}
	candidates, problems := candidatesOf(c, l, rule, h)
	reasons = append(reasons, problems...)
	holder := map[string]Port{}
	for _, p := range candidates {
		if l.ignores(p.Number) {
			continue
		}
		in, why := instance(c, p, rule, h, len(candidates) > 1)
		if in != nil {
			if other, taken := holder[in.ID]; taken {
				in, why = nil, []string{fmt.Sprintf("%s has the service ID %s already: give each port its own (SERVICE_%d_ID)", other, in.ID, p.Number)}
			} else {
				holder[in.ID] = p.Port
				instances = append(instances, *in)
			}
		}
		for _, reason := range why {
			reasons = append(reasons, p.Port.String()+": "+reason)
		}
	}
	return instances, fewer(reasons)
}

// fewer keeps a container from filling the log: the first reasons, and how many more there are.
func fewer(reasons []string) []string {
	if n := len(reasons) - maxReasons; n > 0 {
		return append(reasons[:maxReasons:maxReasons], fmt.Sprintf("and %d reasons more", n))
	}
	return reasons
}

// candidate is a port that can be reached.
type candidate struct {
	Port
	settings settings
	at       target
}

// candidatesOf are the ports of a container that can be reached, and the reasons for those that cannot.
func candidatesOf(c Container, l labels, rule Rule, h Host) (out []candidate, reasons []string) {
	ports := slices.SortedFunc(slices.Values(c.Ports), Port.Compare)
	if len(ports) > maxPorts {
		reasons = append(reasons, fmt.Sprintf("it has %d ports, and only the first %d are looked at: expose fewer", len(ports), maxPorts))
		ports = ports[:maxPorts]
	}
	for _, p := range ports {
		s := l.of(p.Number)
		problems := rule.restrict(s)
		at, reason := locate(c, p, s, rule, h)
		if reason == "" {
			out = append(out, candidate{p, s, at})
		} else {
			problems = append(problems, reason)
		}
		if l.ignores(p.Number) {
			continue
		}
		for _, problem := range problems {
			reasons = append(reasons, p.String()+": "+problem)
		}
	}
	return out, reasons
}

// instance is the registration of one port, nil if there is to be none. several says whether the container has more.
func instance(c Container, p candidate, rule Rule, h Host, several bool) (*Instance, []string) {
	s := p.settings
	in := Instance{Address: p.at.address, Port: p.at.port, Container: c.ID, Started: c.Started}
	var err error
	if in.Name, err = nameOf(c, p, several, h); err != nil {
		return nil, []string{err.Error()}
	}
	if !rule.allows(in.Name) {
		return nil, []string{fmt.Sprintf("the policy does not allow it the service %s", in.Name)}
	}
	if in.ID, err = idOf(c, p, h); err != nil {
		return nil, []string{err.Error()}
	}
	var problems, more []string
	in.Checks, problems = checks(c, p.Port, s, in, h)
	if in.Ready, err = readiness(c, p.Port, s.take("ready"), p.at.probe, in.Checks); err != nil {
		return nil, append(problems, err.Error())
	}

	protocol := []string{p.Protocol}
	if p.Protocol == "tcp" {
		protocol = nil
	}
	in.Tags, more = tags(SplitTags(s.take("tags")), c.ExtraTags, protocol)
	problems = append(problems, more...)

	if in.Weight, err = weight(s.take("weight")); err != nil {
		problems = append(problems, err.Error())
	}
	if signal := s.take("stop_signal"); signal != "" {
		if _, err := ParseSignal(signal); err != nil { // its effect is on the container, see StopSignal
			problems = append(problems, "SERVICE_STOP_SIGNAL is left out: "+err.Error())
		}
	}
	in.Meta, more = s.meta()
	in.Meta[MetaOwner], in.Meta[MetaContainer] = h.EngineID, c.ID
	return &in, append(problems, more...)
}

// nameOf is the name of the service: the given one or that of the image, followed by the port if there are several and
// it is not given for this port.
func nameOf(c Container, p candidate, several bool, h Host) (string, error) {
	given := p.settings.has("name")
	name := p.settings.take("name")
	if name == "" {
		if h.Explicit {
			return "", fmt.Errorf("it has no SERVICE_NAME, and only what has one is registered (--explicit)")
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

// imageName is the service name that an image gives: its last part without tag and digest, with - for what DNS does not
// have. An image that is named by its ID only gives none.
func imageName(image string) string {
	if strings.HasPrefix(image, "sha256:") {
		return ""
	}
	name := untagged(image)
	name = name[strings.LastIndexByte(name, '/')+1:]
	return strings.Trim(strings.ReplaceAll(name, ".", "-"), "-_")
}

// idOf is the ID of the instance: the given one, or that which Registrator gives, where the host has Docker's name.
func idOf(c Container, p candidate, h Host) (string, error) {
	id := p.settings.take("id")
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

// weight is 0 for Consul's default.
func weight(s string) (int, error) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > maxWeight {
		return 0, fmt.Errorf("SERVICE_WEIGHT=%s is left out: a weight is a number from 1 to %d", quote(s), maxWeight)
	}
	return n, nil
}

// StopSignal returns the signal in a container's SERVICE_STOP_SIGNAL, or 0 if there is none that the policy allows. It
// counts for a container that registers nothing, too: nobody else would send it.
func StopSignal(c Container, policy []Rule) int {
	rule, reason := ruleFor(c, policy)
	s := settingsFor(c, 0)
	rule.restrict(s)
	n, err := ParseSignal(s.values["stop_signal"])
	if err != nil || reason != "" {
		return 0
	}
	return n
}
