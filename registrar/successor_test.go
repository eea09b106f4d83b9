package registrar

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	fsouza "github.com/fsouza/go-dockerclient"
	"github.com/hashicorp/consul/api"

	"berth/registrar/docker"
	"berth/registrar/label"
)

// Containers that compose replaces in these tests. The new one has its later name after the digits of the old one's ID.
const (
	oldID = "aaaaaaaaaaaa0000"
	newID = "bbbbbbbbbbbb0000"

	oldInstance = "vm:shop-app-1-aaaaaaaaaaaa:80"
	newInstance = "vm:shop-app-1-bbbbbbbbbbbb:80"
	both        = oldInstance + " " + newInstance
)

// composed returns a container made by compose, with the labels for start-first. It runs.
func (w *cluster) composed(id, name, address string) *fsouza.Container {
	c := w.create(id, address)
	c.Name, c.Config.StopSignal = "/"+name, "SIGCONT"
	c.Config.Labels = map[string]string{
		"com.docker.compose.project": "shop", "com.docker.compose.service": "app", "com.docker.compose.version": "2.40.3",
		"SERVICE_REPLACE": "start-first", "SERVICE_STOP_SIGNAL": "TERM",
	}
	return c
}

// recreate simulates compose up until it has created the new container.
func (w *cluster) recreate(change func(*fsouza.Container)) {
	c := w.composed(newID, "aaaaaaaaaaaa_shop-app-1", "")
	c.State = fsouza.State{Status: "created"}
	c.Config.Labels[label.ReplaceLabel] = "app-1"
	if change != nil {
		change(c)
	}
	attributes := []string{"name", strings.TrimPrefix(c.Name, "/")}
	for key, value := range c.Config.Labels {
		attributes = append(attributes, key, value)
	}
	w.event("create", newID, attributes...)
}

// begin simulates Docker's start of the new container.
func (w *cluster) begin() {
	w.change(newID, func(c *fsouza.Container) {
		c.State = fsouza.State{Running: true, Status: "running", StartedAt: time.Now()}
		c.NetworkSettings = &fsouza.NetworkSettings{Networks: map[string]fsouza.ContainerNetwork{"front": {IPAddress: "10.0.0.2"}}}
	})
	w.event("start", newID)
}

// withOld returns a cluster with the old container in service. Docker starts what it is asked to.
func withOld(t *testing.T, change func(old *fsouza.Container)) (*cluster, *Registrar, func()) {
	t.Helper()
	w := newCluster()
	w.opts.Start = func(ctx context.Context, id string) error {
		err := w.call(ctx, "start", id)
		w.mu.Lock()
		err = cmp.Or(err, w.startErr)
		w.mu.Unlock()
		if err == nil {
			w.begin()
		}
		return err
	}
	w.listen("10.0.0.1:80")
	old := w.composed(oldID, "shop-app-1", "10.0.0.1")
	if change != nil {
		change(old)
	}
	r, stop := w.run(t)
	synctest.Wait()
	time.Sleep(time.Second)
	return w, r, stop
}

// stopOld simulates compose's stop of the old container, which waits.
func (w *cluster) stopOld() {
	time.Sleep(17 * time.Millisecond)
	w.event("kill", oldID, "signal", "18")
	synctest.Wait()
	w.do(func() { w.started = time.Now() })
}

// ends simulates the end of the old container, and compose's last steps.
func (w *cluster) ends() {
	w.die(oldID)
	w.event("destroy", oldID)
	w.change(newID, func(c *fsouza.Container) { c.Name = "/shop-app-1" })
	w.event("rename", newID)
}

// The new container is started when it is created. The old one serves until the new one does, and then drains.
func TestStartFirst(t *testing.T) {
	for _, catalog := range []bool{false, true} {
		t.Run(fmt.Sprint("catalog ", catalog), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, r, stop := withOld(t, nil)
				if catalog {
					stop()
					w.withCatalog()
					w.do(func() { w.Lost[newInstance] = true })
					r, stop = w.run(t)
					time.Sleep(time.Second)
				}
				defer stop()
				w.expect(t, 0, oldInstance)
				w.recreate(nil)
				synctest.Wait()
				if n := w.called("start " + newID); n != 1 {
					t.Fatalf("started %d times before the old one is stopped, want once", n)
				}
				w.stopOld()
				time.Sleep(3 * time.Second)
				w.expect(t, 0, oldInstance)
				w.listen("10.0.0.2:80")
				w.expect(t, time.Second, both)
				if catalog { // the agent has it, the catalog does not
					time.Sleep(time.Second)
					w.expect(t, 0, both)
					w.do(func() { delete(w.Lost, newInstance) })
				}
				time.Sleep(takenUp - time.Millisecond)
				w.expect(t, 0, both)
				w.expect(t, 400*time.Millisecond, oldInstance+"! "+newInstance)
				drained := time.Since(w.started)
				if len(w.sent()) > 0 {
					t.Errorf("signals before the drain time: %v", w.sent())
				}
				time.Sleep(3 * time.Second)
				var after string
				if n, _ := fmt.Sscanf(strings.Join(w.sent(), ", "), oldID+" 15 %s", &after); n != 1 {
					t.Fatalf("signals: %v, want one SIGTERM", w.sent())
				}
				if at, err := time.ParseDuration(after); err != nil || (at-drained-2*time.Second).Abs() > 2*time.Millisecond {
					t.Errorf("the signal came after %s, want two seconds after the drain at %v", after, drained)
				}
				w.do(func() { w.History = nil })
				w.ends()
				w.expect(t, 0, newInstance)
				time.Sleep(time.Minute)
				w.expect(t, 0, newInstance)
				if len(w.History) != 1 {
					t.Errorf("changes after the end of the old one: %v, want its deregistration alone", w.History)
				}
				if err := r.Ready(); err != nil {
					t.Error(err)
				}
				if log := w.log.String(); w.logged(" serves; draining ") != 1 || strings.Contains(log, "level=WARN") {
					t.Error(log)
				}
			})
		})
	}
}

// A container that never becomes ready, ends, or is not started, does not take the old container away before its grace
// period is nearly over. Then the old one is drained and gets its signal, as without the label.
func TestSuccessorNeverServes(t *testing.T) {
	for name, tt := range map[string]struct {
		plays func(w *cluster) // from the creation on
		why   string
	}{
		"it is never ready": {func(w *cluster) { w.recreate(nil) }, "it is not ready: waiting until 10.0.0.2:80 accepts"},
		"it ends":           {func(w *cluster) { w.recreate(nil); time.Sleep(time.Millisecond); w.die(newID) }, "it has ended"},
		"its start hangs":   {func(w *cluster) { w.hang(true, "start"); w.recreate(nil) }, "Docker has not started it yet"},
		"its inspect hangs": {func(w *cluster) { w.hang(true, "inspect "+newID); w.recreate(nil) }, "Docker has not described it yet"},
		"its inspect fails": {func(w *cluster) { w.inspectErr[newID] = errors.New("no answer"); w.recreate(nil) }, "Docker has not described it yet"},
		"Consul refuses it": {func(w *cluster) {
			w.Fail["register "+newInstance] = api.StatusError{Code: 400, Body: "no"}
			w.listen("10.0.0.2:80")
			w.recreate(nil)
		}, "Consul refuses to register it"},
		"Consul is away": {func(w *cluster) {
			w.do(func() { w.Err = errors.New("refused") })
			w.listen("10.0.0.2:80")
			w.recreate(nil)
		}, "Consul has not registered it yet"},
		"its route is no good": {func(w *cluster) {
			w.listen("10.0.0.2:80")
			w.recreate(func(c *fsouza.Container) { c.Config.Labels["SERVICE_ROUTE_PATH"] = "no path" })
		}, "it gets no requests: "},
		"its check is critical": {func(w *cluster) {
			w.listen("10.0.0.2:80")
			w.recreate(func(c *fsouza.Container) {
				c.Config.Labels["SERVICE_CHECK_TTL"], c.Config.Labels["SERVICE_CHECK_INITIAL_STATUS"] = "nonsense", "critical"
			})
		}, "is critical"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, _, stop := withOld(t, nil)
				defer stop()
				tt.plays(w)
				w.stopOld()
				time.Sleep(6*time.Second - time.Millisecond)
				if !w.has(oldInstance) {
					t.Fatalf("%v after the signal: %s", time.Since(w.started), w.Registered())
				}
				time.Sleep(2 * time.Millisecond)
				w.do(func() { w.Err = nil })
				w.expectThat(t, time.Second, "the old one is drained", func() bool { return w.has(oldInstance + "!") })
				time.Sleep(3 * time.Second)
				if got, want := strings.Join(w.sent(), ", "), oldID+" 15 8s"; got != want {
					t.Errorf("signals: %s, want %s: two seconds before Docker kills it", got, want)
				}
				if log := w.log.String(); strings.Count(log, "is drained all the same") != 1 || !strings.Contains(log, tt.why) || !strings.Contains(log, "stop_grace_period longer") {
					t.Errorf("the log does not say %q once: %s", tt.why, log)
				}
				w.hang(false, "start", "inspect "+newID)
			})
		})
	}
}

// Where start-first does not fit, the old container is drained at once, the new one is left to compose, and the log says why
// and what helps.
func TestStartFirstDoesNotFit(t *testing.T) {
	set := func(key, value string) func(*fsouza.Container) {
		return func(c *fsouza.Container) { c.Config.Labels[key] = value }
	}
	refusal := &docker.Refusal{Status: http.StatusInternalServerError, Why: "Address already in use"}
	for name, tt := range map[string]struct {
		old, new func(*fsouza.Container)
		policy   []label.Rule
		start    error
		why      string
		signals  bool // the old container gets its real signal from the registrar
	}{
		"a fixed port": {
			new: func(c *fsouza.Container) {
				c.HostConfig = &fsouza.HostConfig{PortBindings: map[fsouza.Port][]fsouza.PortBinding{"80/tcp": {{HostPort: "8080"}}}}
			},
			why: "the host port 8080", signals: true,
		},
		"the host's network": {new: func(c *fsouza.Container) { c.HostConfig = &fsouza.HostConfig{NetworkMode: "host"} }, why: "its own network", signals: true},
		"a single writer":    {new: set("SERVICE_SINGLE", "true"), why: "SERVICE_SINGLE", signals: true},
		"the old is single":  {old: set("SERVICE_SINGLE", "true"), why: "SERVICE_SINGLE of the old one", signals: true},
		"a service ID":       {new: set("SERVICE_ID", "x"), why: "the same SERVICE_ID", signals: true},
		"docker-compose 1":   {new: set("com.docker.compose.version", "1.29.2"), why: "use docker compose (v2)", signals: true},
		"no drain first": {
			new: func(c *fsouza.Container) { c.Config.StopSignal = "SIGTERM" },
			why: "set stop_signal: SIGCONT", signals: true,
		},
		"another word":        {new: set("SERVICE_REPLACE", "first"), why: "use start-first or stop-first", signals: true},
		"not by the policy":   {policy: []label.Rule{{Keys: []string{"stop_signal"}}}, why: "the policy does not allow it", signals: true},
		"ignored":             {new: set("SERVICE_IGNORE", "1"), why: "it registers nothing", signals: true},
		"another service":     {new: set("com.docker.compose.service", "db"), why: "do not belong to the same service", signals: true},
		"another project":     {new: set("com.docker.compose.project", "theirs"), why: "do not belong to the same service", signals: true},
		"a short grace":       {old: func(c *fsouza.Container) { c.Config.StopTimeout = 2 }, why: "stop_grace_period of 2s leaves no time", signals: true},
		"Docker refuses":      {start: refusal, why: "Docker refuses to start it next to the old one: Address already in use: remove ipv4_address", signals: true},
		"the old is not so":   {old: set("SERVICE_STOP_SIGNAL", ""), why: "from the next replacement on"},
		"the old is not ours": {old: set("SERVICE_NAME", "no name"), why: "the old one is not registered"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, _, stop := withOld(t, tt.old)
				if tt.policy != nil {
					stop()
					w.do(func() { w.host.Policy = tt.policy })
					_, stop = w.run(t)
					time.Sleep(time.Second)
				}
				defer stop()
				w.do(func() { w.startErr = tt.start })
				w.listen("10.0.0.2:80")
				w.recreate(tt.new)
				w.stopOld()
				if got := w.Registered(); got != "" && !strings.HasSuffix(got, "!") {
					t.Errorf("registered: %s, want it drained at once", got)
				}
				if tt.start == nil && w.called("start") > 0 {
					t.Error("it was started")
				}
				time.Sleep(5 * time.Second)
				if got := len(w.sent()) == 1; got != tt.signals {
					t.Errorf("signals: %v", w.sent())
				}
				if log := w.log.String(); !strings.Contains(log, " has stopped: ") || !strings.Contains(log, tt.why) {
					t.Errorf("the log does not say %q: %s", tt.why, log)
				}
			})
		})
	}
}

// Containers that do not ask for it are stopped as usual, whatever hangs: their successors are not inspected.
func TestNotAskedToStartFirst(t *testing.T) {
	for name, change := range map[string]func(*fsouza.Container){
		"no label":   func(c *fsouza.Container) { delete(c.Config.Labels, "SERVICE_REPLACE") },
		"stop-first": func(c *fsouza.Container) { c.Config.Labels["SERVICE_REPLACE"] = "stop-first" },
		"no replace": func(c *fsouza.Container) { delete(c.Config.Labels, label.ReplaceLabel) },
		"its name":   func(c *fsouza.Container) { c.Name = "/shop-app-2" },
		"of another": func(c *fsouza.Container) { c.Name = "/cccccccccccc_shop-app-1" },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, _, stop := withOld(t, nil)
				defer stop()
				w.recreate(change)
				w.stopOld()
				w.expect(t, 0, oldInstance+"!")
				if w.called("start") > 0 || w.called("inspect "+newID) > 0 {
					t.Error("somebody looked at the new one")
				}
			})
		})
	}
}

// The old container dies of Docker's own stop signal: it is drained at once, even if the new one cannot be inspected.
func TestOldDoesNotDrainFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, stop := withOld(t, func(c *fsouza.Container) { c.Config.StopSignal = "SIGTERM" })
		defer stop()
		w.hang(true, "inspect "+newID)
		w.recreate(nil)
		w.event("kill", oldID, "signal", "15")
		w.expect(t, 0, "vm:shop-app-1:80!")
		w.hang(false, "inspect "+newID)
	})
}

// Docker's SIGKILL, or the end of the old container, ends the wait.
func TestOldEndsMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, stop := withOld(t, nil)
		defer stop()
		w.recreate(nil)
		w.stopOld()
		w.event("kill", oldID, "signal", "9")
		w.expect(t, 0, oldInstance+"!")
		w.listen("10.0.0.2:80")
		w.ends()
		w.expect(t, time.Second, newInstance)
		time.Sleep(time.Minute)
		if len(w.sent()) > 0 || w.logged("drained all the same") > 0 {
			t.Errorf("signals %v, log %s", w.sent(), w.log.String())
		}
	})
}

// The new container is removed again, by docker compose down or by hand: nothing is left to wait for.
func TestSuccessorIsRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, stop := withOld(t, nil)
		defer stop()
		w.recreate(nil)
		w.stopOld()
		w.die(newID)
		w.expect(t, 0, oldInstance)
		w.event("destroy", newID)
		w.expect(t, 0, oldInstance+"!")
	})
}

// compose is interrupted after it has created the new container, and before it stops the old one: both serve until the next
// docker compose up removes the old one, which is then drained at once.
func TestComposeIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, stop := withOld(t, nil)
		defer stop()
		w.listen("10.0.0.2:80")
		w.recreate(nil)
		w.expect(t, time.Second, both)
		time.Sleep(time.Hour)
		w.expect(t, 0, both)
		if len(w.sent()) > 0 {
			t.Errorf("signals: %v", w.sent())
		}
		w.event("kill", oldID, "signal", "18")
		w.expect(t, 0, oldInstance+"! "+newInstance)
		time.Sleep(3 * time.Second)
		if len(w.sent()) != 1 {
			t.Errorf("signals: %v", w.sent())
		}
	})
}

// A registrar that restarts in between continues: it did not hear that the old container was told to stop, but knows that
// compose does that at once.
func TestStartFirstSurvivesARestart(t *testing.T) {
	for name, tt := range map[string]struct {
		away  func(w *cluster) // what happens while no registrar runs, or before
		after time.Duration    // time from the signal to the registrar's return
		want  string           // after another second, while the new container is not ready
		then  string           // when it listens
	}{
		"created while it is away": {func(w *cluster) { w.recreate(nil); w.stopOld() }, time.Second, oldInstance, oldInstance + "! " + newInstance},
		"started while it is away": {func(w *cluster) { w.recreate(nil); w.stopOld(); w.begin() }, time.Second, oldInstance, oldInstance + "! " + newInstance},
		"back when it is late":     {func(w *cluster) { w.recreate(nil); w.stopOld() }, 7 * time.Second, oldInstance + "!", oldInstance + "!"},
		"of long ago, never begun": {func(w *cluster) { w.recreate(nil) }, time.Hour, oldInstance, oldInstance},
		"of long ago, and it runs": {func(w *cluster) { w.recreate(nil); w.begin() }, time.Hour, oldInstance, both},
		"of an earlier run of old": {func(w *cluster) {
			w.recreate(nil)
			time.Sleep(time.Second)
			w.change(oldID, func(c *fsouza.Container) { c.State.StartedAt = time.Now() })
		}, 0, oldInstance, oldInstance},
		"Docker's clock is ahead": {func(w *cluster) {
			w.recreate(func(c *fsouza.Container) { c.Created = time.Now().Add(time.Hour) })
			w.stopOld()
		}, time.Second, oldInstance, oldInstance + "! " + newInstance},
		"the old one is not known": {func(w *cluster) { w.recreate(nil); w.die(oldID) }, time.Second, "", ""},
		"a stranger's, of that name": {func(w *cluster) {
			w.recreate(func(c *fsouza.Container) { delete(c.Config.Labels, label.ReplaceLabel) })
		}, 0, oldInstance, oldInstance},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, _, stop := withOld(t, nil)
				w.expect(t, 0, oldInstance)
				stop()
				tt.away(w)
				w.do(func() { w.events = make(chan docker.Message, 1000) }) // nobody hears of that
				time.Sleep(tt.after)
				_, stop = w.run(t)
				defer stop()
				time.Sleep(time.Second)
				w.expect(t, 0, tt.want)
				w.listen("10.0.0.2:80")
				w.expect(t, 2*time.Second, tt.then)
				time.Sleep(2 * time.Minute) // and resyncs
				if drained := strings.Contains(tt.then, "!"); drained != (len(w.sent()) == 1) {
					t.Errorf("signals: %v", w.sent())
				}
			})
		})
	}
}

// A dry run starts nothing.
func TestDryRunStartsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, stop := withOld(t, nil)
		stop()
		w.recreate(nil)
		if _, err := w.registrar().Plan(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := w.registrar().Once(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := w.called("start"); n > 0 {
			t.Errorf("started %d times", n)
		}
	})
}

// The report says which containers are started first, and why others that ask for it are not.
func TestStartFirstInTheReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, r, stop := withOld(t, nil)
		defer stop()
		w.composed(newID, "shop-app-2", "10.0.0.2").Config.Labels["SERVICE_SINGLE"] = "true"
		w.event("start", newID)
		w.listen("10.0.0.2:80")
		w.expect(t, time.Second, oldInstance+" vm:shop-app-2:80")
		report, err := r.Report(t.Context())
		if err != nil || len(report.Containers) != 2 {
			t.Fatalf("%+v, %v", report, err)
		}
		if is := report.Containers[0]; is.Replace != label.StartFirst || len(is.Reasons) > 0 {
			t.Errorf("%+v", is)
		}
		if is := report.Containers[1]; is.Replace != "" || !strings.Contains(strings.Join(is.Reasons, ""), "SERVICE_REPLACE=\"start-first\" has no effect: SERVICE_SINGLE") {
			t.Errorf("%+v", is)
		}
	})
}
