package label

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"
)

// reapAfter is how long an instance stays registered as critical after its berth was killed: long enough to be noticed.
const reapAfter = 10 * time.Minute

// Process describes an instance that is a plain process, not a container's port. Name, Host, Port and TTL are required.
type Process struct {
	Host    string        // this host's name, for the default ID
	Name    string        // of the service
	Port    int           // TCP port on which the process listens
	ID      string        // of the instance; "" = <host>:<name>:<port>
	Address string        // IP address on which it listens; "" = 127.0.0.1, and in Consul the node's address
	Tags    string        // separated by commas, as in SERVICE_TAGS
	Meta    []string      // key=value
	Weight  int           // 1 to 256; 0 = 1
	Ready   string        // as SERVICE_READY, without healthcheck; "" = tcp
	TTL     time.Duration // Consul makes it critical if berth is silent for longer; at least 1 s
}

// Target returns the host:port at which the process itself is probed.
func (p Process) Target() string {
	return net.JoinHostPort(cmp.Or(p.Address, loopback), strconv.Itoa(p.Port))
}

// Instance returns the instance that the process registers, without its owner, or an error naming the flag of the invalid
// option.
func (p Process) Instance() (Instance, error) {
	p.ID = cmp.Or(p.ID, fmt.Sprintf("%s:%s:%d", p.Host, p.Name, p.Port))
	if err := p.validate(); err != nil {
		return Instance{}, err
	}
	check := ttlCheck("berth service", p.TTL)
	check.Definition.DeregisterCriticalServiceAfter = reapAfter.String()
	in := Instance{ID: p.ID, Name: p.Name, Address: p.Address, Port: p.Port, Weight: p.Weight, Checks: []Check{check}, Inside: uint16(p.Port), Protocol: "tcp"}
	var problems []string
	if in.Tags, problems = validTags(SplitTags(p.Tags)); len(problems) > 0 {
		return Instance{}, fmt.Errorf("tags: %s", problems[0])
	}
	var err error
	if in.Meta, err = parseMeta(p.Meta); err != nil {
		return Instance{}, err
	}
	// Treat it as one port of a container without a HEALTHCHECK.
	in.Ready, err = readiness(Container{}, Port{Number: uint16(p.Port), Protocol: "tcp"}, p.Ready, p.Target(), nil)
	if err != nil || p.Ready == "healthcheck" {
		return Instance{}, fmt.Errorf("ready must be tcp, http:/path, https:/path or none, not %s", quote(p.Ready))
	}
	return in, nil
}

func (p Process) validate() error {
	switch {
	case p.Name == "":
		return errors.New("name is missing: name the service of this instance, as in --name www")
	case !validName(p.Name):
		return fmt.Errorf("name must be up to %d letters, digits, -, _ and dots, not %s", maxName, quote(p.Name))
	case p.Port == 0:
		return errors.New("port is missing: give the port that the command listens on, as in --port 20001")
	case p.Port < 1 || p.Port > 65535:
		return fmt.Errorf("port must be a number from 1 to 65535, not %d", p.Port)
	case !validID(p.ID):
		return fmt.Errorf("id must be up to %d letters, digits and _.:@/-, not %s", maxID, quote(p.ID))
	case p.Address != "" && !connectable(parseAddress(p.Address)):
		return fmt.Errorf("address must be an IP address at which HAProxy reaches this host, not %s", quote(p.Address))
	case p.Weight < 0 || p.Weight > maxWeight:
		return fmt.Errorf("weight must be a number from 0 (no new requests) to %d, not %d", maxWeight, p.Weight)
	case p.TTL < minInterval:
		return fmt.Errorf("ttl must be %v or more, not %v", minInterval, p.TTL)
	}
	return nil
}
