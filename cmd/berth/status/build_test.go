package status

import (
	"strings"
	"testing"
	"time"

	"berth/registrar"
	"berth/registrar/label"
)

func entry(service, id, address string, checks ...Check) Entry {
	return Entry{Service: service, ID: id, Node: "n1", Address: address, Meta: map[string]string{label.MetaContainer: "c-" + id}, Checks: checks}
}

// balancer is the part of a templater whose proxy has these servers and routes.
func balancer(change func(*Part)) Part {
	p := Part{
		Berth: Berth{Role: RoleTemplater, Name: "lb"}, Proxy: &Proxy{Name: "lb", Kind: "haproxy"},
		Routes:   []PartRoute{{Host: "app.example.com", Path: "/", Service: "app", Backend: "app"}},
		Services: map[string]int{"app": 1},
	}
	if change != nil {
		change(&p)
	}
	return p
}

// An instance is as far on its way as the berths and Consul say, and the reason is theirs.
func TestBuildFollowsTheChain(t *testing.T) {
	started := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	told := func(state registrar.State, reason string, change func(*PartContainer)) Part {
		c := PartContainer{Name: "web_1", ID: "c-app-1", Started: started, Meant: true,
			Instances: []PartInstance{{Service: "app", ID: "app-1", Address: "10.0.0.1:80", State: string(state), Reason: reason}}}
		if change != nil {
			change(&c)
		}
		return Part{Berth: Berth{Role: RoleRegistrar, Name: "n1"}, Host: "n1", Containers: []PartContainer{c}}
	}
	registered := Catalog{"app": {entry("app", "app-1", "10.0.0.1:80")}}
	for name, c := range map[string]struct {
		catalog Catalog
		parts   []Part
		servers []PartServer
		state   State
		reached Step
		reason  string // contained in it; "" = none
		service State
	}{
		"serves":                                {registered, []Part{told(registrar.Registered, "", nil), balancer(nil)}, nil, Serving, StepServing, "", Serving},
		"serves, nobody tells of its container": {registered, []Part{balancer(nil)}, nil, Serving, StepServing, "", Serving},
		"waits until it is ready":               {Catalog{}, []Part{told(registrar.Waiting, "not ready: connection refused", nil), balancer(nil)}, nil, Starting, StepContainer, "connection refused", Starting},
		"refused by Consul":                     {Catalog{}, []Part{told(registrar.NotRegistered, "Consul refuses it: no", nil), balancer(nil)}, nil, Down, StepContainer, "Consul refuses it", Down},
		"ready, not in the catalog yet":         {Catalog{}, []Part{told(registrar.Registered, "", nil), balancer(nil)}, nil, Down, StepRegistered, "catalog", Down},
		"critical": {Catalog{"app": {entry("app", "app-1", "10.0.0.1:80", Check{ID: "x", Name: "http", Status: "critical", Output: "got 500"})}},
			[]Part{balancer(nil)}, nil, Down, StepCatalog, "http: got 500", Down},
		"maintenance": {Catalog{"app": {entry("app", "app-1", "10.0.0.1:80", Check{ID: "_service_maintenance:app-1", Status: "critical", Notes: "berth registrar: told to stop"})}},
			[]Part{balancer(nil)}, nil, Draining, StepCatalog, "told to stop", Draining},
		"the proxy refuses": {registered, []Part{balancer(func(p *Part) {
			p.Missing, p.Proxy.Failure = []string{"10.0.0.1:80"}, "configuration refused: line 7"
		})}, nil, Down, StepRendered, "line 7", Down},
		"down in the proxy": {registered, []Part{balancer(func(p *Part) {
			p.Servers = []PartServer{{"10.0.0.1:80", Server{Backend: "app", Name: "app-1", Weight: 1, State: "DOWN", Check: "L4CON: refused"}}}
		})}, nil, Down, StepProxy, "lb reports server app/app-1 as DOWN: L4CON: refused", Down},
		"as its own proxy says": {registered, []Part{balancer(nil)}, []PartServer{{"10.0.0.1:80", Server{Proxy: "lb", Backend: "app", Name: "app-1", Usable: true, Weight: 1, InFlight: 3}}},
			Serving, StepServing, "", Serving},
		"its weight is 0": {registered, []Part{balancer(func(p *Part) {
			p.Servers = []PartServer{{"10.0.0.1:80", Server{Backend: "app", Name: "app-1", State: "UP"}}}
		})}, nil, Draining, StepProxy, "SERVICE_WEIGHT", Draining},
		"nobody asks for a route": {registered, []Part{told(registrar.Registered, "", func(c *PartContainer) { c.Instances[0].NoRoute = "no SERVICE_ROUTE_HOST" }),
			balancer(func(p *Part) { p.Routes, p.Services = nil, nil })}, nil, Unrouted, StepCatalog, "no SERVICE_ROUTE_HOST", Unrouted},
		"nobody knows": {registered, []Part{balancer(func(p *Part) { p.Routes, p.Services, p.Proxy.Template = nil, nil, "/etc/berth/haproxy.ctmpl" })},
			nil, Unknown, StepCatalog, "a template of its own", Unknown},
		"no server in a template of somebody's": {registered, []Part{balancer(func(p *Part) {
			p.Routes, p.Services, p.Proxy.Template = nil, map[string]int{"web": 1}, "/etc/berth/haproxy.ctmpl"
		})}, nil, Unrouted, StepCatalog, "", Unrouted},
		"left out": {registered, []Part{balancer(func(p *Part) {
			p.Routes, p.Services = nil, nil
			p.LeftOut = []LeftOut{{Service: "app", Instance: "app-1", Reason: `service "app", instance "app-1": its route_host is none`}}
		})}, nil, Down, StepCatalog, "its route_host is none", Down},
		"another has its route": {registered, []Part{balancer(func(p *Part) {
			p.Routes = []PartRoute{{Host: "a", Path: "/", Service: "app", Lost: "it belongs to web", Holder: "web"}, {Host: "a", Path: "/", Service: "web", Backend: "web"}}
			p.Services = map[string]int{"web": 1, "app": 1} // the backend is there
			p.LeftOut = []LeftOut{{Service: "app", Reason: "it belongs to web"}}
		})}, nil, Down, StepCatalog, "it belongs to web", Down},
		"no templater": {registered, []Part{told(registrar.Registered, "", nil)}, nil, Unknown, StepCatalog, "", Unknown},
	} {
		t.Run(name, func(t *testing.T) {
			doc := Build(Input{Catalog: c.catalog, Parts: c.parts, Servers: c.servers})
			var app *Service
			for i := range doc.Services {
				if doc.Services[i].Name == "app" {
					app = &doc.Services[i]
				}
			}
			if app == nil || len(app.Instances) != 1 {
				t.Fatalf("no service app with an instance: %+v", doc.Services)
			}
			in := app.Instances[0]
			if in.State != c.state || in.Reached != c.reached || (c.reason == "") != (in.Reason == "") || !strings.Contains(in.Reason, c.reason) {
				t.Errorf("%s, reached %q: %q; want %s, %q with %q", in.State, in.Reached, in.Reason, c.state, c.reached, c.reason)
			}
			if app.State != c.service {
				t.Errorf("the service is %s, want %s", app.State, c.service)
			}
		})
	}
}

// Containers that register nothing are listed with their reasons.
func TestBuildListsContainersThatRegisterNothing(t *testing.T) {
	doc := Build(Input{Parts: []Part{{Berth: Berth{Role: RoleRegistrar, Name: "n1"}, Host: "n1", Containers: []PartContainer{
		{Name: "db", ID: "x", Reasons: []string{"no port"}, Meant: true},
	}}}})
	if len(doc.Containers) != 1 || doc.Containers[0].Name != "db" || doc.Containers[0].Reasons[0] != "no port" || doc.Containers[0].Host != "n1" {
		t.Errorf("containers: %+v", doc.Containers)
	}
}

// A part that is too big for Consul is cut, and says so; what is in order goes first.
func TestEncodeBoundsAPart(t *testing.T) {
	p := Part{}
	for range 5000 {
		p.Containers = append(p.Containers, PartContainer{Name: strings.Repeat("n", 60), ID: strings.Repeat("0", 64), Reasons: []string{strings.Repeat("r", 200)}})
		p.Events = append(p.Events, Event{Message: strings.Repeat("m", 100)})
	}
	p.LeftOut = []LeftOut{{Service: "app", Reason: "kept"}}
	value := p.encode(mostPublished)
	if len(value) > mostPublished || len(value) < mostPublished/4 {
		t.Errorf("%d bytes, want less than %d and not much less", len(value), mostPublished)
	}
	if !strings.Contains(string(value), `"kept"`) || !strings.Contains(string(value), `"left":`) {
		t.Error("what was left out is gone, or that something was cut")
	}
}
