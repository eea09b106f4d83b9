//go:build e2e

package onecontainer

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"berth/deploy/testenv"
	"berth/deploy/testenv/traffic"
)

// rate is the request rate during changes, half over kept and half over new connections.
const rate = 200

// The steps of the README, one after the other on the same stack.
func TestE2EOneContainerExample(t *testing.T) {
	s := startStack(t)
	lb, webs := s.Containers("lb")[0], s.Containers("web")

	t.Run("start", func(t *testing.T) {
		s := s.in(t)
		s.expectProcesses(lb)
		s.expectLockedDown(lb)
		log := s.expectLog(lb)
		written, started := strings.Index(log, "HAProxy will start with it"), strings.Index(log, "haproxy started")
		if written < 0 || started < written {
			t.Errorf("HAProxy was not started after its configuration was there:\n%s", log)
		}
	})

	t.Run("a container that compose knows nothing of", func(t *testing.T) {
		s := s.in(t)
		s.underLoad(func(l *traffic.Load) {
			third := s.Docker("run", "--detach", "--name", s.Project+"-web3", "--network", s.Project+"_default",
				"--env", "SERVICE_NAME=web", testenv.Image(t, "IMAGE_APP"))
			defer s.Docker("rm", "--force", third)
			s.answers(l, append(webs, third)...)
			s.Docker("stop", third)
			s.expectServers(2)
			s.answers(l, webs...)
		})
		if log := s.expectLog(lb); strings.Contains(log, "Reloading") {
			t.Errorf("it took a reload:\n%s", log)
		}
	})

	t.Run("a web server is killed", func(t *testing.T) {
		s := s.in(t)
		s.underLoad(func(l *traffic.Load) {
			s.answers(l, webs...)
			s.Docker("kill", webs[0])
			s.expectServers(1)
			s.Docker("start", webs[0])
			s.answers(l, webs...)
		})
		s.expectLog(lb)
	})

	t.Run("scale", func(t *testing.T) {
		s := s.in(t)
		s.underLoad(func(l *traffic.Load) {
			s.Do("up", "-d", "--no-recreate", "--scale", "web=4")
			s.answers(l, s.Containers("web")...)
			s.Do("up", "-d", "--no-recreate", "--scale", "web=2")
			s.expectServers(2)
		})
		s.expectLog(lb)
	})

	t.Run("Consul is restarted", func(t *testing.T) {
		s := s.in(t)
		s.underLoad(func(l *traffic.Load) {
			s.Do("restart", "consul")
			s.Do("up", "-d", "--no-recreate", "--scale", "web=3")
			s.answers(l, s.Containers("web")...)
			s.Do("up", "-d", "--no-recreate", "--scale", "web=2")
			s.expectServers(2)
		})
		s.expectLog(lb, "requests to Consul fail")
	})

	t.Run("HAProxy is killed", func(t *testing.T) {
		s := s.in(t)
		s.expectFile(lb, 2)
		s.Docker("exec", lb, "sh", "-c", "kill -9 "+strconv.Itoa(s.last(lb, "haproxy started").PID))
		s.Eventually(20*time.Second, "both answer", func() error { return s.expectHosts(2) })
		s.expectProcesses(lb)
		if n := s.Docker("inspect", "--format", "{{.RestartCount}}", lb); n != "0" {
			t.Errorf("the container was restarted %s times", n)
		}
		s.expectLog(lb, "haproxy does not run, starting it again")
	})

	for _, round := range []string{"stop and start", "stop and start again"} {
		t.Run(round, func(t *testing.T) {
			s := s.in(t)
			s.stopUnderLoad(lb, webs)
			s.start(lb)
			s.expectProcesses(lb)
			s.expectLog(lb)
		})
	}

	t.Run("stop all of it", func(t *testing.T) {
		s := s.in(t)
		s.Do("stop")
		s.expectEnded(lb)
		s.expectLog(lb)
	})
}

// Only Docker knows the addresses of the web servers.
func TestE2EOneContainerExampleHasNoAddress(t *testing.T) {
	address := regexp.MustCompile(`\b\d{1,3}(\.\d{1,3}){3}\b|\bMYHOST\b|\bHOST_IP\b`)
	files, err := os.ReadDir(".")
	if err != nil || len(files) < 6 {
		t.Fatalf("files: %v, %v", files, err)
	}
	for _, f := range files {
		if strings.HasSuffix(f.Name(), "_test.go") {
			continue
		}
		text, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range address.FindAllString(string(text), -1) {
			// Ports are published on this host's loopback address, and Consul listens on all addresses of its container.
			if a, err := netip.ParseAddr(found); err == nil && (a.IsLoopback() || a.IsUnspecified()) {
				continue
			}
			t.Errorf("%s has the address %s", f.Name(), found)
		}
	}
}

// stack is the example as its own compose project.
type stack struct {
	*testenv.Compose
	web, stats string // addresses
	logged     int    // length of the log that was already checked
}

// startStack builds and starts the example with the README's command, on its own ports.
func startStack(t *testing.T) *stack {
	t.Helper()
	s := &stack{web: testenv.FreeAddress(t, "127.0.0.1"), stats: testenv.FreeAddress(t, "127.0.0.1")}
	s.Compose = testenv.NewCompose(t, testenv.ComposeOptions{
		Command: []string{"./compose.sh"},
		Env:     []string{"BERTH_LOG_FORMAT=json", "CONSUL_PORT=" + testenv.FreePort(t), "HTTP_PORT=" + testenv.Port(s.web), "STATS_PORT=" + testenv.Port(s.stats)},
		Down:    []string{"--rmi", "local"},
		Show:    []string{"lb"},
	})
	s.Do("up", "-d", "--build")
	s.Eventually(time.Minute, "both answer", func() error { return s.expectHosts(2) })
	return s
}

// in is the same stack for a subtest, which receives the failures.
func (s *stack) in(t *testing.T) *stack {
	s.Compose = s.In(t)
	return s
}

// underLoad sends requests while f runs and fails if one fails.
func (s *stack) underLoad(f func(l *traffic.Load)) {
	s.Helper()
	l := traffic.ToApp(s, s.web, rate, traffic.Kept, traffic.Fresh)
	f(l)
	r := l.Finish()
	s.Log(r)
	r.ExpectNoneFailed(s, s.Name())
}

// answers waits until each of the containers has answered a request sent from now on.
func (s *stack) answers(l *traffic.Load, containers ...string) {
	s.Helper()
	now := time.Now()
	s.Eventually(20*time.Second, "they answer", func() error { return l.ExpectAnswers(now, containers...) })
}

// slow is how many requests are in flight when the load balancer is stopped, and delay how long they take: long enough for
// the load to begin, and less than the stopTimeout after which HAProxy ends them.
const (
	slow        = 10
	delay       = 5 * time.Second
	stopTimeout = 8 * time.Second
)

// stopUnderLoad stops the load balancer while slow requests are in flight and others arrive.
func (s *stack) stopUnderLoad(lb string, webs []string) {
	s.Helper()
	answered := make(chan error, slow)
	for range slow {
		go func() {
			_, err := testenv.AskApp(fmt.Sprintf("http://%s/?delay=%s", s.web, delay))
			answered <- err
		}()
	}
	s.Eventually(delay, "they are in flight", func() error {
		row, err := s.row("web", "BACKEND")
		if err == nil && row["scur"] != strconv.Itoa(slow) {
			err = fmt.Errorf("%s are", row["scur"])
		}
		return err
	})
	l := traffic.ToApp(s, s.web, rate, traffic.Kept, traffic.Fresh)
	s.Eventually(5*time.Second, "the load begins", func() error {
		if l.Of(webs[0]).First.IsZero() && l.Of(webs[1]).First.IsZero() {
			return errors.New("no answer yet")
		}
		return nil
	})
	if n := len(answered); n > 0 {
		s.Fatalf("%d of the slow requests have ended already", n)
	}

	began := time.Now()
	s.Docker("stop", "--time", "15", lb)
	all := time.Since(began)
	s.expectEnded(lb)
	for range slow {
		if err := <-answered; err != nil {
			s.Errorf("a request in flight was not answered: %v", err)
		}
	}
	l.Finish() // nothing answers after the stop
	took := s.last(lb, "berth stopped").Time.Sub(began)
	s.Logf("berth and HAProxy ended after %s, docker stop returned after %s", took.Round(time.Millisecond), all.Round(time.Millisecond))
	if took < 0 || took >= stopTimeout {
		s.Errorf("they ended after %s, and not with the requests in flight, which take %s", took, delay)
	}
}

// start restarts the load balancer and waits until all its parts work.
func (s *stack) start(lb string) {
	s.Helper()
	began := time.Now()
	s.Docker("start", lb)
	s.Eventually(20*time.Second, "both answer", func() error { return s.expectHosts(2) })
	s.Eventually(20*time.Second, "berth registers", func() error {
		if s.last(lb, "Consul answers").Time.Before(began) {
			return errors.New("it has not come to it")
		}
		return nil
	})
}

func (s *stack) expectEnded(lb string) {
	s.Helper()
	if got := s.Docker("inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", lb); got != "exited 0" {
		s.Errorf("the container is: %s, want exited 0", got)
	}
}

// expectHosts returns nil if exactly n different web servers answer.
func (s *stack) expectHosts(n int) error { return testenv.ExpectHosts(s.web, n) }

// expectServers waits until HAProxy has exactly n usable servers.
func (s *stack) expectServers(n int) {
	s.Helper()
	s.Eventually(20*time.Second, fmt.Sprintf("HAProxy has %d servers", n), func() error {
		row, err := s.row("web", "BACKEND")
		if err == nil && row["act"] != strconv.Itoa(n) {
			err = fmt.Errorf("it has %s", row["act"])
		}
		return err
	})
}

// row is a line of HAProxy's statistics.
func (s *stack) row(proxy, server string) (map[string]string, error) {
	rows, err := testenv.HAProxyStats("http://" + s.stats + "/stats;csv")
	for _, row := range rows {
		if row["pxname"] == proxy && row["svname"] == server {
			return row, nil
		}
	}
	return nil, cmp.Or(err, fmt.Errorf("HAProxy has no %s in %s", server, proxy))
}

// process is a process of a container, with its numbers on this host.
type process struct{ pid, parent, state, name string }

func (s *stack) processes(id string) (all []process) {
	s.Helper()
	lines := strings.Split(s.Docker("top", id, "-o", "pid,ppid,stat,args"), "\n")
	for _, line := range lines[1:] {
		f := strings.Fields(line)
		all = append(all, process{f[0], f[1], f[2], f[3]})
	}
	return all
}

// expectProcesses waits for berth as process 1, berth, HAProxy's master and its worker, each a child of the previous one,
// and no other process: no supervisord, no shell, no zombie.
func (s *stack) expectProcesses(id string) {
	s.Helper()
	s.Eventually(10*time.Second, "its processes are berth and HAProxy", func() error {
		all := s.processes(id)
		parent := s.Docker("inspect", "--format", "{{.State.Pid}}", id)
		for i, want := range []string{"berth", "berth", "haproxy", "haproxy"} {
			at := slices.IndexFunc(all, func(p process) bool { return (i == 0 && p.pid == parent) || (i > 0 && p.parent == parent) })
			if at < 0 || all[at].name != want || strings.HasPrefix(all[at].state, "Z") || len(all) != 4 {
				return fmt.Errorf("they are %v; not so below %s", all, parent)
			}
			parent = all[at].pid
		}
		return nil
	})
}

// expectLockedDown checks that the container has no more rights than it needs.
func (s *stack) expectLockedDown(id string) {
	s.Helper()
	status := s.Docker("exec", id, "cat", "/proc/1/status")
	for _, want := range []string{`Uid:\s+99\s+99`, `CapEff:\s+0+\n`, `CapBnd:\s+0+\n`, `NoNewPrivs:\s+1`} {
		if !regexp.MustCompile(want).MatchString(status) {
			s.Errorf("process 1 is not %q:\n%s", want, status)
		}
	}
	if _, err := testenv.Docker("exec", id, "sh", "-c", "echo >/file"); err == nil {
		s.Error("the root filesystem can be written to")
	}
}

// expectFile waits until HAProxy would start with n servers.
func (s *stack) expectFile(id string, n int) {
	s.Helper()
	s.Eventually(20*time.Second, fmt.Sprintf("the configuration has %d servers", n), func() error {
		text, err := testenv.Docker("exec", id, "cat", "/etc/haproxy/haproxy.cfg")
		got := strings.Count(text, "\n    server ") - strings.Count(text, "\n    server again ") // HAProxy's own servers
		if err == nil && got != n {
			err = fmt.Errorf("it has %d:\n%s", got, text)
		}
		return err
	})
}

// entry is a line of berth's log.
type entry struct {
	Time           time.Time
	Msg, Container string
	PID            int
}

// last returns the last line of berth's log whose message has this beginning.
func (s *stack) last(id, msg string) (found entry) {
	s.Helper()
	for line := range strings.Lines(s.Docker("logs", id)) {
		var e entry
		if json.Unmarshal([]byte(line), &e) == nil && strings.HasPrefix(e.Msg, msg) {
			found = e
		}
	}
	if found.Msg == "" {
		s.Fatalf("berth's log does not say %q", msg)
	}
	return found
}

var (
	// complaint matches log lines of berth or HAProxy above a notice, and lines of a crash.
	complaint = regexp.MustCompile(`"level":"(WARN|ERROR)"|^\[(WARNING|ALERT|EMERG)\]|^berth: |panic|^goroutine `)
	// told matches HAProxy's warnings about ordered changes: servers that come, go or end. A departing server closes its
	// port before berth reports it, and HAProxy's check, one each second, may fall in between.
	told = regexp.MustCompile(`^\[WARNING\] +\(\d+\) : ((CLI : )?Server \S+ is (UP/READY \(leaving forced maintenance\)|going DOWN for maintenance)` +
		`|Server \S+ is DOWN, reason: Layer4 (connection problem|timeout)|Server \S+ was DOWN and now enters maintenance` +
		`|Proxy \S+ stopped|Exiting Master process|(Current|Former) worker \(\d+\) exited with code 0 |All workers exited\. Exiting\.\.\. \(0\))`)
)

// expectLog returns the log since the last call. It must contain each of the given texts and no other complaint.
func (s *stack) expectLog(id string, provoked ...string) string {
	s.Helper()
	all := s.Docker("logs", id)
	log := all[s.logged:]
	s.logged = len(all)
	for line := range strings.Lines(log) {
		isProvoked := slices.ContainsFunc(provoked, func(text string) bool { return strings.Contains(line, text) })
		if complaint.MatchString(line) && !told.MatchString(line) && !isProvoked && !s.isOfOthers(line) {
			s.Errorf("logged: %s", line)
		}
	}
	for _, text := range provoked {
		if !strings.Contains(log, text) {
			s.Errorf("the log does not say %q", text)
		}
	}
	return log
}

// isOfOthers reports whether a line concerns a foreign container on this host: berth sees all containers.
func (s *stack) isOfOthers(line string) bool {
	var e entry
	return json.Unmarshal([]byte(line), &e) == nil && e.Container != "" && !strings.HasPrefix(e.Container, s.Project)
}
