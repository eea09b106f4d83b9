package render

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	texttemplate "text/template"
	"time"

	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul-template/template"
)

var errStop = errors.New("berth stops here")

// version is one version of a template, with the texts that it has rendered.
type version struct {
	*tmpl
	text     string
	env      []string // for the function env, in addition to the process's own
	funcs    texttemplate.FuncMap
	traced   texttemplate.FuncMap          // funcs and more: see trace.go
	defines  map[string]string             // the text of each {{ define }}
	compiled map[string]*template.Template // each {{ define }} that was executed, by name
	partials map[fragmentKey]*fragment
	main     *fragment
	running  *execution // nil between executions
	since    time.Time  // arrival of the oldest unpublished change

	callsOther bool // a partial may have lost its last caller
}

// newVersion parses a text.
func newVersion(t *tmpl, text string) (*version, error) {
	if text == "" {
		return nil, fmt.Errorf("%s: the template is empty", t.Source)
	}
	v := &version{
		tmpl: t, text: text, env: environment(&t.set.opts),
		compiled: map[string]*template.Template{}, partials: map[fragmentKey]*fragment{},
	}
	v.funcs = v.functions()
	v.traced = v.tracing()
	v.main = &fragment{compiled: v.compile(text, v.funcs), dirty: true}
	// Parsing needs an execution; funcStop ends it at once.
	if _, err := v.run(v.compile("{{"+funcStop+"}}"+text, v.funcs)); strings.HasPrefix(err.Error(), "parse: ") {
		return nil, v.located(err)
	}
	var err error
	if v.defines, err = defines(text); err != nil {
		return nil, fmt.Errorf("%s: %w", t.Source, err)
	}
	return v, nil
}

// compile prepares a text for run, which parses it.
func (v *version) compile(text string, funcs texttemplate.FuncMap) *template.Template {
	compiled, _ := template.NewTemplate(&template.NewTemplateInput{Contents: text, Destination: v.Destination, ExtFuncMap: funcs})
	return compiled // only an empty text is an error
}

// run executes a text with the data that the brain holds.
func (v *version) run(compiled *template.Template) (*template.ExecuteResult, error) {
	return compiled.Execute(&template.ExecuteInput{Brain: v.brain(), Env: v.env, Config: v.set.opts.Library})
}

// brain returns the data for the current execution.
func (v *version) brain() *template.Brain {
	if v.running != nil && v.running.brain != nil {
		return v.running.brain
	}
	return v.set.brain
}

// compiledPartial returns a {{ define }} to execute, with only the other defines that it may use, because parsing is the most
// expensive step.
func (v *version) compiledPartial(name string) (*template.Template, error) {
	if compiled := v.compiled[name]; compiled != nil {
		return compiled, nil
	}
	if v.defines[name] == "" {
		return nil, fmt.Errorf("partial %q: there is no {{ define %q }}", name, name)
	}
	var text strings.Builder
	for _, needed := range v.closure(name) {
		text.WriteString(v.defines[needed])
	}
	fmt.Fprintf(&text, "{{template %q %s}}", name, funcArgument)
	v.compiled[name] = v.compile(text.String(), v.funcs)
	return v.compiled[name], nil
}

// mark marks the fragments that use a dependency for execution; "" = all fragments.
func (v *version) mark(key string, now time.Time) {
	for f := range v.fragments {
		if key == "" || f.used[key] != nil {
			f.dirty = true
			v.since = earlier(v.since, now)
		}
	}
}

// fragments yields the template and its partials.
func (v *version) fragments(yield func(*fragment) bool) {
	if !yield(v.main) {
		return
	}
	for _, f := range v.partials {
		if !yield(f) {
			return
		}
	}
}

// update brings the text up to date and reports whether it is good and complete.
func (v *version) update() bool {
	v.refresh(v.main)
	if v.callsOther {
		v.callsOther = false
		reached := map[*fragment]bool{}
		v.main.reach(reached)
		before := len(v.partials)
		maps.DeleteFunc(v.partials, func(_ fragmentKey, f *fragment) bool { return !reached[f] })
		v.set.usesOther = v.set.usesOther || len(v.partials) < before
	}
	return v.main.good != nil && v.main.complete()
}

// refresh executes f if an input has changed, inner fragments before outer ones.
func (v *version) refresh(f *fragment) {
	f.refreshing = true
	defer func() { f.refreshing = false }()
	stale, complete := false, true
	for c, generation := range f.calls {
		v.refresh(c)
		stale = stale || c.generation != generation
		complete = complete && c.complete()
	}
	if f.dirty || stale && complete {
		v.execute(f)
	}
}

// execute renders f from the brain's data. The previous text stays while data is missing and after an error.
func (v *version) execute(f *fragment) {
	start, failedBefore := time.Now(), f.failure
	x := newExecution(f, v.running)
	v.running = x
	defer func() { v.running, x.outer = x.outer, nil }()

	f.dirty = false
	err := v.attempt(x)
	var instead *execution
	if err != nil {
		instead = v.hold(x)
	} else if late := v.set.lateFor(x); late != nil {
		// At the start, wait for all data.
		if instead = v.hold(x); instead != nil || f.name != "" && v.published != nil && v.current == v {
			err = late
		}
	}
	if err != nil || len(x.missing) > 0 {
		// The execution may have ended early: keep the remaining inputs.
		for c, generation := range f.calls {
			if _, called := x.calls[c]; !called {
				x.calls[c] = generation
			}
		}
		if f.good != nil {
			maps.Copy(x.used, f.good.used)
		}
		if instead != nil {
			maps.Copy(x.used, instead.used)
			maps.Copy(x.calls, instead.calls)
		}
	}
	v.callsOther = v.callsOther || len(f.calls) > 0
	v.set.usesOther = v.set.usesOther || !maps.EqualFunc(x.used, f.used, func(_, _ dependency.Dependency) bool { return true })
	f.calls, f.used = x.calls, x.used
	if err != nil {
		f.fail(err, instead)
	} else {
		f.finish(x)
	}
	v.set.executed(v, f, failedBefore, time.Since(start), err)
}

// attempt executes a fragment. After a new kind of failure it executes the fragment once more to find the line and the
// dependencies; a partial runs within the whole template, because only that has the right line numbers.
func (v *version) attempt(x *execution) error {
	f := x.of
	compiled := f.compiled
	if f.failure != "" { // it may fail again
		compiled = v.compile(compiled.Contents(), v.traced)
	}
	result, err := v.run(compiled)
	if err == nil {
		x.text, f.cause = string(result.Output), ""
		x.uses(result)
		x.read = v.set.readings(x)
		return x.failedPartial()
	}
	cause := v.located(err)
	if f.cause == cause.Error() {
		return errors.New(f.failure)
	}
	f.cause = cause.Error()
	text := v.text
	if f.name != "" {
		text = fmt.Sprintf("{{template %q %s}}{{%s}}%s", f.name, funcArgument, funcStop, text)
	}
	if _, err := v.run(v.compile(text, v.traced)); err != nil && !strings.Contains(err.Error(), errStop.Error()) {
		cause = v.located(err)
	}
	if f.name != "" {
		cause = fmt.Errorf("partial %q of %v: %w", f.name, f.arg, cause)
	}
	return cause
}

// files returns the contents of all files made by asFile for the text, and of all maps and lists made by asMap and asCrtList, by path.
func (v *version) files() (files, inMaps map[string]string) {
	files, inMaps = map[string]string{}, map[string]string{}
	for f := range v.fragments {
		if f.good != nil {
			maps.Copy(files, f.good.files)
			maps.Copy(inMaps, f.good.maps)
		}
	}
	return files, inMaps
}
