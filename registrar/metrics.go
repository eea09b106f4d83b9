package registrar

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	events     prometheus.Counter
	errors     prometheus.Counter
	containers prometheus.Gauge
	instances  prometheus.Gauge
	probing    prometheus.Gauge
	leftOut    prometheus.Gauge
	refusals   prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "berth_registrar_" + name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "berth_registrar_" + name, Help: help})
	}
	m := metrics{
		events:     counter("events_total", "Docker events that concern registrations."),
		errors:     counter("sync_errors_total", "Attempts to follow Docker or update Consul that failed."),
		containers: gauge("containers", "Running containers."),
		instances:  gauge("instances", "Instances registered in Consul."),
		probing:    gauge("probing", "Instances that wait for their port to accept."),
		leftOut:    gauge("left_out", "Things that are not registered or left out, of containers with SERVICE_ labels or variables."),
		refusals:   counter("refusals_total", "Registrations that Consul refused."),
	}
	if reg != nil {
		reg.MustRegister(m.events, m.errors, m.containers, m.instances, m.probing, m.leftOut, m.refusals)
	}
	return m
}
