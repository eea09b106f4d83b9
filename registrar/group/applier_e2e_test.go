//go:build e2e

package group

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/deploy/testenv"
	"berth/registrar/group/session"
	"berth/registrar/group/store"
	"berth/registrar/retry"
)

// stand is a target in this process: it drains for 100 ms and starts for 200 ms.
type stand struct {
	id string
	g  *standGroup

	runs  Wanted
	tries int
}

// standGroup is what the instances share. Its mutex also guards their fields.
type standGroup struct {
	mu   sync.Mutex
	out  map[string]bool
	most int
	slow time.Duration // of a start
}

func (s *stand) Prepare(_ context.Context, w Wanted) (Change, error) {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	return &standChange{s, s.runs, w}, nil
}

func (s *stand) Drain(ctx context.Context, _ string) error {
	s.g.mu.Lock()
	s.g.out[s.id] = true
	s.g.most = max(s.g.most, len(s.g.out))
	s.g.mu.Unlock()
	return lasts(ctx, 100*time.Millisecond)
}

func (s *stand) Resume(context.Context) error {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	delete(s.g.out, s.id)
	return nil
}

func lasts(ctx context.Context, d time.Duration) error {
	retry.Pause(ctx, d)
	return ctx.Err()
}

type standChange struct {
	s        *stand
	from, to Wanted
}

func (c *standChange) Empty() bool    { return c.from.ID() == c.to.ID() }
func (c *standChange) Disrupts() bool { return true }

func (c *standChange) Apply(ctx context.Context) error {
	c.s.g.mu.Lock()
	slow := c.s.g.slow
	c.s.tries++
	c.s.g.mu.Unlock()
	if err := lasts(ctx, slow); err != nil {
		return err
	}
	if strings.Contains(string(c.to.Config.Text), "sick") {
		return fmt.Errorf("it does not become ready")
	}
	c.s.g.mu.Lock()
	defer c.s.g.mu.Unlock()
	c.s.runs = c.to
	return nil
}

func (c *standChange) Revert(ctx context.Context) error {
	c.s.g.mu.Lock()
	defer c.s.g.mu.Unlock()
	c.s.runs = c.from
	return nil
}

// TestE2EApplier rolls over five instances at a real Consul: a change, a failing one, a rollback, and one whose holder dies.
func TestE2EApplier(t *testing.T) {
	address := testenv.FreeAddress(t, "127.0.0.1")
	c := testenv.StartConsul(t, testenv.ConsulOptions{
		Name: testenv.Name(t) + "-consul", Address: address,
		Docker: []string{"--publish", address + ":8500"},
		Args:   []string{"-dev", "-client=0.0.0.0", "-node=e2e"},
	})
	c.Answers(t)
	app := store.Item{Service: "app"}
	s := store.New(c.Client)
	g := &standGroup{out: map[string]bool{}, slow: 200 * time.Millisecond}
	type running struct {
		*stand
		stop, kill context.CancelFunc
		done       chan struct{}
		kept       chan struct{}
	}
	var all []*running
	log := &testenv.Log{}
	for n := range 5 {
		id := fmt.Sprintf("app-%d", n+1)
		r := &running{stand: &stand{id: id, g: g}, done: make(chan struct{}), kept: make(chan struct{})}
		client := testenv.ConsulClient(t, address, func() string { return "" })
		logger := slog.New(slog.NewTextHandler(log, nil))
		keeper := session.New(session.Options{Consul: client, Name: "berth " + id, Behavior: api.SessionBehaviorDelete, Log: logger})
		a := New(Options{Service: "app", Instance: id, Strategy: Rolling, Started: time.Now(), Timeout: 10 * time.Second,
			Target: r.stand, Consul: client, Store: store.New(client), Sessions: keeper, Log: logger})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if _, err := a.First(ctx); err != nil {
			t.Fatal(err)
		}
		cancel()
		lives, kill := context.WithCancel(context.Background())
		runs, stop := context.WithCancel(context.Background())
		r.kill, r.stop = kill, stop
		go func() { defer close(r.kept); keeper.Run(lives) }()
		go func() { defer close(r.done); a.Run(runs) }()
		all = append(all, r)
	}
	t.Cleanup(func() {
		for _, r := range all {
			r.stop()
			<-r.done
			r.kill()
			<-r.kept
		}
		if t.Failed() {
			t.Log(log)
		}
	})
	says := func(want ...string) func() error {
		return func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			status, err := s.Status(ctx, "app")
			if err != nil {
				return err
			}
			var got []string
			for _, m := range status.Members {
				if m.Report != nil {
					got = append(got, fmt.Sprintf("%s %d", m.Report.State, m.Report.Version))
				}
			}
			slices.Sort(got)
			if got = slices.Compact(got); !slices.Equal(got, want) {
				return fmt.Errorf("they say %q, want %q", got, want)
			}
			return nil
		}
	}
	apply := func(text, strategy string) uint64 {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		h, err := s.Apply(ctx, app, store.Change{Text: []byte(text), By: "e2e", Strategy: strategy})
		if err != nil {
			t.Fatal(err)
		}
		return h.Version
	}
	testenv.Eventually(t, 5*time.Second, "they report", says("applied 0"))
	for n := range 3 {
		took := rolled(t, func() { apply(fmt.Sprint("fine ", n), "") }, says(fmt.Sprintf("applied %d", n+1)))
		t.Logf("apply → all of 5 have acknowledged, rolling: %v, of which 1.5 s are theirs", took)
	}
	took := rolled(t, func() { apply("together", AtOnce) }, says("applied 4"))
	t.Logf("apply → all of 5 have acknowledged, at once: %v, of which 300 ms are theirs", took)
	g.mu.Lock()
	if g.most != 5 {
		t.Errorf("%d were out of service at once", g.most)
	}
	g.most = 0
	g.mu.Unlock()

	apply("sick", "")
	testenv.Eventually(t, 10*time.Second, "it is halted", says("failed 4", "waiting 4"))
	tries := 0
	for _, r := range all {
		if tries += r.tries - 4; r.runs.Config.Version != 4 {
			t.Errorf("%s runs %d", r.id, r.runs.Config.Version)
		}
	}
	if tries != 1 {
		t.Errorf("%d tried what failed", tries)
	}
	took = rolled(t, func() { apply("together", "") }, says("applied 6"))
	t.Logf("rollback → all of 5 have acknowledged: %v", took)

	// The holder's session is no longer renewed, and nothing is released.
	g.mu.Lock()
	g.slow = time.Hour
	g.mu.Unlock()
	apply("fine again", "")
	var holder *running
	testenv.Eventually(t, 10*time.Second, "somebody applies", func() error {
		roll := status(t, s).Roll
		for _, r := range all {
			g.mu.Lock()
			if roll.Held && roll.Holder == r.id && r.tries > 0 {
				holder = r
			}
			g.mu.Unlock()
		}
		if holder == nil {
			return fmt.Errorf("nobody does")
		}
		return nil
	})
	all = slices.DeleteFunc(all, func(r *running) bool { return r == holder })
	began := time.Now()
	holder.kill() // destroys the session
	g.mu.Lock()
	g.slow = 200 * time.Millisecond
	g.mu.Unlock()
	testenv.Eventually(t, 40*time.Second, "the others go on", says("applied 7"))
	t.Logf("holder gone → the other 4 have acknowledged: %v", time.Since(began))
	holder.stop()
	<-holder.done
	<-holder.kept
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.out, holder.id)
	if g.most > 2 { // the dead one, and one that rolls
		t.Errorf("%d were out of service at once", g.most)
	}
}

func status(t *testing.T, s *store.Store) store.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	out, err := s.Status(ctx, "app")
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// rolled returns how long it takes from do until all of it is done.
func rolled(t *testing.T, do func(), done func() error) time.Duration {
	t.Helper()
	began := time.Now()
	do()
	testenv.Eventually(t, 30*time.Second, "it is rolled over all", done)
	return time.Since(began)
}
