package registrar

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"berth/registrar/agent"
	"berth/registrar/async"
	"berth/registrar/label"
)

// keepEvery is how often a keeper looks, at least: within so long what an agent has lost is registered again.
const keepEvery = 3 * time.Second

// keeper keeps one registration at a Consul agent as it should be, whatever becomes of the agent. It has no lock: what
// it knows belongs to the goroutine of keep, of which there is one at a time.
type keeper struct {
	agent agent.Agent
	log   *slog.Logger
	id    string
	owner string        // in the metadata
	every time.Duration // at which it looks
	alive string        // what its TTL check says

	stop func() // ends keep's goroutine and waits for that; nil = there was none yet

	mine bool  // it has registered once: what another one registers since is not taken over
	err  error // how it went last
}

func newKeeper(client agent.Client, log *slog.Logger, id, owner string, ttl time.Duration, alive string) *keeper {
	return &keeper{agent: agent.Agent{Client: client, Log: log}, log: log.With("instance", id), id: id, owner: owner, every: min(ttl/3, keepEvery), alive: alive}
}

// keeping says whether something is registered, as far as the agent answers.
func (k *keeper) keeping() bool { return k.stop != nil }

// keep has the agent hold w from now on. It returns at once.
func (k *keeper) keep(w agent.Desired) {
	if k.stop != nil {
		k.stop()
	}
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() {
		k.retry(ctx, func() (done bool) {
			k.settle(ctx, k.sync(ctx, []agent.Desired{w}))
			return false
		})
	})
	k.stop = func() { cancel(); work.Wait() }
}

// release deregisters, and gives up on that when the agent does not answer for a while: then the TTL ends what it holds.
func (k *keeper) release() {
	if k.stop == nil {
		return
	}
	k.stop()
	ctx, cancel := context.WithTimeout(context.Background(), agent.Timeout)
	defer cancel()
	var err error
	k.retry(ctx, func() (done bool) {
		err = k.sync(ctx, nil)
		k.err = err
		return err == nil || !k.mine // it may have registered without an answer
	})
	if err != nil && k.mine {
		k.log.Error("not deregistered: Consul takes it for critical when its TTL is over", "err", err)
	}
}

// retry calls f at an interval, and after failures as async.Delays says, until it is done or ctx is.
func (k *keeper) retry(ctx context.Context, f func() (done bool)) {
	delays := async.Delays()
	for !f() {
		wait := k.every
		if k.err != nil {
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

// settle records how it went, and logs when that changes.
func (k *keeper) settle(ctx context.Context, err error) {
	before := k.err
	if k.err = err; ctx.Err() != nil {
		return // cut short, which says nothing
	}
	switch {
	case err != nil && (before == nil || before.Error() != err.Error()):
		k.log.Error("not registered as it should be, the process runs on; trying again", "err", err)
	case err == nil && before != nil:
		k.log.Info("registered as it should be again")
	}
}

// sync makes the agent hold what is wanted, which is one instance or none, and passes its TTL check.
func (k *keeper) sync(ctx context.Context, want []agent.Desired) error {
	ctx, cancel := context.WithTimeout(ctx, agent.Timeout)
	defer cancel()
	state, err := k.agent.Read(ctx, k.id)
	if err != nil {
		return err
	}
	have := state[k.id]
	if len(want) == 0 {
		if have.Held() && have.Meta[label.MetaOwner] == k.owner {
			return k.agent.Apply(ctx, agent.Deregister(have.AgentService))
		}
		return nil
	}
	d := want[0]
	if have.Held() && !k.mayReplace(have.Meta[label.MetaOwner]) {
		return fmt.Errorf("service ID %s is held by another registration, of %q: choose another id or deregister it", k.id, have.Meta[label.MetaOwner])
	}
	c := agent.Diff(d, have)
	if err := k.agent.Apply(ctx, c); err != nil {
		return err
	}
	k.mine = k.mine || c.Register
	for _, h := range d.Heartbeats(k.alive) {
		// At once, too: an agent keeps the state of a check over its restart only from here.
		if err := k.agent.Beat(ctx, h); err != nil {
			return err
		}
	}
	return nil
}

// mayReplace says whether a registration is this process's, or one of an earlier process whose berth was killed.
func (k *keeper) mayReplace(owner string) bool {
	return owner == k.owner || (!k.mine && strings.HasPrefix(owner, processOwner))
}
