package templater

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	texttemplate "text/template"
	"time"

	"berth/deploy/testenv"
	"berth/templates/group"
)

// settings is a configuration exposed by template functions: its name, its value, and the ports of a service.
type settings struct{ which, service atomic.Value }

func newSettings(which, service string) *settings {
	s := &settings{}
	s.set(which, service)
	return s
}

func (s *settings) set(which, service string) {
	s.which.Store(which)
	s.service.Store(service)
}

func (s *settings) funcs(_ func(string), ask Ask) texttemplate.FuncMap {
	return texttemplate.FuncMap{
		"which": func() (string, error) {
			if s.which.Load() == "bad" {
				return "", errors.New("there is no such thing")
			}
			return s.which.Load().(string), nil
		},
		"ports": func() (ports []int) {
			for _, i := range ask(s.service.Load().(string)) {
				ports = append(ports, i.Service.Port)
			}
			return ports
		},
	}
}

// rendersTo compares what Render returns with the text of the template "out".
func (r *harness) rendersTo(text string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), deadline)
	defer cancel()
	if texts, err := r.Render(ctx); err != nil || texts["out"].Text != text {
		r.t.Fatalf("rendered %+v, %v, want %q", texts, err, text)
	}
}

// failsWith expects Render to fail, with each of the texts in the error.
func (r *harness) failsWith(ctx context.Context, parts ...string) {
	r.t.Helper()
	texts, err := r.Render(ctx)
	if err == nil || len(texts) > 0 {
		r.t.Fatalf("rendered %+v, want an error", texts)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			r.t.Errorf("error %q lacks %q", err, part)
		}
	}
}

// changes reports whether Changed receives a value within a time.
func (r *harness) changes(within time.Duration) bool {
	select {
	case <-r.Changed():
		return true
	case <-time.After(within):
		return false
	}
}

func TestRenderOnDemand(t *testing.T) {
	consul := newFakeConsul(t)
	consul.set("db", 1)
	s := newSettings("one", "db")
	r := newHarness(t, consul, Options{Templates: []Template{{
		Name: "out", Source: "out.ctmpl", Funcs: s.funcs,
		Text: `{{ define "p" }}{{ which }}{{ end }}{{ partial "p" . }}` + "\n{{ which }} {{ ports }}",
	}}}).run()
	r.rendersTo("one\none [1]")
	s.set("two", "db")
	r.rendersTo("two\ntwo [1]")
	s.set("bad", "db")
	r.failsWith(t.Context(), "out.ctmpl:2:3:", "there is no such thing")
	r.failsWith(t.Context(), "out.ctmpl:2:3:", "there is no such thing") // the old text is not returned as new
	s.set("one", "db")
	r.rendersTo("one\none [1]") // and back
	consul.setDown(true)
	r.waitLogged("requests to Consul fail")
	s.set("two", "db")
	r.rendersTo("two\ntwo [1]") // known data is good enough
}

// Data that only a new configuration needs is waited for, as long as the caller waits.
func TestRenderWaitsForData(t *testing.T) {
	consul := newFakeConsul(t)
	consul.set("db", 1)
	consul.set("other", 2)
	consul.change(func() { consul.broken = "other" })
	s := newSettings("one", "db")
	r := newHarness(t, consul, Options{Templates: []Template{{
		Name: "out", Source: "out.ctmpl", Funcs: s.funcs, Text: `{{ which }}{{ index ports 0 }}`,
	}}}).run()
	r.rendersTo("one1")
	s.set("two", "other")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	r.failsWith(ctx, "waiting for instances(other)", "No cluster leader", "out.ctmpl:1:")

	done := make(chan struct{})
	go func() {
		defer close(done)
		r.rendersTo("two2")
	}()
	asks := consul.asks("/v1/health/service/other")
	testenv.Until(t, deadline, "another query", func() bool { return consul.asks("/v1/health/service/other") > asks })
	select {
	case <-done:
		t.Error("rendered without the data")
	default:
	}
	consul.change(func() { consul.broken = "" })
	<-done
}

func TestPartialThatFailsIsNotLeftOut(t *testing.T) {
	s := newSettings("bad", "db")
	r := newHarness(t, newFakeConsul(t), Options{Templates: []Template{{
		Name: "out", Source: "out.ctmpl", Funcs: s.funcs,
		Text: `{{ define "p" }}{{ if eq . "b" }}{{ which }}{{ end }}{{ end }}` + "\n" + `{{ partial "p" "a" }}{{ partial "p" "b" }}`,
	}}}).run()
	r.want("\n") // the proxy's configuration is rendered without it
	r.failsWith(t.Context(), `partial "p" of b: out.ctmpl:1:`, "there is no such thing")
}

func TestChanged(t *testing.T) {
	consul := newFakeConsul(t)
	consul.set("db", 1)
	s := newSettings("one", "db")
	path := testenv.File(t, t.TempDir(), "out.ctmpl", "{{ which }}{{ range ports }} {{ . }}{{ if eq . 13 }}{{ fail }}{{ end }}{{ end }}")
	funcs := func(report func(string), ask Ask) texttemplate.FuncMap {
		all := s.funcs(report, ask)
		all["fail"] = func() (string, error) { return "", errors.New("bad luck") }
		return all
	}
	r := newHarness(t, consul, Options{Templates: []Template{{Name: "out", File: path, Funcs: funcs}}}).run()
	r.rendersTo("one 1")
	s.set("two", "db")
	r.rendersTo("two 1")
	if r.changes(0) {
		t.Error("Render itself counts as a change")
	}
	consul.set("db", 1, 2)
	if !r.changes(deadline) {
		t.Fatal("a new instance is no change")
	}
	r.rendersTo("two 1 2")
	consul.set("db", 13)
	if !r.changes(deadline) {
		t.Fatal("that it fails is no change")
	}
	r.failsWith(t.Context(), path+":1:", "bad luck")
	consul.set("db", 1)
	if !r.changes(deadline) {
		t.Fatal("that it works again is no change")
	}
	r.rendersTo("two 1")
	testenv.File(t, filepath.Dir(path), filepath.Base(path), "new {{ which }}")
	if !r.changes(deadline) {
		t.Fatal("an edited template is no change")
	}
	r.rendersTo("new two")
}

// A template that was just edited is used, or is the reason for the error.
func TestRenderReadsFiles(t *testing.T) {
	dir := t.TempDir()
	path := testenv.File(t, dir, "out.ctmpl", "1 {{ which }}")
	s := newSettings("x", "db")
	r := newHarness(t, newFakeConsul(t), Options{Templates: []Template{{Name: "out", File: path, Funcs: s.funcs}}}).run()
	r.rendersTo("1 x")
	testenv.File(t, dir, "out.ctmpl", "2 {{ which }}")
	r.rendersTo("2 x")
	testenv.File(t, dir, "out.ctmpl", "3\n{{ if }}")
	r.failsWith(t.Context(), "the changed template is not used", path+":2:")
	testenv.File(t, dir, "out.ctmpl", "4\n{{ which }}{{ nosuch }}")
	r.failsWith(t.Context(), path+":2:", "nosuch")
	s.set("bad", "db")
	testenv.File(t, dir, "out.ctmpl", "5\n{{ which }}")
	r.failsWith(t.Context(), path+":2:", "no such thing")
	s.set("y", "db")
	r.rendersTo("5\ny")
}

func TestRenderWithoutRun(t *testing.T) {
	consul := newFakeConsul(t)
	consul.change(func() { consul.broken = "db" })
	s := newSettings("x", "db")
	r := newHarness(t, consul, Options{Templates: []Template{{Name: "out", Source: "out.ctmpl", Text: "{{ ports }}", Funcs: s.funcs}}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	r.failsWith(ctx, "the templater is not running")
	r.run()
	failed := make(chan error, 1)
	go func() {
		_, err := r.Render(t.Context())
		failed <- err
	}()
	r.waitLogged("requests to Consul fail")
	r.stop()
	if err := <-failed; !errors.Is(err, errStopped) {
		t.Errorf("Run has ended: %v", err)
	}
	r.failsWith(t.Context(), errStopped.Error())
}

// The data of an application's template is watched: its configuration, its binds, its group.
func TestRenderForAGroup(t *testing.T) {
	consul := newFakeConsul(t)
	consul.set("redis")
	consul.set("app-prod", 80, 81)
	var config atomic.Value
	config.Store(map[string]any{"greeting": "Hello"})
	funcs := group.Funcs(group.Options{
		Config: func() map[string]any { return config.Load().(map[string]any) },
		Binds:  []group.Binding{{Name: "cache", Service: "redis"}, {Name: "unused", Service: "unused"}},
		Self: func() group.Identity {
			return group.Identity{Name: "app", Group: "prod", Service: "app-prod", Instance: group.Instance{ID: "app-prod-82", Host: "10.0.0.2", Port: 82}}
		},
	})
	r := newHarness(t, consul, Options{Templates: []Template{{
		Name: "out", Source: "out.ctmpl", Funcs: funcs,
		Text: `{{ cfg "greeting" }} {{ with bind "cache" }}{{ .Address }}{{ else }}none{{ end }} {{ range (svc).Instances }}{{ .Port }} {{ end }}`,
	}}}).run()
	r.rendersTo("Hello none 80 81 82 ")
	consul.set("redis", 6379)
	if !r.changes(deadline) {
		t.Fatal("a new instance of a bind is no change")
	}
	r.rendersTo("Hello 10.0.0.1:6379 80 81 82 ")
	consul.set("app-prod", 81, 82)
	if !r.changes(deadline) {
		t.Fatal("another instance of the group is no change")
	}
	r.rendersTo("Hello 10.0.0.1:6379 81 82 ")
	config.Store(map[string]any{"greting": "Sup"})
	r.failsWith(t.Context(), `out.ctmpl:1:3: `, `there is no key "greeting" (did you mean "greting"?)`)
	config.Store(map[string]any{"greeting": "Sup"})
	r.rendersTo("Sup 10.0.0.1:6379 81 82 ")
	if asks := consul.asks("/v1/health/service/unused"); asks > 0 {
		t.Errorf("%d queries for a service that no template asks for", asks)
	}
}
