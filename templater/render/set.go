// Package render executes templates in consul-template's language, and keeps the parts of a text that have not changed.
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
// It has six functions beside consul-template's: partial NAME ARG returns the text of a {{ define }} for an argument,
// cached until one of its inputs changes; asFile NAME TEXT returns the path of a file with that text; asMap NAME TEXT that of
// a map that changes without the text; directory PATH returns a directory's file names; instances NAME returns a service's
// instances in every state of health; paused returns the services that are paused by hand.
type Spec struct {
	Name        string // unique
	Source      string // what errors call it: a file path, or "the built-in template"
	Text        string // the template, if there is no File
	File        string // holds the template, and is read again whenever it changes
	Destination string // where the text goes: pkiCert looks there for a certificate that is still good
	FilePrefix  string // begins the paths of asFile; "" = there is no such function
	MapPrefix   string // begins the paths of asMap and asCrtList; "" = there are no such functions

	// Funcs returns extra functions for this template. They call report with one line for everything they set aside, and
	// why, and instances for those of a service. The line begins as leftout.Sentence has it if it is about a service. Called once per
	// version; may be nil.
	Funcs func(report func(string), instances Ask) texttemplate.FuncMap
}

// Ask returns the instances of a service in every state of health, which are then watched; none if they are not known yet:
// what asked is executed again when they are. Nobody may change what it returns.
type Ask = func(service string) []*api.ServiceEntry

// Published is the newest good text of one template.
type Published struct {
	Name  string // of the template
	Text  string
	Files map[string]string // the contents of the files that the text names, by path
	Maps  map[string]string // the contents of the maps that the text names, by path
	Since time.Time         // when the oldest catalog change in the text arrived
}

// Options are the same for all templates.
type Options struct {
	Consul   *api.Config    // for the functions that return its settings
	Library  *config.Config // consul-template's own, finalized, for Vault and Nomad; nil = neither
	Programs bool           // the functions plugin and writeToFile are allowed
	// Executed is called after each execution of a template, or of a partial of that name for an argument. May be nil.
	Executed func(partial string, arg any, took time.Duration, err error)
	Log      *slog.Logger
}

// Set renders templates from the same data. It is for one goroutine.
type Set struct {
	opts      Options
	brain     *template.Brain
	data      map[string]*datum // the same as in the brain
	late      map[string]error  // why there is no data of a dependency, if it will not come soon
	templates []*tmpl
	usesOther bool // for Update
}

// NewSet parses the templates. A syntax error names the template's Source and the line.
func NewSet(specs []Spec, opts Options) (*Set, error) {
	if len(specs) == 0 {
		return nil, errors.New("there is no template to render")
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

// Remember stores the data of a dependency, and marks the fragments that use it for execution.
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

// Late says that there is no data of a dependency for now, and why: what is rendered goes on without. It says whether there
// is anything to render.
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

// Forget drops the data of a dependency that is used no more.
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

// Reread reads the templates' files; with all it tries refused templates again that have not changed. It says whether there
// is anything to render.
func (s *Set) Reread(all bool) (edited bool) {
	for _, t := range s.templates {
		edited = t.reread(all) || edited
	}
	s.usesOther = s.usesOther || edited
	return edited
}

// Update executes the marked fragments, and the fragments that use those. It says whether the dependencies may have changed.
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

// Publish calls the func with each text that is good, complete, and not the same as before. A text that is not good yet
// holds up no other.
func (s *Set) Publish(publish func(Published)) {
	for _, t := range s.templates {
		if t.publish() {
			publish(*t.published)
		}
	}
}

// Texts returns the last published texts, by the names of the templates, and whether every template has one.
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

// LeftOut returns the reasons why something is left out of the texts.
func (s *Set) LeftOut() map[string]bool {
	leftOut := map[string]bool{}
	for _, t := range s.templates {
		for f := range t.current.fragments {
			maps.Copy(leftOut, f.leftOut())
		}
	}
	return leftOut
}

// Waits says whether a template that does not fail waits for data.
func (s *Set) Waits() bool {
	return slices.ContainsFunc(s.templates, func(t *tmpl) bool { return t.current.main.failure == "" && !t.current.main.complete() })
}

// Status says in a sentence why a text is missing or not of the newest version, and whether only data is missing; "" = all
// texts are there.
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

// Behind returns an error if a template fails, so that its text is not of the newest data or of its newest version, and says
// whether one waits for data. Other than for Status, a partial that fails is an error even if the text goes on without it.
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

// failure returns why the template or one of its partials fails; "" = none does.
func (v *version) failure() string {
	first := v.main.failure
	for _, f := range v.partials {
		if v.main.failure == "" && f.failure != "" && (first == "" || f.failure < first) {
			first = f.failure
		}
	}
	return first
}

// failingPartial returns a partial whose text is not of the newest data, the first by its failure; nil = there is none. One
// that has never worked is not counted: it is left out, as a bad label is.
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
	if v.current != v { // promote reports, and Explain does not
		return
	}
	switch {
	case err != nil && f.failure != failedBefore:
		s.opts.Log.Error(v.Source+" failed, "+f.consequence(), "template", v.Source, "err", err)
	case err == nil && failedBefore != "" && len(f.missing) == 0:
		s.opts.Log.Info(v.Source+" works again", "template", v.Source, "was", failedBefore)
	}
}
