//go:build e2e

package e2e

import (
	"net/http"
	"os"
	"slices"
	"testing"
	"time"
)

// BenchmarkE2EStart starts one more container, again and again, next to three, and measures until it answers its first
// request through HAProxy: from `docker run`, and from the moment at which Docker had started it.
func BenchmarkE2EStart(b *testing.B) {
	s := startStack(b)
	s.scale(3)
	s.eventually(20*time.Second, "three hosts answer", func() error { return s.expectHosts(3) })
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var fromRun, fromStart []time.Duration
	failed := 0
	for b.Loop() {
		run := time.Now()
		id := s.run("-e", "SERVICE_NAME=app", os.Getenv("IMAGE_APP"))
		var answered time.Time
		for deadline := time.Now().Add(20 * time.Second); ; {
			host, err := get(client, "http://"+s.web+"/")
			if err != nil {
				failed++
			}
			if host == id[:12] {
				answered = time.Now()
				break
			}
			if time.Now().After(deadline) {
				b.Fatalf("%.12s does not answer", id)
			}
		}
		started, err := time.Parse(time.RFC3339Nano, s.docker("inspect", "--format", "{{.State.StartedAt}}", id))
		if err != nil {
			b.Fatal(err)
		}
		fromRun, fromStart = append(fromRun, answered.Sub(run)), append(fromStart, answered.Sub(started))
		s.docker("rm", "--force", id)
		s.eventually(20*time.Second, "it is gone", func() error { return s.expectHosts(3) })
	}
	b.ReportMetric(0, "ns/op") // dominated by Docker
	for name, d := range map[string][]time.Duration{"run": fromRun, "start": fromStart} {
		slices.Sort(d)
		b.ReportMetric(float64(d[len(d)/2].Milliseconds()), name+"-ms/median")
		b.ReportMetric(float64(d[len(d)-1].Milliseconds()), name+"-ms/max")
	}
	b.ReportMetric(float64(failed), "failed")
}
