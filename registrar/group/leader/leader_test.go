package leader_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/registrar/group/leader"
	"berth/registrar/group/session"
	"berth/registrar/group/session/sessiontest"
)

const service = "app"

// group is a service whose instances stand for election.
type group struct {
	t      *testing.T
	consul *sessiontest.Consul
	all    []*member

	mu    sync.Mutex
	leads []string // those that believe that they lead
}

// member is an instance that stands for election, over its own link.
type member struct {
	*leader.Election
	id    string
	link  *sessiontest.Link
	told  bool
	state leader.State
	log   strings.Builder
	stop  func() // and waits
}

func newGroup(t *testing.T) *group {
	g := &group{t: t, consul: sessiontest.New()}
	t.Cleanup(func() {
		for _, m := range g.all {
			m.stop()
		}
		g.consul.Close()
		if t.Failed() {
			for _, m := range g.all {
				t.Logf("%s:\n%s", m.id, m.log.String())
			}
		}
	})
	return g
}

func (g *group) join(id string, priority int) *member {
	g.consul.Service(id, api.HealthPassing)
	m := &member{id: id}
	link, client := g.consul.Link()
	m.link = link
	m.Election = leader.New(leader.Options{Consul: client, Service: service, ID: id, Priority: priority,
		Log: slog.New(slog.NewTextHandler(&m.log, nil)), Changed: func(s leader.State) { g.changed(m, s) }})
	ctx, cancel := context.WithCancel(g.t.Context())
	done := make(chan struct{})
	go func() { defer close(done); m.Run(ctx) }()
	m.stop = func() { cancel(); <-done }
	g.all = append(g.all, m)
	return m
}

func (g *group) changed(m *member, s leader.State) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if m.told && s == m.state {
		g.t.Errorf("%s: told twice: %+v", m.id, s)
	}
	if s.Leads != m.state.Leads {
		if s.Leads {
			g.leads = append(g.leads, m.id)
		} else {
			g.leads = without(g.leads, m.id)
		}
		if len(g.leads) > 1 {
			g.t.Errorf("%s: two lead at once: %v", time.Now().Format(time.RFC3339Nano), g.leads)
		}
	}
	m.told, m.state = true, s
}

func without(all []string, one string) (out []string) {
	for _, s := range all {
		if s != one {
			out = append(out, s)
		}
	}
	return out
}

func (g *group) leader() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return strings.Join(g.leads, " ")
}

// knows returns the last state reported to an instance.
func (g *group) knows(m *member) leader.State {
	g.mu.Lock()
	defer g.mu.Unlock()
	return m.state
}

// expect waits until an instance leads, "" for none, and returns how long that took.
func (g *group) expect(within time.Duration, id string) time.Duration {
	g.t.Helper()
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		if took := time.Since(began); g.leader() == id {
			return took
		} else if took > within {
			g.t.Fatalf("%q leads after %s, want %q", g.leader(), within, id)
		}
	}
}

// One leads, and the others know which. When that ends, the next one leads after a time that depends on the reason. When the
// first one is back, it follows.
func TestNextLeads(t *testing.T) {
	const soon = 2*session.Spread + 5*time.Millisecond
	for name, tt := range map[string]struct {
		end, mend func(*group, *member)
		min, max  time.Duration
	}{
		"steps down": {func(g *group, m *member) {
			if err := m.StepDown(g.t.Context()); err != nil {
				g.t.Error(err)
			}
		}, func(_ *group, m *member) { m.Stand() }, 0, soon},
		"stops": {func(_ *group, m *member) { m.stop() }, nil, 0, soon},
		"check turns critical": {func(g *group, m *member) { g.consul.Service(m.id, api.HealthCritical) },
			func(g *group, m *member) { g.consul.Service(m.id, api.HealthPassing) }, session.LockDelay, session.LockDelay + soon},
		"check turns warning": {func(g *group, m *member) { g.consul.Service(m.id, api.HealthWarning) },
			func(g *group, m *member) { g.consul.Service(m.id, api.HealthPassing) }, 0, 500*time.Millisecond + soon},
		"deregistered": {func(g *group, m *member) { g.consul.Service(m.id, "") },
			func(g *group, m *member) { g.consul.Service(m.id, api.HealthPassing) }, session.LockDelay, session.LockDelay + soon},
		"hangs": {func(_ *group, m *member) { m.link.Set(sessiontest.Hang) }, func(_ *group, m *member) { m.link.Set(sessiontest.None) },
			session.TTL * 2 / 3, session.TTL + 5*time.Second + soon},
		"node fails": {func(_ *group, m *member) { m.link.Set(sessiontest.Hang); time.Sleep(5 * time.Second); m.link.Fail() },
			func(_ *group, m *member) { m.link.Set(sessiontest.None) }, 5 * time.Second, 5*time.Second + soon},
		"answers are lost": {func(_ *group, m *member) { m.link.Set(sessiontest.Lost) }, func(_ *group, m *member) { m.link.Set(sessiontest.None) },
			session.TTL * 2 / 3, session.TTL + 5*time.Second + soon},
		"agent away": {func(_ *group, m *member) { m.link.Set(sessiontest.Refuse) }, func(_ *group, m *member) { m.link.Set(sessiontest.None) },
			session.TTL * 2 / 3, session.TTL + 5*time.Second + soon},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGroup(t)
				a := g.join("a", 0)
				g.expect(time.Second, "a")
				b := g.join("b", 0)
				time.Sleep(42 * time.Second)
				if got, want := g.knows(b), (leader.State{Leader: leader.Leader{ID: "a", Address: "10.0.0.1", Port: 80}}); got != want {
					t.Errorf("b knows %+v", got)
				}
				if got, want := string(g.consul.Key("service/app/leader").Value), `{"id":"a","address":"10.0.0.1","port":80}`; got != want {
					t.Errorf("the key is %s", got)
				}
				tt.end(g, a)
				if took := g.expect(tt.max, "b"); took < tt.min {
					t.Errorf("b leads after %s", took)
				}
				if tt.mend == nil {
					return
				}
				time.Sleep(time.Minute)
				tt.mend(g, a)
				time.Sleep(15 * time.Second) // a hanging watch is repeated after 13 seconds
				if got := g.knows(a); got.Leads || got.Leader.ID != "b" {
					t.Errorf("a knows %+v", got)
				}
				b.stop()
				g.expect(soon, "a")
				a.stop()
				if n := g.consul.Sessions(); n != 0 {
					t.Errorf("%d sessions are left", n)
				}
				if pair := g.consul.Key("service/app/leader"); pair.Session != "" || len(pair.Value) > 0 {
					t.Errorf("the key is left as %+v", pair)
				}
			})
		})
	}
}

// The candidate with the highest priority gets a free lock, and no leader is pushed out. An instance that does not stand is
// not awaited.
func TestPriority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t)
		low := g.join("low", -1)
		g.expect(time.Second, "low")
		for i := range 5 {
			g.join(fmt.Sprint("middle", i), 0)
		}
		high := g.join("high", 7)
		time.Sleep(time.Minute)
		g.expect(0, "low")
		low.stop()
		g.expect(50*time.Millisecond, "high")
		g.join("low2", -1)
		time.Sleep(time.Minute)
		g.consul.Service("high", api.HealthCritical)
		if took := g.expect(5*time.Second, ""); took > 10*time.Millisecond {
			t.Errorf("it stopped to lead after %s", took)
		}
		time.Sleep(2 * time.Second)
		if is := g.leader(); !strings.HasPrefix(is, "middle") {
			t.Errorf("%q leads", is)
		}
		g.consul.Service("high", api.HealthPassing)
		time.Sleep(5 * time.Second)
		// It is back, but cannot take the lock: the others continue without it.
		high.link.Set(sessiontest.Hang)
		for _, m := range g.all {
			if m.id == g.leader() {
				m.stop()
			}
		}
		time.Sleep(leader.Grace + 50*time.Millisecond)
		if is := g.leader(); !strings.HasPrefix(is, "middle") {
			t.Errorf("%q leads", is)
		}
	})
}

// An instance that is not passing, not registered, or has stepped down does not stand.
func TestStands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t)
		a := g.join("a", 0)
		g.consul.Service("a", "")
		for _, status := range []string{"", api.HealthCritical, api.HealthWarning} {
			g.consul.Service("a", status)
			time.Sleep(5 * time.Second)
			g.expect(0, "")
		}
		g.consul.Service("a", api.HealthPassing)
		g.expect(time.Second, "a")
		for range 3 {
			if err := a.StepDown(t.Context()); err != nil {
				t.Error(err)
			}
			time.Sleep(5 * time.Second)
			g.expect(0, "")
			a.Stand()
			g.expect(time.Second, "a")
		}
		// Deleting the key takes the lock away.
		g.consul.Invalidate(g.consul.Key("service/app/leader").Session)
		if took := g.expect(time.Second, ""); took > 10*time.Millisecond {
			t.Errorf("noticed after %s", took)
		}
		g.expect(2*time.Second, "a")
		a.link.Set(sessiontest.Hang)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := a.StepDown(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		g.expect(0, "")
	})
}

// A candidate that does not see changes of the lock does not take it based on its outdated view.
func TestOldView(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t)
		b := g.join("b", 0)
		deaf := func(then sessiontest.Fault) func(*http.Request) sessiontest.Fault {
			return func(req *http.Request) sessiontest.Fault {
				switch {
				case req.URL.Path == "/v1/txn":
					return then
				case strings.HasSuffix(req.URL.Path, "/leader") && req.URL.Query().Has("index"):
					return sessiontest.Hang
				}
				return sessiontest.None
			}
		}
		b.link.SetFunc(deaf(sessiontest.NoLeader)) // it has seen the free lock
		time.Sleep(time.Second)
		a := g.join("a", 0)
		g.expect(time.Second, "a")
		time.Sleep(2 * time.Second)
		a.link.Set(sessiontest.Hang)
		a.link.Fail()
		time.Sleep(session.LockDelay + 50*time.Millisecond)
		g.expect(0, "a")
		b.link.SetFunc(deaf(sessiontest.None))
		time.Sleep(20 * time.Second)
		g.expect(0, "")
		b.link.Set(sessiontest.None)
		time.Sleep(20 * time.Second)
		g.expect(0, "b")
	})
}

// Whatever happens to the links and the instances, two never lead at once, and in the end one does.
func TestNeverTwo(t *testing.T) {
	for seed := range uint64(5) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := rand.New(rand.NewPCG(seed, 0))
				g := newGroup(t)
				for i := range 4 {
					g.join(fmt.Sprint(i), i/2)
				}
				var all sync.WaitGroup
				for _, m := range g.all {
					all.Go(func() {
						for range 50 {
							g.mu.Lock()
							fault := sessiontest.Fault(1 + r.IntN(8))
							lasts, pause := time.Duration(r.Int64N(int64(25*time.Second))), time.Second+time.Duration(r.Int64N(int64(10*time.Second)))
							early := time.Duration(r.Int64N(int64(6 * time.Second)))
							g.mu.Unlock()
							switch fault {
							case 7:
								g.consul.Service(m.id, api.HealthCritical)
								time.Sleep(lasts)
								g.consul.Service(m.id, api.HealthPassing)
							case 8:
								ctx, cancel := context.WithTimeout(t.Context(), lasts)
								_ = m.StepDown(ctx)
								cancel()
								m.Stand()
							case sessiontest.Hang:
								m.link.Set(fault)
								time.Sleep(early)
								m.link.Fail()
								time.Sleep(lasts)
								m.link.Set(sessiontest.None)
							default:
								m.link.Set(fault)
								time.Sleep(lasts)
								m.link.Set(sessiontest.None)
							}
							time.Sleep(pause)
						}
					})
				}
				all.Wait()
				changes := len(g.consul.Holders("service/app/leader"))
				time.Sleep(3 * session.TTL)
				if is := g.leader(); len(is) != 1 || changes < 20 {
					t.Errorf("%q leads after %d changes", is, changes)
				}
				for _, m := range g.all {
					if got := g.knows(m); got.Leader.ID != g.leader() {
						t.Errorf("%s knows %+v", m.id, got)
					}
				}
			})
		})
	}
}
