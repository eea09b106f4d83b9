//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/deploy/testenv"
	"berth/deploy/testenv/traffic"
)

// startLoad sends 500 requests per second, half of them over kept connections and half over new ones.
func startLoad(t testing.TB, s *stack) *traffic.Load {
	t.Helper()
	return traffic.ToApp(t, s.web, 500, traffic.Kept, traffic.Fresh)
}

// stack is a running compose project of deploy/compose.yml.
type stack struct {
	*testenv.Compose
	web    string // address of HAProxy's frontend
	consul string // address of Consul's HTTP API
	stats  string // address of HAProxy's statistics
	page   string // address of the templater's page
}

// startStack starts the stack on free ports, with environment variables of compose.yml, and waits until one app answers
// through HAProxy. It is removed at the end of the test.
func startStack(t testing.TB, env ...string) *stack {
	t.Helper()
	s := newStack(t, "", env...)
	s.Do("up", "-d")
	s.Eventually(time.Minute, "one app answers", func() error { return s.expectHosts(1) })
	return s
}

// newStack returns a stack that is not started. services is added to the services of compose.yml.
func newStack(t testing.TB, services string, env ...string) *stack {
	t.Helper()
	return newStackOf(t, testenv.ComposeOptions{Env: env}, services)
}

// newStackOf is newStack with other options; their files follow the stack's own.
func newStackOf(t testing.TB, o testenv.ComposeOptions, services string) *stack {
	t.Helper()
	for _, variable := range []string{"IMAGE_BERTH", "IMAGE_APP", "IMAGE_HAPROXY", "IMAGE_CONSUL", "DOCKER_GID"} {
		testenv.Image(t, variable)
	}
	files := []string{filepath.Join("..", "compose.yml")}
	if services != "" {
		files = append(files, testenv.File(t, testenv.Dir(t), "more.yml", "services:\n"+services))
	}
	http, consul, stats, page := testenv.FreePort(t), testenv.FreePort(t), testenv.FreePort(t), testenv.FreePort(t)
	s := &stack{web: "127.0.0.1:" + http, consul: "127.0.0.1:" + consul, stats: "127.0.0.1:" + stats, page: "127.0.0.1:" + page}
	o.Files = append(files, o.Files...)
	o.Env = append([]string{"BERTH_LOG_FORMAT=json", "HTTP_PORT=" + http, "CONSUL_PORT=" + consul, "STATS_PORT=" + stats, "PAGE_PORT=" + page}, o.Env...)
	o.Show = []string{"registrar", "templater"}
	s.Compose = testenv.NewCompose(t, o)
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := s.Try("logs", "--no-color", "haproxy")
			t.Logf("requests that HAProxy did not get an answer to:\n%s", testenv.LastLines(grep(unanswered, out), 30))
		}
	})
	return s
}

// in is the same stack for a subtest, which receives the failures.
func (s *stack) in(t testing.TB) *stack {
	part := *s
	part.Compose = s.In(t)
	return &part
}

// scale sets the number of apps, and returns when compose is done.
func (s *stack) scale(n int) {
	s.Helper()
	s.Scale("app", n)
}

// expectHosts returns nil if exactly n different hosts answer.
func (s *stack) expectHosts(n int) error { return testenv.ExpectHosts(s.web, n) }

// expectServers returns nil if HAProxy has exactly n usable servers for the app.
func (s *stack) expectServers(n int) error { return s.expectServersOf("app", n) }

func (s *stack) expectServersOf(service string, n int) error {
	rows, err := testenv.HAProxyStats("http://" + s.stats + "/stats;csv")
	if err != nil {
		return err
	}
	var servers []string
	for _, row := range rows {
		if row["pxname"] == service && row["svname"] != "BACKEND" && row["status"] != "MAINT" {
			servers = append(servers, row["svname"]+" "+row["status"])
		}
	}
	if len(servers) != n {
		return fmt.Errorf("HAProxy has %d servers for %s, want %d: %v", len(servers), service, n, servers)
	}
	return nil
}

// instances returns the containers with a passing instance of a service in Consul's catalog.
func (s *stack) instances(service string) (containers []string, err error) {
	var entries []struct {
		Service struct{ Meta map[string]string }
	}
	err = testenv.GetJSON("http://"+s.consul+"/v1/health/service/"+service+"?passing", &entries)
	for _, e := range entries {
		containers = append(containers, e.Service.Meta["berth-container"])
	}
	slices.Sort(containers)
	return containers, err
}

// expectCatalog returns nil if Consul has exactly these containers as instances of the service app.
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

// unanswered matches a request in HAProxy's log with a status of 5xx, or -1 for none, after its times.
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

// output runs a program for at most the given time, and returns its standard error and exit code.
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
