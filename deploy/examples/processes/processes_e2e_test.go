//go:build e2e

package processes

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/deploy/testenv"
)

// soon is the longest that anything here takes.
const soon = 30 * time.Second

// Two of each serve. Some are stopped, started and killed, and Consul forgets all of them.
func TestE2EProcesses(t *testing.T) {
	s := startStack(t)
	www := []int{s.start("www 20001"), s.start("www 20002")}
	data := []int{s.start("data 20101"), s.start("data 20102")}
	s.expectPIDs(www, data)
	s.expectServers("www-20001", "www-20002", "data-20101", "data-20102")

	t.Run("told to end", func(t *testing.T) {
		s := s.in(t)
		s.underLoad(func() {
			s.signal("TERM", www[0], data[0])
			s.expectEnded(www[0], data[0])
			s.expectPIDs(www[1:], data[1:])
		})
		s.expectRegistered("www-20002", "data-20102")
	})

	t.Run("started", func(t *testing.T) {
		s := s.in(t)
		s.underLoad(func() {
			www[0], data[0] = s.start("www 20003"), s.start("data 20103")
			s.expectPIDs(www, data)
		})
		s.expectRegistered("www-20002", "www-20003", "data-20102", "data-20103")
	})

	t.Run("killed", func(t *testing.T) {
		s := s.in(t)
		s.underLoad(func() {
			s.signal("KILL", www[0], data[0])
			s.expectServers("www-20002", "data-20102") // their TTL has expired
			s.expectPIDs(www[1:], data[1:])
		})
	})

	t.Run("Consul loses its state", func(t *testing.T) {
		s := s.in(t)
		service := s.service("--name www --port 20004", "www -register=false 20004")
		all := append(www[1:], service.child)
		s.expectPIDs(all, data[1:])
		s.underLoad(func() {
			s.signal("KILL", s.consul)
			s.expectEnded(s.consul)
			s.startConsul()
			s.expectRegistered("www-20002", s.hostname()+":www:20004", "data-20102")
			s.expectPIDs(append(all, s.start("www 20005")), data[1:]) // HAProxy follows the new state
		})
	})
}

// A program without knowledge of Consul, run by berth service.
func TestE2EService(t *testing.T) {
	s := startStack(t)
	www, data := s.start("www 20001"), s.start("data 20101")

	t.Run("told to end", func(t *testing.T) {
		s := s.in(t)
		service := s.service("--name www --port 20002", "www -register=false 20002")
		s.expectPIDs([]int{www, service.child}, []int{data})
		s.expectRegistered("www-20001", s.hostname()+":www:20002", "data-20101")
		s.underLoad(func() {
			s.signal("TERM", service.berth)
			testenv.Eventually(s, soon, "it is taken out of service", func() error {
				return expect(s.logged("out of service")["reason"], "the process was told to stop by SIGTERM")
			})
			s.expectEnded(service.berth, service.child)
			s.expectPIDs([]int{www}, []int{data})
		})
		s.expectRegistered("www-20001", "data-20101")
		s.expectCode(service.berth, "0")
	})

	t.Run("killed", func(t *testing.T) {
		s := s.in(t)
		service := s.service("--name www --port 20003 --id victim --ttl 3s", "www -register=false 20003")
		s.expectPIDs([]int{www, service.child}, []int{data})
		s.underLoad(func() {
			s.signal("KILL", service.child)
			s.expectEnded(service.berth)
			s.expectRegistered("www-20001", "data-20101")
		})
		s.expectCode(service.berth, "137")
	})

	// The process runs on without berth, but out of service. The next berth takes over its ID.
	t.Run("berth is killed", func(t *testing.T) {
		s := s.in(t)
		service := s.service("--name www --port 20004 --ttl 3s", "www -register=false 20004")
		s.expectPIDs([]int{www, service.child}, []int{data})
		s.underLoad(func() {
			s.signal("KILL", service.berth)
			s.expectServers("www-20001", "data-20101")
		})
		s.signal("TERM", service.child)
		s.expectEnded(service.child)
		service = s.service("--name www --port 20004 --ttl 3s", "www -register=false 20004")
		s.expectPIDs([]int{www, service.child}, []int{data})
	})
}

// run.sh starts everything and ends it in order.
func TestE2EProcessesRunScript(t *testing.T) {
	s := newStack(t, "sh", "-c", "cp -r /example/. /stack && exec /stack/run.sh")
	testenv.Eventually(s, soon, "two of each answer", func() error {
		www, data, err := s.pids()
		if err == nil && (len(www) != 2 || len(data) != 2) {
			err = fmt.Errorf("www %v, data %v answer", www, data)
		}
		return err
	})
	testenv.MustDocker(t, "stop", "--time", "30", s.id)
	out := testenv.MustDocker(t, "logs", s.id)
	if n := strings.Count(out, ": deregistered"); n != 4 {
		t.Errorf("%d of 4 processes deregistered", n)
	}
	if code := testenv.MustDocker(t, "inspect", "--format", "{{.State.ExitCode}}", s.id); code != "0" {
		t.Errorf("exit code %s", code)
	}
}

// stack is a container with several processes.
type stack struct {
	testing.TB
	id     string
	host   string // address of the container
	consul int    // its PID
	files  int    // output files of the processes so far
}

// newStack starts a container with this command. /opt has berth, data and www, /example this directory, and /stack is
// writable.
func newStack(t *testing.T, command ...string) *stack {
	t.Helper()
	image, bin := image(t), t.TempDir()
	build := exec.Command("go", "build", "-o", bin+"/", "berth/cmd/berth", "./data", "./www")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	here, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"--init", "--user", "0", "--stop-signal", "SIGTERM", "--workdir", "/stack",
		"--volume", bin + ":/opt/bin:ro", "--volume", here + ":/example:ro",
		"--env", "BIN=/opt/bin", "--env", "BERTH_LOG_FORMAT=json", "--env", "BIND_ADDRESS=0.0.0.0", image}
	s := &stack{TB: t, id: testenv.Run(t, append(args, command...)...)}
	s.host = testenv.MustDocker(t, "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", s.id)
	return s
}

// image is HAProxy's image with Consul.
func image(t *testing.T) string {
	t.Helper()
	return testenv.Build(t, "FROM "+testenv.Image(t, "IMAGE_CONSUL")+" AS consul\nFROM "+testenv.Image(t, "IMAGE_HAPROXY")+
		"\nCOPY --from=consul /bin/consul /usr/local/bin/consul\n")
}

// startStack starts Consul, berth and HAProxy with the README's commands.
func startStack(t *testing.T) *stack {
	t.Helper()
	s := newStack(t, "sh", "-c", "cp -r /example/. /stack && mkdir -p /stack/run && touch /stack/ready && exec sleep infinity")
	testenv.Eventually(s, soon, "the container is ready", func() error {
		return exec.Command("docker", "exec", s.id, "test", "-e", "/stack/ready").Run()
	})
	s.startConsul()
	s.run("/opt/bin/berth templater --template haproxy.cfg.ctmpl --haproxy-config run/haproxy.cfg" +
		" --haproxy-socket $PWD/run/master.sock -- haproxy -W -db")
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(testenv.MustDocker(t, "exec", s.id, "sh", "-c", "tail -n 40 /stack/*.log"))
		}
	})
	return s
}

func (s *stack) startConsul() {
	s.Helper()
	s.consul = s.run("consul agent -dev -client 0.0.0.0 -log-level warn")
	testenv.Eventually(s, soon, "Consul answers", func() error {
		var leader string
		return s.get(":8500/v1/status/leader", &leader)
	})
}

// in is the same stack for a subtest, which receives the failures.
func (s *stack) in(t *testing.T) *stack {
	part := *s
	part.TB = t
	return &part
}

// run starts a process and returns its PID in the container.
func (s *stack) run(command string) int {
	s.Helper()
	s.files++
	name := fmt.Sprintf("/stack/%s-%d", filepath.Base(s.Name()), s.files)
	// A shell waits for it, to avoid a zombie and to record its exit code.
	testenv.MustDocker(s, "exec", "--detach", s.id, "sh", "-c", fmt.Sprintf(
		"%s >%[2]s.log 2>&1 & pid=$!; echo $pid >%[2]s.new; mv %[2]s.new %[2]s.pid; wait $pid; echo $? >/stack/$pid.code", command, name))
	var pid int
	testenv.Eventually(s, soon, command+" is started", func() error {
		out, err := exec.Command("docker", "exec", s.id, "cat", name+".pid").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		pid, err = strconv.Atoi(strings.TrimSpace(string(out)))
		return err
	})
	return pid
}

// start starts one of the example's programs.
func (s *stack) start(command string) int { s.Helper(); return s.run("/opt/bin/" + command) }

// service is a program run by berth service: PIDs.
type service struct{ berth, child int }

func (s *stack) service(flags, command string) service {
	s.Helper()
	of := service{berth: s.run("/opt/bin/berth service " + flags + " -- /opt/bin/" + command)}
	testenv.Eventually(s, soon, "berth starts it", func() error {
		out, err := exec.Command("docker", "exec", s.id, "sh", "-c", fmt.Sprintf("cat /proc/%d/task/*/children", of.berth)).Output()
		if err != nil {
			return err
		}
		of.child, err = strconv.Atoi(strings.TrimSpace(string(out)))
		return err
	})
	return of
}

func (s *stack) signal(name string, pids ...int) {
	s.Helper()
	args := []string{"exec", s.id, "sh", "-c", `kill -s "$@"`, "sh", name}
	for _, pid := range pids {
		args = append(args, strconv.Itoa(pid))
	}
	testenv.MustDocker(s, args...)
}

func (s *stack) expectEnded(pids ...int) {
	s.Helper()
	testenv.Eventually(s, soon, "they have ended", func() error {
		for _, pid := range pids {
			if exec.Command("docker", "exec", s.id, "sh", "-c", fmt.Sprint("kill -0 ", pid)).Run() == nil {
				return fmt.Errorf("process %d runs", pid)
			}
		}
		return nil
	})
}

// expectCode waits for the exit code of a process started by run.
func (s *stack) expectCode(pid int, want string) {
	s.Helper()
	testenv.Eventually(s, soon, "its exit code is "+want, func() error {
		out, err := exec.Command("docker", "exec", s.id, "cat", fmt.Sprintf("/stack/%d.code", pid)).Output()
		return errors.Join(err, expect(strings.TrimSpace(string(out)), want))
	})
}

func (s *stack) hostname() string { return s.id[:12] }

// logged returns the last line in a berth's log whose message ends like this.
func (s *stack) logged(msg string) map[string]any {
	var last map[string]any
	for line := range strings.Lines(testenv.MustDocker(s, "exec", s.id, "sh", "-c", "cat /stack/*.log")) {
		var m map[string]any
		if json.Unmarshal([]byte(line), &m) == nil && strings.HasSuffix(fmt.Sprint(m["msg"]), " "+msg) {
			last = m
		}
	}
	return last
}

// answer is the example's answer.
type answer struct {
	WWW, Data struct{ PID, Port int }
}

// get sends a request to the container.
func (s *stack) get(url string, answer any) error {
	return testenv.GetJSON("http://"+s.host+url, answer)
}

// pids sends enough requests to reach each process, and returns which ones served a part.
func (s *stack) pids() (www, data []int, err error) {
	byWWW, byData := map[int]bool{}, map[int]bool{}
	for range 12 {
		var a answer
		if err := s.get(":8080/", &a); err != nil {
			return nil, nil, err
		}
		byWWW[a.WWW.PID], byData[a.Data.PID] = true, true
	}
	return slices.Sorted(maps.Keys(byWWW)), slices.Sorted(maps.Keys(byData)), nil
}

// expectPIDs waits until exactly these processes serve.
func (s *stack) expectPIDs(www, data []int) {
	s.Helper()
	www, data = slices.Sorted(slices.Values(www)), slices.Sorted(slices.Values(data))
	testenv.Eventually(s, soon, "these processes answer", func() error {
		gotWWW, gotData, err := s.pids()
		return errors.Join(err, expect(gotWWW, www), expect(gotData, data))
	})
}

// expectRegistered waits until the agent has exactly these instances, all passing.
func (s *stack) expectRegistered(ids ...string) {
	s.Helper()
	slices.Sort(ids)
	testenv.Eventually(s, soon, "registered are "+fmt.Sprint(ids), func() error {
		var services map[string]any
		var checks map[string]struct{ ServiceID, Status string }
		if err := errors.Join(s.get(":8500/v1/agent/services", &services), s.get(":8500/v1/agent/checks", &checks)); err != nil {
			return err
		}
		for id, c := range checks {
			if c.Status != "passing" {
				return fmt.Errorf("check %s of %s is %s", id, c.ServiceID, c.Status)
			}
		}
		return expect(slices.Sorted(maps.Keys(services)), ids)
	})
}

// expectServers waits until HAProxy's statistics show these servers.
func (s *stack) expectServers(names ...string) {
	s.Helper()
	slices.Sort(names)
	testenv.Eventually(s, soon, "HAProxy has "+fmt.Sprint(names), func() error {
		rows, err := testenv.HAProxyStats("http://" + s.host + ":8000/admin?stats;csv")
		var got []string
		for _, row := range rows {
			proxy, server := row["pxname"], row["svname"]
			if (proxy == "www" || proxy == "data") && server != "BACKEND" && !strings.HasPrefix(row["status"], "MAINT") {
				got = append(got, server)
			}
		}
		slices.Sort(got)
		return errors.Join(err, expect(got, names))
	})
}

func expect(got, want any) error {
	if fmt.Sprint(got) != fmt.Sprint(want) {
		return fmt.Errorf("it is %v, want %v", got, want)
	}
	return nil
}

// underLoad sends several requests at a time while f runs, and fails if one fails.
func (s *stack) underLoad(f func()) {
	s.Helper()
	const clients, pause = 4, 20 * time.Millisecond
	var (
		stop  = make(chan struct{})
		done  sync.WaitGroup
		mu    sync.Mutex
		sent  int
		fails []error
	)
	for range clients {
		done.Go(func() {
			for {
				var a answer
				began := time.Now()
				err := s.get(":8080/", &a)
				mu.Lock()
				sent++
				if err != nil {
					fails = append(fails, fmt.Errorf("at %s: %w", began.Format("15:04:05.000"), err))
				}
				mu.Unlock()
				select {
				case <-stop:
					return
				case <-time.After(pause):
				}
			}
		})
	}
	func() {
		defer done.Wait()
		defer close(stop)
		f()
	}()
	s.Logf("%d of %d requests failed", len(fails), sent)
	if len(fails) > 0 || sent < clients {
		s.Errorf("%d of %d requests failed, want 0 of some: %v", len(fails), sent, errors.Join(fails[:min(len(fails), 5)]...))
	}
}
