//go:build e2e

package bench

import (
	"bufio"
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"berth/deploy/testenv"
	"berth/deploy/testenv/traffic"
)

// BenchmarkE2EGroups measures groups of berth service on a real Consul, and prints its results. Run it once, with -benchtime
// 1x: it sets the numbers of changes itself.
func BenchmarkE2EGroups(b *testing.B) {
	var r report
	r.add("load average of the machine at the start: %s", traffic.LoadAverage())
	b.Run("apply", func(b *testing.B) { applied(b, &r) })
	b.Run("leader", func(b *testing.B) { led(b, &r) })
	b.Run("rolling", func(b *testing.B) { rolled(b, &r) })
	r.add("load average of the machine at the end: %s", traffic.LoadAverage())
	fmt.Print("\n", strings.Join(r.lines, "\n"), "\n\n")
}

// report is the output of the benchmark.
type report struct{ lines []string }

func (r *report) add(format string, args ...any) {
	r.lines = append(r.lines, fmt.Sprintf(format, args...))
}

// times adds the median and the maximum of some durations, and reports them as metrics.
func (r *report) times(b *testing.B, unit, what string, d traffic.Times) {
	d.Sorted()
	b.ReportMetric(traffic.Millis(d.Within(0.5)), unit+"-ms/median")
	b.ReportMetric(traffic.Millis(d.Within(1)), unit+"-ms/max")
	r.add("  %-66s %8s / %s", what, traffic.Ms(d.Within(0.5)), traffic.Ms(d.Within(1)))
}

// lab is a Consul, and programs that use it.
type lab struct {
	testing.TB
	*testenv.Consul
	direct string // address of Consul in its container, without Docker's proxy for published ports
	host   string // address of this machine for containers
}

func startLab(b *testing.B) *lab {
	b.Helper()
	address := testenv.FreeAddress(b, "127.0.0.1")
	c := testenv.StartConsul(b, testenv.ConsulOptions{
		Name: testenv.Name(b) + "-consul", Address: address, Docker: []string{"--publish", address + ":8500"},
		// All instances are at one agent, which accepts 200 connections from a host by default.
		Args: []string{"-dev", "-client=0.0.0.0", "-hcl=limits { http_max_conns_per_client = -1 }"},
	})
	c.Answers(b)
	ip, gateway, _ := strings.Cut(testenv.MustDocker(b, "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.Gateway}}{{end}}", c.Name), " ")
	b.ReportMetric(0, "ns/op")
	return &lab{b, c, ip + ":8500", gateway}
}

// program returns the path of a program named by an environment variable.
func program(b testing.TB, variable string) string {
	b.Helper()
	path := os.Getenv(variable)
	if path == "" {
		b.Fatalf("%s is not set: run make bench-groups, which builds the programs and sets it", variable)
	}
	return path
}

// process is a process started by the benchmark.
type process struct {
	*exec.Cmd
	log   testenv.Log
	ended chan struct{}
}

// start starts a program, and calls says with each line of its log. The program is told to end at the end of the benchmark.
func (l *lab) start(says func(line string), path string, args ...string) *process {
	l.Helper()
	p := &process{Cmd: exec.Command(path, args...), ended: make(chan struct{})}
	p.Env = append(os.Environ(), "CONSUL_HTTP_ADDR="+l.direct, "BERTH_LOG_FORMAT=json")
	p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} // it would outlive a benchmark that crashes
	read, write, err := os.Pipe()
	if err != nil {
		l.Fatal(err)
	}
	p.Stdout, p.Stderr = write, write
	if err := p.Start(); err != nil {
		l.Fatal(err)
	}
	write.Close()
	var reading sync.WaitGroup
	reading.Go(func() {
		defer read.Close()
		for lines := bufio.NewScanner(read); lines.Scan(); {
			if says != nil {
				says(lines.Text())
			}
			fmt.Fprintln(&p.log, lines.Text())
		}
	})
	go func() {
		_ = p.Wait() // its result does not matter
		close(p.ended)
	}()
	l.Cleanup(func() {
		p.stop()
		reading.Wait()
		if l.Failed() {
			l.Logf("%s: %s", strings.Join(p.Args, " "), testenv.LastLines(p.log.String(), 8))
		}
	})
	return p
}

// stop ends the process.
func (p *process) stop() {
	_ = p.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(20 * time.Second):
		_ = p.Process.Kill()
		<-p.ended
	}
}

// stopAll ends processes at the same time.
func stopAll(all []*process) {
	var each sync.WaitGroup
	for _, p := range all {
		each.Go(p.stop)
	}
	each.Wait()
}

// memory returns a process's memory in MB: all resident memory, and the part that is not backed by files.
type memory struct{ rss, anon float64 }

func (p *process) memory() (m memory) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Process.Pid))
	if err != nil {
		return m
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		kb, _ := strconv.ParseFloat(fields[1], 64)
		switch fields[0] {
		case "VmRSS:":
			m.rss = kb / 1024
		case "RssAnon:":
			m.anon = kb / 1024
		}
	}
	return m
}

// memories adds the median and the maximum of the memory of some processes.
func (r *report) memories(b *testing.B, unit, what string, all []*process) {
	var m []memory
	for _, p := range all {
		m = append(m, p.memory())
	}
	slices.SortFunc(m, func(x, y memory) int { return cmp.Compare(x.rss, y.rss) })
	median, most := m[len(m)/2], m[len(m)-1]
	b.ReportMetric(median.rss, unit+"-MB/median")
	r.add("  %-66s %8.1f / %.1f, of which RssAnon %.1f", what, median.rss, most.rss, median.anon)
}
