package registrar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	docker "github.com/fsouza/go-dockerclient"
	"github.com/hashicorp/consul/api"
)

// world is a Docker daemon, a Consul agent and a network. Its methods play what happens there.
type world struct {
	mu         sync.Mutex
	containers map[string]*docker.Container
	services   map[string]*api.AgentService
	listening  map[string]bool // addresses that accept
	dockerErr  error
	inspectErr map[string]error
	consulErr  error
	refuse     string // service name that the agent refuses
	events     chan Event
	broken     chan struct{} // closed: the event stream ends
	calls      map[string]int
}

func newWorld() *world {
	return &world{
		containers: map[string]*docker.Container{}, services: map[string]*api.AgentService{}, listening: map[string]bool{},
		inspectErr: map[string]error{}, events: make(chan Event, 100), broken: make(chan struct{}), calls: map[string]int{},
	}
}

func (w *world) do(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *world) event(action, id string) {
	e := Event{Type: "container", Action: action}
	e.Actor.ID = id
	w.events <- e
}

func (w *world) start(id, address string, env ...string) {
	w.do(func() {
		c := &docker.Container{ID: id, Name: "/" + id, Created: time.Now(), State: docker.State{Running: true, StartedAt: time.Now()}}
		c.Config = &docker.Config{Image: "app", Env: env, ExposedPorts: map[docker.Port]struct{}{"80/tcp": {}}}
		c.NetworkSettings = &docker.NetworkSettings{Networks: map[string]docker.ContainerNetwork{"front": {IPAddress: address}}}
		w.containers[id] = c
	})
	w.event("start", id)
}

func (w *world) die(id string) {
	w.do(func() { delete(w.containers, id) })
	w.event("die", id)
}

func (w *world) listen(address string) { w.do(func() { w.listening[address] = true }) }

func (w *world) registered() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(slices.Sorted(maps.Keys(w.services)), " ")
}

func (w *world) ListContainers(docker.ListContainersOptions) ([]docker.APIContainers, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls["list"]++
	var out []docker.APIContainers
	for id := range w.containers {
		out = append(out, docker.APIContainers{ID: id})
	}
	return out, w.dockerErr
}

func (w *world) InspectContainerWithOptions(o docker.InspectContainerOptions) (*docker.Container, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls["inspect"]++
	if err := errors.Join(w.dockerErr, w.inspectErr[o.ID]); err != nil {
		return nil, err
	}
	c, ok := w.containers[o.ID]
	if !ok {
		return nil, &docker.NoSuchContainer{ID: o.ID}
	}
	return c, nil
}

func (w *world) ServicesWithFilterOpts(string, *api.QueryOptions) (map[string]*api.AgentService, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls["services"]++
	return maps.Clone(w.services), w.consulErr
}

func (w *world) ServiceRegisterOpts(s *api.AgentServiceRegistration, _ api.ServiceRegisterOpts) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls["register"]++
	if w.refuse != "" && s.Name == w.refuse {
		return api.StatusError{Code: 403, Body: "Permission denied"}
	}
	if w.consulErr == nil {
		w.services[s.ID] = &api.AgentService{ID: s.ID, Service: s.Name, Tags: s.Tags, Meta: s.Meta, Address: s.Address, Port: s.Port}
	}
	return w.consulErr
}

func (w *world) ServiceDeregisterOpts(id string, _ *api.QueryOptions) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls["deregister"]++
	if w.consulErr == nil {
		delete(w.services, id)
	}
	return w.consulErr
}

func (w *world) stream(ctx context.Context, connected func(), event func(Event)) error {
	w.mu.Lock()
	err, broken := w.dockerErr, w.broken
	w.mu.Unlock()
	if err != nil {
		return err
	}
	connected()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-broken:
			return errors.New("the daemon closed the stream")
		case e := <-w.events:
			event(e)
		}
	}
}

func (w *world) dial(_ context.Context, _, address string) (net.Conn, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls["dial"]++
	if !w.listening[address] {
		return nil, errors.New("connection refused")
	}
	a, b := net.Pipe()
	b.Close()
	return a, nil
}

// run starts a registrar in the world, and returns a function that stops it. To be called in a synctest bubble.
func (w *world) run(t *testing.T) (*Registrar, func()) {
	ctx, cancel := context.WithCancel(t.Context())
	r := New(Options{
		Docker: w, Events: w.stream, Agent: w, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Host: func(context.Context) (Host, error) {
			return Host{Name: "vm", EngineID: "ENGINE", Networks: []string{"front"}}, nil
		},
	})
	r.dial = w.dial
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

// expect lets time pass until what happened has settled, at most so long, and compares the registrations.
func (w *world) expect(t *testing.T, within time.Duration, want string) {
	t.Helper()
	deadline := time.Now().Add(within)
	for synctest.Wait(); w.registered() != want && time.Now().Before(deadline); synctest.Wait() {
		time.Sleep(time.Millisecond) // of the bubble's time
	}
	if got := w.registered(); got != want {
		t.Fatalf("after %v registered: %q, want %q", within, got, want)
	}
}

func TestLifeOfAContainer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
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
		if n := w.calls["list"]; n != 1 {
			t.Errorf("%d lists, want 1: events say where to look", n)
		}
	})
}

func TestRestartHasToBeReadyAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		_, stop := w.run(t)
		defer stop()
		w.listen("10.0.0.1:80")
		w.start("a", "10.0.0.1")
		w.expect(t, 10*time.Millisecond, "vm:a:80")
		time.Sleep(time.Second)
		w.do(func() { delete(w.listening, "10.0.0.1:80") })
		// Both events are there before the registrar looks.
		w.die("a")
		w.start("a", "10.0.0.1")
		w.expect(t, 0, "")
		w.listen("10.0.0.1:80")
		w.expect(t, 10*time.Millisecond, "vm:a:80")
	})
}

func TestRegistrarRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		_, stop := w.run(t)
		w.listen("10.0.0.1:80")
		w.listen("10.0.0.2:80")
		w.start("a", "10.0.0.1")
		w.start("b", "10.0.0.2")
		w.expect(t, 10*time.Millisecond, "vm:a:80 vm:b:80")
		stop()
		w.expect(t, 0, "vm:a:80 vm:b:80") // they go on running, so they stay

		// Meanwhile one dies, one starts, one does not accept for the moment, and somebody registers by hand.
		w.do(func() {
			delete(w.containers, "b")
			delete(w.listening, "10.0.0.1:80")
			w.services["by-hand"] = &api.AgentService{ID: "by-hand"}
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
		w := newWorld()
		_, stop := w.run(t)
		defer stop()
		w.listen("10.0.0.1:80")
		w.start("a", "10.0.0.1")
		w.expect(t, 10*time.Millisecond, "vm:a:80")
		w.do(func() { clear(w.services) })
		w.expect(t, time.Minute+time.Second, "vm:a:80")
	})
}

func TestConsulAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		r, stop := w.run(t)
		defer stop()
		w.listen("10.0.0.1:80")
		w.listen("10.0.0.2:80")
		w.start("a", "10.0.0.1")
		w.expect(t, 10*time.Millisecond, "vm:a:80")
		w.do(func() { w.consulErr = errors.New("connection refused") })
		before := w.calls["register"] + w.calls["deregister"] + w.calls["services"]
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
		if n := w.calls["register"] + w.calls["deregister"] + w.calls["services"] - before; n > 3600/2 {
			t.Errorf("%d calls to Consul in an hour away: that is a flood", n)
		}
		w.do(func() { w.consulErr = nil })
		w.expect(t, 10*time.Second, "vm:b:80")
		if err := r.Ready(); err != nil {
			t.Errorf("not ready: %v", err)
		}
	})
}

func TestDockerAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
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
		if n := w.calls["list"]; n > 3600/2 {
			t.Errorf("%d lists in an hour away: that is a flood", n)
		}
		// Back with one container gone and one new, without any event about it.
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
		w := newWorld()
		w.dockerErr = errors.New("no such socket")
		in := owned("vm:a:80", "a", "ENGINE")
		w.services[in.ID] = held(in)
		_, stop := w.run(t)
		defer stop()
		time.Sleep(time.Hour)
		w.expect(t, 0, "vm:a:80") // nobody knows whether it still runs
	})
}

// One container that cannot be inspected, one that Consul refuses, and one that never listens keep no other waiting.
func TestBadNeighbours(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.refuse = "forbidden"
		w.inspectErr["broken"] = errors.New("500 internal error")
		in := owned("vm:broken:80", "broken", "ENGINE")
		w.services[in.ID] = held(in)
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
			for synctest.Wait(); !strings.Contains(w.registered(), fmt.Sprintf("vm:good%d:80", i)); synctest.Wait() {
				if time.Now().After(deadline) {
					t.Fatalf("good%d is not registered after 10 ms: %s", i, w.registered())
				}
				time.Sleep(time.Millisecond)
			}
		}
		if !strings.Contains(w.registered(), "vm:broken:80") {
			t.Errorf("the container that could not be inspected was deregistered")
		}
		if n := w.calls["register"]; n > 50 {
			t.Errorf("%d calls to register in ten minutes: a refused one is to be asked for at resyncs only", n)
		}
		if n := w.calls["dial"]; n > 10*60*3 {
			t.Errorf("%d dials in ten minutes to one that never listens", n)
		}
	})
}

func TestPausedIsOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		_, stop := w.run(t)
		defer stop()
		w.listen("10.0.0.1:80")
		w.start("a", "10.0.0.1")
		w.expect(t, 10*time.Millisecond, "vm:a:80")
		w.do(func() { w.containers["a"].State.Paused = true })
		w.event("pause", "a")
		w.expect(t, 0, "")
		w.do(func() { w.containers["a"].State.Paused = false })
		w.event("unpause", "a")
		w.expect(t, 10*time.Millisecond, "vm:a:80")
	})
}
