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

// state is all that is known of Docker, of what the instances say, and of Consul. The loop owns it.
type state struct {
	opts  Options
	own   agent.Ownership
	clock int           // counts events, and beginnings and ends of calls: what came first
	calls map[key]*call // under way, to be made again, or not seen to have had their effect

	// Docker.
	host       label.Host
	described  fresh
	listed     fresh
	listedAt   time.Time // the last time
	firstAt    time.Time // the first time
	containers map[string]*tracked
	ended      map[string]bool // IDs of containers that have ended since the last list, and may run again

	// Consul.
	consul  agent.State // nil until it was read
	read    fresh
	readAt  time.Time
	gate    int                       // clock of the description of the host that registrations wait for
	refused map[string]label.Instance // by Consul, since the last list
}

// fresh says whether something is to be asked for.
type fresh struct {
	wanted int // clock when there was a reason to; 0 = it was not asked for
	got    int // clock at the beginning of the last call that succeeded; 0 = there was none
}

func (f fresh) stale() bool { return f.wanted > f.got }

// kind is a kind of call.
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

// writes says whether a call changes what Consul holds.
func (k kind) writes() bool { return k == changing || k == draining || k == beating }

// key tells calls apart: of each there is one at a time. A drain does not wait for another change of its instance.
type key struct {
	kind
	id    string // of the container or the instance; "" = for all
	check string // of a heartbeat
}

// call is the last one of its key.
type call struct {
	busy         bool
	began, ended int          // clock
	succeeded    time.Time    // the last time
	applied      agent.Change // what it has changed, until a read that began after its end tells whether Consul holds that
	err          error        // of the last one whose effect is known
	retry        time.Time    // not to be made before
	delays       *backoff.ExponentialBackOff
}

// done takes note of how a call ended. After a failure it is made again, later each time.
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
	seen      fresh // by inspecting it: while that is stale its registrations stay
	since     int   // clock when it was known first
	adopt     bool  // what Consul holds of it from before is to be looked at
	current   bool  // what Consul holds of it was made for its present run
	failure   string
	kills     []kill // that are to be judged once enough is known
	drain     *drain
	instances []*instance
	reasons   []string // why some of it is not registered
}

// kill is a signal that a container was sent.
type kill struct {
	signal int
	at     time.Time
}

// instance is one of a container's, prepared for comparison, with what it says.
type instance struct {
	desired agent.Desired
	*probe
}

// probe is the way of one instance to being ready, in one run of its container.
type probe struct {
	since  time.Time
	ready  bool               // it was once: since then its checks tell
	late   string             // why it is not ready, though it should be
	cancel context.CancelFunc // of the goroutine that tries; nil = there is none
}

// drain is what becomes of a container that was told to stop and has not died yet.
type drain struct {
	reason string
	until  time.Time // when it is taken for one that does not stop after all
	signal int       // that is to follow; 0 = none is
	at     time.Time // when
}

const (
	// stopping begins the reason for which a container that was told to stop is out of service.
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

// last returns the last call of a key, which is the zero call if there was none.
func (s *state) last(k key) call {
	if c := s.calls[k]; c != nil {
		return *c
	}
	return call{}
}

// begin takes note of a call that is being made.
func (s *state) begin(k key) *call {
	c := s.calls[k]
	if c == nil {
		c = &call{}
		s.calls[k] = c
	}
	c.busy, c.began = true, s.tick()
	return c
}

// inspected says whether a container is known by more than its ID.
func (t *tracked) inspected() bool { return t.seen.got > 0 }

// resync has Docker asked for everything.
func (s *state) resync() { s.listed.wanted, s.described.wanted = s.tick(), s.tick() }

// describe takes in what the host is like. What changes with it is the containers' instances.
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

// list makes the containers that exist known, and drops all others, but for those that are newer than the list.
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

// event takes in an event, and reports whether it concerns a known container or a new one.
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

// drop forgets a container. Those that use its network are not reached any more.
func (s *state) drop(id string) {
	s.ended[id] = s.ended[id] || s.containers[id] != nil
	delete(s.containers, id)
	delete(s.calls, key{kind: inspecting, id: id})
	s.evaluateSharing(id)
}

// keeps says whether a container that ended like this stays registered: it ended by itself, and not well.
func (s *state) keeps(exit int) bool { return s.opts.KeepFailed && exit > 0 && exit < 128 }

func (t *tracked) fail(exit int) {
	t.drain, t.kills = nil, nil
	t.failure = fmt.Sprintf("the container ended with exit code %d", exit)
}

// inspected takes in what Docker says of a container.
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

// takeSignals takes note of signals that Docker has sent to a container. A signal that ends the container takes it out of
// service: its stop signal, and SIGKILL. If that signal is only a sign, and the real one is in SERVICE_STOP_SIGNAL, the
// real one follows when the container is drained.
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

// outOfService is why a container gets no new requests, "" if it does.
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

// revive puts containers that were told to stop and run on back to where they have to show that they are ready. It
// returns their names.
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

// enoughKnown says whether enough is known to tell what a container registers.
func (s *state) enoughKnown(t *tracked) bool {
	other := s.containers[t.NetworkOf]
	return t.inspected() && s.described.got > 0 && (other == nil || other.inspected())
}

// evaluate works out what a container registers, with the probes of those of its instances that are as they were.
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

// evaluateSharing works out anew what containers register that use another one's network.
func (s *state) evaluateSharing(id string) {
	for _, t := range s.containers {
		if t.NetworkOf == id {
			s.evaluate(t)
		}
	}
}

// carry returns the probe that goes on for an instance, nil if it has to show anew that it is ready. It has not after a
// change of its name or ID, nor if merely where it is probed has changed and it is registered as it is.
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

// adopt takes over what is registered from before the registrar knew the containers: it was ready once and stays, so that
// a restart of the registrar takes nothing away; and a container that was being stopped then is so still.
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

// consulHolds takes in what Consul holds. It returns how many changes that Consul said it made are missing there. What was
// done after the read began is for the next one to tell. If the host was described while Consul told nothing, of its node
// neither, it is to be described again.
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

// applied takes note of a change that was made. It is for the next read to tell that it was.
func (s *state) applied(k key, c *call, made agent.Change) {
	c.busy, c.applied = false, made
	if t := s.containers[made.Container]; t != nil && made.Register {
		t.current = true
	}
	if other := s.calls[key{kind: changing, id: k.id}]; other != nil && k.kind == draining {
		other.applied = agent.Change{} // it may have ended another drain
	}
}

// sorted are the inspected containers by their age, so that the oldest holder of a service ID keeps it.
func (s *state) sorted() []*tracked {
	known := slices.DeleteFunc(slices.Collect(maps.Values(s.containers)), func(t *tracked) bool { return !t.inspected() })
	slices.SortFunc(known, func(a, b *tracked) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.id, b.id))
	})
	return known
}

// known says whether all containers that exist were inspected, or with failed at least tried to.
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
