package proxyctl

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// WaitingCount is what a proxy reports about the requests or connections that wait for a server of one service.
type WaitingCount struct {
	Now     int           // waiting now
	Total   int           // began to wait; if it shrinks, the proxy has started to count again
	Longest time.Duration // longest wait since the first of these began to wait; 0 if the proxy does not report it
	Paused  bool          // they wait because the service was paused
}

// Waiting reports requests that wait while their service has no server: as metrics, and with a log line for each service when
// waiting begins and ends. Only one goroutine at a time may call Observe. A nil Waiting reports nothing.
type Waiting struct {
	log   *slog.Logger
	now   *prometheus.GaugeVec
	total *prometheus.CounterVec
	seen  map[string]*waitingSpell // by service
	last  time.Time                // of the last Observe; zero before the first

	mu    sync.Mutex
	waits map[string]int // requests that wait now, by service
}

// waitingSpell is a period in which requests for a service wait.
type waitingSpell struct {
	last    WaitingCount
	began   time.Time // zero if none waits
	before  int       // Total when it began
	longest time.Duration
}

// NewWaiting returns a Waiting. reg may be nil.
func NewWaiting(reg prometheus.Registerer, log *slog.Logger) *Waiting {
	w := &Waiting{
		log: log,
		now: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "berth_waiting_requests", Help: "Requests that wait in the proxy because their service has no server.",
		}, []string{"service"}),
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_held_requests_total", Help: "Requests that had to wait in the proxy because their service had no server.",
		}, []string{"service"}),
		seen: map[string]*waitingSpell{},
	}
	if reg != nil {
		reg.MustRegister(w.now, w.total)
	}
	return w
}

// Observe takes the proxy's current counts for all services whose requests wait or have waited. A missing service has no waiting
// requests; the proxy has forgotten it. A spell that began and ended since the last call is reported as over.
func (w *Waiting) Observe(counts map[string]WaitingCount) {
	if w == nil {
		return
	}
	defer func() {
		w.last = time.Now()
		w.mu.Lock()
		defer w.mu.Unlock()
		w.waits = map[string]int{}
		for service, c := range counts {
			if c.Now > 0 {
				w.waits[service] = c.Now
			}
		}
	}()
	for _, service := range slices.Sorted(maps.Keys(counts)) {
		if w.seen[service] == nil {
			w.seen[service] = &waitingSpell{}
			if c := counts[service]; w.last.IsZero() { // the proxy has been counting since before this berth started
				w.seen[service].last.Total = c.Total - c.Now
			}
		}
		w.observe(service, w.seen[service], counts[service])
	}
	for _, service := range slices.Sorted(maps.Keys(w.seen)) {
		if _, there := counts[service]; !there {
			w.observe(service, w.seen[service], WaitingCount{Total: w.seen[service].last.Total})
			delete(w.seen, service)
			w.now.DeleteLabelValues(service)
		}
	}
}

// Now returns how many requests wait now, by service. It may be called from any goroutine.
func (w *Waiting) Now() map[string]int {
	if w == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.waits)
}

func (w *Waiting) observe(service string, s *waitingSpell, c WaitingCount) {
	before := s.last.Total
	if c.Total < before { // it has started to count again
		before, s.before = 0, 0
	}
	s.last = c
	began := time.Now()
	w.now.WithLabelValues(service).Set(float64(c.Now))
	w.total.WithLabelValues(service).Add(float64(c.Total - before))
	waited := c.Now > 0 || c.Total > before
	if s.began.IsZero() && waited {
		s.began, s.before, s.longest = began, before, 0
		if c.Now > 0 {
			why := "it has no server"
			if c.Paused {
				why = "it is paused"
			}
			w.log.Info(fmt.Sprintf("requests for %s wait: %s", service, why), "service", service)
		}
	}
	if s.began.IsZero() {
		return
	}
	s.longest = max(s.longest, c.Longest)
	if c.Now == 0 {
		longest := cmp.Or(s.longest, time.Since(s.began))
		if s.began.Equal(began) { // between the last look and this one
			longest = cmp.Or(s.longest, began.Sub(w.last))
		}
		w.log.Info(fmt.Sprintf("requests for %s no longer wait: %d waited, %.1fs at most", service, c.Total-s.before, longest.Seconds()),
			"service", service, "waited", c.Total-s.before, "longest", longest.Round(time.Millisecond))
		s.began = time.Time{}
	}
}
