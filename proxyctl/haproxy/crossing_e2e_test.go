//go:build e2e

package haproxy

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"berth/deploy/testenv/traffic"
)

// BenchmarkE2ECrossing finds the number of servers from which a reload is cheaper than adding them one after the other, and how
// many to add in one exchange. mostWork, maxCommands and maxLine come from it. It is not part of make bench-proxy, and takes some
// minutes.
func BenchmarkE2ECrossing(b *testing.B) {
	for _, image := range images(b, "BENCH_HAPROXY", "IMAGES_HAPROXY", "IMAGE_HAPROXY") {
		b.Run(strings.NewReplacer("/", "-", ":", "-").Replace(image), func(b *testing.B) {
			r := startHarness(b, image)
			c := &crossing{benchDriver: r.drive(reloadOnly(r.options())), apps: r.startApps(20)}
			var bySize, byExchange []crossed
			for _, size := range []struct{ servers, others int }{{10, 0}, {100, 0}, {1000, 0}, {3000, 0}, {100, 9900}} {
				for _, n := range []int{20, 100, 300, 1000} {
					bySize = append(bySize, c.best(size.servers, size.others, n, 20))
				}
			}
			for _, m := range []int{100, 1000, 3000} {
				for _, n := range []int{1, 5, 20, 75} {
					byExchange = append(byExchange, c.best(m, 0, 300, n))
				}
			}
			fmt.Printf("\nHAProxy %s, load average %s. Servers are added to a backend of one size, 20 in one exchange; or a reload does it. In the\nother table the exchanges differ. Times are the best of five tries.\n\n", r.version, traffic.LoadAverage())
			print := func(list []crossed) {
				t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
				fmt.Fprintln(t, "servers\tin other backends\tadded\tin one exchange\tms\tµs each\tlongest exchange\trequests: p99\tslowest\tfailed\treload ms\trequests: p99\tslowest\tfailed\t")
				for _, x := range list {
					add, load := x.whileAdding.Took(), x.whileReloading.Took()
					fmt.Fprintf(t, "%d\t%d\t%d\t%d\t%s\t%.0f\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t%d\t\n", x.servers, x.others, x.added, x.each,
						traffic.Ms(x.adding), 1000*traffic.Millis(x.adding)/float64(x.added), traffic.Ms(x.longest), traffic.Ms(add.Within(0.99)), traffic.Ms(add.Within(1)), x.whileAdding.Failed(),
						traffic.Ms(x.reloading), traffic.Ms(load.Within(0.99)), traffic.Ms(load.Within(1)), x.whileReloading.Failed())
				}
				t.Flush()
				fmt.Println()
			}
			print(bySize)
			print(byExchange)
			b.ReportMetric(0, "ns/op")
		})
	}
}

func reloadOnly(opts Options) Options {
	opts.ReloadOnly, opts.Timeout = true, time.Minute
	return opts
}

type crossing struct {
	*benchDriver
	apps []string
}

// crossed is the time to add servers to a backend.
type crossed struct {
	servers, others             int
	added, each                 int
	adding, longest, reloading  time.Duration
	whileAdding, whileReloading traffic.Requests
}

// best returns the shortest times of several tries, because the machine may be busy with other work, and all requests.
func (c *crossing) best(m, others, n, each int) crossed {
	best := c.cross(m, others, n, each)
	for range 4 {
		x := c.cross(m, others, n, each)
		best.adding, best.longest, best.reloading = min(best.adding, x.adding), min(best.longest, x.longest), min(best.reloading, x.reloading)
		best.whileAdding = append(best.whileAdding, x.whileAdding...)
		best.whileReloading = append(best.whileReloading, x.whileReloading...)
	}
	return best
}

// cross adds n servers to a backend of m by commands, in one exchange each, and then again by a reload.
func (c *crossing) cross(m, others, n, each int) crossed {
	c.Helper()
	var more []group
	for i := range others / 100 {
		more = append(more, newFleet(fmt.Sprint("other", i), 100, c.apps).group)
	}
	text := func(f *fleet) string {
		// Checks are rare: ten thousand per second are work enough.
		return strings.Replace(c.text("", append([]group{f.group}, more...)...), "check inter 1s", "check inter 1m", 1)
	}
	f := newFleet("app", m, c.apps)
	before := text(f)
	for range n {
		f.add()
	}
	after := text(f)
	c.apply(before)
	ops := compare(parse(before, nil), parse(after, nil)).Ops
	if len(ops) != n {
		c.Fatalf("%d ops, want %d", len(ops), n)
	}
	x := crossed{servers: m, others: others, added: n, each: each}
	t := traffic.Start(c, c.web)
	c.wait(time.Now().Add(300 * time.Millisecond))
	began := time.Now()
	for some := range slices.Chunk(ops, each) {
		var lines []string
		for _, o := range some {
			for _, command := range o.commands(c.proxy.driver.nextID("app")) {
				lines = append(lines, command.text)
			}
		}
		start := time.Now()
		reply, err := c.proxy.driver.master.worker(c.Context(), lines...)
		if err != nil || strings.Count(reply, saidAdded) != len(some) {
			c.Fatalf("%d servers added, want %d, %v: %s", strings.Count(reply, saidAdded), len(some), err, oneLine(reply))
		}
		x.longest = max(x.longest, time.Since(start))
	}
	added := time.Now()
	x.adding = added.Sub(began)
	c.wait(time.Now().Add(100 * time.Millisecond))
	start := time.Now()
	c.apply(after)
	reloaded := time.Now()
	x.reloading = reloaded.Sub(start)
	c.wait(time.Now().Add(100 * time.Millisecond))
	all := t.End()
	x.whileAdding, _ = all.During(began, added)
	x.whileReloading, _ = all.During(start, reloaded)
	return x
}
