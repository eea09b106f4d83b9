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

	"berth/registrar/agent"
	"berth/registrar/async"
	"berth/registrar/docker"
	"berth/registrar/label"
)

// state is all that is known of Docker, of what the instances say, and of Consul. The loop owns it.
type state struct {
	opts Options
	own  agent.Ownership

	// Docker.
	base       label.Host // as Docker describes it
	node       Node       // of the Consul agent
	host       label.Host // both together
	described  bool       // base is known
	listedAt   time.Time  // when all containers were known by their ID for the first time
	containers map[string]*tracked
	hostErr    error
	listErr    error

	// Consul.
	asking   async.Attempt // about the node
	asked    bool          // about the node: it is known, or Consul tells everything else but that
	outdated bool          // the node may have changed
	consul   agent.State   // nil until it was read
	reading  async.Attempt
	readAt   time.Time // when it was read
	stale    bool      // it is to be read
	clock    int       // counts ends of operations and beginnings of reads
	began    int       // clock at the beginning of the last read
	ops      map[lane]*operation
	beats    map[string]*heartbeat     // by check ID
	refused  map[string]label.Instance // by Consul, since the last list
}

// tracked is a container that runs or, with KeepFailed, has failed.
type tracked struct {
	id string
	label.Container
	inspected bool  // Container is known
	unknown   bool  // it is to be inspected: until then its registrations stay
	err       error // why it could not be inspected
	adopt     bool  // what Consul holds of it from before is to be looked at
	ours      bool  // what Consul holds of it was made for its present run
	failure   string
	kills     []int // signals it was sent that are to be judged once enough is known
	drain     *drain
	instances []*instance
	reasons   []string // why some of it is not registered
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

// lane is where the operations on an instance queue. A drain does not queue behind another operation.
type lane struct {
	id    string
	drain bool
}

// operation is the last operation on an instance. It ends when a read that began after it shows what it did.
type operation struct {
	async.Attempt
	change  agent.Change // that was applied, empty if none was
	ended   int          // clock at its end
	endedAt time.Time
	read    bool // Consul was read since
}

// heartbeat is the last word to Consul about a TTL check.
type heartbeat struct {
	async.Attempt
	instance string
	last     time.Time // when Consul heard it
}

const (
	// stopping begins the reason for which a container that was told to stop is out of service.
	stopping = "the container is being stopped by "

	// survives is how long a container may run on after the time that Docker gives it to stop.
	survives = 30 * time.Second

	sigkill = 9
)

func newState(opts Options) *state {
	s := &state{
		opts:       opts,
		containers: map[string]*tracked{},
		asked:      opts.Node == nil,
		outdated:   opts.Node != nil,
		stale:      true,
		ops:        map[lane]*operation{},
		beats:      map[string]*heartbeat{},
		refused:    map[string]label.Instance{},
	}
	if opts.Adopt != "" {
		s.own.Adopt = agent.RegistratorIDs(opts.Adopt)
	}
	return s
}

// describe takes in what the host is like. What changes with it is the containers' instances.
func (s *state) describe() {
	h := s.base
	if s.opts.Owner != "" {
		h.EngineID += "/" + s.opts.Owner
	}
	if s.opts.Node != nil {
		h.NodeAddress, h.Addresses, h.Scripts = s.node.Address, s.node.Addresses, h.Scripts && s.node.Scripts
	}
	if reflect.DeepEqual(h, s.host) {
		return
	}
	s.host, s.own.Owner = h, h.EngineID
	for _, t := range s.containers {
		s.judge(t)
		s.answer(t)
	}
}

// list makes the containers that exist known, and drops all others.
func (s *state) list(ids []string) {
	there := map[string]bool{}
	for _, id := range ids {
		there[id] = true
		if s.containers[id] == nil {
			s.containers[id] = &tracked{id: id, adopt: true}
		}
		s.containers[id].unknown = true
	}
	for id := range s.containers {
		if !there[id] {
			s.drop(id)
		}
	}
	if s.listedAt.IsZero() {
		s.listedAt = time.Now()
	}
	s.stale, s.outdated = true, s.opts.Node != nil
	clear(s.refused)
}

// happened takes in an event.
func (s *state) happened(ev docker.Event) {
	t := s.containers[ev.ID]
	switch {
	case ev.Action == docker.Started: // whatever is known concerns a process that is gone
		s.containers[ev.ID] = &tracked{id: ev.ID, unknown: true}
	case t == nil:
	case ev.Action == docker.Changed:
		t.unknown = true
	case ev.Action == docker.Killed:
		t.kills = append(t.kills, ev.Signal)
		s.judge(t)
	case ev.Action == docker.Died && t.inspected && s.keeps(ev.Exit):
		t.fail(ev.Exit)
	default:
		s.drop(ev.ID)
	}
}

// drop forgets a container. Those that use its network are not reached any more.
func (s *state) drop(id string) {
	delete(s.containers, id)
	s.answerWithin(id)
}

// keeps says whether a container that ended like this stays registered: it ended by itself, and not well.
func (s *state) keeps(exit int) bool { return s.opts.KeepFailed && exit > 0 && exit < 128 }

func (t *tracked) fail(exit int) {
	t.unknown, t.drain, t.kills = false, nil, nil
	t.failure = fmt.Sprintf("the container ended with exit code %d", exit)
}

// inspected takes in what Docker says of a container.
func (s *state) inspected(in docker.Inspected) {
	t := s.containers[in.ID]
	if t == nil {
		return
	}
	if t.err = in.Err; t.err != nil {
		return
	}
	t.unknown = false
	switch {
	case in.Running:
		if t.inspected && !t.Started.Equal(in.Container.Started) { // it was restarted, and no event told of it
			t.ours, t.drain, t.instances = false, nil, nil
		}
		t.failure = ""
		t.Container = in.Container
	case in.Exited && s.keeps(in.Container.ExitCode):
		if !t.inspected { // its addresses are gone with its end
			t.Container = in.Container
		}
		t.fail(in.Container.ExitCode)
	default:
		s.drop(in.ID)
		return
	}
	t.inspected = true
	s.judge(t)
	s.answer(t)
	s.answerWithin(t.id)
}

// judge takes note of signals that Docker has sent to a container. A signal that ends the container takes it out of
// service: its stop signal, and SIGKILL. If that signal is only a sign, and the real one is in SERVICE_STOP_SIGNAL, the
// real one follows when the container is drained.
func (s *state) judge(t *tracked) {
	later := []int(nil)
	for _, signal := range t.kills {
		switch {
		case t.drain != nil && signal == sigkill:
			t.drain.signal = 0
		case !(t.inspected && s.described) && signal != sigkill:
			later = append(later, signal)
		case t.drain == nil && (signal == sigkill || signal == t.StopSignal):
			now := time.Now()
			t.drain = &drain{reason: stopping + label.SignalName(signal), until: now.Add(t.StopTimeout + survives)}
			if real := label.StopSignal(t.Container, s.host.Policy); signal == t.StopSignal && real != signal {
				// Well inside the time after which Docker kills the container.
				t.drain.signal, t.drain.at = real, now.Add(min(s.opts.DrainTime, t.StopTimeout/2))
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

// revive puts a container that was told to stop and runs on back to where it has to show that it is ready.
func (s *state) revive(t *tracked) {
	t.drain, t.instances = nil, nil
	s.answer(t)
}

// answer works out what a container registers, with the probes of those of its instances that are as they were.
func (s *state) answer(t *tracked) {
	c := t.Container
	if !t.inspected || !s.described {
		return
	}
	if other := s.containers[c.NetworkOf]; other != nil {
		if !other.inspected {
			return
		}
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

// answerWithin works out anew what containers register that use another one's network.
func (s *state) answerWithin(id string) {
	for _, t := range s.containers {
		if t.inspected && t.NetworkOf == id {
			s.answer(t)
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
	if s.consul == nil || !s.described {
		return
	}
	for _, t := range s.containers {
		if !t.adopt || !t.inspected {
			continue
		}
		t.adopt, t.ours = false, true
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

// startRead takes note that Consul is being read.
func (s *state) startRead() {
	s.reading.Start()
	s.clock++
	s.stale, s.began = false, s.clock
}

// read takes in what Consul holds, but for instances with which something was done meanwhile: of these a later read tells.
func (s *state) read(have agent.State, err error) {
	if s.reading.Done(err); err != nil {
		s.stale = true
		return
	}
	s.readAt = time.Now()
	if !s.asked {
		s.asking.At = time.Time{}
	}
	for l, op := range s.ops {
		if op.Busy || op.ended > s.began {
			if was, held := s.consul[l.id]; held {
				have[l.id] = was
			} else {
				delete(have, l.id)
			}
		} else {
			op.read = true
		}
	}
	s.consul = have
	maps.DeleteFunc(s.beats, func(check string, b *heartbeat) bool { return !b.Busy && have[b.instance].Checks[check] == nil })
}

// start takes note of an operation that is being made.
func (s *state) start(l lane) {
	if s.ops[l] == nil {
		s.ops[l] = &operation{}
	}
	s.ops[l].Start()
	s.ops[l].change = agent.Change{}
}

// done takes note of how an operation ended. Without an error it is for the next read to tell.
func (s *state) done(l lane, c agent.Change, err error) {
	op := s.ops[l]
	s.clock++
	op.ended, op.endedAt, op.read = s.clock, time.Now(), false
	if err != nil {
		op.Done(err)
		s.stale = true
		return
	}
	op.Busy, op.change = false, c
	if t := s.containers[c.Desired.Container]; t != nil && c.Register {
		t.ours = true
	}
}

// beat returns the heartbeat of a check.
func (s *state) beat(instance, check string) *heartbeat {
	if s.beats[check] == nil {
		s.beats[check] = &heartbeat{instance: instance}
	}
	return s.beats[check]
}

// sorted are the inspected containers by their age, so that the oldest holder of a service ID keeps it.
func (s *state) sorted() []*tracked {
	known := slices.DeleteFunc(slices.Collect(maps.Values(s.containers)), func(t *tracked) bool { return !t.inspected })
	slices.SortFunc(known, func(a, b *tracked) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.id, b.id))
	})
	return known
}
