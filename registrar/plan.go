package registrar

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/registrar/agent"
	"berth/registrar/label"
)

const (
	// reread is how often Consul is read without a reason.
	reread = 10 * time.Second

	// together is how long a write waits for other writes, to be confirmed by one read.
	together = 50 * time.Millisecond

	// patience is how long the first registrations wait until all containers are inspected: if several want one service
	// ID, the oldest gets it.
	patience = time.Second
)

// plan lists what to do now and what to report.
type plan struct {
	waiting map[*probe]label.Ready // probes of instances that are not ready; all others end
	signals []*tracked             // containers due for the signal of their drain
	calls   []planned              // calls to make

	rejections []rejection
	orphans    []string // service IDs of another Docker engine with this host's name
	instances  int      // registered, or about to be
	unready    int      // instances that are not ready but have time left
	known      bool     // Docker and Consul have answered everything
	complete   bool     // and nothing is left to do
	docker     error    // calls that keep failing
	consul     error
	next       time.Time // when to plan again even if nothing happens
}

// planned describes a call to make.
type planned struct {
	key
	change agent.Change
	beat   agent.Heartbeat
}

// rejection says why a port of a container is not registered.
type rejection struct{ container, reason string }

// planner works out a plan from a state, which it does not change.
type planner struct {
	*state
	plan     plan
	now      time.Time
	allKnown bool              // all existing containers were inspected
	allTried bool              // or failed to be inspected
	desired  map[string]bool   // service IDs that stand or are to stand
	holding  map[*tracked]bool // containers whose old registrations stay until the new ones are made
}

// plan works out what to do. It starts nothing and changes nothing.
func (s *state) plan(now time.Time) plan {
	p := &planner{state: s, now: now, allKnown: s.known(false), allTried: s.known(true), desired: map[string]bool{}, holding: map[*tracked]bool{}}
	p.plan.waiting = map[*probe]label.Ready{}
	p.drains()
	p.questions()
	instances, rejections := s.all()
	p.plan.rejections = rejections
	for _, i := range instances {
		p.instance(i)
	}
	if s.described.got > 0 { // else it is not known which registrations are the registrar's own
		for _, id := range slices.Sorted(maps.Keys(s.consul)) {
			p.registered(s.consul[id])
		}
	}
	p.reads()
	return p.plan
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

// drains plans the signals of containers that were told to stop.
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

// call plans a call unless it is under way, unconfirmed, backing off after a failure, or not open yet.
func (p *planner) call(c planned) {
	last := p.last(c.key)
	switch c.kind {
	case describing, listing, inspecting:
		p.plan.docker = errors.Join(p.plan.docker, last.err)
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

// reads plans when to read Consul: now and then, and soon after a change. It also tells how complete everything is.
func (p *planner) reads() {
	writing := slices.ContainsFunc(p.plan.calls, func(c planned) bool { return c.writes() })
	busy := len(p.plan.calls) > 0
	for k, c := range p.calls {
		writing = writing || (c.busy && k.writes())
		busy = busy || (c.busy && k.kind != beating) || !c.applied.Empty()
	}
	read := p.read.stale() || p.due(p.readAt.Add(reread))
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
	p.plan.known = p.open(key{kind: changing}) && p.allKnown
	p.plan.complete = p.plan.known && !busy && !read
}

// all returns the instances of the known containers, and why others are not registered.
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

// unique drops instances whose ID another container holds, and says why. The holder is the registered container, or else
// the oldest one; instances come in the order of their containers' creation.
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
	d, t := i.desired, p.containers[i.desired.Container]
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
			d.Drain = reason // it went into service a moment ago, and Consul was not read since
			p.change(agent.Change{Desired: d, Maintain: true})
		}
		return
	}
	if d.NotReady = p.notReady(i, t); d.NotReady == tooEarly {
		p.plan.unready++
		p.holding[t] = true
		return
	}
	d.Waited = p.opts.ReadyTimeout
	p.desired[d.ID] = true
	c := agent.Diff(d, have)
	if in, refused := p.refused[d.ID]; refused && reflect.DeepEqual(in, d.Instance) {
		c.Register, c.Uncheck = false, nil
		p.holding[t] = p.holding[t] || !have.Held()
	} else {
		p.plan.instances++
	}
	p.holding[t] = p.holding[t] || c.Register
	p.change(c)
}

// tooEarly takes the place of a reason while an instance still has time to become ready.
const tooEarly = "too early to say"

// notReady returns why an instance is not ready in time, or "" if it is ready.
func (p *planner) notReady(i *instance, t *tracked) string {
	if i.ready {
		return ""
	}
	p.plan.waiting[i.probe] = i.desired.Ready
	switch {
	case i.desired.Ready.Kind != label.ReadyHealthcheck:
		return cmp.Or(i.late, tooEarly)
	case t.Health == "unhealthy":
		return "Docker's HEALTHCHECK says unhealthy: " + cmp.Or(t.HealthOutput, "without a word")
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
	case t != nil && (t.adopt || (t.seen.stale() && (t.inspected() || !p.ended[t.id])) || (t.current && p.holding[t])):
	case have.Container() == "" && !p.allKnown: // Registrator's: it may belong to any container
	default:
		p.change(agent.Change{Desired: have.Desired(), Deregister: true})
	}
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
	if !c.Empty() {
		p.call(planned{key: k, change: c})
	}
}

// answers reports whether Consul answered the last read.
func (p *planner) answers() bool { return p.consul != nil && p.last(key{kind: reading}).err == nil }

// open reports whether a call may be made. Registrations wait until enough is known. A drain waits for nothing, except
// after a failure, when it waits until Consul answers.
func (p *planner) open(k key) bool {
	switch {
	case k.kind == draining:
		return p.answers() || p.calls[k] == nil
	case k.kind != changing:
		return true
	case p.firstAt.IsZero() || p.described.got == 0 || !p.answers():
		return false
	case p.described.got < p.gate && p.last(key{kind: describing}).ended < p.gate:
		return false
	}
	return p.allTried || p.due(p.firstAt.Add(patience))
}
