//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"berth/deploy/testenv"
)

// projectPrefix begins the names of the tests' compose projects; the PID of their process follows.
const projectPrefix = "berth-e2e-"

func TestMain(m *testing.M) {
	for _, name := range []string{"IMAGE_BERTH", "IMAGE_APP", "IMAGE_HAPROXY", "IMAGE_CONSUL", "DOCKER_GID"} {
		if os.Getenv(name) == "" {
			fmt.Fprintf(os.Stderr, "e2e: %s is not set: run the tests with make test, which builds the images and sets it\n", name)
			os.Exit(1)
		}
	}
	if err := removeLeftovers(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// removeLeftovers removes the projects of test processes that are gone: a run that crashed could not do it itself.
func removeLeftovers() error {
	label := "com.docker.compose.project"
	for _, kind := range []string{"container", "network", "volume"} {
		format := `{{.Label "` + label + `"}} {{.ID}}`
		args := []string{kind, "ls", "--format", format, "--filter", "label=" + label}
		if kind == "container" {
			args = append(args, "--all")
		}
		if kind == "volume" {
			args[3] = `{{.Label "` + label + `"}} {{.Name}}`
		}
		out, err := exec.Command("docker", args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, out)
		}
		for line := range strings.Lines(string(out)) {
			project, id, _ := strings.Cut(strings.TrimSpace(line), " ")
			rest, ours := strings.CutPrefix(project, projectPrefix)
			number, _, _ := strings.Cut(rest, "-")
			pid, err := strconv.Atoi(number)
			if !ours || err != nil || syscall.Kill(pid, 0) != syscall.ESRCH {
				continue
			}
			remove := []string{kind, "rm", id}
			if kind == "container" {
				remove = []string{kind, "rm", "--force", "--volumes", id}
			}
			if out, err := exec.Command("docker", remove...).CombinedOutput(); err != nil && !stuck(id, out) {
				return fmt.Errorf("docker %s: %w: %s", strings.Join(remove, " "), err, out)
			}
		}
	}
	return nil
}

// stuck says whether Docker does not remove a network though nothing is connected to it any more. Docker 20.10 loses
// count of a network's endpoints now and then, when many containers start and stop at once; its restart helps.
func stuck(network string, said []byte) bool {
	connected, err := exec.Command("docker", "network", "inspect", "--format", "{{len .Containers}}", network).Output()
	return err == nil && strings.TrimSpace(string(connected)) == "0" && bytes.Contains(said, []byte("has active endpoints"))
}

// startLoad sends 500 requests per second, half of them over kept connections and half over new ones.
func startLoad(t testing.TB, s *stack) *testenv.Load {
	t.Helper()
	return testenv.StartLoad(t, s.web, 500, testenv.Kept, testenv.Fresh)
}

// stack is one running compose project of deploy/compose.yml.
type stack struct {
	t       testing.TB
	project string
	env     []string
	web     string // address of HAProxy's frontend
	consul  string // address of Consul's HTTP API
	stats   string // address of HAProxy's statistics
}

var stacks atomic.Int64

// startStack brings the stack up on free ports, with environment variables that compose.yml knows, and waits until one
// app answers through HAProxy. It is removed at the test's end.
func startStack(t testing.TB, env ...string) *stack {
	t.Helper()
	s := &stack{t: t, project: fmt.Sprintf("%s%d-%d", projectPrefix, os.Getpid(), stacks.Add(1))}
	ports := freePorts(t, 3)
	s.web, s.consul, s.stats = "127.0.0.1:"+ports[0], "127.0.0.1:"+ports[1], "127.0.0.1:"+ports[2]
	s.env = append(os.Environ(), "COMPOSE_PROJECT_NAME="+s.project, "BIND_ADDRESS=127.0.0.1",
		"HTTP_PORT="+ports[0], "CONSUL_PORT="+ports[1], "STATS_PORT="+ports[2])
	s.env = append(s.env, env...)
	t.Cleanup(s.remove)
	s.compose("up", "-d")
	s.eventually(time.Minute, "one app answers", func() error { return s.expectHosts(1) })
	return s
}

// in is the same stack for a part of the test, whose failures are that part's.
func (s *stack) in(t testing.TB) *stack {
	part := *s
	part.t = t
	return &part
}

func (s *stack) remove() {
	if s.t.Failed() {
		s.t.Logf("logs of %s:\n%s", s.project, s.try("logs", "--no-color", "--tail", "100", "registrar", "templater"))
		s.t.Logf("requests that HAProxy did not get an answer to:\n%s", lastLines(grep(unanswered, s.try("logs", "--no-color", "haproxy")), 30))
	}
	if out, err := s.command("down", "--volumes", "--remove-orphans", "--timeout", "1").CombinedOutput(); err != nil && !stuck(s.project+"_default", out) {
		s.t.Errorf("remove %s: %v\n%s", s.project, err, out)
	}
}

func (s *stack) command(args ...string) *exec.Cmd {
	tool := []string{"docker-compose"}
	if exec.Command("docker", "compose", "version").Run() == nil {
		tool = []string{"docker", "compose"}
	}
	tool = append(tool, "-f", filepath.Join("..", "compose.yml"))
	cmd := exec.Command(tool[0], append(tool[1:], args...)...)
	cmd.Env = s.env
	return cmd
}

// compose runs a compose command, and ends the test if that fails.
func (s *stack) compose(args ...string) string {
	s.t.Helper()
	out, err := s.command(args...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("compose %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (s *stack) try(args ...string) string {
	out, _ := s.command(args...).CombinedOutput()
	return string(out)
}

// scale sets the number of apps, and returns when compose is done with that.
func (s *stack) scale(n int) {
	s.t.Helper()
	s.compose("up", "-d", "--no-recreate", "--scale", fmt.Sprint("app=", n), "app")
}

// docker runs a docker command, and ends the test if that fails.
func (s *stack) docker(args ...string) string {
	s.t.Helper()
	out, err := exec.Command("docker", args...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// run starts a container that compose knows nothing of, on the stack's network. It is removed at the test's end.
func (s *stack) run(args ...string) string {
	s.t.Helper()
	id := s.docker(append([]string{"run", "--detach", "--network", s.project + "_default"}, args...)...)
	s.t.Cleanup(func() { _ = exec.Command("docker", "rm", "--force", "--volumes", id).Run() }) // it may be gone already
	return id
}

// containers are the IDs of a service's running containers.
func (s *stack) containers(service string) []string {
	s.t.Helper()
	return strings.Fields(s.compose("ps", "--quiet", service))
}

// hosts asks the web frontend often enough for every server to be asked, and returns the names of those that answered.
func (s *stack) hosts() ([]string, error) {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	seen := map[string]bool{}
	for range 20 {
		host, err := get(client, "http://"+s.web+"/")
		if err != nil {
			return nil, err
		}
		seen[host] = true
	}
	var out []string
	for h := range seen {
		out = append(out, h)
	}
	slices.Sort(out)
	return out, nil
}

// expectHosts is nil when exactly n different hosts answer.
func (s *stack) expectHosts(n int) error {
	hosts, err := s.hosts()
	if err == nil && len(hosts) != n {
		err = fmt.Errorf("%d hosts answer, want %d: %v", len(hosts), n, hosts)
	}
	return err
}

// expectServers is nil when HAProxy has exactly n servers for the app that may get requests.
func (s *stack) expectServers(n int) error {
	resp, err := http.Get("http://" + s.stats + "/stats;csv")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	rows, err := csv.NewReader(resp.Body).ReadAll()
	if err != nil || resp.StatusCode != http.StatusOK {
		return fmt.Errorf("statistics of HAProxy: %s, %v", resp.Status, err)
	}
	var servers []string
	for _, row := range rows {
		if status := row[slices.Index(rows[0], "status")]; row[0] == "app" && row[1] != "BACKEND" && status != "MAINT" {
			servers = append(servers, row[1]+" "+status)
		}
	}
	if len(servers) != n {
		return fmt.Errorf("HAProxy has %d servers, want %d: %v", len(servers), n, servers)
	}
	return nil
}

// get asks the demo app through HAProxy and returns the host that answered.
func get(client *http.Client, url string) (string, error) {
	resp, err := client.Get(url)
	if err != nil {
		return "", err
	}
	return testenv.Host(resp)
}

// instances are the containers that Consul's catalog has instances of a service for.
func (s *stack) instances(service string) ([]string, error) {
	resp, err := http.Get("http://" + s.consul + "/v1/health/service/" + service + "?passing")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var entries []struct {
		Service struct{ Meta map[string]string }
	}
	if err := json.NewDecoder(resp.Body).Decode(&entries); err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Service.Meta["berth-container"])
	}
	slices.Sort(out)
	return out, nil
}

// expectCatalog is nil when Consul has exactly these containers as instances of the service app.
func (s *stack) expectCatalog(containers []string) error {
	got, err := s.instances("app")
	if err != nil {
		return err
	}
	want := slices.Sorted(slices.Values(containers))
	if !slices.Equal(got, want) {
		return fmt.Errorf("consul has %.12s, want %.12s", got, want)
	}
	return nil
}

// eventually waits until f returns nil and says how long that took. It ends the test after the time given.
func (s *stack) eventually(within time.Duration, what string, f func() error) time.Duration {
	s.t.Helper()
	start := time.Now()
	for {
		err := f()
		took := time.Since(start)
		if err == nil {
			return took
		}
		if took > within {
			s.t.Fatalf("not within %s: %s: %v", within, what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// logged waits until the logs of a service contain a text.
func (s *stack) logged(service, text string) {
	s.t.Helper()
	s.eventually(20*time.Second, service+" logs "+strconv.Quote(text), func() error {
		if out := s.compose("logs", "--no-color", service); !strings.Contains(out, text) {
			return fmt.Errorf("the log ends with\n%s", lastLines(out, 20))
		}
		return nil
	})
}

// unanswered is a request in HAProxy's log, after whose times there is a status of 5xx, or -1 for none.
var unanswered = regexp.MustCompile(`\d (5\d\d|-1) \d+ `)

func grep(what *regexp.Regexp, s string) string {
	var found strings.Builder
	for line := range strings.Lines(s) {
		if what.MatchString(line) {
			found.WriteString(line)
		}
	}
	return found.String()
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func freePorts(t testing.TB, n int) []string {
	t.Helper()
	var ports []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_, port, _ := net.SplitHostPort(l.Addr().String())
		ports = append(ports, port)
	}
	return ports
}

// output runs a program for at most so long, and returns its standard error and exit code.
func output(t *testing.T, within time.Duration, name string, args ...string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); ctx.Err() != nil {
		t.Fatalf("%s %s did not end within %s: %v\n%s", name, strings.Join(args, " "), within, err, out.String())
	}
	return out.String(), cmd.ProcessState.ExitCode()
}
