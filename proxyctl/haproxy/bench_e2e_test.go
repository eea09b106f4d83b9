//go:build e2e

package haproxy

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"berth/deploy/testenv"
	"berth/deploy/testenv/traffic"
	"berth/proxyctl"
)

// BenchmarkE2EProxy changes servers of a real HAProxy under steady requests, in all possible ways, and prints how long that took
// and what it cost. BENCH_HAPROXY may name other images than the default.
func BenchmarkE2EProxy(b *testing.B) {
	for _, image := range images(b, "BENCH_HAPROXY", "IMAGE_HAPROXY") {
		b.Run(strings.NewReplacer("/", "-", ":", "-").Replace(image), func(b *testing.B) {
			p := printed{image: image, load: traffic.LoadAverage()}
			b.Run("runtime", func(b *testing.B) {
				for _, s := range []struct{ servers, changes int }{{10, 5000}, {1000, 5000}} {
					p.part(b, s.servers, func(b *testing.B, r *harness) {
						p.series = append(p.series, r.changes("commands", s.servers, s.changes, 5*time.Millisecond))
					})
				}
			})
			b.Run("reload", func(b *testing.B) {
				for _, s := range []struct{ servers, changes int }{{10, 100}, {1000, 30}} {
					p.part(b, s.servers, func(b *testing.B, r *harness) {
						p.series = append(p.series, r.changes("verified reloads", s.servers, s.changes, 5*time.Millisecond))
					})
				}
			})
			b.Run("signal", func(b *testing.B) {
				for _, s := range []struct{ servers, changes int }{{10, 100}, {1000, 30}} {
					p.part(b, s.servers, func(b *testing.B, r *harness) {
						p.series = append(p.series, r.signals(s.servers, s.changes))
					})
				}
			})
			b.Run("hour", func(b *testing.B) {
				r := startHarness(b, image)
				p.version = r.version
				h := r.hour(hour{changes: 600, reloads: 50, pace: 20 * time.Millisecond})
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(float64(h.failed()), "failed")
				p.hour = &h
			})
			for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
				name := unix.SignalName(sig)
				b.Run(name, func(b *testing.B) {
					r := startHarness(b, image)
					p.version = r.version
					e := r.ends(name, sig, 10)
					b.ReportMetric(0, "ns/op")
					b.ReportMetric(float64(e.requests.Failed()), "failed")
					p.ends = append(p.ends, e)
				})
			}
			for _, every := range []string{"1s", "10s"} {
				b.Run("10000-checked-every-"+every, func(b *testing.B) {
					r := startHarness(b, image)
					p.version = r.version
					p.large = append(p.large, r.large(b, every))
				})
			}
			b.Run("services", func(b *testing.B) {
				r := startHarness(b, image)
				p.version = r.version
				s := r.services(b)
				p.services = &s
			})
			p.print(os.Stdout)
		})
	}
}

// printed is the result of one run with an image.
type printed struct {
	image, version string
	load           string // of the machine, before
	series         []series
	hour           *hourReport
	ends           []ends
	large          []large
	services       *services
}

// part runs a series as a part of the benchmark, and reports its results.
func (p *printed) part(b *testing.B, servers int, f func(*testing.B, *harness)) {
	b.Run(fmt.Sprint(servers), func(b *testing.B) {
		r := startHarness(b, p.image)
		p.version = r.version
		f(b, r)
		s := p.series[len(p.series)-1]
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(traffic.Millis(s.took.Within(0.5)), "ms/median")
		b.ReportMetric(traffic.Millis(s.took.Within(0.99)), "ms/p99")
		b.ReportMetric(float64(s.requests.Failed()), "failed")
		b.ReportMetric(float64(s.reloads), "reloads")
	})
}

// fleet is the servers of a backend that change one after the other.
type fleet struct {
	group
	addresses []string
	made, n   int
}

func newFleet(name string, servers int, addresses []string) *fleet {
	f := &fleet{group: group{name: name}, addresses: addresses}
	for range servers {
		f.add()
	}
	return f
}

func (f *fleet) add() {
	f.made++
	f.servers = append(f.servers, listed{fmt.Sprintf("%s-%06d", f.name, f.made), f.address(f.made), 100})
}

func (f *fleet) address(n int) string { return f.addresses[n%len(f.addresses)] }

// change adds a server, changes the weight of one, moves one, and removes the oldest, in turn.
func (f *fleet) change() {
	f.n++
	i := f.n * 7919 % len(f.servers)
	switch f.n % 4 {
	case 1:
		f.add()
	case 2:
		f.servers[i].weight = 1 + (f.servers[i].weight+f.n)%200
	case 3:
		for n, was := f.n, f.servers[i].address; f.servers[i].address == was; n++ {
			f.servers[i].address = f.address(n)
		}
	case 0:
		f.servers = f.servers[1:]
	}
}

// benchDriver calls a Proxy like a Controller.
type benchDriver struct {
	*harness
	proxy   *Proxy
	tend    <-chan time.Time
	reloads []string // why
}

func (r *harness) drive(opts Options) *benchDriver {
	d := &benchDriver{harness: r, proxy: New(opts)}
	r.Cleanup(d.close)
	return d
}

func (d *benchDriver) close() {
	if d.proxy != nil {
		d.proxy.Close()
	}
}

// held closes the proxy, and returns how much memory that frees, in MB.
func (d *benchDriver) held() float64 {
	d.close()
	before := heap()
	d.proxy = nil
	return before - heap()
}

// wait tends to the proxy until a given time.
func (d *benchDriver) wait(until time.Time) {
	for due := time.After(time.Until(until)); ; {
		select {
		case <-due:
			return
		case <-d.tend:
			d.tended()
		}
	}
}

// tended calls Tend, and reports whether anything is left to tend to.
func (d *benchDriver) tended() bool {
	d.tend = nil
	if in := d.proxy.driver.Tend(d.Context()); in > 0 {
		d.tend = time.After(in)
	}
	return d.tend != nil
}

// apply brings the proxy to a text, and returns when the result was read back.
func (d *benchDriver) apply(text string) proxyctl.Result {
	d.Helper()
	res, err := d.proxy.Apply(d.Context(), onlyText(text), true)
	if err != nil {
		d.Fatal(err)
	}
	if res.Action == proxyctl.Reload {
		d.reloads = append(d.reloads, res.Reason)
	}
	return res
}

// settle returns when HAProxy has exactly these servers, and none is draining.
func (d *benchDriver) settle(want ...group) {
	d.Helper()
	for d.tended() {
		d.wait(time.Now().Add(5 * time.Millisecond))
	}
	testenv.Eventually(d, 20*time.Second, "HAProxy has the servers that are wanted, and no others", func() error { return d.expect(want...) })
}

// series is changes of one server each.
type series struct {
	way      string
	servers  int
	took     traffic.Times // from the text until HAProxy is known to serve it
	reloads  int
	reasons  []string // of unexpected reloads
	lost     string   // of the changes, where loss is possible
	requests traffic.Requests
	busy     float64 // share of the machine's CPU time
	heap     float64 // the Proxy's memory at the end, in MB
}

// changes makes changes one after the other, with a gap in between, by commands or by verified reloads.
func (r *harness) changes(way string, servers, changes int, gap time.Duration) series {
	opts := r.options()
	opts.ReloadOnly = way != "commands"
	d := r.drive(opts)
	f := newFleet("app", servers, r.startApps(20))
	d.apply(r.text("", f.group))
	d.settle(f.group)
	d.reloads = nil
	s := series{way: way, servers: servers}
	t := traffic.Start(r, r.web)
	d.wait(time.Now().Add(time.Second)) // of requests, before the first change
	before := readProcessors()
	for range changes {
		f.change()
		text := r.text("", f.group)
		due := time.Now().Add(gap)
		d.wait(due)
		d.apply(text)
		s.took = append(s.took, time.Since(due))
	}
	s.busy = busy(before)
	s.requests, s.reloads = t.End(), len(d.reloads)
	if !opts.ReloadOnly {
		s.reasons = d.reloads
	}
	d.settle(f.group)
	s.took, s.heap = s.took.Sorted(), d.held()
	return s
}

// signals makes changes as scripts do: a new file, and SIGUSR2 to the master. Scripts get no result, so they continue at once,
// and check only every fifth change.
func (r *harness) signals(servers, changes int) series {
	const most = time.Second
	f := newFleet("app", servers, r.startApps(20))
	s := series{way: "SIGUSR2 and hope", servers: servers, reloads: changes}
	asked, lost := 0, 0
	signal := func() {
		if err := renameio.WriteFile(r.file(), []byte(r.text("", f.group)), 0o644); err != nil {
			r.Fatal(err)
		}
		if out, err := exec.Command("docker", "kill", "--signal", "USR2", r.id).CombinedOutput(); err != nil {
			r.Fatalf("docker kill: %v: %s", err, out)
		}
	}
	live := func() (time.Time, bool) {
		for end := time.Now().Add(most); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
			if r.expect(f.group) == nil {
				return time.Now(), true
			}
		}
		return time.Now(), false
	}
	signal()
	live()
	t := traffic.Start(r, r.web)
	before := readProcessors()
	for n := range changes {
		f.change()
		due := time.Now()
		signal()
		if n%5 < 4 {
			continue
		}
		asked++
		if at, ok := live(); ok {
			s.took = append(s.took, at.Sub(due))
			continue
		}
		lost++
		signal()
		live()
	}
	s.busy = busy(before)
	s.requests = t.End()
	s.lost = fmt.Sprintf("%d of %d", lost, asked)
	s.took = s.took.Sorted()
	return s
}

// ends is the cost of applications that end while they have requests.
type ends struct {
	signal   string
	times    int
	requests traffic.Requests
}

// ends repeatedly stops one of four applications until HAProxy's checks notice, and starts it again. HAProxy is not told.
func (r *harness) ends(name string, sig syscall.Signal, count int) ends {
	g := group{name: "app"}
	var apps []*appProcess
	for i := range 4 {
		apps = append(apps, startAppProcess(r, testenv.FreeAddress(r, appIP)))
		g.servers = append(g.servers, listed{fmt.Sprint("app-", i), apps[i].address, 1})
	}
	d := r.drive(r.options())
	d.apply(r.text("", g))
	d.settle(g)
	t := traffic.Start(r, r.web)
	for n := range count {
		d.wait(time.Now().Add(500 * time.Millisecond)) // of requests to all
		p := apps[n%len(apps)]
		p.end(sig)
		testenv.Eventually(r, 10*time.Second, "HAProxy notices that an application has ended", func() error {
			if r.expect(g) == nil {
				return fmt.Errorf("all are up")
			}
			return nil
		})
		apps[n%len(apps)] = startAppProcess(r, p.address)
		testenv.Eventually(r, 10*time.Second, "HAProxy notices that the application is back", func() error { return r.expect(g) })
	}
	return ends{name, count, t.End()}
}

// step is a change of many servers.
type step struct {
	what      string
	took      time.Duration
	action    proxyctl.Action
	requests  traffic.Requests // meanwhile
	worker    float64          // the memory of HAProxy's worker afterwards, in MB
	process   float64          // the memory of this process
	processor float64          // HAProxy's share of a CPU in the second after the change
}

// large is the cost of 10,000 servers in 100 backends.
type large struct {
	every string // how often each is checked
	steps []step
	heap  float64 // the Proxy's memory at the end, in MB
}

func (r *harness) large(b *testing.B, every string) large {
	apps := r.startApps(20)
	var fleets []*fleet
	var paths []string
	for i := range 100 {
		name := fmt.Sprintf("app%02d", i)
		fleets = append(fleets, newFleet(name, 100, apps))
		paths = append(paths, "/"+name+"/")
	}
	text := func() (string, []group) {
		var groups []group
		for _, f := range fleets {
			groups = append(groups, f.group)
		}
		return strings.Replace(r.text("", groups...), "check inter 1s", "check inter "+every, 1), groups
	}
	d := r.drive(r.options())
	d.apply(r.text("", group{name: "app"}))
	var t *traffic.Load
	var steps []step
	var from, to []time.Time
	do := func(what string, change func()) {
		change()
		text, groups := text()
		start := time.Now()
		res := d.apply(text)
		end := time.Now()
		d.settle(groups...)
		pid := r.worker()
		used, since := processorTime(pid), time.Now()
		d.wait(time.Now().Add(time.Second)) // to measure an idle one
		s := step{what: what, took: end.Sub(start), action: res.Action, worker: memory(pid, "VmRSS"), process: memory(os.Getpid(), "VmRSS")}
		s.processor = float64(processorTime(pid)-used) / float64(time.Since(since))
		steps, from, to = append(steps, s), append(from, start), append(to, end)
		b.ReportMetric(traffic.Millis(s.took), strings.ReplaceAll(what, " ", "-")+"-ms")
	}
	do("all 10,000 from nothing", func() {})
	t = traffic.Start(r, r.web, paths...) // the earlier requests have no servers now
	do("1 added", func() { fleets[0].add() })
	do("1,000 added", func() {
		for _, f := range fleets {
			for range 10 {
				f.add()
			}
		}
	})
	do("1,000 removed", func() {
		for _, f := range fleets {
			f.servers = f.servers[10:]
		}
	})
	all := t.End()
	for i := range steps {
		steps[i].requests, _ = all.During(from[i], to[i])
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(all.Failed()), "failed")
	if why := all.Failures(); why != "" {
		b.Logf("failed: %s", why)
	}
	return large{every, steps, d.held()}
}

// heap returns the memory of this process, in MB.
func heap() float64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / (1 << 20)
}

// processors is the machine's CPU time, in ticks.
type processors struct{ idle, all int }

func readProcessors() (p processors) {
	b, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(b), "\n") // cpu user nice system idle iowait irq softirq steal guest guest_nice
	for i, f := range strings.Fields(line) {
		n, err := strconv.Atoi(f)
		if err != nil || i > 8 { // guest is already counted in user
			continue
		}
		p.all += n
		if i == 4 || i == 5 {
			p.idle += n
		}
	}
	return p
}

// busy returns the share of CPU time used since then.
func busy(since processors) float64 {
	now := readProcessors()
	return 1 - float64(now.idle-since.idle)/float64(max(1, now.all-since.all))
}

// print writes the tables for a reader.
func (p *printed) print(w io.Writer) {
	fmt.Fprintf(w, "\nHAProxy %s (%s), %d processors, load average before %s. All the time %d requests/s, open loop, half of them over\n"+
		"kept connections. Times are in milliseconds. Failed requests: over kept connections / over new ones.\n", p.version, p.image, runtime.NumCPU(), p.load, traffic.Rate)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	if len(p.series) > 0 {
		fmt.Fprint(w, "\nOne server changed after the other: from the text to the moment at which HAProxy is known to serve it.\n\n")
		fmt.Fprintln(t, "by\tservers\tchanges\tmedian\tp99\tmax\treloads\tlost\tfailed\tresent\trequests: p99\tslowest\tmachine busy\tProxy's heap MB\t")
		for _, s := range p.series {
			took := s.requests.Took()
			n := len(s.took)
			fmt.Fprintf(t, "%s\t%d\t%d\t%s\t%s\t%s\t%d\t%s\t%s\t%d\t%s\t%s\t%.0f %%\t%.1f\t\n", s.way, s.servers, n, traffic.Ms(s.took.Within(0.5)), traffic.Ms(s.took.Within(0.99)), traffic.Ms(s.took.Within(1)),
				s.reloads, s.lost, failed(s.requests), s.requests.Resent(), traffic.Ms(took.Within(0.99)), traffic.Ms(took.Within(1)), 100*s.busy, s.heap)
		}
		t.Flush()
		for _, s := range p.series {
			for _, why := range s.reasons {
				fmt.Fprintf(w, "Reloaded, %d servers: %s\n", s.servers, why)
			}
			if why := s.requests.Failures(); why != "" {
				fmt.Fprintf(w, "Failed, by %s, %d servers: %s\n", s.way, s.servers, why)
			}
		}
		for _, a := range p.series {
			for _, b := range p.series {
				if a.way == "commands" && b.way != a.way && a.servers == b.servers && len(b.took) > 0 {
					fmt.Fprintf(w, "%d servers: %s / %s = %.1f\n", a.servers, b.way, a.way, float64(b.took.Within(0.5))/float64(a.took.Within(0.5)))
				}
			}
		}
	}
	if p.hour != nil {
		fmt.Fprintf(w, "\nAn hour in small: %s\n", p.hour)
	}
	for _, e := range p.ends {
		fmt.Fprintf(w, "\n%s to one of 4 applications, %d times; nobody tells HAProxy: %s%s\n", e.signal, e.times, e.requests, e.requests.Failures())
	}
	for _, l := range p.large {
		fmt.Fprintf(w, "\n10,000 servers in 100 backends, each checked every %s.\n\n", l.every)
		fmt.Fprintln(t, "change\tby\tms\tfailed\trequests: p99\tslowest\tHAProxy's worker MB\tits processor after\tthis process MB\t")
		for _, s := range l.steps {
			took := s.requests.Took()
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%.0f\t%.0f %%\t%.0f\t\n", s.what, s.action, traffic.Ms(s.took), failed(s.requests),
				traffic.Ms(took.Within(0.99)), traffic.Ms(took.Within(1)), s.worker, 100*s.processor, s.process)
		}
		t.Flush()
		fmt.Fprintf(w, "In the end the Proxy holds %.1f MB.\n", l.heap)
	}
	if p.services != nil {
		p.services.print(w)
	}
}

// failed returns how many requests failed, over kept and over new connections.
func failed(rs traffic.Requests) string {
	kept, fresh := rs.Of(true), rs.Of(false)
	return fmt.Sprintf("%d / %d of %d", kept.Failed(), fresh.Failed(), len(rs))
}
