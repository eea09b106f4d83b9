package render

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"
)

// tmpl is a template with its current version and a newer one that is not proven yet.
type tmpl struct {
	Spec
	set       *Set
	current   *version
	next      *version   // nil = none
	broken    error      // why the newest version is not used
	tried     string     // the text of the newest version; "" = read it again
	published *Published // nil = nothing yet
}

func newTmpl(spec Spec, set *Set) (*tmpl, error) {
	spec.Source = cmp.Or(spec.Source, spec.File)
	t := &tmpl{Spec: spec, set: set}
	text, err := t.read()
	if err != nil {
		return nil, err
	}
	t.tried = text
	t.current, err = newVersion(t, text)
	return t, err
}

// read returns the template's text.
func (t *tmpl) read() (string, error) {
	if t.File == "" {
		return t.Text, nil
	}
	info, err := os.Stat(t.File)
	if err == nil && !info.Mode().IsRegular() && t.tried != "" {
		return t.tried, nil // a pipe can be read only once
	}
	var text []byte
	if err == nil {
		text, err = os.ReadFile(t.File)
	}
	if err != nil {
		return "", fmt.Errorf("cannot read the template: %w", err)
	}
	return string(text), nil
}

// reread reads the template again. It tries the text if it has changed, or if again is true and the last try failed. It reports
// whether to render.
func (t *tmpl) reread(again bool) bool {
	text, err := t.read()
	if err == nil && text == t.tried && !(again && t.broken != nil) {
		return false
	}
	t.tried = text // empty after an error: the file may come back unchanged
	var next *version
	if err == nil {
		next, err = newVersion(t, text)
	}
	if err == nil {
		t.broken, t.next = nil, next
		next.since = time.Now()
		return true
	}
	if sameError(err, t.broken) {
		return false
	}
	t.broken, t.next = err, nil
	t.set.opts.Log.Error(t.Source+" has changed and cannot be used, keeping the previous version", "template", t.Source, "err", err)
	return true
}

func sameError(a, b error) bool { return a != nil && b != nil && a.Error() == b.Error() }

// promote makes the newest version the current one if it works.
func (t *tmpl) promote() {
	complete := t.next.update()
	before := t.broken
	t.broken = t.next.regressions(t.current)
	switch {
	case t.broken != nil:
		if !sameError(t.broken, before) {
			t.set.opts.Log.Error(t.Source+" has changed and fails, keeping the previous version", "template", t.Source, "err", t.broken)
		}
	case complete:
		t.next.since = earlier(t.next.since, t.current.since)
		t.current, t.next, t.set.usesOther = t.next, nil, true
		t.set.opts.Log.Info("using the changed "+t.Source, "template", t.Source)
	}
}

// publish sets published, and returns true, if the text is good, complete, and has changed.
func (t *tmpl) publish() bool {
	main := t.current.main
	if main.good == nil || !main.complete() {
		return false
	}
	since := t.current.since
	if !main.stale {
		t.current.since = time.Time{}
	}
	files, inMaps := t.current.files()
	if t.published != nil && t.published.Text == main.text() && maps.Equal(t.published.Maps, inMaps) {
		return false
	}
	if since.IsZero() { // the template uses nothing from the catalog
		since = time.Now()
	}
	t.published = &Published{Name: t.Name, Text: main.text(), Files: files, Maps: inMaps, Since: since}
	return true
}

// regressions returns the first error of a version that the previous version does not have: a text would be lost.
func (v *version) regressions(before *version) error {
	var failures []string
	for f := range v.fragments {
		was := before.partials[f.fragmentKey]
		asBefore := f != v.main && was != nil && was.failure != "" && (was.good == nil) == (f.good == nil)
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
