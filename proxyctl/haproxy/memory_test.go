package haproxy

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"
)

// oneByOne returns texts that each have one more server than the one before, in a backend that changes each time, next to others.
func oneByOne(n int) func(i int) string {
	const backends = 20
	servers := make([]strings.Builder, backends)
	return func(i int) string {
		fmt.Fprintf(&servers[i%backends], "    server app-%06d 10.%d.%d.%d:8080 check weight 100\n", i, i/62500, i/250%250, 1+i%250)
		var b strings.Builder
		b.WriteString("global\n    maxconn 9\nfrontend f\n    bind :80\n")
		for j := range servers {
			fmt.Fprintf(&b, "backend service-%d\n    balance leastconn\n", j)
			b.WriteString(servers[j].String())
		}
		_ = n
		return b.String()
	}
}

// retained returns the memory held by a configuration that was read from n successive texts, and by one that was read only from
// the last of them.
func retained(n int) (all, one uint64) {
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	next := oneByOne(n)
	before := heap()
	var c *config
	last := ""
	for i := range n {
		last = next(i)
		c = parse(last, c)
	}
	last = strings.Clone(last)
	next = nil
	all = heap() - before
	runtime.KeepAlive(c)
	c = nil
	between := heap()
	c = parse(last, nil)
	one = heap() - between
	runtime.KeepAlive(c)
	return all, one
}

// Servers that came one by one do not keep their original texts in memory.
func TestServersDoNotKeepTexts(t *testing.T) {
	all, one := retained(2000)
	t.Logf("2,000 servers that came one by one: %.1f MB, all at once: %.1f MB", float64(all)/1e6, float64(one)/1e6)
	if all > 3*one+5e6 {
		t.Errorf("%.1f MB are in use, of %.1f MB when all come at once", float64(all)/1e6, float64(one)/1e6)
	}
}

// BenchmarkRetained is the same for 10,000 servers.
func BenchmarkRetained(b *testing.B) {
	for b.Loop() {
		all, one := retained(10000)
		b.ReportMetric(float64(all)/1e6, "MB-one-by-one")
		b.ReportMetric(float64(one)/1e6, "MB-at-once")
	}
}

// Checking whether lines refer to a removed server costs no more with many servers.
func TestRefersToIsCheap(t *testing.T) {
	took := func(servers int) (best time.Duration) {
		c := parse("frontend f\n  bind :80\nbackend app\n"+manyServers(servers), nil)
		best = time.Hour
		for range 20 {
			began := time.Now()
			for range 10 {
				if c.refersTo("app", "nosuch") {
					t.Fatal("it is referred to")
				}
			}
			best = min(best, time.Since(began))
		}
		return best
	}
	few, many := took(10), took(10000)
	if many > 20*few+50*time.Microsecond {
		t.Errorf("%v with 10,000 servers, %v with 10", many, few)
	}
	c := parse("frontend f\n  bind :80\nbackend app\n"+manyServers(1000), nil)
	if n := testing.AllocsPerRun(10, func() { c.refersTo("app", "nosuch") }); n > 1 {
		t.Errorf("%v allocations", n)
	}
}
