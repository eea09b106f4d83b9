//go:build e2e

package registrar_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	docker "github.com/fsouza/go-dockerclient"
	"github.com/hashicorp/consul/api"
	"golang.org/x/sync/errgroup"

	"berth/registrar"
	watch "berth/registrar/docker"
	"berth/registrar/label"
)

const (
	benchService = "bench"
	benchSingle  = 25  // containers one after the other
	benchCrowd   = 200 // containers at once
	benchStarts  = 8   // how many Docker starts at the same time
	benchIdle    = time.Minute
)

// results holds the rows of the table that BenchmarkE2ERegistrar prints.
type results struct{ rows []string }

func (r *results) add(b *testing.B, unit, what, format string, value float64) {
	b.ReportMetric(value, unit)
	r.rows = append(r.rows, what+"\t"+fmt.Sprintf(format, value))
}

// times adds the median and the maximum of some durations.
func (r *results) times(b *testing.B, unit, what string, d []time.Duration) {
	slices.Sort(d)
	median, most := d[len(d)/2], d[len(d)-1]
	b.ReportMetric(float64(median.Microseconds())/1000, unit+"-ms/median")
	b.ReportMetric(float64(most.Microseconds())/1000, unit+"-ms/max")
	r.rows = append(r.rows, fmt.Sprintf("%s, median / max\t%s / %s", what, ms(median), ms(most)))
}

// BenchmarkE2ERegistrar measures the registrar on real Docker and Consul, and prints a table. Run it once, with -benchtime
// 1x: it sets the numbers of containers itself.
func BenchmarkE2ERegistrar(b *testing.B) {
	var r results
	for _, part := range []struct {
		name string
		run  func(*testing.B, *results)
	}{{"start", benchStart}, {"accepting", benchAccepting}, {"calls", benchCalls}, {"many", benchTogether}} {
		b.Run(part.name, func(b *testing.B) {
			part.run(b, &r)
			b.ReportMetric(0, "ns/op") // it would be Docker's time
		})
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w)
	for _, row := range r.rows {
		fmt.Fprintln(w, row)
	}
	w.Flush()
}

// clock notes, by container ID, when a registrar receives Docker's start event, when it calls Consul and gets the answer,
// and when Consul shows the container to other clients.
type clock struct {
	mu                               sync.Mutex
	received, asked, answered, shown map[string]time.Time
}

func (c *clock) note(what map[string]time.Time, id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if what[id].IsZero() {
		what[id] = time.Now()
	}
}

// timedAgent notes when registrations are made.
type timedAgent struct {
	*api.Agent
	clock *clock
}

func (a timedAgent) ServiceRegisterOpts(s *api.AgentServiceRegistration, opts api.ServiceRegisterOpts) error {
	id := s.Meta["berth-container"]
	a.clock.note(a.clock.asked, id)
	err := a.Agent.ServiceRegisterOpts(s, opts)
	a.clock.note(a.clock.answered, id)
	return err
}

// watchStarts starts a registrar with a clock. It asks Consul at most once per gap.
func watchStarts(l *harness, gap time.Duration) (*clock, *running) {
	c := &clock{received: map[string]time.Time{}, asked: map[string]time.Time{}, answered: map[string]time.Time{}, shown: map[string]time.Time{}}
	r := l.registrar(func(o *registrar.Options, _ *label.Host) {
		o.Resync = time.Hour
		o.Agent = timedAgent{l.consul.Agent(), c}
		stream := o.Events
		o.Events = func(ctx context.Context, connected func(), event func(watch.Message)) error {
			return stream(ctx, connected, func(e watch.Message) {
				if e.Type == "container" && e.Action == "start" {
					c.note(c.received, e.Actor.ID)
				}
				event(e)
			})
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		for index := uint64(0); ctx.Err() == nil; {
			entries, meta, err := l.consul.Health().Service(benchService, "", true, (&api.QueryOptions{WaitIndex: index}).WithContext(ctx))
			now := time.Now()
			if err != nil {
				continue
			}
			index = meta.LastIndex
			c.mu.Lock()
			for _, e := range entries {
				if id := e.Service.Meta["berth-container"]; c.shown[id].IsZero() {
					c.shown[id] = now
				}
			}
			c.mu.Unlock()
			select {
			case <-ctx.Done():
			case <-time.After(gap):
			}
		}
	})
	l.t.Cleanup(func() { cancel(); done.Wait() })
	return c, r
}

// await waits until Consul shows all of these containers.
func (c *clock) await(l *harness, within time.Duration, ids ...string) {
	l.t.Helper()
	l.eventually(within, fmt.Sprintf("Consul shows %d containers", len(ids)), func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, id := range ids {
			if c.shown[id].IsZero() || c.received[id].IsZero() || c.answered[id].IsZero() {
				return fmt.Errorf("there are %d of them, without %.12s", len(c.shown), id)
			}
		}
		return nil
	})
}

// between returns the times from one event to another, for each container.
func between(from, to map[string]time.Time, ids []string) (out []time.Duration) {
	for _, id := range ids {
		out = append(out, to[id].Sub(from[id]))
	}
	return out
}

// start starts a container through Docker's API, which costs a small machine less than the docker command.
func (l *harness) start(client *docker.Client, service, network string, env ...string) (id string, err error) {
	c, err := client.CreateContainer(docker.CreateContainerOptions{
		Name:       l.name + "-" + service,
		Config:     &docker.Config{Image: os.Getenv("IMAGE_APP"), Env: env, Labels: map[string]string{harnessLabel: l.name}},
		HostConfig: &docker.HostConfig{NetworkMode: network},
	})
	if err != nil {
		return "", err
	}
	return c.ID, client.StartContainer(c.ID, nil)
}

// benchStart starts containers one after the other.
func benchStart(b *testing.B, r *results) {
	l := newHarness(b)
	clock, _ := watchStarts(l, 0)
	client := dockerClient(b, "")
	listening := map[string]time.Time{}
	var ids []string
	for i := range benchSingle {
		id, err := l.start(client, fmt.Sprint("single", i), l.network, "SERVICE_NAME="+benchService)
		if err != nil {
			b.Fatal(err)
		}
		ids = append(ids, id)
		clock.await(l, soon, id)
		// The application first logs that it listens; Docker notes when.
		words, err := exec.Command("docker", "logs", "--timestamps", id).CombinedOutput()
		at, _, _ := strings.Cut(string(words), " ")
		var err2 error
		listening[id], err2 = time.Parse(time.RFC3339Nano, at)
		if err := errors.Join(err, err2); err != nil {
			b.Fatal(err)
		}
	}
	r.times(b, "received", "start event received → shown by Consul", between(clock.received, clock.shown, ids))
	r.times(b, "listening", "application says that it listens → shown by Consul", between(listening, clock.shown, ids))
}

// benchAccepting is the same for a port that accepts before the container starts: another container, whose network it uses,
// listens there. So it measures the registrar alone.
func benchAccepting(b *testing.B, r *results) {
	l := newHarness(b)
	clock, _ := watchStarts(l, 0)
	client := dockerClient(b, "")
	owner := l.app("owner", "--env", "SERVICE_IGNORE=1")
	var ids []string
	for i := range benchSingle {
		id, err := l.start(client, fmt.Sprint("guest", i), "container:"+owner.id, "SERVICE_NAME="+benchService, fmt.Sprint("PORT=", 9000+i))
		if err != nil {
			b.Fatal(err)
		}
		ids = append(ids, id)
		clock.await(l, soon, id)
	}
	const at = "port accepts at once: "
	r.times(b, "received", at+"start event received → shown by Consul", between(clock.received, clock.shown, ids))
	r.times(b, "registered", at+"start event received → registered, says the agent", between(clock.received, clock.answered, ids))
	r.times(b, "asked", at+"start event received → registration sent to Consul", between(clock.received, clock.asked, ids))
	r.times(b, "answered", at+"registration sent → answered by Consul", between(clock.asked, clock.answered, ids))
}

// benchCalls counts the registrar's calls to Docker while containers come and go.
func benchCalls(b *testing.B, r *results) {
	const n = 10
	l := newHarness(b)
	f := newFront(l)
	l.registrar(through(l, f, time.Hour))
	lists, inspects := f.count("list"), 0
	for i := range n {
		c := l.app(fmt.Sprint("called", i))
		l.expect(soon, c.instance(8080), "passing")
		l.docker("rm", "--force", c.id)
		l.expect(soon, c.instance(8080), "")
		inspects += f.count("inspect " + c.id)
	}
	lists = f.count("list") - lists
	r.add(b, "lists/container", "list calls per container that comes and goes", "%.1f", float64(lists)/n)
	r.add(b, "inspects/container", "inspect calls per container that comes and goes", "%.1f", float64(inspects)/n)
}

// benchTogether starts many containers as fast as Docker can, and then leaves them alone.
func benchTogether(b *testing.B, r *results) {
	l := newHarness(b)
	clock, together := watchStarts(l, 20*time.Millisecond)
	client := dockerClient(b, "")
	ids := make([]string, benchCrowd)
	var g errgroup.Group
	g.SetLimit(benchStarts)
	begin := time.Now()
	for i := range ids {
		g.Go(func() (err error) {
			ids[i], err = l.start(client, fmt.Sprint("many", i), l.network, "SERVICE_NAME="+benchService)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	took := time.Since(begin)
	clock.await(l, time.Minute, ids...)
	last := func(what map[string]time.Time) time.Time {
		return slices.MaxFunc(slices.Collect(maps.Values(what)), time.Time.Compare)
	}
	r.add(b, "starts-s", fmt.Sprintf("Docker makes and starts %d containers, %d at a time", benchCrowd, benchStarts), "%.1f s", took.Seconds())
	r.add(b, "all-ms", fmt.Sprintf("last start event received → all %d shown", benchCrowd), "%.1f ms", float64(last(clock.shown).Sub(last(clock.received)).Microseconds())/1000)
	r.times(b, "each", "of them each: start event received → shown", between(clock.received, clock.shown, ids))
	together.stop()
	benchIdleCPU(b, l, r)
}

// benchIdleCPU lets the berth program register the running containers, and measures its CPU time while nothing happens.
func benchIdleCPU(b *testing.B, l *harness, r *results) {
	program := os.Getenv("BERTH")
	if program == "" {
		b.Fatal("BERTH is not set: run this with make bench-registrar, which builds the program and sets it")
	}
	services, err := l.consul.Agent().Services()
	if err != nil {
		b.Fatal(err)
	}
	for id := range services { // they belong to another registrar
		if err := l.consul.Agent().ServiceDeregister(id); err != nil {
			b.Fatal(err)
		}
	}
	f := newFront(l)
	f.harmless = true // meanwhile, other containers of this machine may be told to stop
	var words logText
	cmd := exec.Command(program, "registrar", "--consul-address", "http://127.0.0.1:"+l.port, "--network", l.network, "--listen", "none")
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+f.socket)
	cmd.Stdout, cmd.Stderr = &words, &words
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // it would outlive a benchmark that crashes
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if b.Failed() {
			b.Logf("log of berth:\n%s", words.String())
		}
	})
	start := time.Now()
	l.eventually(30*time.Second, "berth has registered all", func() error {
		services, err := l.consul.Agent().ServicesWithFilter(`Service == "` + benchService + `"`)
		if err == nil && len(services) < benchCrowd {
			err = fmt.Errorf("only %d", len(services))
		}
		return err
	})
	r.add(b, "adopted-ms", fmt.Sprintf("berth starts where %d containers run → all registered", benchCrowd), "%.0f ms", float64(time.Since(start).Milliseconds()))

	before, lists, inspects, heard := cpu(b, cmd.Process.Pid), f.count("list"), f.count("inspect"), f.heard()
	start = time.Now()
	l.eventually(2*benchIdle, "the time is over", func() error { // the elapsed time is measured
		if time.Since(start) < benchIdle {
			return errors.New("not yet")
		}
		return nil
	})
	took := time.Since(start)
	used := cpu(b, cmd.Process.Pid) - before
	r.add(b, "idle-%", fmt.Sprintf("berth idle with %d containers for %s: share of a core", benchCrowd, benchIdle), "%.2f %%", 100*used.Seconds()/took.Seconds())
	r.rows = append(r.rows, fmt.Sprintf("list / inspect calls in this time, and events from other containers of the machine\t%d / %d, %d",
		f.count("list")-lists, f.count("inspect")-inspects, f.heard()-heard))
}

// cpu returns the processor time used by a process.
func cpu(b *testing.B, pid int) time.Duration {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	const perSecond = 100 // the kernel's USER_HZ, on all of Go's architectures
	// The name in parentheses may contain anything; utime and stime are fields 14 and 15.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	user, err1 := strconv.Atoi(fields[11])
	system, err2 := strconv.Atoi(fields[12])
	if err := errors.Join(err1, err2); err != nil {
		b.Fatal(err)
	}
	return time.Duration(user+system) * time.Second / perSecond
}
