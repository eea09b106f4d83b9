package main

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// expiries tells when the certificates of a directory expire, by the names of their files. It looks when it is asked, and reads
// what has changed.
type expiries struct {
	directory string
	desc      *prometheus.Desc

	mu   sync.Mutex
	read map[string]expiry // by file name
}

type expiry struct {
	size     int64
	modified time.Time
	at       time.Time // zero = it has no certificate, or berth may not read it
}

const (
	mostCertificates     = 1000    // of which it is told when they expire
	mostCertificateBytes = 1 << 20 // of one file
)

func newExpiries(directory string) *expiries {
	return &expiries{directory: directory, read: map[string]expiry{}, desc: prometheus.NewDesc(
		"berth_certificate_expiry_timestamp_seconds", "When a certificate of the TLS directory expires.", []string{"certificate"}, nil)}
}

// Describe implements prometheus.Collector.
func (e *expiries) Describe(to chan<- *prometheus.Desc) { to <- e.desc }

// Collect implements prometheus.Collector.
func (e *expiries) Collect(to chan<- prometheus.Metric) {
	e.mu.Lock()
	defer e.mu.Unlock()
	entries, err := os.ReadDir(e.directory)
	if err != nil {
		return // the template reports that
	}
	now := map[string]expiry{}
	for _, entry := range entries {
		name := entry.Name()
		info, err := os.Stat(filepath.Join(e.directory, name)) // certificates of certbot are links
		if err != nil || !info.Mode().IsRegular() || strings.HasPrefix(name, ".") || len(now) == mostCertificates {
			continue
		}
		is, known := e.read[name]
		if !known || is.size != info.Size() || !is.modified.Equal(info.ModTime()) {
			is = expiry{info.Size(), info.ModTime(), expiresAt(filepath.Join(e.directory, name))}
		}
		now[name] = is
		if !is.at.IsZero() {
			to <- prometheus.MustNewConstMetric(e.desc, prometheus.GaugeValue, float64(is.at.Unix()), strings.ToValidUTF8(name, "?"))
		}
	}
	e.read = now
}

// expiresAt returns when the first certificate of a file expires, which is the one that a proxy serves; the zero time if there is none.
func expiresAt(file string) time.Time {
	info, err := os.Stat(file)
	if err != nil || info.Size() > mostCertificateBytes {
		return time.Time{}
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return time.Time{}
	}
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			return c.NotAfter
		}
	}
	return time.Time{}
}
