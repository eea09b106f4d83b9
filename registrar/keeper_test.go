package registrar

import (
	"errors"
	"io"
	"log/slog"
	"maps"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/registrar/agent"
	"berth/registrar/label"
)

// plainProcess is what a process wants registered.
func plainProcess(owner string) agent.Desired {
	check := label.Check{Definition: api.AgentServiceCheck{Name: "berth service", TTL: "15s"}, TTL: 15 * time.Second}
	return agent.Desired{Instance: label.Instance{ID: "www-1", Name: "www", Port: 20001, Meta: map[string]string{label.MetaOwner: owner}, Checks: []label.Check{check}}}
}

// keeperOf returns a keeper for it. To be called in a synctest bubble, and to be released there.
func (w *world) keeperOf(owner string) *keeper {
	return newKeeper(w.Agent, slog.New(slog.NewTextHandler(io.Discard, nil)), "www-1", owner, 15*time.Second, "it runs")
}

func TestKeeperKeeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		k := w.keeperOf("process:vm:1")
		k.keep(plainProcess("process:vm:1"))
		w.expect(t, 0, "www-1")
		if c := w.Check("www-1:check-1"); c.Output != "it runs" {
			t.Errorf("the TTL check was not passed at once: %+v", c)
		}
		w.do(func() { w.Checks["www-1:check-1"].Status = api.HealthCritical })
		w.expect(t, keepEvery, "www-1")
		w.do(func() { w.Forget() }) // an agent without its state
		w.expect(t, keepEvery, "www-1")
		w.do(func() { w.Services["www-1"].Tags = []string{"edited"} })
		time.Sleep(keepEvery + time.Second)
		w.do(func() {
			if tags := w.Services["www-1"].Tags; len(tags) > 0 {
				t.Errorf("what was edited is still there: %q", tags)
			}
		})
		k.release()
		w.expect(t, 0, "")
	})
}

func TestKeeperWithoutConsul(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.Err = errors.New("connection refused")
		k := w.keeperOf("process:vm:1")
		k.keep(plainProcess("process:vm:1"))
		time.Sleep(time.Hour)
		if n := w.called("all"); n < 3600/10 || n > 3600/2 {
			t.Errorf("%d calls to Consul in an hour away, want one every few seconds", n)
		}
		w.do(func() { w.Err = nil })
		w.expect(t, 8*time.Second, "www-1")

		// And when it is away at the end: that is not waited for long.
		w.do(func() { w.Err = errors.New("connection refused") })
		before := time.Now()
		k.release()
		if took := time.Since(before); took != agent.Timeout {
			t.Errorf("released after %v, want %v", took, agent.Timeout)
		}
	})
}

// Of two registrations with one ID, that of a process that is gone is replaced, and no other.
func TestKeeperAndOthers(t *testing.T) {
	others := func(owner string) *api.AgentService {
		return &api.AgentService{ID: "www-1", Service: "www", Port: 1, Meta: map[string]string{label.MetaOwner: owner}}
	}
	t.Run("a process whose berth was killed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			w.Services["www-1"] = others("process:vm:7")
			w.Maintain("www-1", agent.Automatic+"the process was told to stop by SIGTERM")
			k := w.keeperOf("process:vm:1")
			k.keep(plainProcess("process:vm:1"))
			w.expect(t, 0, "www-1")
			k.release()
			w.expect(t, 0, "")
		})
	})
	t.Run("not a process", func(t *testing.T) {
		for _, owner := range []string{"", "ENGINE"} {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				w.Services["www-1"] = others(owner)
				k := w.keeperOf("process:vm:1")
				k.keep(plainProcess("process:vm:1"))
				time.Sleep(time.Minute)
				k.release()
				w.expect(t, 0, "www-1")
				if n := w.called("register") + w.called("deregister") + w.called("update"); n != 0 {
					t.Errorf("%d calls change the registration of %q", n, owner)
				}
			})
		}
	})
	t.Run("a process that came later", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			k := w.keeperOf("process:vm:1")
			k.keep(plainProcess("process:vm:1"))
			w.expect(t, 0, "www-1")
			later := w.keeperOf("process:vm:2")
			later.keep(plainProcess("process:vm:2"))
			time.Sleep(time.Minute)
			k.release()
			w.do(func() {
				if s := w.Services["www-1"]; s == nil || s.Meta[label.MetaOwner] != "process:vm:2" || w.Calls["register"] != 2 {
					t.Errorf("it is %+v after %d registrations, want that of the second after 2", s, w.Calls["register"])
				}
			})
			later.release()
			w.expect(t, 0, "")
		})
	})
}

func TestKeeperMaintenance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		k := w.keeperOf("process:vm:1")
		in := plainProcess("process:vm:1")
		k.keep(in)
		w.expect(t, 0, "www-1")
		w.do(func() { w.Maintain("www-1", "berth drain: by hand") })
		time.Sleep(time.Minute)
		w.expect(t, 0, "www-1!") // is left as it is
		w.do(func() { delete(w.Checks, api.ServiceMaintPrefix+"www-1") })

		in.Drain = agent.Automatic + "told to stop"
		k.keep(in)
		w.expect(t, 0, "www-1!")
		w.do(func() { w.Forget() })
		time.Sleep(time.Minute)
		w.expect(t, 0, "") // is not worth registering
		k.release()
	})
}

func TestKeeperNotReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		k := w.keeperOf("process:vm:1")
		in := plainProcess("process:vm:1")
		in.NotReady = "connection refused"
		k.keep(in)
		w.expect(t, 0, "www-1?")
		if c := w.Check("www-1:ready"); c.Notes != "connection refused" {
			t.Errorf("Consul does not have the reason: %+v", c)
		}
		in.NotReady = ""
		k.keep(in)
		w.expect(t, 0, "www-1")
		k.release()
		w.do(func() {
			if ids := maps.Collect(maps.All(w.Checks)); len(ids) > 0 {
				t.Errorf("checks are left: %v", ids)
			}
		})
	})
}
