//go:build e2e

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"berth/deploy/testenv/traffic"
)

// benchRate is the rate of the benchmark's requests. A new server gets its turn after about four of them. A low rate makes
// it wait for that, and a high rate takes CPU time that it needs to start: 500 is best on two cores.
const benchRate = 500

// ways are how a change reaches HAProxy.
var ways = []struct {
	name string
	env  []string // of the stack
}{
	{"runtime", nil},
	{"classic", []string{"BERTH_RUNTIME=false"}}, // every change by a reload
}

// readinesses define when a new container is registered.
var readinesses = []struct {
	name string
	args []string // of docker run
}{
	{"tcp", nil}, // when its port accepts: the default
	{"none", []string{"-e", "SERVICE_READY=none"}},
}

// BenchmarkE2EStart repeatedly starts one more container next to three under steady requests. It measures from the moment
// its port accepts to the arrival of its first request through HAProxy; the application logs both. The kinds of starts
// alternate, so a busy period of the machine affects all of them.
func BenchmarkE2EStart(b *testing.B) {
	var all []*series
	for _, way := range ways {
		s := startStack(b, way.env...)
		s.scale(3)
		s.Eventually(20*time.Second, "HAProxy has three servers", func() error { return s.expectServers(3) })
		apps, haproxy := s.Containers("app"), s.haproxy()
		for _, ready := range readinesses {
			all = append(all, &series{stack: s, apps: apps, haproxy: haproxy, way: way.name, ready: ready.name, args: ready.args})
		}
	}
	for b.Loop() {
		for _, r := range all {
			r.start(b)
		}
	}
	b.ReportMetric(0, "ns/op") // dominated by Docker
	for _, r := range all {
		r.readLogs()
		r.report(b)
	}
	printSeries(os.Stdout, all)
}

// series is many starts of the same kind.
type series struct {
	stack      *stack
	apps       []string // running all the time
	haproxy    string   // address
	way, ready string
	args       []string // of docker run
	starts     []start
	loads      []traffic.Report
	spent      cpu // meanwhile
}

// start is one container's way to its first request.
type start struct {
	id, name   string
	run        time.Time // docker run
	listening  time.Time // its port accepts
	registered time.Time // in Consul; zero if not in the logs
	noticed    time.Time // by the templater
	live       time.Time // in HAProxy, according to the templater
	first      time.Time // request arrived
	answered   time.Time // first request
	gone       time.Time // from HAProxy again
}

func (r *series) start(b *testing.B) {
	s := r.stack
	l := traffic.ToApp(b, r.haproxy, benchRate, traffic.Kept)
	s.Eventually(10*time.Second, "all three answer", func() error { return l.ExpectAnswers(l.Began, r.apps...) })
	before := cpuTime()
	st := start{run: time.Now()}
	st.id = s.Run(append(slices.Clone(r.args), "-e", "SERVICE_NAME=app", os.Getenv("IMAGE_APP"))...)
	s.Eventually(20*time.Second, "it answers", func() error { return l.ExpectAnswers(st.run, st.id) })
	st.answered = l.Of(st.id).First
	st.name = strings.TrimPrefix(s.Docker("inspect", "--format", "{{.Name}}", st.id), "/")
	r.spent = r.spent.plus(cpuTime().minus(before))
	s.Eventually(5*time.Second, "it logs its first request", func() (err error) {
		st.listening, st.first, err = stamps(s.Docker("logs", st.id))
		return err
	})
	s.Docker("rm", "--force", st.id)
	s.Eventually(20*time.Second, "it is gone", func() error { return s.expectServers(3) })
	st.gone = time.Now()
	r.starts = append(r.starts, st)
	r.loads = append(r.loads, l.Finish())
}

// haproxy is its container's address: requests to it avoid the cost of Docker's proxy for published ports.
func (s *stack) haproxy() string {
	id := s.Containers("haproxy")[0]
	return s.Docker("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}:8080", id)
}

var stamped = regexp.MustCompile(`"first request through a proxy" after=(\S+) listening=(\d+)`)

// stamps are the application's log entries.
func stamps(log string) (listening, first time.Time, err error) {
	m := stamped.FindStringSubmatch(log)
	if m == nil {
		return listening, first, fmt.Errorf("no stamps in its log:\n%s", log)
	}
	after, err := time.ParseDuration(m[1])
	if err != nil {
		return listening, first, err
	}
	nano, err := strconv.ParseInt(m[2], 10, 64)
	if err != nil {
		return listening, first, err
	}
	listening = time.Unix(0, nano)
	return listening, listening.Add(after), nil
}

// entry is a line of berth's log.
type entry struct {
	Time          time.Time
	Msg           string
	Container     string
	Backend       string
	Before, After int
}

func (s *stack) log(service string) (entries []entry) {
	for line := range strings.Lines(s.Docker("logs", s.Containers(service)[0])) {
		var e entry
		if json.Unmarshal([]byte(line), &e) == nil {
			entries = append(entries, e)
		}
	}
	return entries
}

var liveAfter = regexp.MustCompile(`live after (\d+) ms`)

// readLogs adds the times of the starts from berth's logs.
func (r *series) readLogs() {
	registrar, templater := r.stack.log("registrar"), r.stack.log("templater")
	for i := range r.starts {
		st := &r.starts[i]
		for _, e := range registrar {
			if strings.HasPrefix(e.Msg, "registered ") && e.Container == st.name {
				st.registered = e.Time
			}
		}
		for _, e := range templater {
			m := liveAfter.FindStringSubmatch(e.Msg)
			if m == nil || e.Backend != "app" || e.Before >= e.After || e.Time.Before(st.run) || e.Time.After(st.gone) {
				continue
			}
			ms, _ := strconv.Atoi(m[1])
			st.live = e.Time
			st.noticed = e.Time.Add(-time.Duration(ms) * time.Millisecond)
		}
	}
}

// span is a part of a start.
type span func(start) (from, to time.Time)

func toFirst(st start) (from, to time.Time)  { return st.listening, st.first }
func toAnswer(st start) (from, to time.Time) { return st.run, st.answered }

// phases are the steps of a start.
var phases = []struct {
	name string
	span span
}{
	{"→ registered", func(st start) (from, to time.Time) { return st.listening, st.registered }},
	{"→ templater notices", func(st start) (from, to time.Time) { return st.registered, st.noticed }},
	{"→ HAProxy has it", func(st start) (from, to time.Time) { return st.noticed, st.live }},
	{"→ first request", func(st start) (from, to time.Time) { return st.live, st.first }},
}

// took returns the sorted durations of a step in milliseconds, without starts for which it is unknown.
func (r *series) took(what span) (ms []float64) {
	for _, st := range r.starts {
		if from, to := what(st); !from.IsZero() && !to.IsZero() {
			ms = append(ms, float64(to.Sub(from).Microseconds())/1000)
		}
	}
	slices.Sort(ms)
	return ms
}

func median(sorted []float64) float64 { return sorted[len(sorted)/2] }
func most(sorted []float64) float64   { return sorted[len(sorted)-1] }

func (r *series) report(b *testing.B) {
	kind := r.way + "-" + r.ready
	b.ReportMetric(median(r.took(toFirst)), kind+"-ms/median")
	b.ReportMetric(most(r.took(toFirst)), kind+"-ms/max")
	b.ReportMetric(float64(traffic.Join(r.loads...).Failed()), kind+"-failed")
}

// printSeries prints the tables.
func printSeries(w io.Writer, all []*series) {
	fmt.Fprintf(w, `
From the moment a new container's port accepts to the arrival of the first request at it through HAProxy, both stamped
by the application: three instances run under %d requests/s, one more is started, %d times. Milliseconds.

`, benchRate, len(all[0].starts))
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "SERVICE_READY\tchanges come by\tmedian\tmax\trequests failed\tslowest\tdocker run to first answer: median\tmax\tCPU busy\t")
	for _, ready := range readinesses {
		var of []*series
		for _, r := range all {
			if r.ready != ready.name {
				continue
			}
			of = append(of, r)
			f, a, load := r.took(toFirst), r.took(toAnswer), traffic.Join(r.loads...)
			fmt.Fprintf(t, "%s\t%s\t%.1f\t%.1f\t%d of %d\t%d\t%.0f\t%.0f\t%.0f %%\t\n", r.ready, r.way, median(f), most(f),
				load.Failed(), load.Sent(), load.Within(1).Milliseconds(), median(a), most(a), 100*r.spent.busy())
		}
		a, b := of[0].took(toFirst), of[1].took(toFirst)
		fmt.Fprintf(t, "\t%s / %s\t%.1f\t%.1f\t\t\t\t\t\t\n", of[1].way, of[0].way, median(b)/median(a), most(b)/most(a))
	}
	t.Flush()

	fmt.Fprint(w, "\nWhere the time goes, by berth's logs: medians, in milliseconds.\n\n")
	fmt.Fprint(t, "SERVICE_READY\tchanges come by\tport accepts\t")
	for _, p := range phases {
		fmt.Fprintf(t, "%s\t", p.name)
	}
	fmt.Fprintln(t)
	for _, r := range all {
		fmt.Fprintf(t, "%s\t%s\t\t", r.ready, r.way)
		for _, p := range phases {
			if ms := r.took(p.span); len(ms) > 0 {
				fmt.Fprintf(t, "%.1f\t", median(ms))
			} else {
				fmt.Fprint(t, "not logged\t")
			}
		}
		fmt.Fprintln(t)
	}
	t.Flush()

	fmt.Fprint(w, "\nThe requests meanwhile:\n\n")
	for _, r := range all {
		fmt.Fprintf(w, "%s, %s: %s\n", r.ready, r.way, traffic.Join(r.loads...))
	}
	fmt.Fprintln(w)
}

// cpu is the time spent by the machine's CPUs, in ticks.
type cpu struct{ idle, all uint64 }

// cpuTime reads it; it is zero if unavailable.
func cpuTime() (c cpu) {
	f, err := os.Open("/proc/stat")
	if err != nil {
		return c
	}
	defer f.Close()
	line, _ := bufio.NewReader(f).ReadString('\n') // cpu user nice system idle iowait irq softirq steal guest guest_nice
	for i, field := range strings.Fields(line) {
		n, err := strconv.ParseUint(field, 10, 64)
		if err != nil || i > 8 { // user includes guest
			continue
		}
		c.all += n
		if i == 4 || i == 5 {
			c.idle += n
		}
	}
	return c
}

func (c cpu) minus(d cpu) cpu { return cpu{c.idle - d.idle, c.all - d.all} }
func (c cpu) plus(d cpu) cpu  { return cpu{c.idle + d.idle, c.all + d.all} }

// busy is the share of time that was not idle.
func (c cpu) busy() float64 {
	if c.all == 0 {
		return 0
	}
	return 1 - float64(c.idle)/float64(c.all)
}
