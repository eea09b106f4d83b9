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
	"berth/registrar/async"
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
	start    []*instance     // to be probed
	waiting  map[*probe]bool // instances that are not ready; no other is to be probed
	signals  []*tracked      // to be sent the signal of their drain
	revive   []*tracked      // told to stop, and run on
	changes  []agent.Change
	verified []lane // Consul holds what was written
	differs  []lane // it does not
	beats    []beat
	read     bool // Consul
	ask      bool // about the node

	rejections []rejection
	orphans    []string // service IDs that another Docker engine has left behind
	instances  int      // registered, or about to be
	pending    int      // instances that have time yet to be ready
	known      bool     // Docker and Consul have told everything there is
	complete   bool     // and Consul holds what it should, as far as it can
	docker     error    // what does not work
	consul     error
	next       time.Time // when time alone changes any of this
}

// beat is a heartbeat that is due.
type beat struct {
	instance string
	agent.Heartbeat
}

// rejection is why something of a container is not registered.
type rejection struct{ container, reason string }

// planner works out a plan from a state, which it does not change.
type planner struct {
	*state
	plan    plan
	now     time.Time
	desired map[string]bool   // service IDs that stand or are to stand
	holding map[*tracked]bool // what Consul holds of them stays until all of them is registered
	looked  map[lane]bool
}

// plan says what is to be done. It starts nothing and changes nothing.
func (s *state) plan(now time.Time) plan {
	p := &planner{state: s, now: now, desired: map[string]bool{}, holding: map[*tracked]bool{}, looked: map[lane]bool{}}
	p.plan.waiting = map[*probe]bool{}
	p.drains()
	instances, rejections := s.all()
	p.plan.rejections = rejections
	for _, i := range instances {
		p.instance(i)
	}
	if s.described { // else it is not known which registrations are the registrar's own
		for _, id := range slices.Sorted(maps.Keys(s.consul)) {
			p.registered(s.consul[id])
		}
	}
	p.finished()
	p.calls()
	p.status()
	return p.plan
}

// at has the plan made anew at a time.
func (p *planner) at(t time.Time) { p.plan.next = async.Earliest(p.plan.next, t) }

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
		if op := p.ops[lane{id: d.ID}]; op != nil && op.change.Register && !op.read && !have.Held() {
			d.Drain = reason // it was registered a moment ago
			p.change(lane{d.ID, true}, agent.Change{ID: d.ID, Desired: d, Drain: true})
		}
		return
	}
	if !i.ready {
		p.plan.waiting[i.probe] = true
		if i.cancel == nil && d.Ready.Kind != label.ReadyHealthcheck {
			p.plan.start = append(p.plan.start, i)
		}
		if d.NotReady = p.overdue(i, t); d.NotReady == "" {
			p.plan.pending++
			p.holding[t] = true
			return
		}
		d.Waited = p.opts.ReadyTimeout
	}
	p.desired[d.ID] = true
	c := agent.Diff(d, have)
	if in, refused := p.refused[d.ID]; refused && reflect.DeepEqual(in, d.Instance) {
		c.Register, c.Uncheck = false, nil
		p.holding[t] = p.holding[t] || !have.Held()
	} else {
		p.plan.instances++
	}
	p.holding[t] = p.holding[t] || c.Register
	p.change(lane{id: d.ID}, c)
}

// overdue is why an instance is not ready though it should be, "" while there is time.
func (p *planner) overdue(i *instance, t *tracked) string {
	if i.desired.Ready.Kind != label.ReadyHealthcheck {
		return i.late
	}
	deadline := i.since.Add(p.opts.ReadyTimeout)
	switch {
	case t.Health == "unhealthy":
		return "Docker's HEALTHCHECK says unhealthy: " + cmp.Or(t.HealthOutput, "without a word")
	case !p.now.Before(deadline):
		return "Docker's HEALTHCHECK does not say healthy: " + cmp.Or(t.HealthOutput, t.Health)
	}
	p.at(deadline)
	return ""
}

// heartbeats plans what is due about an instance's TTL checks.
func (p *planner) heartbeats(d agent.Desired, have agent.Registered) {
	for _, h := range d.Heartbeats(have, "the container runs") {
		last := p.beats[h.Check]
		if last == nil {
			last = &heartbeat{}
		}
		due := h.Due(have, last.last)
		if last.At.After(due) {
			due = last.At
		}
		switch {
		case last.Busy:
		case due.After(p.now):
			p.at(due)
		default:
			p.plan.beats = append(p.plan.beats, beat{d.ID, h})
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
		p.change(lane{id, true}, agent.Diff(d, have))
	case p.desired[id]:
	case t != nil && (t.unknown || t.ours && p.holding[t]):
	case have.Container() == "" && !p.allInspected(): // Registrator's: it may belong to any container
	default:
		p.change(lane{id: id}, agent.Deregister(have.AgentService))
	}
}

// isOrphan says whether a registration looks like one of this host from before its Docker engine got another ID.
func (p *planner) isOrphan(s *api.AgentService) bool {
	owner, engine := s.Meta[label.MetaOwner], p.base.EngineID
	owner, _, _ = strings.Cut(owner, "/")
	return p.allInspected() && owner != engine && s.Meta[label.MetaContainer] != "" && strings.HasPrefix(s.ID, p.host.Name+":")
}

// allInspected says whether all containers that exist are known.
func (p *planner) allInspected() bool {
	for _, t := range p.containers {
		if !t.inspected {
			return false
		}
	}
	return !p.listedAt.IsZero()
}

// change plans a change of an instance if there is one to be made, and its lane is free.
func (p *planner) change(l lane, c agent.Change) {
	p.looked[l] = true
	op := p.ops[l]
	switch {
	case op == nil && c.Empty():
	case op == nil:
		if p.open(l) {
			p.plan.changes = append(p.plan.changes, c)
		}
	case op.Busy || (!op.change.Empty() && !op.read):
	case c.Empty():
		p.plan.verified = append(p.plan.verified, l)
	case c.String() == op.change.String() && reflect.DeepEqual(c.Desired.Instance, op.change.Desired.Instance):
		p.plan.differs = append(p.plan.differs, l)
	case p.now.Before(op.At):
		p.at(op.At)
	case p.open(l):
		p.plan.changes = append(p.plan.changes, c)
	}
}

// open says whether operations may be made. A drain needs nothing; after a failure it waits for an agent that answers.
func (p *planner) open(l lane) bool {
	answers := p.consul != nil && p.reading.Err == nil
	if l.drain {
		return answers || p.ops[l] == nil
	}
	if p.listedAt.IsZero() || !p.described || !p.asked || !answers {
		return false
	}
	if limit := p.listedAt.Add(patience); p.now.Before(limit) {
		for _, t := range p.containers {
			if !t.inspected && t.err == nil {
				p.at(limit)
				return false
			}
		}
	}
	return true
}

// finished takes operations off the list that nothing is expected of any more. While Consul does not answer it is kept
// that they failed, so that they are not made again for each start and end of a container.
func (p *planner) finished() {
	for l, op := range p.ops {
		away := op.Err != nil && p.reading.Err != nil
		if !p.looked[l] && !op.Busy && !away && (op.change.Empty() || op.read) {
			p.plan.verified = append(p.plan.verified, l)
		}
	}
}

// calls plans what is to be asked for.
func (p *planner) calls() {
	busy, written := false, time.Time{}
	for _, op := range p.ops {
		busy = busy || op.Busy
		if !op.Busy && !op.change.Empty() && !op.read {
			written = async.Earliest(written, op.endedAt)
		}
	}
	due := p.readAt.Add(reread)
	switch {
	case p.consul == nil || p.stale:
		due = p.now
	case !written.IsZero() && busy:
		due = async.Earliest(due, written.Add(together))
	case !written.IsZero():
		due = p.now
	}
	when := func(a *async.Attempt, due time.Time) bool {
		if a.At.After(due) {
			due = a.At
		}
		if due.After(p.now) && !a.Busy {
			p.at(due)
		}
		return !a.Busy && !due.After(p.now)
	}
	p.plan.read = when(&p.reading, due)
	p.plan.ask = p.outdated && when(&p.asking, p.now)
	p.plan.known = p.open(lane{}) && p.allInspected()
	p.plan.complete = p.plan.known && !busy && written.IsZero() && len(p.plan.changes) == 0 && !p.reading.Busy && !p.plan.read
}

// status gathers what does not work.
func (p *planner) status() {
	var docker, consul []error
	for _, t := range p.containers {
		docker = append(docker, t.err)
	}
	for _, op := range p.ops {
		consul = append(consul, op.Err)
	}
	for _, b := range p.beats {
		consul = append(consul, b.Err)
	}
	p.plan.docker = errors.Join(p.hostErr, p.listErr, join(docker))
	p.plan.consul = errors.Join(p.reading.Err, join(consul))
}

// join joins errors in the order of their words, and not in the order in which they came: what is logged would change
// from one try to the next.
func join(errs []error) error {
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}
