package group

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/registrar/group/session"
	"berth/registrar/group/session/sessiontest"
	"berth/registrar/group/store"
)

const (
	drainTime = 2 * time.Second
	applyTime = time.Second
	deadline  = 20 * time.Second // of a change
)

// world is a service with its instances, in a synctest bubble.
type world struct {
	t         *testing.T
	c         *consul
	store     *store.Store
	instances map[string]*instance

	mu     sync.Mutex
	out    map[string]bool // out of service through their own changes
	most   int             // maximum out of service at the same time
	fails  func(id string, w Wanted) error
	events []string
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, c: newConsul(), instances: map[string]*instance{}, out: map[string]bool{}, fails: func(string, Wanted) error { return nil }}
	_, client := w.c.wire()
	w.store = store.New(client)
	return w
}

// instance is an instance with its Applier, on its own host. It is a Target.
type instance struct {
	*world
	id       string
	wire     *wire
	changed  chan struct{}
	kill     context.CancelFunc // also ends the session
	stop     context.CancelFunc
	done     chan struct{}
	log      *bytes.Buffer
	disrupts bool
	hangs    string // the call in which it waits until ctx is done

	// The world's mutex guards these.
	gone     bool
	runs     Wanted
	data     int // data that it runs with
	wants    int // the newest data
	applied  []uint64
	restarts int
	bad      error // of Prepare
}

func (w *world) start(id, strategy string, more ...func(*instance, *Options)) *instance {
	w.t.Helper()
	link, client := w.c.wire()
	in := &instance{world: w, id: id, wire: link, changed: make(chan struct{}, 1), done: make(chan struct{}), log: &bytes.Buffer{}, disrupts: true}
	log := slog.New(slog.NewTextHandler(&locked{in}, nil))
	keeper := session.New(session.Options{Consul: client, Name: "berth " + id, Behavior: "delete", Log: log})
	o := Options{Service: "app", Instance: id, Strategy: strategy, Started: time.Now(), Timeout: deadline, Target: in, Changed: in.changed,
		Consul: client, Store: store.New(client), Sessions: keeper, Log: log}
	for _, f := range more {
		f(in, &o)
	}
	a := New(o)
	first, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	if w, err := a.First(first); err == nil {
		in.runs = w
	}
	cancel()
	lives, kill := context.WithCancel(context.Background())
	runs, stop := context.WithCancel(lives)
	in.kill, in.stop = kill, stop
	kept := make(chan struct{})
	go func() { defer close(kept); keeper.Run(lives) }()
	go func() {
		a.Run(runs)
		kill()
		<-kept
		close(in.done)
	}()
	w.instances[id] = in
	return in
}

// five starts app-1 to app-5.
func (w *world) five(strategy string, more ...func(*instance, *Options)) {
	for n := range 5 {
		w.start(fmt.Sprintf("app-%d", n+1), strategy, more...)
	}
	synctest.Wait()
}

// end stops everything.
func (w *world) end() {
	for _, in := range w.instances {
		in.stop()
	}
	for _, in := range w.instances {
		<-in.done
		if w.t.Failed() {
			w.t.Logf("%s:\n%s", in.id, in.log)
		}
	}
	w.c.Close()
}

// dies ends an instance like a power cut: it releases nothing.
func (in *instance) dies() {
	in.wire.Break(sessiontest.Hang)
	in.goes(in.kill)
}

// stops ends an instance that can release what it holds.
func (in *instance) stops() { in.goes(in.stop) }

// goes ends an instance. From then on it counts neither as serving nor as out of service, although its goroutines may return
// only after the end of its session.
func (in *instance) goes(end context.CancelFunc) {
	in.mu.Lock()
	in.gone = true
	delete(in.out, in.id)
	in.mu.Unlock()
	end()
	<-in.done
	delete(in.instances, in.id)
}

type locked struct{ in *instance }

func (l *locked) Write(p []byte) (int, error) {
	l.in.mu.Lock()
	defer l.in.mu.Unlock()
	return l.in.log.Write(p)
}

func (in *instance) Prepare(_ context.Context, w Wanted) (Change, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	return &change{in, in.runs, w, in.data, in.wants}, in.bad
}

func (in *instance) Drain(ctx context.Context, reason string) error {
	in.mu.Lock()
	if !in.gone {
		in.out[in.id] = true
		in.most = max(in.most, len(in.out))
		in.events = append(in.events, in.id+" out")
	}
	in.mu.Unlock()
	return in.wait(ctx, "drain", drainTime)
}

func (in *instance) Resume(ctx context.Context) error {
	if err := in.wait(ctx, "resume", 0); err != nil {
		return err
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	delete(in.out, in.id)
	in.events = append(in.events, in.id+" back")
	return nil
}

func (in *instance) wait(ctx context.Context, call string, d time.Duration) error {
	if in.hangs == call {
		<-ctx.Done()
		return ctx.Err()
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// change is a change of an instance.
type change struct {
	in      *instance
	from, w Wanted
	data    int
	newData int
}

func (c *change) Empty() bool {
	return c.from.ID() == c.w.ID() && c.data == c.newData
}
func (c *change) Disrupts() bool { return c.in.disrupts }

func (c *change) Apply(ctx context.Context) error {
	c.in.mu.Lock()
	c.in.applied = append(c.in.applied, c.w.Config.Version)
	if c.w.Restart > c.from.Restart {
		c.in.restarts++
	}
	c.in.runs, c.in.data = c.w, c.newData
	fails := c.in.fails
	c.in.mu.Unlock()
	if err := c.in.wait(ctx, "apply", applyTime); err != nil {
		return err
	}
	return fails(c.in.id, c.w)
}

func (c *change) Revert(ctx context.Context) error {
	c.in.mu.Lock()
	c.in.runs, c.in.data = c.from, c.data
	c.in.mu.Unlock()
	return c.in.wait(ctx, "revert", applyTime)
}

// apply makes the next version the current one.
func (w *world) apply(text string) uint64 { return w.applyWith(text, "") }

func (w *world) applyWith(text, strategy string) uint64 {
	w.t.Helper()
	w.sleep(0)
	h, err := w.store.Apply(context.Background(), store.Item{Service: "app"}, store.Change{Text: []byte(text), By: "nolan@desk", Strategy: strategy})
	if err != nil {
		w.t.Fatal(err)
	}
	return h.Version
}

func (w *world) restart(strategy string) uint64 {
	w.t.Helper()
	w.sleep(0)
	n, err := w.store.Restart(context.Background(), "app", "nolan@desk", strategy)
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

// report returns the report of an instance, or the zero Report.
func (w *world) report(id string) (r store.Report) {
	if pair := w.c.Key(store.AppliedKey("app", id)); pair != nil {
		if err := json.Unmarshal(pair.Value, &r); err != nil {
			w.t.Error(err)
		}
	}
	return r
}

// says returns an instance's state with the version that it runs.
func (w *world) says(id string) string {
	r := w.report(id)
	return fmt.Sprintf("%s %d", r.State, r.Version)
}

// all returns the instances' states, each state once.
func (w *world) all() []string {
	said := map[string]bool{}
	for id := range w.instances {
		said[w.says(id)] = true
	}
	return slices.Sorted(maps.Keys(said))
}

// sleep lets time pass, so that instances read and write after the test's own reads and writes.
func (w *world) sleep(d time.Duration) {
	func() {
		w.mu.Lock()
		defer w.mu.Unlock()
	}()
	time.Sleep(d)
	synctest.Wait()
}

// within waits until ok, and returns how long that took.
func (w *world) within(most time.Duration, what string, ok func() bool) time.Duration {
	w.t.Helper()
	began := time.Now()
	w.sleep(0)
	for synctest.Wait(); !ok(); synctest.Wait() {
		if time.Since(began) > most {
			for id := range w.instances {
				w.t.Logf("%s says %+v", id, w.report(id))
			}
			w.t.Logf("lock: %+v", w.roll())
			w.end()
			w.t.Fatalf("after %v not: %s", most, what)
		}
		w.sleep(5 * time.Millisecond)
	}
	return time.Since(began)
}

func (w *world) settles(most time.Duration, says ...string) time.Duration {
	w.t.Helper()
	return w.within(most, fmt.Sprintf("all say %q", says), func() bool { return slices.Equal(w.all(), says) })
}

func (w *world) roll() (r store.Roll) {
	if pair := w.c.Key(store.RollingKey("app")); pair != nil {
		if err := json.Unmarshal(pair.Value, &r); err != nil {
			w.t.Error(err)
		}
		r.Held = pair.Session != ""
	}
	return r
}

// expect compares, and ends the test at a difference.
func expect[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func in(t *testing.T, f func(*testing.T, *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.end()
		f(t, w)
	})
}

var errSick = errors.New("it does not become ready")

// failsWith makes versions with a text fail.
func (w *world) failsWith(text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fails = func(_ string, wanted Wanted) error {
		if text != "" && strings.Contains(string(wanted.Config.Text), text) {
			return errSick
		}
		return nil
	}
}

// One after the other, never two out of service, with little extra time.
func TestRolling(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.five(Rolling)
		w.settles(time.Second, "applied 0")
		w.apply("greeting = 1")
		took := w.settles(time.Minute, "applied 1")
		expect(t, "most out at once", w.most, 1)
		own := 5 * (drainTime + applyTime)
		if took < own || took > own+5*50*time.Millisecond {
			t.Errorf("took %v, of which %v are the instances' own", took, own)
		}
		for n := 0; n < len(w.events); n += 2 {
			id := strings.Fields(w.events[n])[0]
			if w.events[n] != id+" out" || w.events[n+1] != id+" back" {
				t.Errorf("events: %q", w.events)
			}
		}
		r := w.report("app-3")
		if r.Instance != "app-3" || r.Sum != store.Sum([]byte("greeting = 1")) || r.Since.IsZero() || r.Reason != "" {
			t.Errorf("report: %+v", r)
		}
		expect(t, "held", w.roll().Held, false)
	})
}

// The first failure stops the change and reverts it; the others are unchanged, and so is an instance that starts now.
func TestHalted(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.apply("fine")
		w.five(Rolling)
		w.settles(time.Second, "applied 1")
		w.failsWith("sick")
		w.apply("sick")
		w.settles(time.Minute, "failed 1", "waiting 1")
		w.sleep(5 * time.Minute)
		w.settles(0, "failed 1", "waiting 1")
		tried := ""
		for id, in := range w.instances {
			expect(t, id+" runs", in.runs.Config.Version, 1)
			switch r := w.report(id); {
			case len(in.applied) == 1 && tried == "":
				tried = id
				expect(t, "version that failed", r.FailedVersion, 2)
				expect(t, "reason", r.Reason, errSick.Error())
			case len(in.applied) > 0:
				t.Errorf("%s and %s tried", tried, id)
			}
		}
		for id := range w.instances {
			if r := w.report(id); id != tried {
				expect(t, "reason of "+id, r.Reason, "halted by "+tried+": "+errSick.Error())
			}
		}
		expect(t, "out of service", len(w.out), 0)
		h := w.roll().Halted
		if h == nil || h.Version != 2 || h.Good != 1 || h.Instance != tried || h.At.IsZero() {
			t.Errorf("halted: %+v", h)
		}
		late := w.start("app-6", Rolling)
		expect(t, "one that starts now runs", late.runs.Config.Version, 1)
		w.settles(time.Second, "failed 1", "waiting 1")

		w.apply("fine again")
		w.settles(time.Minute, "applied 3")
		expect(t, "most out at once", w.most, 1)
		if h := w.roll().Halted; h != nil {
			t.Errorf("halted: %+v", h)
		}
		w.apply("fine") // a rollback
		w.settles(time.Minute, "applied 4")
	})
}

// A restart order retries a halted version.
func TestHaltedAgain(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.five(Rolling)
		w.failsWith("sick")
		w.apply("sick, for now")
		w.settles(time.Minute, "failed 0", "waiting 0")
		w.failsWith("")
		w.restart("")
		w.settles(time.Minute, "applied 1")
		expect(t, "most out at once", w.most, 1)
	})
}

// A version that comes while another is applied is the next one, even if the first fails; versions in between are skipped.
func TestNewerMeanwhile(t *testing.T) {
	for _, text := range []string{"fine", "sick"} {
		in(t, func(t *testing.T, w *world) {
			w.five(Rolling)
			w.failsWith("sick")
			w.apply(text)
			w.sleep(drainTime + applyTime/2)
			w.apply("in between")
			w.sleep(applyTime / 4)
			w.apply("newest")
			w.settles(time.Minute, "applied 3")
			expect(t, "most out at once", w.most, 1)
			for id, in := range w.instances {
				if slices.Contains(in.applied, 2) {
					t.Errorf("%s applied %v", id, in.applied)
				}
			}
		})
	}
}

// A holder that dies frees the lock, and the others continue.
func TestHolderDies(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.five(Rolling)
		w.apply("one")
		w.within(time.Second, "somebody applies", func() bool { return w.roll().Held })
		w.instances[w.roll().Holder].dies()
		own := 4 * (drainTime + applyTime)
		if took := w.settles(time.Minute, "applied 1"); took > own+session.TTL+2*session.LockDelay {
			t.Errorf("took %v", took)
		}
		expect(t, "most out at once", w.most, 1)
	})
}

// An instance that is told to end releases the lock at once.
func TestHolderStops(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.five(Rolling)
		w.apply("one")
		w.within(time.Second, "somebody applies", func() bool { return w.roll().Held })
		in := w.instances[w.roll().Holder]
		began := time.Now()
		in.stops()
		w.within(500*time.Millisecond, "the next applies", func() bool { return w.roll().Held && w.roll().Holder != in.id })
		if r := w.report(in.id); r.Instance != "" {
			t.Errorf("still reports %+v", r)
		}
		t.Log(time.Since(began))
		w.settles(time.Minute, "applied 1")
	})
}

// While no files exist, other writes in Consul cost an instance little, and the first file comes soon.
func TestNoFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.end()
		in := w.start("app-1", AtOnce)
		synctest.Wait()
		const asks = "GET /v1/kv/berth/files/"
		before := in.wire.Calls(asks)
		_, client := w.c.wire()
		for n := range 100 {
			if _, err := client.KV().Put(&api.KVPair{Key: "others/" + strconv.Itoa(n)}, nil); err != nil {
				t.Fatal(err)
			}
			time.Sleep(50 * time.Millisecond)
		}
		if n := in.wire.Calls(asks) - before; n > 12 {
			t.Errorf("it has asked %d times for its files within 5 s", n)
		}
		if _, err := w.store.Apply(t.Context(), store.Item{Service: "app", File: "logo.png"}, store.Change{Text: []byte("x"), Format: "raw"}); err != nil {
			t.Fatal(err)
		}
		w.within(2*idle+applyTime+2*time.Second, "it has the file", func() bool { return in.runs.Files["logo.png"].Version == 1 })
	})
}
