package templates

import (
	"path/filepath"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// Expiries is a metric with the expiry time of each certificate, by file name. It has the contents of the directory at the
// last execution of a template.
type Expiries struct {
	desc *prometheus.Desc

	mu    sync.Mutex
	files []certificate
}

// NewExpiries returns a metric to register. It has no certificates yet.
func NewExpiries() *Expiries {
	return &Expiries{desc: prometheus.NewDesc("berth_certificate_expiry_timestamp_seconds",
		"When a certificate is no longer valid, in seconds since 1970: the first one of its file.", []string{"certificate"}, nil)}
}

// set replaces all certificates.
func (e *Expiries) set(files []certificate) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.files = files
}

// Count returns how many certificates there are.
func (e *Expiries) Count() int {
	if e == nil {
		return 0
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.files)
}

// Describe implements prometheus.Collector.
func (e *Expiries) Describe(to chan<- *prometheus.Desc) { to <- e.desc }

// Collect implements prometheus.Collector.
func (e *Expiries) Collect(to chan<- prometheus.Metric) {
	e.mu.Lock()
	files := e.files
	e.mu.Unlock()
	for _, c := range files {
		if !c.notAfter.IsZero() { // zero if berth may not read it
			to <- prometheus.MustNewConstMetric(e.desc, prometheus.GaugeValue, float64(c.notAfter.Unix()), filepath.Base(c.File))
		}
	}
}
