package label

import (
	"net/netip"
	"time"
)

// Host is what all containers of a Docker host have in common.
type Host struct {
	Name        string       // Docker's name of the host, first part of default service IDs
	EngineID    string       // owner of the registrations
	NodeAddress string       // of the Consul agent's node; "" = not known
	Addresses   []netip.Addr // further ones of the node
	Networks    []string     // networks that load balancers reach containers on, in order of preference

	Internal       bool          // containers are reached at their own address on any network
	Explicit       bool          // only what has a SERVICE_NAME is registered
	IP             string        // registered for published ports and the host's network; "" = what the node has
	Scripts        bool          // containers may declare checks that the Consul agent runs as programs
	TTL            time.Duration // of a check on every instance, by which Consul notices that its registrar is gone; 0 = none
	PublishSecrets bool          // labels whose keys look like a secret become metadata, too
	Policy         []Rule        // which containers may register what; empty = all may everything
}
