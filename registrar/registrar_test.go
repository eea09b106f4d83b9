package registrar

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	fsouza "github.com/fsouza/go-dockerclient"
	"github.com/hashicorp/consul/api"

	"berth/deploy/testenv"
	"berth/deploy/testenv/agenttest"
	"berth/registrar/agent"
	"berth/registrar/docker"
	"berth/registrar/label"
)

// cluster is a Docker daemon, a Consul agent and a network. Its methods simulate what happens there.
type cluster struct {
	*agenttest.Agent
	mu         sync.Mutex
	containers map[string]*fsouza.Container
	listening  map[string]bool // accepting addresses
	dockerErr  error
	startErr   error // Docker's answer to a start
	inspectErr map[string]error
	hangs      map[string]bool // calls to Docker that block until the caller gives up: "list", "host", "inspect a", "kill a"
	slow       time.Duration   // duration of inspect
	host       label.Host
	events     chan docker.Message
	broken     chan struct{} // closed: the event stream ends
	silent     int           // how many event streams stay silent before one delivers what was missed
	calls      map[string]int
	signals    []string // "container signal after"
	started    time.Time
	opts       Options // in addition to the tests' usual options
	log        testenv.Log
}

func newCluster() *cluster {
	return &cluster{
		Agent: agenttest.New(), containers: map[string]*fsouza.Container{}, listening: map[string]bool{},
		inspectErr: map[string]error{}, hangs: map[string]bool{}, events: make(chan docker.Message, 1000), broken: make(chan struct{}), calls: map[string]int{},
		host:    label.Host{Name: "vm", EngineID: "ENGINE", Networks: []string{"front"}},
		started: time.Now(),
	}
}

func (w *cluster) do(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.Do(f)
}

// hang makes calls to Docker and Consul hang, or work again.
func (w *cluster) hang(hang bool, calls ...string) {
	w.do(func() {
		for _, call := range calls {
			w.hangs[call], w.Hang[call] = hang, hang
		}
	})
}

// call simulates a call to Docker.
func (w *cluster) call(ctx context.Context, name, id string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls[name]++
	if id != "" {
		w.calls[name+" "+id]++
	}
	if w.hangs[name] || w.hangs[name+" "+id] {
		w.mu.Unlock()
		<-ctx.Done()
		w.mu.Lock()
		return ctx.Err()
	}
	return w.dockerErr
}

func (w *cluster) event(action, id string, attributes ...string) {
	e := docker.Message{Type: "container", Action: action, TimeNano: time.Now().UnixNano()}
	e.Actor.ID = id
	e.Actor.Attributes = map[string]string{}
	for i := 0; i < len(attributes); i += 2 {
		e.Actor.Attributes[attributes[i]] = attributes[i+1]
	}
	w.events <- e
}

func (w *cluster) start(id, address string, env ...string) {
	w.create(id, address, env...)
	w.event("start", id)
}

func (w *cluster) create(id, address string, env ...string) *fsouza.Container {
	c := inspectOf(id, address, env...)
	w.do(func() {
		c.Created, c.State.StartedAt = time.Now(), time.Now()
		w.containers[id] = c
	})
	return c
}

// inspectOf returns Docker's description of a running container with one port.
func inspectOf(id, address string, env ...string) *fsouza.Container {
	c := &fsouza.Container{ID: id, Name: "/" + id, State: fsouza.State{Running: true, Status: "running"}}
	c.Config = &fsouza.Config{Image: "app", Env: env, ExposedPorts: map[fsouza.Port]struct{}{"80/tcp": {}}}
	c.NetworkSettings = &fsouza.NetworkSettings{Networks: map[string]fsouza.ContainerNetwork{"front": {IPAddress: address}}}
	return c
}

// change changes Docker's description of a container.
func (w *cluster) change(id string, f func(*fsouza.Container)) {
	w.do(func() {
		c, config := *w.containers[id], *w.containers[id].Config
		c.Config = &config
		f(&c)
		w.containers[id] = &c
	})
}

func (w *cluster) die(id string) {
	w.do(func() { delete(w.containers, id) })
	w.event("die", id, "exitCode", "0")
}

func (w *cluster) listen(address string) { w.do(func() { w.listening[address] = true }) }

// hold makes Consul hold an instance.
func (w *cluster) hold(in label.Instance) {
	if err := (agent.Agent{Client: w.Agent, Log: slog.New(slog.DiscardHandler)}).Apply(context.Background(), agent.Change{Register: true, Desired: agent.Prepare(in)}); err != nil {
		panic(err)
	}
}

func owned(id, container, owner string) label.Instance {
	return label.Instance{ID: id, Name: "app", Port: 80, Container: container, Meta: map[string]string{label.MetaOwner: owner, label.MetaContainer: container}}
}

func (w *cluster) ListContainers(o fsouza.ListContainersOptions) ([]fsouza.APIContainers, error) {
	err := w.call(o.Context, "list", "")
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []fsouza.APIContainers
	for id, c := range w.containers {
		_, labelled := c.Config.Labels[strings.Join(o.Filters["label"], "")]
		if (c.State.Running || o.All) && (o.Filters == nil || labelled && slices.Contains(o.Filters["status"], c.State.Status)) {
			out = append(out, fsouza.APIContainers{ID: id, Names: []string{c.Name}, Labels: c.Config.Labels})
		}
	}
	return out, err
}

func (w *cluster) InspectContainerWithOptions(o fsouza.InspectContainerOptions) (*fsouza.Container, error) {
	w.mu.Lock()
	c, ok := w.containers[o.ID]
	slow := w.slow
	w.mu.Unlock()
	time.Sleep(slow)
	err := w.call(o.Context, "inspect", o.ID)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := errors.Join(err, w.inspectErr[o.ID]); err != nil {
		return nil, err
	}
	if !ok {
		return nil, &fsouza.NoSuchContainer{ID: o.ID}
	}
	is := *c // the caller may modify it
	if c.NetworkSettings != nil {
		network := *c.NetworkSettings
		is.NetworkSettings = &network
	}
	return &is, nil
}

func (w *cluster) KillContainer(o fsouza.KillContainerOptions) error {
	err := w.call(o.Context, "kill", o.ID)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		w.signals = append(w.signals, fmt.Sprintf("%s %d %v", o.ID, o.Signal, time.Since(w.started)))
	}
	return err
}

func (w *cluster) called(what string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n, docker := w.calls[what]; docker {
		return n
	}
	return w.Called(what)
}

func (w *cluster) sent() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.signals)
}

func (w *cluster) stream(ctx context.Context, connected func(), message func(docker.Message)) error {
	w.mu.Lock()
	err, broken := w.dockerErr, w.broken
	w.calls["events"]++
	w.mu.Unlock()
	if err != nil {
		return err
	}
	connected()
	for {
		w.mu.Lock()
		events := w.events
		if w.silent > 0 {
			events = nil
		}
		w.mu.Unlock()
		select {
		case <-ctx.Done():
			w.do(func() { w.silent-- })
			return ctx.Err()
		case <-broken:
			return errors.New("the daemon closed the stream")
		case e := <-events:
			message(e)
		}
	}
}

func (w *cluster) try(_ context.Context, r label.Ready) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls["try"]++
	if !w.listening[cmp.Or(r.Address, r.URL)] {
		return errors.New("connection refused")
	}
	return nil
}

// registrar returns a registrar in the cluster.
func (w *cluster) registrar() *Registrar {
	opts := w.opts
	opts.Docker, opts.Events, opts.Agent = w, w.stream, w.Agent
	opts.Log = slog.New(slog.NewTextHandler(&w.log, nil))
	opts.Host = func(ctx context.Context) (label.Host, error) {
		err := w.call(ctx, "host", "")
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.host, err
	}
	r := New(opts)
	r.try = w.try
	return r
}

// run starts a registrar in the cluster, and returns a function that stops it. Call it in a synctest bubble.
func (w *cluster) run(t *testing.T) (*Registrar, func()) {
	ctx, cancel := context.WithCancel(t.Context())
	r := w.registrar()
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	synctest.Wait()
	return r, func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

// expect waits, within a limit, until everything has settled, and compares the registrations.
func (w *cluster) expect(t *testing.T, within time.Duration, want string) {
	t.Helper()
	deadline := time.Now().Add(within)
	for synctest.Wait(); w.Registered() != want && time.Now().Before(deadline); synctest.Wait() {
		time.Sleep(time.Millisecond) // of the bubble's time
	}
	if got := w.Registered(); got != want {
		t.Fatalf("after %v registered: %q, want %q", within, got, want)
	}
}

func TestLifeOfAContainer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		r, stop := w.run(t)
		defer stop()
		w.start("a", "10.0.0.1")
		w.expect(t, 0, "") // its port does not accept yet
		time.Sleep(20 * time.Millisecond)
		w.listen("10.0.0.1:80")
		w.expect(t, 20*time.Millisecond, "vm:a:80")
		if err := r.Ready(); err != nil {
			t.Errorf("not ready: %v", err)
		}
		w.die("a")
		w.expect(t, 0, "")
		if n := w.called("list"); n != 1 {
			t.Errorf("%d lists, want 1: events say where to look", n)
		}
	})
}

// Once waits for Consul's confirmation and for instances that have time left, and for nothing else.
func TestOnce(t *testing.T) {
	for _, tt := range []struct {
		name       string
		prepare    func(w *cluster)
		registered string
		took       time.Duration // upper limit
		err        string
	}{
		{name: "all are ready", prepare: func(w *cluster) { w.listen("10.0.0.2:80") }, registered: "vm:a:80 vm:b:80", took: time.Second},
		{name: "one is never ready", prepare: func(*cluster) {}, registered: "vm:a:80 vm:b:80?", took: 31 * time.Second},
		{name: "no containers", prepare: func(w *cluster) { clear(w.containers) }, registered: "", took: time.Second},
		{name: "Consul is away", prepare: func(w *cluster) { w.Err = errors.New("connection refused") }, took: 4 * time.Second, err: "connection refused"},
		{name: "Docker is away", prepare: func(w *cluster) { w.dockerErr = errors.New("no daemon") }, took: 4 * time.Second, err: "no daemon"},
		{
			name: "Consul loses a registration", prepare: func(w *cluster) { w.Lose = map[string]bool{"register vm:a:80": true}; delete(w.containers, "b") },
			registered: "", took: time.Second, err: "vm:a:80: Consul does not hold what berth wrote",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newCluster()
				w.listen("10.0.0.1:80")
				w.create("a", "10.0.0.1")
				w.create("b", "10.0.0.2")
				tt.prepare(w)
				began := time.Now()
				err := w.registrar().Once(t.Context())
				if (err == nil) != (tt.err == "") || (err != nil && !strings.Contains(err.Error(), tt.err)) {
					t.Errorf("Once() = %v, want %q", err, tt.err)
				}
				if took := time.Since(began); took > tt.took {
					t.Errorf("it took %v, want at most %v", took, tt.took)
				}
				if got := w.Registered(); got != tt.registered {
					t.Errorf("registered %q, want %q", got, tt.registered)
				}
			})
		})
	}
}

func TestRestartHasToBeReadyAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		_, stop := w.run(t)
		defer stop()
		w.listen("10.0.0.1:80")
		w.start("a", "10.0.0.1")
		w.expect(t, 10*time.Millisecond, "vm:a:80")
		time.Sleep(time.Second)
		w.do(func() { delete(w.listening, "10.0.0.1:80") })
		// Both events arrive before the registrar looks.
		w.die("a")
		w.start("a", "10.0.0.1")
		w.expect(t, 0, "")
		w.listen("10.0.0.1:80")
		w.expect(t, 10*time.Millisecond, "vm:a:80")
	})
}

func TestRegistrarRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		_, stop := w.run(t)
		w.listen("10.0.0.1:80")
		w.listen("10.0.0.2:80")
		w.start("a", "10.0.0.1")
		w.start("b", "10.0.0.2")
		w.expect(t, 10*time.Millisecond, "vm:a:80 vm:b:80")
		stop()
		w.expect(t, 0, "vm:a:80 vm:b:80") // they keep running, so they stay

		// Meanwhile one dies, one starts, one does not accept for the moment, and an operator registers one by hand.
		w.do(func() {
			delete(w.containers, "b")
			delete(w.listening, "10.0.0.1:80")
			w.Services["by-hand"] = &api.AgentService{ID: "by-hand"}
		})
		w.listen("10.0.0.3:80")
		w.start("c", "10.0.0.3")
		_, stop = w.run(t)
		defer stop()
		w.expect(t, 10*time.Millisecond, "by-hand vm:a:80 vm:c:80")
	})
}

func TestRemovedByHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		_, stop := w.run(t)
		defer stop()
		w.listen("10.0.0.1:80")
		w.start("a", "10.0.0.1")
		w.expect(t, 10*time.Millisecond, "vm:a:80")
		w.do(func() { w.Forget() })
		w.expect(t, reread+time.Second, "vm:a:80")
	})
}

func TestConsulAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		r, stop := w.run(t)
		defer stop()
		w.listen("10.0.0.1:80")
		w.listen("10.0.0.2:80")
		w.start("a", "10.0.0.1")
		w.expect(t, 10*time.Millisecond, "vm:a:80")
		w.do(func() { w.Err = errors.New("connection refused") })
		before := w.called("all")
		for i := range 100 { // a hundred come and go while Consul is away
			id := fmt.Sprint("x", i)
			w.start(id, "10.0.0.2")
			synctest.Wait()
			w.die(id)
		}
		w.start("b", "10.0.0.2")
		w.die("a")
		time.Sleep(time.Hour)
		if err := r.Ready(); err == nil || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("Ready() = %v, want the reason", err)
		}
		if n := w.called("all") - before; n > 3600*6 {
			t.Errorf("%d calls to Consul in an hour away: that is a flood", n)
		}
		w.do(func() { w.Err = nil })
		w.expect(t, 10*time.Second, "vm:b:80")
		if err := r.Ready(); err != nil {
			t.Errorf("not ready: %v", err)
		}
	})
}

func TestDockerAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		r, stop := w.run(t)
		defer stop()
		for i := range 4 {
			w.listen(fmt.Sprintf("10.0.0.%d:80", i))
		}
		w.start("a", "10.0.0.1")
		w.start("b", "10.0.0.2")
		w.expect(t, 10*time.Millisecond, "vm:a:80 vm:b:80")
		w.do(func() { w.dockerErr = errors.New("no such socket"); close(w.broken) })
		time.Sleep(time.Hour)
		w.expect(t, 0, "vm:a:80 vm:b:80")
		if err := r.Ready(); err == nil || !strings.Contains(err.Error(), "no such socket") {
			t.Errorf("Ready() = %v, want the reason", err)
		}
		if n := w.called("list"); n > 3600/2 {
			t.Errorf("%d lists in an hour away: that is a flood", n)
		}
		// Back with one container gone and one new, without an event.
		w.do(func() { w.dockerErr, w.broken = nil, make(chan struct{}); delete(w.containers, "a") })
		w.start("c", "10.0.0.3")
		w.do(func() { <-w.events })
		w.expect(t, 10*time.Second, "vm:b:80 vm:c:80")
		time.Sleep(10 * time.Second) // the event stream is connected by then
		synctest.Wait()
		if err := r.Ready(); err != nil {
			t.Errorf("not ready: %v", err)
		}
	})
}

func TestDockerAwayAtStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		w.dockerErr = errors.New("no such socket")
		in := owned("vm:a:80", "a", "ENGINE")
		w.hold(in)
		_, stop := w.run(t)
		defer stop()
		time.Sleep(time.Hour)
		w.expect(t, 0, "vm:a:80") // whether it still runs is unknown
	})
}

// A container that cannot be inspected, one that Consul refuses, and one that never listens delay no other container.
func TestBadNeighbours(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		w.Fail["register vm:forbidden:80"] = api.StatusError{Code: 403, Body: "Permission denied"}
		w.inspectErr["broken"] = errors.New("500 internal error")
		in := owned("vm:broken:80", "broken", "ENGINE")
		w.hold(in)
		w.start("broken", "10.0.0.1")
		w.start("forbidden", "10.0.0.2", "SERVICE_NAME=forbidden")
		w.start("deaf", "10.0.0.3")
		w.listen("10.0.0.2:80")
		_, stop := w.run(t)
		defer stop()
		time.Sleep(10 * time.Minute)
		for i := 4; i < 10; i++ {
			w.listen(fmt.Sprintf("10.0.0.%d:80", i))
			w.start(fmt.Sprint("good", i), fmt.Sprintf("10.0.0.%d", i))
			deadline := time.Now().Add(10 * time.Millisecond)
			for synctest.Wait(); !strings.Contains(w.Registered(), fmt.Sprintf("vm:good%d:80", i)); synctest.Wait() {
				if time.Now().After(deadline) {
					t.Fatalf("good%d is not registered after 10 ms: %s", i, w.Registered())
				}
				time.Sleep(time.Millisecond)
			}
		}
		if !strings.Contains(w.Registered(), "vm:broken:80") {
			t.Errorf("the container that could not be inspected was deregistered")
		}
		if n := w.called("register"); n > 60 {
			t.Errorf("%d calls to register in ten minutes: a refused one is to be asked for at resyncs only", n)
		}
		if n := w.called("try"); n > 10*60*3 {
			t.Errorf("%d dials in ten minutes to one that never listens", n)
		}
	})
}

func TestPausedIsOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		_, stop := w.run(t)
		defer stop()
		w.listen("10.0.0.1:80")
		w.start("a", "10.0.0.1")
		w.expect(t, 10*time.Millisecond, "vm:a:80")
		w.change("a", func(c *fsouza.Container) { c.State.Paused = true })
		w.event("pause", "a")
		w.expect(t, 0, "vm:a:80!")
		if got := w.Check(api.ServiceMaintPrefix + "vm:a:80").Notes; got != "berth registrar: the container is paused" {
			t.Errorf("the reason is %q", got)
		}
		w.change("a", func(c *fsouza.Container) { c.State.Paused = false })
		w.event("unpause", "a")
		w.expect(t, 0, "vm:a:80")
	})
}

func TestDrainOnStop(t *testing.T) {
	for name, tt := range map[string]struct {
		stopSignal, signal string
		want               string
	}{
		"SIGTERM":                         {"", "15", "vm:a:80!"},
		"SIGKILL":                         {"", "9", "vm:a:80!"},
		"HUP does not stop":               {"", "1", "vm:a:80"},
		"USR1 does not stop":              {"", "10", "vm:a:80"},
		"the image's own stop signal":     {"SIGQUIT", "3", "vm:a:80!"},
		"TERM where QUIT is what stops":   {"SIGQUIT", "15", "vm:a:80"},
		"USR1, where that is what stops":  {"USR1", "10", "vm:a:80!"},
		"a real-time signal":              {"SIGRTMIN+3", "37", "vm:a:80!"},
		"a sign, with nothing real named": {"SIGCONT", "18", "vm:a:80!"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newCluster()
				_, stop := w.run(t)
				defer stop()
				w.listen("10.0.0.1:80")
				w.create("a", "10.0.0.1").Config.StopSignal = tt.stopSignal
				w.event("start", "a")
				w.expect(t, 10*time.Millisecond, "vm:a:80")
				w.event("kill", "a", "signal", tt.signal)
				w.expect(t, 0, tt.want)
				time.Sleep(5 * time.Second)
				w.expect(t, 0, tt.want)
				w.die("a")
				w.expect(t, 0, "")
				if len(w.sent()) != 0 {
					t.Errorf("signals were sent: %v", w.sent())
				}
				// The next container with this name is not being stopped.
				w.start("a", "10.0.0.1")
				w.expect(t, 10*time.Millisecond, "vm:a:80")
			})
		})
	}
}

// A container that was told to stop and does not is back in service once it is ready.
func TestDrainOfOneThatDoesNotStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		_, stop := w.run(t)
		defer stop()
		w.listen("10.0.0.1:80")
		w.start("a", "10.0.0.1")
		w.expect(t, 10*time.Millisecond, "vm:a:80")
		w.event("kill", "a", "signal", "15")
		w.expect(t, 0, "vm:a:80!")
		time.Sleep(39 * time.Second)
		w.expect(t, 0, "vm:a:80!")
		w.expect(t, 2*time.Second, "vm:a:80")
	})
}

func TestDrainFirstThenStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		w.opts.DrainTime = 3 * time.Second
		_, stop := w.run(t)
		w.listen("10.0.0.1:80")
		w.listen("10.0.0.2:80")
		for id, address := range map[string]string{"a": "10.0.0.1", "b": "10.0.0.2"} {
			w.create(id, address, "SERVICE_STOP_SIGNAL=TERM").Config.StopSignal = "SIGCONT"
			w.event("start", id)
		}
		w.expect(t, 10*time.Millisecond, "vm:a:80 vm:b:80")
		time.Sleep(time.Second - time.Since(w.started))
		w.event("kill", "a", "signal", "18")
		w.expect(t, 0, "vm:a:80! vm:b:80")
		time.Sleep(time.Second)
		w.event("kill", "a", "signal", "18") // impatient
		time.Sleep(5 * time.Second)
		if got := strings.Join(w.sent(), ", "); got != "a 15 4s" {
			t.Errorf("signals: %s, want SIGTERM three seconds after the sign at 1s, once", got)
		}
		// Docker repeats berth's signal in its events; that does not count as a second stop.
		w.event("kill", "a", "signal", "15")
		w.die("a")
		w.expect(t, 0, "vm:b:80")

		// Docker's own SIGKILL makes the real signal moot.
		w.event("kill", "b", "signal", "18")
		w.event("kill", "b", "signal", "9")
		time.Sleep(5 * time.Second)
		if len(w.sent()) != 1 {
			t.Errorf("signals: %v", w.sent())
		}
		stop()
	})
}

func TestDrainTimeIsWellInsideTheStopTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		w.opts.DrainTime = time.Minute
		_, stop := w.run(t)
		defer stop()
		c := w.create("a", "10.0.0.1", "SERVICE_STOP_SIGNAL=TERM")
		c.Config.StopSignal, c.Config.StopTimeout = "SIGCONT", 4
		w.event("start", "a")
		time.Sleep(time.Second - time.Since(w.started))
		w.event("kill", "a", "signal", "18")
		time.Sleep(time.Minute)
		if got := strings.Join(w.sent(), ", "); got != "a 15 3s" {
			t.Errorf("signals: %s, want SIGTERM after half of the four seconds", got)
		}
	})
}

// The registrar restarts after the announcement of a stop: the container stays out, and gets its signal.
func TestDrainSurvivesARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		w.opts.DrainTime = 5 * time.Second
		_, stop := w.run(t)
		w.listen("10.0.0.1:80")
		w.create("a", "10.0.0.1", "SERVICE_STOP_SIGNAL=TERM").Config.StopSignal = "SIGCONT"
		w.event("start", "a")
		w.expect(t, 10*time.Millisecond, "vm:a:80")
		w.event("kill", "a", "signal", "18")
		w.expect(t, 0, "vm:a:80!")
		stop()
		_, stop = w.run(t)
		defer stop()
		w.expect(t, 0, "vm:a:80!")
		time.Sleep(time.Second)
		if len(w.sent()) != 1 || !strings.HasPrefix(w.sent()[0], "a 15 ") {
			t.Errorf("signals: %v, want SIGTERM for a", w.sent())
		}
	})
}

func TestMaintenanceByHandStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		_, stop := w.run(t)
		defer stop()
		w.listen("10.0.0.1:80")
		w.start("a", "10.0.0.1")
		w.expect(t, 10*time.Millisecond, "vm:a:80")
		w.do(func() { w.Maintain("vm:a:80", "upgrade by Ann") })
		time.Sleep(10 * time.Minute)
		w.change("a", func(c *fsouza.Container) { c.Config.Env = []string{"SERVICE_TAGS=new"} }) // forces a new registration
		w.event("rename", "a")
		time.Sleep(10 * time.Minute)
		w.expect(t, 0, "vm:a:80!")
		if got := w.Check(api.ServiceMaintPrefix + "vm:a:80").Notes; got != "upgrade by Ann" {
			t.Errorf("the reason is %q", got)
		}
	})
}

func TestNotReadyInTimeIsCritical(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		_, stop := w.run(t)
		w.start("a", "10.0.0.1")
		time.Sleep(29 * time.Second)
		w.expect(t, 0, "")
		w.expect(t, 2*time.Second, "vm:a:80?")
		if c := w.Check("vm:a:80:ready"); c.Notes != "connection refused" {
			t.Errorf("the check says %q", c.Notes)
		}
		// A restart does not treat it as one that was ready.
		stop()
		_, stop = w.run(t)
		defer stop()
		time.Sleep(time.Minute)
		w.expect(t, 0, "vm:a:80?")
		w.listen("10.0.0.1:80")
		w.expect(t, time.Second, "vm:a:80")
	})
}

func TestHealthcheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		_, stop := w.run(t)
		c := w.create("a", "10.0.0.1")
		c.Config.Healthcheck = &fsouza.HealthConfig{Test: []string{"CMD", "check"}}
		c.State.Health = fsouza.Health{Status: "starting"}
		w.event("start", "a")
		time.Sleep(10 * time.Second)
		w.expect(t, 0, "")
		say := func(status, output string) {
			w.change("a", func(c *fsouza.Container) {
				c.State.Health = fsouza.Health{Status: status, Log: []fsouza.HealthCheck{{Output: output}}}
			})
			w.event("health_status: "+status, "a")
		}
		say("healthy", "fine")
		w.expect(t, 0, "vm:a:80")
		if c := w.Check("vm:a:80:check-1"); c.Status != api.HealthPassing || c.Output != "fine" {
			t.Errorf("the check is %s: %q", c.Status, c.Output)
		}
		say("unhealthy", "no database")
		w.expect(t, 0, "vm:a:80?")
		if c := w.Check("vm:a:80:check-1"); c.Output != "no database" {
			t.Errorf("the check says %q", c.Output)
		}
		stop()
		_, stop = w.run(t)
		defer stop()
		w.expect(t, 0, "vm:a:80?")
		say("healthy", "fine")
		w.expect(t, 0, "vm:a:80")
		if w.called("try") != 0 {
			t.Errorf("berth probed %d times what Docker probes", w.called("try"))
		}
		time.Sleep(24 * time.Hour)
		w.expect(t, 0, "vm:a:80")
		if n := w.called("update"); n > 20 {
			t.Errorf("%d updates of a check that seldom changed", n)
		}
	})
}

// If SERVICE_READY defines readiness, an instance does not wait for the first run of its HEALTHCHECK.
func TestReadyBeforeTheHealthcheckHasRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		_, stop := w.run(t)
		defer stop()
		c := w.create("a", "10.0.0.1")
		c.Config.Healthcheck = &fsouza.HealthConfig{Test: []string{"CMD", "check"}}
		c.Config.Env = append(c.Config.Env, "SERVICE_READY=tcp")
		c.State.Health = fsouza.Health{Status: "starting"}
		w.event("start", "a")
		time.Sleep(10 * time.Second)
		w.expect(t, 0, "")
		w.listen("10.0.0.1:80")
		w.expect(t, time.Second, "vm:a:80")
		time.Sleep(time.Minute)
		w.expect(t, 0, "vm:a:80")
		say := func(status string) {
			w.change("a", func(c *fsouza.Container) { c.State.Health = fsouza.Health{Status: status} })
			w.event("health_status: "+status, "a")
		}
		say("unhealthy")
		w.expect(t, 0, "vm:a:80?")
		say("healthy")
		w.expect(t, 0, "vm:a:80")
	})
}

// A declared check that cannot be made is a critical check in Consul, whatever else passes, until it is fixed.
func TestNotPassingWithoutItsCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		_, stop := w.run(t)
		w.listen("10.0.0.1:80")
		w.start("a", "10.0.0.1", "SERVICE_CHECK_HTTP=/a b")
		w.expect(t, time.Second, "vm:a:80?")
		if c := w.Check("vm:a:80:check-1"); c.Status != api.HealthCritical {
			t.Errorf("the check is %+v", c)
		}
		stop()
		_, stop = w.run(t)
		defer stop()
		time.Sleep(25 * time.Hour)
		w.expect(t, 0, "vm:a:80?")
	})
}

func TestTTLIsKeptAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		_, stop := w.run(t)
		w.listen("10.0.0.1:80")
		w.start("a", "10.0.0.1", "SERVICE_CHECK_TTL=30s")
		w.expect(t, 10*time.Millisecond, "vm:a:80")
		time.Sleep(5 * time.Minute)
		if n := w.called("update"); n < 30 || n > 33 {
			t.Errorf("%d words to Consul in five minutes about a TTL of 30s, want one every ten seconds", n)
		}
		stop()
	})
}

func TestKeepFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		w.opts.KeepFailed = true
		_, stop := w.run(t)
		end := func(id string, code int) {
			w.change(id, func(c *fsouza.Container) { c.State = fsouza.State{Status: "exited", ExitCode: code} })
			w.event("die", id, "exitCode", fmt.Sprint(code))
		}
		for i, id := range []string{"ok", "failed", "signalled", "removed"} {
			address := fmt.Sprintf("10.0.0.%d", i+1)
			w.listen(address + ":80")
			w.start(id, address)
		}
		w.expect(t, 10*time.Millisecond, "vm:failed:80 vm:ok:80 vm:removed:80 vm:signalled:80")
		end("ok", 0)
		end("failed", 3)
		end("signalled", 137)
		end("removed", 1)
		w.expect(t, 0, "vm:failed:80! vm:removed:80!")
		w.do(func() { delete(w.containers, "removed") })
		w.event("destroy", "removed")
		w.expect(t, 0, "vm:failed:80!")
		stop()
		_, stop = w.run(t)
		defer stop()
		time.Sleep(10 * time.Minute)
		w.expect(t, 0, "vm:failed:80!")
		w.start("failed", "10.0.0.2")
		w.expect(t, 10*time.Millisecond, "vm:failed:80")
	})
}

// A registration that fails half-way still ends in the right state.
func TestHalfWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		_, stop := w.run(t)
		defer stop()
		for i := range 20 {
			address := fmt.Sprintf("10.0.0.%d", i+1)
			w.listen(address + ":80")
			w.start(fmt.Sprintf("c%02d", i), address)
		}
		time.Sleep(time.Second)
		// Consul goes away between the two halves of a change.
		w.die("c00")
		w.start("new", "10.0.0.1")
		w.do(func() { w.Err = errors.New("connection reset") })
		time.Sleep(3 * time.Second)
		w.do(func() { w.Err = nil; w.Remove("vm:c07:80") })
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if got := w.Registered(); strings.Count(got, "vm:") != 20 || strings.Contains(got, "c00") || !strings.Contains(got, "vm:new:80") {
			t.Errorf("registered: %s", got)
		}
	})
}

// A new name means a new service ID. The old one goes when the new one exists, and nothing is probed again.
func TestRename(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		_, stop := w.run(t)
		defer stop()
		w.listen("10.0.0.1:80")
		w.start("a", "10.0.0.1")
		w.expect(t, 10*time.Millisecond, "vm:a:80")
		w.change("a", func(c *fsouza.Container) { c.Name = "/b" })
		w.event("rename", "a")
		w.expect(t, 0, "vm:b:80")
		if got := strings.Join(w.History, " "); got != "register deregister" && !strings.HasSuffix(got, "register register deregister") {
			t.Errorf("calls that change something: %s; want the new one registered before the old one goes", got)
		}
		if n := w.called("try"); n != 1 {
			t.Errorf("probed %d times, want once", n)
		}
	})
}

// Two registrars of one Docker host, distinguished by a name, share one agent.
func TestTwoOnOneHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		in := owned("vm:theirs:80", "theirs", "ENGINE/other")
		w.hold(in)
		w.opts.Owner = "mine"
		_, stop := w.run(t)
		defer stop()
		w.listen("10.0.0.1:80")
		w.start("a", "10.0.0.1")
		time.Sleep(10 * time.Minute)
		w.expect(t, 0, "vm:a:80 vm:theirs:80")
	})
}

// Registrator's registrations are taken over without a gap, even if the address differs.
func TestAdoptionHasNoGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		w.opts.Adopt = "vm"
		for _, id := range []string{"vm:a:80", "vm:gone:80"} {
			w.Services[id] = &api.AgentService{ID: id, Service: "app", Address: "192.0.2.1", Port: 32768}
		}
		w.create("a", "10.0.0.1") // its port does not accept at the moment
		_, stop := w.run(t)
		defer stop()
		w.expect(t, 0, "vm:a:80")
		if got := w.Services["vm:a:80"]; got.Address != "10.0.0.1" || got.Meta[label.MetaOwner] != "ENGINE" {
			t.Errorf("it is %+v", got)
		}
		if got := strings.Join(slices.Sorted(slices.Values(w.History)), " "); got != "deregister register" {
			t.Errorf("calls that change something: %s, want one for each", got)
		}
	})
}

// Registrator used another host name, so its IDs differ: its registrations go when berth's own exist.
func TestAdoptionRegistersFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		w.opts.Adopt = "registrator"
		for _, id := range []string{"registrator:one:80", "registrator:before:80", "registrator:gone:80"} {
			w.Services[id] = &api.AgentService{ID: id, Service: "app", Address: "192.0.2.1", Port: 32768}
		}
		w.Services["registrator:gone:80"].Service = "other"
		w.create("one", "10.0.0.1")
		w.create("two", "10.0.0.2") // it was called "before"
		_, stop := w.run(t)
		defer stop()
		w.expect(t, 0, "registrator:before:80 registrator:one:80")
		time.Sleep(10 * time.Second)
		w.expect(t, 0, "registrator:before:80 registrator:one:80")
		w.listen("10.0.0.1:80")
		w.listen("10.0.0.2:80")
		w.do(func() { w.History = nil })
		w.expect(t, time.Second, "vm:one:80 vm:two:80")
		if got := strings.Join(w.History, " "); got != "register register deregister deregister" {
			t.Errorf("calls that change something: %s; want berth's own registered first", got)
		}
	})
}
