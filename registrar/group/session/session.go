// Package session holds locks and keys in Consul that vanish with their holder.
//
// A holder must know on its own when it no longer holds anything: it may be cut off from Consul, which then gives the lock
// to another. So a Session ends by the holder's own monotonic clock, before Consul's servers can consider it expired.
package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/registrar/retry"
)

const (
	// TTL is how long Consul keeps a session after a renewal, at least. Consul takes up to twice as long to notice that a
	// holder is gone.
	TTL = 10 * time.Second
	// LockDelay is how long a key is withheld after its session was invalidated. It does not apply to a released key.
	LockDelay = time.Second

	margin    = time.Second             // from the end of a Session to the end of its TTL
	timeout   = 2500 * time.Millisecond // of each call
	quick     = 700 * time.Millisecond  // a slower answer says nothing about the present: less than LockDelay
	quiet     = time.Second             // a failure over by then is not logged: the catalog gets checks a moment after the agent
	mostDelay = time.Second             // between two attempts
)

// ErrLost is the error of calls with a Session that can no longer be relied on.
var ErrLost = errors.New("the session in Consul is lost")

// Options describe a session.
type Options struct {
	Consul   *api.Client
	Name     string // of the session in Consul, like berth app-3
	Behavior string // api.SessionBehaviorDelete: its keys vanish with it
	// Checks are checks of the local agent's services on which the session depends, in addition to the node's health: it is
	// invalidated when one turns critical or is deregistered.
	Checks []string
	Log    *slog.Logger
}

// Keeper keeps a session: it creates one on request, renews it every third of its TTL, and creates another when it was lost.
type Keeper struct {
	o      Options
	verify chan struct{} // the session may be gone

	mu      sync.Mutex
	current *Session      // nil = none
	failure error         // of the last attempt to create or renew one
	made    chan struct{} // closed when current is set
	wanted  chan struct{} // closed when a session has been requested

	// These belong to Run's goroutine.
	former  string    // ID of a session that may still exist
	failing time.Time // since when attempts fail; zero = they do not
	lasting retry.Lasting
}

// New returns a Keeper. It does nothing before Run.
func New(o Options) *Keeper {
	return &Keeper{o: o, verify: make(chan struct{}, 1), made: make(chan struct{}), wanted: make(chan struct{})}
}

// Session is a session in Consul, from its creation until it is lost. One that no Keeper created is never lost.
type Session struct {
	ID   string
	ctx  context.Context
	lose context.CancelFunc
}

// Lost returns a channel that is closed when the session can no longer be relied on: it is gone, its TTL may expire before
// Consul answers again, or its Keeper's Run has ended. A holder that is cut off from Consul does not notice if a check or
// its node's health ends the session sooner: Serf takes at least five seconds to declare a node failed.
func (s *Session) Lost() <-chan struct{} { return s.life().Done() }

func (s *Session) life() context.Context {
	if s.ctx == nil {
		return context.Background()
	}
	return s.ctx
}

// While returns a context that is done when ctx is done or the session is lost, then with ErrLost as its cause.
func (s *Session) While(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.life(), func() { cancel(ErrLost) })
	return ctx, func() { stop(); cancel(nil) }
}

// Session returns the current session, or waits for one. If ctx is done first, it returns its error and why there is no session.
func (k *Keeper) Session(ctx context.Context) (*Session, error) {
	for {
		k.mu.Lock()
		s, made := k.current, k.made
		if k.wanted != nil {
			close(k.wanted)
			k.wanted = nil
		}
		k.mu.Unlock()
		if s != nil {
			return s, nil
		}
		select {
		case <-made:
		case <-ctx.Done():
			k.mu.Lock()
			failure := k.failure
			k.mu.Unlock()
			if failure != nil {
				return nil, fmt.Errorf("wait for a session in Consul: %w: %w", context.Cause(ctx), failure)
			}
			return nil, fmt.Errorf("wait for a session in Consul: %w", context.Cause(ctx))
		}
	}
}

// Run keeps a session, from the first call of Session until ctx is done. It then destroys the session. If Consul does not
// answer, it gives up after a few seconds, and the session expires. The session's keys are subject to LockDelay unless they
// were released before.
func (k *Keeper) Run(ctx context.Context) {
	k.mu.Lock()
	wanted := k.wanted
	k.mu.Unlock()
	if wanted != nil {
		select {
		case <-wanted:
		case <-ctx.Done():
		}
	}
	delays := newDelays()
	for ctx.Err() == nil {
		s, until, err := k.create(ctx)
		k.record(ctx, err)
		if err != nil {
			retry.Pause(ctx, delays.NextBackOff())
			continue
		}
		delays.Reset()
		k.set(s)
		gone := k.renew(ctx, s.ID, until)
		k.set(nil)
		s.lose()
		if !gone {
			k.former = s.ID
		}
	}
	if err := k.destroyFormer(context.WithoutCancel(ctx)); err != nil {
		k.o.Log.Warn(fmt.Sprintf("cannot destroy session %q in Consul; it expires with its TTL", k.o.Name), "err", err)
	}
}

// set makes s the current session.
func (k *Keeper) set(s *Session) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.current = s; s != nil {
		close(k.made)
	} else {
		k.made = make(chan struct{})
	}
}

// create creates a session, and returns until when it can be relied on. If it fails, an unknown session may exist: it holds
// nothing and expires.
func (k *Keeper) create(ctx context.Context) (s *Session, until time.Time, err error) {
	// A former session would keep its keys until its TTL expires.
	if err := k.destroyFormer(ctx); err != nil {
		return nil, until, err
	}
	entry := &api.SessionEntry{Name: k.o.Name, Behavior: k.o.Behavior, TTL: TTL.String(), LockDelay: LockDelay}
	for _, id := range k.o.Checks {
		entry.ServiceChecks = append(entry.ServiceChecks, api.ServiceCheck{ID: id})
	}
	sent := time.Now()
	s = &Session{}
	err = call(ctx, func(ctx context.Context) (err error) {
		s.ID, _, err = k.o.Consul.Session().Create(entry, write(ctx))
		return err
	})
	if err != nil {
		return nil, until, fmt.Errorf("create a session: %w", err)
	}
	s.ctx, s.lose = context.WithCancel(context.Background())
	return s, sent.Add(TTL - margin), nil
}

// renew renews a session until it is gone, cannot be relied on, or ctx is done.
func (k *Keeper) renew(ctx context.Context, id string, until time.Time) (gone bool) {
	delays := newDelays()
	wait := TTL / 3
	var err error
	for {
		select {
		case <-ctx.Done():
			return false
		case <-k.verify:
		case <-time.After(min(wait, time.Until(until))):
		}
		if !time.Now().Before(until) {
			k.o.Log.Warn(fmt.Sprintf("gave up session %q in Consul: it was not renewed in time", k.o.Name), "session", id, "err", err)
			return false
		}
		sent, there := time.Now(), false
		within, cancel := context.WithDeadline(ctx, until)
		err = call(within, func(ctx context.Context) error {
			entry, _, err := k.o.Consul.Session().Renew(id, write(ctx))
			there = entry != nil
			return err
		})
		cancel()
		switch {
		case ctx.Err() != nil:
			return false
		case err == nil && !there:
			k.o.Log.Warn(fmt.Sprintf("session %q is gone from Consul", k.o.Name), "session", id)
			return true
		case err == nil:
			until, wait = sent.Add(TTL-margin), TTL/3
			delays.Reset()
		default:
			err = fmt.Errorf("renew the session: %w", err)
			wait = delays.NextBackOff()
		}
		k.record(ctx, err)
	}
}

// Gone tells the Keeper that its session seems to be gone. The Keeper checks at once instead of at the next renewal.
func (k *Keeper) Gone() {
	select {
	case k.verify <- struct{}{}:
	default:
	}
}

// destroyFormer destroys a session that may still exist. A missing session is no error.
func (k *Keeper) destroyFormer(ctx context.Context) error {
	if k.former == "" {
		return nil
	}
	err := call(ctx, func(ctx context.Context) error {
		_, err := k.o.Consul.Session().Destroy(k.former, write(ctx))
		return err
	})
	if err != nil {
		return fmt.Errorf("destroy the former session: %w", err)
	}
	k.former = ""
	return nil
}

// record logs the outcome of an attempt if it is news.
func (k *Keeper) record(ctx context.Context, err error) {
	if ctx.Err() != nil { // interrupted, so it says nothing
		return
	}
	k.mu.Lock()
	k.failure = err
	k.mu.Unlock()
	now := time.Now()
	if err == nil {
		k.failing = time.Time{}
		if was, lasted := k.lasting.Over(now); was {
			k.o.Log.Info(fmt.Sprintf("session %q in Consul is renewed again", k.o.Name), retry.For(lasted)...)
		}
		return
	}
	if k.failing.IsZero() {
		k.failing = now
	}
	if now.Sub(k.failing) < quiet {
		return
	}
	if tell, lasts := k.lasting.Tell(err.Error(), now); tell {
		k.o.Log.Error(fmt.Sprintf("cannot create or renew session %q in Consul; trying again", k.o.Name), append(retry.For(lasts), "err", err)...)
	}
}
