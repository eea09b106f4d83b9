package process

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"time"

	"berth/registrar/agent"
	"berth/registrar/label"
	"berth/registrar/retry"
)

const (
	// ownerPrefix begins the owner of a process's registration, where others have their Docker engine.
	ownerPrefix = "process:"

	// checkEvery is how often the agent is asked, at least: within so long what it has lost is registered again.
	checkEvery = 3 * time.Second
)

// registration keeps one instance at a Consul agent as desired, whatever becomes of the agent. Its methods are for one
// goroutine, and only remove waits for the agent.
type registration struct {
	agent   agent.Agent
	log     *slog.Logger
	owner   string        // in the metadata
	every   time.Duration // between two looks at the agent
	output  string        // of its TTL check
	desired agent.Desired

	cancel context.CancelFunc // ends the goroutine of keep; nil = there was none yet
	done   chan struct{}      // closed when it has ended

	// These belong to keep's goroutine, and to remove after its end.
	registered bool  // it has registered once: what another one registers since is not taken over
	err        error // how it went last
}

func newRegistration(opts Options, in label.Instance, pid int) *registration {
	owner := fmt.Sprintf("%s%s:%d", ownerPrefix, opts.Host, pid)
	in.Meta = maps.Clone(in.Meta)
	in.Meta[label.MetaOwner] = owner
	return &registration{
		agent:   agent.Agent{Client: opts.Consul, Log: opts.Log},
		log:     opts.Log.With("instance", in.ID),
		owner:   owner,
		every:   min(opts.TTL/3, checkEvery),
		output:  fmt.Sprintf("process %d runs", pid),
		desired: agent.Desired{Instance: in, Waited: opts.ReadyTimeout},
	}
}

// register has the agent hold the instance from now on, as critical if there is a reason why it is not ready.
func (r *registration) register(notReady error) {
	r.desired.NotReady = ""
	if notReady != nil {
		r.desired.NotReady = notReady.Error()
	}
	r.keep()
}

// drain takes the instance out of service, and reports whether that is worth waiting for: it was to be registered.
func (r *registration) drain(reason string) bool {
	if r.cancel == nil {
		return false
	}
	r.desired.Drain = agent.Automatic + reason
	r.keep()
	return true
}

// keep has the agent hold what is desired now. A call that is under way for what was desired before is given up.
func (r *registration) keep() {
	before, desired := r.done, r.desired
	if r.cancel != nil {
		r.cancel()
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	r.cancel, r.done = cancel, done
	go func() {
		defer close(done)
		if before != nil {
			<-before
		}
		r.repeat(ctx, func() (done bool) {
			r.record(ctx, r.sync(ctx, desired))
			return false
		})
	}()
}

// remove deregisters, and gives up on that when the agent does not answer for a while: then the TTL ends what it holds.
func (r *registration) remove() {
	if r.cancel == nil {
		return
	}
	r.cancel()
	<-r.done
	ctx, cancel := context.WithTimeout(context.Background(), agent.Timeout)
	defer cancel()
	r.repeat(ctx, func() (done bool) {
		r.err = r.deregister(ctx)
		return r.err == nil || !r.registered // it may have registered without an answer
	})
	if r.err != nil && r.registered {
		r.log.Error("not deregistered: Consul takes it for critical when its TTL is over", "err", r.err)
	}
}

// repeat calls f every so often, and after failures with growing delays, until it is done or ctx is.
func (r *registration) repeat(ctx context.Context, f func() (done bool)) {
	delays := retry.Delays()
	for !f() {
		wait := r.every
		if r.err != nil {
			wait = delays.NextBackOff()
		} else {
			delays.Reset()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// record keeps how it went, and logs when that changes.
func (r *registration) record(ctx context.Context, err error) {
	before := r.err
	if r.err = err; ctx.Err() != nil {
		return // cut short, which says nothing
	}
	switch {
	case err != nil && (before == nil || before.Error() != err.Error()):
		r.log.Error("not registered as it should be, the process runs on; trying again", "err", err)
	case err == nil && before != nil:
		r.log.Info("registered as it should be again")
	}
}

// sync makes the agent hold what is desired, and passes its TTL check. A change that fails keeps no heartbeat from what
// is registered already.
func (r *registration) sync(ctx context.Context, desired agent.Desired) error {
	have, err := r.read(ctx)
	if err != nil {
		return err
	}
	if have.Held() && !r.mayReplace(have) {
		return fmt.Errorf("service ID %s is held by another registration, of %q: choose another id or deregister it", have.ID, have.Meta[label.MetaOwner])
	}
	change := agent.Diff(desired, have)
	err = r.agent.Apply(ctx, change)
	if change.Register && err == nil {
		r.registered = true
		// At once, too: an agent keeps the state of a check over its restart only from the first heartbeat on.
		if have, err = r.read(ctx); err != nil {
			return err
		}
	}
	for _, h := range desired.Heartbeats(have, r.output) {
		if failed := r.agent.Beat(ctx, h); err == nil {
			err = failed
		}
	}
	return err
}

// deregister removes the registration, if it is this process's.
func (r *registration) deregister(ctx context.Context) error {
	have, err := r.read(ctx)
	if err != nil || !have.Held() || have.Meta[label.MetaOwner] != r.owner {
		return err
	}
	return r.agent.Apply(ctx, agent.Change{Desired: have.Desired(), Deregister: true})
}

func (r *registration) read(ctx context.Context) (agent.Registered, error) {
	state, err := r.agent.Read(ctx, r.desired.ID)
	return state[r.desired.ID], err
}

// mayReplace reports whether a registration is this process's, or an earlier one's whose berth was killed.
func (r *registration) mayReplace(have agent.Registered) bool {
	owner := have.Meta[label.MetaOwner]
	return owner == r.owner || (!r.registered && strings.HasPrefix(owner, ownerPrefix))
}
