package templater

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	renders, renderErrors prometheus.Counter
	leftOut, failing      prometheus.Gauge
	consulUp              prometheus.Gauge
	seconds               prometheus.Histogram
}

func newMetrics(registry prometheus.Registerer) metrics {
	with := promauto.With(registry)
	return metrics{
		renders: with.NewCounter(prometheus.CounterOpts{
			Name: "berth_templater_renders_total",
			Help: "Template executions.",
		}),
		renderErrors: with.NewCounter(prometheus.CounterOpts{
			Name: "berth_templater_render_errors_total",
			Help: "Template executions that failed; the last good text stays.",
		}),
		leftOut: with.NewGauge(prometheus.GaugeOpts{
			Name: "berth_templater_left_out",
			Help: "Items of the catalog that are left out of the rendered texts; the log says which and why.",
		}),
		failing: with.NewGauge(prometheus.GaugeOpts{
			Name: "berth_templater_failing",
			Help: "Templates and partials that fail on their current data; they keep their last text or are left out.",
		}),
		consulUp: with.NewGauge(prometheus.GaugeOpts{
			Name: "berth_templater_consul_up",
			Help: "1 while Consul answers every query and hides nothing from the token.",
		}),
		seconds: with.NewHistogram(prometheus.HistogramOpts{
			Name:    "berth_templater_render_seconds",
			Help:    "Duration of one template execution.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 14), // 0.1 ms to 0.8 s
		}),
	}
}

// executed counts an execution of a template or a partial.
func (m *metrics) executed(took time.Duration, err error) {
	m.renders.Inc()
	m.seconds.Observe(took.Seconds())
	if err != nil {
		m.renderErrors.Inc()
	}
}
