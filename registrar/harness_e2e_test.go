//go:build e2e

package registrar_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	docker "github.com/fsouza/go-dockerclient"
	"github.com/hashicorp/consul/api"
	"github.com/prometheus/client_golang/prometheus"

	"berth/deploy/testenv"
	"berth/registrar"
	"berth/registrar/agent"
	watch "berth/registrar/docker"
	"berth/registrar/label"
)

// harnessLabel is on all containers of a harness, with its name.
const harnessLabel = "berth-e2e"

// engine is a Docker daemon.
type engine struct {
	t    testing.TB
	host string // "" = the daemon of the docker command
}

func (e engine) try(args ...string) (string, error) {
	if e.host != "" {
		args = append([]string{"--host", e.host}, args...)
	}
	return testenv.Docker(args...)
}

// docker runs a docker command, and ends the test if that fails.
func (e engine) docker(args ...string) string {
	e.t.Helper()
	out, err := e.try(args...)
	if err != nil {
		e.t.Fatal(err)
	}
	return out
}

// inspect returns a field of docker inspect.
func (e engine) inspect(id, field string) string {
	e.t.Helper()
	return e.docker("inspect", "--format", "{{"+field+"}}", id)
}

// harness is a network on real Docker with a real Consul agent on it. Tests share nothing of it.
type harness struct {
	engine
	*world
}

// in is the harness for a subtest.
func (l *harness) in(t *testing.T) *harness {
	return &harness{engine{t, l.host}, l.world}
}

type world struct {
	name    string // begins the names of everything in it
	network string
	consul  *testenv.Consul
	port    string // of Consul's HTTP API on 127.0.0.1

	mu     sync.Mutex
	events []happening // Docker's events for its containers
}

// daemonLeftovers removes the daemons left by dead test processes.
var daemonLeftovers = sync.OnceValue(func() error { return removeDaemons(testenv.Leftover) })

// newHarness starts a harness. Further arguments are for consul agent.
func newHarness(t testing.TB, consul ...string) *harness {
	t.Helper()
	for _, variable := range []string{"IMAGE_APP", "IMAGE_HAPROXY", "IMAGE_CONSUL"} {
		testenv.Image(t, variable)
	}
	name := testenv.Name(t)
	if err := daemonLeftovers(); err != nil {
		t.Fatal(err)
	}
	l := &harness{engine{t: t}, &world{name: name, network: name + "-net", port: testenv.FreePort(t)}}
	l.docker("network", "create", l.network)
	l.follow()
	l.startConsul(consul...)
	return l
}

// rootToken is a token that lets a harness's agent do anything, with and without ACLs.
const rootToken = "11111111-1111-1111-1111-111111111111"

// startConsul starts an agent that is its own server, with its data in a volume, and waits until it works.
func (l *harness) startConsul(args ...string) {
	l.t.Helper()
	l.consul = testenv.StartConsul(l.t, testenv.ConsulOptions{
		Name:    l.name + "-consul",
		Address: "127.0.0.1:" + l.port,
		Docker:  []string{"--network", l.network, "--publish", "127.0.0.1:" + l.port + ":8500", "--label", "SERVICE_IGNORE=true"},
		Args: append([]string{"-server", "-bootstrap-expect=1", "-node=e2e", "-client=0.0.0.0", `-advertise={{ GetInterfaceIP "eth0" }}`,
			"-data-dir=/consul/data", "-hcl=limits { http_max_conns_per_client = -1 }"}, args...),
		Token: rootToken,
	})
	l.consul.Answers(l.t)
}

// container is a container of a harness. It registers as the service named by the last part of its name.
type container struct {
	id, name, service string
}

// instance returns the default service ID of a port.
func (c container) instance(port int) string { return fmt.Sprintf("e2e:%s:%d", c.name, port) }

// run starts a container, on the harness's network if args name none.
func (l *harness) run(service string, args ...string) container {
	l.t.Helper()
	c := container{name: l.name + "-" + service, service: service}
	all := []string{"run", "--detach", "--name", c.name, "--label", harnessLabel + "=" + l.name, "--env", "SERVICE_NAME=" + service}
	if !slices.Contains(args, "--network") {
		all = append(all, "--network", l.network)
	}
	c.id = l.docker(append(all, args...)...)
	return c
}

// app starts the demo application.
func (l *harness) app(service string, args ...string) container {
	l.t.Helper()
	return l.run(service, append(args, os.Getenv("IMAGE_APP"))...)
}

// addressOn returns a container's IPv4 address on a network.
func (e engine) addressOn(c container, network string) string {
	e.t.Helper()
	return e.inspect(c.id, fmt.Sprintf("(index .NetworkSettings.Networks %q).IPAddress", network))
}

// Shell functions for web: serve STATUS answers every request on port 8080 with that status from now on; await FILE waits
// for a file in /tmp, which a test creates with touch. The pid from an earlier run of the container now belongs to another
// process, in the worst case to the new haproxy.
const webFunctions = `
rm -f /tmp/pid
serve() {
	printf '%s\n' 'global' ' fd-hard-limit 4096' 'defaults' ' mode http' ' timeout client 5s' ' timeout server 5s' ' timeout connect 5s' \
		'frontend web' " bind ${BIND:-:8080}" " http-request return status $1 content-type text/plain string said-$1" >/tmp/$1.cfg
	if [ -e /tmp/pid ]; then before="-sf $(cat /tmp/pid)"; fi
	haproxy -D -p /tmp/pid -f /tmp/$1.cfg $before
}
await() { until [ -e "/tmp/$1" ]; do sleep 0.02; done; }
`

// web starts a container with a shell script as its application. It waits for the file end after the script, and then
// exits with status 3.
func (l *harness) web(service, script string, args ...string) container {
	l.t.Helper()
	args = append(args, "--stop-signal", "SIGTERM", "--entrypoint", "sh")
	if !slices.Contains(args, "--expose") {
		args = append(args, "--expose", "8080")
	}
	return l.run(service, append(args, os.Getenv("IMAGE_HAPROXY"), "-c", webFunctions+script+"\nawait end\nexit 3")...)
}

// touch creates a file that a script of web waits for.
func (l *harness) touch(c container, file string) {
	l.t.Helper()
	l.docker("exec", c.id, "touch", "/tmp/"+file)
}

func (l *harness) unlink(c container, file string) {
	l.t.Helper()
	l.docker("exec", c.id, "rm", "/tmp/"+file)
}

// running is a running registrar in a harness.
type running struct {
	*registrar.Registrar
	log     *logText
	metrics *prometheus.Registry
	stop    func()
}

// newRegistrar returns a registrar for the harness's network. change, which may be nil, changes its options.
func (l *harness) newRegistrar(change func(*registrar.Options, *label.Host)) *running {
	l.t.Helper()
	client := dockerClient(l.t, "")
	r := &running{log: &logText{}, metrics: prometheus.NewRegistry()}
	host := label.Host{Name: "e2e", EngineID: l.name, NodeAddress: "127.0.0.1", Networks: []string{l.network}}
	opts := registrar.Options{
		Docker:  restrained{client, l},
		Events:  watch.Events(client),
		Host:    func(context.Context) (label.Host, error) { return host, nil },
		Agent:   l.consul.Agent(),
		Catalog: agent.NewCatalog(l.consul.Client),
		Log:     slog.New(slog.NewTextHandler(r.log, nil)),
		Metrics: r.metrics,
	}
	if change != nil {
		change(&opts, &host)
	}
	r.Registrar = registrar.New(opts)
	return r
}

// registrar starts a registrar, and waits until it knows Docker and Consul. It stops at the end of the test, or through
// stop.
func (l *harness) registrar(change func(*registrar.Options, *label.Host)) *running {
	l.t.Helper()
	r := l.newRegistrar(change)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				l.t.Errorf("Run: %v", err)
			}
		case <-time.After(20 * time.Second):
			l.t.Error("Run does not return 20 s after the end of its context")
		}
	})
	l.t.Cleanup(func() {
		r.stop()
		if l.t.Failed() {
			l.t.Logf("log of the registrar, without what it says of other containers:\n%s", r.log.without("not registered: port", l.name))
		}
	})
	l.eventually(20*time.Second, "the registrar is ready", r.Ready)
	return r
}

// value returns the value of a metric.
func (r *running) value(name string) float64 {
	families, err := r.metrics.Gather()
	if err != nil {
		panic(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			m := f.GetMetric()[0]
			return m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	panic("no metric " + name)
}

// restrained is a Docker client that sends no signals to foreign containers, whatever their labels say.
type restrained struct {
	*docker.Client
	l *harness
}

func (r restrained) KillContainer(o docker.KillContainerOptions) error {
	c, err := r.InspectContainerWithOptions(docker.InspectContainerOptions{Context: o.Context, ID: o.ID})
	if err != nil {
		return err
	}
	if c.Config.Labels[harnessLabel] != r.l.name {
		return fmt.Errorf("%s is not of this test", c.Name)
	}
	return r.Client.KillContainer(o)
}

func dockerClient(t testing.TB, host string) *docker.Client {
	t.Helper()
	client, err := docker.NewClientFromEnv()
	if host != "" {
		client, err = docker.NewClient(host)
	}
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// logText is the log of a registrar.
type logText struct{ testenv.Log }

// without returns the log without the lines that contain one text and lack the other.
func (l *logText) without(text, but string) (out string) {
	for line := range strings.Lines(l.String()) {
		if !strings.Contains(line, text) || strings.Contains(line, but) {
			out += line
		}
	}
	return out
}

// instance is an instance at Consul's agent. Its status is passing, warning, critical, maintenance, or "" if it does not
// exist. checks is by name, without the maintenance check.
type instance struct {
	*api.AgentService
	status string
	why    string // reason of the maintenance
	checks map[string]*api.AgentCheck
}

func (l *harness) instance(id string) (instance, error) {
	all, err := l.instances()
	return all[id], err
}

// instances returns everything that the agent holds.
func (l *harness) instances() (map[string]instance, error) {
	services, err := l.consul.Agent().Services()
	if err != nil {
		return nil, err
	}
	checks, err := l.consul.Agent().Checks()
	if err != nil {
		return nil, err
	}
	out := map[string]instance{}
	for id, s := range services {
		in := instance{AgentService: s, checks: map[string]*api.AgentCheck{}}
		var all api.HealthChecks
		for _, c := range checks {
			if c.ServiceID != id {
				continue
			}
			all = append(all, &api.HealthCheck{CheckID: c.CheckID, Status: c.Status})
			if strings.HasPrefix(c.CheckID, api.ServiceMaintPrefix) {
				in.why = c.Notes
			} else {
				in.checks[c.Name] = c
			}
		}
		in.status = all.AggregatedStatus()
		out[id] = in
	}
	return out, nil
}

// expect waits until an instance has this status, and returns how long that took. "" means that it does not exist.
func (l *harness) expect(within time.Duration, id, status string) time.Duration {
	l.t.Helper()
	return l.eventually(within, fmt.Sprintf("%s is %q", id, status), func() error {
		in, err := l.instance(id)
		if err == nil && in.status != status {
			err = fmt.Errorf("it is %q", in.status)
		}
		return err
	})
}

// expectOf waits until exactly these instances are registered for the harness's containers, with their statuses: "a
// passing", "b critical", sorted by service ID.
func (l *harness) expectOf(within time.Duration, want ...string) time.Duration {
	l.t.Helper()
	want = slices.Sorted(slices.Values(want))
	return l.eventually(within, fmt.Sprintf("%q are registered", want), func() error {
		got, err := l.statuses()
		if err == nil && !slices.Equal(got, want) {
			err = fmt.Errorf("%q are", got)
		}
		return err
	})
}

// statuses returns the names and statuses of the harness's registrations.
func (l *harness) statuses() (out []string, err error) {
	all, err := l.instances()
	for _, id := range slices.Sorted(maps.Keys(all)) {
		if strings.Contains(id, l.name) || all[id].Meta["berth-owner"] == l.name {
			out = append(out, all[id].Service+" "+all[id].status)
		}
	}
	slices.Sort(out)
	return out, err
}

// eventually waits until f returns nil, and returns how long that took. It ends the test after the given time.
func (e engine) eventually(within time.Duration, what string, f func() error) time.Duration {
	e.t.Helper()
	return testenv.Eventually(e.t, within, what, f)
}

// ms formats a duration for the tests' logs.
func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }
