//go:build e2e

package leader_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"go.uber.org/goleak"

	"berth/deploy/testenv"
	"berth/registrar/group/leader"
	"berth/registrar/group/session"
	"berth/registrar/group/store"
)

// ring is three Consul servers, each on two networks: the servers reach each other over one, from which they can be cut off,
// and tests reach them over the other.
type ring struct {
	t       *testing.T
	name    string
	subnet  string // 10.1.2
	began   time.Time
	servers []*node
	beliefs *beliefs
	all     []*candidate
	stops   []func()
}

// node is a Consul agent.
type node struct {
	*testenv.Consul
	ip string // on the network of the servers
}

// beliefs records which instances believe that they lead.
type beliefs struct {
	mu    sync.Mutex
	began time.Time
	all   []belief
}

type belief struct {
	id       string
	from, to time.Duration // to is 0 while it lasts
}

// candidate is an instance at an agent that stands for election.
type candidate struct {
	*leader.Election
	id   string
	at   *node
	dead atomic.Bool // it sends nothing more
	log  testenv.Log
	stop func() // and waits
}

func newRing(t *testing.T) *ring {
	r := &ring{t: t, name: testenv.Name(t), began: time.Now()}
	r.beliefs = &beliefs{began: r.began}
	testenv.MustDocker(t, "network", "create", r.name+"-front")
	testenv.Eventually(t, 10*time.Second, "a network of the servers", func() error {
		r.subnet = fmt.Sprintf("10.%d.%d", 100+rand.IntN(100), rand.IntN(256))
		_, err := testenv.Docker("network", "create", "--subnet", r.subnet+".0/24", r.name+"-ring")
		return err
	})
	for i := range 3 {
		r.servers = append(r.servers, r.agent(i, "-server", "-bootstrap-expect=3"))
	}
	for _, s := range r.servers {
		s.Answers(t)
	}
	t.Cleanup(func() {
		for _, stop := range r.stops {
			stop()
		}
	})
	return r
}

func (r *ring) agent(i int, args ...string) *node {
	r.t.Helper()
	port := testenv.FreePort(r.t)
	n := &node{ip: fmt.Sprintf("%s.%d", r.subnet, 10+i)}
	n.Consul = testenv.StartConsul(r.t, testenv.ConsulOptions{
		Name: fmt.Sprintf("%s-s%d", r.name, i), Address: "127.0.0.1:" + port,
		Docker: []string{"--network", r.name + "-front", "--publish", "127.0.0.1:" + port + ":8500"},
		Args: append(args, fmt.Sprintf("-node=s%d", i), "-client=0.0.0.0", "-bind=0.0.0.0", "-advertise="+n.ip, "-data-dir=/consul/data",
			"-retry-interval=1s", "-retry-join="+r.subnet+".10", "-retry-join="+r.subnet+".11", "-retry-join="+r.subnet+".12",
			"-hcl=limits { http_max_conns_per_client = -1 }"),
	})
	r.join(n)
	return n
}

// cut takes an agent off the servers' network; join puts it back.
func (r *ring) cut(n *node) { testenv.MustDocker(r.t, "network", "disconnect", r.name+"-ring", n.Name) }
func (r *ring) join(n *node) {
	testenv.MustDocker(r.t, "network", "connect", "--ip", n.ip, r.name+"-ring", n.Name)
}

// heal waits until all servers know each other again. On their own they would look for failed ones only every half a minute.
func (r *ring) heal() {
	r.t.Helper()
	testenv.Eventually(r.t, 3*time.Minute, "all servers are back", func() error {
		for _, c := range r.all {
			c.register(r.t) // otherwise the agent restores a lost registration only at its next full sync, as it does with a check
		}
		for _, s := range r.servers {
			for _, other := range r.servers {
				if s != other {
					_ = s.Agent().Join(other.ip, false)
				}
			}
			// A server that was declared failed rejoins the quorum only after it has been back for ten seconds.
			raft, err := s.Operator().RaftGetConfiguration(nil)
			if err != nil {
				return err
			}
			voters := slices.DeleteFunc(raft.Servers, func(s *api.RaftServer) bool { return !s.Voter })
			if len(voters) != len(r.servers) {
				return fmt.Errorf("%d servers vote", len(voters))
			}
			checks, _, err := s.Health().State(api.HealthAny, nil)
			if status := checks.AggregatedStatus(); err != nil || status != api.HealthPassing || len(checks) != 2*len(r.servers) {
				time.Sleep(200 * time.Millisecond) // before repeating all of this
				return fmt.Errorf("%d checks are %s: %v", len(checks), status, err)
			}
		}
		return nil
	})
}

// raftLeader returns the server that the others follow.
func (r *ring) raftLeader() (n *node) {
	r.t.Helper()
	testenv.Eventually(r.t, 20*time.Second, "the servers have a leader", func() error {
		for _, s := range r.servers {
			address, err := s.Status().Leader()
			host, _, _ := net.SplitHostPort(address)
			if i := slices.IndexFunc(r.servers, func(s *node) bool { return s.ip == host }); err == nil && i >= 0 {
				n = r.servers[i]
				return nil
			}
		}
		return errors.New("none knows one")
	})
	return n
}

// lives is a http.RoundTripper that sends nothing once its candidate is dead.
type lives struct {
	http.RoundTripper
	dead *atomic.Bool
}

func (l lives) RoundTrip(req *http.Request) (*http.Response, error) {
	if l.dead.Load() {
		return nil, errors.New("killed")
	}
	return l.RoundTripper.RoundTrip(req)
}

// register registers a candidate's instance at its agent, with a check that passes until it is changed.
func (c *candidate) register(t *testing.T, tags ...string) {
	t.Helper()
	testenv.Eventually(t, 20*time.Second, "registered "+c.id, func() error {
		return c.at.Agent().ServiceRegister(&api.AgentServiceRegistration{ID: c.id, Name: service, Tags: tags, Address: "10.0.0.1", Port: 80,
			Check: &api.AgentServiceCheck{CheckID: c.id + ":check", TTL: "1h", Status: api.HealthPassing}})
	})
}

func (c *candidate) status(t *testing.T, status string) {
	t.Helper()
	if err := c.at.Agent().UpdateTTL(c.id+":check", "", status); err != nil {
		t.Fatal(err)
	}
}

// stand makes an instance at an agent stand for election.
func (r *ring) stand(id string, at *node) *candidate {
	r.t.Helper()
	c := &candidate{id: id, at: at}
	c.register(r.t)
	transport := &http.Transport{MaxIdleConnsPerHost: 10}
	client, err := api.NewClient(&api.Config{Address: at.Address, HttpClient: &http.Client{Transport: lives{transport, &c.dead}}})
	if err != nil {
		r.t.Fatal(err)
	}
	c.Election = leader.New(leader.Options{Consul: client, Service: service, ID: id, Log: slog.New(slog.NewTextHandler(&c.log, nil)),
		Changed: func(s leader.State) { r.beliefs.changed(id, s.Leads && !c.dead.Load()) }})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); c.Run(ctx) }()
	c.stop = func() { cancel(); <-done; transport.CloseIdleConnections() }
	r.all = append(r.all, c)
	r.stops = append(r.stops, func() {
		c.stop()
		if r.t.Failed() {
			r.t.Logf("%s:\n%s", id, testenv.LastLines(c.log.String(), 30))
		}
	})
	return c
}

// kill ends a candidate as kill -9 does: it sends nothing more, not even its end.
func (c *candidate) kill(b *beliefs) {
	c.dead.Store(true)
	b.changed(c.id, false)
	c.stop()
}

func (b *beliefs) changed(id string, leads bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Since(b.began)
	i := slices.IndexFunc(b.all, func(b belief) bool { return b.id == id && b.to == 0 })
	switch {
	case leads && i < 0:
		b.all = append(b.all, belief{id: id, from: now})
	case !leads && i >= 0:
		b.all[i].to = now
	}
}

// leaders returns the IDs of the candidates that believe that they lead.
func (b *beliefs) leaders() (ids []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, one := range b.all {
		if one.to == 0 {
			ids = append(ids, one.id)
		}
	}
	return ids
}

func (b *beliefs) snapshot() []belief {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.all)
}

// disjoint fails the test if two believed to lead at the same time.
func (b *beliefs) disjoint(t *testing.T) {
	t.Helper()
	all := b.snapshot() // sorted by begin
	for i := 1; i < len(all); i++ {
		if before := all[i-1]; before.to == 0 || before.to > all[i].from {
			t.Errorf("two lead at once: %+v and %+v", before, all[i])
		}
	}
}

// next waits until another candidate leads, and returns it with how long none led, and how long ago that began.
func (r *ring) next(within time.Duration, after string) (id string, gap, took time.Duration) {
	r.t.Helper()
	took = testenv.Eventually(r.t, within, "another than "+after+" leads", func() error {
		is := r.beliefs.leaders()
		if len(is) != 1 || is[0] == after {
			return fmt.Errorf("%q leads", is)
		}
		id = is[0]
		return nil
	})
	all := r.beliefs.snapshot()
	if n := len(all); n > 1 {
		gap = all[n-1].from - all[n-2].to
	}
	return id, gap, took
}

// holder returns the holder of the lock according to Consul.
type holder struct {
	modified uint64
	session  string
	id       string
}

// record records the holder of the lock, as reported by any of the servers, until the returned function is called.
func (r *ring) record() (stop func() []holder) {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	var mu sync.Mutex
	seen := map[uint64]holder{}
	for _, s := range r.servers {
		all.Go(func() {
			for ctx.Err() == nil {
				log := slog.New(slog.DiscardHandler)
				_ = session.Watch(ctx, s.Client, log, store.LeaderKey(service), func(pair *api.KVPair) bool {
					if pair == nil || pair.Session == "" {
						return false
					}
					var l leader.Leader
					_ = json.Unmarshal(pair.Value, &l)
					mu.Lock()
					defer mu.Unlock()
					seen[pair.ModifyIndex] = holder{pair.ModifyIndex, pair.Session, l.ID}
					return false
				})
			}
		})
	}
	return func() (history []holder) {
		cancel()
		all.Wait()
		for _, h := range seen {
			history = append(history, h)
		}
		slices.SortFunc(history, func(a, b holder) int { return int(a.modified) - int(b.modified) })
		return slices.CompactFunc(history, func(a, b holder) bool { return a.session == b.session })
	}
}

// agree fails the test if the beliefs contradict Consul's history of the lock: each belongs to a holder, in order.
func (b *beliefs) agree(t *testing.T, history []holder) {
	t.Helper()
	i := 0
	for _, one := range b.snapshot() {
		for i < len(history) && history[i].id != one.id {
			i++
		}
		if i == len(history) {
			t.Fatalf("%+v did not hold the lock then; the holders were %+v", one, history)
		}
	}
}

func ms(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }

// What ends a leader, and how long it takes until the next one leads.
func TestE2ENextLeads(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("", func(t *testing.T) {
		r := newRing(t)
		stop := r.record()
		candidates := map[string]*candidate{}
		for i, s := range r.servers {
			id := fmt.Sprint("app-", i)
			candidates[id] = r.stand(id, s)
		}
		is, _, _ := r.next(20*time.Second, "")
		settle := func() { // all of them stand
			testenv.Eventually(t, 40*time.Second, "all stand", func() error {
				keys, _, err := r.raftLeader().KV().Keys("berth/leader/"+service+"/", "", nil)
				if err == nil && len(keys) != len(candidates) {
					err = fmt.Errorf("%d do", len(keys))
				}
				return err
			})
		}
		settle()

		for range 5 {
			was := candidates[is]
			began := time.Now()
			if err := was.StepDown(t.Context()); err != nil {
				t.Fatal(err)
			}
			stepped := time.Since(began)
			next, gap, _ := r.next(5*time.Second, is)
			t.Logf("steps down: %s leads after %s without a leader (StepDown took %s)", next, ms(gap), ms(stepped))
			was.Stand()
			is = next
			settle()
		}
		for range 3 {
			was := candidates[is]
			was.status(t, api.HealthCritical)
			next, gap, took := r.next(5*time.Second, is)
			t.Logf("check turns critical: %s leads %s after that, %s without a leader", next, ms(took), ms(gap))
			was.status(t, api.HealthPassing)
			is = next
			settle()
		}
		was := candidates[is]
		if err := was.at.Agent().ServiceDeregister(is); err != nil {
			t.Fatal(err)
		}
		next, gap, took := r.next(5*time.Second, is)
		t.Logf("deregistered: %s leads %s after that, %s without a leader", next, ms(took), ms(gap))
		was.register(t)
		is = next
		settle()

		// The tag for the role is a new registration.
		n := len(r.beliefs.snapshot())
		candidates[is].register(t, "leader")
		time.Sleep(2 * time.Second) // nothing should happen meanwhile
		if now := len(r.beliefs.snapshot()); now != n || r.beliefs.leaders()[0] != is {
			t.Errorf("another tag ended the leadership")
		}

		// Another server becomes Consul's leader: the same instance leads on, at the latest when that has settled.
		if raft := r.raftLeader(); raft == candidates[is].at {
			if err := candidates[is].StepDown(t.Context()); err != nil {
				t.Fatal(err)
			}
			was := is
			is, _, _ = r.next(5*time.Second, is)
			candidates[was].Stand()
			settle()
		}
		raft := r.raftLeader()
		n = len(r.beliefs.snapshot())
		raft.Do(t, "kill")
		killed := time.Now()
		testenv.Eventually(t, 30*time.Second, "Consul has another leader", func() error {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := candidates[is].at.KV().Put(&api.KVPair{Key: "any"}, new(api.WriteOptions).WithContext(ctx))
			return err
		})
		elected := time.Since(killed)
		testenv.Eventually(t, 10*time.Second, "it leads on", func() error {
			if now := r.beliefs.leaders(); !slices.Equal(now, []string{is}) {
				return fmt.Errorf("%q lead", now)
			}
			return nil
		})
		paused := time.Duration(0)
		all := r.beliefs.snapshot()
		for i := n; i < len(all); i++ {
			if paused += all[i].from - all[i-1].to; all[i].id != is {
				t.Errorf("%s led meanwhile", all[i].id)
			}
		}
		t.Logf("Consul's leader killed: writes again after %s; %s leads on, paused for %s", ms(elected), is, ms(paused))
		raft.Do(t, "start")
		for _, c := range candidates {
			testenv.Eventually(t, 30*time.Second, "a check passes again, which is critical where its agent was started", func() error {
				if err := c.at.Agent().UpdateTTL(c.id+":check", "", api.HealthPassing); err != nil {
					return err
				}
				checks, _, err := r.raftLeader().Health().Checks(service, nil)
				if err == nil && (len(checks) != len(candidates) || checks.AggregatedStatus() != api.HealthPassing) {
					err = fmt.Errorf("%d checks are %s", len(checks), checks.AggregatedStatus())
				}
				return err
			})
		}
		settle()

		// Killed, with its agent alive: the session expires.
		was = candidates[is]
		was.kill(r.beliefs)
		next, gap, _ = r.next(30*time.Second, is)
		t.Logf("killed: %s leads after %s", next, ms(gap))
		delete(candidates, is)
		was = r.stand(is, was.at)
		candidates[is] = was
		is = next
		settle()

		// Its agent freezes: it stops leading by its own clock.
		frozen := candidates[is].at
		frozen.Do(t, "pause")
		began := time.Now()
		testenv.Eventually(t, session.TTL, "it leads no longer", func() error {
			if len(r.beliefs.leaders()) > 0 {
				return errors.New("it does")
			}
			return nil
		})
		stepped := time.Since(began)
		next, gap, took = r.next(30*time.Second, is)
		t.Logf("agent frozen: it stops to lead after %s, %s leads after %s, %s without a leader", ms(stepped), next, ms(stepped+took), ms(gap))
		frozen.Do(t, "unpause")
		r.heal()
		settle()
		r.beliefs.disjoint(t)
		r.beliefs.agree(t, stop())
	})
}

// A client agent that is stopped leaves, and Consul forgets its node at once, with the sessions: the leader knows before
// another one leads.
func TestE2EAgentLeaves(t *testing.T) {
	r := newRing(t)
	client := r.agent(3)
	client.Answers(t)
	r.stand("app-3", client)
	is, _, _ := r.next(20*time.Second, "")
	for i, s := range r.servers {
		r.stand(fmt.Sprint("app-", i), s)
	}
	testenv.Eventually(t, 20*time.Second, "all stand", func() error {
		keys, _, err := client.KV().Keys("berth/leader/"+service+"/", "", nil)
		if err == nil && len(keys) != 4 {
			err = fmt.Errorf("%d do", len(keys))
		}
		return err
	})
	began := time.Now()
	client.Do(t, "stop", "--time", "10")
	next, gap, _ := r.next(20*time.Second, is)
	all := r.beliefs.snapshot()
	t.Logf("agent leaves: it stops to lead %s after the signal, %s leads after %s without a leader", ms(all[0].to-began.Sub(r.began)), next, ms(gap))
	r.beliefs.disjoint(t)
}

// Members are randomly cut off from each other and return: two never lead at once, and one does in the end.
func TestE2EPartitions(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("", func(t *testing.T) {
		const partitions, long = 20, 5
		seed := rand.Uint64()
		random := rand.New(rand.NewPCG(seed, 0))
		t.Logf("seed %d", seed)
		r := newRing(t)
		stop := r.record()
		at := map[string]*node{}
		for i, s := range r.servers {
			id := fmt.Sprint("app-", i)
			r.stand(id, s)
			at[id] = s
		}
		r.next(20*time.Second, "")
		for i := range partitions {
			cut := r.servers[random.IntN(len(r.servers))]
			lasts := 200*time.Millisecond + time.Duration(random.Int64N(int64(4*time.Second)))
			raft := r.raftLeader()
			is := r.beliefs.leaders()
			if i%long == long-1 && len(is) == 1 { // long enough for another one to lead
				cut = at[is[0]]
				r.cut(cut)
				next, gap, took := r.next(60*time.Second, is[0])
				t.Logf("partition %d: %s, who leads, is cut off (Consul's leader: %t); %s leads after %s, %s without a leader", i+1, is[0], raft == cut, next, ms(took), ms(gap))
				r.join(cut)
			} else {
				r.cut(cut)
				time.Sleep(lasts)
				r.join(cut)
			}
			if i%long == long-2 { // otherwise another one could have no quorum
				r.heal()
			}
			time.Sleep(time.Duration(random.Int64N(int64(time.Second))))
		}
		testenv.Eventually(t, 60*time.Second, "one leads, and all know it", func() error {
			pair, _, err := r.servers[0].KV().Get(store.LeaderKey(service), nil)
			if err != nil {
				return err
			}
			is := r.beliefs.leaders()
			if pair == nil || pair.Session == "" || len(is) != 1 || !strings.Contains(string(pair.Value), is[0]) {
				return fmt.Errorf("%q lead, Consul has %+v", is, pair)
			}
			return nil
		})
		history := stop()
		r.beliefs.disjoint(t)
		r.beliefs.agree(t, history)
		t.Logf("%d partitions, %d holders of the lock, %d beliefs", partitions, len(history), len(r.beliefs.snapshot()))
	})
}
