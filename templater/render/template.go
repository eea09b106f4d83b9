package render

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"
)

// tmpl is a template with the version of it that is rendered, and a newer one that has yet to prove itself.
type tmpl struct {
	Spec
	set       *Set
	current   *version
	next      *version // nil = none
	broken    error    // why the newest version is not used
	state     fs.FileInfo
	published *Published // nil = nothing so far
}

func newTmpl(spec Spec, set *Set) (*tmpl, error) {
	spec.Source = cmp.Or(spec.Source, spec.File)
	t := &tmpl{Spec: spec, set: set}
	text, _, err := t.read()
	if err != nil {
		return nil, err
	}
	t.current, err = newVersion(t, text)
	return t, err
}

// read returns the template's text, and whether its file has changed since the last time.
func (t *tmpl) read() (text string, changed bool, err error) {
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

// reread reads the template again if its file has changed, or anyway. It says whether there is anything to render.
func (t *tmpl) reread(anyway bool) bool {
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
		t.broken, t.next = err, nil
		t.set.opts.Log.Error("the changed template is not used, going on with the one before", "template", t.Source, "err", err)
		return true
	case err == nil && changed:
		t.broken, t.next = nil, next
		t.next.since = time.Now()
		return true
	}
	return false
}

func sameError(a, b error) bool { return a != nil && b != nil && a.Error() == b.Error() }

// promote puts the newest version in the place of the one that is used, if it works.
func (t *tmpl) promote() {
	complete := t.next.update()
	before := t.broken
	t.broken = t.next.regressions(t.current)
	switch {
	case t.broken != nil:
		if !sameError(t.broken, before) {
			t.set.opts.Log.Error("the changed template fails, going on with the one before", "template", t.Source, "err", t.broken)
		}
	case complete:
		t.next.since = earlier(t.next.since, t.current.since)
		t.current, t.next, t.set.usesOther = t.next, nil, true
		t.set.opts.Log.Info("template read again", "template", t.Source)
	}
}

// publish sets published if the text is good, complete, and another one, and says so.
func (t *tmpl) publish() bool {
	main := t.current.main
	if !main.rendered || !main.complete() {
		return false
	}
	since := t.current.since
	if main.failure == "" {
		t.current.since = time.Time{}
	}
	if t.published != nil && t.published.Text == main.text {
		return false
	}
	if since.IsZero() { // a template that uses nothing from the catalog
		since = time.Now()
	}
	t.published = &Published{Name: t.Name, Text: main.text, Files: t.current.files(), Since: since}
	return true
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
