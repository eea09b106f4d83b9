package registrar

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	fsouza "github.com/fsouza/go-dockerclient"
	"github.com/hashicorp/consul/api"

	"berth/registrar/agent"
	"berth/registrar/label"
)

// restart restarts a container, and nothing listens at its address at first.
func (w *cluster) restart(id, address string, seen bool) {
	time.Sleep(time.Second)
	w.do(func() { delete(w.listening, address+":80") })
	w.change(id, func(c *fsouza.Container) { c.State.StartedAt = time.Now() })
	if seen {
		w.event("die", id, "exitCode", "0")
		w.event("start", id)
	}
}

// Another process must become ready again: a restarted one, and one in the network of a restarted container, whether the
// registrar saw that, was away, or could not reach Consul.
func TestAnotherProcessIsReadyAnew(t *testing.T) {
	for _, of := range []string{"app", "net"} {
		for _, how := range []string{"seen", "unseen", "while Consul is away", "while the registrar is away"} {
			t.Run(of+" "+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newCluster()
					w.listen("10.0.0.1:80")
					address := "10.0.0.1"
					if of == "net" {
						w.create("net", address, "SERVICE_IGNORE=1")
						w.create("app", "").HostConfig = &fsouza.HostConfig{NetworkMode: "container:net"}
					} else {
						w.create("app", address)
					}
					_, stop := w.run(t)
					defer func() { stop() }()
					w.expect(t, 10*time.Millisecond, "vm:app:80")
					for range 2 {
						switch how {
						case "seen":
							w.restart(of, address, true)
							w.expect(t, 0, "")
						case "unseen":
							w.restart(of, address, false)
							w.expect(t, 61*time.Second, "")
						case "while Consul is away":
							w.do(func() { w.Err = errors.New("connection refused") })
							w.restart(of, address, true)
							time.Sleep(3 * time.Second)
							w.do(func() { w.Err = nil })
							w.expect(t, 5*time.Second, "")
						case "while the registrar is away":
							stop()
							w.restart(of, address, false)
							_, stop = w.run(t)
							w.expect(t, 0, "")
						}
						w.expect(t, 31*time.Second, "vm:app:80?")
						if notes := w.Check("vm:app:80:ready").Notes; strings.Contains(notes, "container net, whose network it uses, was started after it: restart this one") != (of == "net") {
							t.Errorf("the reason is %q", notes)
						}
						w.listen(address + ":80")
						w.expect(t, time.Second, "vm:app:80")
						if got, started := w.Services["vm:app:80"].Meta[label.MetaStarted], w.containers[of].State.StartedAt; got != started.UTC().Format(time.RFC3339Nano) {
							t.Errorf("%s is %q, want %v", label.MetaStarted, got, started)
						}
					}
				})
			})
		}
	}
}

// In the host's network, nothing changes when another of its containers restarts.
func TestHostNetworkOfAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		w.host.NodeAddress = "192.0.2.1"
		w.listen("192.0.2.1:80")
		w.create("net", "", "SERVICE_IGNORE=1").HostConfig = &fsouza.HostConfig{NetworkMode: "host"}
		w.create("app", "").HostConfig = &fsouza.HostConfig{NetworkMode: "container:net"}
		_, stop := w.run(t)
		defer stop()
		w.expect(t, 10*time.Millisecond, "vm:app:80")
		before := w.Services["vm:app:80"]
		w.restart("net", "", false)
		time.Sleep(2 * time.Minute)
		w.expect(t, 0, "vm:app:80")
		if w.Services["vm:app:80"] != before {
			t.Error("it was registered anew")
		}
	})
}

// The container whose network another one uses was removed, and a new one has its name: the reason says what helps, which is
// not to start the removed one.
func TestNetworkOfOneThatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		w.listen("10.0.0.1:80")
		w.create("net", "10.0.0.1", "SERVICE_IGNORE=1")
		w.create("app", "", "SERVICE_NAME=app").HostConfig = &fsouza.HostConfig{NetworkMode: "container:net"}
		_, stop := w.run(t)
		defer stop()
		w.expect(t, 10*time.Millisecond, "vm:app:80")
		w.die("net")
		w.event("destroy", "net")
		w.start("another", "10.0.0.1", "SERVICE_IGNORE=1")
		w.expect(t, time.Second, "")
		if want := "recreate this one"; !strings.Contains(w.log.String(), want) {
			t.Errorf("the log does not say %q: %s", want, w.log.String())
		}
	})
}

// A container that was told to stop while berth watched, and was restarted while it did not, is not being stopped, and gets
// no signal.
func TestDrainOfAnEarlierRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		_, stop := w.run(t)
		w.listen("10.0.0.1:80")
		w.startDrainFirst("a", "10.0.0.1")
		w.expect(t, 10*time.Millisecond, "vm:a:80")
		w.event("kill", "a", "signal", "18")
		w.expect(t, 0, "vm:a:80!")
		stop()
		w.restart("a", "10.0.0.1", false)
		w.listen("10.0.0.1:80")
		_, stop = w.run(t)
		defer stop()
		w.expect(t, time.Second, "vm:a:80")
		time.Sleep(time.Minute)
		if len(w.sent()) > 0 {
			t.Errorf("signals: %v", w.sent())
		}
	})
}

// SERVICE_STOP_SIGNAL only applies to registered containers: others get no signal.
func TestStopSignalOfOneNotRegistered(t *testing.T) {
	for name, tt := range map[string]struct {
		env    []string
		policy []label.Rule
		change func(*fsouza.Container)
		gets   bool
	}{
		"registered":           {gets: true},
		"ignored":              {env: []string{"SERVICE_IGNORE=1"}},
		"no port":              {change: func(c *fsouza.Container) { c.Config.ExposedPorts = nil }},
		"no name":              {env: []string{"SERVICE_NAME=no name"}},
		"not by the policy":    {policy: []label.Rule{{Services: []string{"other"}}}},
		"no rule in a policy":  {policy: []label.Rule{{Image: []string{"other"}}}},
		"another holds its ID": {env: []string{"SERVICE_ID=vm:first:80"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newCluster()
				w.host.Policy = tt.policy
				w.listen("10.0.0.1:80")
				w.listen("10.0.0.2:80")
				w.create("first", "10.0.0.2")
				time.Sleep(time.Second)
				c := w.create("a", "10.0.0.1", append(tt.env, "SERVICE_STOP_SIGNAL=TERM")...)
				c.Config.StopSignal = "SIGCONT"
				if tt.change != nil {
					tt.change(c)
				}
				_, stop := w.run(t)
				defer stop()
				time.Sleep(time.Second)
				w.event("kill", "a", "signal", "18")
				time.Sleep(10 * time.Second)
				if got := fmt.Sprint(len(w.sent())); got != map[bool]string{true: "1", false: "0"}[tt.gets] {
					t.Errorf("signals: %v, registered: %s", w.sent(), w.Registered())
				}
			})
		})
	}
}

// withCatalog makes registrars of the cluster compare the catalog with the agent.
func (w *cluster) withCatalog() {
	w.opts.Catalog = &agent.Catalog{Client: w.Agent, Self: func(ctx context.Context) (agent.Node, error) {
		return agent.Node{Name: "node", Address: "192.0.2.1"}, w.call(ctx, "self", "")
	}}
}

// What the catalog lacks although the agent holds it is put there, repeatedly: a moment after the registration if the agent
// could not, otherwise at once. That includes the node, and nothing that is not the registrar's own.
func TestLostInTheCatalog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		w.withCatalog()
		w.hold(owned("theirs", "x", "OTHER"))
		w.do(func() { w.Lost["theirs"], w.Lost["vm:b:80"] = true, true })
		w.listen("10.0.0.1:80")
		w.listen("10.0.0.2:80")
		w.start("a", "10.0.0.1")
		w.start("b", "10.0.0.2")
		_, stop := w.run(t)
		w.expect(t, 10*time.Millisecond, "theirs vm:a:80 vm:b:80")
		lacks := func() (n int) {
			w.do(func() { n = len(w.Lost) - 1 })
			return n
		}
		time.Sleep(settles - time.Second)
		if lacks() != 1 {
			t.Errorf("%d are lost, want 1: it was registered a moment ago, and the agent may be about to hand it on", lacks())
		}
		w.expectThat(t, time.Second, "b is in the catalog", func() bool { return lacks() == 0 })
		for range 3 {
			time.Sleep(settles)
			w.do(func() { w.Lost["vm:a:80"] = true })
			w.expectThat(t, 50*time.Millisecond, "a is back", func() bool { return lacks() == 0 })
		}
		time.Sleep(settles)
		w.do(func() { w.NoNode, w.Lost["vm:a:80"], w.Lost["vm:b:80"] = true, true, true })
		w.expectThat(t, 11*time.Second, "the node is back", func() bool { return lacks() == 0 })
		stop()
		w.do(func() { w.Lost["vm:a:80"] = true })
		r, stop := w.run(t)
		defer stop()
		w.expectThat(t, 50*time.Millisecond, "a is back after a start", func() bool { return lacks() == 0 })
		// Consul is away, and comes back with a gap.
		time.Sleep(settles)
		w.do(func() { w.Err = errors.New("No cluster leader"); w.Lost["vm:b:80"] = true })
		time.Sleep(time.Minute)
		w.do(func() { w.Err = nil })
		w.expectThat(t, 2*time.Second, "b is back", func() bool { return lacks() == 0 })
		if err := r.Ready(); err != nil {
			t.Error(err)
		}
		if puts := w.Called("put"); puts > 20 {
			t.Errorf("%d times something was put into the catalog", puts)
		}
	})
}

// A catalog that cannot be read or written does no harm, and is logged once.
func TestCatalogRefused(t *testing.T) {
	forbidden := api.StatusError{Code: 403, Body: "Permission denied"}
	for name, tt := range map[string]struct {
		refuse func(w *cluster)
		says   string
	}{
		"the agent's own node": {func(w *cluster) {
			w.dockerErr = nil
			w.opts.Catalog.Self = func(context.Context) (agent.Node, error) { return agent.Node{}, forbidden }
		}, "node_prefix"},
		"the node, an error": {func(w *cluster) { w.Fail["catalog"] = forbidden }, "node_prefix"},
		"the node, hidden":   {func(w *cluster) { w.Hidden = true }, "node_prefix"},
		"to write":           {func(w *cluster) { w.Fail["put"] = forbidden }, "which lacks it; the agent does so"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newCluster()
				w.withCatalog()
				tt.refuse(w)
				w.do(func() { w.Lost["vm:a:80"] = true })
				w.listen("10.0.0.1:80")
				w.start("a", "10.0.0.1")
				r, stop := w.run(t)
				defer stop()
				w.expect(t, 10*time.Millisecond, "vm:a:80")
				time.Sleep(10 * time.Minute)
				w.expect(t, 0, "vm:a:80")
				if err := r.Ready(); err != nil {
					t.Error(err)
				}
				if n := strings.Count(w.log.String(), tt.says); n != 1 || strings.Contains(w.log.String(), "level=ERROR") {
					t.Errorf("said %d times: %s", n, w.log.String())
				}
				asked := w.Called("put")
				if tt.says == "node_prefix" {
					asked += w.Called("catalog")
				}
				if asked > 100 {
					t.Errorf("asked %d times in ten minutes for what is refused", asked)
				}
				w.die("a")
				w.expect(t, 0, "")
			})
		})
	}
}

// A node that the catalog does not know, because the agent lacks rights or has just started, is queried with pauses: Consul
// answers that query at once.
func TestNodeNotInTheCatalog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		w.withCatalog()
		w.do(func() { w.NoNode = true })
		_, stop := w.run(t)
		defer stop()
		time.Sleep(time.Minute)
		if n := w.Called("catalog"); n < 30 || n > 120 {
			t.Errorf("asked %d times in a minute, want about once a second", n)
		}
	})
}

// An agent that comes back empty is noticed by the pending query, before the next regular read.
func TestAgentComesBackEmpty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		w.withCatalog()
		w.listen("10.0.0.1:80")
		w.start("a", "10.0.0.1")
		_, stop := w.run(t)
		defer stop()
		w.expect(t, 10*time.Millisecond, "vm:a:80")
		for range 3 {
			time.Sleep(2 * time.Second)
			w.do(func() {
				w.Err = errors.New("connection refused")
				w.Forget()
			})
			time.Sleep(3 * time.Second)
			w.do(func() { w.Err = nil })
			w.expect(t, 1200*time.Millisecond, "vm:a:80")
		}
	})
}

// What an agent drops, as a hung one may do because of an earlier request, soon returns.
func TestAgentDropsOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		w.withCatalog()
		for name, address := range map[string]string{"a": "10.0.0.1", "b": "10.0.0.2"} {
			w.listen(address + ":80")
			w.start(name, address)
		}
		_, stop := w.run(t)
		defer stop()
		w.expect(t, 10*time.Millisecond, "vm:a:80 vm:b:80")
		for range 3 {
			time.Sleep(2*settles + 10*time.Millisecond)
			w.do(func() { delete(w.Services, "vm:a:80") })
			w.expect(t, 500*time.Millisecond, "vm:a:80 vm:b:80")
		}
	})
}

// With another token, everything is registered again, once, and put into the catalog: the agent could not pass on what
// happened meanwhile.
func TestTokenReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		w.withCatalog()
		var token atomic.Value
		token.Store("a")
		w.opts.Token = func() string { return token.Load().(string) }
		w.listen("10.0.0.1:80")
		w.start("a", "10.0.0.1")
		_, stop := w.run(t)
		w.expect(t, 10*time.Millisecond, "vm:a:80")
		want := 1
		for _, next := range []string{"a", "b", "c"} {
			if next != token.Load() {
				want++
			}
			token.Store(next)
			time.Sleep(time.Minute)
			if n := w.Called("register"); n != want {
				t.Errorf("registered %d times, want %d", n, want)
			}
			if puts := w.Called("put"); puts != want-1 { // the agent itself passes on what is new
				t.Errorf("put into the catalog %d times, want %d", puts, want-1)
			}
		}
		// After a start, the earlier token is unknown.
		stop()
		_, stop = w.run(t)
		defer stop()
		time.Sleep(10 * time.Second)
		if n := w.Called("register"); n != want+1 {
			t.Errorf("registered %d times, want %d", n, want+1)
		}
		w.expect(t, 0, "vm:a:80")
		if log := w.log.String(); strings.Contains(log, "deregistered") || strings.Contains(log, "which lacked it") {
			t.Error(log)
		}
	})
}

// What changes while Consul is away is right when it is back: a pause, the end of one, another address, another name.
func TestChangesWhileConsulIsAway(t *testing.T) {
	pause := func(w *cluster, paused bool) {
		w.change("a", func(c *fsouza.Container) { c.State.Paused = paused })
		w.event(map[bool]string{true: "pause", false: "unpause"}[paused], "a")
	}
	move := func(w *cluster) {
		w.change("a", func(c *fsouza.Container) {
			c.NetworkSettings = &fsouza.NetworkSettings{Networks: map[string]fsouza.ContainerNetwork{"front": {IPAddress: "10.0.0.2"}}}
		})
		w.event("rename", "a")
	}
	for name, tt := range map[string]struct {
		change  func(w *cluster)
		want    string
		address string
	}{
		"paused":                  {func(w *cluster) { pause(w, true) }, "vm:a:80!", "10.0.0.1"},
		"paused and unpaused":     {func(w *cluster) { pause(w, true); time.Sleep(time.Second); pause(w, false) }, "vm:a:80", "10.0.0.1"},
		"moved":                   {func(w *cluster) { move(w); w.listen("10.0.0.2:80") }, "vm:a:80", "10.0.0.2"},
		"moved and not ready":     {move, "", ""},
		"renamed":                 {func(w *cluster) { w.change("a", func(c *fsouza.Container) { c.Name = "/b" }); w.event("rename", "a") }, "vm:b:80", "10.0.0.1"},
		"started anew, not ready": {func(w *cluster) { w.restart("a", "10.0.0.1", true) }, "", ""},
		"moved, and so was another to where it was": {func(w *cluster) {
			move(w)
			w.listen("10.0.0.2:80")
			w.start("z", "10.0.0.1")
		}, "vm:a:80 vm:z:80", "10.0.0.2"},
	} {
		for _, crash := range []bool{false, true} { // of the registrar, before Consul is back
			t.Run(fmt.Sprint(name, crash), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newCluster()
					w.listen("10.0.0.1:80")
					w.start("a", "10.0.0.1")
					_, stop := w.run(t)
					defer func() { stop() }()
					w.expect(t, 10*time.Millisecond, "vm:a:80")
					w.do(func() { w.Err = errors.New("connection refused") })
					tt.change(w)
					time.Sleep(5 * time.Second)
					if crash {
						stop()
						_, stop = w.run(t)
						time.Sleep(time.Second)
					}
					w.do(func() { w.Err = nil })
					w.expect(t, 3*time.Second, tt.want)
					time.Sleep(15 * time.Second)
					w.expect(t, 0, tt.want)
					for id, s := range w.Services {
						if id != "vm:z:80" && s.Address != tt.address {
							t.Errorf("%s is at %s, want %s", id, s.Address, tt.address)
						}
					}
				})
			})
		}
	}
}

// The host's clock is set back, or forward: starts are compared for equality only, and nothing is registered again because
// of it.
func TestStartInTheFuture(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		w.listen("10.0.0.1:80")
		w.create("a", "10.0.0.1").State.StartedAt = time.Now().Add(time.Hour)
		_, stop := w.run(t)
		w.expect(t, 10*time.Millisecond, "vm:a:80")
		stop()
		w.do(func() { w.History = nil; clear(w.listening) })
		_, stop = w.run(t)
		w.expect(t, 0, "vm:a:80")
		if len(w.History) > 0 {
			t.Errorf("calls that change something: %v", w.History)
		}
		stop()
		w.change("a", func(c *fsouza.Container) { c.State.StartedAt = time.Now().Add(-time.Hour) }) // restarted
		_, stop = w.run(t)
		defer stop()
		w.expect(t, 0, "")
	})
}
