package group

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul/api"
	"golang.org/x/sync/errgroup"

	"berth/registrar/group/session"
	"berth/registrar/group/store"
	"berth/registrar/retry"
)

const (
	// soon is the pause after an action.
	soon = time.Millisecond
	// turnJitter spreads the instances that try to take a free lock.
	turnJitter = 30 * time.Millisecond
	// slowTurn is how long another instance may hold the lock before the reports of waiting instances name it.
	slowTurn = 5 * time.Second
	// dataHold is how long a failed change of the templates' data, which has no version, is not retried.
	dataHold = time.Minute
)

// Options say which instance an Applier changes, and how. All are required except Changed.
type Options struct {
	Service  string    // in Consul: app, or app-prod for the group prod
	Instance string    // service ID
	Strategy string    // Rolling, AtOnce or None, unless the operator names one
	Started  time.Time // when the instance started, or is about to: it has carried out earlier orders
	// Timeout limits a whole change: draining, applying, becoming ready. Reverting it may take as long again.
	Timeout time.Duration

	Target  Target
	Changed <-chan struct{} // external data of the Target's templates has changed
	Consul  *api.Client
	Store   *store.Store
	// Sessions must run until Run has returned, because Run releases the lock.
	Sessions *session.Keeper
	Log      *slog.Logger
}

// Applier brings one instance of a group to what is wanted of it. The goroutine of Run owns the state. It waits for the
// Target and, with deadlines, for Consul. Watches and the writing of reports have their own goroutines.
type Applier struct {
	opts  Options
	kv    *api.KV
	log   *slog.Logger
	asked atomic.Uint64 // number of the last query to Consul

	configs latest[answer[store.Version]]
	files   latest[answer[map[string]store.Header]]
	orders  latest[answer[store.Order]]
	locks   latest[answer[lock]]
	wake    chan struct{} // receives when one of the channels has news
	reports latest[report]
	unread  unread

	known  struct{ config, files, order, lock uint64 } // numbers of the answers used below, 0 = none yet
	wanted Wanted                                      // its Restart is the order's number in Consul
	order  store.Order
	lock   lock
	seen   time.Time // since when the present holder of the lock was seen

	have    *Wanted   // what the instance runs; nil = unknown
	since   time.Time // when it began to run that
	carried uint64    // number of the newest restart order carried out
	told    uint64    // Restart as carried out by the Target
	changes uint64    // number of changes of the Target's data

	failed struct { // what failed here, until something else is wanted
		id string
		standing
	}
	hold   hold
	turn   time.Time        // when to try to take the lock; zero = not needed, or not free
	owed   *owed            // the lock to release
	unsaid *store.Halt      // the session was lost before the other instances were told
	mine   *session.Session // session that last took the lock
	gave   uint64           // number of a query made at or after the release
	ending bool             // the instance is ending
	stuck  retry.Lasting    // the release keeps failing

	said   []byte // last report
	logged standing
}

// standing is what an instance reports, apart from what it runs.
type standing struct {
	state, reason string
	failed        uint64 // version that failed
}

// hold keeps a change from being retried for a while, unless something changes.
type hold struct {
	id      string
	changes uint64
	until   time.Time
	standing
}

// New returns an Applier that makes no calls before First or Run.
func New(o Options) *Applier {
	return &Applier{
		opts:    o,
		kv:      o.Consul.KV(),
		log:     o.Log.With("service", o.Service, "instance", o.Instance),
		configs: make(latest[answer[store.Version]], 1),
		files:   make(latest[answer[map[string]store.Header]], 1),
		orders:  make(latest[answer[store.Order]], 1),
		locks:   make(latest[answer[lock]], 1),
		wake:    make(chan struct{}, 1),
		reports: make(latest[report], 1),
		unread:  unread{what: map[string]bool{}},
	}
}

// First returns what a starting instance should run: what is wanted, or the working version if a change to what is wanted
// was halted. It is called once, before Run, which assumes that the instance starts with the result. It tries until ctx is
// done. After an error the instance starts with what it has, and Run brings it to what is wanted.
func (a *Applier) First(ctx context.Context) (Wanted, error) {
	delays := retry.Delays()
	for {
		first, err := a.first(ctx)
		if err == nil {
			a.runs(first)
			a.carried, a.told = a.order.Number, first.Restart
			return first, nil
		}
		retry.Pause(ctx, delays.NextBackOff())
		if ctx.Err() != nil {
			return Wanted{}, fmt.Errorf("read the wanted configuration of %s: %w", a.opts.Service, err)
		}
	}
}

func (a *Applier) first(ctx context.Context) (Wanted, error) {
	if err := a.read(ctx); err != nil {
		return Wanted{}, err
	}
	l, err := a.readLock(ctx)
	if err != nil {
		return Wanted{}, err
	}
	a.heardLock(l)
	// A halted configuration may be wanted again, through a restart order or with other files. Then this instance also gets
	// its turn.
	if h := a.lock.Halted; h != nil && (h.Wanted == a.wanted.ID() || h.Version == a.wanted.Config.Version && h.Version != h.Good) {
		a.log.Warn(a.opts.Instance+" starts with the last good configuration", "version", h.Good, "reason", halted(h))
		return a.good(ctx, h)
	}
	return a.wanted, nil
}

// good returns what a halted change was to replace, without the files: only the instances that had them know the old ones.
func (a *Applier) good(ctx context.Context, h *store.Halt) (Wanted, error) {
	w := a.wanted
	if w.Config = (store.Version{}); h.Good == 0 {
		return w, nil
	}
	v, err := asked(ctx, a, func(ctx context.Context) (store.Version, error) {
		return a.opts.Store.At(ctx, store.Item{Service: a.opts.Service}, h.Good)
	})
	w.Config = v.value
	return w, err
}

// Run brings the instance to what is wanted whenever that changes, until ctx is done. It then ends its current work early
// and releases the group's lock.
func (a *Applier) Run(ctx context.Context) {
	watching, stop := context.WithCancel(ctx)
	var others sync.WaitGroup
	service := a.opts.Service
	config, restart, rolling := a.waitKey(store.Item{Service: service}.Key()), a.waitKey(store.RestartKey(service)), a.waitKey(store.RollingKey(service))
	others.Go(func() { watch(watching, a, "the configuration", 0, config, a.readConfig, a.configs) })
	others.Go(func() { watch(watching, a, "the files", idle, a.waitFiles, a.readFiles, a.files) })
	others.Go(func() { watch(watching, a, "the order to restart", 0, restart, a.readOrder, a.orders) })
	others.Go(func() { watch(watching, a, "the lock of the rolling change", 0, rolling, a.readLock, a.locks) })
	others.Go(func() { a.write(watching) })
	defer others.Wait()
	defer stop()
	for ctx.Err() == nil {
		a.news()
		again := a.step(ctx)
		var timer <-chan time.Time
		if again > 0 {
			timer = time.After(again)
		}
		select {
		case <-ctx.Done():
		case <-a.wake:
		case <-a.opts.Changed:
			a.changes++
		case <-timer:
		}
	}
	if a.owed != nil {
		a.giveBack(ctx)
	}
}

// news receives what is new, without waiting.
func (a *Applier) news() {
	for {
		select {
		case v := <-a.configs:
			a.heardConfig(v)
		case v := <-a.files:
			a.heardFiles(v)
		case v := <-a.orders:
			a.heardOrder(v)
		case v := <-a.locks:
			a.heardLock(v)
		case <-a.opts.Changed:
			a.changes++
		default:
			return
		}
	}
}

// read reads the current wanted state.
func (a *Applier) read(ctx context.Context) error {
	var (
		config answer[store.Version]
		files  answer[map[string]store.Header]
		order  answer[store.Order]
	)
	all, ctx := errgroup.WithContext(ctx)
	all.Go(func() (err error) { config, err = a.readConfig(ctx); return err })
	all.Go(func() (err error) { files, err = a.readFiles(ctx); return err })
	all.Go(func() (err error) { order, err = a.readOrder(ctx); return err })
	if err := all.Wait(); err != nil {
		return err
	}
	a.heardConfig(config)
	a.heardFiles(files)
	a.heardOrder(order)
	return nil
}

func (a *Applier) heardConfig(v answer[store.Version]) {
	if v.number < a.known.config {
		return
	}
	a.known.config = v.number
	if v.value.Sum == "" && a.wanted.Config.Sum != "" {
		a.log.Warn("the configuration of "+a.opts.Service+" is gone from Consul; "+a.opts.Instance+" keeps what it has", "version", a.wanted.Config.Version)
		return
	}
	a.wanted.Config = v.value
}

func (a *Applier) heardFiles(v answer[map[string]store.Header]) {
	if v.number >= a.known.files {
		a.known.files, a.wanted.Files = v.number, v.value
	}
}

func (a *Applier) heardOrder(v answer[store.Order]) {
	if v.number < a.known.order {
		return
	}
	first := a.known.order == 0
	a.known.order, a.order, a.wanted.Restart = v.number, v.value, v.value.Number
	if first && !a.order.At.After(a.opts.Started) || a.order.Number < a.carried {
		a.carried = a.order.Number // numbers in Consul may have started over
	}
}

func (a *Applier) heardLock(v answer[lock]) {
	if v.number < a.known.lock {
		return
	}
	before := a.lock
	a.known.lock, a.lock = v.number, v.value
	if a.lock.session != before.session {
		a.seen = time.Now()
	}
	h := a.lock.Halted
	if h == nil || h.Instance == a.opts.Instance || before.Halted != nil && before.Halted.At.Equal(h.At) {
		return
	}
	if a.have != nil && h.Wanted == dataID(*a.have) {
		a.hold = hold{h.Wanted, a.changes, time.Now().Add(dataHold), standing{state: store.Waiting, reason: halted(h)}}
	}
}

// step does the next thing, and returns when to continue without news, 0 = not at all.
func (a *Applier) step(ctx context.Context) (again time.Duration) {
	if a.owed != nil && !a.giveBack(ctx) {
		return pauseTime()
	}
	if a.known.config == 0 || a.known.files == 0 || a.known.order == 0 || a.known.lock == 0 {
		return 0
	}
	if a.unsaid != nil && (a.unsaid.Wanted != a.wanted.ID() || a.lock.Halted != nil && a.lock.Halted.Wanted == a.unsaid.Wanted) {
		a.unsaid = nil
	}
	switch p := a.plan(ctx); {
	case a.ends(ctx, nil):
		return 0
	case p.how == AtOnce || p.how == calmly:
		a.carry(ctx, p)
		return soon
	case p.how == Rolling:
		if a.lock.session != "" && (a.mine == nil || a.lock.session != a.mine.ID) {
			a.say(a.waits())
		}
	default:
		a.say(p.standing)
		if a.unsaid == nil {
			a.turn = time.Time{}
			return p.again
		}
	}
	switch {
	case a.mine != nil && a.lock.session == a.mine.ID:
		if a.known.lock > a.gave { // a late effect of an unanswered attempt
			a.owed = &owed{a.mine, a.lock.Halted}
			return soon
		}
		return 0 // the watch reports when it is released
	case a.lock.session != "":
		a.turn = time.Time{}
		return max(0, slowTurn-time.Since(a.seen))
	case a.turn.IsZero():
		a.turn = time.Now().Add(rand.N(turnJitter))
	}
	if early := time.Until(a.turn); early > 0 {
		return early
	}
	a.turn = time.Time{}
	if !a.take(ctx) {
		a.say(a.waits())
		return pauseTime()
	}
	a.owed.halted = a.roll(ctx, a.owed.halted)
	if !a.giveBack(ctx) {
		return pauseTime()
	}
	return soon
}

// waits reports that the instance waits for the lock, and for which holder if that lasts.
func (a *Applier) waits() standing {
	s := standing{state: store.Waiting, reason: "waits for its turn"}
	if a.lock.session != "" && time.Since(a.seen) >= slowTurn {
		s.reason += fmt.Sprintf(": %s has been applying since %s", a.lock.Holder, a.lock.Since.UTC().Format(time.RFC3339))
	}
	return s
}

// pauseTime returns how long to wait after a failed call to Consul, or after failing to get the lock.
func pauseTime() time.Duration { return 100*time.Millisecond + rand.N(200*time.Millisecond) }

// roll carries out the plan while holding the lock, and returns the halt to leave in the lock.
func (a *Applier) roll(ctx context.Context, before *store.Halt) (after *store.Halt) {
	if a.unsaid != nil {
		return a.unsaid
	}
	if err := a.read(ctx); err != nil { // something newer may be wanted than the watches have reported
		return before
	}
	p := a.plan(ctx)
	if p.how != Rolling || a.owed.lost() {
		return before
	}
	done, failed := a.carry(ctx, p)
	stands := before != nil && before.Wanted == a.wanted.ID()
	switch {
	case stands || !done && failed == "":
		return before
	case failed == "":
		return nil
	case p.data && a.changes != p.changes:
		return nil // they have changed again
	}
	h := &store.Halt{Wanted: p.id, Version: p.goal.Config.Version, Instance: a.opts.Instance, Reason: failed, At: time.Now().UTC()}
	if a.have != nil {
		h.Good = a.have.Config.Version
	}
	return h
}

// runs records what the instance now runs.
func (a *Applier) runs(w Wanted) {
	if a.have == nil || a.have.Config.Version != w.Config.Version || a.have.Config.Sum != w.Config.Sum {
		a.since = time.Now().UTC()
	}
	a.have = &w
}

func halted(h *store.Halt) string {
	return fmt.Sprintf("halted by %s: %s", h.Instance, h.Reason)
}
