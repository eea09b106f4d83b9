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
	// reread is how often what Consul holds is read without a reason.
	reread = 10 * time.Second

	// together is how long what was written waits for more that is under way, to be read back together.
	together = 50 * time.Millisecond

	// patience is how long the first registrations wait for containers to be inspected, so that of several that want one
	// service ID the oldest gets it.
	patience = time.Second
)

// plan is what is to be done now, and what there is to say.
type plan struct {
	waiting map[*probe]label.Ready // of instances that are not ready; no other is to be probed
	signals []*tracked             // to be sent the signal of their drain
	calls   []planned              // to be made

	rejections []rejection
	orphans    []string // service IDs that another Docker engine has left behind
	instances  int      // registered, or about to be
	unready    int      // instances that have time yet to be ready
	known      bool     // Docker and Consul have told everything there is
	complete   bool     // and Consul holds what it should, as far as it can
	docker     error    // what does not work
	consul     error
	next       time.Time // when time alone changes any of this
}

// planned is a call to be made.
type planned struct {
	key
	change agent.Change
	beat   agent.Heartbeat
}

// rejection is why something of a container is not registered.
type rejection struct{ container, reason string }

// planner works out a plan from a state, which it does not change.
type planner struct {
	*state
	plan     plan
	now      time.Time
	allKnown bool              // all containers that exist were inspected
	desired  map[string]bool   // service IDs that stand or are to stand
	holding  map[*tracked]bool // what Consul holds of them stays until all of them is registered
}

// plan says what is to be done. It starts nothing and changes nothing.
func (s *state) plan(now time.Time) plan {
	p := &planner{state: s, now: now, allKnown: s.known(false), desired: map[string]bool{}, holding: map[*tracked]bool{}}
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

// due reports whether a time has come. If not, the plan is made anew then.
func (p *planner) due(t time.Time) bool {
	if !t.After(p.now) {
		return true
	}
	if p.plan.next.IsZero() || t.Before(p.plan.next) {
		p.plan.next = t
	}
	return false
}

// drains looks after containers that were told to stop.
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

// call plans a call for which there is a reason, unless it is under way, failed a moment ago or may not be made yet.
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

// questions plans what Docker is to be asked.
func (p *planner) questions() {
	if p.described.stale() {
		p.call(planned{key: key{kind: describing}})
	}
	// Every new event stream has everything listed. Without one it is done all the same, a little later.
	if p.listed.stale() || (!p.listedAt.IsZero() && p.due(p.listedAt.Add(p.opts.Resync*5/4))) {
		p.call(planned{key: key{kind: listing}})
	}
	for _, id := range slices.Sorted(maps.Keys(p.containers)) {
		if p.containers[id].seen.stale() {
			p.call(planned{key: key{kind: inspecting, id: id}})
		}
	}
}

// reads plans when to read what Consul holds: now and then, and soon after it was changed. It says how far everything is.
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

// all are the instances of the known containers, with what keeps some of them from being registered.
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

// unique drops instances whose ID another container holds, and says why. The holder is the one that is registered
// already, else the container that comes first in containers' order of creation, which is the order of the instances.
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

// instance plans for one that may have its service ID.
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
		if p.last(key{kind: changing, id: d.ID}).applied.Register && !have.Held() {
			d.Drain = reason // it was registered a moment ago
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

// tooEarly stands for a reason while an instance has time yet to be ready.
const tooEarly = "too early to say"

// notReady is why an instance is not ready though it should be, "" if it is ready.
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

// heartbeats plans what is due about an instance's TTL checks.
func (p *planner) heartbeats(d agent.Desired, have agent.Registered) {
	for _, h := range d.Heartbeats(have, "the container runs") {
		if k := (key{beating, d.ID, h.Check}); p.due(h.Due(have, p.last(k).succeeded)) {
			p.call(planned{key: k, beat: h})
		}
	}
}

// registered plans for what Consul holds: its container may be out of service, or gone.
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

// isOrphan says whether a registration looks like one of this host from before its Docker engine got another ID.
func (p *planner) isOrphan(s *api.AgentService) bool {
	owner, _, _ := strings.Cut(s.Meta[label.MetaOwner], "/")
	engine, _, _ := strings.Cut(p.own.Owner, "/")
	return p.allKnown && owner != engine && s.Meta[label.MetaContainer] != "" && strings.HasPrefix(s.ID, p.host.Name+":")
}

// change plans a change of an instance, if there is one to be made.
func (p *planner) change(c agent.Change) {
	k := key{kind: changing, id: c.ID}
	if c.Maintain {
		k.kind = draining
	}
	if !c.Empty() {
		p.call(planned{key: k, change: c})
	}
}

// answers says whether Consul answered when it was last read.
func (p *planner) answers() bool { return p.consul != nil && p.last(key{kind: reading}).err == nil }

// open says whether a call may be made. A drain needs nothing; after a failure it waits for a Consul that answers.
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
	return p.state.known(true) || p.due(p.firstAt.Add(patience))
}
