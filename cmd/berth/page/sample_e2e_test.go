//go:build e2e

package page

import (
	"fmt"
	"math/rand/v2"
	"time"

	"berth/cmd/berth/status"
)

var started = time.Now().Add(-40 * time.Minute).Truncate(time.Millisecond)

// instance is the nth of a service, and in order.
func instance(service string, n int) status.Instance {
	at := started.Add(time.Duration(n) * time.Second)
	return status.Instance{
		ID: fmt.Sprintf("%s-%d", service, n), Node: fmt.Sprintf("docker-%d", n%3+1), Container: fmt.Sprintf("shop_%s_%d", service, n),
		ContainerID: fmt.Sprintf("%064x", n), Address: fmt.Sprintf("10.0.%d.%d:8080", n/200, n%200+10), State: status.Serving, Reached: status.StepServing,
		Times: status.Times{
			Started: at, Ready: at.Add(840 * time.Millisecond), Registered: at.Add(844 * time.Millisecond), Catalog: at.Add(851 * time.Millisecond), Live: at.Add(863 * time.Millisecond),
		},
		Servers: []status.Server{{Proxy: "lb-1", Backend: service, Name: fmt.Sprintf("s%d", n), Usable: true, State: "UP", Weight: 100, InFlight: n % 4, Check: "L7OK/200 in 1 ms"}},
	}
}

// service has n instances, all in order.
func service(name string, n int) status.Service {
	s := status.Service{Name: name, State: status.Serving, Serving: n, Total: n, Routes: []status.Route{{Route: name + ".example.com", Proxy: "lb-1", Backend: name}}}
	for i := range n {
		s.Instances = append(s.Instances, instance(name, i+1))
	}
	return s
}

// sample is a document of that many services and instances of each, with its proxy and berths.
func sample(services, instances int) status.Document {
	doc := status.Document{At: time.Now()}
	for i := range services {
		doc.Services = append(doc.Services, service(fmt.Sprintf("service-%04d", i+1), instances))
	}
	doc.Proxies = []status.Proxy{{
		Name: "lb-1", Kind: "haproxy", Version: "3.0.11", Running: "7f3a2c91", Since: started.Add(31 * time.Minute), By: "runtime", Reason: "1 server of web added",
		Backends: services, Servers: services * instances,
	}}
	doc.Berths = []status.Berth{
		{Role: "registrar", Name: "docker-1", Version: "1.0.0", Started: started, Consul: "127.0.0.1:8500", Docker: "unix:///var/run/docker.sock"},
		{Role: "templater", Name: "lb-1", Version: "1.0.0", Started: started, Consul: "127.0.0.1:8500"},
	}
	return doc
}

// shop is a document as one may meet it: a dozen services, one degraded, a container on no network of the load balancer's.
func shop() status.Document {
	doc := sample(0, 0)
	for _, s := range []struct {
		name string
		n    int
	}{{"account", 2}, {"basket", 3}, {"catalog", 4}, {"checkout", 5}, {"images", 2}, {"mail", 1}, {"postgres", 1}, {"recommend", 2}, {"redis", 1}, {"search", 3}, {"stock", 2}, {"web", 6}} {
		doc.Services = append(doc.Services, service(s.name, s.n))
	}
	by := map[string]*status.Service{}
	for i := range doc.Services {
		by[doc.Services[i].Name] = &doc.Services[i]
	}
	for _, name := range []string{"mail", "redis"} {
		by[name].State, by[name].Routes = status.Unrouted, nil
	}
	by["postgres"].Routes = []status.Route{{Route: "port 5432", Proxy: "lb-1", Backend: "postgres"}}
	by["web"].Routes = []status.Route{{Route: "www.example.com", Proxy: "lb-1", Backend: "web"}, {Route: "example.com", Proxy: "lb-1", Backend: "web"}}
	by["images"].Routes = []status.Route{{Route: "www.example.com/images", Proxy: "lb-1", Backend: "images", Strip: true}}
	by["stock"].Paused = "since 14:02 by ann: migration of the database"
	by["stock"].Waiting = 3

	c := by["checkout"]
	c.State, c.Serving = status.Degraded, 4
	c.Routes = []status.Route{{Route: "www.example.com/checkout", Proxy: "lb-1", Backend: "checkout"}, {Route: "pay.example.com", Proxy: "lb-1", Backend: "checkout"}}
	c.Reason = "shop_checkout_5: its Consul check “service:checkout-5” is critical: HTTP GET http://10.0.0.15:8080/healthz: 503 Service Unavailable"
	bad := &c.Instances[4]
	bad.State, bad.Reached, bad.Reason = status.Down, status.StepProxy, "its Consul check “service:checkout-5” is critical: HTTP GET http://10.0.0.15:8080/healthz: 503 Service Unavailable. Look at the container's log."
	bad.Servers[0].State, bad.Servers[0].Usable, bad.Servers[0].Check, bad.Servers[0].InFlight = "MAINT", false, "", 0
	c.Instances = append([]status.Instance{*bad}, c.Instances[:4]...)

	doc.Proxies[0].Backends, doc.Proxies[0].Servers, doc.Proxies[0].OldWorkers = 10, 30, 1
	doc.Berths = append(doc.Berths, status.Berth{Role: "registrar", Name: "docker-2", Version: "1.0.0", Started: started, Consul: "127.0.0.1:8500", Docker: "unix:///var/run/docker.sock"})
	doc.Containers = []status.Container{
		{Host: "docker-2", Name: "shop_reports_1", ID: "4be1c0ffee12", Service: "reports", State: status.Down, Reached: status.StepReady, Meant: true, Started: started,
			Reasons: []string{"it is on none of the load balancer's networks (it is on reports_default); add the network edge to it, or set SERVICE_NETWORK"}},
		{Host: "docker-1", Name: "consul", ID: "0a0b0c0d0e0f", State: status.Unrouted, Reached: status.StepContainer, Started: started, Reasons: []string{"it has no SERVICE_ label"}},
		{Host: "docker-1", Name: "berth", ID: "1a1b1c1d1e1f", State: status.Unrouted, Reached: status.StepContainer, Started: started, Reasons: []string{"SERVICE_IGNORE is set"}},
	}
	return doc
}

// fill gives a fake what has happened.
func (f *fake) fill() {
	random := rand.New(rand.NewPCG(1, 2))
	now := time.Now()
	f.set(func() {
		for i := range 180 {
			f.live = append(f.live, live{now.Add(time.Duration(i-180) * time.Minute), "web", fmt.Sprintf("web-%d", i), 0.008 + random.ExpFloat64()*0.006})
		}
		f.live[77].Seconds = 0.061
		for i, e := range []status.Event{
			{Level: "INFO", Message: "took web of shop_web_3 out of service", Service: "web", Instance: "web-3", Container: "shop_web_3", Berth: "docker-1"},
			{Level: "INFO", Message: "deregistered web of shop_web_3", Service: "web", Instance: "web-3", Container: "shop_web_3", Berth: "docker-1"},
			{Level: "INFO", Message: "web: 8 → 7 servers, live after 2 ms", Backend: "web", Berth: "lb-1"},
			{Level: "INFO", Message: "requests for stock wait", Service: "stock", Reason: "migration of the database", Berth: "lb-1"},
			{Level: "INFO", Message: "registered shop_web_7 as web on 10.0.0.17:8080", Service: "web", Instance: "web-7", Container: "shop_web_7", Berth: "docker-1"},
			{Level: "INFO", Message: "web: 7 → 8 servers, live after 14 ms", Backend: "web", Berth: "lb-1"},
			{Level: "WARN", Message: "shop_reports_1 is not registered: it is on none of the load balancer's networks (it is on reports_default)", Container: "shop_reports_1", Berth: "docker-2", Reason: "it is on none of the load balancer's networks (it is on reports_default)"},
			{Level: "INFO", Message: "proxy reloaded, live after 96 ms", Reason: "a new certificate for pay.example.com", Berth: "lb-1"},
			{Level: "WARN", Message: "critical in Consul", Service: "checkout", Instance: "checkout-5", Container: "shop_checkout_5", Berth: "lb-1", Reason: "HTTP GET http://10.0.0.15:8080/healthz: 503 Service Unavailable"},
		} {
			e.At = now.Add(time.Duration(i-12) * 47 * time.Second)
			f.events = append(f.events, e)
		}
	})
}
