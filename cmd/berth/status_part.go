package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/prometheus/client_golang/prometheus"

	"berth/cmd/berth/status"
	"berth/registrar"
	"berth/registrar/agent"
	"berth/registrar/group/store"
	"berth/templater"
	"berth/templater/catalog"
	"berth/templates"
)

// reporter reports what this berth knows: to its own clients, and through Consul to all other berths.
type reporter struct {
	p       *process
	consul  *api.Client
	hub     *status.Hub
	live    *liveTimes
	started time.Time
	ready   func() error
	failed  prometheus.Counter

	expiries *templates.Expiries // of the proxy's certificates

	registrar *registrar.Registrar // nil = there is none
	docker    string               // its address
	templater *templater.Templater // nil = there is none
	proxy     *proxyReporter       // nil = there is none

	publish []chan struct{} // tells each publisher that something has changed
}

// proxyReporter polls the proxy.
type proxyReporter struct {
	output
	name    string
	changed func()
	wake    chan struct{}

	mu      sync.Mutex
	servers []status.PartServer // as of the last look
	missing []string
	serving map[string]int
	failure error
	failing time.Time
}

// mostEvents is how many events a berth publishes; for its own clients it keeps status.MostEvents.
const mostEvents = 50

// newReporter returns a reporter without any parts.
func (p *process) newReporter() (*reporter, error) {
	consul, err := consulClient(p.config)
	if err != nil {
		return nil, err
	}
	r := &reporter{p: p, consul: consul, hub: status.NewHub(), started: time.Now(), failed: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "berth_status_publish_failures_total", Help: "Attempts to publish in Consul what this berth knows that failed.",
	})}
	p.metrics.MustRegister(r.failed)
	r.hub.Consul, r.hub.Events, r.hub.Own = consul, p.events, r.own
	r.hub.IsOwn = func(role, name string) bool {
		return name == r.name(role) && (role == status.RoleRegistrar && r.registrar != nil || role == status.RoleTemplater && r.templater != nil)
	}
	return r, nil
}

// lookAt sets the output whose proxy is polled.
func (r *reporter) lookAt(o output) {
	r.proxy = &proxyReporter{
		output: o, name: r.name(status.RoleTemplater), changed: r.changed, wake: make(chan struct{}, 1),
	}
	r.hub.Servers, r.hub.Catalog, r.hub.Live = r.proxy.all, r.live.catalog, r.live.since
}

// proxyChanged notes that the proxy may run a new configuration.
func (r *reporter) proxyChanged() {
	if r.proxy != nil {
		r.proxy.soon()
	}
	r.changed()
}

// tasks returns what the reporter does while berth runs.
func (r *reporter) tasks() (out []runner) {
	if r.registrar != nil {
		out = append(out, task(r.publisher(status.RoleRegistrar).Run))
	}
	if r.templater != nil {
		out = append(out, task(r.publisher(status.RoleTemplater).Run))
	}
	if r.proxy != nil {
		out = append(out, task(func(ctx context.Context) { r.proxy.run(ctx, r.live.passing) }))
	}
	r.p.events.Added(r.changed)
	return append(out, task(r.hub.Run))
}

// changed notifies the clients and the other berths that something may have changed.
func (r *reporter) changed() {
	r.hub.Changed()
	for _, c := range r.publish {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// own returns the parts of this berth.
func (r *reporter) own(ctx context.Context) (parts []status.Part) {
	if r.registrar != nil {
		parts = append(parts, r.registrarPart(ctx))
	}
	if r.templater != nil {
		parts = append(parts, r.templaterPart())
	}
	return parts
}

// berth describes this berth in a role.
func (r *reporter) berth(role string) status.Berth {
	b := status.Berth{Role: role, Name: r.name(role), Version: version, Started: r.started, Consul: r.p.config.ConsulAddress}
	if b.Consul == "" {
		b.Consul = api.DefaultConfig().Address
	}
	if role == status.RoleRegistrar {
		b.Docker = r.docker
	}
	if err := r.ready(); err != nil {
		b.Waits = strings.Split(err.Error(), "\n")
	}
	return b
}

// name returns the name of this berth in a role: the host's name, with the port if it is not the default, to distinguish several
// berths on one host.
func (r *reporter) name(role string) string {
	host := hostName()
	if role == status.RoleRegistrar && r.p.config.Owner != "" {
		host += "/" + r.p.config.Owner
	}
	_, port, err := net.SplitHostPort(r.p.config.Listen)
	_, usual, _ := net.SplitHostPort(listenTemplater)
	_, registrars, _ := net.SplitHostPort(listenRegistrar)
	if err == nil && port != usual && port != registrars {
		host += ":" + port
	}
	return host
}

// hostName returns the name of this host.
func hostName() string {
	name, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return name
}

func (r *reporter) registrarPart(ctx context.Context) status.Part {
	part := status.Part{Berth: r.berth(status.RoleRegistrar), Events: r.p.events.Last(mostEvents)}
	report, err := r.registrar.Report(ctx)
	if err != nil {
		part.Berth.Waits = append(part.Berth.Waits, "the registrar does not answer: "+oneLine(err))
		return part
	}
	part.Berth.Host = report.Host
	part.Host, part.Containers = report.Host, status.RegistrarPart(report)
	return part
}

func (r *reporter) templaterPart() status.Part {
	part := status.Part{Berth: r.berth(status.RoleTemplater), Events: r.p.events.Last(mostEvents)}
	if r.registrar != nil {
		part.Events = nil // they are in the other part
	}
	for _, l := range r.templater.LeftOut() {
		part.LeftOut = append(part.LeftOut, status.LeftOut{Service: l.Service, Instance: l.Instance, Reason: l.Reason})
	}
	if r.proxy != nil {
		r.proxy.part(&part, r.p.proxy.common())
		part.Proxy.Template, part.Proxy.Certificates = r.p.config.Template, r.expiries.Count()
	}
	return part
}

// part adds what is known of the proxy.
func (x *proxyReporter) part(part *status.Part, o *proxyOptions) {
	now := x.ctl.Status()
	x.mu.Lock()
	defer x.mu.Unlock()
	p := &status.Proxy{
		Name: x.name, Kind: o.name, Version: o.version.now(), Running: now.Generation, Since: now.Since, By: string(now.Action), Reason: now.Reason,
		OldWorkers: now.OldWorkers, Leaving: now.Leaving, Backends: now.Backends, Servers: now.Servers,
		Failure: now.Failure, Failing: now.Failing, AtFault: now.AtFault, Refusals: now.Refusals, Drifts: now.Drifts,
	}
	if p.Failure == "" && x.failure != nil {
		p.Failure, p.Failing = oneLine(x.failure), x.failing
	}
	part.Proxy, part.Missing, part.Services = p, x.missing, x.serving
	for _, s := range x.servers {
		if !s.Usable {
			s.InFlight = 0 // it changes all the time
			part.Servers = append(part.Servers, s)
		}
	}
	for _, s := range x.ledger.Standing() {
		if s.Backend == p.AtFault {
			p.AtFault = s.Service
		}
		part.Routes = append(part.Routes, status.PartRoute{Host: s.Host, Path: s.Path, Port: s.Port, Service: s.Service, Backend: s.Backend,
			Strip: s.Strip, Redirect: s.Redirect, Lost: s.Lost, Holder: s.Holder})
	}
	part.Waiting = x.waiting.Now()
}

const (
	lookApart = time.Second // minimum time between two polls
	// lookAfter is the delay of a poll after a change: changes come in bursts, when the proxy should not be disturbed.
	lookAfter = 250 * time.Millisecond
	lookRests = 100 // the pause after a poll, in multiples of its duration: polling costs a hundredth of a core
)

// run polls the proxy until ctx is done: soon after each change, and regularly.
func (x *proxyReporter) run(ctx context.Context, passing func() map[string][]string) {
	var wait time.Duration
	for {
		select {
		case <-ctx.Done():
			return
		case <-x.wake:
		case <-time.After(wait):
		}
		if !pause(ctx, lookAfter) {
			return
		}
		select {
		case <-x.wake: // of the same burst
		default:
		}
		began := time.Now()
		x.look(ctx, passing())
		took := time.Since(began)
		wait = max(lookApart, lookRests*took)
		if !pause(ctx, min(lookApart/2, 10*took)) {
			return
		}
	}
}

// look asks the proxy for its servers, and compares them with the expected instances (services by address).
func (x *proxyReporter) look(ctx context.Context, should map[string][]string) {
	limited, cancel := context.WithTimeout(ctx, statusTime)
	list, err := x.output.proxy.Servers(limited)
	cancel()
	if ctx.Err() != nil {
		return
	}
	routed := map[string]bool{}
	for _, s := range x.ledger.Standing() {
		routed[s.Service] = routed[s.Service] || s.Lost == ""
	}
	serving := map[string]int{}
	there := make(map[string]bool, len(list))
	servers := make([]status.PartServer, 0, len(list))
	for _, s := range list {
		address := s.Address.String()
		if !s.Address.IsValid() {
			continue
		}
		servers = append(servers, status.PartServer{Address: address, Server: status.Server{
			Proxy: x.name, Backend: s.Backend, Name: s.Name, Usable: s.Usable, State: s.State, Weight: s.Weight, InFlight: s.InFlight, Check: s.Check,
		}})
		if s.Usable && !there[address] {
			for _, service := range should[address] {
				serving[service]++
			}
		}
		there[address] = true
	}
	var missing []string
	for address, services := range should {
		if !there[address] && slices.ContainsFunc(services, func(s string) bool { return serving[s] > 0 || routed[s] }) {
			missing = append(missing, address)
		}
	}
	slices.Sort(missing)
	slices.SortFunc(servers, func(a, b status.PartServer) int {
		return strings.Compare(a.Address+" "+a.Backend, b.Address+" "+b.Backend)
	})
	x.mu.Lock()
	if err != nil {
		if x.failing.IsZero() {
			x.failing = time.Now()
		}
		if time.Since(x.failing) < 5*time.Second { // it may be reloaded just now
			x.mu.Unlock()
			return
		}
	} else {
		x.failing = time.Time{}
	}
	differs := !reflect.DeepEqual(servers, x.servers) || !slices.Equal(missing, x.missing) || (err == nil) != (x.failure == nil)
	x.servers, x.missing, x.serving, x.failure = servers, missing, serving, err
	x.mu.Unlock()
	if differs {
		x.changed()
	}
}

// soon requests a poll of the proxy.
func (x *proxyReporter) soon() {
	select {
	case x.wake <- struct{}{}:
	default:
	}
}

// all returns the proxy's servers as of the last poll.
func (x *proxyReporter) all() []status.PartServer {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.servers
}

// publisher returns the publisher for the part of a role.
func (r *reporter) publisher(role string) *status.Publisher {
	changed := make(chan struct{}, 1)
	r.publish = append(r.publish, changed)
	return &status.Publisher{
		Consul: r.consul, Role: role, Name: r.name(role), Changed: changed, Failed: r.failed.Inc, Log: r.p.log,
		Part: func(ctx context.Context) (status.Part, error) {
			for _, part := range r.own(ctx) {
				if part.Berth.Role == role {
					return part, nil
				}
			}
			return status.Part{}, fmt.Errorf("no part for the role %s", role)
		},
	}
}

// actions returns the actions that the page offers; nil without an admin token.
func (r *reporter) actions() *actions {
	if r.p.config.AdminTokenFile == "" {
		return nil
	}
	return &actions{tokenFile: r.p.config.AdminTokenFile,
		drain: func(ctx context.Context, instance string, on bool) error {
			if instance == "" {
				return errors.New("no instance is named")
			}
			finder := registrar.Finder{Agent: agent.Agent{Client: r.consul.Agent(), Log: r.p.log}}
			return finder.MaintainInstance(ctx, instance, on, "from the page")
		},
		pause: func(ctx context.Context, service string, on bool) error {
			g := &groupStore{timeout: statusTime, out: io.Discard}
			if err := errors.Join(store.ValidService(service), g.connect(r.p.config)); err != nil {
				return err
			}
			if !on {
				return g.resume(ctx, service)
			}
			return g.pause(ctx, catalog.Pause{Service: service, Max: 30 * time.Second, Reason: "from the page", By: "the page", Since: time.Now().UTC().Truncate(time.Second)})
		},
	}
}
