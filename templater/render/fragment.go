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

// fragment is the unit of execution: a template, or one of its partials for one argument. Its text stays good until one of
// its inputs changes.
type fragment struct {
	fragmentKey
	compiled *template.Template

	dirty      bool
	refreshing bool       // to notice a partial that calls itself
	good       *execution // the last good one, whose text is used; nil = none so far
	failure    string     // why the last execution failed; "" = it did not
	cause      string     // the same in the library's words, with the fragment's own line numbers
	stale      bool       // the last execution failed, and nothing worked in its place: good lacks what it was for
	generation int        // counts the changes that an outer text may have to follow

	// Of the last execution and, if that has ended early, of the good one:
	used    map[string]dependency.Dependency // by String
	missing []string                         // used, but not received yet
	calls   map[*fragment]int                // the partials in it, with the generation of each
}

// execution records what one execution of a fragment uses and makes.
type execution struct {
	of      *fragment
	outer   *execution // which called this one and goes on after it
	text    string
	used    map[string]dependency.Dependency
	missing []string
	calls   map[*fragment]int
	leftOut map[string]bool   // the reasons of functions that left something out
	files   map[string]string // made by asFile
	maps    map[string]string // made by asMap and asCrtList

	read    map[string]*datum // of a good one: what used held then
	held    map[string]*datum // what of it is older than the newest, which does not work
	refused map[string]*datum // the newest of these
	brain   *template.Brain   // with what is held, while it runs; nil = the set's
}

func newExecution(f *fragment, outer *execution) *execution {
	return &execution{
		of: f, outer: outer, used: map[string]dependency.Dependency{}, calls: map[*fragment]int{},
		leftOut: map[string]bool{}, files: map[string]string{}, maps: map[string]string{},
	}
}

// uses adds the dependencies that the library knows of.
func (x *execution) uses(result *template.ExecuteResult) {
	for _, d := range result.Used.List() {
		x.used[d.String()] = d
	}
	for _, d := range result.Missing.List() {
		x.missing = append(x.missing, d.String())
	}
}

// fail takes in the error of an execution, and what works in its place; nil = nothing but the last good one.
func (f *fragment) fail(err error, instead *execution) {
	f.missing, f.stale = nil, instead == nil
	if instead != nil {
		if instead.text != f.good.text {
			f.generation++
		}
		f.good = instead
	}
	if f.failure != err.Error() {
		f.failure = err.Error()
		f.generation++
	}
}

// finish takes in an execution, whose text counts if no data is missing.
func (f *fragment) finish(x *execution) {
	if (len(x.missing) == 0) != (len(f.missing) == 0) || f.failure != "" {
		f.generation++
	}
	f.missing, f.failure, f.stale = x.missing, "", false
	if len(x.missing) > 0 {
		return
	}
	if f.good == nil || x.text != f.good.text {
		f.generation++
	}
	f.good = x
}

// text returns the text that is used.
func (f *fragment) text() string {
	if f.good == nil {
		return ""
	}
	return f.good.text
}

// leftOut returns the reasons why something is left out of the text.
func (f *fragment) leftOut() map[string]bool {
	switch {
	case f.good != nil:
		return f.good.leftOut
	case f.failure != "" && f.name != "":
		return map[string]bool{f.failure: true}
	default:
		return nil
	}
}

// complete says whether all data of f and its partials is there.
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

// failedPartial returns the error of a partial that failed for every argument. A partial that fails for some keeps its last
// text for these, or leaves them out if there is none: one bad service harms no other.
func (x *execution) failedPartial() error {
	failed, works := map[string]string{}, map[string]bool{}
	for c := range x.calls {
		switch {
		case c.good != nil || len(c.missing) > 0:
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
