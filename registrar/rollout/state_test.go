package rollout

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/registrar/group/session"
	"berth/registrar/group/session/sessiontest"
)

// caller is a call of berth rollout.
type caller struct {
	*session.Keeper
	*api.Client
	link *sessiontest.Link
	stop func()
}

func newCaller(t *testing.T, consul *sessiontest.Consul) *caller {
	c := &caller{}
	c.link, c.Client = consul.Link()
	c.Keeper = session.New(session.Options{Consul: c.Client, Name: "berth rollout", Behavior: api.SessionBehaviorRelease, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() { defer close(done); c.Run(ctx) }()
	c.stop = func() { cancel(); <-done }
	t.Cleanup(c.stop)
	return c
}

func (c *caller) take(ctx context.Context, by string) (*Lock, error) {
	return Take(ctx, c.Client, c.Keeper, "shop", "app", State{Who: Who{By: by}, Phase: PhaseNext, Options: Defaults()})
}

// A service has one rollout at a time; an interrupted one is not started again.
func TestLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		consul := sessiontest.New()
		defer consul.Close()
		a, b := newCaller(t, consul), newCaller(t, consul)
		defer b.stop()
		lock, err := a.take(t.Context(), "ada")
		if err != nil {
			t.Fatal(err)
		}
		var held *HeldError
		if _, err := b.take(t.Context(), "bob"); !errors.As(err, &held) || held.By != "ada" {
			t.Errorf("while ada has it: %v", err)
		}
		if err := lock.Save(t.Context(), State{Who: Who{By: "ada"}, Phase: PhaseDrain, Reason: "no database", Options: Defaults()}); err != nil {
			t.Fatal(err)
		}
		if err := lock.Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		var unfinished *UnfinishedError
		if _, err := b.take(t.Context(), "bob"); !errors.As(err, &unfinished) || !strings.Contains(err.Error(), "no database: continue it with --resume") {
			t.Errorf("after it was left: %v", err)
		}
		lock, s, err := TakeOver(t.Context(), b.Client, b.Keeper, "shop", "app", Who{By: "bob"}, nil)
		if err != nil || s.Phase != PhaseDrain || s.By != "bob" || s.Reason != "" {
			t.Fatalf("%+v %v", s, err)
		}
		if err := lock.Finish(t.Context()); err != nil {
			t.Fatal(err)
		}
		if pair := consul.Key(Key("shop", "app")); pair != nil {
			t.Errorf("it leaves %s", pair.Value)
		}
		if _, _, err := TakeOver(t.Context(), b.Client, b.Keeper, "shop", "app", Who{By: "bob"}, nil); !errors.Is(err, ErrNone) {
			t.Errorf("there is none: %v", err)
		}
		a.stop()
	})
}

// Two hosts may run the same project. A rollout that was interrupted on one of them is neither resumed nor aborted on the other, which
// has none of its containers.
func TestLockOfAnotherHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		consul := sessiontest.New()
		defer consul.Close()
		a := newCaller(t, consul)
		defer a.stop()
		here, there := Who{By: "bob", Engine: "B"}, Who{By: "ada", Engine: "A"}
		take := func(who Who) (*Lock, error) {
			return Take(t.Context(), a.Client, a.Keeper, "shop", "app", State{Who: who, Phase: PhaseNext, Options: Defaults()})
		}
		lock, err := take(there)
		if err == nil {
			err = lock.Leave(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		var elsewhere *ElsewhereError
		if _, err := take(here); !errors.As(err, &elsewhere) || !strings.Contains(err.Error(), "'consul kv delete berth/rollout/shop/app'") {
			t.Errorf("begun here: %v", err)
		}
		if _, _, err := TakeOver(t.Context(), a.Client, a.Keeper, "shop", "app", here, nil); !errors.As(err, &elsewhere) {
			t.Errorf("taken over here: %v", err)
		}
		if _, s, err := TakeOver(t.Context(), a.Client, a.Keeper, "shop", "app", there, nil); err != nil || s.Who != there {
			t.Errorf("taken over there: %+v %v", s, err)
		}
	})
}

// A state that this version cannot continue is refused.
func TestStateOfAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		consul := sessiontest.New()
		defer consul.Close()
		a := newCaller(t, consul)
		defer a.stop()
		odd := State{Who: Who{By: "ada"}, Phase: PhaseNext, Options: Defaults(), Todo: []string{"a"}}
		odd.Options.Parallelism = -1
		lock, err := a.take(t.Context(), "ada")
		if err == nil {
			err = errors.Join(lock.Save(t.Context(), odd), lock.Leave(t.Context()))
		}
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = TakeOver(t.Context(), a.Client, a.Keeper, "shop", "app", Who{By: "bob"}, nil)
		if err == nil || !strings.Contains(err.Error(), "is not a rollout of this version of berth: parallelism") {
			t.Error(err)
		}
	})
}

// The rollout of a killed berth is taken over when its session has expired.
func TestTakeOverOfKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		consul := sessiontest.New()
		defer consul.Close()
		a, b := newCaller(t, consul), newCaller(t, consul)
		if _, err := a.take(t.Context(), "ada"); err != nil {
			t.Fatal(err)
		}
		a.link.Set(sessiontest.Refuse)
		began, waited := time.Now(), 0
		if _, _, err := TakeOver(t.Context(), b.Client, b.Keeper, "shop", "app", Who{By: "bob"}, func(*HeldError) { waited++ }); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > session.TTL+session.LockDelay+time.Second || waited != 1 {
			t.Errorf("it took %s, and was told %d times", took, waited)
		}
		a.stop()
		b.stop()
	})
}

// A rollout that has lost the lock leaves it to the one that has taken it over.
func TestFinishOfLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		consul := sessiontest.New()
		defer consul.Close()
		a, b := newCaller(t, consul), newCaller(t, consul)
		lock, err := a.take(t.Context(), "ada")
		if err != nil {
			t.Fatal(err)
		}
		a.link.Set(sessiontest.Refuse)
		if _, _, err := TakeOver(t.Context(), b.Client, b.Keeper, "shop", "app", Who{By: "bob"}, func(*HeldError) {}); err != nil {
			t.Fatal(err)
		}
		a.link.Set(sessiontest.None)
		if err := lock.Finish(t.Context()); !errors.Is(err, session.ErrLost) || consul.Key(Key("shop", "app")) == nil {
			t.Errorf("ada deletes bob's: %v", err)
		}
		a.stop()
		b.stop()
	})
}

// balancer is a Publisher with its proxy.
type balancer struct {
	caller
	stop func()

	mu      sync.Mutex
	servers map[string]Server
	err     error
}

// says sets the proxy's report on its servers.
func (b *balancer) says(servers map[string]Server, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.servers, b.err = servers, err
}

func newBalancer(t *testing.T, consul *sessiontest.Consul) *balancer {
	b := &balancer{servers: map[string]Server{"10.0.0.1:80": {There: true, Usable: true, InFlight: 7}, "10.9.9.9:80": {There: true, Usable: true}}}
	b.link, b.Client = consul.Link()
	p := &Publisher{Consul: b.Client, Balancer: "lb/1", Log: slog.New(slog.DiscardHandler),
		Servers: func(context.Context) (map[string]Server, error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.servers, b.err
		}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); p.Run(ctx) }()
	b.stop = func() { cancel(); <-done }
	return b
}

// tells returns the balancer's report in Consul, or nil.
func (b *balancer) tells(t *testing.T, consul *sessiontest.Consul) *Serving {
	t.Helper()
	pair := consul.Key("berth/serving/lb%2F1")
	if pair == nil {
		return nil
	}
	s := &Serving{}
	if err := json.Unmarshal(pair.Value, s); err != nil || s.Balancer != "lb/1" || pair.Session == "" {
		t.Fatalf("%s: %v", pair.Value, err)
	}
	return s
}

// A balancer reports what is asked for while a rollout runs, at each change and not more often, and nothing before and
// after.
func TestPublisher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		consul := sessiontest.New()
		defer consul.Close()
		b, a := newBalancer(t, consul), newCaller(t, consul)
		time.Sleep(time.Hour)
		if b.tells(t, consul) != nil || consul.Sessions() != 0 || b.link.Calls("GET ") > 13 {
			t.Errorf("without a rollout: %d sessions, %d reads", consul.Sessions(), b.link.Calls("GET "))
		}
		lock, err := a.take(t.Context(), "ada")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(300 * time.Millisecond)
		if s := b.tells(t, consul); s == nil || s.has() {
			t.Errorf("it does not tell that it is there: %+v", s)
		}
		if err := lock.Save(t.Context(), State{Addresses: []string{"10.0.0.1:80", "10.0.0.2:80"}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(300 * time.Millisecond)
		s := b.tells(t, consul)
		if s == nil || len(s.Servers) != 2 || s.Servers["10.0.0.1:80"] != (Server{There: true, Usable: true}) || s.Servers["10.0.0.2:80"] != (Server{}) {
			t.Fatalf("it tells %+v", s)
		}
		writes := b.link.Calls("PUT /v1/kv/")
		b.says(map[string]Server{"10.0.0.1:80": {There: true, Usable: true, InFlight: 9}}, nil)
		time.Sleep(time.Minute)
		if n := b.link.Calls("PUT /v1/kv/"); n != writes {
			t.Errorf("%d writes though nothing has changed", n-writes)
		}
		b.says(map[string]Server{"10.0.0.1:80": {There: true, InFlight: 3}}, nil)
		time.Sleep(200 * time.Millisecond)
		if is := b.tells(t, consul).Servers["10.0.0.1:80"]; is.InFlight != 3 || is.Usable {
			t.Errorf("a server that leaves: %+v", is)
		}
		b.says(nil, errors.New("no socket"))
		time.Sleep(200 * time.Millisecond)
		if s := b.tells(t, consul); s.Error != "no socket" || len(s.Servers) > 0 {
			t.Errorf("a proxy that is away: %+v", s)
		}
		if err := lock.Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(300 * time.Millisecond)
		if s := b.tells(t, consul); s != nil {
			t.Errorf("nobody runs the rollout any more: %+v", s)
		}
		b.stop()
		a.stop()
		if n := consul.Sessions(); n > 0 {
			t.Errorf("%d sessions are left", n)
		}
	})
}

// A Consul that refuses or is away is asked again with pauses, and gets the report when it answers.
func TestPublisherRefused(t *testing.T) {
	for fault, most := range map[sessiontest.Fault]int{sessiontest.Deny: 62, sessiontest.Refuse: 1500} {
		synctest.Test(t, func(t *testing.T) {
			consul := sessiontest.New()
			defer consul.Close()
			b, a := newBalancer(t, consul), newCaller(t, consul)
			b.link.Set(fault)
			lock, err := a.take(t.Context(), "ada")
			if err != nil {
				t.Fatal(err)
			}
			if err := lock.Save(t.Context(), State{Addresses: []string{"10.0.0.1:80"}}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour)
			if n := b.link.Calls("GET "); n > most {
				t.Errorf("fault %d: %d reads in an hour", fault, n)
			}
			b.link.Set(sessiontest.None)
			time.Sleep(time.Minute + time.Second)
			if s := b.tells(t, consul); s == nil || !s.has() {
				t.Errorf("fault %d: it tells %+v", fault, s)
			}
			b.stop()
			a.stop()
		})
	}
}

func TestAddressesIn(t *testing.T) {
	pairs := api.KVPairs{
		{Value: []byte(`{"addresses":["b","a"]}`), Session: "s"}, {Value: []byte(`{"addresses":["c"]}`)},
		{Value: []byte(`{"addresses":["a","d"]}`), Session: "s"}, {Value: []byte(`{`), Session: "s"},
	}
	if got := strings.Join(addressesIn(pairs), " "); got != "a b d" {
		t.Error(got)
	}
	many, _ := json.Marshal(State{Addresses: strings.Fields(strings.Repeat("x ", 1) + numbers(3*mostTold))})
	if n := len(addressesIn(api.KVPairs{{Value: many, Session: "s"}})); n != mostTold {
		t.Errorf("%d addresses", n)
	}
}

func numbers(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(time.Duration(i).String() + " ")
	}
	return b.String()
}
