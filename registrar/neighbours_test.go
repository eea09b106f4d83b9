package registrar

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	fsouza "github.com/fsouza/go-dockerclient"
	"github.com/hashicorp/consul/api"

	"berth/registrar/label"
)

// startDrainFirst starts a container whose stop signal is only an announcement.
func (w *cluster) startDrainFirst(id, address string) {
	w.create(id, address, "SERVICE_STOP_SIGNAL=TERM").Config.StopSignal = "SIGCONT"
	w.event("start", id)
}

// has reports whether something is registered.
func (w *cluster) has(id string) bool { return slices.Contains(strings.Fields(w.Registered()), id) }

// expectThat lets time pass until f is true, within a limit.
func (w *cluster) expectThat(t *testing.T, within time.Duration, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(within)
	for synctest.Wait(); !f() && time.Now().Before(deadline); synctest.Wait() {
		time.Sleep(time.Millisecond) // of the bubble's time
	}
	if !f() {
		t.Fatalf("not within %v: %s; registered: %q", within, what, w.Registered())
	}
}

// A hanging call delays only its own purpose: drains go out at once, stop signals come in time, and new containers are
// registered, before and after the next resync.
func TestCallsThatHang(t *testing.T) {
	for _, tt := range []struct {
		name      string
		hangs     []string
		registers bool // Consul takes registrations
		drains    bool // and drains
	}{
		{name: "inspect of another container", hangs: []string{"inspect other"}, registers: true, drains: true},
		{name: "list", hangs: []string{"list"}, registers: true, drains: true},
		{name: "the host's description", hangs: []string{"host"}, registers: true, drains: true},
		{name: "the stop signal of another container", hangs: []string{"kill other"}, registers: true, drains: true},
		{name: "draining another instance", hangs: []string{"enable vm:other:80"}, registers: true, drains: true},
		{name: "resuming another instance", hangs: []string{"disable vm:paused:80"}, registers: true, drains: true},
		{name: "deregistering another instance", hangs: []string{"deregister vm:dead:80"}, registers: true, drains: true},
		{name: "registering another instance", hangs: []string{"register vm:more:80"}, registers: true, drains: true},
		{name: "the heartbeat of another instance", hangs: []string{"update vm:other:80:check-1"}, registers: true, drains: true},
		{name: "reading what Consul holds", hangs: []string{"services", "checks"}, drains: true},
		{name: "all of Consul", hangs: []string{"services", "checks", "host", "register", "deregister", "enable", "disable", "update"}},
	} {
		for _, after := range []time.Duration{0, 2 * time.Second, 90 * time.Second} {
			t.Run(fmt.Sprint(tt.name, " for ", after), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newCluster()
					_, stop := w.run(t)
					defer stop()
					for i := range 7 {
						w.listen(fmt.Sprintf("10.0.0.%d:80", i+1))
					}
					w.startDrainFirst("a", "10.0.0.1")
					w.start("b", "10.0.0.2")
					w.create("other", "10.0.0.4", "SERVICE_STOP_SIGNAL=TERM", "SERVICE_CHECK_TTL=30s").Config.StopSignal = "SIGCONT"
					w.event("start", "other")
					w.start("dead", "10.0.0.5")
					w.start("paused", "10.0.0.6")
					w.expect(t, 20*time.Millisecond, "vm:a:80 vm:b:80 vm:dead:80 vm:other:80 vm:paused:80")
					w.change("paused", func(c *fsouza.Container) { c.State.Paused = true })
					w.event("pause", "paused")
					w.expect(t, 0, "vm:a:80 vm:b:80 vm:dead:80 vm:other:80 vm:paused:80!")

					w.hang(true, tt.hangs...)
					w.change("paused", func(c *fsouza.Container) { c.State.Paused = false })
					w.event("unpause", "paused")
					w.event("rename", "other") // makes it inspect
					w.event("kill", "other", "signal", "18")
					w.die("dead")
					w.start("more", "10.0.0.7")
					time.Sleep(after)
					if tt.registers {
						w.start("new", "10.0.0.3")
						w.expectThat(t, 50*time.Millisecond, "a new container is registered", func() bool { return w.has("vm:new:80") })
					}
					sign := time.Now()
					w.event("kill", "a", "signal", "18")
					w.event("kill", "b", "signal", "15")
					if tt.drains {
						w.expectThat(t, 50*time.Millisecond, "both are out of service", func() bool { return w.has("vm:a:80!") && w.has("vm:b:80!") })
					}
					late := 2*time.Second + 50*time.Millisecond
					w.expectThat(t, late-time.Since(sign), "the stop signal", func() bool {
						return slices.ContainsFunc(w.sent(), func(s string) bool { return strings.HasPrefix(s, "a 15 ") })
					})
					if took := time.Since(sign); took < 2*time.Second {
						t.Errorf("the stop signal came after %v, want 2s", took)
					}
					w.die("b")
					if tt.registers {
						w.expectThat(t, 50*time.Millisecond, "b is gone", func() bool { return !strings.Contains(w.Registered(), "vm:b:") })
					}
					w.hang(false, tt.hangs...)
					w.expectThat(t, 20*time.Second, "all is right again", func() bool {
						now := strings.TrimPrefix(w.Registered(), "vm:a:80! vm:more:80 ")
						now = strings.TrimPrefix(now, "vm:new:80 ")
						return now == "vm:other:80! vm:paused:80" || (after > 40*time.Second && now == "vm:other:80 vm:paused:80") // it runs on
					})
				})
			})
		}
	}
}

// All of Docker hangs for a while: what was known continues, and what came meanwhile is found.
func TestDockerHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		_, stop := w.run(t)
		defer stop()
		for i := range 20 {
			w.listen(fmt.Sprintf("10.0.0.%d:80", i))
		}
		for i := range 12 {
			w.start(fmt.Sprintf("c%02d", i), fmt.Sprintf("10.0.0.%d", i))
		}
		w.expectThat(t, 20*time.Millisecond, "all twelve", func() bool { return len(strings.Fields(w.Registered())) == 12 })
		w.hang(true, "list", "host", "inspect", "kill")
		for i := range 12 {
			w.event("rename", fmt.Sprintf("c%02d", i))
		}
		time.Sleep(5 * time.Minute)
		w.event("kill", "c03", "signal", "15")
		w.expectThat(t, 0, "a drain", func() bool { return w.has("vm:c03:80!") })
		w.die("c03")
		w.expectThat(t, 0, "its end", func() bool { return len(strings.Fields(w.Registered())) == 11 })
		w.hang(false, "list", "host", "inspect", "kill")
		w.start("new", "10.0.0.13")
		w.expectThat(t, 10*time.Second, "a new one", func() bool { return w.has("vm:new:80") })
	})
}

// A Consul that hangs from the start does not delay stop signals.
func TestConsulHangsAtTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		w.hang(true, "services", "checks")
		w.create("a", "10.0.0.1", "SERVICE_STOP_SIGNAL=TERM").Config.StopSignal = "SIGCONT"
		_, stop := w.run(t)
		defer stop()
		w.event("kill", "a", "signal", "18")
		w.expectThat(t, 2*time.Second, "the stop signal", func() bool { return len(w.sent()) == 1 })
	})
}

// A change that Consul always refuses delays no heartbeat and no other instance, and is logged.
func TestOperationThatKeepsFailing(t *testing.T) {
	for _, operation := range []string{"deregister vm:b:80", "enable vm:b:80", "update vm:c:80:check-1"} {
		t.Run(operation, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newCluster()
				w.host.TTL = 15 * time.Second
				r, stop := w.run(t)
				defer stop()
				for i, id := range []string{"a", "b", "c"} {
					w.listen(fmt.Sprintf("10.0.0.%d:80", i+1))
					w.start(id, fmt.Sprintf("10.0.0.%d", i+1))
				}
				w.expect(t, 20*time.Millisecond, "vm:a:80 vm:b:80 vm:c:80")
				w.do(func() { w.Fail[operation] = api.StatusError{Code: 403, Body: "Permission denied"} })
				w.event("kill", "b", "signal", "9")
				synctest.Wait()
				w.die("b")
				before := w.Called("update")
				time.Sleep(5 * time.Minute)
				if n := w.Called("update") - before; n < 2*5*60/5-5 {
					t.Errorf("%d heartbeats of two instances in five minutes, want one every 5 s of each", n)
				}
				if err := r.Ready(); operation != "enable vm:b:80" && (err == nil || !strings.Contains(err.Error(), "Permission denied")) {
					t.Errorf("Ready() = %v, want the reason", err)
				}
				w.listen("10.0.0.4:80")
				w.start("d", "10.0.0.4")
				w.expectThat(t, 10*time.Millisecond, "a new container is registered", func() bool { return w.has("vm:d:80") })
				w.do(func() { clear(w.Fail) })
				w.expect(t, 10*time.Second, "vm:a:80 vm:c:80 vm:d:80")
				w.expectThat(t, 10*time.Second, "it is ready", func() bool { return r.Ready() == nil })
			})
		})
	}
}

// A refused registration leaves the working one in place, under the same ID or another.
func TestRefusedChange(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*fsouza.Container)
		refuse string
		then   string
	}{
		"of what is registered": {func(c *fsouza.Container) { c.Config.Env = []string{"SERVICE_TAGS=new"} }, "register vm:a:80", "vm:a:80"},
		"of a new ID":           {func(c *fsouza.Container) { c.Name = "/b" }, "register vm:b:80", "vm:b:80"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newCluster()
				r, stop := w.run(t)
				defer stop()
				w.listen("10.0.0.1:80")
				w.start("a", "10.0.0.1")
				w.expect(t, 10*time.Millisecond, "vm:a:80")
				w.do(func() { w.Fail[tt.refuse] = api.StatusError{Code: 400, Body: "Invalid check"} })
				w.change("a", tt.change)
				w.event("rename", "a")
				time.Sleep(10 * time.Minute)
				w.expect(t, 0, "vm:a:80")
				if w.Called("deregister") != 0 {
					t.Error("it was deregistered in between")
				}
				if n := w.Called("register"); n > 15 {
					t.Errorf("%d calls to register in ten minutes: it is to be asked for at resyncs only", n)
				}
				if err := r.Ready(); err != nil {
					t.Errorf("not ready: %v", err)
				}
				if !strings.Contains(w.log.String(), "Consul refuses") {
					t.Errorf("the log does not say so: %s", w.log.String())
				}
				w.do(func() { clear(w.Fail) })
				w.expect(t, 61*time.Second, tt.then)
			})
		})
	}
}

// A container that cannot be inspected at first is taken over as soon as it can, even if its port does not accept at that
// moment.
func TestInspectedLateIsAdopted(t *testing.T) {
	for _, hang := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newCluster()
			w.listen("10.0.0.1:80")
			w.start("a", "10.0.0.1")
			_, stop := w.run(t)
			w.expect(t, 10*time.Millisecond, "vm:a:80")
			stop()
			w.do(func() { clear(w.listening); w.History = nil })
			w.hang(hang, "inspect a")
			w.do(func() {
				if !hang {
					w.inspectErr["a"] = errors.New("500 internal error")
				}
			})
			_, stop = w.run(t)
			defer stop()
			time.Sleep(5 * time.Second)
			w.expect(t, 0, "vm:a:80")
			w.hang(false, "inspect a")
			w.do(func() { clear(w.inspectErr) })
			time.Sleep(time.Minute)
			w.expect(t, 0, "vm:a:80")
			if len(w.History) > 0 {
				t.Errorf("calls that change something: %v", w.History)
			}
		})
	}
}

// A list may show a container before its start event arrives: the event alone does not cost its registration.
func TestStartAfterTheList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		w.hold(owned("vm:a:80", "a", "ENGINE"))
		w.create("a", "10.0.0.1")
		w.inspectErr["a"] = errors.New("500 internal error")
		_, stop := w.run(t)
		defer stop()
		w.expect(t, time.Second, "vm:a:80")
		w.event("start", "a")
		time.Sleep(time.Minute)
		w.expect(t, 0, "vm:a:80")

		// The end of the listed run does.
		w.event("die", "a", "exitCode", "0")
		w.event("start", "a")
		w.expect(t, time.Second, "")

		w.do(func() { clear(w.inspectErr) })
		w.listen("10.0.0.1:80")
		w.expect(t, time.Minute, "vm:a:80")
	})
}

// The node's address becomes known late: existing registrations stay, and are not probed.
func TestNodeKnownLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		w.create("a", "").HostConfig = &fsouza.HostConfig{NetworkMode: "host"}
		_, stop := w.run(t)
		defer stop()
		w.event("start", "a")
		w.expect(t, time.Second, "vm:a:80")
		w.do(func() { w.History = nil; w.host.NodeAddress = "192.0.2.1" })
		time.Sleep(10 * time.Minute)
		w.expect(t, 0, "vm:a:80")
		if len(w.History) > 0 || w.called("try") > 0 {
			t.Errorf("calls that change something: %v; %d probes", w.History, w.called("try"))
		}
		// A container that starts from now on is probed there.
		w.create("b", "").HostConfig = &fsouza.HostConfig{NetworkMode: "host"}
		w.event("start", "b")
		time.Sleep(time.Second)
		w.expect(t, 0, "vm:a:80")
		w.listen("192.0.2.1:80")
		w.expect(t, time.Second, "vm:a:80 vm:b:80")
	})
}

// Another address is registered once the instance is ready there. Until then the registration stays, as long as the
// container has the old address.
func TestAnotherAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		_, stop := w.run(t)
		defer stop()
		w.listen("10.0.0.1:80")
		w.start("a", "10.0.0.1", "SERVICE_NAME=app")
		w.expect(t, 10*time.Millisecond, "vm:a:80")
		w.change("a", func(c *fsouza.Container) {
			c.NetworkSettings = &fsouza.NetworkSettings{Networks: map[string]fsouza.ContainerNetwork{"front": {IPAddress: "10.0.0.2"}, "old": {IPAddress: "10.0.0.1"}}}
		})
		w.event("rename", "a")
		address := func() (a string) {
			w.do(func() {
				if s := w.Services["vm:a:80"]; s != nil {
					a = s.Address
				}
			})
			return a
		}
		for range 1000 { // longer than the wait for other containers
			time.Sleep(100 * time.Millisecond)
			if got := address(); got != "10.0.0.1" || w.Registered() != "vm:a:80" {
				t.Fatalf("it is registered at %q, before it is ready at the other address", got)
			}
		}
		w.listen("10.0.0.2:80")
		w.expectThat(t, time.Second, "the other address", func() bool { return address() == "10.0.0.2" })
		if w.Called("deregister") != 0 {
			t.Error("it was deregistered in between")
		}
		if n := strings.Count(w.log.String(), "vm:a:80 stays at 10.0.0.1:80 and does not move to 10.0.0.2:80: it is not ready there: connection refused"); n != 1 {
			t.Errorf("the reason is said %d times: %s", n, w.log.String())
		}
	})
}

// If the registered address no longer belongs to the container, it may soon be another's. The registration changes when the
// instance is ready at the new address, or disappears within a moment.
func TestAddressThatIsGone(t *testing.T) {
	for _, listens := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := newCluster()
			_, stop := w.run(t)
			defer stop()
			w.listen("10.0.0.1:80")
			w.start("a", "10.0.0.1")
			w.expect(t, 10*time.Millisecond, "vm:a:80")
			w.change("a", func(c *fsouza.Container) {
				c.NetworkSettings = &fsouza.NetworkSettings{Networks: map[string]fsouza.ContainerNetwork{"front": {IPAddress: "10.0.0.2"}}}
			})
			w.event("rename", "a")
			if listens {
				time.Sleep(patience / 2)
				w.listen("10.0.0.2:80")
				time.Sleep(time.Minute)
				w.expect(t, 0, "vm:a:80")
				if n := w.Called("deregister"); n > 0 {
					t.Error("it was deregistered in between")
				}
				return
			}
			w.expect(t, patience+100*time.Millisecond, "")
			w.expect(t, 31*time.Second, "vm:a:80?")
		})
	}
}

// Several signals that come at once all count.
func TestSignalsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		_, stop := w.run(t)
		defer stop()
		w.listen("10.0.0.1:80")
		w.start("a", "10.0.0.1")
		w.expect(t, 10*time.Millisecond, "vm:a:80")
		w.event("kill", "a", "signal", "15")
		w.event("kill", "a", "signal", "10")
		w.expect(t, 0, "vm:a:80!")
	})
}

// A silent event stream is reopened, and then delivers what was missed: a drain, and starts.
func TestSilentEventStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		_, stop := w.run(t)
		defer stop()
		w.listen("10.0.0.1:80")
		w.listen("10.0.0.2:80")
		w.start("a", "10.0.0.1")
		w.expect(t, 10*time.Millisecond, "vm:a:80")
		w.do(func() { w.silent = 1 })
		w.event("top", "a") // the last event delivered
		time.Sleep(time.Second)
		w.event("kill", "a", "signal", "15")
		w.start("b", "10.0.0.2")
		w.expect(t, 61*time.Second, "vm:a:80! vm:b:80")
	})
}

// Registrations of this host from before its Docker engine got another ID are named and left alone: they may belong to a
// second engine.
func TestOrphans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		w.hold(owned("vm:old:80", "old", "ENGINE-BEFORE"))
		w.hold(owned("vm:theirs:80", "theirs", "ENGINE/other"))
		w.hold(owned("elsewhere:old:80", "old", "ENGINE-ELSEWHERE"))
		_, stop := w.run(t)
		defer stop()
		time.Sleep(10 * time.Minute)
		w.expect(t, 0, "elsewhere:old:80 vm:old:80 vm:theirs:80")
		if n := strings.Count(w.log.String(), "another Docker engine"); n != 1 || !strings.Contains(w.log.String(), "instances=vm:old:80\n") {
			t.Errorf("%d warnings, want one that names vm:old:80 alone: %s", n, w.log.String())
		}
	})
}

// The registrar's status does not flicker while containers come and go, and many that come at once need few reads of Consul.
func TestManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		r, stop := w.run(t)
		defer stop()
		reads, lists := w.Called("services"), w.called("list")
		for i := range 200 {
			address := fmt.Sprintf("10.0.%d.%d", i/100, i%100)
			w.listen(address + ":80")
			w.start(fmt.Sprintf("c%03d", i), address)
		}
		for range 50 {
			time.Sleep(time.Millisecond)
			if err := r.Ready(); err != nil {
				t.Fatalf("not ready in between: %v", err)
			}
		}
		synctest.Wait()
		if n := len(strings.Fields(w.Registered())); n != 200 {
			t.Errorf("%d are registered, want 200", n)
		}
		if n := w.Called("services") - reads; n > 10 {
			t.Errorf("what Consul holds was read %d times", n)
		}
		if n := w.called("inspect"); n != 200 || w.called("list") != lists {
			t.Errorf("%d inspects and %d lists, want 200 and none", n, w.called("list")-lists)
		}
		time.Sleep(9 * time.Second)
		reads = w.Called("services")
		w.die("c100")
		for range 20 {
			time.Sleep(time.Millisecond)
			if err := r.Ready(); err != nil {
				t.Fatalf("not ready in between: %v", err)
			}
		}
		if n := w.Called("services") - reads; n > 1 {
			t.Errorf("what Consul holds was read %d times for one change", n)
		}
	})
}

// A write that Consul acknowledged but does not hold is detected, retried with pauses, and logged.
func TestReadBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		w.do(func() { w.Lose = map[string]bool{"register vm:a:80": true} })
		r, stop := w.run(t)
		defer stop()
		w.listen("10.0.0.1:80")
		w.listen("10.0.0.2:80")
		w.start("a", "10.0.0.1")
		w.start("b", "10.0.0.2")
		time.Sleep(time.Minute)
		w.expect(t, 0, "vm:b:80")
		if err := r.Ready(); err == nil || !strings.Contains(err.Error(), "vm:a:80: Consul does not hold what berth wrote") {
			t.Errorf("Ready() = %v", err)
		}
		if n := w.Called("register"); n > 40 {
			t.Errorf("%d registrations in a minute: that is a flood", n)
		}
		w.do(func() { w.Lose = nil })
		w.expect(t, 10*time.Second, "vm:a:80 vm:b:80")
		w.expectThat(t, 10*time.Second, "it is ready", func() bool { return r.Ready() == nil })
	})
}

// Two running containers want one service ID: the older one gets it, in whatever order Docker reports them.
func TestOlderGetsTheID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		w.create("z-old", "10.0.0.1", "SERVICE_ID=www")
		time.Sleep(time.Second)
		w.create("a-young", "10.0.0.2", "SERVICE_ID=www")
		w.listen("10.0.0.1:80")
		w.listen("10.0.0.2:80")
		_, stop := w.run(t)
		defer stop()
		w.expect(t, 10*time.Millisecond, "www")
		w.do(func() {
			if got := w.Services["www"].Meta[label.MetaContainer]; got != "z-old" {
				t.Errorf("it is registered for %s", got)
			}
		})
	})
}

// However many containers hang, all others are inspected, and those that hang are asked about rarely.
func TestContainersThatHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		for i := range 31 {
			w.listen(fmt.Sprintf("10.0.0.%d:80", i))
		}
		for i := range 30 {
			id := fmt.Sprintf("c%02d", i)
			w.create(id, fmt.Sprintf("10.0.0.%d", i))
			w.hang(i < 7, "inspect "+id)
		}
		r, stop := w.run(t)
		defer stop()
		registered := func() int { return len(strings.Fields(w.Registered())) }
		w.expectThat(t, patience+10*time.Millisecond, "the 23 that do not hang", func() bool { return registered() == 23 })
		time.Sleep(15 * time.Second)
		if err := r.Ready(); err == nil || !strings.Contains(err.Error(), "inspect container c00: context deadline exceeded") {
			t.Errorf("Ready() = %v, want the reason", err)
		}
		w.start("new", "10.0.0.30")
		w.expectThat(t, 10*time.Millisecond, "one that starts later", func() bool { return w.has("vm:new:80") })
		before := w.called("inspect c00")
		time.Sleep(10 * time.Minute)
		if n := w.called("inspect c00") - before; n < 10 || n > 62 {
			t.Errorf("one that hangs was asked about %d times in ten minutes", n)
		}
		for i := range 7 {
			w.hang(false, fmt.Sprintf("inspect c%02d", i))
		}
		w.expectThat(t, 20*time.Second, "all", func() bool { return registered() == 31 })
	})
}

// An inspection is ignored if the container has ended or restarted meanwhile.
func TestInspectedTooEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		_, stop := w.run(t)
		defer stop()
		w.listen("10.0.0.1:80")
		w.do(func() { w.slow = time.Second })
		w.start("a", "10.0.0.1")
		time.Sleep(10 * time.Millisecond)
		w.event("die", "a")
		time.Sleep(5 * time.Second)
		w.expect(t, 0, "")
		// The first of two answers describes the state before the change.
		w.start("b", "10.0.0.9")
		time.Sleep(10 * time.Millisecond)
		w.change("b", func(c *fsouza.Container) {
			c.NetworkSettings = &fsouza.NetworkSettings{Networks: map[string]fsouza.ContainerNetwork{"front": {IPAddress: "10.0.0.1"}}}
		})
		w.event("rename", "b")
		w.expect(t, 3*time.Second, "vm:b:80")
		if n := w.called("inspect b"); n != 2 {
			t.Errorf("inspected %d times, want 2", n)
		}
	})
}

// A container may be gone before Consul was told to drain it.
func TestKilledAndDeadAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		r, stop := w.run(t)
		defer stop()
		for i := range 50 {
			id, address := fmt.Sprintf("c%02d", i), fmt.Sprintf("10.0.0.%d", i)
			w.listen(address + ":80")
			w.start(id, address)
		}
		w.expectThat(t, 50*time.Millisecond, "all fifty", func() bool { return len(strings.Fields(w.Registered())) == 50 })
		for i := range 50 {
			w.event("kill", fmt.Sprintf("c%02d", i), "signal", "9")
			w.die(fmt.Sprintf("c%02d", i))
		}
		w.expect(t, 10*time.Millisecond, "")
		if strings.Contains(w.log.String(), "level=ERROR") || r.Ready() != nil {
			t.Errorf("Ready() = %v, log:\n%s", r.Ready(), w.log.String())
		}
	})
}

// A container that ends and restarts before the registrar looks is no longer registered, even if nothing more is known of it
// yet.
func TestRestartWhileInspectHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		_, stop := w.run(t)
		defer stop()
		w.listen("10.0.0.1:80")
		w.start("a", "10.0.0.1")
		w.expect(t, 10*time.Millisecond, "vm:a:80")
		time.Sleep(patience)
		w.hang(true, "inspect a")
		w.die("a")
		w.start("a", "10.0.0.1")
		w.expect(t, 10*time.Millisecond, "")
		w.hang(false, "inspect a")
		w.expect(t, 20*time.Second, "vm:a:80")
	})
}

// A container that uses another's network is adopted once both are known.
func TestAdoptedWithinAnothersNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		w.listen("10.0.0.1:80")
		w.create("net", "10.0.0.1", "SERVICE_IGNORE=1")
		w.create("side", "").HostConfig = &fsouza.HostConfig{NetworkMode: "container:net"}
		_, stop := w.run(t)
		w.expect(t, 10*time.Millisecond, "vm:side:80")
		stop()
		w.do(func() { clear(w.listening); w.History = nil })
		w.hang(true, "inspect net")
		_, stop = w.run(t)
		defer stop()
		time.Sleep(5 * time.Second)
		w.expect(t, 0, "vm:side:80")
		w.hang(false, "inspect net")
		time.Sleep(time.Minute)
		w.expect(t, 0, "vm:side:80")
		if len(w.History) > 0 {
			t.Errorf("calls that change something: %v", w.History)
		}
	})
}

// A drain that follows a resume goes out before the next read of Consul, and does not make the resume look lost.
func TestDrainedRightAfterResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		_, stop := w.run(t)
		defer stop()
		w.listen("10.0.0.1:80")
		w.start("a", "10.0.0.1")
		w.expect(t, 10*time.Millisecond, "vm:a:80")
		pause := func(paused bool, action string) {
			w.change("a", func(c *fsouza.Container) { c.State.Paused = paused })
			w.event(action, "a")
		}
		pause(true, "pause")
		w.expect(t, time.Second, "vm:a:80!")
		time.Sleep(time.Second)
		w.hang(true, "services")
		pause(false, "unpause")
		w.expect(t, time.Second, "vm:a:80")
		w.event("kill", "a", "signal", "15")
		w.expect(t, 0, "vm:a:80!")
		w.hang(false, "services")
		time.Sleep(10 * time.Second)
		w.expect(t, 0, "vm:a:80!")
		if strings.Contains(w.log.String(), "does not hold") {
			t.Errorf("log:\n%s", w.log.String())
		}
	})
}
