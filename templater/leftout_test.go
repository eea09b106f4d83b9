package templater

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	texttemplate "text/template"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"

	"berth/deploy/testenv"
	"berth/templater/leftout"
)

// Ignored items are known by service and instance, and visible to a receiver of Changed.
func TestLeftOut(t *testing.T) {
	consul := newFakeConsul(t)
	consul.set("web", 2000, 1)
	spec := Template{Name: "out", Text: `{{ range instances "web" }}{{ check .Service.Service .Service.ID .Service.Port }} {{ end }}`}
	spec.Funcs = func(report func(string), _ Ask) texttemplate.FuncMap {
		return texttemplate.FuncMap{"check": func(service, id string, port int) int {
			if port > 1000 {
				report(leftout.Sentence(service, id, "its port is too high"))
				report("a port is too high")
			}
			return port
		}}
	}
	told := make(chan struct{}, 1)
	r := newHarness(t, consul, Options{Templates: []Template{spec}, Changed: func() { notify(told) }})
	if r.LeftOut() != nil {
		t.Errorf("%v", r.LeftOut())
	}
	r.run()
	r.want("1 2000 ")
	untilTold := func(of string, ok func() bool) {
		t.Helper()
		for over := time.After(deadline); ; {
			select {
			case <-told:
				if ok() {
					return
				}
			case <-over:
				t.Fatalf("%s: it is not told; left out: %q; ready: %v", of, r.LeftOut(), r.Ready())
			}
		}
	}
	wait := func(want ...LeftOut) {
		t.Helper()
		untilTold("left out", func() bool { return slices.Equal(r.LeftOut(), want) })
	}
	wait(LeftOut{Reason: "a port is too high"}, LeftOut{Service: "web", Instance: "web-2000", Reason: `service "web", instance "web-2000": its port is too high`})
	r.waitReady()
	r.waitLogged(`msg="ignored: service \"web\", instance \"web-2000\": its port is too high" service=web instance=web-2000 reason="service \"web\", instance \"web-2000\": its port is too high"`)
	r.waitLogged(`msg="ignored: a port is too high" reason="a port is too high"`)
	consul.set("web", 1)
	wait()
	r.waitLogged(`msg="no longer applies: service \"web\", instance \"web-2000\": its port is too high" service=web instance=web-2000 reason=`)
	consul.setDown(true)
	untilTold("down", func() bool { return r.Ready() != nil })
}

// known stores the values of Options.Instances and Options.Services.
type known struct {
	mu        sync.Mutex
	instances map[string]string
	services  []string
	calls     int
}

func (k *known) Instances(service string, list []*api.ServiceEntry) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls++
	if list == nil {
		delete(k.instances, service)
		return
	}
	k.instances[service] = ""
	for _, e := range list {
		k.instances[service] += fmt.Sprintf("%s/%s=%d,%d ", e.Node.Node, e.Service.ID, e.Service.Port, len(e.Checks))
	}
}

func (k *known) Services(names []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.services = names
}

func (k *known) want(t *testing.T, services []string, instances map[string]string) {
	t.Helper()
	is := func() string {
		k.mu.Lock()
		defer k.mu.Unlock()
		return cmp.Diff(services, k.services) + cmp.Diff(instances, k.instances)
	}
	testenv.Eventually(t, deadline, "what is known", func() error {
		if diff := is(); diff != "" {
			return fmt.Errorf("%s", diff)
		}
		return nil
	})
}

// Each new list of instances is passed on while a template uses it, whichever function asks for it.
func TestInstancesAreTold(t *testing.T) {
	consul := newFakeConsul(t)
	consul.set("web", 1, 2)
	consul.set("api")
	k := &known{instances: map[string]string{}}
	const text = `{{ range services }}{{ if eq .Name "api" }}{{ range instances "api" }}{{ .Service.Port }} {{ end }}` +
		`{{ else }}{{ range service .Name }}{{ .Port }} {{ end }}{{ range service (print .Name "|any") }}{{ .Port }} {{ end }}{{ end }}{{ end }}`
	r := newHarness(t, consul, Options{Templates: one(text), Instances: k.Instances, Services: k.Services}).run()
	r.want("1 2 1 2 ")
	k.want(t, []string{"api", "web"}, map[string]string{"api": "", "web": "n1/web-1=1,1 n1/web-2=2,1 "})
	k.mu.Lock()
	before := k.calls
	k.mu.Unlock()
	consul.set("api", 7)
	r.want("7 1 2 1 2 ")
	k.want(t, []string{"api", "web"}, map[string]string{"api": "n1/api-7=7,1 ", "web": "n1/web-1=1,1 n1/web-2=2,1 "})
	k.mu.Lock()
	if k.calls != before+1 {
		t.Errorf("%d calls for one change", k.calls-before)
	}
	k.mu.Unlock()
	consul.set("web")
	k.want(t, []string{"api", "web"}, map[string]string{"api": "n1/api-7=7,1 ", "web": ""})
	consul.remove("web")
	k.want(t, []string{"api"}, map[string]string{"api": "n1/api-7=7,1 "})
	consul.remove("api")
	k.want(t, []string{}, map[string]string{})
}

// The instances from two functions for a service form one list; a function that asks for all instances takes precedence.
func TestInstancesOfTwoLists(t *testing.T) {
	a, b, again := entry("n", "a"), entry("n", "b"), entry("n", "b")
	h := heardOf{some: map[string][]*api.ServiceEntry{"x": {b}, "y": {again, a}}}
	ids := func() (all []string) {
		for _, e := range h.list() {
			all = append(all, e.Service.ID)
		}
		return all
	}
	if got := ids(); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("%q", got)
	}
	h.all = []*api.ServiceEntry{}
	if got := h.list(); got == nil || len(got) != 0 {
		t.Errorf("%v", got)
	}
	h.all, h.some = nil, map[string][]*api.ServiceEntry{"x": {}}
	if got := h.list(); got == nil || len(got) != 0 {
		t.Errorf("%v", got)
	}
	delete(h.some, "x")
	if got := h.list(); got != nil {
		t.Errorf("%v", got)
	}
}

func entry(node, id string) *api.ServiceEntry {
	return &api.ServiceEntry{Node: &api.Node{Node: node}, Service: &api.AgentService{ID: id}}
}
