//go:build e2e

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/hashicorp/consul/api"
	"github.com/prometheus/client_golang/prometheus"

	"berth/cmd/berth/status"
	"berth/deploy/testenv"
	"berth/deploy/testenv/browser"
	"berth/registrar/label"
	"berth/templates/claim"
)

// fleet is what a berth that shows the page knows, for tests of the page.
type fleet struct {
	*statusAnswers
	url    string
	consul *testenv.Consul

	mu      sync.Mutex
	catalog status.Catalog
	parts   []status.Part
	servers []status.PartServer
}

// change changes what is known.
func (f *fleet) change(do func()) {
	f.mu.Lock()
	do()
	f.mu.Unlock()
	f.hub.Changed()
}

// startFleet answers HTTP as a berth does that knows what fill fills in.
func startFleet(t testing.TB, fill func(*fleet)) *fleet {
	t.Helper()
	address := testenv.FreeAddress(t, "127.0.0.1")
	consul := testenv.StartConsul(t, testenv.ConsulOptions{Name: testenv.Name(t) + "-consul", Address: address, Docker: []string{"--publish", address + ":8500"}, Args: []string{"-dev", "-client=0.0.0.0", "-node=node-1"}})
	f := &fleet{statusAnswers: &statusAnswers{hub: status.NewHub(), live: newLiveTimes(prometheus.NewRegistry())}, catalog: status.Catalog{}}
	fill(f)
	f.consul = consul
	consul.Answers(t)
	f.hub.Consul, f.hub.Events = consul.Client, status.NewEvents()
	f.hub.IsOwn = func(role, name string) bool { return true }
	f.hub.Own = func(context.Context) []status.Part {
		f.mu.Lock()
		defer f.mu.Unlock()
		return slices.Clone(f.parts)
	}
	f.hub.Servers = func() []status.PartServer {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.servers
	}
	f.hub.Catalog = func() (status.Catalog, bool) {
		f.mu.Lock()
		defer f.mu.Unlock()
		out := status.Catalog{}
		for name, list := range f.catalog {
			out[name] = list
		}
		return out, true
	}
	mux := http.NewServeMux()
	f.handle(mux)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	f.url = "http://" + l.Addr().String() + "/"
	return f
}

// add adds a service with n instances that serve.
func (f *fleet) add(name, host string, n int) {
	templater := f.templater()
	templater.Routes = append(templater.Routes, status.PartRoute{Host: host, Path: "/", Service: name, Backend: name})
	if templater.Services == nil {
		templater.Services = map[string]int{}
	}
	templater.Services[name] = n
	templater.Proxy.Backends++
	templater.Proxy.Servers += n
	for i := range n {
		f.instance(name, i+1)
	}
}

func (f *fleet) instance(name string, i int) {
	id := fmt.Sprintf("host-1:%s_%d:8080", name, i)
	address := fmt.Sprintf("10.%d.%d.%d:8080", len(f.catalog)/200+1, len(f.catalog)%200, i%250)
	now := time.Now()
	f.catalog[name] = append(f.catalog[name], status.Entry{Service: name, ID: id, Node: "node-1", Address: address, Meta: map[string]string{
		label.MetaContainer: fmt.Sprintf("%064x", len(f.servers)), label.MetaStarted: now.Add(-time.Hour).UTC().Format(time.RFC3339Nano), claim.MetaReadyAt: claim.Stamp(now.Add(-59 * time.Minute)),
	}})
	f.servers = append(f.servers, status.PartServer{Address: address, Server: status.Server{Proxy: "lb-1", Backend: name, Name: id, Usable: true, State: "UP", Weight: 1, InFlight: i % 3}})
}

// register puts all instances into Consul's catalog, as agents do.
func (f *fleet) register(t testing.TB) {
	t.Helper()
	work := make(chan status.Entry)
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			for e := range work {
				host, port, _ := net.SplitHostPort(e.Address)
				n, _ := strconv.Atoi(port)
				_, err := f.consul.Catalog().Register(&api.CatalogRegistration{Node: "another", // an agent keeps its own in order
					Address: "10.0.0.1", SkipNodeUpdate: true,
					Service: &api.AgentService{ID: e.ID, Service: e.Service, Address: host, Port: n, Meta: e.Meta},
					Check:   &api.AgentCheck{CheckID: "service:" + e.ID, ServiceID: e.ID, Name: "ttl", Status: "passing"}}, nil)
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	for _, list := range f.catalog {
		for _, e := range list {
			work <- e
		}
	}
	close(work)
	wait.Wait()
}

// templater returns the part of the templater; the registrar's comes before it.
func (f *fleet) templater() *status.Part {
	if len(f.parts) == 0 {
		now := time.Now()
		f.parts = []status.Part{
			{Berth: status.Berth{Role: status.RoleRegistrar, Name: "host-1", Host: "host-1", Version: "v1.0.0", Started: now.Add(-26 * time.Hour), Consul: "127.0.0.1:8500", Docker: "unix:///var/run/docker.sock"}, Host: "host-1"},
			{Berth: status.Berth{Role: status.RoleTemplater, Name: "lb-1", Version: "v1.0.0", Started: now.Add(-26 * time.Hour), Consul: "127.0.0.1:8500"},
				Proxy: &status.Proxy{Name: "lb-1", Kind: "haproxy", Version: "3.2.4", Running: "5f3c9a1e77", Since: now.Add(-4 * time.Minute), By: "runtime", Reason: "add shop/host-1:shop_4:8080"}},
		}
	}
	return &f.parts[1]
}

// usedCPU returns how much of a core this process uses while do runs, which takes a time at least.
func usedCPU(t testing.TB, least time.Duration, do func()) float64 {
	t.Helper()
	now := func() time.Duration {
		var r syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
			t.Fatal(err)
		}
		return time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	before, began := now(), time.Now()
	do()
	if rest := least - time.Since(began); rest > 0 {
		<-time.After(rest)
	}
	return float64(now()-before) / float64(time.Since(began))
}

// BenchmarkE2EPage measures the page, berth status and what they cost with 1,000 services of 10 instances.
func BenchmarkE2EPage(b *testing.B) {
	f := startFleet(b, func(f *fleet) {
		for n := range 1000 {
			f.add(fmt.Sprintf("service-%03d", n), fmt.Sprintf("s%03d.example.com", n), 10)
		}
	})
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	changed := make(chan struct{}, 1)
	publisher := &status.Publisher{Consul: f.hub.Consul, Role: status.RoleTemplater, Name: "lb-1", Changed: changed, Log: slog.New(slog.DiscardHandler),
		Part: func(context.Context) (status.Part, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			return *f.templater(), nil
		}}
	go publisher.Run(ctx)
	f.register(b)
	go f.hub.Run(ctx)
	tab := browser.Start(b, testenv.Name(b)+"-chromium", "host").NewTab(b)
	for b.Loop() {
		took := func(args ...string) float64 {
			var all []time.Duration
			for range 9 {
				began := time.Now()
				out, err := exec.Command(os.Getenv("BERTH"), append([]string{"status"}, args...)...).Output()
				all = append(all, time.Since(began))
				if n := strings.Count(string(out), "/10 "); err != nil || n != 1000 {
					b.Fatalf("%v: %d services: %.2000s", err, n, out)
				}
			}
			slices.Sort(all)
			return float64(all[len(all)/2].Milliseconds())
		}
		b.ReportMetric(took("--listen", strings.Trim(strings.TrimPrefix(f.url, "http://"), "/")), "ms-status")
		b.ReportMetric(took("--listen", "none", "--consul-address", "http://"+f.consul.Address), "ms-status-from-consul")

		began := time.Now()
		tab.Run(chromedp.EmulateViewport(1200, 900), chromedp.Navigate(f.url))
		tab.Until("all services are there", `document.querySelectorAll("#services > li").length == 1000 && performance.getEntriesByName("services shown").length > 0`)
		paints := browser.Ask(tab, chromedp.Evaluate[string](`JSON.stringify({paint: performance.getEntriesByName("first-contentful-paint")[0].startTime, shown: performance.getEntriesByName("services shown")[0].startTime})`))
		var at struct{ Paint, Shown float64 }
		if err := json.Unmarshal([]byte(paints), &at); err != nil {
			b.Fatal(err)
		}
		b.Logf("first paint after %.0f ms, all services after %.0f ms (%v with the browser's start of the tab)", at.Paint, at.Shown, time.Since(began).Round(time.Millisecond))
		b.ReportMetric(at.Paint, "ms-first-paint")
		b.ReportMetric(at.Shown, "ms-services")

		const seconds, perSecond = 20, 10
		quiet := usedCPU(b, seconds*time.Second/4, func() {})
		used := usedCPU(b, seconds*time.Second, func() {
			tick := time.NewTicker(time.Second / perSecond)
			defer tick.Stop()
			for n := range seconds * perSecond {
				<-tick.C
				f.change(func() {
					name := fmt.Sprintf("service-%03d", n)
					list := slices.Clone(f.catalog[name])
					list[0].Checks = []status.Check{{ID: "x", Name: "http", Status: "critical", Output: "500"}}
					f.catalog[name] = list
					f.templater().LeftOut = append(f.templater().LeftOut, status.LeftOut{Service: name, Reason: "for a test"})
				})
				f.hub.Events.Add(status.Event{At: time.Now(), Level: "INFO", Message: "changed", Service: fmt.Sprint(n)})
				select {
				case changed <- struct{}{}:
				default:
				}
			}
		})
		b.Logf("%d changes a second with the page open: %.2f %% of a core, of which %.2f %% without a change", perSecond, 100*used, 100*quiet)
		b.ReportMetric(100*used, "%-of-a-core")
	}
	b.ReportMetric(0, "ns/op")
}
