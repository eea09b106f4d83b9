package templater

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	texttemplate "text/template"
	"time"

	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul/api"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"berth/deploy/testenv"
)

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard) // consul-template's own
	// The library's file watch checks its stop channel only when the file changes, and a Vault watch only when the lease
	// expires.
	const library = "github.com/hashicorp/consul-template/dependency."
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction(library+"(*FileQuery).watch.func1"),
		goleak.IgnoreAnyFunction(library+"(*VaultWriteQuery).Fetch"), goleak.IgnoreAnyFunction(library+"(*VaultPKIQuery).Fetch"))
}

const deadline = 30 * time.Second

const everyService = `{{ range services }}{{ $name := .Name }}{{ range service .Name }}{{ $name }}:{{ .Port }} {{ end }}{{ end }}`

// harness is a Templater with a fake Consul.
type harness struct {
	t *testing.T
	*Templater
	consul  *fakeConsul
	updates chan Published
	log     *testenv.Log
	metrics *prometheus.Registry
	cancel  context.CancelFunc
	done    chan error
}

func newHarness(t *testing.T, consul *fakeConsul, opts Options) *harness {
	t.Helper()
	r := &harness{
		t: t, consul: consul, updates: make(chan Published, 1000), log: &testenv.Log{},
		metrics: prometheus.NewRegistry(), done: make(chan error, 1),
	}
	opts.Consul = &api.Config{Address: consul.URL, Token: "s3cret-token"}
	opts.Log = slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	opts.Metrics = r.metrics
	if opts.Publish == nil {
		opts.Publish = func(p Published) { r.updates <- p }
	}
	var err error
	if r.Templater, err = New(opts); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *harness) run() *harness {
	var ctx context.Context
	ctx, r.cancel = context.WithCancel(context.Background())
	go func() { r.done <- r.Run(ctx) }()
	r.t.Cleanup(r.stop)
	return r
}

func (r *harness) stop() {
	if r.cancel == nil {
		return
	}
	r.cancel()
	r.cancel = nil
	select {
	case err := <-r.done:
		if err != nil {
			r.t.Errorf("Run: %v", err)
		}
	case <-time.After(deadline):
		r.t.Error("Run did not return")
	}
}

// next returns the next text of the template "out".
func (r *harness) next() string {
	r.t.Helper()
	return r.nextOf("out").Text
}

// nextOf returns the next published text of a template, skipping texts of other templates.
func (r *harness) nextOf(name string) Published {
	r.t.Helper()
	for {
		if p := r.nextAny(); p.Name == name {
			return p
		}
	}
}

func (r *harness) nextAny() Published {
	r.t.Helper()
	select {
	case p := <-r.updates:
		return p
	case <-time.After(deadline):
		r.t.Fatalf("nothing published; log:\n%s", r.log)
		panic("unreachable")
	}
}

// wantNext compares the next published text with a text of a template.
func (r *harness) wantNext(name, text string) {
	r.t.Helper()
	if p := r.nextAny(); p.Name != name || p.Text != text {
		r.t.Errorf("published %q of %s, want %q of %s", p.Text, p.Name, text, name)
	}
}

func (r *harness) want(text string) {
	r.t.Helper()
	if got := r.next(); got != text {
		r.t.Fatalf("published %q, want %q", got, text)
	}
}

func (r *harness) wantNothingMore() {
	r.t.Helper()
	select {
	case p := <-r.updates:
		r.t.Errorf("published %q of %s, want nothing", p.Text, p.Name)
	default:
	}
}

func (r *harness) wantLogged(line string, times int) {
	r.t.Helper()
	if got := strings.Count(r.log.String(), line); got != times {
		r.t.Errorf("%q logged %d times, want %d:\n%s", line, got, times, r.log)
	}
}

func (r *harness) waitLogged(line string) {
	r.t.Helper()
	testenv.Until(r.t, deadline, "log line "+line, func() bool { return strings.Contains(r.log.String(), line) })
}

func (r *harness) waitReady() {
	r.t.Helper()
	testenv.Until(r.t, deadline, "ready", func() bool { return r.Ready() == nil })
}

// waitNotReady waits until the templater is not ready for a reason that contains this, "" for any, and returns the reason.
func (r *harness) waitNotReady(because string) (reason string) {
	r.t.Helper()
	testenv.Until(r.t, deadline, "not ready: "+because, func() bool {
		err := r.Ready()
		if err != nil {
			reason = err.Error()
		}
		return err != nil && strings.Contains(reason, because)
	})
	return reason
}

func (r *harness) metric(name string) float64 {
	r.t.Helper()
	families, err := r.metrics.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			m := f.GetMetric()[0]
			return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	r.t.Fatalf("no metric %s", name)
	return 0
}

func one(text string) []Template {
	return []Template{{Name: "out", Source: "out.ctmpl", Text: text}}
}

func TestFirstPublishIsComplete(t *testing.T) {
	consul := newFakeConsul(t)
	for i := range 20 {
		consul.set(fmt.Sprintf("s%02d", i), 8000+i)
	}
	r := newHarness(t, consul, Options{Templates: one(everyService)})
	if r.Ready() == nil {
		t.Error("ready before Run")
	}
	start := time.Now()
	r.run()
	p := r.nextAny()
	if n := strings.Count(p.Text, ":"); n != 20 {
		t.Errorf("%d services in %q", n, p.Text)
	}
	if p.Since.Before(start) || p.Since.After(time.Now()) {
		t.Errorf("since %v, started %v", p.Since, start)
	}
	r.waitReady()
	r.wantNothingMore()
	if up := r.metric("berth_templater_consul_up"); up != 1 {
		t.Errorf("consul_up %v", up)
	}
	if r.metric("berth_templater_renders_total") != r.metric("berth_templater_render_seconds") {
		t.Error("renders and their durations differ in number")
	}
}

func TestChangeIsPublished(t *testing.T) {
	consul := newFakeConsul(t)
	consul.set("web", 1)
	r := newHarness(t, consul, Options{Templates: one(everyService)}).run()
	r.want("web:1 ")
	before := time.Now()
	consul.set("web", 1, 2)
	p := r.nextAny()
	if p.Text != "web:1 web:2 " || p.Since.Before(before) {
		t.Errorf("published %+v, changed at %v", p, before)
	}
	consul.set("web")
	r.want("")
}

// The function instances accepts services that consul-template's own function refuses, and an impossible name does no harm.
func TestInstances(t *testing.T) {
	consul := newFakeConsul(t)
	consul.set("Web_App.v1", 1, 2)
	consul.set("hc name", 3)
	consul.set("a/../b", 4)
	r := newHarness(t, consul, Options{Templates: one(`{{ range services }}{{ .Name }}:
{{- range instances .Name }} {{ .Service.ID }}@{{ .Node.Address }}={{ .Checks.AggregatedStatus }}{{ end }}
{{ end }}`)}).run()
	const others = "Web_App.v1: Web_App.v1-1@10.0.0.1=passing Web_App.v1-2@10.0.0.1=passing\na/../b:\n"
	r.want(others + "hc name: hc name-3@10.0.0.1=passing\n")
	r.waitReady()
	r.waitLogged(`Consul's API cannot query a name like this`)
	consul.set("hc name", 3, 5)
	r.want(others + "hc name: hc name-3@10.0.0.1=passing hc name-5@10.0.0.1=passing\n")
	consul.restartEmpty() // the guard knows these lists
	consul.set("hc name", 5)
	testenv.Until(t, deadline, "another query after the restart", func() bool { return consul.waits("/v1/health/service/hc name", 6) })
	r.wantNothingMore()
}

func TestUnchangedTextIsNotPublished(t *testing.T) {
	consul := newFakeConsul(t)
	consul.set("web", 1)
	r := newHarness(t, consul, Options{Templates: one(`{{ len (service "web") }}`)}).run()
	r.want("1")
	renders := r.metric("berth_templater_renders_total")
	consul.set("web", 2)
	testenv.Until(t, deadline, "second render", func() bool { return r.metric("berth_templater_renders_total") > renders })
	consul.set("web", 2, 3)
	r.want("2")
}

func TestTemplateWithoutDependencies(t *testing.T) {
	start := time.Now()
	r := newHarness(t, newFakeConsul(t), Options{Templates: one("hello")}).run()
	if p := r.nextAny(); p.Text != "hello" || p.Since.Before(start) {
		t.Errorf("published %+v", p)
	}
	r.waitReady()
}

func TestBurstCostsOneRender(t *testing.T) {
	const n = 50
	consul := newFakeConsul(t)
	for i := range n {
		consul.set(fmt.Sprintf("s%02d", i), 1)
	}
	updates, release := make(chan string, 100), make(chan struct{})
	r := newHarness(t, consul, Options{
		Templates: one(everyService),
		Publish: func(p Published) {
			updates <- p.Text
			<-release // blocks Run, so that the burst queues up
		},
	})
	r.run()
	<-updates
	release <- struct{}{}
	consul.set("s00", 2)
	<-updates

	renders := r.metric("berth_templater_renders_total")
	for i := range n {
		consul.set(fmt.Sprintf("s%02d", i), 3)
	}
	// A view asks again once its change is queued.
	testenv.Until(t, deadline, "all changes queued", func() bool {
		for i := range n {
			name := fmt.Sprintf("s%02d", i)
			consul.mu.Lock()
			index := consul.services[name].index
			consul.mu.Unlock()
			if !consul.waits("/v1/health/service/"+name, index) {
				return false
			}
		}
		return true
	})
	close(release)
	if text := <-updates; strings.Count(text, ":3") != n {
		t.Errorf("published %q", text)
	}
	if got := r.metric("berth_templater_renders_total") - renders; got != 1 {
		t.Errorf("%v renders, want 1", got)
	}
}

func TestOutageKeepsTheLastText(t *testing.T) {
	consul := newFakeConsul(t)
	consul.set("web", 1)
	consul.set("api", 2)
	r := newHarness(t, consul, Options{Templates: one(everyService)}).run()
	r.want("api:2 web:1 ")
	r.waitReady()

	consul.setDown(true)
	if why := r.waitNotReady(""); !strings.Contains(why, "No cluster leader") {
		t.Errorf("not ready: %s", why)
	}
	testenv.Until(t, deadline, "repeated queries", func() bool { return consul.asks("/v1/health/service/web") > 4 })
	if up := r.metric("berth_templater_consul_up"); up != 0 {
		t.Errorf("consul_up %v", up)
	}

	// Nothing has changed, and every query blocks for a minute: the recovery is still seen.
	consul.setDown(false)
	r.waitReady()
	r.wantNothingMore()
	r.wantLogged("level=WARN msg=\"requests to Consul fail, keeping the last good configuration\"", 1)
	r.wantLogged("level=INFO msg=\"Consul answers again\"", 1)
	r.wantLogged("s3cret-token", 0)

	consul.set("web", 1, 3)
	r.want("api:2 web:1 web:3 ")
}

func TestChangeDuringAnOutage(t *testing.T) {
	consul := newFakeConsul(t)
	consul.set("web", 1)
	r := newHarness(t, consul, Options{Templates: one(everyService), Grace: 100 * time.Millisecond}).run()
	r.want("web:1 ")
	asked := consul.asks("/v1/health/service/web")
	consul.setDown(true)
	testenv.Until(t, deadline, "the query for web to have failed", func() bool { return consul.asks("/v1/health/service/web") > asked+1 })
	consul.set("web", 2)
	consul.setDown(false)
	r.want("web:1 web:2 ")
	r.want("web:2 ")
}

func TestConsulDownAtTheStart(t *testing.T) {
	consul := newFakeConsul(t)
	consul.set("web", 1)
	consul.setDown(true)
	r := newHarness(t, consul, Options{Templates: one(everyService)}).run()
	r.waitLogged("requests to Consul fail")
	r.wantNothingMore()
	consul.setDown(false)
	r.want("web:1 ")
	r.waitReady()
}

func TestConnectionsCut(t *testing.T) {
	consul := newFakeConsul(t)
	consul.set("web", 1)
	// A query may fail, and then missing entries are kept for the grace.
	r := newHarness(t, consul, Options{Templates: one(everyService), Grace: time.Millisecond}).run()
	r.want("web:1 ")
	for port := 2; port < 5; port++ {
		consul.CloseClientConnections()
		consul.set("web", port)
		want := fmt.Sprintf("web:%d ", port)
		testenv.Until(t, deadline, want, func() bool { return r.next() == want })
	}
}

func TestConsulThatLostItsStateIsNotBelievedAtOnce(t *testing.T) {
	consul := newFakeConsul(t)
	consul.set("web", 1, 2)
	r := newHarness(t, consul, Options{Templates: one(everyService), Grace: 10 * time.Second}).run()
	r.want("web:1 web:2 ")
	consul.setDown(true)
	r.waitLogged("requests to Consul fail")
	consul.restartEmpty()
	r.waitLogged("Consul answers again")
	// The registrars put everything back one by one, and one more.
	consul.set("web", 2)
	consul.set("api", 3)
	r.want("api:3 web:1 web:2 ")
	consul.set("web", 1, 2)
	testenv.Until(t, deadline, "the state to be as before", func() bool { return consul.waits("/v1/health/service/web", 8) })
	r.wantNothingMore()
	// It is finally trusted again.
	consul.set("web", 1)
	r.want("api:3 web:1 ")
	consul.set("web", 4)
	r.want("api:3 web:4 ")
}

func TestConsulThatLostItsStateIsBelievedInTheEnd(t *testing.T) {
	consul := newFakeConsul(t)
	consul.set("web", 1)
	r := newHarness(t, consul, Options{Templates: one(everyService), Grace: 50 * time.Millisecond}).run()
	r.want("web:1 ")
	consul.setDown(true)
	r.waitLogged("requests to Consul fail")
	consul.restartEmpty()
	r.want("")
}

// A node that leaves with everything on it is not believed at once, neither in the lists of its services nor in the list of
// services.
func TestNodeThatLeaves(t *testing.T) {
	consul := newFakeConsul(t)
	consul.set("web", 1, 2)
	r := newHarness(t, consul, Options{Templates: one(everyService + `| {{ range services }}{{ .Name }} {{ end }}`), Grace: 2 * time.Second}).run()
	r.want("web:1 web:2 | web ")
	began := time.Now()
	consul.change(func() {
		consul.left = true
		consul.put("web")
		delete(consul.services, "web")
	})
	for got := ""; got != "| "; { // the service and its instances have separate deadlines
		if got = r.next(); got != "| " && got != "| web " && got != "web:1 web:2 | " {
			t.Fatalf("published %q", got)
		}
	}
	if kept := time.Since(began); kept < 2*time.Second {
		t.Errorf("it was kept for %s", kept)
	}
	r.wantLogged(" left Consul with all its services", 1)

	// An entry that vanishes from an existing node was removed on purpose.
	consul.change(func() {
		consul.left = false
		consul.put("web", 1)
	})
	r.want("web:1 | web ")
	began = time.Now()
	consul.change(func() {
		consul.put("web")
		delete(consul.services, "web")
	})
	for got := ""; got != "| "; {
		got = r.next()
	}
	if kept := time.Since(began); kept > time.Second {
		t.Errorf("it was kept for %s", kept)
	}
}

// Another server is at Consul's address for a while: none of its answers are trusted, and Consul's later answers are seen.
func TestSomethingElseAnswers(t *testing.T) {
	for name, instead := range map[string]http.HandlerFunc{
		"an error":          func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "oh", http.StatusInternalServerError) },
		"too many requests": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "oh", http.StatusTooManyRequests) },
		"a page":            func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>log in</html>") },
		"an empty list":     func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "[]") },
		"an empty object":   func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{}") },
		"nothing":           func(http.ResponseWriter, *http.Request) {},
		"a redirect":        func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
		"a redirect to it":  func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) },
		"half of the answer": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Consul-Index", "99")
			fmt.Fprint(w, `[{"Node": {"No`)
		},
		"an index of letters": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Consul-Index", "x")
			fmt.Fprint(w, `[]`)
		},
		"huge headers": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Consul-Index", "99")
			w.Header().Set("X-Huge", strings.Repeat("x", 20<<20))
			fmt.Fprint(w, "[]")
		},
	} {
		t.Run(name, func(t *testing.T) {
			consul := newFakeConsul(t)
			consul.set("web", 1)
			r := newHarness(t, consul, Options{Templates: one(everyService), Grace: time.Millisecond}).run()
			r.want("web:1 ")
			r.waitReady()
			// Consul itself answers the blocking query.
			testenv.Until(t, deadline, "it waits", func() bool { return consul.waits("/v1/health/service/web", 11) })
			consul.change(func() {
				consul.put("web", 1, 2)
				consul.instead = instead
			})
			r.want("web:1 web:2 ")
			testenv.Until(t, deadline, "not ready", func() bool { return r.Ready() != nil })
			consul.change(func() { consul.instead = nil })
			r.waitReady()
			consul.set("web", 3)
			// Only now a query fails, and entries missing from the next answer are kept for the grace.
			for got := ""; got != "web:3 "; {
				if got = r.next(); !strings.HasSuffix(got, "web:3 ") {
					t.Fatalf("published %q", got)
				}
			}
		})
	}
}

func TestDependenciesComeAndGo(t *testing.T) {
	// The names show whether the list of services in a text is the newest.
	const names = `{{ range services }}{{ .Name }} {{ end }}| `
	for name, text := range map[string]string{
		"whole": everyService,
		"by partials": `{{ define "p" }}{{ $name := . }}{{ range service . }}{{ $name }}:{{ .Port }} {{ end }}{{ end }}` +
			`{{ range services }}{{ partial "p" .Name }}{{ end }}`,
	} {
		t.Run(name, func(t *testing.T) { testDependenciesComeAndGo(t, names+text) })
	}
}

func testDependenciesComeAndGo(t *testing.T, text string) {
	consul := newFakeConsul(t)
	consul.set("web", 1)
	r := newHarness(t, consul, Options{Templates: one(text)}).run()
	r.want("web | web:1 ")
	consul.set("api", 2)
	r.want("api web | api:2 web:1 ")
	consul.remove("web")
	// Its own list may be answered first. Its watch is stopped before a text without the name is published.
	got := r.next()
	if got == "api web | api:2 " {
		got = r.next()
	}
	if got != "api | api:2 " {
		t.Fatalf("published %q after web was removed", got)
	}
	testenv.Until(t, deadline, "the query for web to end", func() bool { return r.consul.blocked("/v1/health/service/web") == 0 })
	consul.set("web", 3)
	r.want("api web | api:2 web:3 ")
	consul.set("web", 4)
	r.want("api web | api:2 web:4 ")
}

func TestOnlyWhatUsesTheChangeIsExecuted(t *testing.T) {
	consul := newFakeConsul(t)
	consul.set("a", 1)
	consul.set("b", 1)
	r := newHarness(t, consul, Options{Templates: []Template{
		{Name: "a", Source: "a.ctmpl", Text: `{{ range service "a" }}{{ .Port }}{{ end }}`},
		{Name: "b", Source: "b.ctmpl", Text: `{{ range service "b" }}{{ .Port }}{{ end }}`},
	}}).run()
	first := map[string]string{}
	for range 2 {
		p := r.nextAny()
		first[p.Name] = p.Text
	}
	if first["a"] != "1" || first["b"] != "1" {
		t.Fatalf("first texts %q", first)
	}
	renders := r.metric("berth_templater_renders_total")
	consul.set("a", 2)
	r.wantNext("a", "2")
	r.wantNothingMore()
	if got := r.metric("berth_templater_renders_total") - renders; got != 1 {
		t.Errorf("%v renders, want 1", got)
	}
}

// even fails on an odd port.
func even(func(string), Ask) texttemplate.FuncMap {
	return texttemplate.FuncMap{"even": func(port int) (int, error) {
		if port%2 != 0 {
			return 0, fmt.Errorf("port %d is odd", port)
		}
		return port, nil
	}}
}

func TestFailingTemplateKeepsItsText(t *testing.T) {
	consul := newFakeConsul(t)
	consul.set("a", 2)
	consul.set("b", 2)
	r := newHarness(t, consul, Options{Templates: []Template{
		{Name: "a", Source: "a.ctmpl", Text: `{{ range service "a" }}{{ even .Port }}{{ end }}`, Funcs: even},
		{Name: "b", Source: "b.ctmpl", Text: `{{ range service "b" }}{{ even .Port }}{{ end }}`, Funcs: even},
	}}).run()
	r.nextAny()
	r.nextAny()

	consul.set("a", 3)
	r.waitLogged("port 3 is odd")
	consul.set("b", 4)
	r.wantNext("b", "4")
	failures := r.metric("berth_templater_render_errors_total")
	consul.set("a", 3, 4) // the same error again
	testenv.Until(t, deadline, "another failure", func() bool { return r.metric("berth_templater_render_errors_total") > failures })
	consul.set("a", 5)
	r.waitLogged("port 5 is odd")
	consul.set("a", 6)
	r.wantNext("a", "6")
	r.wantLogged("level=ERROR msg=\"a.ctmpl failed, keeping the last good value of health.service(a|passing)\" template=a.ctmpl", 2)
	r.wantLogged("err=\"a.ctmpl:1:", 2)
	r.wantLogged("level=INFO msg=\"a.ctmpl works again\" template=a.ctmpl", 1)
}

// A service whose name a template cannot query costs only the services that arrived with it.
func TestDataThatATemplateFailsOn(t *testing.T) {
	consul := newFakeConsul(t)
	consul.set("web", 1)
	r := newHarness(t, consul, Options{Templates: one(everyService)}).run()
	r.want("web:1 ")
	r.waitReady()
	consul.set("hc name", 9)
	const says = "A template fails, keeping the last good value of catalog.services: out.ctmpl:1:"
	if why := r.waitNotReady(says); !strings.HasPrefix(why, says) || !strings.Contains(why, `"hc name"`) {
		t.Errorf("not ready: %s", why)
	}
	if n := r.metric("berth_templater_failing"); n != 1 {
		t.Errorf("%v fail", n)
	}
	consul.set("web", 1, 2)
	r.want("web:1 web:2 ")
	consul.remove("hc name")
	r.waitReady()
	if n := r.metric("berth_templater_failing"); n != 0 {
		t.Errorf("%v fail", n)
	}
	consul.set("api", 3)
	r.want("api:3 web:1 web:2 ")
}

// Unavailable data, of another datacenter for example, delays nothing that does not need it.
func TestDataThatDoesNotCome(t *testing.T) {
	consul := newFakeConsul(t)
	consul.set("web", 1)
	consul.change(func() { consul.broken = "nosuch" })
	r := newHarness(t, consul, Options{Templates: one(everyService)}).run()
	r.want("web:1 ")
	consul.set("nosuch", 9)
	r.waitNotReady("health.service(nosuch|passing)")
	consul.set("web", 1, 2)
	r.want("web:1 web:2 ")
	consul.change(func() { consul.broken = "" })
	r.want("nosuch:9 web:1 web:2 ")
	r.waitReady()
}

func TestTemplateThatNeverWorkedHarmsNoOther(t *testing.T) {
	consul := newFakeConsul(t)
	consul.set("a", 2)
	consul.set("b", 3)
	r := newHarness(t, consul, Options{Templates: []Template{
		{Name: "a", Source: "a.ctmpl", Text: `{{ range service "a" }}{{ even .Port }}{{ end }}`, Funcs: even},
		{Name: "b", Source: "b.ctmpl", Text: `{{ range service "b" }}{{ even .Port }}{{ end }}`, Funcs: even},
	}}).run()
	r.waitLogged(" failed, publishing nothing until it works")
	r.wantNext("a", "2")
	r.waitNotReady("port 3 is odd")
	r.wantNothingMore()
	consul.set("a", 6)
	r.wantNext("a", "6")
	consul.set("b", 4)
	r.wantNext("b", "4")
	r.waitReady()
}

// lowPortsOnly ignores ports from 1024.
func lowPortsOnly(report func(string), _ Ask) texttemplate.FuncMap {
	return texttemplate.FuncMap{"low": func(instances []*dependency.HealthService) []int {
		var ports []int
		for _, i := range instances {
			if i.Port >= 1024 {
				report(fmt.Sprintf("port %d is too high", i.Port))
				continue
			}
			ports = append(ports, i.Port)
		}
		return ports
	}}
}

func TestWhatIsLeftOutIsLoggedOnce(t *testing.T) {
	consul := newFakeConsul(t)
	consul.set("web", 1, 2000)
	text := `{{ low (service "web") }}{{ low (service "web") }}`
	r := newHarness(t, consul, Options{Templates: []Template{
		{Name: "out", Source: "out.ctmpl", Text: text, Funcs: lowPortsOnly},
		{Name: "other", Source: "other.ctmpl", Text: text, Funcs: lowPortsOnly},
	}}).run()
	r.want("[1][1]")
	consul.set("web", 1, 2, 2000, 3000)
	r.want("[1 2][1 2]")
	r.wantLogged(`level=WARN msg="ignored: port 2000 is too high" reason="port 2000 is too high"`, 1)
	r.wantLogged(`level=WARN msg="ignored: port 3000 is too high" reason="port 3000 is too high"`, 1)
	if got := r.metric("berth_templater_left_out"); got != 2 {
		t.Errorf("left_out %v, want 2", got)
	}
	consul.set("web", 1, 3000)
	r.want("[1][1]")
	r.wantLogged(`level=INFO msg="no longer applies: port 2000 is too high" reason="port 2000 is too high"`, 1)
	r.wantLogged(`reason="port 3000 is too high"`, 1)
	if got := r.metric("berth_templater_left_out"); got != 1 {
		t.Errorf("left_out %v, want 1", got)
	}
}

func TestFileThatCannotBeRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "motd")
	r := newHarness(t, newFakeConsul(t), Options{Templates: one(`{{ file "` + path + `" }}`)}).run()
	r.waitLogged(", keeping the last good configuration")
	if err := os.WriteFile(path, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.want("hello")
	r.waitLogged("can read ")
	r.wantLogged("consul", 0) // neither the server nor the library's source files
}

func TestNewRefuses(t *testing.T) {
	tests := []struct {
		name      string
		templates []Template
		want      string
	}{
		{"no template", nil, "no template to render"},
		{"empty", []Template{{Name: "a", Source: "a.ctmpl", Text: ""}}, "a.ctmpl: the template is empty"},
		{"syntax", []Template{{Name: "a", Source: "/etc/a.ctmpl", Text: "ok\n{{ if }}\n"}}, "/etc/a.ctmpl:2: missing value for if"},
		{"function", []Template{{Name: "a", Source: "a.ctmpl", Text: "\n\n{{ nosuch 1 }}"}}, `a.ctmpl:3: function "nosuch" not defined`},
		{"second", []Template{{Name: "a", Source: "a.ctmpl", Text: "x"}, {Name: "b", Source: "b.ctmpl", Text: "{{ end }}"}}, "b.ctmpl:1: unexpected {{end}}"},
		{"same name", []Template{{Name: "a", Source: "a.ctmpl", Text: "x"}, {Name: "a", Source: "b.ctmpl", Text: "x"}}, `a.ctmpl and b.ctmpl are both named "a"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := New(Options{Templates: tt.templates})
			if err == nil || err.Error() != tt.want {
				t.Errorf("New: %v, want %s", err, tt.want)
			}
		})
	}
}

func TestNewRefusesUnreadableCertificates(t *testing.T) {
	_, err := New(Options{
		Consul:    &api.Config{TLSConfig: api.TLSConfig{CAFile: "/nonexistent.pem"}},
		Templates: one("x"),
	})
	if !errors.Is(err, os.ErrNotExist) && (err == nil || !strings.Contains(err.Error(), "/nonexistent.pem")) {
		t.Errorf("New: %v", err)
	}
}

func TestDisabledFunctions(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	for _, call := range []string{
		`plugin "touch" "` + out + `"`, `writeToFile "` + out + `" "root" "root" "0644" "x"`,
		`secret "kv/x"`, `nomadService "x"`, `pkiCert "pki/issue/x"`,
	} {
		name, _, _ := strings.Cut(call, " ")
		t.Run(name, func(t *testing.T) {
			r := newHarness(t, newFakeConsul(t), Options{Templates: one("{{ " + call + " }}")}).run()
			r.waitLogged("error calling " + name + ": function is disabled")
			r.wantNothingMore()
			if _, err := os.Stat(out); err == nil {
				t.Error("it ran")
			}
		})
	}
}

func TestRunReturnsWhileQueriesBlock(t *testing.T) {
	consul := newFakeConsul(t)
	consul.set("web", 1)
	r := newHarness(t, consul, Options{Templates: one(everyService), WaitTime: time.Hour}).run()
	r.want("web:1 ")
	testenv.Until(t, deadline, "blocked queries", func() bool {
		consul.mu.Lock()
		defer consul.mu.Unlock()
		return consul.waiting[fmt.Sprint("/v1/health/service/web ", consul.services["web"].index)] > 0
	})
	start := time.Now()
	r.stop()
	if took := time.Since(start); took > deadline/2 { // the queries go on for an hour
		t.Errorf("Run returned after %s", took)
	}
	if err := r.Ready(); err == nil || err.Error() != "the templater has stopped" {
		t.Errorf("Ready: %v", err)
	}
}

func TestRunReturnsDuringAnOutage(t *testing.T) {
	consul := newFakeConsul(t)
	for i := range 50 {
		consul.set(fmt.Sprint("s", i), 1)
	}
	r := newHarness(t, consul, Options{Templates: one(everyService)}).run()
	r.next()
	consul.setDown(true)
	r.waitLogged("requests to Consul fail")
	r.stop()
}

func TestRerender(t *testing.T) {
	var answer atomic.Int64
	funcs := func(func(string), Ask) texttemplate.FuncMap { return texttemplate.FuncMap{"answer": answer.Load} }
	consul := newFakeConsul(t)
	consul.set("a", 1)
	r := newHarness(t, consul, Options{Templates: []Template{{
		Name: "out", Source: "out.ctmpl", Funcs: funcs,
		Text: `{{ define "p" }}{{ answer }}{{ range service "a" }}:{{ .Port }} {{ end }}{{ end }}{{ partial "p" "x" }}{{ answer }}`,
	}}}).run()
	r.want("0:1 0")
	r.waitReady()
	answer.Store(7)
	before := time.Now()
	r.Rerender()
	p := r.nextAny()
	if p.Text != "7:1 7" || p.Since.Before(before) {
		t.Errorf("published %+v", p)
	}
}

func TestTokenThatSeesNothingAtTheStart(t *testing.T) {
	const all, service = "/v1/", "/v1/health/service/"
	tests := []struct {
		name   string
		hidden string
		why    string // of Ready
	}{
		{"no service", all, "Waiting for data that Consul hides from the token: the token sees nothing of catalog.services: give it service:read and node:read"},
		{"no instance", service, "Waiting for data that Consul hides from the token: the token sees nothing of health.service(s00|passing) and 29 more: give it service:read and node:read"},
		{"no instance of one", service + "s07", "Waiting for data that Consul hides from the token: the token sees nothing of health.service(s07|passing): give it service:read and node:read"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			consul := newFakeConsul(t)
			for n := range 30 {
				consul.set(fmt.Sprintf("s%02d", n), 1)
			}
			consul.hide(tt.hidden)
			r := newHarness(t, consul, Options{Templates: one(everyService)}).run()
			testenv.Until(t, deadline, tt.why, func() bool { err := r.Ready(); return err != nil && err.Error() == tt.why })
			r.waitLogged("the Consul token does not see what the templates need, waiting")
			before := consul.asks("/v1/catalog/services") + consul.asks("/v1/health/service/s07")
			testenv.Until(t, deadline, "more queries", func() bool {
				return consul.asks("/v1/catalog/services")+consul.asks("/v1/health/service/s07") > before+2
			})
			r.wantNothingMore()
			if up := r.metric("berth_templater_consul_up"); up != 0 {
				t.Errorf("consul_up %v", up)
			}
			r.wantLogged("the token sees nothing", 1)

			consul.hide("")
			if text := r.next(); strings.Count(text, ":1") != 30 {
				t.Errorf("the first text is %q", text)
			}
			r.waitReady()
			r.waitLogged("the Consul token sees what the templates need")
			r.wantLogged("level=ERROR", 1)
			r.wantLogged("level=WARN", 0)
		})
	}
}

// A service hidden from the token harms no other once a text exists.
func TestHiddenServiceLater(t *testing.T) {
	consul := newFakeConsul(t)
	consul.set("web", 1)
	r := newHarness(t, consul, Options{Templates: one(everyService)}).run()
	r.want("web:1 ")
	consul.hide("/v1/health/service/api")
	consul.set("api", 2)
	testenv.Until(t, deadline, "a query for api", func() bool { return consul.blocked("/v1/health/service/api") > 0 })
	consul.set("web", 3)
	r.want("web:3 ")
	r.waitReady()
}

const pausedAndWeb = `{{ range $s, $max := paused }}{{ $s }}={{ $max }} {{ end }}|{{ range service "web" }}{{ .Port }} {{ end }}`

// Pauses by hand are in the text from the start, and change with Consul.
func TestPaused(t *testing.T) {
	consul := newFakeConsul(t)
	consul.set("web", 1)
	consul.pause("shop", `{"max": "30s"}`)
	r := newHarness(t, consul, Options{Templates: one(pausedAndWeb), VanishLimit: 10}).run()
	r.want("shop=30s |1 ")
	consul.pause("app", `{"max": "5m0s", "reason": "x", "other": 1}`)
	r.want("app=5m0s shop=30s |1 ")
	consul.pause("shop", `{"max": "1s"}`)
	r.want("app=5m0s shop=1s |1 ")
	consul.pause("bad", `{"max": "6m"}`)
	r.waitLogged(`the key \"berth/paused/bad\" pauses nothing: its max \"6m\" is not a duration from 1s to 5m`)
	consul.setDown(true)
	r.waitNotReady("Consul does not answer")
	consul.resume("shop")
	consul.setDown(false)
	r.want("app=5m0s |1 ")
	consul.resume("bad")
	consul.resume("app")
	r.want("|1 ")
	r.waitReady()
	r.waitLogged("no longer applies")
}

// An invalid pause affects nothing else.
func TestPausedHoldsUpNothing(t *testing.T) {
	const path = "/v1/kv/berth/paused/"
	for name, instead := range map[string]func(w http.ResponseWriter, r *http.Request){
		"refused": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "Permission denied", http.StatusForbidden) },
		"fails":   func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "oops", http.StatusInternalServerError) },
		"garbage": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Consul-Index", "7")
			fmt.Fprint(w, "{}")
		},
		"no Consul": func(w http.ResponseWriter, _ *http.Request) { http.NotFound(w, nil) },
		"hangs":     nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lifted := make(chan struct{})
			if instead == nil {
				instead = func(_ http.ResponseWriter, r *http.Request) {
					select {
					case <-r.Context().Done():
					case <-lifted:
					}
				}
			}
			consul := newFakeConsul(t)
			consul.set("web", 1)
			consul.pause("shop", `{"max": "30s"}`)
			broken := func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path == path {
					instead(w, r)
				}
				return r.URL.Path == path
			}
			consul.change(func() { consul.before = broken })
			r := newHarness(t, consul, Options{Templates: one(pausedAndWeb)})
			begun := time.Now()
			r.run()
			r.want("|1 ")
			if took := time.Since(begun); took > lateAfter+3*time.Second {
				t.Errorf("the first text took %v", took)
			}
			r.waitReady()
			consul.set("web", 2)
			r.want("|2 ")
			ctx, cancel := context.WithTimeout(t.Context(), deadline)
			defer cancel()
			if texts, err := r.Render(ctx); err != nil || texts["out"].Text != "|2 " {
				t.Errorf("%v, %v", texts, err)
			}
			if up := r.metric("berth_templater_consul_up"); up != 1 {
				t.Errorf("consul_up %v", up)
			}
			asked := consul.asks(path)
			testenv.Until(t, deadline, "more queries", func() bool { return consul.asks(path) > asked })
			r.waitReady()
			consul.change(func() { consul.before = nil })
			close(lifted)
			r.want("shop=30s |2 ")
			r.waitLogged("can read paused again")
			r.wantLogged("level=WARN", 1)
			r.wantLogged("cannot read paused, continuing without updates", 1)

			testenv.Until(t, deadline, "a query that waits", func() bool { return consul.blocked(path) > 0 })
			consul.change(func() { consul.before = broken })
			consul.pause("shop", `{"max": "10s"}`)
			r.want("shop=10s |2 ")
			consul.set("web", 3)
			r.want("shop=10s |3 ")
			r.waitReady()
			if name == "refused" {
				testenv.Until(t, deadline, "it is said again", func() bool {
					return strings.Count(r.log.String(), `give the token key_prefix \"berth/paused/\" { policy = \"list\" }`) == 2
				})
			}
		})
	}
}

// A pause that is read only at the third try is in the first text, so a restart of berth does not lift it.
func TestPausedWithErrorsAtTheStart(t *testing.T) {
	consul := newFakeConsul(t)
	consul.set("web", 1)
	consul.pause("shop", `{"max": "30s"}`)
	var asked atomic.Int32
	consul.change(func() {
		consul.before = func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/v1/kv/berth/paused/" {
				return false
			}
			if asked.Add(1) > 2 {
				return false
			}
			testenv.Until(t, deadline, "Consul answers other queries", func() bool { return consul.blocked("/v1/health/service/web") > 0 })
			http.Error(w, "oops", http.StatusInternalServerError)
			return true
		}
	})
	r := newHarness(t, consul, Options{Templates: one(pausedAndWeb)}).run()
	r.want("shop=30s |1 ")
	r.waitReady()
	r.wantLogged("cannot be read", 0)
}

// Without the right, and without an error, a list of pauses is empty.
func TestPausedThatTheTokenDoesNotSee(t *testing.T) {
	consul := newFakeConsul(t)
	consul.set("web", 1)
	consul.hide("/v1/kv/")
	consul.pause("shop", `{"max": "30s"}`)
	r := newHarness(t, consul, Options{Templates: one(pausedAndWeb)}).run()
	r.want("|1 ")
	r.waitReady()
	r.waitLogged("the token does not see all that is paused by hand")
	consul.hide("")
	consul.pause("shop", `{"max": "20s"}`)
	r.want("shop=20s |1 ")
	r.waitLogged("no longer applies")
	r.wantLogged("level=WARN", 1)
}

// A berth that starts while Consul is away waits for the pauses as for all other data.
func TestPausedWhileConsulIsAwayAtTheStart(t *testing.T) {
	consul := newFakeConsul(t)
	consul.set("web", 1)
	consul.pause("shop", `{"max": "30s"}`)
	consul.setDown(true)
	r := newHarness(t, consul, Options{Templates: one(pausedAndWeb)}).run()
	r.waitNotReady("Consul does not answer")
	asked := consul.asks("/v1/kv/berth/paused/")
	testenv.Until(t, deadline, "more queries", func() bool { return consul.asks("/v1/kv/berth/paused/") > asked+2 })
	consul.setDown(false)
	r.want("shop=30s |1 ")
	r.waitReady()
	r.wantLogged("cannot be read", 0)
}

// gauge records its values.
type gauge struct {
	prometheus.Gauge
	values []float64
}

func (g *gauge) Set(v float64) {
	g.values = append(g.values, v)
	g.Gauge.Set(v)
}

func TestConsulUpDoesNotFlicker(t *testing.T) {
	consul := newFakeConsul(t)
	consul.set("web", 1)
	r := newHarness(t, consul, Options{Templates: one(everyService)})
	g := &gauge{Gauge: r.Templater.metrics.consulUp}
	r.Templater.metrics.consulUp = g
	r.run()
	r.want("web:1 ")
	for port := 2; port < 10; port++ {
		consul.set("web", port)
		r.want(fmt.Sprintf("web:%d ", port))
	}
	r.stop()
	first := slices.Index(g.values, 1)
	if first < 0 || slices.Contains(g.values[first:], 0) {
		t.Errorf("consul_up was set to %v", g.values)
	}
}

func TestTemplateThatFailsOnAnEmptyList(t *testing.T) {
	consul := newFakeConsul(t)
	consul.set("web", 1)
	r := newHarness(t, consul, Options{Templates: one(`{{ (index (service "web") 0).Port }}`)}).run()
	r.want("1")
	r.waitReady()
	consul.set("web")
	r.waitLogged(" failed, keeping the last good value of health.service(web|passing)")
	consul.set("web", 2)
	r.want("2")
	r.wantLogged("level=INFO msg=\"out.ctmpl works again\"", 2)
}
