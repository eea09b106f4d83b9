//go:build e2e

package haproxy

import (
	"fmt"
	"io"
	"net/http"
	"testing"
	"text/tabwriter"
	"time"

	"berth/deploy/testenv"
	"berth/deploy/testenv/traffic"
	"berth/proxyctl"
)

// services is the time and cost of adding and removing services.
type services struct {
	ways   []newServices
	many   int              // services added one by one, and removed again
	took   traffic.Times    // to add or remove one, until the result was read back
	loads  int              // reloads meanwhile
	failed traffic.Requests // all of them
	memory [3]float64       // of the worker in MB: before, with all of them, and after

	again int             // services added at once before a restart of HAProxy
	at    proxyctl.Action // how the change was made
	back  time.Duration   // until it had answered for each
}

// newServices is how soon new services are served.
type newServices struct {
	way      string
	first    traffic.Times // from the text to the first answer through the proxy
	loads    int
	requests traffic.Requests
}

const manyServices = 500

// services adds services at run time where HAProxy supports it, and by reloads, and then many one by one.
func (r *harness) services(b *testing.B) services {
	apps := r.startApps(10)
	s := services{many: manyServices, again: 100}
	service := func(n int) group {
		name := fmt.Sprintf("svc%03d", n)
		return group{name, []listed{{name + "-1", apps[n%len(apps)], 1}}}
	}
	base := []group{{"app", []listed{{"app-1", apps[0], 1}, {"app-2", apps[1], 1}}}}
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	for _, way := range []string{"commands", "reloads"} {
		opts := r.options()
		opts.ReloadOnly = way == "reloads"
		d := r.drive(opts)
		all := base
		d.apply(r.bare(all...))
		d.settle(all...)
		d.reloads = nil
		w := newServices{way: way}
		load := traffic.Start(r, r.web, "/app/")
		d.wait(time.Now().Add(time.Second)) // of requests, before the first change
		for n := range 30 {
			all = append(all, service(n))
			text := r.bare(all...)
			path := "/" + all[len(all)-1].name + "/"
			done, begun := make(chan time.Time, 1), time.Now()
			go func() { done <- r.first(client, path) }()
			d.apply(text)
			w.first = append(w.first, (<-done).Sub(begun))
			d.wait(time.Now().Add(50 * time.Millisecond))
		}
		w.requests, w.loads = load.End(), len(d.reloads)
		d.apply(r.bare(base...))
		d.settle(base...)
		d.close()
		w.first = w.first.Sorted()
		s.ways = append(s.ways, w)
		b.ReportMetric(traffic.Millis(w.first.Within(0.5)), way+"-ms/median")
	}

	d := r.drive(r.options())
	all := base
	d.apply(r.bare(all...))
	d.settle(all...)
	d.reloads = nil
	pid := r.worker()
	s.memory[0] = memory(pid, "VmRSS")
	load := traffic.Start(r, r.web, "/app/")
	change := func() {
		text := r.bare(all...)
		begun := time.Now()
		d.apply(text)
		s.took = append(s.took, time.Since(begun))
		d.wait(time.Now().Add(5 * time.Millisecond))
	}
	for n := range manyServices {
		all = append(all, service(n))
		change()
	}
	d.settle(all...)
	s.memory[1] = memory(pid, "VmRSS")

	for range manyServices {
		all = append(base[:1:1], all[2:]...) // the oldest one is removed
		change()
	}
	d.settle(base...)
	s.failed, s.loads = load.End(), len(d.reloads)
	if r.worker() == pid {
		s.memory[2] = memory(pid, "VmRSS")
	}
	s.took = s.took.Sorted()

	all = base
	for n := range s.again {
		all = append(all, service(n))
	}
	s.at = d.apply(r.bare(all...)).Action
	d.proxy.Close()
	testenv.MustDocker(r, "restart", "--time", "0", r.id)
	begun := time.Now()
	for _, g := range all {
		r.first(client, "/"+g.name+"/")
	}
	s.back = time.Since(begun)
	d.close()
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(s.failed.Failed()), "failed")
	b.ReportMetric(float64(s.loads), "reloads")
	return s
}

func (s *services) print(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "\nNew services, one after the other: from the text to the first answer through HAProxy.\n\n")
	fmt.Fprintln(t, "by\tservices\tmedian\tp90\tmax\treloads\tfailed\trequests: p99\tslowest\t")
	for _, n := range s.ways {
		took := n.requests.Took()
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t\n", n.way, len(n.first), traffic.Ms(n.first.Within(0.5)), traffic.Ms(n.first.Within(0.9)), traffic.Ms(n.first.Within(1)),
			n.loads, failed(n.requests), traffic.Ms(took.Within(0.99)), traffic.Ms(took.Within(1)))
	}
	t.Flush()
	fmt.Fprintf(w, "%d services added one by one, and removed one by one: each median %s, p99 %s, max %s until it was read back; %d reloads; failed %s;\n"+
		"the worker had %.0f MB before, %.0f MB with all of them, %.0f MB after.\n"+
		"%d services added at once (%s), and HAProxy restarted: it had answered for each after %s ms.\n", s.many, traffic.Ms(s.took.Within(0.5)), traffic.Ms(s.took.Within(0.99)), traffic.Ms(s.took.Within(1)),
		s.loads, failed(s.failed), s.memory[0], s.memory[1], s.memory[2], s.again, s.at, traffic.Ms(s.back))
	if why := s.failed.Failures(); why != "" {
		fmt.Fprintf(w, "Failed: %s\n", why)
	}
}
