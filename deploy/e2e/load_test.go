//go:build e2e

package e2e

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// load sends requests at a fixed rate, whether earlier ones are answered or not (open loop), half of them over kept
// connections and half over new ones.
type load struct {
	stop chan struct{}
	done sync.WaitGroup

	mu       sync.Mutex
	sent     map[string]int // by kind
	failed   map[string]int
	failures []string // the first few, for the log
	slowest  time.Duration
	hosts    map[string]bool
}

const (
	loadRate    = 500 // requests per second, both kinds together
	loadTimeout = 10 * time.Second
	loadMost    = 5 * time.Minute // it ends by itself
)

func startLoad(t testing.TB, s *stack) *load {
	t.Helper()
	l := &load{stop: make(chan struct{}), sent: map[string]int{}, failed: map[string]int{}, hosts: map[string]bool{}}
	for kind, transport := range map[string]*http.Transport{
		"keep-alive": {MaxIdleConns: 200, MaxIdleConnsPerHost: 200, IdleConnTimeout: 90 * time.Second},
		"new":        {DisableKeepAlives: true},
	} {
		client := &http.Client{Timeout: loadTimeout, Transport: transport}
		l.done.Go(func() { l.send(kind, client, "http://"+s.web+"/") })
		t.Cleanup(transport.CloseIdleConnections)
	}
	return l
}

func (l *load) send(kind string, client *http.Client, url string) {
	tick := time.NewTicker(2 * time.Second / loadRate)
	defer tick.Stop()
	end := time.After(loadMost)
	var requests sync.WaitGroup
	defer requests.Wait()
	for {
		select {
		case <-l.stop:
			return
		case <-end:
			return
		case <-tick.C:
		}
		requests.Go(func() {
			start := time.Now()
			host, err := get(client, url)
			l.record(kind, host, err, time.Since(start))
		})
	}
}

func (l *load) record(kind, host string, err error, took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sent[kind]++
	l.slowest = max(l.slowest, took)
	if err == nil {
		l.hosts[host] = true
		return
	}
	l.failed[kind]++
	if len(l.failures) < 5 {
		l.failures = append(l.failures, fmt.Sprintf("%s, after %v: %v", kind, took.Round(time.Millisecond), err))
	}
}

// report is what a load came to.
type report struct {
	sent, failed int
	hosts        []string
	text         string
}

// finish ends the load and waits for its last answers.
func (l *load) finish() report {
	close(l.stop)
	l.done.Wait()
	r := report{hosts: slices.Sorted(maps.Keys(l.hosts))}
	var parts []string
	for _, kind := range slices.Sorted(maps.Keys(l.sent)) {
		r.sent += l.sent[kind]
		r.failed += l.failed[kind]
		parts = append(parts, fmt.Sprintf("%s: %d of %d failed", kind, l.failed[kind], l.sent[kind]))
	}
	r.text = fmt.Sprintf("%s; slowest %v", strings.Join(parts, ", "), l.slowest.Round(time.Millisecond))
	if len(l.failures) > 0 {
		r.text += "\n  " + strings.Join(l.failures, "\n  ")
	}
	return r
}
