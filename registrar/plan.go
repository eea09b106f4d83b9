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
	start       []*instance     // to be probed
	waiting     map[*probe]bool // instances that are not ready; no other is to be probed
	signals     []*tracked      // to be sent the signal of their drain
	revive      []*tracked      // told to stop, and run on
	calls       []planned       // to be made
	finished    []key           // nothing is expected of these calls any more
	unconfirmed []key           // Consul does not hold what these have written

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
	plan       plan
	now        time.Time
	desired    map[string]bool   // service IDs that stand or are to stand
	holding    map[*tracked]bool // what Consul holds of them stays until all of them is registered
	considered map[key]bool      // changes for which there is a reason
	busy       map[kind]int      // calls under way
	retries    map[kind]int      // of these, those whose last one failed

	allKnown bool // all containers that exist were inspected
}

// plan says what is to be done. It starts nothing and changes nothing.
func (s *state) plan(now time.Time) plan {
	p := &planner{state: s, now: now, desired: map[string]bool{}, holding: map[*tracked]bool{}, considered: map[key]bool{}, busy: map[kind]int{}, retries: map[kind]int{}}
	p.plan.waiting, p.allKnown = map[*probe]bool{}, s.known(false)
	p.underWay()
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
	p.ends()
	return p.plan
}

// at has the plan made anew at a time.
func (p *planner) at(t time.Time) { p.plan.next = earliest(p.plan.next, t) }

// earliest is the earlier of two times, of which the zero time is none.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}

// drains looks after containers that were told to stop.
func (p *planner) drains() {
	for _, t := range p.containers {
		switch d := t.drain; {
		case d == nil:
		case !d.until.After(p.now):
			p.plan.revive = append(p.plan.revive, t)
		case d.signal != 0 && !d.at.After(p.now):
			p.plan.signals = append(p.plan.signals, t)
		default:
			p.at(d.until)
			if d.signal != 0 {
				p.at(d.at)
			}
		}
	}
}

// underWay counts the calls under way, and gathers what does not work, in the order of its words: what is logged would
// change from one try to the next.
func (p *planner) underWay() {
	var docker, consul []error
	for k, c := range p.calls {
		if c.busy {
			p.busy[k.kind]++
			if c.err != nil {
				p.retries[k.kind]++
			}
		}
		switch {
		case c.err == nil:
		case slices.Contains([]kind{describing, listing, inspecting}, k.kind):
			docker = append(docker, c.err)
		default:
			consul = append(consul, c.err)
		}
	}
	byText := func(a, b error) int { return strings.Compare(a.Error(), b.Error()) }
	slices.SortFunc(docker, byText)
	slices.SortFunc(consul, byText)
	p.plan.docker, p.plan.consul = errors.Join(docker...), errors.Join(consul...)
}

// call plans a call, unless it is under way or failed a moment ago. Of those that failed before some at a time are made, so
// that they leave room for others: they may hang again.
func (p *planner) call(c planned) {
	last := p.calls[c.key]
	failed := last != nil && last.err != nil
	switch {
	case last != nil && last.busy:
	case last != nil && p.now.Before(last.retry):
		p.at(last.retry)
	case failed && p.retries[c.kind] >= parallel/2: // the end of one of them makes a new plan
	default:
		p.busy[c.kind]++
		if failed {
			p.retries[c.kind]++
		}
		p.plan.calls = append(p.plan.calls, c)
	}
}

// questions plans what Docker is to be asked.
func (p *planner) questions() {
	if p.described.stale() {
		p.call(planned{key: key{kind: describing}})
	}
	// Every new event stream has everything listed. Without one it is done all the same, a little later.
	if relist := p.listedAt.Add(p.opts.Resync * 5 / 4); p.listed.stale() || (!p.listedAt.IsZero() && !p.now.Before(relist)) {
		p.call(planned{key: key{kind: listing}})
	} else if !p.listedAt.IsZero() {
		p.at(relist)
	}
	for _, id := range slices.Sorted(maps.Keys(p.containers)) {
		if p.containers[id].seen.stale() {
			p.call(planned{key: key{kind: inspecting, id: id}})
		}
	}
}

// reads plans when to read what Consul holds: now and then, and soon after it was changed.
func (p *planner) reads() {
	due := p.readAt.Add(reread)
	for k, c := range p.calls {
		switch written := c.succeeded; {
		case !p.pending(c):
		case p.busy[k.kind] > 0:
			due = earliest(due, written.Add(together))
		default:
			due = earliest(due, written)
		}
	}
	if p.read.stale() || !p.now.Before(due) {
		p.call(planned{key: key{kind: reading}})
	} else {
		p.at(due)
	}
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
		p.desired[d.ID], p.holding[t] = true, true
		return
	}
	if reason := t.outOfService(); reason != "" {
		if ours {
			p.plan.instances++
		}
		if c := p.calls[key{kind: changing, id: d.ID}]; c != nil && c.applied.Register && p.pending(c) && !have.Held() {
			d.Drain = reason // it was registered a moment ago
			p.change(agent.Change{ID: d.ID, Desired: d, Drain: true})
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
	p.plan.waiting[i.probe] = true
	if i.desired.Ready.Kind != label.ReadyHealthcheck {
		if i.cancel == nil {
			p.plan.start = append(p.plan.start, i)
		}
		return cmp.Or(i.late, tooEarly)
	}
	deadline := i.since.Add(p.opts.ReadyTimeout)
	switch {
	case t.Health == "unhealthy":
		return "Docker's HEALTHCHECK says unhealthy: " + cmp.Or(t.HealthOutput, "without a word")
	case !p.now.Before(deadline):
		return "Docker's HEALTHCHECK does not say healthy: " + cmp.Or(t.HealthOutput, t.Health)
	}
	p.at(deadline)
	return tooEarly
}

// heartbeats plans what is due about an instance's TTL checks.
func (p *planner) heartbeats(d agent.Desired, have agent.Registered) {
	for _, h := range d.Heartbeats(have, "the container runs") {
		k, last := key{beating, d.ID, h.Check}, time.Time{}
		if c := p.calls[k]; c != nil {
			last = c.succeeded
		}
		if due := h.Due(have, last); due.After(p.now) {
			p.at(due)
		} else {
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
		d := agent.Desired{Instance: label.Instance{ID: id, Name: have.Service}, Drain: t.outOfService()}
		p.change(agent.Diff(d, have))
	case p.desired[id]:
	case t != nil && (t.seen.stale() || t.current && p.holding[t]):
	case have.Container() == "" && !p.allKnown: // Registrator's: it may belong to any container
	default:
		p.change(agent.Deregister(have.AgentService))
	}
}

// isOrphan says whether a registration looks like one of this host from before its Docker engine got another ID.
func (p *planner) isOrphan(s *api.AgentService) bool {
	owner, _, _ := strings.Cut(s.Meta[label.MetaOwner], "/")
	engine, _, _ := strings.Cut(p.own.Owner, "/")
	return p.allKnown && owner != engine && s.Meta[label.MetaContainer] != "" && strings.HasPrefix(s.ID, p.host.Name+":")
}

// change plans a change of an instance, if there is one to be made, when it is seen what became of the one before.
func (p *planner) change(c agent.Change) {
	k := key{kind: changing, id: c.ID}
	if c.Drain || c.Desired.Drain != "" {
		k.kind = draining
	}
	p.considered[k] = true
	last := p.calls[k]
	switch {
	case last != nil && (last.busy || p.pending(last)):
	case c.Empty():
		if last != nil {
			p.plan.finished = append(p.plan.finished, k)
		}
	case last != nil && c.String() == last.applied.String() && reflect.DeepEqual(c.Desired.Instance, last.applied.Desired.Instance):
		p.plan.unconfirmed = append(p.plan.unconfirmed, k)
	case p.open(k):
		p.call(planned{key: k, change: c})
	}
}

// answers says whether Consul answered when it was last read.
func (p *planner) answers() bool {
	c := p.calls[key{kind: reading}]
	return p.consul != nil && (c == nil || c.err == nil)
}

// open says whether a change may be made. A drain needs nothing; after a failure it waits for a Consul that answers.
func (p *planner) open(k key) bool {
	if k.kind == draining {
		return p.answers() || p.calls[k] == nil
	}
	if p.firstAt.IsZero() || p.described.got == 0 || !p.answers() {
		return false
	}
	if c := p.calls[key{kind: describing}]; p.described.got < p.gate && (c == nil || c.ended < p.gate) {
		return false
	}
	limit := p.firstAt.Add(patience)
	if !p.now.Before(limit) || p.state.known(true) {
		return true
	}
	p.at(limit)
	return false
}

// ends plans for calls that have ended, and says how far everything is. While Consul does not answer it is kept that a
// change failed, so that it is not made again for each start and end of its container.
func (p *planner) ends() {
	underWay := len(p.plan.calls) > 0
	for k, c := range p.calls {
		underWay = underWay || (c.busy && k.kind != beating) || p.pending(c)
		away := c.err != nil && !p.answers()
		if (k.kind == changing || k.kind == draining) && !p.considered[k] && !c.busy && !away && !p.pending(c) {
			p.plan.finished = append(p.plan.finished, k)
		}
	}
	p.plan.known = p.open(key{kind: changing}) && p.allKnown
	p.plan.complete = p.plan.known && !underWay
}
