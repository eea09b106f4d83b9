package registrar

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"

	"berth/registrar/agent"
	"berth/registrar/docker"
	"berth/registrar/label"
	"berth/registrar/retry"
)

// state holds everything known about Docker, the instances and Consul. The loop owns it.
type state struct {
	opts  Options
	own   agent.Ownership
	clock int           // counts events, and starts and ends of calls, to tell which came first
	calls map[key]*call // under way, failed, or not confirmed by a read yet

	// Docker.
	host       label.Host
	described  fresh
	listed     fresh
	listedAt   time.Time // the last time
	firstAt    time.Time // the first time
	containers map[string]*tracked
	ended      map[string]bool // IDs of containers that have ended since the last list, and may run again

	// Consul.
	consul  agent.State // nil until the first read
	read    fresh
	readAt  time.Time
	gate    int                       // registrations wait for a description of the host asked for at this clock
	refused map[string]label.Instance // by Consul, since the last list
}

// fresh tells whether an answer is up to date.
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
)

// writes reports whether a call changes what Consul holds.
func (k kind) writes() bool { return k == changing || k == draining || k == beating }

// key identifies a call; only one call of a key runs at a time. A drain does not wait for another change of its instance.
type key struct {
	kind
	id    string // of the container or instance; "" = all of them
	check string // of a heartbeat
}

// call describes the latest call of its key.
type call struct {
	busy         bool
	began, ended int          // clock
	succeeded    time.Time    // the last time
	applied      agent.Change // the change it made, until a later read confirms it
	err          error        // of the last attempt with a known outcome
	retry        time.Time    // earliest time of the next attempt
	delays       *backoff.ExponentialBackOff
}

// done records how a call ended. After each failure the next attempt waits longer.
func (c *call) done(err error) {
	c.busy, c.err, c.applied = false, err, agent.Change{}
	if err == nil {
		c.retry, c.delays = time.Time{}, nil
		return
	}
	if c.delays == nil {
		c.delays = retry.Delays()
	}
	c.retry = time.Now().Add(c.delays.NextBackOff())
}

// tracked is a container that runs or, with KeepFailed, has failed.
type tracked struct {
	id string
	label.Container
	seen      fresh // the last inspect; while it is stale, registrations stay
	since     int   // clock when it became known
	adopt     bool  // registrations from before this registrar started are yet to be taken over
	current   bool  // its registrations were made for its present run
	failure   string
	kills     []kill // not judged yet, because too little is known
	drain     *drain
	instances []*instance
	reasons   []string // why some of its ports are not registered
}

// kill records a signal sent to a container.
type kill struct {
	signal int
	at     time.Time
}

// instance is an instance of a container, prepared for comparison, with its probe.
type instance struct {
	desired agent.Desired
	*probe
}

// probe follows one instance until it is ready, in one run of its container.
type probe struct {
	since  time.Time
	ready  bool               // it has been ready once; from then on its checks decide
	late   string             // why it is not ready in time
	cancel context.CancelFunc // ends the goroutine that probes; nil = none runs
}

// drain describes a container that was told to stop and has not died yet.
type drain struct {
	reason string
	until  time.Time // from then on the container counts as one that ignored the signal
	signal int       // sent when the container is drained; 0 = none
	at     time.Time // when to send it
}

const (
	// stopping begins the maintenance reason of a container that was told to stop.
	stopping = "the container is being stopped by "

	// survives is how long a container may run on after the time that Docker gives it to stop.
	survives = 30 * time.Second

	sigkill = 9
)

func newState(opts Options) *state {
	s := &state{opts: opts, calls: map[key]*call{}, containers: map[string]*tracked{}, ended: map[string]bool{}, refused: map[string]label.Instance{}}
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
		c = &call{}
		s.calls[k] = c
	}
	c.busy, c.began = true, s.tick()
	return c
}

// inspected reports whether more than the ID of the container is known.
func (t *tracked) inspected() bool { return t.seen.got > 0 }

// resync marks everything that Docker was asked for as stale.
func (s *state) resync() { s.listed.wanted, s.described.wanted = s.tick(), s.tick() }

// describe records the host's description, and evaluates all containers again if it changed.
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
		s.takeSignals(t)
		s.evaluate(t)
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
		if !there[id] && t.since < began {
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
	case ev.Action == docker.Started: // whatever is known concerns a process that is gone
		s.drop(ev.ID)
		t = &tracked{id: ev.ID, since: s.tick()}
		t.seen.wanted = t.since
		s.containers[ev.ID] = t
	case t == nil:
		return false
	case ev.Action == docker.Changed:
		t.seen.wanted = s.tick()
	case ev.Action == docker.Killed:
		t.kills = append(t.kills, kill{ev.Signal, time.Now()})
		s.takeSignals(t)
	case ev.Action == docker.Died && t.inspected() && s.keeps(ev.Exit):
		t.fail(ev.Exit)
		t.seen.wanted = t.seen.got
		delete(s.calls, key{kind: inspecting, id: ev.ID}) // it would tell how it was
	default:
		s.drop(ev.ID)
	}
	return true
}

// drop forgets a container. Containers that use its network become unreachable.
func (s *state) drop(id string) {
	if s.containers[id] != nil {
		s.ended[id] = true
	}
	delete(s.containers, id)
	delete(s.calls, key{kind: inspecting, id: id})
	s.evaluateSharing(id)
}

// keeps reports whether a container stays registered after this exit code: it failed, and no signal ended it.
func (s *state) keeps(exit int) bool { return s.opts.KeepFailed && exit > 0 && exit < 128 }

func (t *tracked) fail(exit int) {
	t.drain, t.kills = nil, nil
	t.failure = fmt.Sprintf("the container ended with exit code %d", exit)
}

// inspected records the result of inspecting a container.
func (s *state) inspected(t *tracked, in docker.Inspected, began int) {
	switch {
	case in.Running:
		if t.inspected() && !t.Started.Equal(in.Started) { // it was restarted, and no event told of it
			t.current, t.drain, t.instances = false, nil, nil
		}
		t.Container, t.failure = in.Container, ""
	case in.Exited && s.keeps(in.ExitCode):
		if !t.inspected() { // its addresses are gone with its end
			t.Container = in.Container
		}
		t.fail(in.ExitCode)
	default:
		s.drop(t.id)
		return
	}
	t.seen.got = began
	s.takeSignals(t)
	s.evaluate(t)
	s.evaluateSharing(t.id)
}

// takeSignals judges the signals that Docker sent to a container. Its stop signal and SIGKILL take the container out of
// service. If SERVICE_STOP_SIGNAL names another signal, the stop signal only announces the stop, and the named signal
// follows when the container is drained.
func (s *state) takeSignals(t *tracked) {
	var later []kill
	for _, k := range t.kills {
		switch {
		case t.drain != nil && k.signal == sigkill:
			t.drain.signal = 0
		case !(t.inspected() && s.described.got > 0) && k.signal != sigkill:
			later = append(later, k)
		case t.drain == nil && (k.signal == sigkill || k.signal == t.StopSignal):
			t.drain = &drain{reason: stopping + label.SignalName(k.signal), until: k.at.Add(t.StopTimeout + survives)}
			if real := label.StopSignal(t.Container, s.host.Policy); k.signal == t.StopSignal && real != k.signal {
				// Well inside the time after which Docker kills the container.
				t.drain.signal, t.drain.at = real, k.at.Add(min(s.opts.DrainTime, t.StopTimeout/2))
			}
		}
	}
	t.kills = later
}

// outOfService returns why a container gets no new requests, or "".
func (t *tracked) outOfService() string {
	switch {
	case t.failure != "":
		return agent.Automatic + t.failure
	case t.drain != nil:
		return agent.Automatic + t.drain.reason
	case t.Paused:
		return agent.Automatic + "the container is paused"
	}
	return ""
}

// revive ends the drain of containers that were told to stop and still run: they have to become ready again. It returns
// their names.
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

// enoughKnown reports whether enough is known to tell what a container registers.
func (s *state) enoughKnown(t *tracked) bool {
	other := s.containers[t.NetworkOf]
	return t.inspected() && s.described.got > 0 && (other == nil || other.inspected())
}

// evaluate works out what a container registers. Instances that did not change keep their probes.
func (s *state) evaluate(t *tracked) {
	if !s.enoughKnown(t) {
		return
	}
	c := t.Container
	if other := s.containers[c.NetworkOf]; other != nil {
		c = c.Within(other.Container)
	}
	before := t.instances
	t.instances = nil
	var all []label.Instance
	all, t.reasons = label.Instances(c, s.host)
	for _, in := range all {
		i := &instance{agent.Prepare(in), s.carry(before, in)}
		if i.probe == nil {
			i.probe = &probe{since: time.Now()}
		}
		if in.Ready.Kind == label.ReadyNone || (in.Ready.Kind == label.ReadyHealthcheck && c.Health == "healthy") {
			i.ready = true
		}
		t.instances = append(t.instances, i)
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

// carry returns the probe that an instance keeps, or nil if it has to become ready again. It keeps its probe after a
// change of name or ID, and stays ready if only the probed address changed and it is registered as it is.
func (s *state) carry(before []*instance, in label.Instance) *probe {
	for _, b := range before {
		was := b.desired.Instance
		switch {
		case !was.Started.Equal(in.Started):
		case was.Ready == in.Ready:
			return b.probe
		case b.ready && was.ID == in.ID && s.consul[in.ID].Serves(in):
			return &probe{since: b.since, ready: true}
		}
	}
	return nil
}

// adopt takes over registrations from before this registrar started. They count as ready, so restarting the registrar
// takes no instance away, and a container that was being stopped stays out of service.
func (s *state) adopt() {
	for _, t := range s.containers {
		if !t.adopt || s.consul == nil || !s.enoughKnown(t) {
			continue
		}
		t.adopt, t.current = false, true
		for _, i := range t.instances {
			in := i.desired.Instance
			have := s.consul[in.ID]
			registrators := have.Held() && have.Meta[label.MetaOwner] == "" && s.own.MayTake(have.AgentService, in)
			if (have.Serves(in) || registrators) && have.WasReady() {
				i.ready = true
			}
			reason, _ := have.Maintenance()
			if have.Container() == t.id && t.outOfService() == "" && strings.HasPrefix(reason, agent.Automatic+stopping) {
				t.drain = &drain{reason: strings.TrimPrefix(reason, agent.Automatic), until: time.Now().Add(t.StopTimeout + survives)}
				t.drain.signal = label.StopSignal(t.Container, s.host.Policy)
			}
		}
	}
}

// consulHolds records what Consul holds, and returns how many changes it lacks although Consul acknowledged them. Changes
// made after the read began wait for the next read. If the host was described before Consul answered, without the address
// of its node, it is described again.
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
			if c.retry.Add(reread).Before(s.readAt) { // it failed, and there is no reason for it any more
				delete(s.calls, k)
			}
		case c.applied.Made(have[k.id]):
			delete(s.calls, k)
		default:
			c.done(fmt.Errorf("%s: consul does not hold what was written", k.id))
			unconfirmed++
		}
	}
	s.consul = have
	return unconfirmed
}

// applied records a change that Consul acknowledged. The next read has to confirm it.
func (s *state) applied(k key, c *call, made agent.Change) {
	c.busy, c.applied = false, made
	if t := s.containers[made.Container]; t != nil && made.Register {
		t.current = true
	}
	if other := s.calls[key{kind: changing, id: k.id}]; other != nil && k.kind == draining {
		other.applied = agent.Change{} // it may have ended another drain
	}
}

// sorted returns the inspected containers by age: the oldest holder of a service ID keeps it.
func (s *state) sorted() []*tracked {
	known := slices.DeleteFunc(slices.Collect(maps.Values(s.containers)), func(t *tracked) bool { return !t.inspected() })
	slices.SortFunc(known, func(a, b *tracked) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.id, b.id))
	})
	return known
}

// known reports whether all containers that exist were inspected; with failed, failed attempts count as well.
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
