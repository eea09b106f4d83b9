// Package render executes templates in consul-template's language, and keeps what has not changed.
package render

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	texttemplate "text/template"
	"time"

	"github.com/hashicorp/consul-template/config"
	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul-template/template"
	"github.com/hashicorp/consul/api"
)

// Spec says what one template is.
//
// Beside consul-template's functions there are these: partial NAME ARG is the text of a {{ define }} for an argument, kept
// until something changes that it was made from; asFile NAME TEXT is the path of a file with that text; directory PATH is
// what a directory holds.
type Spec struct {
	Name        string // tells it from the others
	Source      string // what errors call it: a file path, or "the built-in template"
	Text        string // if there is no File
	File        string // is read, and again whenever it changes
	Destination string // where the text goes: pkiCert looks there for a certificate that is still good
	FilePrefix  string // what the paths of asFile begin with; "" = there is no such function
}

// Published is the newest good text of one template.
type Published struct {
	Name  string // of the template
	Text  string
	Files map[string]string // what the files hold that the text names, by path
	Since time.Time         // when the oldest catalog change in the text arrived
}

// Options are the same for all templates.
type Options struct {
	Consul   *api.Config    // what some functions say of it
	Library  *config.Config // consul-template's own, finalized, for Vault and Nomad; nil = neither
	Programs bool           // the functions plugin and writeToFile are allowed
	// Funcs returns extra template functions. They call report with one line for
	// everything they set aside, and why. Called once per version; may be nil.
	Funcs func(report func(string)) texttemplate.FuncMap
	// Executed is called after each execution of a template, or of a partial of that name for an argument. May be nil.
	Executed func(partial string, arg any, took time.Duration, err error)
	Log      *slog.Logger
}

// Template is a template with the version of it that is rendered, and a newer one that has yet to prove itself. All of
// its methods are for one goroutine.
type Template struct {
	Spec
	opts    *Options
	brain   *template.Brain
	current *version
	next    *version // nil = none
	broken  error    // why the newest version is not used
	state   fs.FileInfo

	regrouped  bool // what is used may have changed; for UsesOther
	explaining bool
	published  *Published // nil = nothing so far
}

// New parses a template, which takes its data from brain. A syntax error names the template's Source and the line.
func New(spec Spec, opts *Options, brain *template.Brain) (*Template, error) {
	spec.Source = cmp.Or(spec.Source, spec.File)
	t := &Template{Spec: spec, opts: opts, brain: brain}
	text, _, err := t.read()
	if err != nil {
		return nil, err
	}
	t.current, err = newVersion(t, text)
	return t, err
}

// read returns the template's text, and whether its file has changed since the last time.
func (t *Template) read() (text string, changed bool, err error) {
	if t.File == "" {
		return t.Text, false, nil
	}
	state, err := os.Stat(t.File)
	if err == nil && t.state != nil && os.SameFile(state, t.state) && state.Size() == t.state.Size() && state.ModTime().Equal(t.state.ModTime()) {
		return t.current.text, false, nil
	}
	var content []byte
	if err == nil {
		content, err = os.ReadFile(t.File)
	}
	if err != nil {
		t.state = nil // it may come back as it was
		return "", false, fmt.Errorf("cannot read the template: %w", err)
	}
	t.state = state
	return string(content), true, nil
}

// Reread reads the template again if its file has changed, or anyway. It says whether there is anything to render.
func (t *Template) Reread(anyway bool) bool {
	if anyway {
		t.state = nil
	}
	text, changed, err := t.read()
	var next *version
	if err == nil && changed {
		newest := t.current
		if t.next != nil {
			newest = t.next
		}
		if text == newest.text && t.broken == nil {
			return false
		}
		next, err = newVersion(t, text)
	}
	switch {
	case err != nil && !sameError(err, t.broken):
		t.broken, t.next, t.regrouped = err, nil, true
		t.opts.Log.Error("the changed template is not used, going on with the one before", "template", t.Source, "err", err)
		return true
	case err == nil && changed:
		t.broken, t.next, t.regrouped = nil, next, true
		t.next.since = time.Now()
		return true
	}
	return false
}

func sameError(a, b error) bool { return a != nil && b != nil && a.Error() == b.Error() }

// Changed marks what uses a dependency for execution.
func (t *Template) Changed(key string, now time.Time) {
	for v := range t.versions {
		v.changed(key, now)
	}
}

// Outdated marks everything for execution.
func (t *Template) Outdated(now time.Time) {
	for v := range t.versions {
		v.outdated(now)
	}
}

// Update executes what is marked, and what uses that.
func (t *Template) Update() {
	t.current.update()
	if t.next != nil {
		t.promote()
	}
}

// promote puts the newest version in the place of the one that is used, if it works.
func (t *Template) promote() {
	complete := t.next.update()
	before := t.broken
	t.broken = t.next.regressions(t.current)
	switch {
	case t.broken != nil:
		if !sameError(t.broken, before) {
			t.opts.Log.Error("the changed template fails, going on with the one before", "template", t.Source, "err", t.broken)
		}
	case complete:
		t.next.since = earlier(t.next.since, t.current.since)
		t.current, t.next, t.regrouped = t.next, nil, true
		t.opts.Log.Info("template read again", "template", t.Source)
	}
}

// Publish returns the text if it is good, complete, and not the one that was returned before.
func (t *Template) Publish() (p Published, ok bool) {
	main := t.current.main
	if !main.rendered || !main.complete() {
		return p, false
	}
	since := t.current.since
	if main.failure == "" {
		t.current.since = time.Time{}
	}
	if t.published != nil && t.published.Text == main.text {
		return p, false
	}
	if since.IsZero() { // a template that uses nothing from the catalog
		since = time.Now()
	}
	t.published = &Published{Name: t.Name, Text: main.text, Files: t.current.files(), Since: since}
	return *t.published, true
}

// Published returns what Publish returned last; nil if that was never anything.
func (t *Template) Published() *Published { return t.published }

// Broken returns why the newest version is not used.
func (t *Template) Broken() error { return t.broken }

// Promoting says whether the newest version is not complete yet.
func (t *Template) Promoting() bool { return t.next != nil }

// Waits says whether the template waits for data, and does not fail.
func (t *Template) Waits() bool { return t.current.main.failure == "" && !t.current.main.complete() }

// Failure returns why there is no text at all; nil if the template does not fail, or has a text.
func (t *Template) Failure() error {
	if main := t.current.main; main.failure != "" && !main.rendered {
		return errors.New(main.failure)
	}
	return nil
}

// UsesOther says whether the dependencies may be others than at the last call.
func (t *Template) UsesOther() bool {
	other := t.regrouped
	t.regrouped = false
	for v := range t.versions {
		other, v.usesOther = other || v.usesOther, false
	}
	return other
}

// Used yields the dependencies, by String, some more than once.
func (t *Template) Used(yield func(string, dependency.Dependency) bool) {
	for f := range t.fragments {
		for key, d := range f.used {
			if !yield(key, d) {
				return
			}
		}
	}
}

// Missing yields the dependencies that were used without data, some more than once.
func (t *Template) Missing(yield func(string) bool) {
	for f := range t.fragments {
		for _, key := range f.missing {
			if !yield(key) {
				return
			}
		}
	}
}

// LeftOut yields what the text lacks, and why, some more than once.
func (t *Template) LeftOut(yield func(string) bool) {
	for f := range t.current.fragments {
		for reason := range f.leftOut {
			if !yield(reason) {
				return
			}
		}
	}
}

// fragments yields those of all versions.
func (t *Template) fragments(yield func(*fragment) bool) {
	for v := range t.versions {
		for f := range v.fragments {
			if !yield(f) {
				return
			}
		}
	}
}

func (t *Template) versions(yield func(*version) bool) {
	if yield(t.current) && t.next != nil {
		yield(t.next)
	}
}

// executed counts an execution, and logs it if it has failed, or does so no longer.
func (t *Template) executed(v *version, f *fragment, took time.Duration, err error) {
	if t.opts.Executed != nil {
		t.opts.Executed(f.name, f.arg, took, err)
	}
	if t.current != v || t.explaining { // promote reports, and Explain does not
		return
	}
	switch {
	case err != nil && f.failure != f.failedBefore:
		consequence := "keeping the last good text"
		if !f.rendered {
			consequence = "nothing is published until it works"
			if f.name != "" {
				consequence = "left out"
			}
		}
		t.opts.Log.Error("template failed, "+consequence, "template", t.Source, "err", err)
	case err == nil && f.failedBefore != "" && len(f.missing) == 0:
		t.opts.Log.Info("template works again", "template", t.Source, "was", f.failedBefore)
	}
}

// regressions returns the first error that a version has and the one before it has not: it would be that one's text that
// is lost.
func (v *version) regressions(before *version) error {
	var failures []string
	for f := range v.fragments {
		was := before.partials[f.fragmentKey]
		asBefore := f != v.main && was != nil && was.failure != "" && was.rendered == f.rendered
		if f.failure != "" && !asBefore {
			failures = append(failures, f.failure)
		}
	}
	if len(failures) == 0 {
		return nil
	}
	return errors.New(slices.Min(failures))
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}
