package registrar

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/registrar/agent"
	"berth/registrar/label"
)

const (
	// reread is how often Consul is read without a reason to.
	reread = 10 * time.Second

	// together is how long a write waits for others, so that one read confirms them all.
	together = 50 * time.Millisecond

	// watched is how often Consul is read while something waits for checks to pass.
	watched = 250 * time.Millisecond

	// settles is how long an agent may take to pass a change on to the catalog.
	settles = 3 * time.Second

	// patience is how long the first registrations wait until all containers are inspected. If several want one service ID,
	// the oldest gets it. A container that has moved stays registered at its old address for as long.
	patience = time.Second
)

// plan lists what to do now and what to report.
type plan struct {
	waiting map[*probe]label.Ready // instances to probe until they are ready; all other probes end
	signals []*tracked             // containers due for their real stop signal
	calls   []planned              // calls to make

	rejections []rejection
	registers  map[string]bool // containers with an instance that is, or will be, registered
	routed     map[*tracked]routed
	members    []*instance // the instance that represents its container in the group
	granted    []granted   // wishes that are settled
	handovers  []handover
	orphans    []string // service IDs of another Docker engine with this host's name
	instances  int      // registered, or about to be
	unready    int      // instances that are not ready but have time left
	known      bool     // Docker and Consul have answered every question
	complete   bool     // and nothing is left to do
	docker     error    // calls that keep failing
	consul     error
	next       time.Time // when to plan again without news
}

// planned describes a call to make.
type planned struct {
	key
	change agent.Change
	token  string // hash of the token used for change, as far as is known
	beat   agent.Heartbeat
	view   agent.View // of the catalog
}

// rejection says why a port of a container is not registered.
type rejection struct{ container, reason string }

// planner computes a plan from a state, which it does not change.
type planner struct {
	*state
	plan     plan
	now      time.Time
	allKnown bool              // all existing containers were inspected
	allTried bool              // or inspecting them failed
	desired  map[string]bool   // service IDs that are, or will be, registered
	holding  map[*tracked]bool // containers whose old registrations stay until the new ones exist

	instances []*instance
}

// plan computes what to do. It starts nothing and changes nothing.
func (s *state) plan(now time.Time) plan { return s.planner(now).plan }

func (s *state) planner(now time.Time) *planner {
	p := &planner{state: s, now: now, allKnown: s.known(false), allTried: s.known(true), desired: map[string]bool{}, holding: map[*tracked]bool{}}
	p.plan.waiting = map[*probe]label.Ready{}
	p.drains()
	p.questions()
	p.instances, p.plan.rejections = s.all()
	p.plan.registers = map[string]bool{}
	for _, i := range p.instances {
		p.plan.registers[i.desired.Container] = true
	}
	p.route()
	for _, i := range p.instances {
		p.instance(i)
	}
	if s.described.got > 0 { // otherwise the registrar cannot tell which registrations are its own
		for _, id := range slices.Sorted(maps.Keys(s.consul)) {
			p.registered(s.consul[id])
		}
	}
	p.members()
	p.handovers()
	p.reads()
	return p
}

// due reports whether a time has come. If not, the loop plans again at that time.
func (p *planner) due(t time.Time) bool {
	if !t.After(p.now) {
		return true
	}
	if p.plan.next.IsZero() || t.Before(p.plan.next) {
		p.plan.next = t
	}
	return false
}

// drains plans the signals to containers that were told to stop.
func (p *planner) drains() {
	for _, t := range p.containers {
		d := t.drain
		if d == nil {
			continue
		}
		p.due(d.until)
		if d.signal != 0 && p.due(d.at) {
			p.plan.signals = append(p.plan.signals, t)
		}
	}
}

// call plans a call unless it is running, unconfirmed, backing off after a failure, or not allowed yet.
func (p *planner) call(c planned) {
	last := p.last(c.key)
	switch c.kind {
	case describing, listing, inspecting, judging, launching:
		p.plan.docker = errors.Join(p.plan.docker, last.err)
	case comparing, publishing: // not needed
	default:
		p.plan.consul = errors.Join(p.plan.consul, last.err)
	}
	if !last.busy && last.applied.Empty() && p.due(last.retry) && p.open(c.key) {
		p.plan.calls = append(p.plan.calls, c)
	}
}

// questions plans the calls to Docker.
func (p *planner) questions() {
	if p.described.stale() {
		p.call(planned{key: key{kind: describing}})
	}
	// A new event stream causes a list. Without a new stream the list comes a little later.
	if p.listed.stale() || (!p.listedAt.IsZero() && p.due(p.listedAt.Add(p.opts.Resync*5/4))) {
		p.call(planned{key: key{kind: listing}})
	}
	for _, id := range slices.Sorted(maps.Keys(p.containers)) {
		if p.containers[id].seen.stale() {
			p.call(planned{key: key{kind: inspecting, id: id}})
		}
	}
}

// reads plans when to read Consul: now and then, and soon after a change. It also records how complete everything is.
func (p *planner) reads() {
	writing := slices.ContainsFunc(p.plan.calls, func(c planned) bool { return c.writes() })
	busy := len(p.plan.calls) > 0
	for k, c := range p.calls {
		writing = writing || (c.busy && k.writes())
		busy = busy || (c.busy && k.kind != beating && k.kind != comparing) || !c.applied.Empty()
	}
	read := p.read.stale() || p.due(p.readAt.Add(reread)) || p.watching() && p.due(p.readAt.Add(watched))
	for _, c := range p.calls {
		switch {
		case c.applied.Empty():
		case writing:
			read = p.due(c.succeeded.Add(together)) || read
		default:
			read = true
		}
	}
	if read {
		p.call(planned{key: key{kind: reading}})
	}
	// Consul delays its answer until something changes, except for a node that it does not know.
	if p.opts.Catalog != nil && p.answers() && (p.catalog.There || p.due(p.last(key{kind: comparing}).succeeded.Add(time.Second))) {
		p.call(planned{key: key{kind: comparing}, view: p.catalog})
	}
	p.plan.known = p.open(key{kind: changing}) && p.allKnown
	p.plan.complete = p.plan.known && !busy && !read
}

// all returns the instances of the known containers, and the reasons why others are not registered.
func (s *state) all() (instances []*instance, rejections []rejection) {
	for _, t := range s.sorted() {
		instances = append(instances, t.instances...)
		for _, reason := range t.reasons {
			rejections = append(rejections, rejection{t.id, reason})
		}
	}
	instances, more := unique(instances, s.consul, s.own)
	return instances, append(rejections, more...)
}

// unique drops instances whose ID belongs to another container, and says why. The ID belongs to the registered container, or
// else to the oldest one; instances are sorted by the age of their container.
func unique(all []*instance, have agent.State, own agent.Ownership) (kept []*instance, rejections []rejection) {
	holder := map[string]*instance{}
	for _, i := range all {
		in := &i.desired.Instance
		if _, taken := holder[in.ID]; !taken || have[in.ID].Serves(*in) {
			holder[in.ID] = i
		}
	}
	for _, i := range all {
		in, h, s := &i.desired.Instance, holder[i.desired.ID].desired, have[i.desired.ID]
		switch {
		case s.Held() && !own.MayTake(s.AgentService, *in):
			rejections = append(rejections, rejection{in.Container, fmt.Sprintf("service ID %s is held by a registration that is not berth's on this host: choose another SERVICE_ID or deregister it", in.ID)})
		case h.Container != in.Container || h.Port != in.Port:
			rejections = append(rejections, rejection{in.Container, fmt.Sprintf("service ID %s is held by container %.12s: choose another SERVICE_ID", in.ID, h.Container)})
		default:
			kept = append(kept, i)
		}
	}
	return kept, rejections
}

// instance plans the changes and heartbeats of an instance.
func (p *planner) instance(i *instance) {
	d, t := p.chosen(i), p.containers[i.desired.Container]
	d.Health, d.Output = t.Health, t.HealthOutput
	have := p.consul[d.ID]
	ours := have.Container() == t.id
	if ours {
		p.heartbeats(d, have)
	}
	if t.adopt {
		return
	}
	if reason := t.outOfService(); reason != "" {
		if ours {
			p.plan.instances++
		}
		if a := p.last(key{kind: changing, id: d.ID}).applied; a.Resume || (a.Register && !have.Held()) {
			d.Drain = reason // it went into service just now, and Consul has not been read since
			p.change(agent.Change{Desired: d, Maintain: true})
		}
		if m := t.member; m.changes() && !m.dead && t.drain == nil && !i.ready { // it must be ready before it returns to service
			p.plan.waiting[i.probe] = i.desired.Ready
		}
		return
	}
	if !i.ready {
		p.plan.waiting[i.probe] = i.desired.Ready
	}
	d.NotReady = p.notReady(i, t)
	switch {
	case d.NotReady == tooEarly:
		p.plan.unready++
		p.holding[t] = true
		return
	case d.NotReady != "" && ours && t.begun(have) && have.WasReady() && !have.Serves(d.Instance) && p.has(t, have):
		p.plan.rejections = append(p.plan.rejections, rejection{t.id, fmt.Sprintf("%s stays at %s and does not move to %s: it is not ready there: %s",
			d.ID, endpoint(have.Address, have.Port), endpoint(d.Address, d.Port), d.NotReady)})
		p.plan.instances++
		p.holding[t] = true
		return
	}
	d.Waited = p.opts.ReadyTimeout
	if i.ready {
		d.ReadyAt = i.readyAt
	}
	p.desired[d.ID] = true
	c := agent.Diff(d, have)
	if p.entries[d.ID].token != p.token && p.token != "" {
		c.Register = true // the agent keeps using the token of the registration, which may be deleted
	}
	if in, refused := p.refused[d.ID]; refused && reflect.DeepEqual(in.Instance, d.Instance) {
		c.Register, c.Uncheck = false, nil
		p.holding[t] = p.holding[t] || !have.Held()
	} else {
		p.plan.instances++
	}
	if !p.entries[d.ID].readyAt.Equal(d.ReadyAt) {
		c.Since = d.ReadyAt
	}
	p.holding[t] = p.holding[t] || c.Register
	p.change(c)
	if c.Empty() {
		p.publish(d.ID)
	}
}

// publish plans to write an instance into the catalog if the agent holds it and the catalog lacks it. An agent that has just
// been told will do so itself.
func (p *planner) publish(id string) {
	e := p.entries[id]
	lacks := !p.catalog.Services[id] && p.due(e.registered.Add(settles))
	if p.catalog.Known() && p.last(key{kind: comparing}).err == nil && (lacks || e.stale) && p.due(e.published.Add(settles)) {
		p.call(planned{key: key{publishing, id, ""}, view: p.catalog})
	}
}

// endpoint formats an address and port for an operator.
func endpoint(address string, port int) string {
	return net.JoinHostPort(cmp.Or(address, "<node>"), strconv.Itoa(port))
}

// tooEarly stands for a reason while an instance still has time to become ready.
const tooEarly = "too early to say"

// notReady says why an instance is not ready in time, or returns "" if it is ready.
func (p *planner) notReady(i *instance, t *tracked) string {
	if i.ready {
		return ""
	}
	switch {
	case i.desired.Ready.Kind != label.ReadyHealthcheck:
		if other := p.containers[t.NetworkOf]; other != nil && i.late != "" && other.renewed(t.Started) {
			return fmt.Sprintf("%s; container %s, whose network it uses, was started after it: restart this one", i.late, other.Name)
		}
		return cmp.Or(i.late, tooEarly)
	case t.Health == "unhealthy":
		return "Docker's HEALTHCHECK says unhealthy: " + cmp.Or(t.HealthOutput, "no output")
	case p.due(i.since.Add(p.opts.ReadyTimeout)):
		return "Docker's HEALTHCHECK does not say healthy: " + cmp.Or(t.HealthOutput, t.Health)
	}
	return tooEarly
}

// heartbeats plans the due heartbeats of an instance.
func (p *planner) heartbeats(d agent.Desired, have agent.Registered) {
	for _, h := range d.Heartbeats(have, "the container runs") {
		if k := (key{beating, d.ID, h.Check}); p.due(h.Due(have, p.last(k).succeeded)) {
			p.call(planned{key: k, beat: h})
		}
	}
}

// registered plans for a registration in Consul whose container may be out of service or gone.
func (p *planner) registered(have agent.Registered) {
	id, t := have.ID, p.containers[have.Container()]
	switch {
	case !p.own.Owns(have.AgentService):
		if t == nil && p.isOrphan(have.AgentService) {
			p.plan.orphans = append(p.plan.orphans, id)
		}
	case t != nil && t.outOfService() != "":
		d := have.Desired()
		d.Drain = t.outOfService()
		p.change(agent.Diff(d, have))
	case p.desired[id]:
	case t != nil && (t.adopt || (t.seen.stale() && (t.inspected() || !p.hasEnded(t.id))) || (t.begun(have) && p.holding[t] && p.reaches(have, t))):
	case have.Container() == "" && (!p.allKnown || p.awaits(have)): // a registration by Registrator may belong to any container
	default:
		p.change(agent.Change{Desired: have.Desired(), Deregister: true})
	}
}

// hasEnded reports whether a container has ended since the last list.
func (p *planner) hasEnded(id string) bool { _, ended := p.ended[id]; return ended }

// nameOf returns the name of a container that runs or has ended since the last list, or "".
func (p *planner) nameOf(id string) string {
	if t := p.containers[id]; t != nil {
		return t.Name
	}
	return p.ended[id]
}

// awaits reports whether a registration by Registrator stays until a container is registered: the one named in its ID, or
// one that registers the same service.
func (p *planner) awaits(have agent.Registered) bool {
	parts := strings.Split(have.ID, ":")
	for t, holding := range p.holding {
		if holding && ((len(parts) > 1 && parts[1] == t.Name) || slices.ContainsFunc(t.instances, func(i *instance) bool { return i.desired.Name == have.Service })) {
			return true
		}
	}
	return false
}

// reaches reports whether a registration still leads to its container. A container that has just moved to an address where
// it is not ready yet gets a little time, so that its registration only changes.
func (p *planner) reaches(have agent.Registered, t *tracked) bool {
	return p.has(t, have) || !p.due(t.moved.Add(patience))
}

// isOrphan reports whether a registration looks like this host's, made before its Docker engine got another ID.
func (p *planner) isOrphan(s *api.AgentService) bool {
	owner, _, _ := strings.Cut(s.Meta[label.MetaOwner], "/")
	engine, _, _ := strings.Cut(p.own.Owner, "/")
	return p.allKnown && owner != engine && s.Meta[label.MetaContainer] != "" && strings.HasPrefix(s.ID, p.host.Name+":")
}

// change plans a change of an instance unless it is empty.
func (p *planner) change(c agent.Change) {
	k := key{kind: changing, id: c.ID}
	if c.Maintain {
		k.kind = draining
	}
	if (c.Deregister || (c.Register && p.consul[c.ID].Held())) && !p.due(p.disputes.from(c.ID)) {
		return
	}
	if !c.Empty() {
		c.Of = p.nameOf(c.Container)
		p.call(planned{key: k, change: c, token: p.token})
	}
}

// answers reports whether Consul answered the last read.
func (p *planner) answers() bool { return p.consul != nil && p.last(key{kind: reading}).err == nil }

// open reports whether a call may be made. Registrations wait until enough is known. A drain does not wait, except after a
// failure: then it waits until Consul answers.
func (p *planner) open(k key) bool {
	switch {
	case k.kind == draining:
		return p.answers() || p.calls[k] == nil
	case k.kind == publishing:
		last := p.last(key{kind: changing, id: k.id})
		return !last.busy && last.applied.Empty()
	case k.kind == changing && p.last(key{kind: publishing, id: k.id}).busy: // a late answer would undo a deregistration
		return false
	case k.kind != changing:
		return true
	case p.firstAt.IsZero() || p.described.got == 0 || !p.answers():
		return false
	case p.described.got < p.gate && p.last(key{kind: describing}).ended < p.gate:
		return false
	}
	return p.allTried || p.due(p.firstAt.Add(patience))
}
