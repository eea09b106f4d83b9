package templater

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/deploy/testenv"
)

// blockedServices returns the names of services whose queries block.
func (f *fakeConsul) blockedServices() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	names := map[string]bool{}
	for key, waiting := range f.waiting {
		path, index, _ := strings.Cut(key, " ")
		if name, ok := strings.CutPrefix(path, "/v1/health/service/"); ok && waiting > 0 && index != "0" {
			names[name] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// leases is how many queries may block in the tests with a crowd. An eighth is reserved for queries that are not for a
// service. There are four: the list of services and the three shared ones.
const leases = 32

// crowd is a harness with more services than leases.
func crowd(t *testing.T) *harness {
	consul := newFakeConsul(t)
	consul.change(func() {
		for n := range 60 {
			consul.put(fmt.Sprintf("s%02d", n), 1)
		}
	})
	// A fifth is for ended queries that Consul still holds, 16 for queries that do not block.
	connections := (leases + 16) * 5 / 4
	r := newHarness(t, consul, Options{Templates: one(everyService), Connections: connections, WaitTime: 200 * time.Millisecond}).run()
	if got := r.next(); strings.Count(got, ":1") != 60 {
		t.Fatalf("first text %q", got)
	}
	testenv.Until(t, deadline, "the shared queries to wait", func() bool {
		return consul.blocked("/v1/catalog/services") == 2 && consul.blocked("/v1/health/state/critical") == 1 && consul.blocked("/v1/health/state/warning") == 1
	})
	return r
}

func TestMoreServicesThanConnections(t *testing.T) {
	r := crowd(t)
	// The list of services itself has a lease.
	testenv.Until(t, deadline, "all leases but that to be of services", func() bool { return len(r.consul.blockedServices()) == leases*7/8-1 })
	for n := range 60 {
		name := fmt.Sprintf("s%02d", n)
		if n%2 == 0 {
			r.consul.set(name, 2)
		} else {
			r.consul.fail(name, 2)
		}
		if got := r.next(); !strings.Contains(got, name+":2 ") {
			t.Fatalf("%s is not in %q", name, got)
		}
	}
	testenv.Until(t, deadline, "the template's query for the list of services, and the shared one", func() bool {
		return r.consul.blocked("/v1/catalog/services") == 2
	})
	// Consul holds the queries for removed services. Later other changing services have their leases.
	var gone []string
	testenv.Until(t, deadline, "ten queries that wait", func() bool {
		waiting := r.consul.blockedServices()
		gone = waiting[:min(10, len(waiting))]
		return len(gone) == 10
	})
	for _, name := range gone {
		r.consul.remove(name)
		testenv.Until(t, deadline, name+" to be gone", func() bool { return !strings.Contains(r.next(), name+":") })
	}
	time.Sleep(300 * time.Millisecond) // the queries' wait with its jitter
	for n := range 60 {
		if name := fmt.Sprintf("s%02d", n); !slices.Contains(gone, name) {
			r.consul.set(name, 3)
		}
	}
	testenv.Until(t, deadline, "their leases to be taken", func() bool { return len(r.consul.blockedServices()) == leases*7/8-4 })
	if has := r.consul.blockedServices(); slices.ContainsFunc(gone, func(name string) bool { return slices.Contains(has, name) }) {
		t.Errorf("of %q some are asked for still: %q", gone, has)
	}
	r.wantLogged("more queries to Consul than connections", 1)
}

func TestOutageWithMoreServicesThanConnections(t *testing.T) {
	r := crowd(t)
	r.consul.setDown(true)
	r.waitLogged("requests to Consul fail")
	r.consul.setDown(false)
	r.waitReady()
	r.consul.set("s03", 2)
	testenv.Until(t, deadline, "a quiet service's change", func() bool { return strings.Contains(r.next(), "s03:2") })
}

func TestRefusedConnections(t *testing.T) {
	consul := newFakeConsul(t)
	consul.change(func() {
		for n := range 30 {
			consul.put(fmt.Sprintf("s%02d", n), 1)
		}
	})
	consul.limit = 20
	r := newHarness(t, consul, Options{Templates: one(everyService), Connections: 100, WaitTime: 200 * time.Millisecond}).run()
	if got := r.next(); strings.Count(got, ":1") != 30 {
		t.Fatalf("first text %q", got)
	}
	r.waitLogged("Consul refuses connections (429)")
	for n := range 30 {
		name := fmt.Sprintf("s%02d", n)
		consul.set(name, 2)
		testenv.Until(t, deadline, name, func() bool { return strings.Contains(r.next(), name+":2 ") })
	}
	testenv.Until(t, deadline, "nothing to be refused any more", func() bool { return r.Ready() == nil })
}
