// Package templater turns the Consul catalog into rendered texts.
package templater

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	texttemplate "text/template"
	"time"

	"github.com/hashicorp/consul-template/config"
	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul-template/manager"
	"github.com/hashicorp/consul-template/template"
	"github.com/hashicorp/consul/api"
	"github.com/prometheus/client_golang/prometheus"
)

// Template is one text to render, in consul-template's language.
//
// Beside its functions there are these: partial NAME ARG is the text of a {{ define }} for an argument, kept until
// something changes that it was made from; asFile NAME TEXT is the path of a file with that text; directory PATH is what
// a directory holds.
//
// A list that has not arrived yet is empty for a moment: a template that fails on an empty list (index (service "web")
// 0) may never find out what it depends on.
type Template struct {
	Name        string // the key in Rendered.Texts
	Source      string // what errors call it: a file path, or "the built-in template"
	Text        string // if there is no File
	File        string // is read, and again whenever it changes
	Destination string // where the text goes: pkiCert looks there for a certificate that is still good
	FilePrefix  string // what the paths of asFile begin with; "" = there is no such function
}

// Rendered is the newest good texts, by the names of their templates. A template that has none so far is not in it.
type Rendered struct {
	Texts map[string]string
	Files map[string]map[string]string // by the names of their templates: what the paths that they name hold
	Since time.Time                    // when the oldest catalog change in it arrived
}

// Options say what to render and who gets it.
type Options struct {
	Consul      *api.Config    // how to reach it; the standard CONSUL_* variables fill what is empty
	Connections int            // to Consul, at most, and not below 40; 0 = 150. Over HTTP/2 it takes a few only
	Library     *config.Config // consul-template's own, finalized, for Vault and Nomad; nil = neither
	Templates   []Template
	Programs    bool // the functions plugin and writeToFile are allowed

	// Funcs returns extra template functions. They call report with one line for
	// everything they set aside, and why. Called once per template; may be nil.
	Funcs func(report func(string)) texttemplate.FuncMap

	// Publish is called from Run's goroutine with every set that differs from the one before. It must not block.
	Publish func(Rendered)

	WaitTime time.Duration // how long a blocking query waits; 0 = 60s
	// Grace is how long what Consul no longer lists is kept if there is reason to doubt that; 0 = 30s, three times
	// what a registrar takes at most to notice that its registrations are gone.
	Grace time.Duration
	// VanishLimit is the largest part of a list, in percent, that may vanish at once and be believed at once; 0 = 100.
	VanishLimit int

	Log     *slog.Logger
	Metrics prometheus.Registerer // may be nil
}

// Templater renders its templates whenever the part of the catalog that they use
// has changed. What was published stays the truth while Consul is out of reach.
type Templater struct {
	opts     Options
	log      *slog.Logger
	metrics  metrics
	consul   *consul
	library  *dependency.ClientSet
	reread   chan struct{}
	rerender chan struct{}
	why      atomic.Pointer[string] // why Ready is not nil; "" = it is

	// All below belongs to Run's goroutine.
	pages     []*page
	brain     *template.Brain
	watching  map[string]*watched // by the dependency's String
	running   sync.WaitGroup      // the watches of what is in Consul
	news      chan news
	waiting   map[*watched]bool // no data yet
	failing   map[*watched]bool
	answered  bool  // Consul has answered at least once
	consulErr error // nil while every query to Consul succeeds
	uses      bool  // what is watched may not be what is used
	unwatched bool  // something that is used could not be watched the last time
	leftOut   map[string]bool
	published Rendered

	once       bool
	explaining bool
}

// page is a template with the version of it that is rendered, and a newer one that has yet to prove itself.
type page struct {
	Template
	current *source
	next    *source // nil = none
	broken  error   // why the newest version is not used
	state   fs.FileInfo
}

// New parses every template and returns a Templater that has not dialled yet. A
// syntax error names the template's Source and the line.
func New(opts Options) (*Templater, error) {
	opts.WaitTime = cmp.Or(opts.WaitTime, 60*time.Second)
	opts.Grace = cmp.Or(opts.Grace, 30*time.Second)
	opts.VanishLimit = cmp.Or(opts.VanishLimit, 100)
	t := &Templater{
		opts:     opts,
		log:      opts.Log,
		brain:    template.NewBrain(),
		watching: map[string]*watched{},
		news:     make(chan news, 1024),
		waiting:  map[*watched]bool{},
		failing:  map[*watched]bool{},
		reread:   make(chan struct{}, 1),
		rerender: make(chan struct{}, 1),
	}
	if err := t.parse(); err != nil {
		return nil, err
	}
	var err error
	if t.consul, err = newConsul(opts.Consul, opts.Connections, opts.WaitTime, opts.Log); err != nil {
		return nil, err
	}
	if opts.Library != nil {
		if t.library, err = manager.NewClientSet(opts.Library); err != nil {
			return nil, fmt.Errorf("create Vault and Nomad clients: %w", err)
		}
		// Variables of the library: without them it asks for a secret again and again, and takes no certificate.
		dependency.SetVaultDefaultLeaseDuration(config.TimeDurationVal(opts.Library.Vault.DefaultLeaseDuration))
		dependency.SetVaultLeaseRenewalThreshold(*opts.Library.Vault.LeaseRenewalThreshold)
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
		tmpl.Source = cmp.Or(tmpl.Source, tmpl.File)
		if other, taken := named[tmpl.Name]; taken {
			return fmt.Errorf("%s and %s are both named %q", other, tmpl.Source, tmpl.Name)
		}
		named[tmpl.Name] = tmpl.Source
		p := &page{Template: tmpl}
		text, _, err := p.read()
		if err != nil {
			return err
		}
		if p.current, err = t.newSource(tmpl, text); err != nil {
			return err
		}
		t.pages = append(t.pages, p)
	}
	return nil
}

func (t *Templater) newSource(tmpl Template, text string) (*source, error) {
	return newSource(tmpl, text, &t.opts, t.brain, t.executed)
}

// read returns the template's text, and whether its file has changed since the last time.
func (p *page) read() (text string, changed bool, err error) {
	if p.File == "" {
		return p.Text, false, nil
	}
	state, err := os.Stat(p.File)
	if err == nil && sameFile(state, p.state) {
		return p.current.text, false, nil
	}
	var content []byte
	if err == nil {
		content, err = os.ReadFile(p.File)
	}
	if err != nil {
		p.state = nil // it may come back as it was
		return "", false, fmt.Errorf("cannot read the template: %w", err)
	}
	p.state = state
	return string(content), true, nil
}

// Reread has the templates read again that are in files, changed or not. Safe from any goroutine.
func (t *Templater) Reread() { notify(t.reread) }

// Rerender executes every template and every partial anew: for a template function whose answer has changed for another
// reason than the catalog. Safe from any goroutine.
func (t *Templater) Rerender() { notify(t.rerender) }

// Run watches the catalog, renders and publishes until ctx is done, then returns
// nil. Consul being away is no reason to return. Call it or Once, once.
func (t *Templater) Run(ctx context.Context) error {
	t.loop(ctx, func() bool { return false })
	return nil
}

// Once returns the first set that is complete, or why there is none.
func (t *Templater) Once(ctx context.Context) (Rendered, error) {
	t.opts.Publish = func(Rendered) {}
	t.once = true
	var why error
	t.loop(ctx, func() bool {
		why = t.Ready()
		return !t.unpublished() || len(t.waiting) == 0 && !t.incomplete()
	})
	if t.unpublished() {
		return Rendered{}, why
	}
	return t.published, nil
}

// loop runs until ctx is done or, after something was rendered, done says so.
func (t *Templater) loop(ctx context.Context, done func() bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer t.running.Wait()
	defer cancel()
	defer t.stopWatching()
	t.running.Go(func() { t.consul.slots.run(ctx, t.consul.transport) })
	t.renewVaultToken(ctx)
	look := time.NewTicker(lookEvery)
	defer look.Stop()

	t.render()
	for {
		t.updateReady()
		if done() {
			return
		}
		select {
		case <-ctx.Done():
			t.notReady("the templater has stopped")
			return
		case n := <-t.news:
			if t.take(n) {
				t.render()
			}
		case <-look.C:
			t.lookAtFiles(false)
		case <-t.reread:
			t.lookAtFiles(true)
		case <-t.rerender:
			now := time.Now()
			for s := range t.sources {
				s.outdated(now)
			}
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

// take takes in what has arrived, so that a burst costs one render, and says whether there is anything to render.
func (t *Templater) take(n news) (changed bool) {
	for {
		changed = t.remember(n) || changed
		select {
		case n = <-t.news:
		default:
			return changed
		}
	}
}

// remember stores what a watch was told and marks the templates that use it.
func (t *Templater) remember(n news) (changed bool) {
	w := n.from
	if t.watching[w.key] != w {
		return false // removed while this was queued
	}
	t.note(n)
	if !n.has {
		return false
	}
	delete(t.waiting, w)
	t.brain.Remember(w.Dependency, n.data)
	now := time.Now()
	for _, p := range t.pages {
		p.current.changed(w.key, now)
		if p.next != nil {
			p.next.changed(w.key, now)
		}
	}
	return true
}

func (t *Templater) render() {
	for _, p := range t.pages {
		p.current.update()
		if p.next != nil {
			t.prove(p)
		}
	}
	other := false
	for s := range t.sources {
		other, s.uses = other || s.uses, false
	}
	if other || t.uses {
		t.uses = false
		t.watchWhatIsUsed()
	}
	t.reportLeftOut()
	t.publish()
}

// prove puts the newest version of a template in the place of the one that is used, if it works.
func (t *Templater) prove(p *page) {
	complete := p.next.update()
	was := p.broken
	p.broken = p.next.newlyFails(p.current)
	switch {
	case p.broken != nil:
		if was == nil || was.Error() != p.broken.Error() {
			t.log.Error("the changed template fails, going on with the one before", "template", p.Source, "err", p.broken)
		}
	case complete:
		p.next.since = earlier(p.next.since, p.current.since)
		p.current, p.next = p.next, nil
		t.uses = true
		t.log.Info("template read again", "template", p.Source)
	}
}

// lookAtFiles reads the templates again whose files have changed.
func (t *Templater) lookAtFiles(all bool) {
	edited := false
	for _, p := range t.pages {
		if all {
			p.state = nil
		}
		text, changed, err := p.read()
		var next *source
		if err == nil && changed {
			newest := p.current
			if p.next != nil {
				newest = p.next
			}
			if text == newest.text && p.broken == nil {
				continue
			}
			next, err = t.newSource(p.Template, text)
		}
		switch {
		case err != nil && (p.broken == nil || p.broken.Error() != err.Error()):
			p.broken, p.next, t.uses = err, nil, true
			t.log.Error("the changed template is not used, going on with the one before", "template", p.Source, "err", err)
		case err == nil && changed:
			p.broken, p.next, edited, t.uses = nil, next, true, true
			p.next.since = time.Now()
		}
	}
	if edited || t.uses {
		t.render()
	}
}

// executed is called after each execution of a template or a partial.
func (t *Templater) executed(s *source, u *unit, took time.Duration, err error) {
	t.metrics.renders.Inc()
	t.metrics.seconds.Observe(took.Seconds())
	if err != nil {
		t.metrics.renderErrors.Inc()
	}
	if !t.isCurrent(s) || t.explaining { // prove reports, and Explain does not
		return
	}
	switch {
	case err != nil && u.failure != u.failedBefore:
		consequence := "keeping the last good text"
		if !u.rendered {
			consequence = "nothing is published until it works"
			if u.name != "" {
				consequence = "left out"
			}
		}
		t.log.Error("template failed, "+consequence, "template", s.Source, "err", err)
	case err == nil && u.failedBefore != "" && len(u.missing) == 0:
		t.log.Info("template works again", "template", s.Source, "was", u.failedBefore)
	}
}

func (t *Templater) isCurrent(s *source) bool {
	for _, p := range t.pages {
		if p.current == s {
			return true
		}
	}
	return false
}

// sources are all versions of all templates.
func (t *Templater) sources(yield func(*source) bool) {
	for _, p := range t.pages {
		if !yield(p.current) || p.next != nil && !yield(p.next) {
			return
		}
	}
}

// watchWhatIsUsed starts a watch for every dependency that a template uses and
// stops those that none uses any more.
func (t *Templater) watchWhatIsUsed() {
	used := map[string]dependency.Dependency{}
	for s := range t.sources {
		for u := range s.units {
			maps.Copy(used, u.used)
		}
	}
	for key, w := range t.watching {
		if used[key] == nil {
			t.stopWatch(w)
		}
	}
	failed := false
	defer func() { t.unwatched = failed }()
	for key, d := range used {
		if t.watching[key] != nil {
			continue
		}
		w, err := newWatched(d, settings{
			wait: t.opts.WaitTime, once: t.once, tell: t.news, library: t.library, consul: t.consul,
		}, doubts{grace: t.opts.Grace, share: t.opts.VanishLimit})
		if err != nil {
			t.uses = true // tried again at the next look at the files
			if !t.unwatched {
				t.log.Error("cannot watch what a template uses, trying again", "dependency", key, "err", err)
			}
			failed = true
			continue
		}
		t.watching[key] = w
		t.waiting[w] = true
		if w.slot != nil {
			t.running.Go(w.run)
		} else {
			go w.run() // what is not in Consul may not hear at once that it is stopped
		}
	}
}

func (t *Templater) stopWatch(w *watched) {
	w.stop()
	t.brain.Forget(w.Dependency)
	delete(t.watching, w.key)
	delete(t.waiting, w)
	t.settle(w)
}

func (t *Templater) stopWatching() {
	for _, w := range t.watching {
		w.stop()
	}
}

// reportLeftOut logs what the template functions have newly set aside, and what
// they no longer do.
func (t *Templater) reportLeftOut() {
	now := map[string]bool{}
	for _, p := range t.pages {
		for u := range p.current.units {
			maps.Copy(now, u.leftOut)
		}
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

// publish hands over the texts if they differ from the last. One that is not complete, or does not work, is as it was,
// and the others do not wait for it.
func (t *Templater) publish() {
	texts, files, since := map[string]string{}, map[string]map[string]string{}, time.Time{}
	for _, p := range t.pages {
		old, had := t.published.Texts[p.Name]
		if had {
			texts[p.Name], files[p.Name] = old, t.published.Files[p.Name]
		}
		main := p.current.main
		if !main.rendered || !main.complete() {
			continue
		}
		if !had || old != main.text {
			texts[p.Name], files[p.Name] = main.text, p.current.files()
			since = earlier(since, p.current.since)
		}
		if main.failure == "" {
			p.current.since = time.Time{}
		}
	}
	if maps.Equal(texts, t.published.Texts) {
		return
	}
	if since.IsZero() { // a template that uses nothing from the catalog
		since = time.Now()
	}
	t.published = Rendered{Texts: texts, Files: files, Since: since}
	t.opts.Publish(Rendered{Texts: maps.Clone(texts), Files: maps.Clone(files), Since: since})
}

// incomplete says whether there is a template that waits for data, and does not fail.
func (t *Templater) incomplete() bool {
	return slices.ContainsFunc(t.pages, func(p *page) bool { return p.current.main.failure == "" && !p.current.main.complete() })
}

// unpublished says whether there are templates without a text so far.
func (t *Templater) unpublished() bool { return len(t.published.Texts) < len(t.pages) }

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}
