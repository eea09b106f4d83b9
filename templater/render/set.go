// Package render executes templates in consul-template's language, and reuses the parts of a text that have not changed.
package render

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	texttemplate "text/template"
	"time"

	"github.com/hashicorp/consul-template/config"
	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul-template/template"
	"github.com/hashicorp/consul/api"
)

// Spec describes one template.
//
// It has these functions in addition to consul-template's:
//
//	partial NAME ARG     the text of a {{ define }} for an argument, cached until an input changes
//	asFile NAME TEXT     the path of a file with the text
//	asMap NAME TEXT      the path of a map with the text; the path stays the same when the text changes
//	asCrtList NAME TEXT  the same for a list of certificates
//	directory PATH       a directory's file names
//	instances NAME       a service's instances in every state of health
//	paused               the services paused by hand
type Spec struct {
	Name        string // unique
	Source      string // its name in errors: a file path, or "the built-in template"
	Text        string // the template, if File is empty
	File        string // the template's file, read again whenever it changes
	Destination string // path of the text: pkiCert looks there for a certificate that is still valid
	FilePrefix  string // prefix of asFile's paths; "" = the function fails
	MapPrefix   string // prefix of the paths of asMap and asCrtList; "" = the functions fail

	// Funcs returns extra functions for this template. They call report with one line, with the reason, for everything they
	// ignore, and instances for the instances of a service. A line about a service begins like leftout.Sentence. Called once
	// per version; may be nil.
	Funcs func(report func(string), instances Ask) texttemplate.FuncMap
}

// Ask returns the instances of a service in every state of health and watches them. It returns none while they are unknown; the
// caller's fragment is executed again once they are known. The result must not be changed.
type Ask = func(service string) []*api.ServiceEntry

// Published is the newest good text of one template.
type Published struct {
	Name  string // of the template
	Text  string
	Files map[string]string // contents of the files that the text names, by path
	Maps  map[string]string // contents of the maps that the text names, by path
	Since time.Time         // arrival of the oldest catalog change in the text
}

// Options apply to all templates.
type Options struct {
	Consul   *api.Config    // for the functions that return its settings
	Library  *config.Config // consul-template's configuration, finalized, for Vault and Nomad; nil = neither
	Programs bool           // allows the functions plugin and writeToFile
	// Executed is called after each execution of a template, or of the named partial for an argument. May be nil.
	Executed func(partial string, arg any, took time.Duration, err error)
	Log      *slog.Logger
}

// Set renders templates from the same data. It must be used by one goroutine.
type Set struct {
	opts      Options
	brain     *template.Brain
	data      map[string]*datum // same content as brain
	late      map[string]error  // why a dependency has no data, if it will not arrive soon
	templates []*tmpl
	usesOther bool // for Update
}

// NewSet parses the templates. A syntax error names the template's Source and the line.
func NewSet(specs []Spec, opts Options) (*Set, error) {
	if len(specs) == 0 {
		return nil, errors.New("no template to render")
	}
	s := &Set{opts: opts, brain: template.NewBrain(), data: map[string]*datum{}, late: map[string]error{}, usesOther: true}
	for _, spec := range specs {
		t, err := newTmpl(spec, s)
		if err != nil {
			return nil, err
		}
		for _, other := range s.templates {
			if other.Name == t.Name {
				return nil, fmt.Errorf("%s and %s are both named %q", other.Source, t.Source, t.Name)
			}
		}
		s.templates = append(s.templates, t)
	}
	return s, nil
}

// Remember stores the data of a dependency and marks the fragments that use it for execution.
func (s *Set) Remember(d dependency.Dependency, data any) {
	key := d.String()
	s.brain.Remember(d, data)
	s.data[key] = &datum{data}
	delete(s.late, key)
	now := time.Now()
	for v := range s.versions {
		v.mark(key, now)
	}
}

// Late records that a dependency has no data for now, and why, so that rendering continues without it. It reports whether to
// render.
func (s *Set) Late(d dependency.Dependency, why error) bool {
	key := d.String()
	before := s.late[key]
	s.late[key] = why
	if s.data[key] != nil || sameError(why, before) {
		return false
	}
	for v := range s.versions {
		v.mark(key, time.Now())
	}
	return true
}

// Forget drops the data of a dependency that is no longer used.
func (s *Set) Forget(d dependency.Dependency) {
	key := d.String()
	s.brain.Forget(d)
	delete(s.data, key)
	delete(s.late, key)
}

// Failing counts the templates and partials that fail.
func (s *Set) Failing() (n int) {
	for _, t := range s.templates {
		for f := range t.current.fragments {
			if f.failure != "" {
				n++
			}
		}
	}
	return n
}

// Outdated marks everything for execution.
func (s *Set) Outdated() {
	now := time.Now()
	for v := range s.versions {
		v.mark("", now)
	}
}

// Reread reads the templates' files. With all, it also retries rejected templates that have not changed. It reports whether to
// render.
func (s *Set) Reread(all bool) (edited bool) {
	for _, t := range s.templates {
		edited = t.reread(all) || edited
	}
	s.usesOther = s.usesOther || edited
	return edited
}

// Update executes the marked fragments and the fragments that call them. It reports whether the dependencies may have changed.
func (s *Set) Update() (usesOther bool) {
	for _, t := range s.templates {
		t.current.update()
		if t.next != nil {
			t.promote()
		}
	}
	usesOther, s.usesOther = s.usesOther, false
	return usesOther
}

// Publish calls the func with each text that is good, complete and changed. A text that is not good yet does not delay others.
func (s *Set) Publish(publish func(Published)) {
	for _, t := range s.templates {
		if t.publish() {
			publish(*t.published)
		}
	}
}

// Texts returns the last published texts by template name, and whether every template has one.
func (s *Set) Texts() (texts map[string]Published, all bool) {
	texts = map[string]Published{}
	for _, t := range s.templates {
		if t.published != nil {
			texts[t.Name] = *t.published
		}
	}
	return texts, len(texts) == len(s.templates)
}

// Used returns the dependencies, by String.
func (s *Set) Used() map[string]dependency.Dependency {
	used := map[string]dependency.Dependency{}
	for v := range s.versions {
		for f := range v.fragments {
			maps.Copy(used, f.used)
		}
	}
	return used
}

// Missing returns the dependencies that were used without data.
func (s *Set) Missing() map[string]bool {
	missing := map[string]bool{}
	for v := range s.versions {
		for f := range v.fragments {
			for _, key := range f.missing {
				missing[key] = true
			}
		}
	}
	return missing
}

// LeftOut returns the reasons why the texts ignore something.
func (s *Set) LeftOut() map[string]bool {
	leftOut := map[string]bool{}
	for _, t := range s.templates {
		for f := range t.current.fragments {
			maps.Copy(leftOut, f.leftOut())
		}
	}
	return leftOut
}

// Waits reports whether a template that does not fail waits for data.
func (s *Set) Waits() bool {
	return slices.ContainsFunc(s.templates, func(t *tmpl) bool { return t.current.main.failure == "" && !t.current.main.complete() })
}

// Status returns a sentence on why a text is missing or out of date, and whether only data is missing; "" = all texts are up to
// date.
func (s *Set) Status() (why string, waits bool) {
	_, all := s.Texts()
	for _, t := range s.templates {
		main := t.current.main
		switch {
		case !all && main.failure != "" && main.good == nil:
			return "A template fails: " + main.failure, false
		case !all:
			why, waits = "Nothing is rendered yet", true
		case t.broken != nil:
			return "A changed template is not used: " + t.broken.Error(), false
		case t.next != nil:
			why, waits = "A changed template is not used yet", true
		case why != "":
		case main.failure != "":
			why = "A template fails, " + main.consequence() + ": " + main.failure
		default:
			if f := t.current.failingPartial(); f != nil {
				why = "A partial fails, " + f.consequence() + ": " + f.failure
			}
		}
	}
	return why, waits
}

// Behind returns an error if a template fails, so its text is not from the newest data or its newest version. It also reports
// whether a template waits for data. Unlike in Status, a failing partial is an error even if the text does without it.
func (s *Set) Behind() (waits bool, err error) {
	for _, t := range s.templates {
		failure := t.current.failure()
		switch {
		case t.broken != nil:
			err = cmp.Or(err, fmt.Errorf("the changed template is not used: %w", t.broken))
		case t.next != nil:
			waits = true
		case failure != "":
			err = cmp.Or(err, errors.New(failure))
		case !t.current.main.complete():
			waits = true
		}
	}
	return waits, err
}

// failure returns why the template or one of its partials fails; "" = none fails.
func (v *version) failure() string {
	first := v.main.failure
	for _, f := range v.partials {
		if v.main.failure == "" && f.failure != "" && (first == "" || f.failure < first) {
			first = f.failure
		}
	}
	return first
}

// failingPartial returns a partial whose text is not from the newest data, the first one by its failure; nil = none. A partial that
// has never worked does not count: it is ignored, like a bad label.
func (v *version) failingPartial() (first *fragment) {
	for _, f := range v.partials {
		if f.failure != "" && f.good != nil && (first == nil || f.failure < first.failure) {
			first = f
		}
	}
	return first
}

// versions yields all versions of all templates.
func (s *Set) versions(yield func(*version) bool) {
	for _, t := range s.templates {
		if !yield(t.current) || t.next != nil && !yield(t.next) {
			return
		}
	}
}

// executed counts an execution, and logs a new failure, or its end.
func (s *Set) executed(v *version, f *fragment, failedBefore string, took time.Duration, err error) {
	if s.opts.Executed != nil {
		s.opts.Executed(f.name, f.arg, took, err)
	}
	if v.current != v { // promote logs it, and Explain must not
		return
	}
	switch {
	case err != nil && f.failure != failedBefore:
		s.opts.Log.Error(v.Source+" failed, "+f.consequence(), "template", v.Source, "err", err)
	case err == nil && failedBefore != "" && len(f.missing) == 0:
		s.opts.Log.Info(v.Source+" works again", "template", v.Source, "was", failedBefore)
	}
}
