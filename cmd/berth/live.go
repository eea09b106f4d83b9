package main

import (
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/prometheus/client_golang/prometheus"

	"berth/cmd/berth/status"
	"berth/proxyctl"
	"berth/templates/claim"
)

// liveTimes tracks the instances of the catalog by address, and measures how soon they enter and leave the proxy.
type liveTimes struct {
	began   time.Time // what was ready before has waited for this berth, and not for the way to the proxy
	ready   prometheus.Histogram
	drained prometheus.Histogram

	mu       sync.Mutex
	entries  map[string][]status.Entry // by service
	at       map[string][]status.Entry // by address
	services []string                  // in the catalog
	listed   bool                      // services is known
	live     map[string]time.Time      // since when a server is in the proxy, by address
	came     map[string]time.Time      // when the instance was ready that was measured last, by address
	left     map[string]time.Time      // the stop that was measured last, by address
	last500  []liveTime
}

// liveTime is how long an instance took from being ready to being in the proxy.
type liveTime struct {
	At       time.Time `json:"at"`
	Service  string    `json:"service"`
	Instance string    `json:"instance"`
	Seconds  float64   `json:"seconds"`
}

// liveBuckets go from 1 ms to 16 s by doubling, with the objective of 50 ms between 32 and 64 ms.
var liveBuckets = []float64{.001, .002, .004, .008, .016, .032, .05, .064, .128, .256, .512, 1, 2, 4, 8, 16}

func newLiveTimes(registry prometheus.Registerer) *liveTimes {
	l := &liveTimes{
		began: time.Now(),
		ready: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "berth_ready_to_live_seconds", Buckets: liveBuckets,
			Help: "Time from the moment an instance was ready, on whatever host, to its server in the running proxy.",
		}),
		drained: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "berth_stop_to_drained_seconds", Buckets: liveBuckets,
			Help: "Time from the moment an instance was told to stop, on whatever host, until the running proxy gives it no new request.",
		}),
		entries: map[string][]status.Entry{}, at: map[string][]status.Entry{}, live: map[string]time.Time{}, came: map[string]time.Time{}, left: map[string]time.Time{},
	}
	registry.MustRegister(l.ready, l.drained)
	return l
}

// setServices sets the names of the services in the catalog.
func (l *liveTimes) setServices(names []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.services, l.listed = names, names != nil
}

// setInstances sets the instances of a service; nil means that it is no longer watched.
func (l *liveTimes) setInstances(service string, list []*api.ServiceEntry) {
	var entries []status.Entry
	for _, e := range list {
		entries = append(entries, status.NewEntry(e))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var gone []string
	for _, old := range l.entries[service] {
		rest := slices.DeleteFunc(l.at[old.Address], func(e status.Entry) bool { return e.Service == service })
		if len(rest) == 0 {
			delete(l.at, old.Address)
			gone = append(gone, old.Address)
		} else {
			l.at[old.Address] = rest
		}
	}
	if list == nil {
		delete(l.entries, service)
	} else {
		l.entries[service] = entries
	}
	for _, address := range gone {
		if !slices.ContainsFunc(entries, func(e status.Entry) bool { return e.Address == address }) {
			delete(l.came, address)
			delete(l.left, address)
		}
	}
	for _, e := range entries {
		l.at[e.Address] = append(slices.Clip(l.at[e.Address]), e)
	}
}

// catalog returns the instances of all services; false if some are not watched.
func (l *liveTimes) catalog() (status.Catalog, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.listed {
		return nil, false
	}
	out := status.Catalog{}
	for _, name := range l.services {
		entries, watched := l.entries[name]
		if !watched && name != "consul" {
			return nil, false
		}
		if watched {
			out[name] = slices.Clone(entries)
		}
	}
	delete(out, "consul")
	out.Sort()
	return out, true
}

// changed records which servers have entered and left the running proxy.
func (l *liveTimes) changed(changes []proxyctl.Change) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ch := range changes {
		for _, address := range ch.Out {
			delete(l.live, address)
			for _, e := range l.at[address] {
				stopped, is := e.Stopped()
				if is && stopped.After(l.began) && !l.left[address].Equal(stopped) {
					l.left[address] = stopped
					l.drained.Observe(max(0, now.Sub(stopped).Seconds()))
				}
			}
		}
		for _, address := range ch.In {
			if _, there := l.live[address]; there {
				continue // of another backend
			}
			l.live[address] = now
			delete(l.left, address)
			for _, e := range l.at[address] {
				ready, is := claim.ReadyAt(e.Meta)
				if !is || !ready.After(l.began) || l.came[address].Equal(ready) { // it has come back
					continue
				}
				l.came[address] = ready
				took := max(0, now.Sub(ready).Seconds())
				l.ready.Observe(took)
				l.last500 = append(l.last500, liveTime{now, e.Service, e.ID, took})
				l.last500 = l.last500[max(0, len(l.last500)-status.MostEvents):]
				break
			}
		}
	}
}

// last returns the last times, oldest first.
func (l *liveTimes) last() []liveTime {
	if l == nil {
		return []liveTime{}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]liveTime{}, l.last500...)
}

// since returns since when each server is in the proxy, by address.
func (l *liveTimes) since() map[string]time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make(map[string]time.Time, len(l.live))
	for address, at := range l.live {
		out[address] = at
	}
	return out
}

// passing returns the addresses of all instances that pass their checks, with their services.
func (l *liveTimes) passing() map[string][]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make(map[string][]string, len(l.at))
	for address, entries := range l.at {
		for i := range entries {
			if entries[i].Passing() {
				out[address] = append(out[address], entries[i].Service)
			}
		}
	}
	return out
}
