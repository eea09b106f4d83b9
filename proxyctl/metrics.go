package proxyctl

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	applies    *prometheus.CounterVec
	successful prometheus.Gauge
	reachable  prometheus.Gauge
	oldWorkers prometheus.Gauge
	leaving    prometheus.Gauge
	live       prometheus.Histogram

	refusals, drifts, generations prometheus.Counter
	generationTime                prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) metrics {
	m := metrics{
		applies: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_proxy_applies_total", Help: "Configurations brought to the proxy, by what was done.",
		}, []string{"action"}),
		successful: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "berth_proxy_last_apply_successful", Help: "1 when the proxy runs the newest configuration.",
		}),
		reachable: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "berth_proxy_reachable", Help: "1 when the proxy answered when it was last needed.",
		}),
		oldWorkers: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "berth_proxy_old_workers", Help: "Workers of earlier configurations that still finish their connections.",
		}),
		leaving: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "berth_proxy_leaving_servers", Help: "Servers that were removed and still finish their connections.",
		}),
		live: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "berth_proxy_live_seconds", Help: "Time from a catalog change to the proxy serving it.",
			Buckets: []float64{.002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10},
		}),
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "berth_proxy_" + name, Help: help})
	}
	m.refusals = counter("refusals_total", "Configurations that the proxy refused.")
	m.drifts = counter("drift_repairs_total", "Times that the proxy did not run what it was brought to, and was repaired.")
	m.generations = counter("generations_total", "Configurations that became live.")
	m.generationTime = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "berth_proxy_generation_timestamp_seconds", Help: "When the configuration that runs became live.",
	})
	if reg != nil {
		reg.MustRegister(m.refusals, m.drifts, m.generations, m.generationTime)
		reg.MustRegister(m.applies, m.successful, m.reachable, m.oldWorkers, m.leaving, m.live)
	}
	return m
}

func (m metrics) observe(res Result, err error, after time.Duration) {
	unreachable := errors.Is(err, ErrUnreachable)
	m.reachable.Set(number(!unreachable))
	waits := errors.Is(err, ErrNotYet)
	if !waits {
		m.successful.Set(number(err == nil))
	}
	switch {
	case unreachable:
		m.applies.WithLabelValues("unreachable").Inc()
		return
	case err != nil && !waits:
		m.applies.WithLabelValues("failed").Inc()
	default:
		m.applies.WithLabelValues(string(res.Action)).Inc()
	}
	if res.Action == "" {
		return // nothing was done
	}
	m.leaving.Set(float64(res.Leaving))
	if res.Action != Runtime {
		m.oldWorkers.Set(float64(res.OldWorkers)) // a change at run time does not count them
	}
	if res.Action != None {
		m.live.Observe(after.Seconds())
	}
}

// note counts what changed in the status.
func (m metrics) note(before, now Status) {
	m.refusals.Add(float64(now.Refusals - before.Refusals))
	m.drifts.Add(float64(now.Drifts - before.Drifts))
	if now.Since.Equal(before.Since) {
		return
	}
	m.generationTime.Set(float64(now.Since.UnixMilli()) / 1000)
	if now.Action != None || before.Generation != "" { // otherwise it ran before this berth started
		m.generations.Inc()
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
