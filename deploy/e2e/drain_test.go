//go:build e2e

package e2e

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"

	"berth/deploy/testenv/traffic"
)

// slow is the duration of the slow requests of TestE2EDrainFirst, much less than the drain time.
const slow = 200 * time.Millisecond

// drainFirst makes a container drain before it gets its real stop signal.
var drainFirst = []string{"--stop-signal", "SIGCONT", "-e", "SERVICE_STOP_SIGNAL=SIGTERM"}

// An application that dies at once on SIGTERM is stopped with plain docker stop, first one instance after the other, then
// two at once. With the two settings no request fails, and docker stop returns before its grace period is over.
func TestE2EDrainFirst(t *testing.T) {
	s := startStack(t)
	r, p, took := s.stopUnderLoad(drainFirst...)
	t.Logf("drained first: %s; %s; docker stop took %v", r, p, took)
	r.ExpectNoneFailed(t, "drained first")
	if p.failed > 0 || p.sent == 0 {
		t.Errorf("%d of %d slow POSTs failed, want 0 of some", p.failed, p.sent)
	}
	if longest := slices.Max(took); longest >= 10*time.Second {
		t.Errorf("docker stop took %s: after 10 s Docker has killed it", longest)
	}
	if err := s.expectCatalog(s.Containers("app")); err != nil {
		t.Error(err)
	}

	// Without the two settings, requests in flight are lost.
	r, p, took = s.stopUnderLoad()
	t.Logf("without draining first: %s; %s; docker stop took %v", r, p, took)
}

// stopUnderLoad starts five applications next to the stack's own, stops three of them one after the other and two at once,
// and reports the requests and the duration of each docker stop.
func (s *stack) stopUnderLoad(args ...string) (r traffic.Report, p *posts, took []time.Duration) {
	s.Helper()
	ids := s.runApps(5, 1, args...)
	l := startLoad(s, s)
	p = startPosts(s, s)
	for _, id := range ids[:3] {
		took = append(took, s.stop(id)...)
	}
	took = append(took, s.stop(ids[3:]...)...)
	s.Eventually(10*time.Second, "only the stack's own app answers", func() error { return s.expectHosts(1) })
	return l.Finish(), p.finish(), took
}

// runApps starts additional applications that die at once on SIGTERM, and waits until each of them answers.
func (s *stack) runApps(n, others int, args ...string) (ids []string) {
	s.Helper()
	for range n {
		ids = append(ids, s.Run(append(slices.Clone(args), "-e", "SERVICE_NAME=app", "-e", "EXIT_AT_ONCE=1", os.Getenv("IMAGE_APP"))...))
	}
	s.Eventually(20*time.Second, "all hosts answer", func() error { return s.expectHosts(n + others) })
	return ids
}

// stop stops containers at the same time, as docker-compose does, and returns how long each took.
func (s *stack) stop(ids ...string) []time.Duration {
	s.Helper()
	took, errs := make([]time.Duration, len(ids)), make([]error, len(ids))
	var all sync.WaitGroup
	for i, id := range ids {
		all.Go(func() {
			start := time.Now()
			errs[i] = exec.Command("docker", "stop", id).Run()
			took[i] = time.Since(start).Round(time.Millisecond)
		})
	}
	all.Wait()
	for i, err := range errs {
		if err != nil {
			s.Fatalf("docker stop %.12s: %v", ids[i], err)
		}
	}
	return took
}

// posts are slow requests that HAProxy sends only once; ten of them are always in flight.
type posts struct {
	stop chan struct{}
	done sync.WaitGroup

	mu           sync.Mutex
	sent, failed int
	first        error // first failure
}

func startPosts(t testing.TB, s *stack) *posts {
	t.Helper()
	p := &posts{stop: make(chan struct{})}
	transport := &http.Transport{MaxIdleConnsPerHost: 10}
	t.Cleanup(transport.CloseIdleConnections)
	client := &http.Client{Timeout: traffic.Timeout, Transport: transport}
	for range 10 {
		p.done.Go(func() { p.send(client, fmt.Sprintf("http://%s/?delay=%s", s.web, slow)) })
	}
	return p
}

func (p *posts) send(client *http.Client, url string) {
	for end := time.Now().Add(traffic.Most); time.Now().Before(end); {
		select {
		case <-p.stop:
			return
		default:
		}
		resp, err := client.Post(url, "text/plain", nil)
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if err == nil && resp.StatusCode != http.StatusOK {
				err = errors.New(resp.Status)
			}
		}
		p.mu.Lock()
		p.sent++
		if err != nil {
			p.failed++
			p.first = cmp.Or(p.first, err)
		}
		p.mu.Unlock()
	}
}

// finish waits for the last answers.
func (p *posts) finish() *posts {
	close(p.stop)
	p.done.Wait()
	return p
}

func (p *posts) String() string {
	if p.failed == 0 {
		return fmt.Sprintf("0 of %d slow POSTs failed", p.sent)
	}
	return fmt.Sprintf("%d of %d slow POSTs failed, the first with: %v", p.failed, p.sent, p.first)
}
