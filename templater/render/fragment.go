package render

import (
	"errors"
	"maps"
	"slices"

	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul-template/template"
)

// fragmentKey names what a partial renders.
type fragmentKey struct {
	name string
	arg  any // comparable
}

// fragment is executed by itself: a template, or a partial of it for one argument. Its text stays good until something
// changes that it was made from.
type fragment struct {
	fragmentKey
	compiled *template.Template

	dirty      bool
	used       map[string]dependency.Dependency // by String
	needed     map[string]dependency.Dependency // what the text was made from
	missing    []string                         // used, but not received yet
	calls      map[*fragment]int                // the partials in it, with the generation of each
	generation int                              // counts what an outer text may have to follow
	refreshing bool                             // a partial in it must not be itself

	rendered bool // text is set
	text     string
	failure  string            // why the last execution failed; "" = it did not
	cause    string            // the same, as the library says it of the fragment alone
	leftOut  map[string]bool   // what the functions set aside for text
	files    map[string]string // what asFile made for text

	// Of the last execution:
	failedBefore string // the failure of the one before it
	setAside     map[string]bool
	extra        map[string]dependency.Dependency // used, beside what the library knows of
	absent       []string                         // missing, likewise
	called       map[*fragment]int
	made         map[string]string
}

// begin forgets the last execution.
func (f *fragment) begin() {
	f.dirty, f.failedBefore = false, f.failure
	f.extra, f.absent, f.called = map[string]dependency.Dependency{}, nil, map[*fragment]int{}
	f.setAside, f.made = map[string]bool{}, map[string]string{}
}

// fail takes in why an execution failed.
func (f *fragment) fail(err error) {
	f.missing = nil
	if f.failure == err.Error() {
		return
	}
	f.failure = err.Error()
	f.generation++
	if !f.rendered && f.name != "" {
		f.leftOut = map[string]bool{f.failure: true}
	}
}

// finish takes in what an execution has rendered, which counts if nothing is missing.
func (f *fragment) finish(text string, missing []string) {
	if (len(missing) == 0) != (len(f.missing) == 0) || f.failure != "" {
		f.generation++
	}
	f.missing, f.failure = missing, ""
	if len(missing) > 0 {
		return
	}
	f.needed, f.leftOut, f.files = f.used, f.setAside, f.made
	if !f.rendered || text != f.text {
		f.generation++
		f.text, f.rendered = text, true
	}
}

// complete says whether nothing is missing that f is made of.
func (f *fragment) complete() bool {
	if len(f.missing) > 0 {
		return false
	}
	for c := range f.calls {
		if !c.complete() {
			return false
		}
	}
	return true
}

// reach collects f and the partials in it.
func (f *fragment) reach(reached map[*fragment]bool) {
	reached[f] = true
	for c := range f.calls {
		if !reached[c] {
			c.reach(reached)
		}
	}
}

// failedPartial returns the error of a partial that failed for every argument. One that fails for some keeps its last text
// for these, or they are left out if there is none: what is wrong with one service harms no other.
func (f *fragment) failedPartial() error {
	failed, works := map[string]string{}, map[string]bool{}
	for c := range f.called {
		switch {
		case c.rendered || len(c.missing) > 0:
			works[c.name] = true
		case failed[c.name] == "" || c.failure < failed[c.name]:
			failed[c.name] = c.failure
		}
	}
	for _, name := range slices.Sorted(maps.Keys(failed)) {
		if !works[name] {
			return errors.New(failed[name])
		}
	}
	return nil
}

func byString(set *dependency.Set) map[string]dependency.Dependency {
	m := map[string]dependency.Dependency{}
	for _, d := range set.List() {
		m[d.String()] = d
	}
	return m
}
