package templater

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

// fakeConsul answers the two queries of the tests, blocking like Consul: until the index exceeds the given one, or the wait
// is over.
type fakeConsul struct {
	*httptest.Server

	mu       sync.Mutex
	index    uint64
	services map[string]*fakeService
	listed   uint64 // index of the last change of the list of services
	checks   uint64 // index of the last change of a check
	down     bool
	instead  http.HandlerFunc                              // answers instead; nil = nothing does
	before   func(http.ResponseWriter, *http.Request) bool // answers instead if it returns true; may be nil
	paused   map[string]string                             // values of the keys under berth/paused/
	kv       uint64                                        // index of their last change
	leader   string
	left     bool           // the node of all services is not in the catalog
	broken   string         // service whose queries fail; "" = none
	hidden   string         // path prefix that the token may not see; "" = none
	limit    int            // most queries at a time; more are refused; 0 = no limit
	open     int            // current queries
	changed  chan struct{}  // closed and replaced on every change
	asked    map[string]int // queries so far, by path
	waiting  map[string]int // queries that block now, by "path index"
}

type fakeService struct {
	index uint64
	ports []int
}

func newFakeConsul(t *testing.T) *fakeConsul {
	f := &fakeConsul{
		index: 10, listed: 10, checks: 10, leader: "10.0.0.1:8300",
		services: map[string]*fakeService{},
		paused:   map[string]string{}, kv: 10,
		changed: make(chan struct{}),
		asked:   map[string]int{},
		waiting: map[string]int{},
	}
	f.Server = httptest.NewServer(f)
	t.Cleanup(func() {
		f.change(func() { f.down = true }) // ends what still blocks
		f.Close()
	})
	return f
}

// change runs a func on the state and wakes the blocked queries.
func (f *fakeConsul) change(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.index++
	do()
	close(f.changed)
	f.changed = make(chan struct{})
}

// set registers a service with one instance per port; without any it stays listed.
func (f *fakeConsul) set(name string, ports ...int) {
	f.change(func() { f.put(name, ports...) })
}

func (f *fakeConsul) put(name string, ports ...int) {
	f.listed = f.index
	f.services[name] = &fakeService{f.index, ports}
}

func (f *fakeConsul) remove(name string) {
	f.change(func() {
		delete(f.services, name)
		f.listed = f.index
	})
}

// pause writes a key under berth/paused/.
func (f *fakeConsul) pause(name, value string) {
	f.change(func() { f.paused[name], f.kv = value, f.index })
}

func (f *fakeConsul) resume(name string) {
	f.change(func() {
		delete(f.paused, name)
		f.kv = f.index
	})
}

func (f *fakeConsul) setDown(down bool) { f.change(func() { f.down = down }) }

// restartEmpty simulates a restarted -dev server: empty, with a low index.
func (f *fakeConsul) restartEmpty() {
	f.change(func() {
		f.index, f.listed, f.down = 5, 5, false
		clear(f.services)
	})
}

// fail makes an instance critical or not; the list of services is unchanged.
func (f *fakeConsul) fail(name string, ports ...int) {
	f.change(func() {
		f.services[name] = &fakeService{f.index, ports}
		f.checks = f.index
	})
}

// hide hides paths with a prefix; "" = none.
func (f *fakeConsul) hide(path string) { f.change(func() { f.hidden = path }) }

func (f *fakeConsul) hides(path string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hidden != "" && strings.HasPrefix(path, f.hidden)
}

func (f *fakeConsul) asks(path string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked[path]
}

func (f *fakeConsul) waits(path string, index uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.waiting[fmt.Sprint(path, " ", index)] > 0
}

// blocked returns how many queries for a path block.
func (f *fakeConsul) blocked(path string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for key, waiting := range f.waiting {
		if asked, _, _ := strings.Cut(key, " "); asked == path {
			n += waiting
		}
	}
	return n
}

// read returns the answer to a path, its index, and a channel that is closed when it changes. Lost means that the query's
// index is from a lost state.
func (f *fakeConsul) read(path string, asked uint64) (body any, index uint64, lost, down bool, changed chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	lost = f.index < asked
	if path == "/v1/catalog/services" {
		all := map[string][]string{}
		for name := range maps.Keys(f.services) {
			all[name] = []string{}
		}
		return all, f.listed, lost, f.down, f.changed
	}
	if strings.HasPrefix(path, "/v1/health/state/") {
		return []any{}, f.checks, lost, f.down, f.changed
	}
	if path == "/v1/status/leader" {
		return f.leader, 0, lost, f.down, f.changed
	}
	if path == "/v1/kv/berth/paused/" {
		pairs := api.KVPairs{}
		for _, name := range slices.Sorted(maps.Keys(f.paused)) {
			pairs = append(pairs, &api.KVPair{Key: "berth/paused/" + name, Value: []byte(f.paused[name])})
		}
		return pairs, f.kv, lost, f.down, f.changed
	}
	if node, ok := strings.CutPrefix(path, "/v1/catalog/node/"); ok {
		if f.left {
			return nil, f.index, lost, f.down, f.changed
		}
		return api.CatalogNode{Node: &api.Node{Node: node}}, f.index, lost, f.down, f.changed
	}
	name := strings.TrimPrefix(path, "/v1/health/service/")
	if name == f.broken {
		return nil, 0, false, true, f.changed
	}
	entries := []*api.ServiceEntry{}
	index = f.listed
	if s := f.services[name]; s != nil {
		index = s.index
		for _, port := range s.ports {
			entries = append(entries, &api.ServiceEntry{
				Node:    &api.Node{Node: "n1", Address: "10.0.0.1"},
				Service: &api.AgentService{ID: fmt.Sprintf("%s-%d", name, port), Service: name, Port: port},
				Checks:  api.HealthChecks{{Status: "passing"}},
			})
		}
	}
	return entries, index, lost, f.down, f.changed
}

func (f *fakeConsul) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	asked, _ := strconv.ParseUint(r.URL.Query().Get("index"), 10, 64)
	wait, _ := time.ParseDuration(r.URL.Query().Get("wait"))
	key := fmt.Sprint(path, " ", asked)
	count := func(n int) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.waiting[key] += n
		f.asked[path] += max(n, 0)
	}
	count(1)
	defer count(-1)
	f.mu.Lock()
	f.open++
	refuse := f.limit > 0 && f.open > f.limit
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.open--
	}()
	f.mu.Lock()
	instead, before := f.instead, f.before
	f.mu.Unlock()
	if before != nil && before(w, r) {
		return
	}
	if instead != nil && path != "/elsewhere" {
		instead(w, r)
		return
	}
	if refuse {
		w.Header().Set("Connection", "close")
		http.Error(w, "too many", http.StatusTooManyRequests)
		return
	}
	over := time.NewTimer(wait)
	defer over.Stop()
	for waited := false; ; {
		body, index, lost, down, changed := f.read(path, asked)
		if down {
			http.Error(w, "No cluster leader", http.StatusInternalServerError)
			return
		}
		if asked == 0 || index > asked || waited || lost {
			w.Header().Set("X-Consul-Index", strconv.FormatUint(index, 10))
			w.Header().Set("X-Consul-Lastcontact", "0") // without it the client reads no header behind it
			w.Header().Set("X-Consul-Knownleader", "true")
			if r.URL.Query().Has("filter") {
				body = []any{}
			}
			if f.hides(path) {
				w.Header().Set("X-Consul-Results-Filtered-By-ACLs", "true")
				body = map[string]any{}
				if path != "/v1/catalog/services" {
					body = []any{}
				}
			}
			json.NewEncoder(w).Encode(body)
			return
		}
		select {
		case <-changed:
		case <-over.C:
			waited = true
		case <-r.Context().Done():
			return
		}
	}
}
