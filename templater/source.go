package templater

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	texttemplate "text/template"
	"text/template/parse"
	"time"

	"github.com/hashicorp/consul-template/config"
	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul-template/template"
)

// The functions that every template has beside consul-template's.
const (
	funcPartial   = "partial"
	funcAsFile    = "asFile"
	funcDirectory = "directory"
	// These are in no template of a user's: the argument of a partial, and the end of an execution.
	funcArgument = "berthArgument"
	funcStop     = "berthStop"
)

var errStop = errors.New("berth stops here")

// source is one version of a template, with the texts that it has rendered.
type source struct {
	Template
	text     string
	config   *config.Config
	env      []string // for the function of that name, beside the process's own
	brain    *template.Brain
	funcs    texttemplate.FuncMap
	defines  map[string]string             // the text of each {{ define }}
	partials map[string]*template.Template // what executes one
	pieces   map[piece]*unit
	main     *unit
	running  *unit     // the one that executes now
	since    time.Time // when the oldest change that is not published arrived

	regrouped bool // partials may be called no more
	uses      bool // what is used may have changed; for the templater
	executed  func(s *source, u *unit, took time.Duration, err error)
}

// piece names what a partial renders.
type piece struct {
	name string
	arg  any // comparable
}

// unit is what is executed by itself: a template, or a partial of it for one argument. Its text stays good until
// something changes that it was made from.
type unit struct {
	piece
	parsed *template.Template

	dirty   bool
	used    map[string]dependency.Dependency // by String
	needed  map[string]dependency.Dependency // what the text was made from
	missing []string                         // used, but not received yet
	calls   map[*unit]int                    // the partials in it, with the version of each
	version int                              // counts what an outer text may have to follow

	refreshing bool // a partial in it must not be itself

	rendered bool // text is set
	text     string
	failure  string            // why the last execution failed; "" = it did not
	leftOut  map[string]bool   // what the functions set aside for text
	files    map[string]string // what asFile made for text

	// Of the last execution:
	failedBefore string // the failure of the one before it
	setAside     map[string]bool
	extra        map[string]dependency.Dependency
	absent       []string
	called       map[*unit]int
	made         map[string]string
}

// newSource parses a template.
func newSource(tmpl Template, text string, opts *Options, brain *template.Brain, executed func(*source, *unit, time.Duration, error)) (*source, error) {
	if text == "" {
		return nil, fmt.Errorf("%s: the template is empty", tmpl.Source)
	}
	s := &source{
		Template: tmpl, text: text, brain: brain, config: opts.Library, env: environment(opts),
		partials: map[string]*template.Template{}, pieces: map[piece]*unit{}, executed: executed,
	}
	s.funcs = texttemplate.FuncMap{
		funcPartial: s.partial, funcAsFile: s.asFile, funcDirectory: s.directory,
		funcArgument: func() any { return s.running.arg },
		funcStop:     func() (string, error) { return "", errStop },
	}
	maps.Copy(s.funcs, denied(opts))
	if opts.Funcs != nil {
		maps.Copy(s.funcs, opts.Funcs(func(reason string) { s.running.setAside[reason] = true }))
	}
	s.main = &unit{dirty: true}
	var err error
	if s.main.parsed, err = s.parse(text); err != nil {
		return nil, err
	}
	if s.defines, err = defines(text); err != nil {
		return nil, fmt.Errorf("%s: %w", s.Source, err)
	}
	return s, nil
}

// denied are the functions that fail: those that run programs or write files unless they are wanted, and those whose
// client does not exist (the library would dereference nil).
func denied(opts *Options) texttemplate.FuncMap {
	funcs := texttemplate.FuncMap{}
	deny := func(why string, names ...string) {
		for _, name := range names {
			funcs[name] = func(...any) (string, error) { return "", errors.New("function is disabled: " + why) }
		}
	}
	if !opts.Programs {
		deny("template-programs allows what runs programs and writes files", "plugin", "writeToFile")
	}
	if opts.Library == nil || !config.BoolVal(opts.Library.Vault.Enabled) {
		deny("set VAULT_ADDR to the address of Vault", "secret", "secrets", "pkiCert")
	}
	if opts.Library == nil || !config.BoolVal(opts.Library.Nomad.Enabled) {
		deny("set NOMAD_ADDR to the address of Nomad",
			"nomadServices", "nomadService", "nomadVarList", "nomadVarListSafe", "nomadVar", "nomadVarExists")
	}
	return funcs
}

// environment is what consul-template gives its templates of its own configuration.
func environment(opts *Options) []string {
	if opts.Consul == nil {
		return nil
	}
	return []string{
		fmt.Sprint("CONSUL_HTTP_SSL=", opts.Consul.Scheme == "https"),
		fmt.Sprint("CONSUL_HTTP_SSL_VERIFY=", !opts.Consul.TLSConfig.InsecureSkipVerify),
	}
}

// compile makes something to execute of a text, which the library parses only then.
func (s *source) compile(text string) (*template.Template, error) {
	return template.NewTemplate(&template.NewTemplateInput{Contents: text, Destination: s.Destination, ExtFuncMap: s.funcs})
}

// run executes it with what the brain holds.
func (s *source) run(compiled *template.Template) (*template.ExecuteResult, error) {
	return compiled.Execute(&template.ExecuteInput{Brain: s.brain, Env: s.env, Config: s.config})
}

// parse makes something to execute of a text, and finds its syntax errors.
func (s *source) parse(text string) (*template.Template, error) {
	parsed, err := s.compile(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.Source, err)
	}
	// To parse it takes an execution, which this keeps from going further.
	check, err := s.compile("{{" + funcStop + "}}" + text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.Source, err)
	}
	if _, err = s.run(check); strings.HasPrefix(err.Error(), "parse: ") {
		return nil, s.located(err)
	}
	return parsed, nil
}

// defines returns the text of every {{ define }} in a template, as the parser writes it.
func defines(text string) (map[string]string, error) {
	tree := parse.New("")
	tree.Mode = parse.SkipFuncCheck
	all := map[string]*parse.Tree{}
	if _, err := tree.Parse(text, "", "", all); err != nil {
		return nil, err
	}
	texts := map[string]string{}
	for name, t := range all {
		if name != "" && t.Root != nil {
			keepBraces(t.Root)
			texts[name] = fmt.Sprintf("{{define %q}}%s{{end}}", name, t.Root)
		}
	}
	return texts, nil
}

// keepBraces changes the text before an action that ends with a brace, as in "server {{{- with .X }}" without the blanks
// that the parser has removed there: the two would be read as one.
func keepBraces(list *parse.ListNode) {
	if list == nil {
		return
	}
	for _, node := range list.Nodes {
		switch n := node.(type) {
		case *parse.TextNode:
			if rest, ends := bytes.CutSuffix(n.Text, []byte("{")); ends {
				n.Text = append(bytes.Clone(rest), `{{"{"}}`...)
			}
		case *parse.IfNode:
			keepBraces(n.List)
			keepBraces(n.ElseList)
		case *parse.WithNode:
			keepBraces(n.List)
			keepBraces(n.ElseList)
		case *parse.RangeNode:
			keepBraces(n.List)
			keepBraces(n.ElseList)
		}
	}
}

// partial is the template function: the text of a {{ define }} for an argument, executed only if something has changed
// that it was made from.
func (s *source) partial(name string, args ...any) (string, error) {
	p := piece{name: name}
	switch {
	case len(args) > 1:
		return "", fmt.Errorf("partial takes a name and one argument, not %d", len(args))
	case len(args) == 1:
		p.arg = args[0]
	}
	switch kind := reflect.ValueOf(p.arg).Kind(); kind {
	case reflect.Invalid, reflect.String, reflect.Bool, reflect.Int, reflect.Int64, reflect.Uint64, reflect.Float64:
	default:
		return "", fmt.Errorf("partial %q: its argument must be a string, a number or a bool, by which its text is kept, not %T", name, p.arg)
	}
	u := s.pieces[p]
	if u == nil {
		parsed, err := s.parsedPartial(name)
		if err != nil {
			return "", err
		}
		u = &unit{piece: p, parsed: parsed, dirty: true}
		s.pieces[p] = u
	}
	if u.refreshing {
		return "", fmt.Errorf("partial %q of %v calls itself", name, p.arg)
	}
	s.refresh(u)
	s.running.called[u] = u.version
	return u.text, nil
}

// parsedPartial is what executes a {{ define }}: nothing but that and those it may use, as parsing costs more than all
// else.
func (s *source) parsedPartial(name string) (*template.Template, error) {
	if parsed := s.partials[name]; parsed != nil {
		return parsed, nil
	}
	if s.defines[name] == "" {
		return nil, fmt.Errorf("partial %q: there is no {{ define %q }}", name, name)
	}
	var text strings.Builder
	for _, needed := range s.closure(name) {
		text.WriteString(s.defines[needed])
	}
	fmt.Fprintf(&text, "{{template %q %s}}", name, funcArgument)
	parsed, err := s.compile(text.String())
	s.partials[name] = parsed
	return parsed, err
}

// closure is a {{ define }} and all that it may execute by name.
func (s *source) closure(name string) []string {
	need := []string{name}
	for n := 0; n < len(need); n++ {
		text := s.defines[need[n]]
		for other := range s.defines {
			if !slices.Contains(need, other) &&
				(strings.Contains(text, fmt.Sprintf("{{template %q", other)) || strings.Contains(text, "executeTemplate")) {
				need = append(need, other)
			}
		}
	}
	return need
}

var fileName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,100}(\.[A-Za-z0-9_-]{1,20})?$`)

// asFile is the template function: the path of a file that holds the text. Its name changes with the text, so that the
// configuration does, and never shares a file with the one before it.
func (s *source) asFile(name, text string) (string, error) {
	if s.FilePrefix == "" {
		return "", errors.New("asFile: there is no directory for files beside this text")
	}
	if !fileName.MatchString(name) {
		return "", fmt.Errorf("asFile: %q must be a name like routes.map, of letters, digits, - and _", name)
	}
	ext := filepath.Ext(name)
	sum := sha256.Sum256([]byte(text))
	path := fmt.Sprintf("%s%s-%x%s", s.FilePrefix, strings.TrimSuffix(name, ext), sum[:8], ext)
	s.running.made[path] = text
	return path, nil
}

// directory is the template function: what a directory holds.
func (s *source) directory(path string) (Directory, error) {
	if !filepath.IsAbs(path) {
		return Directory{}, fmt.Errorf("directory: %q is not an absolute path", path)
	}
	q := newDirectoryQuery(path)
	s.running.extra[q.String()] = q
	data, ok := s.brain.Recall(q)
	if !ok {
		s.running.absent = append(s.running.absent, q.String())
		return Directory{Path: path}, nil
	}
	return data.(Directory), nil
}

// changed marks what uses a dependency for execution. Of what failed the library does not say what it used.
func (s *source) changed(key string, now time.Time) {
	for u := range s.units {
		if u.used[key] != nil || u.failure != "" {
			u.dirty = true
			s.since = earlier(s.since, now)
		}
	}
}

// outdated marks everything for execution.
func (s *source) outdated(now time.Time) {
	for u := range s.units {
		u.dirty = true
	}
	s.since = earlier(s.since, now)
}

// units are the template and its partials.
func (s *source) units(yield func(*unit) bool) {
	if !yield(s.main) {
		return
	}
	for _, u := range s.pieces {
		if !yield(u) {
			return
		}
	}
}

// update brings the text up to date, and says whether it is good and complete.
func (s *source) update() bool {
	s.refresh(s.main)
	if s.regrouped {
		s.regrouped = false
		reached := map[*unit]bool{}
		reach(s.main, reached)
		before := len(s.pieces)
		maps.DeleteFunc(s.pieces, func(_ piece, u *unit) bool { return !reached[u] })
		s.uses = s.uses || len(s.pieces) < before
	}
	return s.main.rendered && s.main.complete()
}

func reach(u *unit, reached map[*unit]bool) {
	reached[u] = true
	for c := range u.calls {
		if !reached[c] {
			reach(c, reached)
		}
	}
}

// complete says whether nothing is missing that u is made of.
func (u *unit) complete() bool {
	if len(u.missing) > 0 {
		return false
	}
	for c := range u.calls {
		if !c.complete() {
			return false
		}
	}
	return true
}

// refresh executes u if anything has changed that it is made of, the inner before the outer.
func (s *source) refresh(u *unit) {
	u.refreshing = true
	defer func() { u.refreshing = false }()
	stale, complete := false, true
	for c, version := range u.calls {
		s.refresh(c)
		stale = stale || c.version != version
		complete = complete && c.complete()
	}
	if u.dirty || stale && complete {
		s.execute(u)
	}
}

// execute renders u from what the brain holds. While data is missing, and after an error, its text stays what it was.
func (s *source) execute(u *unit) {
	outer := s.running
	s.running = u
	defer func() { s.running = outer }()

	start := time.Now()
	u.dirty, u.failedBefore = false, u.failure
	u.extra, u.absent, u.called = map[string]dependency.Dependency{}, nil, map[*unit]int{}
	u.setAside, u.made = map[string]bool{}, map[string]string{}
	result, err := s.run(u.parsed)
	if err != nil {
		err = s.whereFailed(u, err)
	} else {
		err = u.failedPartial()
	}
	if err != nil || result.Missing.Len()+len(u.absent) > 0 {
		// It may have ended early: what it did not reach is needed again.
		for c, version := range u.calls {
			if _, called := u.called[c]; !called {
				u.called[c] = version
			}
		}
	}
	s.regrouped = s.regrouped || len(u.calls) > 0
	u.calls = u.called
	if err != nil {
		u.fail(err)
	} else {
		s.uses = u.finish(result) || s.uses
	}
	s.executed(s, u, time.Since(start), err)
}

func (u *unit) fail(err error) {
	u.missing = nil
	if u.failure == err.Error() {
		return
	}
	u.failure = err.Error()
	u.version++
	if !u.rendered && u.name != "" {
		u.leftOut = map[string]bool{u.failure: true}
	}
}

// finish takes in what an execution has rendered, and says whether it uses other data than before.
func (u *unit) finish(result *template.ExecuteResult) (other bool) {
	used := byString(result.Used)
	maps.Copy(used, u.extra)
	absent := append(slices.Sorted(maps.Keys(byString(result.Missing))), u.absent...)
	if (len(absent) == 0) != (len(u.missing) == 0) || u.failure != "" {
		u.version++
	}
	u.missing, u.failure = absent, ""
	if len(absent) > 0 {
		maps.Copy(used, u.needed) // what is missing may hide the use of it
	}
	other = !maps.EqualFunc(used, u.used, func(_, _ dependency.Dependency) bool { return true })
	u.used = used
	if len(absent) > 0 {
		return other
	}
	u.needed, u.leftOut, u.files = used, u.setAside, u.made
	if text := string(result.Output); !u.rendered || text != u.text {
		u.version++
		u.text, u.rendered = text, true
	}
	return other
}

// files are all that asFile made for the text.
func (s *source) files() map[string]string {
	all := map[string]string{}
	for u := range s.units {
		maps.Copy(all, u.files)
	}
	return all
}

// newlyFails is the first error that this version has and another has not: it would be the other's text that is lost.
func (s *source) newlyFails(other *source) error {
	var failures []string
	for u := range s.units {
		was := other.pieces[u.piece]
		asBefore := u != s.main && was != nil && was.failure != "" && was.rendered == u.rendered
		if u.failure != "" && !asBefore {
			failures = append(failures, u.failure)
		}
	}
	if len(failures) == 0 {
		return nil
	}
	return errors.New(slices.Min(failures))
}

// failedPartial is the error of a partial that failed for every argument. One that fails for some keeps its last text
// for these, or they are left out if there is none: what is wrong with one service harms no other.
func (u *unit) failedPartial() error {
	failed, works := map[string]string{}, map[string]bool{}
	for c := range u.called {
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

// whereFailed is the error of an execution with its place in the template. A partial is executed from a text of its own:
// where it fails is found by executing it once more, in the whole.
func (s *source) whereFailed(u *unit, err error) error {
	if u.name != "" {
		whole, badTemplate := s.compile(fmt.Sprintf("{{template %q %s}}{{%s}}%s", u.name, funcArgument, funcStop, s.text))
		if badTemplate == nil {
			if _, again := s.run(whole); again != nil && !strings.Contains(again.Error(), errStop.Error()) {
				err = again
			}
		}
		return fmt.Errorf("partial %q of %v: %w", u.name, u.arg, s.located(err))
	}
	return s.located(err)
}

// located puts the template's source where the library, which is given none, leaves a gap: "execute: template: :3:5:
// executing" becomes "web.ctmpl:3:5: executing".
func (s *source) located(err error) error {
	text := s.redacted(err.Error())
	if _, message, found := strings.Cut(text, "template: :"); found {
		return fmt.Errorf("%s:%s", s.Source, message)
	}
	return fmt.Errorf("%s: %s", s.Source, text)
}

// redacted is an error's text without the secrets that it may show. The library does this for values at the top level of
// a secret's data only.
func (s *source) redacted(text string) string {
	var pairs []string
	for u := range s.units {
		for _, d := range u.used {
			if secret, ok := recall[*dependency.Secret](s.brain, d); ok && secret != nil {
				pairs = append(pairs, secrets(secret.Data)...)
			}
		}
	}
	return strings.NewReplacer(pairs...).Replace(text)
}

func recall[T any](brain *template.Brain, d dependency.Dependency) (T, bool) {
	data, _ := brain.Recall(d)
	t, ok := data.(T)
	return t, ok
}

// secrets are the texts and numbers in a secret's data, at any depth, each with what is shown instead.
func secrets(data any) (pairs []string) {
	switch v := data.(type) {
	case map[string]any:
		for _, inner := range v {
			pairs = append(pairs, secrets(inner)...)
		}
	case []any:
		for _, inner := range v {
			pairs = append(pairs, secrets(inner)...)
		}
	case string:
		if v != "" {
			pairs = append(pairs, v, "[redacted]")
		}
	case json.Number: // a short one may be that of a line
		if len(v) > 3 {
			pairs = append(pairs, v.String(), "[redacted]")
		}
	}
	return pairs
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
