package registrar

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/registrar/agent"
	"berth/registrar/docker"
	"berth/registrar/group"
	"berth/registrar/group/leader"
	"berth/registrar/group/session"
	"berth/registrar/group/store"
	"berth/registrar/label"
)

// Groups holds what containers need to take part in the groups of their services.
type Groups struct {
	Consul  *api.Client // for the same agent, without a limit on connections, ideally with ShareWatches
	Archive docker.Archive
	Restart func(ctx context.Context, id string) error // see docker.Restart
}

// member is a container's part in its group. It lasts from the container's registration, or just before, until the process
// ends for any reason other than a change by the group. Its identity never changes; the loop owns the rest.
type member struct {
	container string
	service   string
	instance  string // service ID
	label.Group

	cancel   context.CancelFunc
	election *leader.Election // nil = it is not a candidate
	resigned bool             // it is not a candidate for now
	role     string           // a tag: leader or follower; "" = not known, or not a candidate

	out    string // why its Applier keeps it out of service; "" = it is in service
	change step
	until  time.Time // what happens to the container after this time is not attributed to the change
	before time.Time // start of the process that is being replaced
	again  bool      // another process has started since
	dead   bool      // no process runs, and another will start
	run    time.Time // start of the process being tried; zero = not known yet
	failed string    // why the new process does not work
	wish   *wish     // nil = its Applier is not waiting
}

// step is the progress of a change of a container's process. Meanwhile the end of the process does not count as the end of
// the container.
type step int

const (
	settled   step = iota // no change
	replacing             // Docker stops the process and starts another
	starting              // Docker says it has; its events are on their way
	trying                // the process runs, but may turn out not to work
)

// changes reports whether the container's process is being changed.
func (m *member) changes() bool { return m != nil && m.change != settled }

// wish is a request from a target to the loop. The answer comes when the wish is fulfilled, or cannot be.
type wish struct {
	*member
	is     wanted
	reason string        // of drained
	limit  time.Duration // of replaced and tried: the time limit of the change
	until  time.Time     // of inService: when to give up; the loop sets it
	answer chan error    // has room for one answer
}

// wanted is the kind of a wish.
type wanted int

const (
	drained   wanted = iota // it is in maintenance mode
	replaced                // from now on, its process is being replaced
	tried                   // from now on, the same process is on trial
	isReady                 // the new process is ready
	readyAnew               // the same process is ready again
	inService               // its maintenance mode has ended, and it is passing
)

// elected reports the role of an instance in its group.
type elected struct {
	*member
	role string
}

// filled reports that a new container has its files, or will not get them before its start. Until then it does not take part
// in its group: a file being written would look as if the process had already read it.
type filled struct{ container string }

// wishes accepts the wish of a target.
func (s *state) wishes(w wish) {
	m, t := w.member, s.containers[w.container]
	if t == nil || t.member != m {
		w.answer <- group.ErrStopping
		return
	}
	m.wish = &w
	switch w.is {
	case drained:
		m.out = w.reason
	case replaced: // to revert a change after the container was back in service
		m.out = cmp.Or(m.out, "it is restarted")
		m.change, m.failed, m.until = replacing, "", time.Now().Add(w.limit)
		m.before, m.again = t.Started, false
	case tried:
		m.change, m.failed, m.until, m.run = trying, "", time.Now().Add(w.limit), t.Started
	case isReady:
		if m.change = starting; m.again {
			m.try()
		}
		t.seen.wanted = s.tick()
	case readyAnew:
		for _, i := range t.instances {
			i.probe = &probe{since: time.Now(), readyAt: i.readyAt} // the process is the same
		}
		s.evaluate(t)
		t.seen.wanted = s.tick()
	case inService:
		m.out, w.until = "", time.Now().Add(s.opts.ReadyTimeout)
	}
}

// overdue ends changes that take too long. Afterwards, events of the container count as its own again.
func (s *state) overdue(now time.Time) {
	for id, t := range s.containers {
		if m := t.member; m.changes() && !m.until.After(now) {
			m.change = settled
			if m.dead {
				s.drop(id)
			}
		}
	}
}

// runs records that the container runs a process started at the given time.
func (m *member) runs(started time.Time) {
	if !m.changes() {
		return
	}
	m.dead = false
	if m.change == starting && !started.Equal(m.before) { // the event is late or lost
		m.try()
	}
	if m.change == trying {
		if !m.run.IsZero() && !m.run.Equal(started) {
			m.failed = cmp.Or(m.failed, "the container ended, and was started again")
		}
		m.run = started
	}
}

// try records that the new process counts from now on.
func (m *member) try() { m.change, m.run = trying, time.Time{} }

// ended records that the container does not run during a change.
func (m *member) ended(exit int) {
	if m.dead = true; m.change == trying {
		m.failed = cmp.Or(m.failed, fmt.Sprintf("the container ended with exit code %d", exit))
	}
}

// granted is the answer to a member's wish.
type granted struct {
	*member
	err error
}

// members plans which containers take part in their group, and answers their wishes.
func (p *planner) members() {
	first := map[*tracked]bool{}
	for _, i := range p.instances {
		t := p.containers[i.desired.Container]
		if !first[t] && i.desired.Group != (label.Group{}) && t.failure == "" && t.drain == nil && !p.placing[t.id] {
			p.plan.members = append(p.plan.members, i)
		}
		first[t] = true
	}
	for _, t := range p.containers {
		m := t.member
		if m.changes() {
			p.due(m.until)
		}
		if m == nil || m.wish == nil {
			continue
		}
		if over, err := p.grant(t, m); over {
			p.plan.granted = append(p.plan.granted, granted{m, err})
		}
	}
}

// grant reports whether a wish is settled, with an error if it cannot be fulfilled.
func (p *planner) grant(t *tracked, m *member) (over bool, err error) {
	failed := func() (bool, error) { return true, errors.New(m.failed) }
	switch m.wish.is {
	case replaced, tried:
		return true, nil
	case drained:
		return p.isDrained(t), nil
	case isReady, readyAnew:
		if m.failed != "" {
			return failed()
		}
		if m.change != trying || m.dead || t.seen.stale() || len(t.instances) == 0 {
			return false, nil
		}
		late, wait := p.late(t)
		if late != "" {
			return true, errors.New(late)
		}
		return !wait, nil
	}
	if m.failed != "" {
		return failed()
	}
	why := p.notInService(t)
	if why != "" && p.due(m.wish.until) {
		return true, errors.New(why)
	}
	return why == "", nil
}

// late says why an instance of a container is not ready in time, and whether any instance still has time.
func (p *planner) late(t *tracked) (why string, wait bool) {
	for _, i := range t.instances {
		switch reason := p.notReady(i, t); {
		case reason == tooEarly:
			wait = true
		case reason != "":
			return "it is not ready: " + reason, false
		}
	}
	return "", wait
}

// isSettled reports whether no call for an instance is pending.
func (p *planner) isSettled(id string) bool {
	for _, k := range []kind{changing, draining} {
		if c := p.last(key{kind: k, id: id}); c.busy || !c.applied.Empty() {
			return false
		}
	}
	return true
}

// isDrained reports whether all instances of a container in Consul are in maintenance mode.
func (p *planner) isDrained(t *tracked) bool {
	if p.consul == nil {
		return false
	}
	for _, have := range p.consul {
		if have.Container() != t.id || !p.own.Owns(have.AgentService) {
			continue
		}
		if _, on := have.Maintenance(); !on {
			return false
		}
	}
	return !slices.ContainsFunc(t.instances, func(i *instance) bool { return !p.isSettled(i.desired.ID) })
}

// notInService says why a container gets no requests yet, or returns "". An instance that an operator took out of service
// stays out.
func (p *planner) notInService(t *tracked) string {
	if reason := t.outOfService(); reason != "" {
		return strings.TrimPrefix(reason, agent.Automatic)
	}
	for _, i := range p.instances {
		if i.desired.Container != t.id {
			continue
		}
		d := p.chosen(i)
		have := p.consul[d.ID]
		reason, on := have.Maintenance()
		switch why := p.notReady(i, t); why {
		case "":
		case tooEarly:
			return "it is not ready: waiting until " + i.desired.Ready.String()
		default:
			return "it is not ready: " + why
		}
		if refused := p.refused[d.ID].why; refused != "" {
			return "Consul refuses to register it: " + refused
		}
		if have.Container() != t.id || !d.Same(have) || (on && strings.HasPrefix(reason, agent.Automatic)) {
			return "Consul has not registered it yet"
		}
		for _, c := range have.Checks {
			if c.Status == api.HealthCritical && !strings.HasPrefix(c.CheckID, api.ServiceMaintPrefix) {
				return fmt.Sprintf("its check %s is critical: %s", c.Name, oneLine(cmp.Or(c.Output, c.Notes, "no output yet")))
			}
		}
	}
	if len(t.instances) == 0 {
		return "berth does not know yet what it registers"
	}
	return ""
}

// watching reports whether anything waits for checks to pass.
func (p *planner) watching() bool {
	for _, t := range p.containers {
		if x := t.successor; x != nil && x.started && x.over.IsZero() && x.since.IsZero() {
			return true
		}
		if t.member != nil && t.member.wish != nil && t.member.wish.is == inService {
			return true
		}
	}
	return false
}

// reply answers the wish of a member.
func (m *member) reply(err error) {
	if m.wish == nil {
		return
	}
	if m.wish.is == inService && err == nil {
		m.change = settled
	}
	m.wish.answer <- err
	m.wish = nil
}

// carryOutGroups starts and ends the group membership of containers, and answers wishes.
func (r *Registrar) carryOutGroups(ctx context.Context, p plan) {
	if r.opts.Groups == nil {
		return
	}
	for _, g := range p.granted {
		g.reply(g.err)
	}
	for m := range r.members {
		t := r.containers[m.container]
		switch {
		case t == nil || t.member != m:
			r.leave(m)
		case t.failure != "":
			r.leave(m)
			t.member = nil
		case m.election != nil:
			r.stand(m, t.outOfService() == "")
		}
	}
	for _, i := range p.members {
		in, t := i.desired.Instance, r.containers[i.desired.Container]
		if m := t.member; m != nil && (m.service != in.Name || m.instance != in.ID || m.Group != in.Group) && !m.changes() {
			r.leave(m)
			t.member = nil
		}
		if t.member == nil {
			r.join(ctx, t, in)
		}
	}
	for _, id := range r.created {
		host := r.host
		r.work.Go(func() {
			r.place(ctx, id, host)
			r.updates.add(filled{id})
		})
	}
	r.created = nil
}

// join makes a container take part in its group.
func (r *Registrar) join(ctx context.Context, t *tracked, in label.Instance) {
	ctx, cancel := context.WithCancel(ctx)
	m := &member{container: t.id, service: in.Name, instance: in.ID, Group: in.Group, cancel: cancel}
	t.member, r.members[m] = m, true
	log := r.opts.Log.With("container", t.Name)
	if m.Strategy != "" {
		sessions := session.New(session.Options{Consul: r.opts.Groups.Consul, Name: "berth " + in.ID, Behavior: api.SessionBehaviorDelete, Log: log})
		kv := store.New(r.opts.Groups.Consul)
		applier := group.New(group.Options{
			Service: in.Name, Instance: in.ID, Strategy: m.Strategy, Started: t.Started,
			Timeout:  r.opts.DrainTime + r.changeTime(t.Container),
			Target:   &target{registrar: r, member: m, container: t.Container, store: kv, log: log, known: map[string]string{}},
			Consul:   r.opts.Groups.Consul,
			Store:    kv,
			Sessions: sessions,
			Log:      log,
		})
		r.work.Go(func() {
			var kept sync.WaitGroup
			keeping, stop := context.WithCancel(context.WithoutCancel(ctx)) // the Applier releases its lock when it ends
			kept.Go(func() { sessions.Run(keeping) })
			applier.Run(ctx)
			stop()
			kept.Wait()
		})
	}
	if m.Leader {
		m.election = leader.New(leader.Options{
			Consul: r.opts.Groups.Consul, Service: in.Name, ID: in.ID, Priority: m.Priority, Log: log,
			Changed: func(s leader.State) { r.updates.add(elected{m, s.Tag()}) },
		})
		r.work.Go(func() { m.election.Run(ctx) })
	}
}

// changeTime is the time allowed for a container to stop, start and become ready.
func (r *Registrar) changeTime(c label.Container) time.Duration {
	const (
		spare    = 15 * time.Second
		mostStop = 10 * time.Minute // for a container without a stop timeout
	)
	return min(c.StopTimeout, mostStop) + r.opts.ReadyTimeout + spare
}

// leave ends a container's part in its group: its report vanishes, and its locks become free.
func (r *Registrar) leave(m *member) {
	m.reply(group.ErrStopping)
	m.cancel()
	delete(r.members, m)
}

// stand makes an instance a candidate while it is in service.
func (r *Registrar) stand(m *member, is bool) {
	switch {
	case is && m.resigned:
		m.election.Stand()
	case !is && !m.resigned:
		now, cancel := context.WithCancel(context.Background())
		cancel() // the loop does not wait for the release of the lock
		_ = m.election.StepDown(now)
	}
	m.resigned = !is
}

// withRole returns an instance with the tag of its role in its group.
func (m *member) withRole(d agent.Desired) agent.Desired {
	if m != nil && m.role != "" && m.instance == d.ID && !slices.Contains(d.Tags, m.role) {
		d.Tags = append(slices.Clone(d.Tags), m.role)
	}
	return d
}
