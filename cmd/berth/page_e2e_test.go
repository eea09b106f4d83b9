//go:build e2e

package main

import (
	"bytes"
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

func (f *fleet) registrar() *status.Part { f.templater(); return &f.parts[0] }

const (
	serviceRow = `[...document.querySelectorAll("#services > li")].find(li => li.querySelector(".toggle").textContent == %q)`
	hostile    = `"><script>window.hacked=1</script><img src=x onerror="window.hacked=1">` + "\u202e" + `'&amp;`
)

// row is an expression about the row of a service.
func row(service, expression string) string {
	return fmt.Sprintf("(li => !!li && ("+expression+"))("+serviceRow+")", service)
}

// sample is a small fleet with some trouble.
func sample(f *fleet) {
	for _, s := range []struct {
		name, host string
		n          int
	}{{"api", "api.example.com", 4}, {"shop", "shop.example.com", 4}, {"cart", "cart.example.com", 2}, {"search", "search.example.com", 3}, {"blog", "blog.example.com", 1},
		{"images", "images.example.com", 2}, {"login", "login.example.com", 2}, {"mail", "mail.example.com", 1}, {"docs", "docs.example.com", 1}, {"status-board", "status.example.com", 1}} {
		f.add(s.name, s.host, s.n)
	}
	for i := range f.servers {
		if s := &f.servers[i]; s.Name == "host-1:cart_2:8080" {
			s.Usable, s.State, s.Check = false, "DOWN", "L4CON: Connection refused"
			f.templater().Servers = append(f.templater().Servers, *s)
		}
	}
	r := f.registrar()
	r.Containers = append(r.Containers, status.PartContainer{Name: "payments_1", ID: "p1", Meant: true, Started: time.Now().Add(-time.Minute), Reasons: []string{
		"it is on none of the networks front that the load balancer is on: connect it to one, or publish its port"}})
	r.Containers = append(r.Containers, status.PartContainer{Name: "reports_1", ID: "r1", Meant: true, Started: time.Now(), Instances: []status.PartInstance{{Service: "reports", ID: "host-1:reports_1:8080",
		Address: "10.1.9.9:8080", State: "waiting", Reason: "for 12s; not ready: dial tcp 10.1.9.9:8080: connect: connection refused"}}})
}

// tell tells of some changes and times, as the log does.
func (f *fleet) tell() {
	log := slog.New(f.hub.Events.Handler(slog.DiscardHandler))
	log.Info("registered", "service", "shop", "instance", "host-1:shop_4:8080", "container", "9f2c1d0e77aa")
	log.Info("shop: 3 → 4 servers, live after 9 ms", "backend", "shop")
	log.Warn("registered, but ignored SERVICE_ROUTE_HOSTS: unknown key, did you mean SERVICE_ROUTE_HOST?", "container", "blog_1")
	log.Info("out of service", "service", "cart", "instance", "host-1:cart_1:8080", "reason", "the container is being stopped by SIGTERM")
	for i := range 60 {
		f.live.last500 = append(f.live.last500, liveTime{time.Now(), "shop", fmt.Sprint("shop_", i), .006 + float64(i*i%37)/2000})
	}
}

// Everything that strangers may have written is shown as text, and what changes comes without the page being loaded again.
func TestE2EPage(t *testing.T) {
	f := startFleet(t, sample)
	f.tell()
	tab := browser.Start(t, testenv.Name(t)+"-chromium", "host").NewTab(t)
	tab.Run(chromedp.EmulateViewport(1200, 900), chromedp.Navigate(f.url))
	tab.Until("it shows the services", `document.querySelectorAll("#services > li").length == 11`)
	tab.Run(chromedp.Evaluate[chromedp.Void](`window.loaded = "once"`))

	t.Run("trouble comes first, with its reason", func(t *testing.T) {
		tab.Until("cart is degraded", row("cart", `li.innerText.includes("degraded") && li.innerText.includes("L4CON: Connection refused") && li == document.querySelector("#services > li")`))
		tab.Until("containers that register nothing", `document.querySelector("#meant").innerText.includes("on none of the networks")`)
	})
	t.Run("it is used by keys", func(t *testing.T) {
		press := func(keys string) { tab.Run(chromedp.KeyEvent(keys)) }
		press("/")
		tab.Until("the search has the focus", `document.activeElement.id == "search"`)
		tab.Run(chromedp.Evaluate[chromedp.Void](`document.querySelector("#search").value = ""`)) // the driver types what the page has taken
		press("cart")
		tab.Until("the search finds", `[...document.querySelectorAll("#services > li")].filter(li => !li.hidden).length == 1`)
		press("\t")
		tab.Until("the focus goes to the service", `document.activeElement.textContent == "cart"`)
		press("\r")
		tab.Until("it opens", row("cart", `li.querySelectorAll(".instance").length == 2 && li.querySelector(".toggle").getAttribute("aria-expanded") == "true"`))
		tab.Until("the chain ends in the proxy", row("cart", `[...li.querySelectorAll(".chain .stop")].some(e => e.textContent.startsWith("taking requests"))`))
		press("\r")
		tab.Until("it closes", row("cart", `li.querySelector(".more").hidden`))
		tab.Run(chromedp.Evaluate[chromedp.Void](`document.querySelector("#search").value = ""; document.querySelector("#search").dispatchEvent(new Event("input"))`))
	})
	t.Run("1 → 5", func(t *testing.T) {
		tab.Until("blog has one", row("blog", `li.innerText.includes("1/1")`))
		f.change(func() {
			for i := range 4 {
				f.instance("blog", i+2)
			}
			f.templater().Services["blog"] = 5
		})
		took := tab.Until("blog has five", row("blog", `li.innerText.includes("5/5")`))
		t.Logf("five are shown after %v", took)
	})
	t.Run("a reason is shown within a second", func(t *testing.T) {
		f.change(func() {
			list := slices.Clone(f.catalog["docs"])
			list[0].Checks = []status.Check{{ID: "x", Name: "http", Status: "critical", Output: "HTTP GET http://10.1.8.1/: 500 " + hostile}}
			f.catalog["docs"] = list
		})
		took := tab.Until("docs is down", row("docs", `li.innerText.includes("down") && li.innerText.includes("500")`))
		if t.Logf("shown after %v", took); took > time.Second {
			t.Errorf("shown after %v", took)
		}
	})
	t.Run("hostile text is text", func(t *testing.T) {
		f.change(func() {
			f.templater().LeftOut = append(f.templater().LeftOut, status.LeftOut{Service: "api", Reason: hostile}, status.LeftOut{Service: hostile, Reason: strings.Repeat(hostile, 50)})
			f.templater().Routes = append(f.templater().Routes, status.PartRoute{Host: "javascript:alert(1)", Path: "/" + hostile, Service: "api", Backend: hostile})
			f.registrar().Containers = append(f.registrar().Containers, status.PartContainer{Name: hostile, ID: "h", Meant: true, Reasons: []string{hostile}})
		})
		slog.New(f.hub.Events.Handler(slog.DiscardHandler)).Warn(hostile, "reason", hostile)
		tab.Run(chromedp.Evaluate[chromedp.Void](fmt.Sprintf(serviceRow, "api") + `.querySelector(".toggle").click()`))
		tab.Until("it is shown", row("api", `li.querySelector(".more").textContent.includes("<script>window.hacked=1</script>")`))
		tab.Until("it is among the changes", `document.querySelector("#events").textContent.includes("<img src=x")`)
		tab.Until("the container is listed", `document.querySelector("#meant").textContent.includes("<script>")`)
		for what, expression := range map[string]string{
			"no script of it ran":           `window.hacked === undefined`,
			"no element is of it":           `document.querySelectorAll("main img, main script").length == 0`,
			"links go to hosts only":        `[...document.links].every(a => /^http:\/\/[a-z0-9.-]+\/|#services$/.test(a.href))`,
			"the page was not loaded again": `window.loaded == "once"`,
		} {
			if !browser.Ask(tab, chromedp.Evaluate[bool](expression)) {
				t.Errorf("not so: %s", what)
			}
		}
	})
	t.Run("contrast", func(t *testing.T) {
		for _, scheme := range []string{"light", "dark"} {
			tab.Scheme(scheme)
			bad := browser.Ask(tab, chromedp.Evaluate[string](contrast))
			if bad != "" {
				t.Errorf("%s: %s", scheme, bad)
			}
		}
	})
	t.Run("on a phone", func(t *testing.T) {
		tab.Run(chromedp.EmulateViewport(360, 740))
		tab.Until("nothing is wider than it", `document.documentElement.scrollWidth <= 360`)
		tab.Screenshot("phone.png")
	})
}

// contrast is a script that returns what texts have less than 4.5 between them and what is behind them (WCAG 2.2, 1.4.3).
const contrast = `(() => {
	const lum = c => { const v = c.map(x => { x /= 255; return x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4 }); return .2126 * v[0] + .7152 * v[1] + .0722 * v[2] };
	const rgb = s => s.match(/[\d.]+/g).map(Number);
	const behind = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c } return [255, 255, 255] };
	const bad = new Set();
	for (const e of document.querySelectorAll("body *")) {
		if (![...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim()) || !e.checkVisibility() || e.closest("svg, script, style")) continue;
		const a = lum(rgb(getComputedStyle(e).color).slice(0, 3)), b = lum(behind(e).slice(0, 3)), ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
		if (ratio < 4.5) bad.add(e.tagName + "." + e.className + " " + ratio.toFixed(2));
	}
	return [...bad].join(", ");
})()`

// The picture of the page in the README. UPDATE_SCREENSHOT=1 writes it anew.
func TestE2EPageScreenshot(t *testing.T) {
	f := startFleet(t, sample)
	f.tell()
	tab := browser.Start(t, testenv.Name(t)+"-chromium", "host").NewTab(t)
	tab.Run(chromedp.EmulateViewport(1200, 760), chromedp.Navigate(f.url))
	tab.Until("it shows the services", `document.querySelectorAll("#services > li").length == 11 && document.querySelectorAll("#plot circle").length > 0`)
	tab.Run(chromedp.Evaluate[chromedp.Void](fmt.Sprintf(serviceRow, "cart") + `.querySelector(".toggle").click()`))
	tab.Until("a service is open", row("cart", `li.querySelectorAll(".instance").length == 2`))
	shot := tab.Screenshot("page.png")
	if !bytes.HasPrefix(shot, []byte("\x89PNG")) || len(shot) < 20_000 || len(shot) > 300_000 {
		t.Errorf("the picture has %d bytes", len(shot))
	}
	if os.Getenv("UPDATE_SCREENSHOT") != "" {
		if err := os.WriteFile("../../docs/page.png", shot, 0o644); err != nil {
			t.Fatal(err)
		}
	}
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
		tab.Until("all services are there", `document.querySelectorAll("#services > li").length == 1000`)
		paints := browser.Ask(tab, chromedp.Evaluate[string](`JSON.stringify({paint: performance.getEntriesByName("first-contentful-paint")[0].startTime, shown: performance.getEntriesByName("berth-shown")[0].startTime})`))
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
