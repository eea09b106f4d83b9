//go:build e2e

package templater_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/hashicorp/consul-template/config"
	"github.com/hashicorp/consul-template/manager"
	"github.com/hashicorp/consul-template/renderer"
	"github.com/hashicorp/consul/api"
	"golang.org/x/sync/errgroup"

	"berth/templater"
)

const (
	// withPartial and whole render the same text.
	withPartial = `{{ define "backend" }}backend {{ . }}
{{ range service . }}    server {{ .ID }} {{ .Address }}:{{ .Port }}
{{ end }}{{ end }}{{ range services }}{{ if ne .Name "consul" }}{{ partial "backend" .Name }}{{ end }}{{ end }}`
	whole = `{{ range services }}{{ if ne .Name "consul" }}backend {{ .Name }}
{{ range service .Name }}    server {{ .ID }} {{ .Address }}:{{ .Port }}
{{ end }}{{ end }}{{ end }}`

	benchBurst = 200              // number of registrations at once
	benchIdle  = 30 * time.Second // without any change

	// processJob and processResult name the environment variables with the job and result files of a measured process.
	processJob, processResult = "BERTH_BENCH_JOB", "BERTH_BENCH_RESULT"
)

// size is the size of the catalog.
type size struct{ Services, Instances int }

func (s size) String() string { return fmt.Sprintf("%d×%d", s.Services, s.Instances) }

func (s size) service(i int) string { return fmt.Sprintf("s-%04d", i) }
func (s size) id(i, j int) string   { return fmt.Sprintf("s-%04d-%04d", i, j) }
func (s size) nth(n int) (i, j int) {
	n = n * 7919 % (s.Services * s.Instances)
	return n / s.Instances, n % s.Instances
}
func (s size) node(j int) (name string) { return fmt.Sprintf("node-%02d", j%20) }

// instance is on a node without an agent, because an agent would undo registrations that it did not make.
func (s size) instance(i, j, port int) *api.AgentService {
	address := fmt.Sprintf("10.%d.%d.%d", i>>8, i&255, 1+j%250)
	return &api.AgentService{ID: s.id(i, j), Service: s.service(i), Address: address, Port: port}
}

// job is what a separate process measures.
type job struct {
	Who         string // what is measured
	Size        size
	Address     string // of Consul
	Connections int    // berth's; 0 = its default
	Changes     int    // one after the other
	Hot         int    // changing services; 0 = all
	Bursts      int
}

// consulTemplate is the job.Who for consul-template instead of berth's templater.
const consulTemplate = "Runner"

// measures are a job's results. Times are from a change until the text with it is handed over.
type measures struct {
	First             time.Duration   // from the start to the first text
	Sum               string          // of the first text
	Sent, Returned    []time.Duration // since a registration was sent, and since it was answered
	Together          []time.Duration // since the last of many registrations was answered
	Heap, RSS, Growth float64         // in MB: heap in use after a collection, memory of the process, growth of that
	Idle              float64         // share of a core
}

// result is a row of the table that BenchmarkE2ETemplater prints.
type result struct {
	job
	measures
}

// BenchmarkE2ETemplater measures the templater and consul-template's Runner on a real Consul, and prints a table. Run it
// once, with -benchtime 1x: it sets its own numbers of changes.
func BenchmarkE2ETemplater(b *testing.B) {
	var rows []result
	for _, s := range []size{{1000, 10}, {100, 100}, {1, 1000}} {
		b.Run(s.String(), func(b *testing.B) {
			c := startConsul(b, "-dev", "-hcl=limits { http_max_conns_per_client = -1 }")
			rows = append(rows, c.compare(b,
				job{Who: "berth", Size: s, Changes: 300, Bursts: 5, Connections: 2 * (s.Services + 100)},
				job{Who: consulTemplate, Size: s, Changes: 50, Bursts: 2})...)
		})
	}
	// Consul still counts earlier clients' connections, so each has its own Consul.
	for _, s := range []size{{300, 10}, {1000, 10}} {
		for _, j := range []job{
			{Who: "berth, default limits", Size: s, Changes: 300, Bursts: 5},
			{Who: "berth, default limits, 5 change", Size: s, Changes: 100, Hot: 5},
		} {
			b.Run("default-limit/"+s.String(), func(b *testing.B) {
				c := startConsul(b, "-dev")
				rows = append(rows, c.compare(b, j)...)
			})
		}
	}
	b.Log(table(rows))
}

// compare measures the candidates one after the other with the same catalog. All have to render the same.
func (c *consul) compare(b *testing.B, jobs ...job) (rows []result) {
	for _, j := range jobs {
		c.fill(j.Size)
		b.Run(strings.NewReplacer(",", "", " ", "-").Replace(j.Who), func(b *testing.B) {
			rows = append(rows, result{j, c.measure(b, j)})
			if rows[0].Sum != rows[len(rows)-1].Sum {
				b.Errorf("%s and %s have rendered different texts of the same catalog", rows[0].Who, j.Who)
			}
		})
	}
	return rows
}

func table(rows []result) string {
	var text strings.Builder
	fmt.Fprint(&text, "\nFrom a change in Consul to the text with it, in ms; memory in MB. Median / p99; of bursts, median / longest.\n"+
		"Whose connections are not said has as many as it wants.\n\n")
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "services×instances\t\tregistration sent → text\tanswered → text\tstart → text\t200 answered → text\t"+
		"heap\tRSS\tgrown by\tidle")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s / %s\t%s / %s\t%.0f\t%s / %s\t%.0f\t%.0f\t%.0f\t%.2f %%\n", r.Size, r.Who,
			ms(at(r.Sent, 0.5)), ms(at(r.Sent, 0.99)), ms(at(r.Returned, 0.5)), ms(at(r.Returned, 0.99)), millis(r.First),
			ms(at(r.Together, 0.5)), ms(at(r.Together, 1)), r.Heap, r.RSS, r.Growth, 100*r.Idle)
	}
	w.Flush()
	return text.String()
}

// at is the given quantile of durations: 0.5 for the median, 1 for the longest.
func at(d []time.Duration, share float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	d = slices.Sorted(slices.Values(d))
	return d[int(share*float64(len(d)-1))]
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
func ms(d time.Duration) string      { return strconv.FormatFloat(millis(d), 'f', 1, 64) }

// fill brings the catalog to a size, or back to it.
func (c *consul) fill(s size) {
	c.t.Helper()
	var ops api.TxnOps
	for j := range min(s.Instances, 20) {
		node := api.Node{Node: s.node(j), Address: fmt.Sprintf("10.200.0.%d", 1+j)}
		ops = append(ops, &api.TxnOp{Node: &api.NodeTxnOp{Verb: api.NodeSet, Node: node}})
	}
	for i := range s.Services {
		for j := range s.Instances {
			set := &api.ServiceTxnOp{Verb: api.ServiceSet, Node: s.node(j), Service: *s.instance(i, j, 8080)}
			ops = append(ops, &api.TxnOp{Service: set})
		}
	}
	c.txn(ops)
}

// measure starts a process that measures, reports its results, and returns them.
func (c *consul) measure(b *testing.B, j job) (m measures) {
	b.Helper()
	j.Address = c.Address
	dir := b.TempDir()
	in, err := json.Marshal(j)
	if err != nil {
		b.Fatal(err)
	}
	results := filepath.Join(dir, "result")
	cmd := exec.Command(os.Args[0], "-test.run=^$", "-test.bench=^BenchmarkProcess$", "-test.benchtime=1x", "-test.timeout=15m")
	cmd.Env = append(os.Environ(), processJob+"="+string(in), processResult+"="+results)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // otherwise it would outlive a crashed benchmark
	out, err := cmd.CombinedOutput()
	if err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	text, err := os.ReadFile(results)
	if err == nil {
		err = json.Unmarshal(text, &m)
	}
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(0, "ns/op")
	for unit, value := range map[string]float64{
		"change-ms/median": millis(at(m.Sent, 0.5)), "change-ms/p99": millis(at(m.Sent, 0.99)),
		"answered-ms/median": millis(at(m.Returned, 0.5)), "answered-ms/p99": millis(at(m.Returned, 0.99)),
		"first-ms": millis(m.First), "burst-ms/median": millis(at(m.Together, 0.5)),
		"heap-MB": m.Heap, "rss-MB": m.RSS, "grown-MB": m.Growth, "idle-%": 100 * m.Idle,
	} {
		b.ReportMetric(value, unit)
	}
	return m
}

// BenchmarkProcess is the measuring process. It does nothing unless started for that.
func BenchmarkProcess(b *testing.B) {
	text := os.Getenv(processJob)
	if text == "" {
		b.Skip("this is a process of BenchmarkE2ETemplater")
	}
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		b.Fatal(err)
	}
	m, err := j.run()
	if err != nil {
		b.Fatal(err)
	}
	out, err := json.Marshal(m)
	if err == nil {
		err = os.WriteFile(os.Getenv(processResult), out, 0o600)
	}
	if err != nil {
		b.Fatal(err)
	}
	os.Exit(0) // the Runner's remains do not matter
}

// screen has the latest text, and reports when an awaited text appears.
type screen struct {
	mu      sync.Mutex
	text    string
	is      func(text string) bool
	since   chan time.Time
	renders int
}

func (s *screen) show(text string) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text = text
	s.renders++
	if s.is != nil && s.is(text) {
		s.is = nil
		s.since <- now
	}
}

// expect starts to wait for a text; the func stops waiting and returns when the text appeared. Call it before causing the
// text.
func (s *screen) expect(is func(text string) bool) (wait func() (time.Time, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.is, s.since = is, make(chan time.Time, 1)
	return func() (time.Time, error) {
		select {
		case at := <-s.since:
			return at, nil
		case <-time.After(time.Minute):
			return time.Time{}, errors.New("no such text within a minute")
		}
	}
}

// run is the process's work.
func (j job) run() (m measures, err error) {
	client, err := api.NewClient(&api.Config{Address: j.Address})
	if err != nil {
		return m, err
	}
	if _, err := client.Status().Leader(); err != nil {
		return m, err
	}
	runtime.GC()
	before := rss()
	var s screen
	began := time.Now()
	wait := s.expect(func(string) bool { return true })
	start := j.startBerth
	if j.Who == consulTemplate {
		start = j.startRunner
	}
	if err := start(&s); err != nil {
		return m, err
	}
	first, err := wait()
	if err != nil {
		return m, err
	}
	m.First = first.Sub(began)
	s.mu.Lock()
	m.Sum = fmt.Sprintf("%x", sha256.Sum256([]byte(s.text)))
	lines := strings.Count(s.text, "\n")
	s.mu.Unlock()
	if want := j.Size.Services * (1 + j.Size.Instances); lines != want {
		return m, fmt.Errorf("the first text has %d lines, want %d", lines, want)
	}
	// Each watch has its first answer, but may not wait for the next one yet.
	time.Sleep(2 * time.Second)

	for n := range j.Changes {
		sent, returned, err := j.change(client, &s, n)
		if err != nil {
			return m, fmt.Errorf("change %d: %w", n, err)
		}
		m.Sent, m.Returned = append(m.Sent, sent), append(m.Returned, returned)
		time.Sleep(30 * time.Millisecond)
	}
	for n := range j.Bursts {
		took, err := j.burst(client, &s, n)
		if err != nil {
			return m, fmt.Errorf("burst %d: %w", n, err)
		}
		m.Together = append(m.Together, took)
		time.Sleep(time.Second)
	}
	runtime.GC()
	var heap runtime.MemStats
	runtime.ReadMemStats(&heap)
	m.Heap = float64(heap.HeapInuse) / (1 << 20)
	s.mu.Lock()
	renders := s.renders
	s.mu.Unlock()
	used, since := processorTime(), time.Now()
	time.Sleep(benchIdle) // this time is measured
	m.Idle = float64(processorTime()-used) / float64(time.Since(since))
	m.RSS = rss() // free memory has been returned meanwhile
	m.Growth = m.RSS - before
	s.mu.Lock()
	renders = s.renders - renders
	s.mu.Unlock()
	if renders > 0 {
		return m, fmt.Errorf("%d texts while nothing changed", renders)
	}
	return m, nil
}

// change gives an instance a new, unique port.
func (j job) change(client *api.Client, s *screen, n int) (sent, returned time.Duration, err error) {
	i, k := j.Size.nth(n)
	if j.Hot > 0 {
		i = j.Size.Services - 1 - n%j.Hot
	}
	instance := j.Size.instance(i, k, 20000+n)
	line := fmt.Sprintf("%s %s:%d\n", instance.ID, instance.Address, instance.Port)
	wait := s.expect(func(text string) bool { return strings.Contains(text, line) })
	began := time.Now()
	if err := j.register(client, k, instance); err != nil {
		return 0, 0, err
	}
	answered := time.Now()
	shown, err := wait()
	return shown.Sub(began), shown.Sub(answered), err
}

// burst gives many instances new ports as fast as possible, one call each.
func (j job) burst(client *api.Client, s *screen, burst int) (time.Duration, error) {
	var lines []string
	var g errgroup.Group
	g.SetLimit(8)
	type registration struct {
		k        int
		instance *api.AgentService
	}
	var all []registration
	for n := range benchBurst {
		i, k := j.Size.nth(1 + n)
		instance := j.Size.instance(i, k, 30000+burst*benchBurst+n)
		all = append(all, registration{k, instance})
		lines = append(lines, fmt.Sprintf(":%d\n", instance.Port))
	}
	wait := s.expect(func(text string) bool {
		for _, line := range slices.Backward(lines) { // the last lines are most likely to be missing
			if !strings.Contains(text, line) {
				return false
			}
		}
		return true
	})
	for _, r := range all {
		g.Go(func() error { return j.register(client, r.k, r.instance) })
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	answered := time.Now()
	shown, err := wait()
	return shown.Sub(answered), err
}

func (j job) register(client *api.Client, k int, instance *api.AgentService) error {
	registration := &api.CatalogRegistration{Node: j.Size.node(k), SkipNodeUpdate: true, Service: instance}
	_, err := client.Catalog().Register(registration, nil)
	return err
}

func (j job) startBerth(s *screen) error {
	t, err := templater.New(templater.Options{
		Consul:      &api.Config{Address: j.Address},
		Connections: j.Connections,
		Templates:   []templater.Template{{Name: "out", Source: "out.ctmpl", Text: withPartial}},
		Publish:     func(p templater.Published) { s.show(p.Text) },
		Log:         slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	go func() { _ = t.Run(context.Background()) }()
	return nil
}

func (j job) startRunner(s *screen) error {
	log.SetOutput(io.Discard)
	c := config.DefaultConfig()
	c.Consul.Address = &j.Address
	c.Consul.Retry.Attempts = new(int)
	connections := 2 * j.Size.Services
	c.Consul.Transport.MaxIdleConns, c.Consul.Transport.MaxIdleConnsPerHost = &connections, &connections
	off, text, path := false, whole, "out"
	c.Wait.Enabled = &off
	t := config.DefaultTemplateConfig()
	t.Contents, t.Destination = &text, &path
	c.Templates = &config.TemplateConfigs{t}
	c.RendererFunc = func(in *renderer.RenderInput) (*renderer.RenderResult, error) {
		s.show(string(in.Contents))
		return &renderer.RenderResult{DidRender: true, WouldRender: true, Contents: in.Contents}, nil
	}
	c.Finalize()
	r, err := manager.NewRunner(c, false)
	if err != nil {
		return err
	}
	go r.Start()
	return nil
}

// rss returns this process's memory in MB.
func rss() float64 {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), "\nVmRSS:")
	kb, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	n, _ := strconv.ParseFloat(kb, 64)
	return n / 1024
}

// processorTime returns the CPU time this process has used so far.
func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
