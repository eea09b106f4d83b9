//go:build e2e

package nginx_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"berth/deploy/testenv"
	"berth/deploy/testenv/traffic"
	"berth/proxyctl"
)

const (
	benchServers  = 4                      // of the service, at any time
	benchLive     = 100                    // changes for which the time until they are live is measured
	benchChanges  = 200                    // changes under requests
	benchPace     = 250 * time.Millisecond // between two changes: each may be a reload
	benchClosing  = 0                      // additional time in which clients are told of a reload; berth's default
	benchFast     = 20 * time.Millisecond  // between two changes that a Controller combines
	benchInterval = 200 * time.Millisecond // between its reloads; berth's default
	benchRounds   = 3                      // of throughput, alternating
	benchRound    = 4 * time.Second
	benchConns    = 50
)

// BenchmarkE2ENginx has HAProxy and nginx, with the configurations of the built-in templates, go through the same changes of a
// service's servers. It prints how soon these were live, which requests they cost, and how many requests per second go through.
// BENCH_NGINX may name other images than the default.
func BenchmarkE2ENginx(b *testing.B) {
	load := traffic.LoadAverage()
	all := startContenders(b)
	for _, c := range all {
		b.Run(c.part(), func(b *testing.B) {
			b.ReportMetric(0, "ns/op")
			c.measureLive(b)
			c.measureChanges(b)
			c.measureCoalesced(b)
		})
	}
	b.Run("throughput", func(b *testing.B) { measureThroughput(b, all) })
	printContenders(os.Stdout, all, load)
}

// contender is a running proxy, a way to change its servers, and the results.
type contender struct {
	name  string
	web   string                                 // address of its frontend
	open  func() proxyctl.Proxy                  // makes the Proxy that changes its servers
	text  func(servers []string) proxyctl.Config // of the built-in template
	fixed bool                                   // its servers do not change
	apps  *benchApps

	master int // process of nginx

	arrived, applied traffic.Times // from the text to the first request at the new server, and until Apply returned
	each, coalesced  outcome
	rates            traffic.Rates
}

// outcome is the result of changes under requests.
type outcome struct {
	reloads  int
	requests traffic.Requests
}

// part returns its name in the output of go test.
func (c *contender) part() string {
	return strings.NewReplacer(",", "", "(", "", ")", "", " ", "-", "/", "-", ":", "-").Replace(c.name)
}

// benchDriver calls a Proxy like a Controller, and counts its reloads.
type benchDriver struct {
	proxyctl.Proxy
	reloads int
	rest    func() // ends the background work
}

func (d *benchDriver) Apply(ctx context.Context, c proxyctl.Config, mayReload bool) (proxyctl.Result, error) {
	res, err := d.Proxy.Apply(ctx, c, mayReload)
	if res.Action == proxyctl.Reload && err == nil {
		d.reloads++
	}
	return res, err
}

// bring brings the proxy to these servers.
func (d *benchDriver) bring(b *testing.B, c *contender, servers []string) {
	b.Helper()
	if _, err := d.Apply(b.Context(), c.text(servers), true); err != nil {
		b.Fatalf("%s: %v", c.name, err)
	}
}

func (d *benchDriver) stop() {
	d.rest()
	d.Close()
}

// drive opens the way to change servers, and brings the proxy to the first ones. Work that can wait is done in the background.
func (c *contender) drive(b *testing.B, servers []string) *benchDriver {
	d := &benchDriver{Proxy: c.open()}
	ctx, stop := context.WithCancel(b.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); d.Run(ctx) }()
	d.rest = func() { stop(); <-ended }
	d.bring(b, c, servers)
	time.Sleep(benchPace)
	d.reloads = 0
	return d
}

// measureLive replaces one server after the other. The only load is a sequence of requests over new connections, each sent when
// the previous one is answered.
func (c *contender) measureLive(b *testing.B) {
	if c.fixed {
		return
	}
	d := c.drive(b, c.apps.inService())
	defer d.stop()
	ctx, stop := context.WithCancel(b.Context())
	var probe sync.WaitGroup
	defer probe.Wait()
	defer stop()
	probe.Go(func() {
		client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		for ctx.Err() == nil {
			_, _ = testenv.Fetch(ctx, client, "http://"+c.web+"/")
		}
	})
	for range benchLive {
		servers, arrival := c.apps.replace()
		config := c.text(servers)
		began := time.Now()
		_, err := d.Apply(b.Context(), config, true)
		if err != nil {
			b.Fatalf("%s: %v", c.name, err)
		}
		c.applied = append(c.applied, time.Since(began))
		select {
		case at := <-arrival:
			c.arrived = append(c.arrived, at.Sub(began))
		case <-time.After(10 * time.Second):
			b.Fatalf("%s: no request has reached the new server within 10 s", c.name)
		}
		time.Sleep(benchPace)
	}
	c.arrived, c.applied = c.arrived.Sorted(), c.applied.Sorted()
	b.ReportMetric(traffic.Millis(c.arrived.Within(0.5)), "ms/first-request")
	b.ReportMetric(traffic.Millis(c.applied.Within(0.5)), "ms/applied")
}

// measureChanges makes changes under steady requests, each applied at once.
func (c *contender) measureChanges(b *testing.B) {
	if c.fixed {
		return
	}
	d := c.drive(b, c.apps.inService())
	defer d.stop()
	t := traffic.Start(b, c.web)
	time.Sleep(time.Second) // of requests, before the first change
	for range benchChanges {
		servers, _ := c.apps.replace()
		d.bring(b, c, servers)
		time.Sleep(benchPace)
	}
	c.each = outcome{d.reloads, t.End()}
	b.ReportMetric(float64(c.each.requests.Failed()), "failed")
	b.ReportMetric(float64(c.each.requests.Resent()), "resent")
}

// measureCoalesced gives as many changes to a Controller, fast enough that it needs fewer reloads.
func (c *contender) measureCoalesced(b *testing.B) {
	if c.fixed {
		return
	}
	d := c.drive(b, c.apps.inService())
	d.rest() // the Controller does it
	controller := proxyctl.New(proxyctl.Options{Proxy: d, Interval: benchInterval, Log: slog.New(slog.DiscardHandler)})
	ctx, stop := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	go func() { ended <- controller.Run(ctx) }()
	t := traffic.Start(b, c.web)
	time.Sleep(time.Second) // of requests, before the first change
	var live <-chan time.Time
	for range benchChanges {
		var servers []string
		servers, live = c.apps.replace()
		controller.Set(c.text(servers), time.Now())
		time.Sleep(benchFast)
	}
	select {
	case <-live:
	case <-time.After(20 * time.Second):
		b.Fatalf("%s: the last change is not live within 20 s", c.name)
	}
	time.Sleep(benchPace) // old workers end
	requests := t.End()
	stop()
	if err := <-ended; err != nil {
		b.Fatalf("%s: %v", c.name, err)
	}
	c.coalesced = outcome{d.reloads, requests}
}

// measureThroughput has each proxy forward as many requests as it can, in turns, while its servers change every second.
func measureThroughput(b *testing.B, all []*contender) {
	b.ReportMetric(0, "ns/op")
	origin := startOrigin(b)
	for range benchRounds {
		for _, c := range all {
			c.rates = append(c.rates, c.throughput(b, origin))
		}
	}
	for _, c := range all {
		b.ReportMetric(c.rates.Median(), c.part()+"/s")
	}
}

func (c *contender) throughput(b *testing.B, origin []string) float64 {
	d := c.drive(b, origin)
	defer d.stop()
	rate := make(chan float64)
	go func() { rate <- traffic.Throughput(b, c.web, benchConns, benchRound) }()
	for n := 0; ; n++ {
		select {
		case r := <-rate:
			return r
		case <-time.After(time.Second):
			if c.fixed {
				continue
			}
			i := n % len(origin)
			d.bring(b, c, slices.Concat(origin[:i], origin[i+1:]))
		}
	}
}

// printContenders writes the table for a reader.
func printContenders(w io.Writer, all []*contender, load string) {
	fmt.Fprintf(w, "\n%d processors, load average before %s. A service has %d servers, and one is replaced at a time, in the configurations of\n"+
		"the shipped templates without logs of requests. Times are in milliseconds.\n\n"+
		"%d changes without other load: from the text to the first request at the new server, over a new connection, and until\n"+
		"Apply returned. Then %d requests/s, open loop: failed are those over kept connections / over new ones. Resent are those\n"+
		"that Go's client sent again since their kept connection broke: a client that does not do so loses them. Meanwhile %d changes,\n"+
		"one each %s, and after that as many, one each %s, by a Controller that reloads each %s at most.\n\n",
		runtime.NumCPU(), load, benchServers, benchLive, traffic.Rate, benchChanges, benchPace, benchFast, benchInterval)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "by\tfirst request\tp99\tApply\tp99\treloads\tfailed\tresent\trequests: p99\tcoalesced: reloads\tfailed\tresent\t")
	for _, c := range all {
		if c.fixed || len(c.applied) == 0 { // left out by -bench
			continue
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%d\t%s\t%d\t%s\t%d\t\n", c.name, traffic.Ms(c.arrived.Within(0.5)), traffic.Ms(c.arrived.Within(0.99)),
			traffic.Ms(c.applied.Within(0.5)), traffic.Ms(c.applied.Within(0.99)), c.each.reloads, c.each.failed(), c.each.requests.Resent(),
			traffic.Ms(c.each.requests.Took().Within(0.99)), c.coalesced.reloads, c.coalesced.failed(), c.coalesced.requests.Resent())
	}
	t.Flush()
	for _, c := range all {
		if why := c.each.requests.Failures(); why != "" {
			fmt.Fprintf(w, "Failed, %s: %s\n", c.name, why)
		}
	}
	fmt.Fprintf(w, "\nThroughput: %d kept connections, each sends when the one before is answered, %d rounds of %s by turns, one change each second.\n\n", benchConns, benchRounds, benchRound)
	fmt.Fprintln(t, "by\trequests/s\tfrom\tto\t")
	for _, c := range all {
		if len(c.rates) == 0 {
			continue
		}
		fmt.Fprintf(t, "%s\t%.0f\t%.0f\t%.0f\t\n", c.name, c.rates.Median(), slices.Min(c.rates), slices.Max(c.rates))
	}
	t.Flush()
}

// failed returns how many requests failed, over kept and over new connections.
func (o outcome) failed() string {
	return fmt.Sprintf("%d / %d of %d", o.requests.Of(true).Failed(), o.requests.Of(false).Failed(), len(o.requests))
}
