// Package observability has rules for Prometheus, a dashboard for Grafana, and a compose file that adds both to the demo.
// The tests check them.
package observability
