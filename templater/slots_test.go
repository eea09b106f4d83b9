package templater

import (
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// blockedServices are the services a query for which waits, by name.
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

// crowd is a rig with more services than slots.
func crowd(t *testing.T, services, slots int) *rig {
	consul := newFakeConsul(t)
	consul.change(func() {
		for n := range services {
			consul.put(fmt.Sprintf("s%02d", n), 1)
		}
	})
	// A fifth is left for queries that Consul does not know to have ended: 5 here, if there are 5 slots. Bells take 3.
	connections := (slots + spare + len(lists)) * 5 / 4
	r := newRig(t, consul, Options{Templates: one(everyService), Connections: connections, WaitTime: 200 * time.Millisecond}).run()
	if got := r.next(); strings.Count(got, ":1") != services {
		t.Fatalf("first text %q", got)
	}
	eventually(t, "the bells to be listened to", func() bool {
		return consul.blocked("/v1/catalog/services") == 2 && consul.blocked("/v1/health/state/critical") == 1 && consul.blocked("/v1/health/state/warning") == 1
	})
	return r
}

func TestMoreServicesThanConnections(t *testing.T) {
	const services, slots = 40, 5
	r := crowd(t, services, slots)
	// The list of services itself has a slot that none takes away.
	eventually(t, "all slots but that to be of services", func() bool { return len(r.consul.blockedServices()) == slots-1 })
	for n := range services {
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
	// What changes gets a slot, if not at once.
	eventually(t, "s39 to have a slot", func() bool {
		r.consul.set("s39", 2, 3)
		return slices.Contains(r.consul.blockedServices(), "s39")
	})
	eventually(t, "the template's query for the list of services, and the bell", func() bool {
		return r.consul.blocked("/v1/catalog/services") == 2
	})
	r.consul.remove("s39")
	eventually(t, "s39 to be gone", func() bool { return !strings.Contains(r.next(), "s39") })
	eventually(t, "its slot to be taken", func() bool { return len(r.consul.blockedServices()) == slots-1 })
	r.wantLogged("more is watched than connections", 1)
}

func TestOutageWithMoreServicesThanConnections(t *testing.T) {
	r := crowd(t, 30, 5)
	r.consul.setDown(true)
	r.waitLogged("consul failed")
	r.consul.setDown(false)
	r.waitReady()
	r.consul.set("s03", 2)
	eventually(t, "a quiet service's change", func() bool { return strings.Contains(r.next(), "s03:2") })
}

func TestRefusedConnections(t *testing.T) {
	consul := newFakeConsul(t)
	consul.change(func() {
		for n := range 30 {
			consul.put(fmt.Sprintf("s%02d", n), 1)
		}
	})
	consul.limit = 20
	r := newRig(t, consul, Options{Templates: one(everyService), Connections: 100, WaitTime: 200 * time.Millisecond}).run()
	if got := r.next(); strings.Count(got, ":1") != 30 {
		t.Fatalf("first text %q", got)
	}
	r.waitLogged("consul refuses connections (429)")
	for n := range 30 {
		name := fmt.Sprintf("s%02d", n)
		consul.set(name, 2)
		eventually(t, name, func() bool { return strings.Contains(r.next(), name+":2 ") })
	}
	eventually(t, "nothing to be refused any more", func() bool { return r.Ready() == nil })
}

func TestHTTP2HasASlotForEach(t *testing.T) {
	s := newSlots((1+spare)*5/4, time.Minute, nil)
	all := []*slot{s.newSlot(&line{}, true), s.newSlot(&line{}, true)}
	if !all[0].acquire() || all[1].acquire() {
		t.Fatal("there is more or less than one slot")
	}
	s.saw(&http.Response{ProtoMajor: 2, StatusCode: http.StatusOK})
	select {
	case <-all[1].poke:
	case <-time.After(deadline):
		t.Fatal("nobody told the one without a slot")
	}
	if !all[1].acquire() {
		t.Error("no slot over HTTP/2")
	}
}

// Consul goes on with a query that was ended for another watch, and counts its connection.
func TestEndedQueriesCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlots((2+spare)*5/4, time.Minute, nil) // 2 slots, 4 ghosts
		s.maxGhosts = 1
		take := func() *slot {
			one := s.newSlot(&line{}, true)
			one.answered(1, true)
			time.Sleep(time.Second)
			return one
		}
		all := []*slot{take(), take(), take(), take()}
		for n, want := range []bool{true, true, true, false} {
			if got := all[n].acquire(); got != want {
				t.Errorf("watch %d has a slot: %v, want %v", n, got, want)
			}
		}
		if all[0].element != nil || all[1].element == nil {
			t.Error("it was not the one that has been quiet for longest")
		}
		time.Sleep(2 * time.Minute)
		if !all[3].acquire() || all[1].element != nil {
			t.Error("no slot once the ended query is over at Consul")
		}
		// Watches that stop leave queries there, too.
		all[2].release()
		all[3].release()
		if last := []*slot{take(), take()}; !last[0].acquire() || last[1].acquire() {
			t.Error("there is more than one slot while three queries go on that nobody waits for")
		}
	})
}

// A refusal does not count for ever.
func TestSlotsRecover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlots(100, time.Minute, slog.New(slog.DiscardHandler))
		usual := s.limit()
		s.saw(&http.Response{ProtoMajor: 1, StatusCode: http.StatusTooManyRequests, Close: true})
		if now := s.limit(); now >= usual || now < fewest {
			t.Errorf("%d slots after a refusal, %d before", now, usual)
		}
		time.Sleep(recovery + time.Second)
		if now := s.limit(); now != usual {
			t.Errorf("%d slots long after a refusal, want %d", now, usual)
		}
	})
}
