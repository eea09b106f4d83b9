//go:build e2e

package bench

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/deploy/testenv"
	"berth/deploy/testenv/traffic"
)

const (
	servers   = 5
	rolls     = 2
	rate      = 200 // requests per second
	drainTime = 2 * time.Second
)

// rolled measures a rolling change of web servers behind a HAProxy under load.
func rolled(b *testing.B, r *report) {
	l := startLab(b)
	haproxy := l.startHAProxy(b)
	dir := testenv.Dir(b)
	template := testenv.File(b, dir, "in", `greeting = "{{ cfgOrDefault "greeting" "none" }}"`)
	var all []*process
	for range servers {
		port := testenv.FreePort(b)
		all = append(all, l.start(nil, "/usr/bin/env", "PORT="+port, program(b, "BERTH"), "service", "--name", "app", "--id", "app-"+port,
			"--address", l.host, "--port", port, "--meta", "route_path=/", "--drain-time", drainTime.String(),
			"--render", template+":"+filepath.Join(dir, port), "--", program(b, "DEMO_APP")))
	}
	testenv.Eventually(b, time.Minute, "HAProxy has all servers", func() error {
		entries, _, err := l.Health().Service("app", "", true, nil)
		if err == nil && len(entries) != servers {
			err = fmt.Errorf("%d are registered", len(entries))
		}
		if err == nil {
			_, err = testenv.AskApp("http://" + haproxy + "/")
		}
		return err
	})
	load := traffic.ToApp(b, haproxy, rate, traffic.Kept, traffic.Fresh)
	own := ownTimes(b)
	var each, total traffic.Times
	spans := map[string]traffic.Times{}
	for n := range rolls {
		began := time.Now()
		cmd := exec.Command(program(b, "BERTH"), "config", "apply", "app", "-", "--wait", "90s", "--consul-address", "http://"+l.direct)
		cmd.Stdin = strings.NewReader(fmt.Sprintf("greeting = \"roll %d\"\n", n))
		out, err := cmd.CombinedOutput()
		if err != nil {
			b.Fatalf("berth config apply --wait: %v: %s", err, out)
		}
		took := time.Since(began)
		total = append(total, took)
		each = append(each, took/servers-drainTime-own.Within(0.5))
		var turns []turn
		for _, p := range all {
			turns = append(turns, readTurn(b, p, began))
		}
		slices.SortFunc(turns, func(x, y turn) int { return x.applying.Compare(y.applying) })
		before := began
		for i, t := range turns {
			name := "the one before has applied → takes its turn"
			if i == 0 {
				name = "begin of the command → the first one takes its turn"
			}
			for _, s := range []struct {
				name     string
				from, to time.Time
			}{
				{name, before, t.applying},
				{"takes its turn → its process has ended (with the drain time)", t.applying, t.ended},
				{"ended → started again", t.ended, t.started},
				{"started → applied: ready and back in service", t.started, t.applied},
			} {
				spans[s.name] = append(spans[s.name], s.to.Sub(s.from))
			}
			before = t.applied
		}
		spans["the last one has applied → end of the command"] = append(spans["the last one has applied → end of the command"], began.Add(took).Sub(before))
	}
	requests := load.Finish()
	requests.ExpectNoneFailed(b, "rolling changes")
	stopAll(all)
	b.ReportMetric(float64(requests.Failed()), "failed")
	r.add("\nberth config apply --wait, rolling over %d web servers behind HAProxy, %d times, under %d requests/s. In ms, median / max", servers, rolls, rate)
	r.add("  failed requests: %d of %d: %s", requests.Failed(), requests.Sent(), requests)
	r.times(b, "roll", "the whole command", total)
	r.times(b, "own", "a server alone: to end and to accept again", own)
	r.times(b, "beyond", fmt.Sprintf("per instance beyond the drain time of %v and that", drainTime), each)
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for name := range spans {
			if !yield(name) {
				return
			}
		}
	}) {
		d := spans[name].Sorted()
		r.add("    %-64s %8s / %s", name, traffic.Ms(d.Within(0.5)), traffic.Ms(d.Within(1)))
	}
}

// startHAProxy starts a HAProxy run by berth, and returns its address.
func (l *lab) startHAProxy(b *testing.B) string {
	b.Helper()
	id := testenv.Run(b, "--label", "SERVICE_IGNORE=1", "--volume", program(b, "BERTH")+":/usr/local/bin/berth:ro", "--user", "0:0",
		"--tmpfs", "/etc/haproxy", "--tmpfs", "/run/haproxy", "--env", "CONSUL_HTTP_ADDR="+l.direct, "--entrypoint", "berth",
		testenv.Image(b, "IMAGE_HAPROXY"), "templater", "--listen", "none", "--", "haproxy", "-W", "-db")
	return testenv.MustDocker(b, "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", id) + ":8080"
}

// ownTimes returns how long a server takes to end after SIGTERM plus to accept connections after its start.
func ownTimes(b *testing.B) (took traffic.Times) {
	b.Helper()
	for range 10 {
		address := testenv.FreeAddress(b, "127.0.0.1")
		cmd := exec.Command(program(b, "DEMO_APP"))
		cmd.Env = append(os.Environ(), "PORT="+testenv.Port(address))
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		began := time.Now()
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		for {
			c, err := net.Dial("tcp", address)
			if err == nil {
				c.Close()
				break
			} else if time.Since(began) > 10*time.Second {
				b.Fatal(err)
			}
			time.Sleep(200 * time.Microsecond)
		}
		started := time.Since(began)
		began = time.Now()
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			b.Fatal(err)
		}
		took = append(took, started+time.Since(began))
	}
	return took.Sorted()
}

// turn holds the times of an instance's steps, from its log.
type turn struct{ applying, ended, started, applied time.Time }

func readTurn(b *testing.B, p *process, since time.Time) (t turn) {
	b.Helper()
	app := filepath.Base(program(b, "DEMO_APP"))
	for line := range strings.Lines(p.log.String()) {
		var e struct {
			Time time.Time
			Msg  string
		}
		if json.Unmarshal([]byte(line), &e) != nil || e.Time.Before(since) {
			continue
		}
		switch {
		case strings.HasPrefix(e.Msg, "applying a change"):
			t.applying = e.Time
		case e.Msg == app+" ended":
			t.ended = e.Time
		case e.Msg == app+" started":
			t.started = e.Time
		case strings.HasPrefix(e.Msg, "applied a change"):
			t.applied = e.Time
		}
	}
	if t.applying.IsZero() || t.ended.IsZero() || t.started.IsZero() || t.applied.IsZero() {
		b.Fatalf("an instance has not done it all: %+v\n%s", t, p.log.String())
	}
	return t
}
