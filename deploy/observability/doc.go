// Package observability has rules for Prometheus, a dashboard for Grafana, and a compose file that adds both to the demo; the tests check them.
package observability
