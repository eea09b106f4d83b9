package render

import (
	"errors"
	"maps"
	"slices"

	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul-template/template"
)

// fragmentKey identifies a rendering of a partial.
type fragmentKey struct {
	name string
	arg  any // comparable
}

// fragment is the unit of execution: a template, or one of its partials for one argument. Its text stays valid until an input
// changes.
type fragment struct {
	fragmentKey
	compiled *template.Template

	dirty      bool
	refreshing bool       // detects a partial that calls itself
	good       *execution // the last good one, whose text is used; nil = none yet
	failure    string     // why the last execution failed; "" = it did not
	cause      string     // the library's error, with the fragment's own line numbers
	stale      bool       // the last execution failed without a replacement: good lacks the latest change
	generation int        // counts the changes that affect an outer text

	// From the last execution and, if it ended early, from the good one as well:
	used    map[string]dependency.Dependency // by String
	missing []string                         // used, but not received yet
	calls   map[*fragment]int                // called partials, with their generations
}

// execution records the inputs and outputs of one execution of a fragment.
type execution struct {
	of      *fragment
	outer   *execution // the caller, which continues afterwards
	text    string
	used    map[string]dependency.Dependency
	missing []string
	calls   map[*fragment]int
	leftOut map[string]bool   // reasons reported by functions that ignored something
	files   map[string]string // made by asFile
	maps    map[string]string // made by asMap and asCrtList

	read    map[string]*datum // for a good execution: the data of used
	held    map[string]*datum // the part of read that is older than the newest data, which does not work
	refused map[string]*datum // the newest data for held
	brain   *template.Brain   // includes held, while the execution runs; nil = the set's
}

func newExecution(f *fragment, outer *execution) *execution {
	return &execution{
		of: f, outer: outer, used: map[string]dependency.Dependency{}, calls: map[*fragment]int{},
		leftOut: map[string]bool{}, files: map[string]string{}, maps: map[string]string{},
	}
}

// uses adds the dependencies that the library reports.
func (x *execution) uses(result *template.ExecuteResult) {
	for _, d := range result.Used.List() {
		x.used[d.String()] = d
	}
	for _, d := range result.Missing.List() {
		x.missing = append(x.missing, d.String())
	}
}

// fail records the error of an execution and its replacement; nil = keep the last good one.
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

// finish records an execution. Its text is used if no data is missing.
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

// text returns the text in use.
func (f *fragment) text() string {
	if f.good == nil {
		return ""
	}
	return f.good.text
}

// leftOut returns the reasons why the text ignores something.
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

// complete reports whether f and its partials have all their data.
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

// reach collects f and the partials that it calls.
func (f *fragment) reach(reached map[*fragment]bool) {
	reached[f] = true
	for c := range f.calls {
		if !reached[c] {
			c.reach(reached)
		}
	}
}

// failedPartial returns the error of a partial that failed for every argument. A partial that fails for some arguments keeps its
// last text for them, or skips them without one, so a bad service harms no other.
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
