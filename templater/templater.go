// Package templater turns the Consul catalog into rendered texts.
package templater

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul-template/config"
	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul-template/manager"
	"github.com/hashicorp/consul/api"
	"github.com/prometheus/client_golang/prometheus"

	"berth/templater/catalog"
	"berth/templater/leftout"
	"berth/templater/render"
)

// lookEvery is how often the templates' files are read.
const lookEvery = time.Second

// lateAfter is how long queries for new data may fail before rendering goes on without that data. Optional data may arrive this
// much later than Consul's first answer.
const lateAfter = 2 * time.Second

var errNone = errors.New("it does not exist")

type (
	// Template is one text to render.
	Template = render.Spec
	// Published is the newest good text of one template.
	Published = render.Published
	// Ask returns a service's instances to the functions of a Template.
	Ask = render.Ask
	// Line is a line of a text, with the data it depends on.
	Line = render.Line
	// LeftOut is something that the rendered texts ignore, with the reason.
	LeftOut = leftout.LeftOut
)

// Options configure a Templater.
type Options struct {
	Consul      *api.Config    // the standard CONSUL_* variables fill empty fields
	Connections int            // most connections to Consul, 40 or more; 0 = 150. HTTP/2 needs only a few
	Library     *config.Config // consul-template's configuration, finalized, for Vault and Nomad; nil = neither
	Templates   []Template
	Programs    bool // allows the functions plugin and writeToFile

	// Publish is called from Run's goroutine with every text that differs from the template's last one. It must not block.
	// May be nil if Render or Once returns the texts.
	Publish func(Published)
	// Changed is called when the result of Ready or LeftOut has changed. May be nil, as may Instances and Services.
	Changed func()
	// Instances is called with each new list of a service's instances that a template uses, and with nil when no template uses
	// it any more. The list is what the template sees: all instances for instances NAME, and the instances that consul-template's
	// own functions ask for. The service is written as in the template, such as web or web@dc2.
	Instances func(service string, list []*api.ServiceEntry)
	// Services is called with each new list of the catalog's services that a template uses, sorted, and with nil when no template
	// uses it any more. Like Publish, these funcs run in Run's goroutine and must not block. Their arguments must not be changed.
	Services func(names []string)

	WaitTime time.Duration // how long a blocking query waits; 0 = 60s
	// Grace is how long entries missing from a doubtful list are kept; 0 = 30s, three times as long as a registrar takes at most
	// to notice that its registrations are gone.
	Grace time.Duration
	// VanishLimit is the largest share of a list, in percent, that may vanish at once without raising doubt; 0 = 100.
	VanishLimit int

	Log     *slog.Logger
	Metrics prometheus.Registerer // may be nil
}

// Templater renders its templates whenever the part of the catalog that they use
// has changed. The published texts stay valid while Consul is unreachable.
type Templater struct {
	opts     Options
	log      *slog.Logger
	metrics  metrics
	consul   *catalog.Client
	library  *dependency.ClientSet
	reread   chan struct{}
	rerender chan struct{}
	orders   chan order
	changed  chan struct{}
	stopped  chan struct{}
	why      atomic.Pointer[string] // the error of Ready; "" = nil
	lacks    atomic.Pointer[[]LeftOut]

	// The fields below belong to Run's goroutine.
	templates   *render.Set
	watches     map[string]*catalog.Watch // by the dependency's String
	running     sync.WaitGroup            // the watches in Consul
	updates     chan catalog.Update
	waiting     map[string]bool              // watches without data, by Key
	tried       map[*catalog.Watch]time.Time // when the first query of a waiting watch failed; see lateOptional
	failing     map[*catalog.Watch]bool
	optionalErr error               // last error of optional data that is waited for
	hidden      map[string]bool     // data that the token does not see, by the watch's Key
	answered    bool                // Consul has answered at least once
	consulErr   error               // nil while every query to Consul succeeds
	leftOut     map[string]bool     // the sentences
	unclean     map[string][]string // why catalog data is kept from the templates, by the watch's Key
	once        bool
	heard       heard
	lasting     lasting
	order       *order // pending order of Render; nil = none
	failure     string // error of Behind after the last render

	loggedHidden bool
}

// New parses every template and returns a Templater. It opens no connection. A
// syntax error names the template's Source and the line.
func New(opts Options) (*Templater, error) {
	opts.WaitTime = cmp.Or(opts.WaitTime, 60*time.Second)
	opts.Grace = cmp.Or(opts.Grace, 30*time.Second)
	opts.VanishLimit = cmp.Or(opts.VanishLimit, 100)
	if opts.Publish == nil {
		opts.Publish = func(Published) {}
	}
	if opts.Changed == nil {
		opts.Changed = func() {}
	}
	t := &Templater{
		opts:     opts,
		log:      opts.Log,
		watches:  map[string]*catalog.Watch{},
		updates:  make(chan catalog.Update, 1024),
		waiting:  map[string]bool{},
		unclean:  map[string][]string{},
		tried:    map[*catalog.Watch]time.Time{},
		failing:  map[*catalog.Watch]bool{},
		hidden:   map[string]bool{},
		heard:    newHeard(),
		reread:   make(chan struct{}, 1),
		rerender: make(chan struct{}, 1),
		orders:   make(chan order),
		changed:  make(chan struct{}, 1),
		stopped:  make(chan struct{}),
	}
	var err error
	if t.templates, err = render.NewSet(opts.Templates, render.Options{
		Consul: opts.Consul, Library: opts.Library, Programs: opts.Programs, Log: opts.Log,
		Executed: func(_ string, _ any, took time.Duration, err error) { t.metrics.executed(took, err) },
	}); err != nil {
		return nil, err
	}
	if t.consul, err = catalog.NewClient(opts.Consul, opts.Connections, opts.WaitTime, opts.Log); err != nil {
		return nil, err
	}
	if opts.Library != nil {
		if t.library, err = manager.NewClientSet(opts.Library); err != nil {
			return nil, fmt.Errorf("create Vault and Nomad clients: %w", err)
		}
		// Package variables of the library. If unset, it requests a secret again and again and accepts no certificate.
		dependency.SetVaultDefaultLeaseDuration(config.TimeDurationVal(opts.Library.Vault.DefaultLeaseDuration))
		dependency.SetVaultLeaseRenewalThreshold(*opts.Library.Vault.LeaseRenewalThreshold)
	}
	t.metrics = newMetrics(opts.Metrics)
	t.notReady("the templater has not started yet")
	return t, nil
}

// Reread reads all template files now and retries rejected templates. Safe from any goroutine.
func (t *Templater) Reread() { notify(t.reread) }

// Rerender executes every template and partial again, for a template function whose result has changed while the catalog has
// not. Safe from any goroutine.
func (t *Templater) Rerender() { notify(t.rerender) }

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run watches the catalog, renders and publishes until ctx is done, then returns
// nil. It goes on while Consul is away. Call either Run or Once, and only once.
func (t *Templater) Run(ctx context.Context) error {
	t.loop(ctx, func() bool { return false })
	return nil
}

// Once returns the first text of every template by name, or the reason why one is missing.
func (t *Templater) Once(ctx context.Context) (map[string]Published, error) {
	t.opts.Publish = func(Published) {}
	t.once = true
	var why error
	t.loop(ctx, func() bool {
		why = t.Ready()
		return !t.unpublished() || len(t.waiting) == 0 && !t.templates.Waits()
	})
	texts, all := t.templates.Texts()
	if !all {
		return nil, why
	}
	return texts, nil
}

// Explain returns the lines of a template's text, or nil without such a template. Call it after Once.
func (t *Templater) Explain(name string) []Line { return t.templates.Explain(name) }

// loop runs until ctx is done, or until done returns true after a rendering.
func (t *Templater) loop(ctx context.Context, done func() bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer t.running.Wait()
	defer cancel()
	defer func() {
		for _, w := range t.watches {
			w.Stop()
		}
	}()
	defer t.stop()
	t.running.Go(func() { t.consul.Run(ctx) })
	t.renewVaultToken(ctx)
	look := time.NewTicker(lookEvery)
	defer look.Stop()

	t.render()
	for {
		t.updateReady()
		if done() {
			return
		}
		orders, late := t.orders, (<-chan struct{})(nil)
		if t.order != nil { // one order at a time
			orders, late = nil, t.order.ctx.Done()
		}
		select {
		case <-ctx.Done():
			t.notReady("the templater has stopped")
			return
		case u := <-t.updates:
			if t.take(u) {
				t.render()
			}
		case <-look.C:
			t.logHidden()
			late := t.lateOptional()
			if t.templates.Reread(false) || late {
				t.render()
			}
		case <-t.reread:
			if t.templates.Reread(true) {
				t.render()
			}
		case <-t.rerender:
			t.templates.Outdated()
			t.render()
		case o := <-orders:
			t.begin(o)
		case <-late:
			t.answer(nil, t.tooLate())
		}
	}
}

// Ready returns nil once a complete set was published and while Consul answers;
// otherwise it returns the reason in a plain sentence. Safe from any goroutine.
func (t *Templater) Ready() error {
	if why := *t.why.Load(); why != "" {
		return errors.New(why)
	}
	return nil
}

// LeftOut returns what the texts ignore of the catalog, with reasons, sorted. Safe from any goroutine; do not change the result.
func (t *Templater) LeftOut() []LeftOut {
	if all := t.lacks.Load(); all != nil {
		return *all
	}
	return nil
}

// take handles all updates that have arrived, so a burst costs one render. It reports whether to render.
func (t *Templater) take(u catalog.Update) (changed bool) {
	for {
		if w := u.Watch; t.watches[w.Key] == w { // otherwise it was stopped while the update was queued
			t.note(u)
			if u.LeftOutOther {
				t.unclean[w.Key] = u.LeftOut
				changed = true
			}
			if t.isLate(u) {
				changed = t.goOnWithout(w, cmp.Or(u.Err, errNone)) || changed
			}
			if u.New {
				delete(t.waiting, w.Key)
				t.templates.Remember(w.Dependency, u.Data)
				t.hear(w, u.Data)
				changed = true
			}
		}
		select {
		case u = <-t.updates:
		default:
			return changed
		}
	}
}

// isLate reports whether an update means that awaited data will not arrive soon.
func (t *Templater) isLate(u catalog.Update) bool {
	w := u.Watch
	switch {
	case !t.waiting[w.Key] || u.New:
		delete(t.tried, w)
		return false
	case w.Optional(): // if it is not refused, see lateOptional
		t.optionalErr = u.Err
		return catalog.IsRefusal(u.Err)
	case u.Err == nil:
		return u.Well
	case t.tried[w].IsZero():
		t.tried[w] = time.Now()
	}
	return time.Since(t.tried[w]) >= lateAfter
}

// lateOptional gives up waiting for optional data that is overdue although Consul answers other queries. It does not matter
// whether the query fails or hangs. lateOptional reports whether to render.
func (t *Templater) lateOptional() (changed bool) {
	for key := range t.waiting {
		w := t.watches[key]
		switch {
		case !w.Optional():
		case !t.answers(): // Consul is away: wait as for all other data
			delete(t.tried, w)
			t.optionalErr = nil
		case t.tried[w].IsZero():
			t.tried[w] = time.Now()
		case time.Since(t.tried[w]) >= lateAfter:
			err := cmp.Or(t.optionalErr, fmt.Errorf("no answer in %s", lateAfter))
			changed = t.goOnWithout(w, err) || changed
			t.note(catalog.Update{Watch: w, Err: err})
		}
	}
	return changed
}

// goOnWithout stops rendering from waiting for the data of a watch. It reports whether to render.
func (t *Templater) goOnWithout(w *catalog.Watch, why error) bool {
	if w.Optional() { // a text without it is complete
		delete(t.waiting, w.Key)
	}
	return t.templates.Late(w.Dependency, why)
}

// render brings the texts up to date, watches their dependencies, publishes changed texts and answers a pending order.
func (t *Templater) render() {
	if t.templates.Update() {
		t.watchUsed()
	}
	t.reportLeftOut()
	t.metrics.failing.Set(float64(t.templates.Failing()))
	changed := false
	t.templates.Publish(func(p Published) {
		changed = true
		t.opts.Publish(p)
	})
	t.rendered(changed)
}

// watchUsed starts a watch for every dependency that a template uses, and stops
// watches that are no longer used.
func (t *Templater) watchUsed() {
	used := t.templates.Used()
	notAll, _ := t.templates.Status()
	for key, w := range t.watches {
		if used[key] == nil {
			t.stopWatch(w)
		}
	}
	for key, d := range used {
		if t.watches[key] != nil {
			continue
		}
		w := catalog.NewWatch(d, catalog.Options{
			Wait: t.opts.WaitTime, Once: t.once, Updates: t.updates, Library: t.library, Consul: t.consul,
			Policy: catalog.Policy{Grace: t.opts.Grace, VanishLimit: t.opts.VanishLimit, Strict: notAll != ""},
		})
		t.watches[key] = w
		t.waiting[key] = true
		if w.InConsul() {
			t.running.Go(w.Run)
		} else {
			go w.Run() // it may not notice a stop at once
		}
	}
}

func (t *Templater) stopWatch(w *catalog.Watch) {
	w.Stop()
	t.templates.Forget(w.Dependency)
	delete(t.watches, w.Key)
	delete(t.waiting, w.Key)
	delete(t.tried, w)
	delete(t.unclean, w.Key)
	t.unhear(w)
	t.succeeded(w)
}

// reportLeftOut logs what the templates ignore now and did not before, and the
// reverse.
func (t *Templater) reportLeftOut() {
	now := t.templates.LeftOut()
	for _, reasons := range t.unclean {
		for _, reason := range reasons {
			now[reason] = true
		}
	}
	more, less := added(t.leftOut, now), added(now, t.leftOut)
	for _, reason := range more {
		t.log.Warn("ignored: "+reason, attributes(leftout.Parse(reason))...)
	}
	for _, reason := range less {
		t.log.Info("no longer applies: "+reason, attributes(leftout.Parse(reason))...)
	}
	t.leftOut = now
	t.metrics.leftOut.Set(float64(len(now)))
	if len(more)+len(less) == 0 {
		return
	}
	all := make([]LeftOut, 0, len(now))
	for reason := range now {
		all = append(all, leftout.Parse(reason))
	}
	slices.SortFunc(all, leftout.Compare)
	t.lacks.Store(&all)
	t.opts.Changed()
}

// attributes returns the log attributes of something that is ignored.
func attributes(l LeftOut) (args []any) {
	if l.Service != "" {
		args = append(args, "service", l.Service)
	}
	if l.Instance != "" {
		args = append(args, "instance", l.Instance)
	}
	return append(args, "reason", l.Reason)
}

// added returns the keys of after that are not in before, sorted.
func added(before, after map[string]bool) []string {
	var diff []string
	for _, s := range slices.Sorted(maps.Keys(after)) {
		if !before[s] {
			diff = append(diff, s)
		}
	}
	return diff
}

// unpublished reports whether a template has no text yet.
func (t *Templater) unpublished() bool {
	_, all := t.templates.Texts()
	return !all
}
