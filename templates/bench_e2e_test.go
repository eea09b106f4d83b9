//go:build e2e

package templates

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"berth/templates/claim"
	"berth/templates/route"
)

// routed is a number of services with one host each, all answered by one server.
func routed(services int) catalog {
	c := catalog{}
	for n := range services {
		c.with(fmt.Sprintf("service-%04d", n), "one", "127.0.0.1", 9000, route.KeyHost, host(n))
	}
	return c
}

func host(n int) string { return fmt.Sprintf("service-%04d.example.com", n) }

// asRules is a configuration with a use_backend rule for each route, tried in order, instead of the map.
func asRules(r rendered) rendered {
	type rule struct {
		claim.Route
		backend string
	}
	var rules []rule
	for line := range strings.Lines(r.files["routes.map"]) {
		key, backend, _ := strings.Cut(strings.TrimSpace(line), " ")
		host, path, _ := strings.Cut(key, "/")
		rules = append(rules, rule{claim.Route{Host: strings.TrimPrefix(host, "*"), Path: "/" + path}, backend})
	}
	slices.SortFunc(rules, func(a, b rule) int { return claim.Compare(a.Route, b.Route) })
	var b strings.Builder
	for line := range strings.Lines(r.text) {
		switch {
		case strings.Contains(line, "use_backend"):
			for _, r := range rules {
				if r.Host != "" {
					fmt.Fprintf(&b, "    use_backend %s if { var(txn.host) -m str %s } { var(txn.path) -m beg %s }\n",
						r.backend, r.Host, r.Path)
				} else {
					fmt.Fprintf(&b, "    use_backend %s if { var(txn.path) -m beg %s }\n", r.backend, r.Path)
				}
			}
		case !strings.Contains(line, "txn.key") && !strings.Contains(line, "txn.domain"):
			b.WriteString(line)
		}
	}
	return rendered{text: b.String()}
}

// BenchmarkE2ERoutes sends requests over 16 connections for ten of the services, so the number of server connections does
// not depend on the number of services. us/request is the proxy's CPU time for one request, including answering itself: it
// depends less than other numbers on the machine's other load.
func BenchmarkE2ERoutes(b *testing.B) {
	for _, services := range []int{10, 1000} {
		for _, variant := range []struct {
			name string
			kind *kind
			rendered
		}{
			{"haproxy-map", theHAProxy(), haproxyWithoutLog(render(b, routed(services)))},
			{"haproxy-rules", theHAProxy(), asRules(haproxyWithoutLog(render(b, routed(services))))},
			{"nginx", theNginx(), nginxWithoutLog(renderNginx(b, routed(services), Options{}))},
		} {
			b.Run(fmt.Sprintf("services=%d/by=%s", services, variant.name), func(b *testing.B) {
				k := variant.kind
				servers := k.server(9000, k.answer)
				p := k.start(b, k.images(b)[0], variant.rendered, Options{}, servers)
				load(b, p, services)
			})
		}
	}
}

// haproxyWithoutLog avoids a thousand checks a second and the log, which would affect the measurement.
func haproxyWithoutLog(r rendered) rendered {
	r.text = strings.ReplaceAll(r.text, "    default-server check inter 1s fall 2 rise 1\n", "")
	r.text = strings.ReplaceAll(r.text, "    log stdout format raw local0\n", "")
	return r
}

func nginxWithoutLog(r rendered) rendered {
	r.text = strings.ReplaceAll(r.text, "    access_log /var/log/nginx/access.log berth;\n", "    access_log off;\n")
	return r
}

func load(b *testing.B, p *proxy, services int) {
	address := p.address(8080)
	var failed atomic.Int64
	before := p.processor()
	b.SetParallelism(8) // times 2 processors
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			b.Error(err)
			return
		}
		defer conn.Close()
		reader := bufio.NewReader(conn)
		for pb.Next() {
			fmt.Fprintf(conn, "GET /some/path HTTP/1.1\r\nHost: %s\r\n\r\n", host(rand.IntN(10)*services/10))
			resp, err := http.ReadResponse(reader, nil)
			if err != nil {
				b.Error(err)
				return
			}
			if resp.StatusCode != 200 {
				failed.Add(1)
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	})
	b.StopTimer()
	if n := failed.Load(); n > 0 {
		b.Errorf("%d requests failed", n)
	}
	b.ReportMetric((p.processor()-before)*1e6/float64(b.N), "us/request")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
}

// processor returns the CPU time of the proxy's processes, in seconds.
func (p *proxy) processor() float64 {
	out, err := exec.Command("docker", "exec", p.name, "sh", "-c", "cat /proc/[0-9]*/stat").Output()
	if err != nil && len(out) == 0 {
		p.tb.Fatal(err)
	}
	ticks := 0.0
	for line := range strings.Lines(string(out)) {
		before, rest, _ := strings.Cut(line, ") ")
		if _, name, _ := strings.Cut(before, "("); name != "haproxy" && name != "nginx" {
			continue
		}
		// man proc: utime and stime are fields 14 and 15, in ticks of 10 ms.
		for _, field := range strings.Fields(rest)[11:13] {
			n, err := strconv.ParseFloat(field, 64)
			if err != nil {
				p.tb.Fatal(err)
			}
			ticks += n
		}
	}
	return ticks / 100
}
