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
	// ownerPrefix begins the owner in a process's registration; the owner of a container's is its Docker engine.
	ownerPrefix = "process:"

	// checkEvery is the longest interval between two reads of the agent: a registration that it lost is back by then.
	checkEvery = 3 * time.Second
)

// registration keeps one instance registered at a Consul agent, even if the agent restarts or loses its state. One
// goroutine calls its methods, and only remove waits for the agent.
type registration struct {
	agent   agent.Agent
	log     *slog.Logger
	owner   string        // in the metadata
	every   time.Duration // between two reads of the agent
	output  string        // of its TTL check
	desired agent.Desired

	cancel context.CancelFunc // ends the goroutine of keep; nil = not started yet
	done   chan struct{}      // closed when that goroutine has ended

	// These belong to keep's goroutine, and to remove after its end.
	registered bool  // it has registered once, and from then on replaces no other process's registration
	err        error // of the last attempt
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

// register registers the instance, as critical if it is not ready.
func (r *registration) register(notReady error) {
	r.desired.NotReady = ""
	if notReady != nil {
		r.desired.NotReady = notReady.Error()
	}
	r.keep()
}

// drain takes the instance out of service, and reports whether it was registered, so that draining makes sense.
func (r *registration) drain(reason string) bool {
	if r.cancel == nil {
		return false
	}
	r.desired.Drain = agent.Automatic + reason
	r.keep()
	return true
}

// keep makes the agent hold the current desired state from now on. It cancels a call for an earlier state.
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

// remove deregisters the instance. It gives up if the agent does not answer for a while: the TTL then expires.
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
		return r.err == nil || !r.registered // even an unanswered call may have registered it
	})
	if r.err != nil && r.registered {
		r.log.Error("not deregistered: Consul takes it for critical when its TTL is over", "err", r.err)
	}
}

// repeat calls f at an interval, and with growing delays after failures, until f returns true or ctx is done.
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

// record records the outcome of an attempt, and logs changes.
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

// sync makes the agent hold the desired state, and passes its TTL check. The heartbeat goes out even if the change fails.
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
		// The first heartbeat follows at once: before it, an agent loses the state of the check when it restarts.
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
	return state[r.desired.ID], err
}

// mayReplace reports whether a registration belongs to this process, or to an earlier one whose berth was killed.
func (r *registration) mayReplace(have agent.Registered) bool {
	owner := have.Meta[label.MetaOwner]
	return owner == r.owner || (!r.registered && strings.HasPrefix(owner, ownerPrefix))
}
