package session_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/registrar/group/session"
	"berth/registrar/group/session/sessiontest"
)

// keeper is a running Keeper, over its own link.
type keeper struct {
	*session.Keeper
	t    *testing.T
	link *sessiontest.Link
	log  strings.Builder
	stop func() // and waits
}

func run(t *testing.T, consul *sessiontest.Consul) *keeper {
	t.Helper()
	k := &keeper{t: t}
	link, client := consul.Link()
	k.link = link
	k.Keeper = session.New(session.Options{Consul: client, Name: "test", Behavior: api.SessionBehaviorDelete,
		Log: slog.New(slog.NewTextHandler(&k.log, nil))})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); k.Run(ctx) }()
	k.stop = func() { cancel(); <-done }
	t.Cleanup(func() { k.stop(); consul.Close() })
	return k
}

// session returns the current session, which must exist within a while.
func (k *keeper) session(within time.Duration) *session.Session {
	k.t.Helper()
	ctx, cancel := context.WithTimeout(k.t.Context(), within+time.Millisecond)
	defer cancel()
	s, err := k.Session(ctx)
	if err != nil {
		k.t.Fatalf("no session within %s\n%s", within, k.log.String())
	}
	return s
}

func (k *keeper) acquire(s *session.Session, key, value string) {
	k.t.Helper()
	if err := k.Acquire(k.t.Context(), s, key, []byte(value)); err != nil {
		k.t.Fatal(err)
	}
}

func isLost(s *session.Session) bool {
	select {
	case <-s.Lost():
		return true
	default:
		return false
	}
}

// Whatever happens to the renewals, a session is lost before Consul can consider it expired, and not long before. When
// Consul answers again, another one exists, and the former one is gone.
func TestLostByItsOwnClock(t *testing.T) {
	for name, fault := range map[string]sessiontest.Fault{"hangs": sessiontest.Hang, "answers are lost": sessiontest.Lost, "refused": sessiontest.Refuse,
		"denied": sessiontest.Deny, "no leader": sessiontest.NoLeader} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				consul := sessiontest.New()
				k := run(t, consul)
				s := k.session(0)
				time.Sleep(time.Minute + 2*time.Second)
				if isLost(s) || k.session(0) != s {
					t.Fatal("lost, though it was renewed")
				}
				renewed := time.Now().Add(-(time.Minute + 2*time.Second) % (session.TTL / 3))
				k.link.Set(fault)
				<-s.Lost()
				if after := time.Since(renewed); after >= session.TTL || after < session.TTL-2*time.Second {
					t.Errorf("lost %s after it was renewed", after)
				}
				time.Sleep(3 * time.Minute)
				k.link.Set(sessiontest.None)
				another := k.session(5 * time.Second)
				if another.ID == s.ID || isLost(another) || consul.Sessions() != 1 {
					t.Errorf("%s after %s; %d sessions", another.ID, s.ID, consul.Sessions())
				}
				if n := strings.Count(k.log.String(), "trying again"); n < 2 || n > 4 {
					t.Errorf("told %d times in three minutes:\n%s", n, k.log.String())
				}
				if !strings.Contains(k.log.String(), "is renewed again") {
					t.Errorf("not told that all is well again:\n%s", k.log.String())
				}
			})
		})
	}
}

// A session survives an outage shorter than its TTL.
func TestShortOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := run(t, sessiontest.New())
		s := k.session(0)
		for range 5 {
			k.link.Set(sessiontest.Hang)
			time.Sleep(5 * time.Second)
			k.link.Set(sessiontest.None)
			time.Sleep(5 * time.Second)
		}
		if isLost(s) {
			t.Errorf("lost:\n%s", k.log.String())
		}
	})
}

// A session that is gone from Consul is noticed at the next renewal, or as soon as a caller reports or sees it.
func TestGone(t *testing.T) {
	for _, tt := range []struct {
		name   string
		within time.Duration
		see    func(k *keeper, s *session.Session)
	}{
		{"by its renewal", session.TTL / 3, func(*keeper, *session.Session) {}},
		{"told", 0, func(k *keeper, _ *session.Session) { k.Gone() }},
		{"by a lock", 0, func(k *keeper, s *session.Session) { _ = k.Acquire(k.t.Context(), s, "key", nil) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				consul := sessiontest.New()
				k := run(t, consul)
				s := k.session(0)
				consul.Invalidate(s.ID)
				gone := time.Now()
				tt.see(k, s)
				<-s.Lost()
				if took := time.Since(gone); took > tt.within {
					t.Errorf("noticed after %s", took)
				}
				if another := k.session(0); another.ID == s.ID {
					t.Error("no other session")
				}
			})
		})
	}
}

// At the end the session is destroyed, and a hanging Consul is not awaited.
func TestEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		consul := sessiontest.New()
		for _, fault := range []sessiontest.Fault{sessiontest.None, sessiontest.Hang} {
			k := run(t, consul)
			s := k.session(0)
			k.link.Set(fault)
			began := time.Now()
			k.stop()
			if took := time.Since(began); took > 3*time.Second || !isLost(s) {
				t.Errorf("fault %d: it took %s to end; lost: %t", fault, took, isLost(s))
			}
			if n := consul.Sessions(); (n == 0) != (fault == sessiontest.None) {
				t.Errorf("fault %d: %d sessions", fault, n)
			}
		}
	})
}

// Who waits in vain for a session hears why there is none.
func TestWithoutSession(t *testing.T) {
	for fault, want := range map[sessiontest.Fault]string{sessiontest.Deny: "Permission denied", sessiontest.NoLeader: "No cluster leader"} {
		synctest.Test(t, func(t *testing.T) {
			consul := sessiontest.New()
			k := run(t, consul)
			k.link.Set(fault)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if _, err := k.Session(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %s", err, want)
			}
			k.stop()
			consul.Close()
		})
	}
}

// A lock passes on when it is released, and a second after its session was invalidated.
func TestAcquire(t *testing.T) {
	for name, tt := range map[string]struct {
		end      func(*sessiontest.Consul, *keeper, *session.Session)
		min, max time.Duration
	}{
		"released": {func(_ *sessiontest.Consul, k *keeper, s *session.Session) {
			if err := k.Release(k.t.Context(), s, "key", []byte("left")); err != nil {
				k.t.Error(err)
			}
		}, 0, 2 * session.Spread},
		"invalidated": {func(c *sessiontest.Consul, _ *keeper, s *session.Session) { c.Invalidate(s.ID) },
			session.LockDelay, session.LockDelay + 2*session.Spread},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				consul := sessiontest.New()
				a, b := run(t, consul), run(t, consul)
				first, second := a.session(0), b.session(0)
				a.acquire(first, "key", "a")
				held := make(chan time.Time)
				go func() {
					b.acquire(second, "key", "b")
					held <- time.Now()
				}()
				time.Sleep(42 * time.Second)
				if pair := consul.Key("key"); string(pair.Value) != "a" || pair.Session != first.ID {
					t.Fatalf("held by %s: %s", pair.Session, pair.Value)
				}
				ended := time.Now()
				tt.end(consul, a, first)
				if took := (<-held).Sub(ended); took < tt.min || took > tt.max {
					t.Errorf("the next one holds it after %s", took)
				}
				if pair := consul.Key("key"); string(pair.Value) != "b" || pair.Session != second.ID {
					t.Errorf("held by %s: %s", pair.Session, pair.Value)
				}
			})
		})
	}
}

// first makes a link treat the first attempts to take a lock with one fault.
func first(n int, f sessiontest.Fault) func(*http.Request) sessiontest.Fault {
	return func(req *http.Request) sessiontest.Fault {
		if n == 0 || !req.URL.Query().Has("acquire") {
			return sessiontest.None
		}
		n--
		return f
	}
}

// An attempt whose answer is lost, late or an error is repeated.
func TestAcquireUnanswered(t *testing.T) {
	for _, fault := range []sessiontest.Fault{sessiontest.Lost, sessiontest.Late, sessiontest.Hang, sessiontest.NoLeader} {
		synctest.Test(t, func(t *testing.T) {
			consul := sessiontest.New()
			k := run(t, consul)
			s, began := k.session(0), time.Now()
			k.link.SetFunc(first(2, fault))
			k.acquire(s, "key", "value")
			if took := time.Since(began); took > 6*time.Second {
				t.Errorf("fault %d: it took %s", fault, took)
			}
			if pair := consul.Key("key"); pair.Session != s.ID {
				t.Errorf("fault %d: held by %s", fault, pair.Session)
			}
		})
	}
}

// A caller that gives up during an unanswered attempt does not hold the lock.
func TestAcquireGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		consul := sessiontest.New()
		k := run(t, consul)
		k.link.SetFunc(first(10, sessiontest.Lost))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := k.Acquire(ctx, k.session(0), "key", nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if pair := consul.Key("key"); pair == nil || pair.Session != "" {
			t.Errorf("it is %+v", pair)
		}
	})
}

// Many waiters for a lock ask for it one after the other.
func TestNoHerd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const waiters = 50
		consul := sessiontest.New()
		var all []*keeper
		holds := make(chan int)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for i := range waiters {
			k := run(t, consul)
			k.link.Slow(time.Millisecond)
			all = append(all, k)
			s := k.session(2 * time.Millisecond)
			go func() {
				if k.Acquire(ctx, s, "key", []byte(fmt.Sprint(i))) == nil {
					holds <- i
				}
			}()
		}
		for range waiters {
			holder := <-holds
			time.Sleep(time.Second)
			k := all[holder]
			if err := k.Release(ctx, k.session(0), "key", nil); err != nil {
				t.Fatal(err)
			}
		}
		calls := 0
		for _, k := range all {
			calls += k.link.Calls("PUT /v1/kv/")
		}
		if calls > waiters*waiters/4 { // half of them squared, if all asked each time
			t.Errorf("%d writes for %d locks", calls, waiters)
		}
		if n := len(consul.Holders("key")); n != waiters {
			t.Errorf("held %d times", n)
		}
	})
}

// A key left by the instance's former life is replaced, and so is what is written again.
func TestPut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		consul := sessiontest.New()
		a, b := run(t, consul), run(t, consul)
		for i, k := range []*keeper{a, a, b, b} {
			if err := k.Put(t.Context(), k.session(0), "key", []byte(fmt.Sprint(i))); err != nil {
				t.Fatal(err)
			}
			if pair := consul.Key("key"); string(pair.Value) != fmt.Sprint(i) || pair.Session != k.session(0).ID {
				t.Errorf("%d: held by %s: %s", i, pair.Session, pair.Value)
			}
		}
		b.stop()
		if pair := consul.Key("key"); pair != nil {
			t.Errorf("it is there after its session: %s", pair.Value)
		}
	})
}

// Calls end with the session and with ctx.
func TestCallsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		consul := sessiontest.New()
		holder, k := run(t, consul), run(t, consul)
		holder.acquire(holder.session(0), "taken", "")
		calls := map[string]func(context.Context, *session.Session, string, []byte) error{"acquire": k.Acquire, "put": k.Put, "release": k.Release}
		for name, f := range calls {
			for _, fault := range []sessiontest.Fault{sessiontest.Hang, sessiontest.Refuse} {
				s := k.session(time.Minute)
				k.link.Set(fault)
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				began := time.Now()
				if err := f(ctx, s, "taken", nil); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Second {
					t.Errorf("%s, fault %d: %v after %s", name, fault, err, time.Since(began))
				}
				cancel()
				if err := f(t.Context(), s, "taken", nil); !errors.Is(err, session.ErrLost) {
					t.Errorf("%s, fault %d: %v", name, fault, err)
				}
				k.link.Set(sessiontest.None)
			}
		}
	})
}
