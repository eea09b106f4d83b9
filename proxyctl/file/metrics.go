package file

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	writes     prometheus.Counter
	failures   *prometheus.CounterVec
	successful prometheus.Gauge
}

// newMetrics returns the metrics of one file, labelled with its path.
func newMetrics(opts Options) metrics {
	m := metrics{
		writes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "berth_file_writes_total", Help: "Times the content of a plain file was changed.",
		}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_file_failures_total", Help: "Failures to write a plain file or to do its action.",
		}, []string{"step"}),
		successful: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "berth_file_last_apply_successful", Help: "1 when a plain file has the newest text and its action has worked.",
		}),
	}
	for _, step := range []string{"write", "action"} {
		m.failures.WithLabelValues(step) // rates need a 0 before the first failure
	}
	if opts.Metrics != nil {
		prometheus.WrapRegistererWith(prometheus.Labels{"file": opts.Path}, opts.Metrics).MustRegister(m.writes, m.failures, m.successful)
	}
	return m
}
