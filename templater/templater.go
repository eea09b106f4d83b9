// Package templater turns the Consul catalog into rendered texts.
package templater

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync/atomic"
	texttemplate "text/template"
	"time"

	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul-template/template"
	"github.com/hashicorp/consul-template/watch"
	"github.com/prometheus/client_golang/prometheus"
)

// Template is one text to render, in consul-template's language. The functions
// that run programs, write files, or ask Vault or Nomad are disabled.
//
// A list that has not arrived yet is empty for a moment: a template that fails on
// an empty list (index (service "web") 0) may never find out what it depends on.
type Template struct {
	Name   string // the key in Rendered.Texts
	Source string // what errors call it: a file path, or "the built-in template"
	Text   string
}

// Rendered is one complete set of texts, by the names of their templates.
type Rendered struct {
	Texts map[string]string
	Since time.Time // when the oldest catalog change in it arrived
}

// Options say what to render and who gets it.
type Options struct {
	// Consul says how to reach it; the standard CONSUL_* variables fill what is
	// empty, and timeouts that are zero get ones that suit blocking queries.
	Consul    dependency.CreateConsulClientInput
	Templates []Template

	// Funcs returns extra template functions. They call report with one line for
	// everything they set aside, and why. Called once per template; may be nil.
	Funcs func(report func(string)) texttemplate.FuncMap

	// Publish is called from Run's goroutine with every complete set that differs
	// from the one before. It must not block.
	Publish func(Rendered)

	WaitTime time.Duration // how long a blocking query waits; 0 = 60s
	Log      *slog.Logger
	Metrics  prometheus.Registerer // may be nil
}

// Templater renders its templates whenever the part of the catalog that they use
// has changed. What was published stays the truth while Consul is out of reach.
type Templater struct {
	opts    Options
	log     *slog.Logger
	metrics metrics
	clients *dependency.ClientSet
	why     atomic.Pointer[string] // why Ready is not nil; "" = it is

	// All below belongs to Run's goroutine.
	units     []*unit
	brain     *template.Brain
	watcher   *watch.Watcher
	watching  map[string]*watched // by the dependency's String
	outcomes  chan outcome
	failing   map[*watched]bool
	answered  bool  // Consul has answered at least once
	consulErr error // nil while every query to Consul succeeds
	leftOut   map[string]bool
	published map[string]string
}

// New parses every template and returns a Templater that has not dialled yet. A
// syntax error names the template's Source and the line.
func New(opts Options) (*Templater, error) {
	opts.WaitTime = cmp.Or(opts.WaitTime, 60*time.Second)
	t := &Templater{
		opts:     opts,
		log:      opts.Log,
		clients:  dependency.NewClientSet(),
		brain:    template.NewBrain(),
		watching: map[string]*watched{},
		outcomes: make(chan outcome),
		failing:  map[*watched]bool{},
	}
	if err := t.parse(); err != nil {
		return nil, err
	}
	consul := withTimeouts(opts.Consul)
	if err := t.clients.CreateConsulClient(&consul); err != nil {
		return nil, fmt.Errorf("create Consul client: %w", err)
	}
	t.metrics = newMetrics(opts.Metrics)
	t.notReady("the templater has not started yet")
	return t, nil
}

func (t *Templater) parse() error {
	if len(t.opts.Templates) == 0 {
		return errors.New("there is no template to render")
	}
	named := map[string]string{}
	for _, tmpl := range t.opts.Templates {
		if other, taken := named[tmpl.Name]; taken {
			return fmt.Errorf("%s and %s are both named %q", other, tmpl.Source, tmpl.Name)
		}
		named[tmpl.Name] = tmpl.Source
		u, err := newUnit(tmpl, t.opts.Funcs)
		if err != nil {
			return err
		}
		t.units = append(t.units, u)
	}
	return nil
}

// withTimeouts fills in what would otherwise mean for ever, and enough idle
// connections for one query per service.
func withTimeouts(c dependency.CreateConsulClientInput) dependency.CreateConsulClientInput {
	c.TransportDialTimeout = cmp.Or(c.TransportDialTimeout, 10*time.Second)
	c.TransportTLSHandshakeTimeout = cmp.Or(c.TransportTLSHandshakeTimeout, 10*time.Second)
	c.TransportIdleConnTimeout = cmp.Or(c.TransportIdleConnTimeout, 90*time.Second)
	c.TransportMaxIdleConnsPerHost = cmp.Or(c.TransportMaxIdleConnsPerHost, 1000)
	return c
}

// Run watches the catalog, renders and publishes until ctx is done, then returns
// nil. Consul being away is no reason to return. Call it once.
func (t *Templater) Run(ctx context.Context) error {
	// MaxStale stays 0: on a cluster, stale reads learn of a change 75 ms later.
	// There is no retry func, and nobody reads the watcher's error channels,
	// because a watched dependency retries by itself and never returns an error.
	t.watcher = watch.NewWatcher(&watch.NewWatcherInput{
		Clients:            t.clients,
		BlockQueryWaitTime: t.opts.WaitTime,
	})
	defer t.notReady("the templater has stopped")
	defer t.watcher.Stop()

	t.render()
	for {
		t.updateReady()
		select {
		case <-ctx.Done():
			return nil
		case o := <-t.outcomes:
			t.note(o)
		case view := <-t.watcher.DataCh():
			t.remember(view)
			t.rememberQueued()
			t.render()
		}
	}
}

// Ready returns nil once a complete set was published and while Consul answers,
// else one plain sentence that says why not. Safe from any goroutine.
func (t *Templater) Ready() error {
	if why := *t.why.Load(); why != "" {
		return errors.New(why)
	}
	return nil
}

// rememberQueued takes what else has arrived, so that a burst costs one render.
func (t *Templater) rememberQueued() {
	for {
		select {
		case view := <-t.watcher.DataCh():
			t.remember(view)
		default:
			return
		}
	}
}

// remember stores what a view has received and marks the templates that use it.
func (t *Templater) remember(view *watch.View) {
	d := view.Dependency()
	key := d.String()
	if t.watching[key] != d {
		return // removed while this was queued
	}
	data, _ := view.DataAndLastIndex()
	t.brain.Remember(d, data)
	now := time.Now()
	for _, u := range t.units {
		u.changed(key, now)
	}
}

func (t *Templater) render() {
	for _, u := range t.units {
		if u.dirty {
			t.execute(u)
		}
	}
	t.watchWhatIsUsed()
	t.reportLeftOut()
	t.publish()
}

func (t *Templater) execute(u *unit) {
	start := time.Now()
	wasFailing := u.failure
	complete, err := u.execute(t.brain)
	t.metrics.renders.Inc()
	t.metrics.seconds.Observe(time.Since(start).Seconds())
	switch {
	case err != nil:
		t.metrics.renderErrors.Inc()
		if u.failure == wasFailing {
			return
		}
		consequence := "keeping the last good text"
		if !u.rendered {
			consequence = "nothing is published until it works"
		}
		t.log.Error("template failed, "+consequence, "template", u.Source, "err", err)
	case complete && wasFailing != "":
		t.log.Info("template works again", "template", u.Source)
	}
}

// watchWhatIsUsed starts a view for every dependency that a template uses and
// stops those that none uses any more.
func (t *Templater) watchWhatIsUsed() {
	used := map[string]dependency.Dependency{}
	for _, u := range t.units {
		maps.Copy(used, u.used)
	}
	for key, w := range t.watching {
		if used[key] == nil {
			t.watcher.Remove(w)
			t.brain.Forget(w)
			delete(t.watching, key)
			t.settle(w)
		}
	}
	for key, d := range used {
		if t.watching[key] != nil {
			continue
		}
		w := newWatched(d, t.outcomes)
		if _, err := t.watcher.Add(w); err != nil {
			t.log.Error("cannot watch a dependency", "dependency", key, "err", err)
			continue
		}
		t.watching[key] = w
	}
}

// reportLeftOut logs what the template functions have newly set aside, and what
// they no longer do.
func (t *Templater) reportLeftOut() {
	now := map[string]bool{}
	for _, u := range t.units {
		maps.Copy(now, u.leftOut)
	}
	for _, reason := range added(t.leftOut, now) {
		t.log.Warn("left out", "reason", reason)
	}
	for _, reason := range added(now, t.leftOut) {
		t.log.Info("no longer left out", "reason", reason)
	}
	t.leftOut = now
	t.metrics.leftOut.Set(float64(len(now)))
}

// publish hands over the texts if they are complete and differ from the last.
func (t *Templater) publish() {
	texts := map[string]string{}
	for _, u := range t.units {
		if !u.rendered || len(u.missing) > 0 {
			return
		}
		texts[u.Name] = u.text
	}
	since := time.Time{}
	for _, u := range t.units {
		if old, ok := t.published[u.Name]; !ok || old != u.text {
			since = earlier(since, u.since)
		}
		if u.failure == "" {
			u.since = time.Time{}
		}
	}
	if t.published != nil && maps.Equal(texts, t.published) {
		return
	}
	if since.IsZero() { // a template that uses nothing from the catalog
		since = time.Now()
	}
	t.published = texts
	t.opts.Publish(Rendered{Texts: maps.Clone(texts), Since: since})
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}
