package status

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"berth/registrar"
	"berth/registrar/agent"
	"berth/registrar/label"
	"berth/templates/claim"
)

// Input is the source of a Document.
type Input struct {
	At         time.Time
	Catalog    Catalog              // nil if it could not be read
	Parts      []Part               // of all berths
	Servers    []PartServer         // all servers of this berth's own proxies, in addition to its part
	Paused     map[string]string    // descriptions of paused services, by name
	Live       map[string]time.Time // when a server was first in a proxy, by address, as far as this berth knows
	Incomplete []string
}

// builder puts a document together.
type builder struct {
	in        Input
	doc       Document
	services  map[string]*Service
	instances map[string]*PartInstance  // of registrars, by ID
	of        map[string]*PartContainer // by the ID of an instance
	host      map[string]string         // of Docker, by the ID of an instance
	names     map[string]string         // of containers, by ID
	leftOut   map[string][]string       // by service and instance
	proxies   []*proxyView
}

// proxyView is a proxy's part, indexed for lookups.
type proxyView struct {
	*Part
	servers map[string][]Server // by address: those that get no new requests, or all
	missing map[string]bool     // by address
	routed  map[string]bool     // services that have a route which they did not lose
	lost    map[string]bool     // services that lost a route
}

// Build combines the parts of all berths and the catalog.
func Build(in Input) Document {
	b := &builder{
		in: in, services: map[string]*Service{}, instances: map[string]*PartInstance{}, of: map[string]*PartContainer{},
		host: map[string]string{}, names: map[string]string{}, leftOut: map[string][]string{},
	}
	b.doc = Document{At: in.At, Services: []Service{}, Containers: []Container{}, Proxies: []Proxy{}, Berths: []Berth{}, Incomplete: slices.Clone(in.Incomplete)}
	b.readParts()
	b.readRoutes()
	for name, entries := range in.Catalog {
		s := b.service(name)
		for i := range entries {
			s.Instances = append(s.Instances, b.entry(&entries[i]))
		}
	}
	b.unregistered()
	for _, name := range slices.Sorted(maps.Keys(b.services)) {
		s := b.services[name]
		b.judge(s)
		b.doc.Services = append(b.doc.Services, *s)
	}
	slices.SortFunc(b.doc.Proxies, func(x, y Proxy) int { return cmp.Compare(x.Name, y.Name) })
	slices.SortFunc(b.doc.Berths, func(x, y Berth) int { return cmp.Or(cmp.Compare(x.Role, y.Role), cmp.Compare(x.Name, y.Name)) })
	slices.SortFunc(b.doc.Containers, func(x, y Container) int {
		return cmp.Or(cmp.Compare(x.Host, y.Host), cmp.Compare(x.Name, y.Name), cmp.Compare(x.ID, y.ID))
	})
	if len(b.proxies) == 0 {
		b.doc.Incomplete = append(b.doc.Incomplete, "no templater reports a proxy: check that one runs and that its token may write berth/status/")
	}
	return b.doc
}

func (b *builder) service(name string) *Service {
	s := b.services[name]
	if s == nil {
		s = &Service{Name: name, Routes: []Route{}, Paused: b.in.Paused[name]}
		b.services[name] = s
	}
	return s
}

// readParts reads the parts of the berths.
func (b *builder) readParts() {
	for i := range b.in.Parts {
		p := &b.in.Parts[i]
		b.doc.Berths = append(b.doc.Berths, p.Berth)
		if p.Left > 0 {
			b.doc.Incomplete = append(b.doc.Incomplete, fmt.Sprintf("the report of %s %s is too large for Consul: %d entries are missing", p.Berth.Role, p.Berth.Name, p.Left))
		}
		for n := range p.Containers {
			c := &p.Containers[n]
			b.names[c.ID] = c.Name
			for k := range c.Instances {
				in := &c.Instances[k]
				b.instances[in.ID], b.of[in.ID], b.host[in.ID] = in, c, p.Host
			}
			if len(c.Instances) == 0 {
				b.doc.Containers = append(b.doc.Containers, Container{
					Host: p.Host, Name: c.Name, ID: c.ID, Service: c.Service, State: Down, Reached: StepContainer,
					Reasons: append([]string{}, c.Reasons...), Started: c.Started, Meant: c.Meant, Evidence: c.Evidence,
				})
			}
		}
		b.readLeftOut(p.LeftOut)
		if p.Proxy == nil {
			continue
		}
		v := &proxyView{Part: p, servers: map[string][]Server{}, missing: map[string]bool{}, routed: map[string]bool{}, lost: map[string]bool{}}
		for _, s := range p.Servers {
			v.servers[s.Address] = append(v.servers[s.Address], s.Server)
		}
		for _, address := range p.Missing {
			v.missing[address] = true
		}
		for service, n := range p.Waiting {
			b.service(service).Waiting += n
		}
		b.doc.Proxies = append(b.doc.Proxies, *p.Proxy)
		b.proxies = append(b.proxies, v)
	}
	if own := b.in.Servers; len(own) > 0 {
		for _, v := range b.proxies {
			if v.Proxy.Name == own[0].Proxy {
				v.servers = map[string][]Server{}
				for _, s := range own {
					v.servers[s.Address] = append(v.servers[s.Address], s.Server)
				}
			}
		}
	}
}

// readLeftOut reads what a templater ignores.
func (b *builder) readLeftOut(list []LeftOut) {
	for _, l := range list {
		if l.Service != "" {
			s := b.service(l.Service)
			if !slices.Contains(s.LeftOut, l.Reason) {
				s.LeftOut = append(s.LeftOut, l.Reason)
			}
		} else if !slices.Contains(b.doc.Incomplete, l.Reason) {
			b.doc.Incomplete = append(b.doc.Incomplete, l.Reason)
		}
		if l.Instance != "" {
			b.leftOut[l.Service+" "+l.Instance] = append(b.leftOut[l.Service+" "+l.Instance], l.Reason)
		}
	}
}

// readRoutes reads which service has which routes.
func (b *builder) readRoutes() {
	for _, v := range b.proxies {
		losers := map[string][]string{}
		for _, r := range v.Routes {
			if r.Lost != "" {
				losers[r.String()] = append(losers[r.String()], r.Service)
				v.lost[r.Service] = true
			}
		}
		for _, r := range v.Routes {
			out := Route{Route: r.String(), Host: r.Host, Path: r.Path, Port: r.Port, Proxy: v.Proxy.Name, Backend: r.Backend, Strip: r.Strip, Redirect: r.Redirect, Lost: r.Lost, Holder: r.Holder}
			if r.Lost == "" {
				v.routed[r.Service] = true
				out.Losers = losers[out.Route]
			}
			s := b.service(r.Service)
			s.Routes = append(s.Routes, out)
		}
	}
}

// entry describes an instance in the catalog.
func (b *builder) entry(e *Entry) Instance {
	out := Instance{ID: e.ID, Node: e.Node, Address: e.Address, ContainerID: e.Meta[label.MetaContainer], Reached: StepCatalog}
	out.Times.Started, out.Times.Ready = e.metaTime(label.MetaStarted), e.metaTime(claim.MetaReadyAt)
	out.Times.Live = b.in.Live[e.Address]
	known := b.instances[e.ID]
	if c := b.of[e.ID]; c != nil {
		out.Container, out.Evidence = c.Name, c.Evidence
		out.Times.Registered = known.Registered
	}
	if out.Container == "" && out.ContainerID != "" {
		out.Container = fmt.Sprintf("%.12s", out.ContainerID)
	}
	b.inProxies(e, &out)
	reason, maintained := e.maintenance()
	failing := e.failing()
	switch {
	case maintained:
		out.State, out.Reason = Draining, claim.WithoutStop(strings.TrimPrefix(reason, agent.Automatic))
		out.Reached = notServing(&out)
	case failing != "":
		out.State, out.Reason = Down, "its check in Consul is critical: "+failing
		out.Reached = notServing(&out)
	}
	if known != nil && out.Reason == "" && out.State != Serving {
		out.Reason = cmp.Or(known.Reason, known.NoRoute)
	}
	if known != nil && known.Reason != "" && out.State == Serving {
		out.Reason = known.Reason // as it was before, say
	}
	return out
}

// notServing returns the last step of an instance that should not get requests: the proxy, if one has it.
func notServing(in *Instance) Step {
	if len(in.Servers) > 0 {
		return StepProxy
	}
	return StepCatalog
}

// inProxies determines how far an instance has come in the proxies that should have it.
func (b *builder) inProxies(e *Entry, out *Instance) {
	if reasons := b.leftOut[e.Service+" "+e.ID]; len(reasons) > 0 {
		out.State, out.Reason = Down, strings.Join(reasons, "; ")
	}
	serves, asked := 0, 0
	for _, v := range b.proxies {
		name := v.Proxy.Name
		servers := v.servers[e.Address]
		expected := v.routed[e.Service] && out.Reason == ""
		if v.lost[e.Service] && !v.routed[e.Service] { // its backend may be there, and nothing leads to it
			continue
		}
		if !expected && len(servers) == 0 && v.Services[e.Service] == 0 {
			continue
		}
		asked++
		out.Servers = append(out.Servers, servers...)
		bad, drained := "", false
		for _, s := range servers {
			drained = drained || !s.Usable && s.Weight == 0
			if !s.Usable {
				bad = fmt.Sprintf("%s reports server %s/%s as %s", name, s.Backend, s.Name, cmp.Or(s.State, "not usable"))
				if s.Check != "" {
					bad += ": " + s.Check
				}
			}
		}
		switch {
		case drained:
			b.reach(out, StepProxy, "its weight is 0 (SERVICE_WEIGHT), so it gets no new requests")
			out.State = Draining
		case bad != "":
			b.reach(out, StepProxy, bad)
		case v.missing[e.Address]:
			why := fmt.Sprintf("the proxy of %s does not have it yet", name)
			if v.Proxy.Failure != "" {
				why = fmt.Sprintf("the proxy of %s does not run the newest configuration", name)
				if v.Proxy.AtFault != "" {
					why += fmt.Sprintf(", the part for %s is at fault", v.Proxy.AtFault)
				}
				why += ": " + oneLine(v.Proxy.Failure)
			}
			b.reach(out, StepRendered, why)
		case len(servers) > 0 || v.routed[e.Service] || v.Services[e.Service] > 0:
			serves++
		}
	}
	switch {
	case out.Reason != "" && serves == 0:
		out.State = cmp.Or(out.State, Down)
	case serves > 0 && serves == asked:
		out.State, out.Reached = Serving, StepServing
	case serves > 0: // some proxy does not have it: it takes requests of the others
		out.State, out.Reached = Serving, StepServing
	case len(b.proxies) == 0:
		out.State = Unknown
	default:
		out.State = Unrouted
		for _, v := range b.proxies {
			if v.Proxy.Template != "" && len(v.servers)+len(v.Services) == 0 { // the template may well have it
				out.State, out.Reason = Unknown, fmt.Sprintf("the proxy of %s has a template of its own and does not tell its servers", v.Proxy.Name)
			}
		}
	}
}

// reach records how far an instance has come in one of the proxies, and why no further. The proxy that is furthest behind counts.
func (b *builder) reach(out *Instance, step Step, why string) {
	if out.Reason == "" || slices.Index(Steps, step) < slices.Index(Steps, out.Reached) {
		out.Reached, out.Reason = step, why
	}
	out.State = Down
}

// unregistered adds the instances that registrars report and the catalog lacks.
func (b *builder) unregistered() {
	there := map[string]bool{}
	for _, entries := range b.in.Catalog {
		for i := range entries {
			there[entries[i].ID] = true
		}
	}
	for _, id := range slices.Sorted(maps.Keys(b.instances)) {
		p, c := b.instances[id], b.of[id]
		if there[id] || b.in.Catalog == nil && isRegistered(p.State) {
			continue
		}
		in := Instance{ID: id, Container: c.Name, ContainerID: c.ID, Address: p.Address, Reason: p.Reason, Reached: StepContainer, State: Down, Evidence: c.Evidence}
		in.Times = Times{Started: c.Started, Ready: p.Ready, Registered: p.Registered}
		if !p.Ready.IsZero() {
			in.Reached = StepReady
		}
		switch registrar.State(p.State) {
		case registrar.Waiting, registrar.ToBeRegistered:
			in.State = Starting
		case registrar.Unwanted, registrar.LeftAlone:
			continue // it is about to go
		}
		if isRegistered(p.State) {
			in.Reached = StepRegistered
			in.Reason = cmp.Or(in.Reason, "Consul's catalog does not have it yet")
		}
		s := b.service(p.Service)
		s.Instances = append(s.Instances, in)
	}
}

func isRegistered(state string) bool {
	switch registrar.State(state) {
	case registrar.Registered, registrar.Warning, registrar.Critical, registrar.OutOfService, registrar.ToBeChanged:
		return true
	}
	return false
}

// judge derives the state of a service from its instances.
func (b *builder) judge(s *Service) {
	slices.SortFunc(s.Instances, func(x, y Instance) int { return cmp.Or(cmp.Compare(x.ID, y.ID), cmp.Compare(x.Node, y.Node)) })
	slices.SortFunc(s.Routes, func(x, y Route) int { return cmp.Or(cmp.Compare(x.Route, y.Route), cmp.Compare(x.Proxy, y.Proxy)) })
	slices.Sort(s.LeftOut)
	count := map[State]int{}
	first := map[State]string{}
	for i := range s.Instances {
		in := &s.Instances[i]
		if in.State == Unrouted && len(s.LeftOut) > 0 { // it asks for a route, and does not get it
			in.State, in.Reason = Down, cmp.Or(in.Reason, strings.Join(s.LeftOut, "; "))
		}
		count[in.State]++
		if first[in.State] == "" && in.Reason != "" {
			first[in.State] = in.ID + ": " + in.Reason
		}
	}
	s.Total, s.Serving = len(s.Instances), count[Serving]
	lost := ""
	for _, r := range s.Routes {
		if r.Lost != "" {
			lost = r.Lost
		}
	}
	switch {
	case s.Serving > 0 && count[Down] > 0:
		s.State, s.Reason = Degraded, first[Down]
	case s.Serving > 0:
		s.State = Serving
	case count[Down] > 0:
		s.State, s.Reason = Down, first[Down]
	case count[Starting] > 0:
		s.State, s.Reason = Starting, first[Starting]
	case count[Draining] > 0:
		s.State, s.Reason = Draining, first[Draining]
	case count[Unrouted] > 0:
		s.State, s.Reason = Unrouted, first[Unrouted]
	case count[Unknown] > 0:
		s.State = Unknown
	default:
		s.State, s.Reason = Down, "it has no instances"
	}
	if s.State == Serving && lost != "" {
		s.State = Degraded
	}
	if more := cmp.Or(strings.Join(s.LeftOut, "; "), lost); more != "" && (s.Reason == "" || s.State == Degraded) {
		s.Reason = more
	}
	if s.Reason == "" {
		s.Reason = s.Paused
	}
}
