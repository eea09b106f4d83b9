package templater

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	texttemplate "text/template"
	"time"

	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul-template/template"
)

// denied returns the template functions that are disabled: those that run programs
// or write files, and those whose Vault or Nomad client does not exist here (the
// library would dereference nil).
func denied() []string {
	return []string{"plugin", "writeToFile", "secret", "secrets", "pkiCert", "nomad*"}
}

// unit is one template with its last good text and what that was made from.
type unit struct {
	Template
	parsed *template.Template

	dirty   bool
	used    map[string]dependency.Dependency // by String
	missing []string                         // used, but not received yet
	since   time.Time                        // when the oldest change that is not published arrived

	rendered bool // text is set
	text     string
	failure  string          // why the last execution failed; "" = it did not
	leftOut  map[string]bool // what the functions set aside for text

	setAside map[string]bool // collected while executing
}

func newUnit(tmpl Template, funcs func(report func(string)) texttemplate.FuncMap) (*unit, error) {
	if tmpl.Text == "" {
		return nil, fmt.Errorf("%s: the template is empty", tmpl.Source)
	}
	u := &unit{Template: tmpl, dirty: true}
	input := &template.NewTemplateInput{Contents: tmpl.Text, FunctionDenylist: denied()}
	if funcs != nil {
		input.ExtFuncMap = funcs(func(reason string) { u.setAside[reason] = true })
	}
	var err error
	if u.parsed, err = template.NewTemplate(input); err != nil {
		return nil, fmt.Errorf("%s: %w", tmpl.Source, err)
	}
	// The library parses only when it executes. Against an empty brain that does
	// nothing else of note: what fails in executing may be for want of data.
	u.setAside = map[string]bool{}
	_, err = u.parsed.Execute(&template.ExecuteInput{Brain: template.NewBrain()})
	if err != nil && strings.HasPrefix(err.Error(), "parse: ") {
		return nil, u.located(err)
	}
	return u, nil
}

// changed marks the unit for execution if it uses the dependency.
func (u *unit) changed(key string, now time.Time) {
	if u.used[key] == nil {
		return
	}
	u.dirty = true
	u.since = earlier(u.since, now)
}

// execute renders the text from what the brain holds. Complete is false when data
// is missing: then, as after an error, the text stays what it was.
func (u *unit) execute(brain *template.Brain) (complete bool, err error) {
	u.dirty = false
	u.setAside = map[string]bool{}
	result, err := u.parsed.Execute(&template.ExecuteInput{Brain: brain})
	if err != nil {
		err = u.located(err)
		u.failure = err.Error()
		u.missing = nil
		return false, err
	}
	used := byString(result.Used)
	u.missing = slices.Sorted(maps.Keys(byString(result.Missing)))
	if len(u.missing) > 0 {
		// What is missing may hide the use of what is watched already.
		maps.Copy(used, u.used)
		u.used = used
		return false, nil
	}
	u.used, u.failure, u.leftOut = used, "", u.setAside
	u.text, u.rendered = string(result.Output), true
	return true, nil
}

// located puts the template's source where the library, which is given none, leaves
// a gap: "execute: template: :3:5: executing" becomes "web.ctmpl:3:5: executing".
func (u *unit) located(err error) error {
	_, message, found := strings.Cut(err.Error(), "template: :")
	if !found {
		return fmt.Errorf("%s: %w", u.Source, err)
	}
	return fmt.Errorf("%s:%s", u.Source, message)
}

func byString(set *dependency.Set) map[string]dependency.Dependency {
	m := map[string]dependency.Dependency{}
	for _, d := range set.List() {
		m[d.String()] = d
	}
	return m
}

// added returns, sorted, what is in after and not in before.
func added(before, after map[string]bool) []string {
	var diff []string
	for _, s := range slices.Sorted(maps.Keys(after)) {
		if !before[s] {
			diff = append(diff, s)
		}
	}
	return diff
}
