package rollout

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	docker "github.com/fsouza/go-dockerclient"
)

// world is Docker, compose, Consul and two balancers with one service.
type world struct {
	t  *testing.T
	mu sync.Mutex

	boxes   []*box
	made    int
	version string                                            // of the containers that compose creates
	makes   func(b *box)                                      // changes a box that compose creates
	lag     time.Duration                                     // from a change until the balancers apply it
	telling []string                                          // names of the reporting balancers
	lost    func(balancer string) (gone bool, problem string) // fate of a balancer
	blind   bool                                              // the balancers do not report in-flight requests
	abrupt  bool                                              // containers may be stopped without a drain
	nobody  bool                                              // nothing is registered
	metrics bool                                              // containers are also registered for a port that no balancer has
	deaf    string                                            // a balancer that accepts no new servers
	saved   []State                                           // nil = none yet
	calls   int                                               // number so far
	onCall  func(n int, what string) error                    // before a call
	least   int                                               // minimum number of usable containers
	said    strings.Builder
}

// box is a container.
type box struct {
	docker.Container
	version string
	started time.Time
	healthy time.Duration // after its start; less than 0 = never
	dies    time.Duration // after its start; 0 = never
	work    time.Duration // duration of its in-flight requests when it is drained
	drained time.Time
	reason  string
	resumed time.Time
	again   time.Duration // time from its start to a restart, repeatedly; 0 = never
	late    time.Duration // time from its start until it is also registered as the service admin; 0 = never
	stopped bool
}

const takes = 300 * time.Millisecond // duration of a container's in-flight requests, by default

var errKilled = errors.New("killed")

func newWorld(t *testing.T, n int) *world {
	w := &world{t: t, version: "1", lag: 30 * time.Millisecond, telling: []string{"lb-1", "lb-2"}}
	for range n {
		w.add()
	}
	time.Sleep(time.Minute)
	w.version, w.least = "2", n
	return w
}

func (w *world) add() *box {
	w.made++
	b := &box{version: w.version, started: time.Now(), healthy: time.Second, work: takes}
	b.ID = fmt.Sprintf("%064d", w.made)
	b.Name = fmt.Sprintf("/shop_app_%d", w.made)
	b.Image = "image-" + w.version
	b.Config = &docker.Config{Image: "app", Healthcheck: &docker.HealthConfig{Test: []string{"CMD", "true"}}, StopTimeout: 3, Labels: map[string]string{
		labelProject: "shop", labelService: "app", labelNumber: strconv.Itoa(w.made), labelHash: "hash-" + w.version,
	}}
	if w.makes != nil {
		w.makes(b)
	}
	w.boxes = append(w.boxes, b)
	return b
}

// call runs at the beginning of each call. It checks the invariants.
func (w *world) call(what string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls++
	usable := 0
	for _, b := range w.boxes {
		if w.usable(b, "lb-1") {
			usable++
		}
	}
	if usable < w.least {
		w.t.Errorf("before call %d, %s: only %d containers serve, want %d", w.calls, what, usable, w.least)
		w.least = 0
	}
	if w.onCall != nil {
		return w.onCall(w.calls, what)
	}
	return nil
}

func (b *box) runs() bool { return !b.stopped && (b.dies == 0 || time.Since(b.started) < b.dies) }
func (b *box) passes() bool {
	return b.runs() && b.healthy >= 0 && time.Since(b.started) >= b.healthy
}
func (b *box) address() string { return "10.0.0." + strings.TrimLeft(b.ID, "0") + ":80" }

// usable reports whether a balancer sends requests to a container.
func (w *world) usable(b *box, balancer string) bool {
	if !b.runs() || b.healthy < 0 || w.deaf == balancer && b.version == "2" {
		return false
	}
	if !b.drained.IsZero() {
		return time.Since(b.drained) < w.lag
	}
	return time.Since(b.started) >= b.healthy+w.lag && time.Since(b.resumed) >= w.lag
}

func (w *world) find(id string) *box {
	for _, b := range w.boxes {
		if b.ID == id {
			return b
		}
	}
	return nil
}

func (w *world) up(_ context.Context, service string, n int) error {
	if err := w.call(fmt.Sprintf("up %d", n)); err != nil {
		return err
	}
	time.Sleep(500 * time.Millisecond)
	w.mu.Lock()
	defer w.mu.Unlock()
	if service != "app" || n <= len(w.boxes) {
		w.t.Errorf("up %s=%d with %d containers", service, n, len(w.boxes))
	}
	for len(w.boxes) < n {
		w.add()
	}
	return nil
}

func (w *world) ListContainers(docker.ListContainersOptions) (out []docker.APIContainers, err error) {
	if err := w.call("list"); err != nil {
		return nil, err
	}
	for _, b := range w.boxes {
		out = append(out, docker.APIContainers{ID: b.ID, Labels: b.Config.Labels})
	}
	return out, nil
}

func (w *world) InspectContainerWithOptions(o docker.InspectContainerOptions) (*docker.Container, error) {
	if err := w.call("inspect"); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	b := w.find(o.ID)
	if b == nil {
		return nil, &docker.NoSuchContainer{ID: o.ID}
	}
	c := b.Container
	c.State = docker.State{Status: "exited", ExitCode: 3, StartedAt: b.started, Health: docker.Health{Status: "unhealthy"}}
	if b.again > 0 {
		c.RestartCount = int(time.Since(b.started) / b.again)
		c.State.StartedAt = b.started.Add(time.Duration(c.RestartCount) * b.again)
	}
	if b.runs() {
		c.State.Status, c.State.Running = "running", true
		switch {
		case b.passes():
			c.State.Health.Status = "healthy"
		case b.healthy >= 0 || time.Since(b.started) < 3*time.Second:
			c.State.Health.Status = "starting"
		default:
			c.State.Health.Log = []docker.HealthCheck{{Output: "no database"}}
		}
	}
	return &c, nil
}

func (w *world) StopContainerWithContext(id string, _ uint, _ context.Context) error {
	if err := w.call("stop"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	b := w.find(id)
	switch {
	case b == nil:
		return &docker.NoSuchContainer{ID: id}
	case !b.runs():
		return &docker.ContainerNotRunning{ID: id}
	case b.passes() && w.least > 0 && !w.abrupt && (b.drained.IsZero() || time.Since(b.drained) < b.work):
		w.t.Errorf("%s is stopped with requests in flight", b.Name)
	}
	b.stopped = true
	return nil
}

func (w *world) RemoveContainer(o docker.RemoveContainerOptions) error {
	if err := w.call("remove"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if b := w.find(o.ID); b == nil {
		return &docker.NoSuchContainer{ID: o.ID}
	} else if b.runs() {
		w.t.Errorf("%s is removed while it runs", b.Name)
	}
	w.boxes = slices.DeleteFunc(w.boxes, func(b *box) bool { return b.ID == o.ID })
	return nil
}

func (w *world) Logs(o docker.LogsOptions) error {
	_, err := io.WriteString(o.OutputStream, "starting\npanic: no \x1bdatabase\n")
	return err
}

func (w *world) Info() (*docker.DockerInfo, error) { return &docker.DockerInfo{ID: "engine"}, nil }

func (w *world) InspectImage(string) (*docker.Image, error) { return nil, docker.ErrNoSuchImage }

func (w *world) Instances(_ context.Context, containers []string) (map[string][]Instance, error) {
	if err := w.call("instances"); err != nil {
		return nil, err
	}
	out := map[string][]Instance{}
	for _, id := range containers {
		b := w.find(id)
		if w.nobody || b == nil || !b.runs() || time.Since(b.started) < b.healthy {
			continue
		}
		in := Instance{ID: "i" + id, Service: "app", Address: b.address(), Passing: b.passes() && b.drained.IsZero(), Why: "it does not"}
		if !b.drained.IsZero() {
			in.Maintenance = "berth drain: " + b.reason
		}
		out[id] = append(out[id], in)
		if w.metrics {
			in.ID, in.Service, in.Address = "m"+id, "app-9090", strings.TrimSuffix(b.address(), ":80")+":9090"
			out[id] = append(out[id], in)
		}
		if b.late > 0 && time.Since(b.started) >= b.late {
			in.ID, in.Service = "j"+id, "admin"
			out[id] = append(out[id], in)
		}
	}
	return out, nil
}

func (w *world) Maintain(_ context.Context, id string, on bool, reason string) error {
	if err := w.call("maintain"); err != nil {
		return err
	}
	b := w.find(id[1:])
	if b.drained, b.reason = time.Now(), reason; !on {
		b.drained, b.resumed = time.Time{}, time.Now()
	}
	return nil
}

func (w *world) balancers(context.Context) (out []Serving, _ error) {
	if err := w.call("balancers"); err != nil {
		return nil, err
	}
	var known []string
	if len(w.saved) > 0 {
		known = w.saved[len(w.saved)-1].Addresses
	}
	for _, name := range w.telling {
		s := Serving{Balancer: name, Servers: map[string]Server{}}
		if w.lost != nil {
			gone, problem := w.lost(name)
			if s.Error = problem; gone || problem != "" {
				if !gone {
					out = append(out, s)
				}
				continue
			}
		}
		for _, address := range known {
			s.Servers[address] = Server{}
		}
		s.Blind = w.blind
		for _, b := range w.boxes {
			busy := !b.drained.IsZero() && time.Since(b.drained) < b.work
			if slices.Contains(known, b.address()) {
				is := Server{There: w.usable(b, name) || busy && !w.blind, Usable: w.usable(b, name)}
				if busy && !w.blind {
					is.InFlight = 2
				}
				s.Servers[b.address()] = is
			}
		}
		out = append(out, s)
	}
	return out, nil
}

func (w *world) save(_ context.Context, s State) error {
	if err := w.call("save"); err != nil {
		return err
	}
	w.saved = append(w.saved, s)
	return nil
}

// rollout returns a rollout in the world, from a state.
func (w *world) rollout(s State) *Rollout {
	return &Rollout{Project: "shop", Service: "app", State: s, Up: w.up, Docker: w, Catalog: w, Balancers: w.balancers, Save: w.save,
		Say: func(format string, args ...any) { fmt.Fprintf(&w.said, format+"\n", args...) }}
}

// begin returns a rollout of all existing containers.
func (w *world) begin(o Options) *Rollout {
	list, err := Containers(w.t.Context(), w, "shop", "app")
	if err != nil {
		w.t.Fatal(err)
	}
	s := NewPlan(list, "hash-2", "image-2", len(list), false).Begin(Who{By: "me"}, o)
	w.saved = append(w.saved, s)
	return w.rollout(s)
}

// versions returns those of the running containers, with a mark for those out of service.
func (w *world) versions() string {
	var out []string
	for _, b := range w.boxes {
		text := b.version
		if !b.runs() {
			text += "x"
		}
		if !b.drained.IsZero() {
			text += "d"
		}
		out = append(out, text)
	}
	return strings.Join(out, " ")
}
