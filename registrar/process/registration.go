package process

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"berth/registrar/agent"
	"berth/registrar/label"
	"berth/registrar/retry"
)

const (
	// ownerPrefix begins the owner in a process's registration. The owner of a container's registration is its Docker
	// engine.
	ownerPrefix = "process:"

	// checkEvery is the longest interval between two reads of the agent: a lost registration is back by then.
	checkEvery = 3 * time.Second

	// checkMost is the longest pause before another attempt, plus up to half as much.
	checkMost = 650 * time.Millisecond

	// settles is how long an agent may take to pass a change on to the catalog.
	settles = 3 * time.Second

	// leaveTime limits the function returned by Options.Leave.
	leaveTime = time.Second
)

// registration keeps one instance registered at a Consul agent, even if the agent restarts or loses its state. One goroutine
// calls its methods, and only remove waits for the agent.
type registration struct {
	agent   agent.Agent
	log     *slog.Logger
	owner   string        // as in the metadata
	every   time.Duration // between two reads of the agent
	output  string        // output of its TTL check; Consul may show it for minutes after a change, so it only describes berth
	catalog *agent.Catalog
	token   func() string
	tags    []string  // configured tags
	begun   time.Time // when the process was started
	readyAt time.Time // when it became ready; zero = not ready
	desired agent.Desired
	leave   func() (given func(context.Context))
	given   func(context.Context) // wait for it before registering the instance as critical; nil = nothing to wait for

	cancel   context.CancelFunc // ends the goroutine of keep; nil = not started yet
	done     chan struct{}      // closed when that goroutine has ended
	outcomes chan outcome       // newest outcome of its attempts
	latest   outcome            // last outcome received

	// These belong to keep's goroutine, and after its end to remove.
	registered bool  // it has registered once; from then on it replaces no other process's registration
	held       bool  // the agent held the instance at the last read
	err        error // of the last attempt
	lasting    retry.Lasting
	toldReady  time.Time  // readyAt of the last registration
	signed     string     // mark of the token of the last registration, "" = none
	reason     string     // why it was not ready then
	published  time.Time  // when it was last registered, or put into the catalog
	stale      bool       // the catalog may hold data written with another token
	view       agent.View // of the catalog
}

// outcome is the result of an attempt to make the agent hold the desired state.
type outcome struct {
	told bool // the agent holds exactly that
	held bool // it holds the instance, or did at its last answer
}

// newRegistration returns the registration of an instance. It belongs to one berth process, which may restart the process it
// registers, because only that berth knows the state of the instance.
func newRegistration(opts Options, in label.Instance, berth int) *registration {
	owner := fmt.Sprintf("%s%s:%d", ownerPrefix, opts.Host, berth)
	in.Meta = maps.Clone(in.Meta)
	in.Meta[label.MetaOwner] = owner
	return &registration{
		agent:   agent.Agent{Client: opts.Consul, Log: opts.Log},
		log:     opts.Log.With("instance", in.ID),
		owner:   owner,
		every:   min(opts.TTL/3, checkEvery),
		output:  fmt.Sprintf("berth service runs as process %d", berth),
		catalog: opts.Catalog,
		token:   opts.Token,
		tags:    in.Tags,
		desired: agent.Desired{Instance: in},
		leave:   opts.Leave,
	}
}

// active reports whether the instance is, or will be, registered.
func (r *registration) active() bool { return r.cancel != nil }

// register registers the instance, as critical if it is not ready.
func (r *registration) register(notReady error) { r.registerAfter(0, notReady) }

// registerAfter is register for a process that was given so long to become ready.
func (r *registration) registerAfter(waited time.Duration, notReady error) {
	r.desired.Started, r.desired.Waited, r.desired.NotReady = r.begun, waited, ""
	r.given = nil
	switch {
	case notReady != nil:
		r.desired.NotReady, r.readyAt = notReady.Error(), time.Time{}
		r.leaves()
	case r.readyAt.IsZero():
		r.readyAt = time.Now()
	}
	r.desired.ReadyAt = r.readyAt
	r.keep()
}

// leaves releases what the instance's checks hold.
func (r *registration) leaves() {
	if r.leave != nil {
		r.given = r.leave()
	}
}

// awaitGiven waits for that release.
func awaitGiven(ctx context.Context, given func(context.Context)) {
	if given == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()
	given(ctx)
}

// drain takes the instance out of service, and reports whether it was registered, and so needs draining. An unregistered
// instance is not registered before resume.
func (r *registration) drain(reason string) bool {
	r.desired.Drain = agent.Automatic + reason
	return r.change()
}

// resume puts the instance back in service.
func (r *registration) resume() {
	r.desired.Drain = ""
	r.change()
}

// tag registers these tags in addition to the configured ones.
func (r *registration) tag(tags []string) {
	r.desired.Tags = slices.Clone(r.tags)
	for _, t := range tags {
		if !slices.Contains(r.desired.Tags, t) {
			r.desired.Tags = append(r.desired.Tags, t)
		}
	}
	r.change()
}

// change makes the agent hold the current desired state if it holds an earlier one, and reports whether it does.
func (r *registration) change() bool {
	if r.active() {
		r.keep()
	}
	return r.active()
}

// keep makes the agent hold the current desired state from now on. It cancels a call for an earlier state.
func (r *registration) keep() {
	before, desired, given := r.done, r.desired, r.given
	if r.cancel != nil {
		r.cancel()
	}
	ctx, cancel := context.WithCancel(context.Background())
	done, outcomes := make(chan struct{}), make(chan outcome, 1)
	r.cancel, r.done, r.outcomes = cancel, done, outcomes
	r.latest.told = false
	go func() {
		defer close(done)
		if before != nil {
			<-before
		}
		if awaitGiven(ctx, given); ctx.Err() != nil {
			return
		}
		r.repeat(ctx, func() (done bool) {
			have, err := r.sync(ctx, desired)
			r.record(ctx, err)
			select {
			case <-outcomes: // an older outcome that was not received
			default:
			}
			outcomes <- outcome{told: err == nil && agent.Diff(desired, have).Empty(), held: r.held}
			return false
		})
	}()
}

// remove deregisters the instance. If the agent does not answer for a while, it gives up, and the TTL expires.
func (r *registration) remove() {
	if r.cancel == nil {
		return
	}
	r.cancel()
	<-r.done
	ctx, cancel := context.WithTimeout(context.Background(), agent.Timeout)
	defer cancel()
	r.leaves()
	awaitGiven(ctx, r.given)
	r.repeat(ctx, func() (done bool) {
		r.err = r.deregister(ctx)
		return r.err == nil || !r.registered // even an unanswered call may have registered it
	})
	if r.err != nil && r.registered {
		r.log.Error("cannot deregister "+r.desired.ID+"; Consul makes it critical when its TTL expires", "err", r.err)
	}
}

// repeat calls f at an interval, with growing delays after failures, until f returns true or ctx is done.
func (r *registration) repeat(ctx context.Context, f func() (done bool)) {
	delays := retry.Delays()
	delays.MaxInterval = checkMost
	for !f() {
		wait := r.every
		if r.err != nil {
			wait = delays.NextBackOff()
		} else {
			delays.Reset()
		}
		if !retry.Pause(ctx, wait) {
			return
		}
	}
}

// record records the outcome of an attempt. It logs changes, and repeats lasting failures now and then.
func (r *registration) record(ctx context.Context, err error) {
	if r.err = err; ctx.Err() != nil {
		return // interrupted, so it says nothing
	}
	if err != nil {
		if tell, lasts := r.lasting.Tell(err.Error(), time.Now()); tell {
			r.log.Error("cannot keep "+r.desired.ID+" registered as wanted; its process runs on, trying again", append(retry.For(lasts), "err", err)...)
		}
	} else if was, lasted := r.lasting.Over(time.Now()); was {
		r.log.Info(r.desired.ID+" is registered as wanted again", retry.For(lasted)...)
	}
}

// sync makes the agent hold the desired state, and passes its TTL check. The heartbeat goes out even if the change fails. It
// returns what the agent holds afterwards, as far as known.
func (r *registration) sync(ctx context.Context, desired agent.Desired) (have agent.Registered, err error) {
	if have, err = r.read(ctx); err != nil {
		return have, err
	}
	if have.Held() && !r.mayReplace(have) {
		return agent.Registered{}, fmt.Errorf("service ID %s belongs to another registration, of %q: choose another id or deregister it", have.ID, have.Meta[label.MetaOwner])
	}
	change, token := agent.Diff(desired, have), agent.Mark(r.token)
	// Changes that agent.Diff does not see, or not while the instance is drained.
	renewed := desired.Drain == "" && (token != r.signed || (desired.NotReady != "" && desired.NotReady != r.reason))
	retagged := have.Held() && !change.Maintain && !slices.Equal(have.Tags, desired.Tags)
	change.Register = change.Register || renewed || retagged
	if !desired.ReadyAt.Equal(r.toldReady) {
		change.Since = desired.ReadyAt
	}
	err = r.agent.Apply(ctx, change)
	if change.Register && err == nil {
		r.toldReady = desired.ReadyAt
		r.stale = r.stale || (r.registered && token != r.signed)
		r.registered, r.signed, r.reason = true, token, desired.NotReady
	}
	if !change.Empty() && err == nil {
		// The first heartbeat follows at once. Before it, an agent that restarts loses the state of the check.
		if have, err = r.read(ctx); err != nil {
			return have, err
		}
	}
	for _, h := range desired.Heartbeats(have, r.output) {
		if failed := r.agent.Beat(ctx, h); err == nil {
			err = failed
		}
	}
	if r.catalog != nil && err == nil && have.Held() {
		r.publish(ctx, have)
	}
	return have, err
}

// publish puts the instance into the catalog if the catalog lacks it or may hold old data. If that fails, the agent does so
// later. The next heartbeat must not wait for servers that do not answer.
func (r *registration) publish(ctx context.Context, have agent.Registered) {
	if time.Since(r.published) < settles && !r.stale {
		return
	}
	if r.published.IsZero() {
		r.published = time.Now() // the agent is about to do so
		return
	}
	ctx, cancel := context.WithTimeout(ctx, r.every)
	defer cancel()
	var err error
	if r.view, err = r.catalog.Look(ctx, agent.View{Node: r.view.Node, There: r.view.There}); err != nil {
		return
	}
	if (r.stale || !r.view.Services[have.ID]) && r.catalog.Publish(ctx, r.view, have) == nil {
		r.published, r.stale = time.Now(), false
		r.log.Info("put " + have.ID + " into Consul's catalog, as the agent holds it")
	}
}

// deregister removes the registration if it belongs to this process.
func (r *registration) deregister(ctx context.Context) error {
	have, err := r.read(ctx)
	if err != nil || !have.Held() || have.Meta[label.MetaOwner] != r.owner {
		return err
	}
	return r.agent.Apply(ctx, agent.Change{Desired: have.Desired(), Deregister: true})
}

func (r *registration) read(ctx context.Context) (agent.Registered, error) {
	state, err := r.agent.Read(ctx, r.desired.ID)
	have := state[r.desired.ID]
	if err == nil {
		r.held = have.Held() && have.Meta[label.MetaOwner] == r.owner
	}
	return have, err
}

// mayReplace reports whether a registration belongs to this process, or to an earlier one whose berth was killed.
func (r *registration) mayReplace(have agent.Registered) bool {
	owner := have.Meta[label.MetaOwner]
	return owner == r.owner || (!r.registered && strings.HasPrefix(owner, ownerPrefix))
}
