// Package status describes the whole system in one document: how far every container has come on its way to requests, and why no
// further; the routes and instances of every service; what every proxy runs; and what every berth waits for.
//
// A berth knows its own part: a registrar its Docker host, a templater its proxy. Each publishes its part in Consul (Publisher).
// The reader combines the parts with the catalog (Build). Nothing here makes decisions.
package status

import "time"

// Document is the answer of /v1/status and the output of berth status --json. docs/operate/status.md documents it.
type Document struct {
	At         time.Time   `json:"at"`                   // when it was put together
	Services   []Service   `json:"services"`             // by name
	Containers []Container `json:"containers"`           // containers without an instance, by host and name
	Proxies    []Proxy     `json:"proxies"`              // by name
	Berths     []Berth     `json:"berths"`               // by role and name
	Incomplete []string    `json:"incomplete,omitempty"` // what could not be read, and why
}

// Service is a service in Consul's catalog, or one that a container is about to register.
type Service struct {
	Name      string     `json:"name"`
	State     State      `json:"state"`
	Reason    string     `json:"reason,omitempty"` // the most important reason for the state
	Serving   int        `json:"serving"`          // instances that take requests
	Total     int        `json:"total"`            // instances
	Routes    []Route    `json:"routes"`
	LeftOut   []string   `json:"left_out,omitempty"`  // what no proxy has of it, and why
	Paused    string     `json:"paused,omitempty"`    // since when, by whom and why requests for it wait; "" = it is not paused
	Instances []Instance `json:"instances,omitempty"` // omitted if only services are requested
	Waiting   int        `json:"waiting,omitempty"`   // requests that wait for a server
	// Containers are the names of the first containers, if the instances are omitted.
	Containers []string `json:"containers,omitempty"`
}

// State is the state of a service or an instance.
type State string

// The states. A service is as good as its best instance, except for Degraded.
const (
	Serving  State = "serving"  // it takes requests
	Degraded State = "degraded" // of a service: some of its instances do not take requests, others do
	Draining State = "draining" // it takes no new requests, because somebody said so
	Starting State = "starting" // it is not ready yet, and has time left
	Down     State = "down"     // it should take requests and does not
	Unrouted State = "no route" // it is registered without a route: none was requested
	Unknown  State = "unknown"  // no berth reports it
)

// Route is a route that a service asks for.
type Route struct {
	Route    string   `json:"route"`          // www.example.com/path/, */path/ or port 5432
	Host     string   `json:"host,omitempty"` // "" = any, *.example.com = any one label before it
	Path     string   `json:"path,omitempty"` // a prefix, with a slash at its end
	Port     int      `json:"port,omitempty"` // a TCP port; 0 = requests
	Proxy    string   `json:"proxy"`          // the name of the Proxy
	Backend  string   `json:"backend,omitempty"`
	Strip    bool     `json:"strip,omitempty"`    // the path is stripped before a server gets the request
	Redirect bool     `json:"redirect,omitempty"` // a request without TLS is sent to HTTPS
	Lost     string   `json:"lost,omitempty"`     // why another service has it
	Holder   string   `json:"holder,omitempty"`   // that other service
	Losers   []string `json:"losers,omitempty"`   // the services that ask for the same route in vain
}

// Instance is an instance of a service.
type Instance struct {
	ID          string   `json:"id"` // its service ID in Consul
	Node        string   `json:"node,omitempty"`
	Container   string   `json:"container,omitempty"` // its name, or its ID's prefix if no registrar reports it; "" if it is not a container
	ContainerID string   `json:"container_id,omitempty"`
	Address     string   `json:"address"` // host:port at which it is reached
	State       State    `json:"state"`
	Reached     Step     `json:"reached"`          // the last step that it has reached
	Reason      string   `json:"reason,omitempty"` // why it got no further, or another problem, with the remedy
	Times       Times    `json:"times"`
	Servers     []Server `json:"servers,omitempty"`  // as the proxies have it
	Evidence    []string `json:"evidence,omitempty"` // what its registrar sees of its container, if that does not serve
}

// Step is a step on the way from a container to requests.
type Step string

// The steps, in their order.
const (
	StepContainer  Step = "container"
	StepReady      Step = "ready"
	StepRegistered Step = "registered" // in its Consul agent
	StepCatalog    Step = "in the catalog"
	StepRendered   Step = "rendered" // it is in the configuration of a proxy
	StepProxy      Step = "in the proxy"
	StepServing    Step = "taking requests"
)

// Steps are all steps in their order.
var Steps = []Step{StepContainer, StepReady, StepRegistered, StepCatalog, StepRendered, StepProxy, StepServing}

// Times says when an instance reached each step. The zero time means never or unknown.
type Times struct {
	Started    time.Time `json:"started,omitzero"` // the container
	Ready      time.Time `json:"ready,omitzero"`
	Registered time.Time `json:"registered,omitzero"`
	Catalog    time.Time `json:"catalog,omitzero"` // when a templater had it from the catalog
	Live       time.Time `json:"live,omitzero"`    // when its server was in the first proxy
}

// Server is an instance as a proxy has it.
type Server struct {
	Proxy    string `json:"proxy"`
	Backend  string `json:"backend"`
	Name     string `json:"name"`
	Usable   bool   `json:"usable"`          // it gets new requests
	State    string `json:"state,omitempty"` // in the proxy's own words: UP, DOWN, MAINT
	Weight   int    `json:"weight"`          // -1 if the proxy does not say
	InFlight int    `json:"in_flight"`       // -1 if the proxy does not say
	Check    string `json:"check,omitempty"` // what its last check said
}

// Container is a container without an instance.
type Container struct {
	Host     string    `json:"host"` // of Docker
	Name     string    `json:"name"`
	ID       string    `json:"id"`
	Service  string    `json:"service,omitempty"` // that it belongs to in a compose file
	State    State     `json:"state"`
	Reached  Step      `json:"reached"`
	Reasons  []string  `json:"reasons"`
	Started  time.Time `json:"started,omitzero"`
	Meant    bool      `json:"meant"`              // it has SERVICE_* labels or variables
	Evidence []string  `json:"evidence,omitempty"` // what its registrar sees of it
}

// Proxy is a proxy that a templater manages.
type Proxy struct {
	Name         string    `json:"name"` // of the templater's host
	Kind         string    `json:"kind"` // haproxy or nginx
	Version      string    `json:"version,omitempty"`
	Running      string    `json:"running,omitempty"` // the version of the configuration that it runs
	Since        time.Time `json:"since,omitzero"`    // since when
	By           string    `json:"by,omitempty"`      // runtime or reload
	Reason       string    `json:"reason,omitempty"`  // why it took a reload, or what was changed at run time
	OldWorkers   int       `json:"old_workers"`
	Leaving      int       `json:"leaving"`            // servers that were removed and still finish their connections
	Template     string    `json:"template,omitempty"` // the file of its template; "" = the built-in one
	Certificates int       `json:"certificates"`       // for HTTPS, by the built-in template
	Backends     int       `json:"backends"`
	Servers      int       `json:"servers"`
	Failure      string    `json:"failure,omitempty"`  // why it does not run the newest configuration
	Failing      time.Time `json:"failing,omitzero"`   // since when
	AtFault      string    `json:"at_fault,omitempty"` // the service whose text it refuses
	Refusals     int       `json:"refusals"`           // since the start of its berth
	Drifts       int       `json:"drifts"`             // times that it did not run what it was brought to, and was repaired
}

// Berth is a running berth.
type Berth struct {
	Role    string    `json:"role"`           // registrar or templater
	Name    string    `json:"name"`           // of its host; with its owner where a host has several
	Host    string    `json:"host,omitempty"` // of a registrar: the name of the Docker host
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	Consul  string    `json:"consul"`           // the address of its agent
	Docker  string    `json:"docker,omitempty"` // of a registrar
	Waits   []string  `json:"waits,omitempty"`  // why it is not ready
}

// Event is a change, as the log has it.
type Event struct {
	At        time.Time         `json:"at"`
	Role      string            `json:"role,omitempty"` // of the berth
	Berth     string            `json:"berth,omitempty"`
	Level     string            `json:"level"` // INFO, WARN or ERROR
	Message   string            `json:"msg"`
	Service   string            `json:"service,omitempty"`
	Instance  string            `json:"instance,omitempty"`
	Container string            `json:"container,omitempty"`
	Backend   string            `json:"backend,omitempty"`
	Reason    string            `json:"reason,omitempty"`
	More      map[string]string `json:"more,omitempty"` // what else the line has
}
