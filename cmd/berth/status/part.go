package status

import (
	"time"

	"berth/templates/claim"
)

// The roles of berths that publish a part.
const (
	RoleRegistrar = "registrar"
	RoleTemplater = "templater"
)

// Part is what one berth publishes under Prefix: what only this berth knows. Healthy things are in the catalog and are omitted here
// as needed to keep a part small.
type Part struct {
	Berth Berth `json:"berth"`

	// From a registrar: its containers, those with reasons first.
	Host       string          `json:"host,omitempty"`
	Containers []PartContainer `json:"containers,omitempty"`

	// From a templater.
	Proxy    *Proxy         `json:"proxy,omitempty"`
	Routes   []PartRoute    `json:"routes,omitempty"`
	LeftOut  []LeftOut      `json:"left_out,omitempty"`
	Servers  []PartServer   `json:"servers,omitempty"`  // those that get no new requests
	Missing  []string       `json:"missing,omitempty"`  // addresses that are rendered and that the proxy does not have
	Services map[string]int `json:"services,omitempty"` // how many servers of each service get new requests
	Waiting  map[string]int `json:"waiting,omitempty"`  // requests that wait, by service

	Events []Event `json:"events,omitempty"` // the last ones, oldest first
	Left   int     `json:"left,omitempty"`   // entries omitted because the part would be too big
}

// PartContainer is a container of a registrar's host.
type PartContainer struct {
	Name      string         `json:"name"`
	ID        string         `json:"id"`
	Service   string         `json:"service,omitempty"` // in the compose file
	Started   time.Time      `json:"started,omitzero"`
	Meant     bool           `json:"meant,omitempty"`
	Instances []PartInstance `json:"instances,omitempty"`
	Reasons   []string       `json:"reasons,omitempty"`
	// Evidence is what its registrar sees of it, one fact per line, if there are reasons.
	Evidence []string `json:"evidence,omitempty"`
}

// PartInstance is an instance that a container registers or should register.
type PartInstance struct {
	Service    string    `json:"service"`
	ID         string    `json:"id"`
	Address    string    `json:"address,omitempty"`
	State      string    `json:"state"` // as berth registrar --dry-run has it
	Reason     string    `json:"reason,omitempty"`
	NoRoute    string    `json:"no_route,omitempty"`
	Ready      time.Time `json:"ready,omitzero"`
	Registered time.Time `json:"registered,omitzero"`
}

// PartRoute is a route that a service asks for, in the texts of one proxy.
type PartRoute struct {
	Host     string `json:"host,omitempty"` // as in claim.Route
	Path     string `json:"path,omitempty"`
	Port     int    `json:"port,omitempty"`
	Service  string `json:"service"`
	Backend  string `json:"backend,omitempty"`
	Strip    bool   `json:"strip,omitempty"`
	Redirect bool   `json:"redirect,omitempty"`
	Lost     string `json:"lost,omitempty"`   // why another service has it
	Holder   string `json:"holder,omitempty"` // that other service
}

// String returns the name of the route.
func (r PartRoute) String() string {
	return claim.Route{Host: r.Host, Path: r.Path, Port: r.Port}.String()
}

// LeftOut is what a templater ignores, and why.
type LeftOut struct {
	Service  string `json:"service,omitempty"` // "" if it is about no service
	Instance string `json:"instance,omitempty"`
	Reason   string `json:"reason"` // the sentence of the log
}

// PartServer is a Server with its address.
type PartServer struct {
	Address string `json:"address"`
	Server
}
