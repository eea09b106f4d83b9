package registrar

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"

	"berth/registrar/agent"
	"berth/registrar/docker"
	"berth/registrar/label"
	"berth/registrar/retry"
	"berth/templates/claim"
)

// state holds everything known about Docker, the instances and Consul. The loop owns it.
type state struct {
	opts  Options
	own   agent.Ownership
	clock int           // counts events, starts and ends of calls, to order them
	calls map[key]*call // running, failed, or not yet confirmed by a read

	// Docker.
	host       label.Host
	described  fresh
	listed     fresh
	listedAt   time.Time // last time
	firstAt    time.Time // first time
	containers map[string]*tracked
	ended      map[string]string // names, by ID, of containers that ended since the last list and may run again

	// Consul.
	consul  agent.State // nil until the first read
	read    fresh
	readAt  time.Time
	gate    int                // registrations wait for a description of the host requested at this clock
	refused map[string]refusal // refused by Consul since the last list
	token   string             // hash of the token of the last read, "" = none

	created []string        // IDs of containers that get files before they start
	placing map[string]bool // likewise, including those whose files are being written

	catalog  agent.View
	entries  map[string]entry // by instance ID
	disputes disputes
}

// entry records what was done to an instance, as far as it affects its entry in Consul's catalog.
type entry struct {
	registered time.Time // last time
	token      string    // hash of the token used
	published  time.Time // when it was last put into the catalog
	stale      bool      // the catalog may hold old data for it
	readyAt    time.Time // as given in its registration
	since      time.Time // when it was first registered with readyAt; zero = before this registrar started
}

// refusal is an instance that Consul refused to register, and why.
type refusal struct {
	label.Instance
	why string
}

// fresh records whether an answer is up to date.
type fresh struct {
	wanted int // clock of the last reason to ask; 0 = none yet
	got    int // clock at the start of the last call that succeeded; 0 = none yet
}

func (f fresh) stale() bool { return f.wanted > f.got }

// kind names a kind of call.
type kind string

const (
	describing kind = "describe the host"
	listing    kind = "list"
	inspecting kind = "inspect"
	reading    kind = "read"
	changing   kind = "change"
	draining   kind = "drain"
	beating    kind = "heartbeat"
	comparing  kind = "compare with the catalog"
	publishing kind = "put into the catalog"
	judging    kind = "inspect a successor"
	launching  kind = "start a successor"
)

// writes reports whether a call changes what Consul holds.
func (k kind) writes() bool { return k == changing || k == draining || k == beating }

// key identifies a call; only one call of a key runs at a time. A drain does not wait for another change of its instance.
type key struct {
	kind
	id    string // of the container or instance; "" = all
	check string // for a heartbeat
}

// call describes the latest call of its key.
type call struct {
	busy         bool
	began, ended int          // clock values
	succeeded    time.Time    // last time
	applied      agent.Change // its change, until a later read confirms it
	err          error        // of the last attempt with a known outcome
	retry        time.Time    // earliest time of the next attempt
	patient      bool         // it may wait longer than a second for the next attempt
	delays       *backoff.ExponentialBackOff
}

// done records how a call ended. The next attempt waits longer after each failure.
func (c *call) done(err error) {
	c.busy, c.err, c.applied = false, err, agent.Change{}
	if err == nil {
		c.retry, c.delays = time.Time{}, nil
		return
	}
	if c.delays == nil {
		c.delays = retry.Delays()
		if !c.patient {
			c.delays.MaxInterval = soonest
		}
	}
	c.retry = time.Now().Add(c.delays.NextBackOff())
}

// tracked is a container that runs or, with KeepFailed, has failed.
type tracked struct {
	id string
	label.Container
	asked     label.Asked // in its labels and variables
	seen      fresh       // last inspection; while it is stale, registrations stay
	since     int         // clock when it became known
	adopt     bool        // registrations from before this registrar's start are still to be taken over
	before    bool        // it has run since before this registrar started
	moved     time.Time   // when it was last found at another address or port
	failure   string
	kills     []kill // not evaluated yet, because too little is known
	drain     *drain
	instances []*instance
	reasons   []string // why some of its ports are not registered
	member    *member  // its part in its group; nil = none
	successor *successor
}

// kill records a signal sent to a container.
type kill struct {
	signal int
	at     time.Time // when the registrar learned of it
	sent   time.Time // time on Docker's clock
}

// instance is an instance of a container, prepared for comparison, with its probe.
type instance struct {
	desired agent.Desired
	*probe
}

// probe follows one instance until it is ready, in one run of its container.
type probe struct {
	since   time.Time
	ready   bool                  // it has been ready once; since then its checks decide
	readyAt time.Time             // when it became ready
	late    string                // why it is not ready in time
	cancel  context.CancelFunc    // stops the probing goroutine; nil = none runs
	last    atomic.Pointer[error] // result of the last attempt, set by that goroutine; nil = no result yet
}

// found records that the instance is ready.
func (p *probe) found(at time.Time) {
	if p.ready = true; p.readyAt.IsZero() {
		p.readyAt = at
	}
}

// drain describes a container that was told to stop and has not died yet.
type drain struct {
	reason string
	until  time.Time // from then on the container counts as ignoring the signal
	signal int       // sent once the container is drained; 0 = none
	at     time.Time // when to send signal
}

// soonest is the longest pause between attempts to reach Consul. An agent that lost everything gets it back within one and a
// half times this time.
const soonest = 400 * time.Millisecond

const (
	// stopping begins the maintenance reason of a container that was told to stop.
	stopping = "the container is being stopped by "

	// survives is how long a container may keep running after its stop timeout.
	survives = 30 * time.Second

	sigkill = 9
)

func newState(opts Options) *state {
	s := &state{
		opts: opts, calls: map[key]*call{}, containers: map[string]*tracked{}, ended: map[string]string{}, refused: map[string]refusal{},
		entries: map[string]entry{}, disputes: disputes{}, placing: map[string]bool{},
	}
	s.read.wanted = s.tick()
	if opts.Adopt != "" {
		s.own.Adopt = agent.RegistratorIDs(opts.Adopt)
	}
	return s
}

func (s *state) tick() int {
	s.clock++
	return s.clock
}

// last returns the latest call of a key, or the zero call if there was none.
func (s *state) last(k key) call {
	if c := s.calls[k]; c != nil {
		return *c
	}
	return call{}
}

// begin records that a call starts.
func (s *state) begin(k key) *call {
	c := s.calls[k]
	if c == nil {
		c = &call{patient: k.kind != reading && k.kind != comparing}
		s.calls[k] = c
	}
	c.busy, c.began = true, s.tick()
	return c
}

// inspected reports whether more than the container's ID is known.
func (t *tracked) inspected() bool { return t.seen.got > 0 }

// resync marks everything that Docker was asked for as stale.
func (s *state) resync() { s.listed.wanted, s.described.wanted = s.tick(), s.tick() }

// describe records the description of the host, and reevaluates all containers if it changed.
func (s *state) describe(h label.Host, began int) {
	s.described.got = began
	if s.opts.Owner != "" {
		h.EngineID += "/" + s.opts.Owner
	}
	if reflect.DeepEqual(h, s.host) {
		return
	}
	s.host, s.own.Owner = h, h.EngineID
	for _, t := range s.containers {
		s.evaluate(t)
		s.takeSignals(t)
	}
}

// list records which containers exist. It drops all others, except containers newer than the list.
func (s *state) list(ids []string, began int) {
	clear(s.ended)
	there := map[string]bool{}
	for _, id := range ids {
		there[id] = true
		if s.containers[id] == nil {
			s.containers[id] = &tracked{id: id, since: s.tick(), adopt: true}
		}
		s.containers[id].seen.wanted = s.tick()
	}
	for id, t := range s.containers {
		if !there[id] && t.since < began && !t.member.changes() {
			s.drop(id)
		}
	}
	s.listed.got, s.listedAt = began, time.Now()
	if s.firstAt.IsZero() {
		s.firstAt = s.listedAt
	}
	s.read.wanted = s.tick()
	clear(s.refused)
}

// event records an event, and reports whether it concerns a known container or a new one.
func (s *state) event(ev docker.Event) bool {
	t := s.containers[ev.ID]
	switch {
	case ev.Action == docker.Created:
		files := ev.Files && s.opts.Groups != nil
		if files {
			s.created = append(s.created, ev.ID)
			s.placing[ev.ID] = true
		}
		return (ev.Old != "" && s.opts.Start != nil && s.succeed(ev.ID, ev.Old, false)) || files
	case ev.Action == docker.Removed && s.replacedBy(ev.ID) != nil:
		s.replacedBy(ev.ID).successor.unfit = "it was removed again"
		s.drop(ev.ID)
	case t != nil && t.member != nil && ev.Action != docker.Changed && ev.Action != docker.Removed && ev.At.Before(t.Started) && !ev.At.IsZero():
		return false // a late event about an earlier process
	case ev.Action == docker.Started && t != nil && t.member != nil: // it is being replaced; otherwise its end would have been seen
		if t.member.again = true; t.member.change == starting {
			t.member.try()
		}
		t.seen.wanted = s.tick()
	case ev.Action == docker.Started && t != nil && !t.inspected(): // it was only listed, perhaps during the run that begins here
		t.seen.wanted = s.tick()
		delete(s.calls, key{kind: inspecting, id: ev.ID}) // it may describe an earlier run
	case ev.Action == docker.Started: // everything known is about a process that is gone
		s.drop(ev.ID)
		t = &tracked{id: ev.ID, since: s.tick()}
		t.seen.wanted = t.since
		s.containers[ev.ID] = t
	case t == nil:
		return false
	case ev.Action == docker.Changed:
		t.seen.wanted = s.tick()
	case ev.Action == docker.Killed:
		k := kill{signal: ev.Signal, at: time.Now(), sent: ev.At}
		if k.sent.IsZero() {
			k.sent = k.at
		}
		t.kills = append(t.kills, k)
		s.takeSignals(t)
	case ev.Action == docker.Died && t.member.changes():
		s.replaced(t)
	case ev.Action == docker.Died && t.inspected() && s.keeps(ev.Exit):
		t.fail(ev.Exit)
		t.seen.wanted = t.seen.got
		delete(s.calls, key{kind: inspecting, id: ev.ID}) // it would return an outdated state
	default:
		s.drop(ev.ID)
	}
	return true
}

// replaced records that a process ended during a change. Inspecting the container shows whether it was the old process.
func (s *state) replaced(t *tracked) {
	t.member.dead = true
	delete(s.calls, key{kind: inspecting, id: t.id}) // it would return an outdated state
	if t.member.change == trying {
		t.seen.wanted = s.tick()
		return
	}
	t.drain, t.kills, t.seen.wanted = nil, nil, t.seen.got
}

// drop forgets a container. Containers that use its network become unreachable.
func (s *state) drop(id string) {
	if t := s.containers[id]; t != nil {
		s.ended[id] = t.Name
		if x := t.successor; x != nil {
			delete(s.calls, key{kind: judging, id: x.id})
			delete(s.calls, key{kind: launching, id: x.id})
		}
	}
	delete(s.containers, id)
	delete(s.calls, key{kind: inspecting, id: id})
	s.evaluateSharing(id)
}

// keeps reports whether a container stays registered after this exit code: it failed, and was not ended by a signal.
func (s *state) keeps(exit int) bool { return s.opts.KeepFailed && exit > 0 && exit < 128 }

func (t *tracked) fail(exit int) {
	t.drain, t.kills = nil, nil
	t.failure = fmt.Sprintf("the container ended with exit code %d", exit)
}

// inspected records the result of inspecting a container.
func (s *state) inspected(t *tracked, in docker.Inspected, began int) {
	m := t.member
	switch {
	case in.Running:
		m.runs(in.Started)
		if t.inspected() && !t.Started.Equal(in.Started) { // it was restarted without an event
			t.before, t.drain, t.instances = false, nil, nil
		}
		t.Container, t.failure = in.Container, ""
	case m.changes() && in.ID != "" && !(m.change == trying && t.drain != nil): // otherwise somebody stopped it
		m.ended(in.ExitCode)
		t.seen.got = began
		return
	case in.Exited && s.keeps(in.ExitCode):
		if !t.inspected() { // it lost its addresses when it ended
			t.Container = in.Container
		}
		t.fail(in.ExitCode)
	default:
		s.drop(t.id)
		return
	}
	t.seen.got = began
	t.asked = label.AskedOf(t.Container)
	s.evaluate(t)
	s.takeSignals(t)
	s.evaluateSharing(t.id)
}

// takeSignals evaluates the signals that Docker sent to a container. Its stop signal and SIGKILL take the container out of
// service. If SERVICE_STOP_SIGNAL of a registered container names another signal, the stop signal only announces the stop,
// and the named signal follows once the container is drained. The drain waits for a successor.
func (s *state) takeSignals(t *tracked) {
	var later []kill
	for _, k := range t.kills {
		switch {
		case t.drain != nil && k.signal == sigkill:
			t.drain.signal = 0
		case !s.enoughKnown(t) && k.signal != sigkill:
			later = append(later, k)
		case t.drain == nil && k.signal == t.StopSignal && s.waits(t):
			later = append(later, k)
		case t.drain == nil && (k.signal == sigkill || k.signal == t.StopSignal):
			t.drain = &drain{reason: claim.WithStop(stopping+label.SignalName(k.signal), k.sent), until: k.at.Add(t.StopTimeout + survives)}
			if real := label.StopSignal(t.Container, s.host.Policy); k.signal == t.StopSignal && real != k.signal && s.registers(t) {
				from := k.at
				if x := t.successor; x != nil && x.over.After(from) {
					from = x.over
				}
				t.drain.signal, t.drain.at = real, from.Add(s.drainTime(t))
				if t.member.changes() { // it is already drained
					t.drain.at = k.at
				}
			}
		}
	}
	t.kills = later
}

// registers reports whether a container registers something, or is registered.
func (s *state) registers(t *tracked) bool {
	instances, _ := s.all()
	for _, have := range s.consul {
		if have.Container() == t.id && s.own.Owns(have.AgentService) {
			return true
		}
	}
	return slices.ContainsFunc(instances, func(i *instance) bool { return i.desired.Container == t.id })
}

// outOfService says why a container gets no new requests, or returns "".
func (t *tracked) outOfService() string {
	switch {
	case t.failure != "":
		return agent.Automatic + t.failure
	case t.drain != nil:
		return agent.Automatic + t.drain.reason
	case t.member != nil && t.member.out != "":
		return agent.Automatic + t.member.out
	case t.Paused:
		return agent.Automatic + "the container is paused"
	}
	return ""
}

// revive ends the drain of containers that were told to stop but still run. They must become ready again. It returns their
// names.
func (s *state) revive(now time.Time) (names []string) {
	for _, t := range s.containers {
		if t.drain != nil && !t.drain.until.After(now) {
			t.drain, t.instances = nil, nil
			s.evaluate(t)
			names = append(names, t.Name)
		}
	}
	return names
}

// begun reports whether a registration was made for the present run of its container. A registration that does not say
// counts as made for it if the container has run since before this registrar started.
func (t *tracked) begun(have agent.Registered) bool {
	if len(t.instances) == 0 {
		return false
	}
	same, known := have.Begun(t.instances[0].desired.Instance)
	return same || (!known && t.before)
}

// renewed reports whether the container has had a new network since the start of a process that uses its network.
func (t *tracked) renewed(since time.Time) bool { return !t.HostNetwork && t.Started.After(since) }

// enoughKnown reports whether enough is known to decide what a container registers.
func (s *state) enoughKnown(t *tracked) bool {
	other := s.containers[t.NetworkOf]
	return t.inspected() && s.described.got > 0 && (other == nil || other.inspected())
}

// within returns the container as clients reach it, which may be in the network of another one.
func (s *state) within(t *tracked) label.Container {
	c := t.Container
	if other := s.containers[c.NetworkOf]; other != nil {
		c = c.Within(other.Container)
		if other.renewed(t.Started) {
			c.Started = other.Started // a process that listens in a removed network is useless
		}
	}
	return c
}

// has reports whether the address of a registration still belongs to the container, or whether the host still publishes its
// port for the container.
func (s *state) has(t *tracked, have agent.Registered) bool {
	c := s.within(t)
	address, _ := netip.ParseAddr(have.Address)
	return c.HostNetwork || c.HasAddress(address) || slices.ContainsFunc(c.Ports, func(p label.Port) bool {
		return slices.ContainsFunc(p.Published, func(at netip.AddrPort) bool { return int(at.Port()) == have.Port })
	})
}

// evaluate computes what a container registers. Unchanged instances keep their probes.
func (s *state) evaluate(t *tracked) {
	if !s.enoughKnown(t) {
		return
	}
	c, before := s.within(t), t.instances
	t.instances = nil
	var all []label.Instance
	all, t.reasons = label.Instances(c, s.host)
	for _, in := range all {
		i := &instance{agent.Prepare(in), s.carry(before, in)}
		if i.probe == nil {
			i.probe = &probe{since: time.Now()}
		}
		if in.Ready.Kind == label.ReadyNone || (in.Ready.Kind == label.ReadyHealthcheck && c.Health == "healthy") {
			i.found(time.Now())
		}
		t.instances = append(t.instances, i)
		for _, b := range before {
			if was := b.desired; was.ID == in.ID && (was.Address != in.Address || was.Port != in.Port) {
				t.moved = time.Now()
			}
		}
	}
}

// evaluateSharing evaluates the containers that use a container's network.
func (s *state) evaluateSharing(id string) {
	for _, t := range s.containers {
		if t.NetworkOf == id {
			s.evaluate(t)
		}
	}
}

// carry returns the probe that an instance keeps, or nil if it must become ready again. An instance keeps its probe when its
// name or ID changes. If only the probed address changed and its registration is up to date, it stays ready.
func (s *state) carry(before []*instance, in label.Instance) *probe {
	for _, b := range before {
		was := b.desired.Instance
		switch {
		case !was.Started.Equal(in.Started):
		case was.Ready == in.Ready:
			return b.probe
		case b.ready && was.ID == in.ID && s.consul[in.ID].Serves(in):
			return &probe{since: b.since, ready: true, readyAt: b.readyAt}
		}
	}
	return nil
}

// adopt takes over registrations from before this registrar started. They count as ready, so a restart of the registrar
// removes no instance. A container that was being stopped stays out of service.
func (s *state) adopt() {
	for _, t := range s.containers {
		if !t.adopt || s.consul == nil || !s.enoughKnown(t) {
			continue
		}
		t.adopt, t.before, t.moved = false, true, time.Now()
		for _, i := range t.instances {
			in := i.desired.Instance
			have := s.consul[in.ID]
			registrators := have.Held() && have.Meta[label.MetaOwner] == "" && s.own.MayTake(have.AgentService, in)
			if ((have.Serves(in) && t.begun(have)) || registrators) && have.WasReady() {
				if at, told := claim.ReadyAt(have.Meta); told {
					e := s.entries[in.ID]
					i.readyAt, e.readyAt = at, at
					s.entries[in.ID] = e
				}
				i.found(time.Now())
			}
			reason, _ := have.Maintenance()
			if have.Container() == t.id && t.begun(have) && t.outOfService() == "" && strings.HasPrefix(reason, agent.Automatic+stopping) {
				t.drain = &drain{reason: strings.TrimPrefix(reason, agent.Automatic), until: time.Now().Add(t.StopTimeout + survives)}
				t.drain.signal = label.StopSignal(t.Container, s.host.Policy)
			}
		}
	}
}

// consulHolds records what Consul holds, and returns how many acknowledged changes are missing there. Changes made after the
// read began wait for the next read. If the host was described without the address of its node, because Consul did not
// answer, it is described again.
func (s *state) consulHolds(have agent.State, began int) (unconfirmed int) {
	if s.consul == nil && s.described.got > 0 && s.host.NodeAddress == "" {
		s.gate = s.tick()
		s.described.wanted = s.gate
	}
	s.read.got, s.readAt = began, time.Now()
	for k, c := range s.calls {
		switch {
		case k.kind == beating:
			if !c.busy && have[k.id].Checks[k.check] == nil {
				delete(s.calls, k)
			}
		case !k.writes() || c.busy || c.ended > began:
		case c.applied.Empty():
			if c.retry.Add(reread).Before(s.readAt) { // it failed, and its reason is gone
				delete(s.calls, k)
			}
		case c.applied.Made(have[k.id]):
			s.disputes.confirmed(c.applied, s.readAt)
			delete(s.calls, k)
		default:
			c.done(fmt.Errorf("%s: Consul does not hold what berth wrote", k.id))
			unconfirmed++
		}
	}
	s.consul = have
	s.disputes.compare(have, s.own, func(id string) bool { return s.calls[key{kind: changing, id: id}] != nil }, s.readAt)
	return unconfirmed
}

// dueAgain makes calls due at once that failed while Consul did not answer.
func (s *state) dueAgain(kinds ...kind) {
	for k, c := range s.calls {
		if slices.Contains(kinds, k.kind) {
			c.retry = time.Time{}
		}
	}
}

// applied records a change that Consul acknowledged; the next read must confirm it. If another token was used before, the
// catalog may be out of date.
func (s *state) applied(k key, c *call, made agent.Change, token string) {
	c.busy, c.applied = false, made
	switch {
	case made.Register:
		e := s.entries[k.id]
		e.stale = e.stale || (token != "" && e.token != token && s.consul[k.id].Held())
		e.registered, e.token = time.Now(), token
		if !made.Since.IsZero() || (e.since.IsZero() && made.NotReady != "") {
			e.since = e.registered
		}
		e.readyAt = made.ReadyAt
		s.entries[k.id] = e
	case made.Deregister:
		delete(s.calls, key{kind: publishing, id: k.id})
		delete(s.entries, k.id)
	}
	if other := s.calls[key{kind: changing, id: k.id}]; other != nil && k.kind == draining {
		other.applied = agent.Change{} // it may have ended another drain
	}
}

// sorted returns the inspected containers by age: the oldest one keeps a contested service ID.
func (s *state) sorted() []*tracked {
	known := slices.DeleteFunc(slices.Collect(maps.Values(s.containers)), func(t *tracked) bool { return !t.inspected() })
	slices.SortFunc(known, func(a, b *tracked) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.id, b.id))
	})
	return known
}

// known reports whether all existing containers were inspected; with failed, failed attempts count as well.
func (s *state) known(failed bool) bool {
	for id, t := range s.containers {
		if t.inspected() {
			continue
		}
		if !failed || s.last(key{kind: inspecting, id: id}).err == nil {
			return false
		}
	}
	return !s.firstAt.IsZero()
}
