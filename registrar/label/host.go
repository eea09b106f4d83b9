package label

import (
	"net/netip"
	"time"
)

// Host is what all containers of a Docker host share.
type Host struct {
	Name        string       // Docker's name of the host, the first part of default service IDs
	EngineID    string       // owner of the registrations
	NodeAddress string       // of the Consul agent's node; "" = unknown
	Addresses   []netip.Addr // further addresses of the node
	Networks    []string     // on which load balancers reach containers, in order of preference

	Internal       bool          // containers are reached at their own address on any network
	Explicit       bool          // only containers with a SERVICE_NAME are registered
	IP             string        // registered for published ports and the host network; "" = the node's
	Scripts        bool          // containers may declare checks that the Consul agent runs as programs
	TTL            time.Duration // of a check on every instance that shows Consul whether the registrar is alive; 0 = none
	PublishSecrets bool          // labels with secret-looking keys also become metadata
	Policy         []Rule        // which containers may register what; empty = everything is allowed
}
