// Package leader elects one instance of a service as its leader, by a lock in Consul. Two instances suffice.
//
// A leader believes that it leads for five seconds after Consul's servers last confirmed it, and asks them every second. It
// also watches the lock, and its own instance at the local agent, so it usually knows within milliseconds that it has lost
// the lock.
//
// The value of the lock says whether its last holder is known to have stopped leading: a holder that lets go leaves it
// empty, and one that was deprived of the lock empties it. Otherwise the holder is dead or cut off, and the candidates wait
// until its belief must have ended. That covers everything that can end a session: a check that turns critical, a node that
// Serf declares failed or that leaves, the end of the TTL, an operator.
package leader

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/registrar/agent"
	"berth/registrar/group/session"
	"berth/registrar/group/store"
	"berth/registrar/retry"
)

const (
	// every is how often the local agent is asked about this instance: well within session.LockDelay.
	every = 500 * time.Millisecond
	// Grace is how long a candidate leaves a free lock to the candidates of each higher priority.
	Grace = 500 * time.Millisecond
	// timeout limits releasing the lock, and looking at it.
	timeout = 2500 * time.Millisecond

	// confirms is how often the leader verifies that it has the lock, and sure is how long it then believes so.
	confirms = time.Second
	sure     = 5 * time.Second
)

// candidates begins the keys of a service's candidates. A session holds each key while its candidate is passing; the value
// is the priority.
func candidates(service string) string { return "berth/leader/" + service + "/" }

// Leader identifies a leader.
type Leader struct {
	ID      string `json:"id"` // service ID
	Address string `json:"address"`
	Port    int    `json:"port"`
}

// State is what an instance knows of its group's leader.
type State struct {
	Leads  bool   // this instance leads
	Leader Leader // the zero Leader = none known
}

// Tag returns the instance's tag in Consul: leader or follower.
func (s State) Tag() string {
	if s.Leads {
		return "leader"
	}
	return "follower"
}

// Options say which instance stands for election.
type Options struct {
	Consul   *api.Client // of the agent that holds the instance
	Service  string      // in Consul
	ID       string      // its service ID
	Priority int         // the candidate with the highest priority takes a free lock first; a leader stays, whoever joins
	Log      *slog.Logger
	// Changed is called with the first State and each later one, in order. It must not block: meanwhile the instance could
	// not stop leading.
	Changed func(State)
}

// Election makes one instance stand for election while it is registered and passing.
type Election struct {
	o Options

	mu       sync.Mutex
	lock     *api.KVPair   // as last seen
	seen     int           // number of changes seen; 0 = not seen yet
	freed    time.Time     // when it was seen to become free
	vanished bool          // it was held, and then deleted
	news     chan struct{} // closed at the next change
	own      string        // last session of the instance
	leads    bool
	me       Leader
	told     bool
	state    State
	resigned bool
	campaign *campaign // nil = not a candidate
}

// campaign is a candidacy with one registration.
type campaign struct {
	in   instance
	end  context.CancelFunc
	done chan struct{}
	err  error // why the lock may not have been released; valid once done is closed
}

// instance is this instance at the local agent; the zero value is no candidate.
type instance struct {
	passing bool
	checks  []string // their IDs, sorted
	Leader
}

func (i instance) same(j instance) bool {
	return i.passing == j.passing && i.Leader == j.Leader && slices.Equal(i.checks, j.checks)
}

// New returns an Election. It does nothing before Run.
func New(o Options) *Election {
	o.Log = o.Log.With("service", o.Service, "instance", o.ID)
	return &Election{o: o, news: make(chan struct{})}
}

// Run follows the leadership and makes the instance stand, until ctx is done. It then releases the lock if it has it, and
// waits at most a few seconds for that.
func (e *Election) Run(ctx context.Context) {
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() {
		_ = session.Watch(ctx, e.o.Consul, e.o.Log, store.LeaderKey(e.o.Service), func(lock *api.KVPair) bool { e.see(lock); return false })
	})
	local, lasting := agent.Agent{Client: e.o.Consul.Agent()}, retry.Lasting{}
	for retry.Pause(ctx, 0); ctx.Err() == nil; retry.Pause(ctx, every-rand.N(every/5)) {
		in, err := look(ctx, local, e.o.ID)
		switch {
		case ctx.Err() != nil:
		case err != nil: // nothing is known; the session ends by itself if necessary
			if tell, lasts := lasting.Tell(err.Error(), time.Now()); tell {
				e.o.Log.Error("cannot read "+e.o.ID+" in Consul; trying again", append(retry.For(lasts), "err", err)...)
			}
		default:
			lasting.Over(time.Now())
			e.stand(ctx, &all, in)
		}
	}
}

// look reads this instance from the local agent.
func look(ctx context.Context, local agent.Agent, id string) (instance, error) {
	state, err := local.Read(ctx, id)
	have := state[id]
	if err != nil || !have.Held() {
		return instance{}, err
	}
	for _, check := range have.Checks { // including maintenance mode
		if check.Status != api.HealthPassing {
			return instance{}, nil
		}
	}
	return instance{true, slices.Sorted(maps.Keys(have.Checks)), Leader{id, have.Address, have.Port}}, nil
}

// stand makes the instance a candidate if it is passing, and starts over when its registration changes.
func (e *Election) stand(ctx context.Context, all *sync.WaitGroup, in instance) {
	e.mu.Lock()
	was := e.campaign
	e.mu.Unlock()
	if was != nil && !was.in.same(in) {
		was.end()
		<-was.done
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.campaign != nil || e.resigned || !in.passing {
		return
	}
	ctx, end := context.WithCancel(ctx)
	c := &campaign{in: in, end: end, done: make(chan struct{})}
	e.campaign = c
	all.Go(func() {
		defer end()
		c.err = e.run(ctx, in)
		e.mu.Lock()
		e.campaign = nil
		e.mu.Unlock()
		close(c.done)
	})
}

// StepDown is Resign, and waits until another instance can have the lock.
func (e *Election) StepDown(ctx context.Context) error { return e.Resign()(ctx) }

// Resign makes the instance release the lock if it has it, and not stand until Stand: before it is drained or stopped. The
// instance no longer leads when Resign returns, which does not wait for Consul. The returned func waits until another
// instance can have the lock, and fails if Consul did not answer or ctx was done before.
func (e *Election) Resign() (given func(ctx context.Context) error) {
	e.mu.Lock()
	e.resigned = true
	c := e.campaign
	e.mu.Unlock()
	if c == nil {
		return func(context.Context) error { return nil }
	}
	c.end()
	e.follow()
	return func(ctx context.Context) error {
		select {
		case <-c.done:
			return c.err
		case <-ctx.Done():
			return fmt.Errorf("step down as the leader of %s: %w", e.o.Service, context.Cause(ctx))
		}
	}
}

// Stand reverses a Resign or StepDown.
func (e *Election) Stand() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.resigned = false
}

// run stands with one registration until ctx is done.
func (e *Election) run(ctx context.Context, in instance) error {
	keeper := session.New(session.Options{Consul: e.o.Consul, Name: "berth leader " + e.o.ID, Behavior: api.SessionBehaviorRelease,
		Checks: in.checks, Log: e.o.Log})
	keeping, stop := context.WithCancel(context.WithoutCancel(ctx)) // the session lasts until the lock is released
	var kept sync.WaitGroup
	kept.Go(func() { keeper.Run(keeping) })
	defer kept.Wait()
	defer stop()
	for {
		s, err := keeper.Session(ctx)
		if err != nil {
			return nil
		}
		e.mu.Lock()
		e.own = s.ID
		e.mu.Unlock()
		e.serve(ctx, keeper, s, in)
		if ctx.Err() != nil {
			return e.leave(context.WithoutCancel(ctx), keeper, s)
		}
	}
}

// leave releases what the session holds.
func (e *Election) leave(ctx context.Context, keeper *session.Keeper, s *session.Session) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	// First, so that candidates of lower priority do not wait for this one.
	if _, err := e.o.Consul.KV().Delete(e.candidate(), new(api.WriteOptions).WithContext(ctx)); err != nil {
		return fmt.Errorf("withdraw as a candidate of %s: %w", e.o.Service, err)
	}
	if err := keeper.Release(ctx, s, store.LeaderKey(e.o.Service), []byte{}); err != nil && !errors.Is(err, session.ErrLost) {
		return err
	}
	return e.clear(ctx)
}

// clear empties the lock if it is free and the instance was its last holder, which is known to have stopped leading.
func (e *Election) clear(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	lock, _, err := e.o.Consul.KV().Get(store.LeaderKey(e.o.Service), new(api.QueryOptions).WithContext(ctx))
	if err == nil && lock != nil && !held(lock) && leaderOf(lock).ID == e.o.ID {
		lock.Value = nil
		_, _, err = e.o.Consul.KV().CAS(lock, new(api.WriteOptions).WithContext(ctx))
	}
	if err != nil {
		return fmt.Errorf("give back the lock of %s: %w", e.o.Service, err)
	}
	return nil
}

func (e *Election) candidate() string { return candidates(e.o.Service) + url.PathEscape(e.o.ID) }

// serve stands and leads with one session, until the session is lost or ctx is done.
func (e *Election) serve(ctx context.Context, keeper *session.Keeper, s *session.Session, in instance) {
	ctx, cancel := s.While(ctx)
	defer cancel()
	if err := keeper.Put(ctx, s, e.candidate(), []byte(strconv.Itoa(e.o.Priority))); err != nil {
		return
	}
	value, err := json.Marshal(in.Leader)
	if err != nil {
		panic(err) // cannot fail: strings and a number
	}
	delays, lasting := retry.Delays(), retry.Lasting{}
	for ctx.Err() == nil {
		lock, seen, freed, clean := e.await(ctx)
		if !clean {
			// Its last holder may still believe that it leads.
			if lock != nil && leaderOf(lock).ID == e.o.ID {
				_ = e.clear(ctx)
			}
			if rest := time.Until(freed.Add(sure)); rest > 0 {
				e.changed(ctx, seen, rest)
				continue
			}
		}
		wait := rand.N(session.Spread) + time.Duration(e.higher(ctx))*Grace
		if e.changed(ctx, seen, wait) {
			continue
		}
		begun := time.Now()
		got, err := e.take(ctx, lock, s, value)
		switch {
		case ctx.Err() != nil:
		case got:
			lasting.Over(time.Now())
			delays.Reset()
			e.lead(ctx, keeper, s, seen, begun, in.Leader)
		case err != nil:
			if strings.Contains(err.Error(), "invalid session") {
				keeper.Gone()
			}
			if tell, lasts := lasting.Tell(err.Error(), time.Now()); tell {
				e.o.Log.Error(e.o.ID+" cannot stand for election; trying again", append(retry.For(lasts), "err", err)...)
			}
			retry.Pause(ctx, delays.NextBackOff())
		default: // another candidate was faster, or the lock-delay applies
			wait := time.Until(freed.Add(session.LockDelay))
			if wait <= 0 {
				wait = session.LockDelay
			}
			e.changed(ctx, seen, wait)
		}
	}
}

// take makes one attempt to take the lock, if it is unchanged. A late attempt does no harm.
func (e *Election) take(ctx context.Context, lock *api.KVPair, s *session.Session, value []byte) (got bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	check := &api.KVTxnOp{Verb: api.KVCheckNotExists, Key: store.LeaderKey(e.o.Service)}
	if lock != nil {
		check = &api.KVTxnOp{Verb: api.KVCheckIndex, Key: store.LeaderKey(e.o.Service), Index: lock.ModifyIndex}
	}
	got, answer, _, err := e.o.Consul.Txn().Txn(api.TxnOps{{KV: check}, {KV: &api.KVTxnOp{Verb: api.KVLock, Key: store.LeaderKey(e.o.Service),
		Value: value, Session: s.ID}}}, new(api.QueryOptions).WithContext(ctx))
	if err != nil || got {
		return got, err
	}
	for _, failed := range answer.Errors {
		expected := func(text string) bool { return strings.Contains(failed.What, text) }
		if !slices.ContainsFunc([]string{"lock delay", "already held", "index check", "exist"}, expected) {
			return false, errors.New(failed.What)
		}
	}
	return false, nil
}

// await waits until the lock is free, or held by this session through an unanswered attempt. It returns the lock, when it
// was seen to become free, and whether its last holder is known to have stopped leading.
func (e *Election) await(ctx context.Context) (lock *api.KVPair, seen int, freed time.Time, clean bool) {
	for {
		e.mu.Lock()
		lock, seen, freed = e.lock, e.seen, e.freed
		clean = held(lock) || (lock == nil && !e.vanished) || (lock != nil && len(lock.Value) == 0)
		ready, news := seen > 0 && (!held(lock) || lock.Session == e.own), e.news
		e.mu.Unlock()
		if ready {
			return lock, seen, freed, clean
		}
		select {
		case <-news:
		case <-ctx.Done():
			return lock, seen, freed, clean
		}
	}
}

// changed waits until the lock is seen to change, or for a limited time, and reports whether it changed.
func (e *Election) changed(ctx context.Context, seen int, wait time.Duration) (changed bool) {
	e.mu.Lock()
	now, news := e.seen, e.news
	e.mu.Unlock()
	if now != seen {
		return true
	}
	select {
	case <-news:
		return true
	case <-ctx.Done():
	case <-time.After(wait):
	}
	return false
}

// higher returns the number of higher priorities among the candidates, and removes the keys of dead candidates.
func (e *Election) higher(ctx context.Context) int {
	ctx, cancel := context.WithTimeout(ctx, Grace)
	defer cancel()
	// After an error the attempt also fails, or waits for no candidate.
	pairs, _, _ := e.o.Consul.KV().List(candidates(e.o.Service), new(api.QueryOptions).WithContext(ctx))
	higher := map[int]bool{}
	for _, pair := range pairs {
		if !held(pair) {
			_, _, _ = e.o.Consul.KV().DeleteCAS(pair, new(api.WriteOptions).WithContext(ctx))
		} else if priority, err := strconv.Atoi(string(pair.Value)); err == nil && priority > e.o.Priority {
			higher[priority] = true
		}
	}
	return len(higher)
}

// lead leads until another has the lock, the session is lost or ctx is done. The lock was taken after begun; seen is older.
func (e *Election) lead(ctx context.Context, keeper *session.Keeper, s *session.Session, seen int, begun time.Time, me Leader) {
	var confirming sync.WaitGroup
	defer confirming.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer func() {
		e.follow()
		_ = e.clear(context.WithoutCancel(ctx)) // if that fails, others wait until this instance must have stopped
	}()
	confirmed := make(chan time.Time)
	confirming.Go(func() {
		for retry.Pause(ctx, 0); ctx.Err() == nil; retry.Pause(ctx, confirms) {
			sent := time.Now()
			if e.holds(ctx, s) {
				select {
				case confirmed <- sent:
				case <-ctx.Done():
				}
			}
		}
	})
	for until := begun.Add(sure); ; {
		leads := e.believe(ctx, until, me)
		e.mu.Lock()
		taken, news := e.seen != seen && (e.lock == nil || e.lock.Session != s.ID), e.news
		e.mu.Unlock()
		if taken {
			keeper.Gone()
			return
		}
		var end <-chan time.Time
		if leads {
			end = time.After(time.Until(until))
		}
		select {
		case <-news:
		case sent := <-confirmed:
			until = sent.Add(sure)
		case <-end:
			e.o.Log.Warn("for too long, Consul has not confirmed that " + e.o.ID + " leads " + e.o.Service)
		case <-ctx.Done():
			return
		}
	}
}

// holds reports whether Consul's servers say that the session holds the lock. The servers verify with each other that they
// are up to date.
func (e *Election) holds(ctx context.Context, s *session.Session) bool {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	lock, _, err := e.o.Consul.KV().Get(store.LeaderKey(e.o.Service), (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
	return err == nil && lock != nil && lock.Session == s.ID
}

// see records the present lock.
func (e *Election) see(lock *api.KVPair) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.vanished = lock == nil && (e.vanished || held(e.lock)); !held(lock) {
		e.freed = time.Now()
	}
	e.lock = lock
	e.seen++
	close(e.news)
	e.news = make(chan struct{})
	e.tell()
}

// believe makes the instance lead until ctx is done or the time is over, and reports whether it leads.
func (e *Election) believe(ctx context.Context, until time.Time, me Leader) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.set(ctx.Err() == nil && time.Now().Before(until), me)
	return e.leads
}

// follow makes the instance stop leading.
func (e *Election) follow() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.set(false, Leader{})
}

func (e *Election) set(leads bool, me Leader) {
	if leads != e.leads {
		e.o.Log.Info(e.o.ID + map[bool]string{true: " leads ", false: " no longer leads "}[leads] + e.o.Service)
	}
	e.leads, e.me = leads, me
	e.tell()
}

// tell calls Changed if the state has changed. The caller holds e.mu, so the calls are in order.
func (e *Election) tell() {
	state := State{Leads: e.leads}
	switch {
	case e.leads:
		state.Leader = e.me
	case held(e.lock) && e.lock.Session != e.own: // this session held it when it was lost, or the answer is on its way
		state.Leader = leaderOf(e.lock)
	}
	if e.seen == 0 || (e.told && state == e.state) {
		return
	}
	e.told, e.state = true, state
	e.o.Changed(state)
}

func held(pair *api.KVPair) bool { return pair != nil && pair.Session != "" }

// leaderOf returns the present or last holder of a lock, or the zero Leader if another program wrote it.
func leaderOf(lock *api.KVPair) (l Leader) {
	if err := json.Unmarshal(lock.Value, &l); err != nil {
		return Leader{}
	}
	return l
}
