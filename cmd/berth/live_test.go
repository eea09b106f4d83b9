package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"berth/proxyctl"
	"berth/templates/claim"
)

// measured returns how often a histogram was observed, and the sum.
func measured(t *testing.T, registry *prometheus.Registry, name string) (count uint64, sum float64) {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(families, func(f *dto.MetricFamily) bool { return f.GetName() == name })
	if i < 0 {
		t.Fatalf("no metric %s", name)
	}
	h := families[i].GetMetric()[0].GetHistogram()
	return h.GetSampleCount(), h.GetSampleSum()
}

func instanceAt(id, address string, ready time.Time, notes string) *api.ServiceEntry {
	e := &api.ServiceEntry{
		Node:    &api.Node{Node: "n1", Address: "10.0.0.9"},
		Service: &api.AgentService{ID: id, Service: "shop", Address: address, Port: 80, Meta: map[string]string{claim.MetaReadyAt: claim.Stamp(ready)}},
	}
	if notes != "" {
		e.Checks = api.HealthChecks{{CheckID: api.ServiceMaintPrefix + id, Status: api.HealthCritical, Notes: notes}}
	}
	return e
}

// An instance is measured once, from the moment that it was ready on its own host to that at which it is in the proxy, in however
// many backends; one that was ready before this berth started is not, and one that stops is measured likewise.
func TestLiveTimes(t *testing.T) {
	registry := prometheus.NewRegistry()
	l := newLiveTimes(registry)
	l.began = time.Now().Add(-time.Minute)
	ready := time.Now().Add(-2 * time.Second)
	l.setServices([]string{"shop"})
	l.setInstances("shop", []*api.ServiceEntry{instanceAt("a", "10.0.0.1", ready, ""), instanceAt("old", "10.0.0.2", time.Now().Add(-time.Hour), "")})
	l.changed([]proxyctl.Change{{Backend: "shop", In: []string{"10.0.0.1:80", "10.0.0.2:80", "10.9.9.9:80"}}, {Backend: "shop-2", In: []string{"10.0.0.1:80"}}})
	if n, sum := measured(t, registry, "berth_ready_to_live_seconds"); n != 1 || sum < 1.9 || sum > 10 {
		t.Errorf("measured %d times, %v s, want once 2 s", n, sum)
	}
	for range 2 { // it fails a check and comes back
		l.changed([]proxyctl.Change{{Backend: "shop", Out: []string{"10.0.0.1:80"}}})
		l.changed([]proxyctl.Change{{Backend: "shop", In: []string{"10.0.0.1:80"}}})
	}
	if n, _ := measured(t, registry, "berth_ready_to_live_seconds"); n != 1 {
		t.Errorf("measured %d times, want once, whatever comes back", n)
	}
	if last := l.last(); len(last) != 1 || last[0].Instance != "a" || last[0].Service != "shop" {
		t.Errorf("the last are %+v", last)
	}
	if since := l.since(); since["10.0.0.1:80"].IsZero() {
		t.Errorf("in the proxy since %v", since)
	}
	stopped := claim.WithStop("berth registrar: the container is being stopped by SIGTERM", time.Now().Add(-time.Second))
	l.setInstances("shop", []*api.ServiceEntry{instanceAt("a", "10.0.0.1", ready, stopped)})
	for range 2 {
		l.changed([]proxyctl.Change{{Backend: "shop", Out: []string{"10.0.0.1:80"}}})
	}
	if n, sum := measured(t, registry, "berth_stop_to_drained_seconds"); n != 1 || sum < .9 || sum > 10 {
		t.Errorf("drained %d times, %v s, want once 1 s", n, sum)
	}
}

// The catalog is known when all of its services are watched.
func TestLiveTimesKnowTheCatalog(t *testing.T) {
	l := newLiveTimes(prometheus.NewRegistry())
	if _, all := l.catalog(); all {
		t.Error("all is known before anything was read")
	}
	l.setServices([]string{"consul", "shop"})
	if _, all := l.catalog(); all {
		t.Error("all is known without the instances of shop")
	}
	l.setInstances("shop", []*api.ServiceEntry{instanceAt("b", "", time.Now(), ""), instanceAt("a", "10.0.0.1", time.Now(), "")})
	c, all := l.catalog()
	if !all || len(c) != 1 || len(c["shop"]) != 2 || c["shop"][0].ID != "a" || c["shop"][1].Address != "10.0.0.9:80" {
		t.Errorf("the catalog is %+v, %v", c, all)
	}
	if p := l.passing(); strings.Join(p["10.0.0.1:80"], "") != "shop" {
		t.Errorf("passing are %v", p)
	}
	l.setInstances("shop", nil)
	if _, all := l.catalog(); all {
		t.Error("all is known though nobody watches shop any more")
	}
}
