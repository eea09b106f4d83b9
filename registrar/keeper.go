package registrar

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
)

// keepEvery is how often a keeper looks, at least: within so long what an agent has lost is registered again.
const keepEvery = 3 * time.Second

// keeper keeps one registration at a Consul agent as it should be, whatever becomes of the agent. It has no lock: what
// it knows belongs to the goroutine of keep, of which there is one at a time.
type keeper struct {
	agent Agent
	log   *slog.Logger
	id    string
	owner string        // in the metadata
	every time.Duration // at which it looks
	alive string        // what its TTL check says

	stop func() // ends keep's goroutine and waits for that; nil = there was none yet

	mine bool  // it has registered once: what another one registers since is not taken over
	err  error // how it went last
}

func newKeeper(agent Agent, log *slog.Logger, id, owner string, ttl time.Duration, alive string) *keeper {
	return &keeper{agent: agent, log: log.With("instance", id), id: id, owner: owner, every: min(ttl/3, keepEvery), alive: alive}
}

// keeping says whether something is registered, as far as the agent answers.
func (k *keeper) keeping() bool { return k.stop != nil }

// keep has the agent hold w from now on. It returns at once.
func (k *keeper) keep(w wanted) {
	if k.stop != nil {
		k.stop()
	}
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() {
		k.retry(ctx, func() (done bool) {
			k.settle(ctx, k.sync(ctx, []wanted{w}))
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
	ctx, cancel := context.WithTimeout(context.Background(), agentTimeout)
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

// retry calls f at an interval, and after failures as retries says, until it is done or ctx is.
func (k *keeper) retry(ctx context.Context, f func() (done bool)) {
	delays := retries()
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
func (k *keeper) sync(ctx context.Context, want []wanted) error {
	ctx, cancel := context.WithTimeout(ctx, agentTimeout)
	defer cancel()
	have, err := k.read(ctx)
	if err != nil {
		return err
	}
	s := have.services[k.id]
	switch {
	case len(want) > 0 && s != nil && !k.mayReplace(s):
		return fmt.Errorf("service ID %s is held by another registration, of %q: choose another id or deregister it", k.id, s.Meta[metaOwner])
	case len(want) > 0 && want[0].drain != "" && s == nil:
		return nil // not to be registered any more
	}
	if err := k.apply(ctx, diff(want, have, ownership{owner: k.owner}, nil)); err != nil {
		return err
	}
	for _, w := range want {
		// At once, too: an agent keeps the state of a check over its restart only from here.
		if err := k.agent.UpdateTTLOpts(checkID(w.ID, 0), k.alive, api.HealthPassing, query(ctx)); err != nil {
			return fmt.Errorf("pass the TTL check: %w", err)
		}
	}
	return nil
}

// mayReplace says whether a registration is this process's, or that of an earlier one whose berth was killed.
func (k *keeper) mayReplace(s *api.AgentService) bool {
	owner := s.Meta[metaOwner]
	return owner == k.owner || (!k.mine && strings.HasPrefix(owner, processOwner))
}

func (k *keeper) read(ctx context.Context) (have held, err error) {
	if have.services, err = k.agent.ServicesWithFilterOpts(fmt.Sprintf("ID == %q", k.id), query(ctx)); err != nil {
		return have, fmt.Errorf("read the service: %w", err)
	}
	if have.checks, err = k.agent.ChecksWithFilterOpts(fmt.Sprintf("ServiceID == %q", k.id), query(ctx)); err != nil {
		return have, fmt.Errorf("read its checks: %w", err)
	}
	return have, nil
}

func (k *keeper) apply(ctx context.Context, c change) error {
	for _, w := range c.register {
		// Existing checks are kept, and maintenance mode with them.
		if err := k.agent.ServiceRegisterOpts(w.registration(), api.ServiceRegisterOpts{}.WithContext(ctx)); err != nil {
			return fmt.Errorf("register: %w", err)
		}
		k.mine = true
		k.log.Info("registered", "service", w.Name, "address", w.Address, "port", w.Port)
	}
	for _, id := range c.uncheck {
		if err := k.agent.CheckDeregisterOpts(id, query(ctx)); err != nil && !isNotFound(err) {
			return fmt.Errorf("deregister check %s: %w", id, err)
		}
	}
	for _, w := range c.drain {
		if err := k.agent.EnableServiceMaintenanceOpts(w.ID, w.drain, query(ctx)); err != nil {
			return fmt.Errorf("drain: %w", err)
		}
		k.log.Info("out of service", "service", w.Name, "reason", strings.TrimPrefix(w.drain, automatic))
	}
	for _, id := range c.resume {
		if err := k.agent.DisableServiceMaintenanceOpts(id, query(ctx)); err != nil {
			return fmt.Errorf("resume: %w", err)
		}
		k.log.Info("back in service")
	}
	for _, s := range c.deregister {
		if err := k.agent.ServiceDeregisterOpts(s.ID, query(ctx)); err != nil && !isNotFound(err) {
			return fmt.Errorf("deregister: %w", err)
		}
		k.log.Info("deregistered", "service", s.Service)
	}
	return nil
}
