// Package render executes templates in consul-template's language, and keeps what has not changed.
package render

import (
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

// Set is the templates that are rendered from the same data. It is for one goroutine.
type Set struct {
	opts      Options
	brain     *template.Brain
	templates []*tmpl
	usesOther bool // for Update
}

// NewSet parses the templates. A syntax error names the template's Source and the line.
func NewSet(specs []Spec, opts Options) (*Set, error) {
	if len(specs) == 0 {
		return nil, errors.New("there is no template to render")
	}
	s := &Set{opts: opts, brain: template.NewBrain(), usesOther: true}
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

// Remember stores the data of a dependency, and marks what uses it for execution.
func (s *Set) Remember(d dependency.Dependency, data any) {
	s.brain.Remember(d, data)
	now := time.Now()
	for v := range s.versions {
		v.mark(d.String(), now)
	}
}

// Forget is for a dependency that is used no more.
func (s *Set) Forget(d dependency.Dependency) { s.brain.Forget(d) }

// Outdated marks everything for execution.
func (s *Set) Outdated() {
	now := time.Now()
	for v := range s.versions {
		v.mark("", now)
	}
}

// Reread reads the templates again whose files have changed, or all. It says whether there is anything to render.
func (s *Set) Reread(all bool) (edited bool) {
	for _, t := range s.templates {
		edited = t.reread(all) || edited
	}
	s.usesOther = s.usesOther || edited
	return edited
}

// Update executes the marked fragments, and whatever uses them. It says whether the dependencies may be others than before.
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

// Publish calls the func with each text that is good, complete, and not what it was called with before. One that is not
// stays what it was, and the others do not wait for it.
func (s *Set) Publish(publish func(Published)) {
	for _, t := range s.templates {
		if t.publish() {
			publish(*t.published)
		}
	}
}

// Texts returns what Publish has called its func with last, by the names of the templates, and whether that are all.
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

// LeftOut returns what the texts lack, and why.
func (s *Set) LeftOut() map[string]bool {
	leftOut := map[string]bool{}
	for _, t := range s.templates {
		for f := range t.current.fragments {
			maps.Copy(leftOut, f.leftOut())
		}
	}
	return leftOut
}

// Waits says whether a template waits for data, and does not fail.
func (s *Set) Waits() bool {
	return slices.ContainsFunc(s.templates, func(t *tmpl) bool { return t.current.main.failure == "" && !t.current.main.complete() })
}

// Status says in a sentence why not all texts are there and of the newest versions, and whether that is because of missing
// data; "" = they are.
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
		}
	}
	return why, waits
}

// versions yields all versions of all templates.
func (s *Set) versions(yield func(*version) bool) {
	for _, t := range s.templates {
		if !yield(t.current) || t.next != nil && !yield(t.next) {
			return
		}
	}
}

// executed counts an execution, and logs it if it has failed, or does so no longer.
func (s *Set) executed(v *version, f *fragment, failedBefore string, took time.Duration, err error) {
	if s.opts.Executed != nil {
		s.opts.Executed(f.name, f.arg, took, err)
	}
	if v.current != v { // promote reports, and Explain does not
		return
	}
	switch {
	case err != nil && f.failure != failedBefore:
		consequence := "keeping the last good text"
		if f.good == nil {
			consequence = "nothing is published until it works"
			if f.name != "" {
				consequence = "left out"
			}
		}
		s.opts.Log.Error("template failed, "+consequence, "template", v.Source, "err", err)
	case err == nil && failedBefore != "" && len(f.missing) == 0:
		s.opts.Log.Info("template works again", "template", v.Source, "was", failedBefore)
	}
}
