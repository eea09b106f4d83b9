package templates

import (
	"path/filepath"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// Expiries is a metric of the certificates that a proxy is given, by the names of their files: until when each is valid. It has
// what the directory had when a template was last executed.
type Expiries struct {
	desc *prometheus.Desc

	mu    sync.Mutex
	files []certificate
}

// NewExpiries returns a metric to register, without a certificate.
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
		if !c.notAfter.IsZero() { // else berth may not read it
			to <- prometheus.MustNewConstMetric(e.desc, prometheus.GaugeValue, float64(c.notAfter.Unix()), filepath.Base(c.File))
		}
	}
}
