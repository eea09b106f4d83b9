package registrar

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/registrar/label"
)

// Two machines share one Docker engine ID at one Consul agent: both keep what they run, and each logs once what is wrong.
func TestTwoRegistrarsWithOneOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, clone := newCluster(), newCluster()
		clone.Agent = w.Agent
		clone.host = label.Host{Name: "clone", EngineID: w.host.EngineID, Networks: w.host.Networks}
		w.listen("10.0.0.1:80")
		clone.listen("10.0.1.1:80")
		w.create("a", "10.0.0.1")
		clone.create("b", "10.0.1.1")
		_, stop := w.run(t)
		defer stop()
		time.Sleep(3 * time.Second)
		_, stopClone := clone.run(t)

		time.Sleep(3 * time.Minute)
		before, missing := w.called("deregister"), 0
		steps := w.logged("registrations are in step")
		for range 30 * 60 {
			time.Sleep(time.Second)
			if w.Registered() != "clone:b:80 vm:a:80" {
				missing++
			}
		}
		if n := w.called("deregister") - before; n > 8 || missing > 8*11 {
			t.Errorf("%d were deregistered in half an hour, and one was missing for %d s: they do not hold back", n, missing)
		}
		if n := w.logged("registrations are in step") - steps; n > 0 {
			t.Errorf("said %d times that all is in step, though they undo each other's work", n)
		}
		for _, c := range []*cluster{w, clone} {
			said := c.log.String()
			if !strings.Contains(said, "is there a second registrar with the same owner?") || !strings.Contains(said, "engine-id") || c.logged("level=WARN msg=\"another program") > 6 {
				t.Errorf("the log:\n%s", said)
			}
		}
		stopClone()
		clone.do(func() { delete(clone.containers, "b") })
		// The other registrar's leftovers go, only later.
		time.Sleep(concedesMost + time.Minute)
		w.expect(t, 0, "vm:a:80")
		time.Sleep(forgives + concedesMost + time.Minute)
		if w.logged("no other program undoes registrations any more") != 1 {
			t.Errorf("it is not said that it is over:\n%s", w.log.String())
		}
	})
}

// Two registrars of one Docker engine want different registrations of one instance.
func TestTwoRegistrarsThatDiffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, other := newCluster(), newCluster()
		other.Agent = w.Agent
		other.host.IP = "192.0.2.7"
		for _, c := range []*cluster{w, other} {
			c.listen("10.0.0.1:80")
			in := c.create("a", "10.0.0.1")
			c.do(func() { in.Created, in.State.StartedAt = time.Unix(1, 0), time.Unix(1, 0) })
		}
		other.do(func() { other.containers["a"].Config.Env = []string{"SERVICE_TAGS=other"} })
		_, stop := w.run(t)
		defer stop()
		_, stopOther := other.run(t)
		defer stopOther()
		time.Sleep(3 * time.Minute)
		before := w.called("register")
		time.Sleep(30 * time.Minute)
		if n := w.called("register") - before; n > 16 {
			t.Errorf("%d were registered in half an hour: they do not hold back", n)
		}
		if w.logged("another program undoes")+other.logged("another program undoes") == 0 {
			t.Errorf("nothing is said:\n%s", w.log.String())
		}
	})
}

// An agent that loses its state, or an operator who removes something, does not count as a second registrar.
func TestNoDispute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		w.listen("10.0.0.1:80")
		_, stop := w.run(t)
		defer stop()
		w.start("a", "10.0.0.1")
		for range 2 {
			w.expect(t, reread+time.Second, "vm:a:80")
			time.Sleep(time.Minute)
			w.do(func() { w.Forget() })
		}
		w.expect(t, reread+time.Second, "vm:a:80")
		for range 5 { // it comes and goes by itself
			time.Sleep(time.Second)
			w.die("a")
			w.expect(t, time.Second, "")
			w.start("a", "10.0.0.1")
			w.expect(t, time.Second, "vm:a:80")
		}
		w.do(func() { w.Services["other"] = &api.AgentService{ID: "other"} }) // it belongs to another program
		time.Sleep(time.Minute)
		if w.logged("another program") > 0 {
			t.Errorf("%s", w.log.String())
		}
	})
}
