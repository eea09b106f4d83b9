package render

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	texttemplate "text/template"
	"time"

	"github.com/hashicorp/consul-template/dependency"
	"pgregory.net/rapid"
)

// bench is a template with its own data and no Consul.
type bench struct {
	t *testing.T
	*Set
	executed []string // "main", or the name and argument of a partial
}

func newBench(t *testing.T, text string, funcs func(func(string), Ask) texttemplate.FuncMap) *bench {
	t.Helper()
	b := &bench{t: t}
	opts := Options{Log: slog.New(slog.DiscardHandler), Executed: func(partial string, arg any, _ time.Duration, _ error) {
		name := "main"
		if partial != "" {
			name = fmt.Sprint(partial, " ", arg)
		}
		b.executed = append(b.executed, name)
	}}
	var err error
	if b.Set, err = NewSet([]Spec{{Name: "out", Source: "out.ctmpl", FilePrefix: "/etc/x.", MapPrefix: "/etc/x.", Text: text, Funcs: funcs}}, opts); err != nil {
		t.Fatal(err)
	}
	return b
}

// update brings the text up to date, and reports whether it is good and complete.
func (b *bench) update() bool {
	b.Update()
	return b.main().good != nil && b.main().complete()
}

func (b *bench) version() *version                   { return b.templates[0].current }
func (b *bench) main() *fragment                     { return b.version().main }
func (b *bench) partials() map[fragmentKey]*fragment { return b.version().partials }

// service sets a service's ports.
func (b *bench) service(name string, ports ...int) {
	b.t.Helper()
	q, err := dependency.NewHealthServiceQuery(name)
	if err != nil {
		b.t.Fatal(err)
	}
	list := []*dependency.HealthService{}
	for _, port := range ports {
		list = append(list, &dependency.HealthService{Node: "n", ID: fmt.Sprint(name, port), Name: name, Port: port})
	}
	b.Remember(q, list)
}

func (b *bench) services(names ...string) {
	b.t.Helper()
	q, err := dependency.NewCatalogServicesQuery("")
	if err != nil {
		b.t.Fatal(err)
	}
	list := []*dependency.CatalogSnippet{}
	for _, name := range names {
		list = append(list, &dependency.CatalogSnippet{Name: name})
	}
	b.Remember(q, list)
}

// wants updates the text and compares it and the executions.
func (b *bench) wants(text string, executed ...string) {
	b.t.Helper()
	b.executed = nil
	if !b.update() {
		b.t.Fatalf("not complete: %v %s", b.main().missing, b.main().failure)
	}
	if b.main().text() != text {
		b.t.Fatalf("text %q, want %q", b.main().text(), text)
	}
	if got := strings.Join(b.executed, ", "); got != strings.Join(executed, ", ") {
		b.t.Errorf("executed %s, want %s", got, executed)
	}
}

const byPartial = `{{ define "ports" }}{{ range service . }}{{ .Port }} {{ end }}{{ end -}}
{{ range services }}{{ .Name }}: {{ partial "ports" .Name }}
{{ end }}`

func TestPartialIsExecutedForWhatChanged(t *testing.T) {
	b := newBench(t, byPartial, nil)
	if b.update() {
		t.Fatal("complete without any data")
	}
	b.services("a", "b")
	if b.update() {
		t.Fatal("complete without the services")
	}
	b.service("a", 1)
	if b.update() {
		t.Fatal("complete without b")
	}
	b.service("b", 2)
	b.wants("a: 1 \nb: 2 \n", "ports b", "main")
	b.wants("a: 1 \nb: 2 \n")
	b.service("b", 3, 4)
	b.wants("a: 1 \nb: 3 4 \n", "ports b", "main")
	b.service("b", 3, 4) // another answer with the same content
	b.wants("a: 1 \nb: 3 4 \n", "ports b")
	b.services("b")
	b.wants("b: 3 4 \n", "main")
	if len(b.partials()) != 1 {
		t.Errorf("%d partials are kept, want 1", len(b.partials()))
	}
}

func TestPartialInPartial(t *testing.T) {
	b := newBench(t, `{{ define "outer" }}<{{ partial "inner" . }}{{ template "plain" . }}>{{ end -}}
{{ define "inner" }}{{ range service . }}{{ .Port }}{{ end }}{{ end -}}
{{ define "plain" }}{{ range service "c" }}{{ .Port }}{{ end }}{{ end -}}
{{ partial "outer" "a" }}{{ partial "outer" "b" }}{{ partial "inner" "a" }}`, nil)
	b.service("a", 1)
	b.service("b", 2)
	b.service("c", 3)
	b.wants("<13><23>1", "inner a", "outer a", "inner b", "outer b", "main")
	b.service("a", 4)
	b.wants("<43><23>4", "inner a", "outer a", "main")
	b.service("c", 5)
	b.update()
	if b.main().text() != "<45><25>4" {
		t.Errorf("text %q", b.main().text())
	}
}

// A partial gives the same text as the library's executeTemplate.
func TestPartialIsExecuteTemplate(t *testing.T) {
	texts := []string{
		byPartial,
		"{{ define `a b` }}{{ if eq . `x` -}} \n yes {{- else if . }} other {{ else }} nothing {{ end }}{{ end }}" +
			"{{ partial `a b` `x` }}|{{ partial `a b` `y` }}|{{ partial `a b` `` }}",
		`{{ define "x" }}{{ with $v := . }}{{ range $i, $e := split "," $v }}{{ if eq $i 2 }}{{ break }}{{ end }}{{ if eq $e "b" }}{{ continue }}{{ end }}` +
			`{{ $e | printf "%q %d" | toUpper }}{{ end }}{{ else }}{{ "{{ none }}" }}{{ end }}{{/* c */}}{{ end }}{{ partial "x" "a,b,c" }} {{ partial "x" "" }}`,
		"{{ define `u` }}a {{ . }} {\n{{- if . }} x {\n  {{- range split `,` . }} {\n{{- . }}{\n{{ else }}{{ end }}}{\n{{- else }}{{ end }}{\n{{- end }}{{ partial `u` `a,b` }}{{ partial `u` `` }}",
		`{{ define "n" }}{{ add . 1 }} {{ printf "%T" . }} {{ 0x1F }} {{ 1.50 }} {{ 'x' }} {{ "\t\u00e9" }}{{ end }}{{ partial "n" 41 }}`,
		`{{ block "b" "x" }}[{{ . }}]{{ end }}{{ define "c" }}{{ template "b" . }}{{ executeTemplate "b" "z" }}{{ end }}{{ partial "c" "y" }}`,
	}
	for n, text := range texts {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			var got [2]string
			for i, text := range []string{text, strings.ReplaceAll(text, "partial ", "executeTemplate ")} {
				b := newBench(t, text, nil)
				b.services("a", "b")
				b.service("a", 1, 2)
				b.service("b")
				if !b.update() {
					t.Fatalf("%v %s", b.main().missing, b.main().failure)
				}
				got[i] = b.main().text()
			}
			if got[0] != got[1] || got[0] == "" {
				t.Errorf("partial %q, executeTemplate %q", got[0], got[1])
			}
		})
	}
}

// A partial is parsed only with the texts that it may execute.
func TestDefinesOfAPartial(t *testing.T) {
	const others = `{{ define "b" }}{{ template "d" }}{{ end }}{{ define "c" }}{{ end }}{{ define "d" }}{{ end }}{{ define "e\"f" }}{{ end }}`
	for call, want := range map[string]string{
		`none`:                                             `a`,
		`{{ template "c" }}`:                               `a c`,
		`{{ executeTemplate "b" "x" }}`:                    `a b d`,
		`{{ "x" | executeTemplate "c" }}`:                  `a c`,
		`{{ "executeTemplate" }}`:                          `a b c d e"f`,
		"{{ executeTemplate `c` }}":                        `a b c d e"f`,
		`{{ executeTemplate "e\"f" }}`:                     `a b c d e"f`,
		`{{ executeTemplate (print "c") }}`:                `a b c d e"f`,
		`{{ executeTemplate "c" }}{{ executeTemplate . }}`: `a b c d e"f`,
	} {
		b := newBench(t, others+`{{ define "a" }}`+call+`{{ end }}`, nil)
		if got := slices.Sorted(slices.Values(b.version().closure("a"))); strings.Join(got, " ") != want {
			t.Errorf("%s: %q, want %s", call, got, want)
		}
	}
}

// low fails on a high port.
func low(func(string), Ask) texttemplate.FuncMap {
	return texttemplate.FuncMap{"low": func(port int) (int, error) {
		if port > 9 {
			return 0, errors.New("too high")
		}
		return port, nil
	}}
}

func TestPartialThatFails(t *testing.T) {
	b := newBench(t, `{{ define "ports" }}
{{- range service . }}
  {{- low .Port }} {{ end }}{{ end -}}
{{ range services }}{{ .Name }}: {{ partial "ports" .Name }}
{{ end }}`, low)
	b.services("a", "b")
	b.service("a", 10)
	b.service("b", 11)
	const failure = `partial "ports" of a: out.ctmpl:3:6: executing "ports" at <low .Port>: error calling low: too high`
	if b.update() || b.main().failure != failure {
		t.Fatalf("a partial that fails for all: %q, want %q", b.main().failure, failure)
	}
	b.service("b", 1)
	b.update()
	b.wants("a: \nb: 1 \n")
	if !b.partials()[fragmentKey{"ports", "a"}].leftOut()[failure] {
		t.Errorf("left out %v", b.partials()[fragmentKey{"ports", "a"}].leftOut())
	}
	b.service("a", 2)
	b.wants("a: 2 \nb: 1 \n", "ports a", "main")
	b.service("a", 12)
	b.update()
	b.wants("a: 2 \nb: 1 \n")
	b.service("a", 3)
	b.update()
	b.wants("a: 3 \nb: 1 \n")
}

func TestPartialRefuses(t *testing.T) {
	for call, want := range map[string]string{
		`partial "nosuch" 1`:         `there is no {{ define "nosuch" }}`,
		`partial "p" 1 2`:            `takes a name and one argument, not 2`,
		`partial "p" (sprig_list 1)`: `its argument must be a string, a number or a bool`,
		`asFile "../x" "y"`:          `"../x" must be a name like routes.map`,
		`asFile ".." "y"`:            `".." must be a name like routes.map`,
		`directory "x"`:              `"x" is not an absolute path`,
	} {
		b := newBench(t, `{{ define "p" }}{{ end }}{{ `+call+` }}`, nil)
		if b.update() || !strings.Contains(b.main().failure, want) {
			t.Errorf("%s: %q, want %q", call, b.main().failure, want)
		}
	}
}

func TestAsFile(t *testing.T) {
	b := newBench(t, `{{ define "one" }}{{ asFile "one.map" . }} {{ end }}{{ partial "one" "x" }}{{ asFile "routes" "y" }}`, nil)
	const x, y = "/etc/x.one-2d711642b726b044.map", "/etc/x.routes-a1fce4363854ff88"
	b.wants(x+" "+y, "one x", "main")
	if files, _ := b.version().files(); len(files) != 2 || files[x] != "x" || files[y] != "y" {
		t.Errorf("files %v", files)
	}
}

func TestAsMap(t *testing.T) {
	b := newBench(t, `{{ define "one" }}{{ range services }}{{ asMap "routes.map" .Name }}{{ end }}{{ end }}{{ partial "one" "x" }}`, nil)
	published := ""
	for _, name := range []string{"shop", "shop", "cart"} {
		b.services(name)
		b.update()
		b.Publish(func(p Published) { published += p.Text + ":" + p.Maps["/etc/x.routes.map"] + " " })
	}
	if want := "/etc/x.routes.map:shop /etc/x.routes.map:cart "; published != want {
		t.Errorf("published %q, want %q: the map has changed, and the text has not", published, want)
	}
	for text, want := range map[string]string{
		`{{ asMap "routes" "y" }}`:                       "must be a name like routes.map",
		`{{ asMap "../routes.map" "y" }}`:                "must be a name like routes.map",
		`{{ asMap "a.map" "y" }}{{ asMap "a.map" "z" }}`: "defined twice with different texts",
	} {
		b := newBench(t, text, nil)
		if b.update() || !strings.Contains(b.main().failure, want) {
			t.Errorf("%s: %q, want %q", text, b.main().failure, want)
		}
	}
}

func TestPartialThatCallsItself(t *testing.T) {
	for _, text := range []string{
		`{{ define "a" }}{{ partial "a" . }}{{ end }}{{ partial "a" "x" }}`,
		`{{ define "a" }}{{ partial "b" . }}{{ end }}{{ define "b" }}{{ partial "a" . }}{{ end }}{{ partial "a" "x" }}`,
	} {
		b := newBench(t, text, nil)
		for range 2 {
			if b.update() || !strings.Contains(b.main().failure, `partial "a" of x calls itself`) {
				t.Errorf("%s: %q", text, b.main().failure)
			}
			b.service("web", 1)
		}
	}
}

// Partials that a failing template does not reach are kept.
func TestPartialsOfAFailingTemplate(t *testing.T) {
	b := newBench(t, `{{ define "p" }}{{ range service . }}{{ low .Port }}{{ end }} {{ end -}}
{{ partial "p" "a" }}{{ range service "c" }}{{ low .Port }}{{ end }} {{ partial "p" "b" }}`, low)
	b.service("a", 1)
	b.service("b", 2)
	b.service("c", 3)
	b.wants("1 3 2 ", "p a", "p b", "main")
	b.service("b", 12)
	b.update()
	b.service("c", 13)
	if b.update(); b.main().failure == "" {
		t.Fatal("it does not fail")
	}
	if len(b.partials()) != 2 {
		t.Errorf("%d partials are kept, want 2", len(b.partials()))
	}
	b.service("c", 4)
	b.update()
	if b.main().text() != "1 4 2 " {
		t.Errorf("%q, want the last good text of b", b.main().text())
	}
}

func TestErrorsShowNoSecrets(t *testing.T) {
	b := newBench(t, `{{ with secret "kv/data/x" }}{{ parseInt .Data.data.pin }}{{ end }}`, nil)
	q, err := dependency.NewVaultReadQuery("kv/data/x")
	if err != nil {
		t.Fatal(err)
	}
	b.main().used = map[string]dependency.Dependency{q.String(): q}
	b.Remember(q, &dependency.Secret{Data: map[string]any{"data": map[string]any{"pin": "hunter2", "list": []any{"deep"}}}})
	if got := b.version().redacted("parsing hunter2 and deep"); got != "parsing [redacted] and [redacted]" {
		t.Errorf("%q", got)
	}
}

// A failing fragment is executed again only if a dependency of it has changed, which the library does not report.
func TestWhatFailsIsExecutedForWhatChanged(t *testing.T) {
	b := newBench(t, `{{ define "ports" }}{{ range service . }}{{ low .Port }}{{ range service "c" }}{{ low .Port }}{{ end }} {{ end }}{{ end -}}
{{ partial "ports" "a" }}{{ partial "ports" "b" }}{{ range service "main" }}{{ .Port }}{{ end }}`, low)
	b.service("a", 10)
	b.service("b", 2)
	b.service("c", 3)
	b.service("main", 4)
	b.wants("23 4", "ports a", "ports b", "main")
	b.service("main", 5)
	b.wants("23 5", "main")
	b.service("a", 11) // it fails again, as before
	b.wants("23 5", "ports a")
	b.service("b", 12)
	b.wants("23 5", "ports b", "main")
	b.service("main", 6)
	b.wants("23 6", "main")
	b.service("a", 1)
	b.wants("13 23 6", "ports a", "main")
	// The kept text of b was made from c as well.
	b.service("c", 13)
	b.executed = nil
	b.update()
	if slices.Sort(b.executed); b.main().text() != "13 23 6" || !slices.Equal(b.executed, []string{"main", "ports a", "ports b"}) {
		t.Errorf("text %q, executed %q", b.main().text(), b.executed)
	}
	b.service("b", 4) // now it fails because of c, whose last good value is used
	b.wants("13 43 6", "ports b", "main")
	b.service("main", 7)
	b.wants("13 43 7", "main")
	b.service("c", 5)
	b.update()
	if want := "15 45 7"; b.main().text() != want {
		t.Errorf("text %q, want %q", b.main().text(), want)
	}
}

// The line of an error is looked up once.
func TestErrorIsLocatedOnce(t *testing.T) {
	calls := 0
	b := newBench(t, `{{ define "p" }}{{ range service . }}
{{ bad .Port }}{{ end }}{{ end }}{{ partial "p" "a" }}`, func(func(string), Ask) texttemplate.FuncMap {
		return texttemplate.FuncMap{"bad": func(port int) (int, error) { calls++; return 0, errors.New("no good") }}
	})
	const failure = `partial "p" of a: out.ctmpl:2:3: executing "p" at <bad .Port>: error calling bad: no good`
	for n, want := range []int{2, 3, 4} {
		b.service("a", n)
		if b.update(); b.main().failure != failure || calls != want {
			t.Errorf("%q after %d calls, want %q after %d", b.main().failure, calls, failure, want)
		}
	}
}

// Data that a failing template would use is watched, even if it does not exist yet.
func TestWhatAFailingTemplateUses(t *testing.T) {
	b := newBench(t, `{{ (index (service "a") 0).Port }} {{ keyOrDefault "k" "none" }} {{ fail "x" }}`, func(func(string), Ask) texttemplate.FuncMap {
		return texttemplate.FuncMap{"fail": func(string) (string, error) { return "", errors.New("always") }}
	})
	used := func(want ...string) {
		t.Helper()
		var got []string
		for key := range b.Used() {
			got = append(got, key)
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("used %q, want %q", got, want)
		}
	}
	b.usesOther = false
	if !b.Update() {
		t.Error("nobody is told")
	}
	used("health.service(a|passing)")
	b.service("a", 1)
	b.update()
	used("health.service(a|passing)", "kv.get(k)")
	if !strings.HasPrefix(b.main().failure, "out.ctmpl:1:68: executing") {
		t.Errorf("%q", b.main().failure)
	}
}

// The functions that record dependencies return the same as consul-template's own.
func TestTraceReturnsTheSame(t *testing.T) {
	text := `{{ range service "a" "any" }}{{ .Port }}{{ end }}{{ with $s := service "a" }}{{ len $s }}{{ (index $s 0).Name }}{{ end -}}
{{ range services }}{{ .Name }}{{ end }}{{ keyOrDefault "k" "none" }}{{ service "a" | toJSON | len }}{{ if keyExists "k" }}yes{{ else }}no{{ end }}`
	want := ""
	for _, traced := range []bool{false, true} {
		b := newBench(t, text, nil)
		b.services("a", "b")
		b.service("a", 1, 2)
		b.service("a|any", 1, 2)
		q, err := dependency.NewKVGetQuery("k")
		if err != nil {
			t.Fatal(err)
		}
		b.Remember(q, nil)
		if traced {
			b.main().failure = "so that it is traced"
		}
		if !b.update() {
			t.Fatalf("%v %s", b.main().missing, b.main().failure)
		}
		if !traced {
			want = b.main().text()
		} else if b.main().text() != want || want == "" {
			t.Errorf("%q, want %q", b.main().text(), want)
		}
	}
}

// Where the newest value of a dependency breaks the text, the last good value is used, together with the newest of all
// others.
func TestBrokenDatumKeepsItsLastGoodValue(t *testing.T) {
	const redirects, limits = "kv.block(lb/redirects)", "kv.block(lb/limits)"
	b := newBench(t, `{{ range service "a" }}{{ low .Port }} {{ end }}{{ range service "b" }}{{ .Port }} {{ end -}}
{{ with key "lb/redirects" | parseJSON }}{{ .to }}{{ end }} {{ with key "lb/limits" | parseJSON }}{{ .max }}{{ end }}`, low)
	set := func(path, value string) {
		t.Helper()
		q, err := dependency.NewKVGetQuery(path)
		if err != nil {
			t.Fatal(err)
		}
		q.EnableBlocking()
		b.Remember(q, value)
	}
	held := func(want ...string) {
		t.Helper()
		f := b.main()
		if (f.failure != "") != (len(want) > 0) {
			t.Errorf("failure %q", f.failure)
		}
		if got := slices.Sorted(maps.Keys(f.good.held)); !slices.Equal(got, want) {
			t.Errorf("held %q, want %q", got, want)
		}
		why, _ := b.Status()
		if len(want) > 0 && !strings.Contains(why, "keeping the last good value of "+strings.Join(want, ", ")+": out.ctmpl:") || len(want) == 0 && why != "" {
			t.Errorf("status %q", why)
		}
	}
	b.service("a", 1)
	b.service("b", 2)
	set("lb/redirects", `{"to": "x"}`)
	set("lb/limits", `{"max": 7}`)
	b.update()
	b.Publish(func(Published) {})
	b.wants("1 2 x 7")

	set("lb/redirects", `{"to": "y"`)
	b.wants("1 2 x 7", "main")
	held(redirects)
	b.service("a", 3)
	b.wants("3 2 x 7", "main")
	b.service("a", 3, 4)
	b.service("b")
	b.wants("3 4 x 7", "main")
	held(redirects)
	set("lb/limits", `{`)
	b.service("b", 5)
	b.wants("3 4 5 x 7", "main")
	held(limits, redirects)
	b.service("a", 11)
	b.service("b", 6)
	b.wants("3 4 6 x 7", "main")
	held("health.service(a|passing)", limits, redirects)
	set("lb/redirects", `{"to": "z"}`)
	b.wants("3 4 6 z 7", "main")
	held("health.service(a|passing)", limits)
	b.service("a", 8)
	set("lb/limits", `{"max": 9}`)
	b.wants("8 6 z 9", "main")
	held()
}

// A change rendered while a key is broken has its own age, not the key's: its time to go live is measured.
func TestSinceIsOfWhatIsInTheText(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, `{{ range service "a" }}{{ low .Port }} {{ end }}{{ range service "b" }}{{ .Port }} {{ end }}`, low)
		publish := func() (since time.Time) {
			b.update()
			b.Publish(func(p Published) { since = p.Since })
			return since
		}
		b.service("a", 1)
		b.service("b", 2)
		publish()
		b.service("a", 11)
		publish()
		time.Sleep(time.Hour)
		b.service("b", 3)
		if since := publish(); time.Since(since) != 0 {
			t.Errorf("the change is %s old", time.Since(since))
		}
		time.Sleep(time.Hour)
		b.service("a", 4)
		if since := publish(); time.Since(since) != 0 {
			t.Errorf("the change that mends it is %s old", time.Since(since))
		}
	})
}

// A partial that uses old data makes the templater not ready, like a template. A partial that has never worked is ignored.
func TestFailingPartialIsInTheStatus(t *testing.T) {
	b := newBench(t, `{{ define "p" }}{{ range service . }}{{ low .Port }} {{ end }}{{ end }}{{ range services }}{{ partial "p" .Name }}{{ end }}`, low)
	b.services("a", "b")
	b.service("a", 1)
	b.service("b", 12)
	b.update()
	b.Publish(func(Published) {})
	if why, waits := b.Status(); why != "" || waits {
		t.Errorf("%q", why)
	}
	b.service("a", 11)
	b.update()
	if why, waits := b.Status(); !strings.HasPrefix(why, `A partial fails, keeping the last good value of health.service(a|passing): partial "p" of a: out.ctmpl:1:`) || waits {
		t.Errorf("%q", why)
	}
	b.service("a", 2)
	b.update()
	if why, _ := b.Status(); why != "" {
		t.Errorf("%q", why)
	}
}

// However many values change at once and however many of them are broken: the text has the previous values of the broken
// ones and the new values of the others.
func TestBrokenDataProperties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var text strings.Builder
		const services = 12
		for n := range services {
			fmt.Fprintf(&text, `{{ range service "s%d" }}{{ low .Port }} {{ end }}`, n)
		}
		b := newBench(t, text.String(), low)
		want := make([]int, services)
		for n := range services {
			b.service(fmt.Sprint("s", n), 1)
			want[n] = 1
		}
		b.update()
		for range rapid.IntRange(1, 5).Draw(rt, "rounds") {
			for n := range services {
				switch rapid.IntRange(0, 2).Draw(rt, "change") {
				case 1:
					want[n] = rapid.IntRange(1, 9).Draw(rt, "port")
					b.service(fmt.Sprint("s", n), want[n])
				case 2:
					b.service(fmt.Sprint("s", n), rapid.IntRange(10, 19).Draw(rt, "bad"))
				}
			}
			b.update()
			expected := strings.Trim(fmt.Sprint(want), "[]") + " "
			if b.main().text() != expected {
				rt.Fatalf("%q, want %q", b.main().text(), expected)
			}
		}
	})
}

// Missing data does not delay anything that does not need it, once a text exists.
func TestLateDataHoldsUpNothing(t *testing.T) {
	for _, text := range []string{
		`{{ range services }}{{ range service .Name }}{{ .Port }} {{ end }}{{ end }}`,
		`{{ define "p" }}{{ range service . }}{{ .Port }} {{ end }}{{ end }}{{ range services }}{{ partial "p" .Name }}{{ end }}`,
	} {
		b := newBench(t, text, nil)
		q, err := dependency.NewHealthServiceQuery("x")
		if err != nil {
			t.Fatal(err)
		}
		b.services("a", "x")
		b.service("a", 1)
		b.update()
		if b.Late(q, errors.New("no path to it")); b.update() {
			t.Error("a first text without some of the data")
		}
		b.service("x")
		b.update()
		b.wants("1 ")
		b.Publish(func(Published) {})
		b.Forget(q)
		b.services("a")
		b.wants("1 ", "main")
		b.services("a", "x")
		b.update()
		b.service("a", 2)
		if b.update() {
			t.Error("it is not waited for")
		}
		if !b.Late(q, errors.New("no path to it")) {
			t.Error("nothing is to be rendered")
		}
		b.update()
		if got := b.main().text(); got != "2 " || !b.main().complete() {
			t.Errorf("%q", got)
		}
		b.service("a", 3)
		b.update()
		if got := b.main().text(); got != "3 " {
			t.Errorf("%q", got)
		}
		if why, _ := b.Status(); !strings.Contains(why+strings.Join(slices.Collect(maps.Keys(b.LeftOut())), ""), "no data of health.service(x|passing): no path to it") {
			t.Errorf("%q, left out %v", why, b.LeftOut())
		}
		b.service("x", 4)
		b.update()
		if got := b.main().text(); got != "3 4 " || b.Failing() != 0 {
			t.Errorf("%q", got)
		}
	}
}
