package render

import (
	"errors"
	"fmt"
	"maps"
	"slices"
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
	env      []string // for the function of that name, beside the process's own
	funcs    texttemplate.FuncMap
	traced   texttemplate.FuncMap          // the same, and more: see trace.go
	defines  map[string]string             // the text of each {{ define }}
	compiled map[string]*template.Template // what executes one
	partials map[fragmentKey]*fragment
	main     *fragment
	running  *fragment // the one that executes now
	since    time.Time // when the oldest change that is not published arrived

	callsOther bool // partials may be called no more
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
	v.main = &fragment{dirty: true}
	var err error
	if v.main.compiled, err = v.parse(text); err != nil {
		return nil, err
	}
	if v.defines, err = defines(text); err != nil {
		return nil, fmt.Errorf("%s: %w", t.Source, err)
	}
	return v, nil
}

// compile makes something to execute of a text, which the library parses only then.
func (v *version) compile(text string, funcs texttemplate.FuncMap) (*template.Template, error) {
	return template.NewTemplate(&template.NewTemplateInput{Contents: text, Destination: v.Destination, ExtFuncMap: funcs})
}

// run executes it with what the brain holds.
func (v *version) run(compiled *template.Template) (*template.ExecuteResult, error) {
	return compiled.Execute(&template.ExecuteInput{Brain: v.set.brain, Env: v.env, Config: v.set.opts.Library})
}

// parse makes something to execute of a text, and finds its syntax errors.
func (v *version) parse(text string) (*template.Template, error) {
	compiled, err := v.compile(text, v.funcs)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", v.Source, err)
	}
	// To parse it takes an execution, which this keeps from going further.
	check, err := v.compile("{{"+funcStop+"}}"+text, v.funcs)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", v.Source, err)
	}
	if _, err = v.run(check); strings.HasPrefix(err.Error(), "parse: ") {
		return nil, v.located(err)
	}
	return compiled, nil
}

// compiledPartial returns what executes a {{ define }}: nothing but that and those it may use, as parsing costs more than
// all else.
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
	compiled, err := v.compile(text.String(), v.funcs)
	v.compiled[name] = compiled
	return compiled, err
}

// changed marks what uses a dependency for execution.
func (v *version) changed(key string, now time.Time) {
	for f := range v.fragments {
		if f.used[key] != nil {
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

// update brings the text up to date, and says whether it is good and complete.
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
	return v.main.rendered && v.main.complete()
}

// refresh executes f if anything has changed that it is made of, the inner before the outer.
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

// execute renders f from what the brain holds. While data is missing, and after an error, its text stays what it was.
func (v *version) execute(f *fragment) {
	outer := v.running
	v.running = f
	defer func() { v.running = outer }()

	start := time.Now()
	f.begin()
	result, err := v.attempt(f)
	used, missing := f.extra, f.absent
	if result != nil {
		maps.Copy(used, byString(result.Used))
		missing = append(slices.Sorted(maps.Keys(byString(result.Missing))), missing...)
	}
	if err != nil || len(missing) > 0 {
		// It may have ended early: what it did not reach is needed again.
		for c, generation := range f.calls {
			if _, called := f.called[c]; !called {
				f.called[c] = generation
			}
		}
		maps.Copy(used, f.needed)
	}
	v.callsOther = v.callsOther || len(f.calls) > 0
	f.calls = f.called
	v.set.usesOther = v.set.usesOther || !maps.EqualFunc(used, f.used, func(_, _ dependency.Dependency) bool { return true })
	f.used = used
	if err != nil {
		f.fail(err)
	} else {
		f.finish(string(result.Output), missing)
	}
	v.set.executed(v, f, time.Since(start), err)
}

// attempt executes f. Where it fails, and what it has used by then, is found by executing it once more, if that is not
// known from the last time: a partial in the whole template, to find the line.
func (v *version) attempt(f *fragment) (*template.ExecuteResult, error) {
	compiled := f.compiled
	if f.failure != "" { // it may fail again
		var err error
		if compiled, err = v.compile(compiled.Contents(), v.traced); err != nil {
			return nil, err
		}
	}
	result, err := v.run(compiled)
	if err == nil {
		f.cause = ""
		return result, f.failedPartial()
	}
	cause := v.located(err)
	if f.cause == cause.Error() {
		return nil, errors.New(f.failure)
	}
	f.cause = cause.Error()
	text := v.text
	if f.name != "" {
		text = fmt.Sprintf("{{template %q %s}}{{%s}}%s", f.name, funcArgument, funcStop, text)
	}
	if again, badTemplate := v.compile(text, v.traced); badTemplate == nil {
		if _, err := v.run(again); err != nil && !strings.Contains(err.Error(), errStop.Error()) {
			cause = v.located(err)
		}
	}
	if f.name != "" {
		cause = fmt.Errorf("partial %q of %v: %w", f.name, f.arg, cause)
	}
	return nil, cause
}

// files are all that asFile made for the text.
func (v *version) files() map[string]string {
	all := map[string]string{}
	for f := range v.fragments {
		maps.Copy(all, f.files)
	}
	return all
}
