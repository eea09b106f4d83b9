//go:build e2e

package chatnginx

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/deploy/testenv"
)

// stack is one running compose project of compose.yml.
type stack struct {
	t       *testing.T
	project string
	env     []string
	web     string // address of nginx
	consul  string // address of Consul's HTTP API
}

// startStack brings the stack up on free ports with one chat, and waits until that answers through nginx. It is removed
// at the test's end.
func startStack(t *testing.T) *stack {
	t.Helper()
	for _, image := range []string{"BERTH", "CHAT", "NGINX", "REDIS", "CONSUL"} {
		testenv.Image(t, "IMAGE_"+image)
	}
	web, consul := testenv.FreePort(t), testenv.FreePort(t)
	s := &stack{t: t, project: testenv.Name(t), web: "127.0.0.1:" + web, consul: "127.0.0.1:" + consul}
	s.env = append(os.Environ(), "COMPOSE_PROJECT_NAME="+s.project, "BIND_ADDRESS=127.0.0.1", "HTTP_PORT="+web, "CONSUL_PORT="+consul)
	t.Cleanup(s.remove)
	s.compose("up", "-d")
	s.expectHosts(1)
	return s
}

func (s *stack) remove() {
	if s.t.Failed() {
		out, _ := s.command("logs", "--no-color", "--tail", "40", "templater", "registrar", "chat").CombinedOutput()
		s.t.Logf("logs of %s:\n%s", s.project, out)
	}
	if out, err := s.command("down", "--volumes", "--timeout", "1").CombinedOutput(); err != nil && !strings.Contains(string(out), "has active endpoints") {
		s.t.Errorf("remove %s: %v\n%s", s.project, err, out)
	}
}

// in is the same stack for a part of the test, whose failures are that part's.
func (s *stack) in(t *testing.T) *stack {
	part := *s
	part.t = t
	return &part
}

func (s *stack) command(args ...string) *exec.Cmd {
	tool := []string{"docker-compose"}
	if exec.Command("docker", "compose", "version").Run() == nil {
		tool = []string{"docker", "compose"}
	}
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

func (s *stack) docker(args ...string) string {
	s.t.Helper()
	out, err := testenv.Docker(args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// containers are the IDs of a service's running containers.
func (s *stack) containers(service string) []string {
	s.t.Helper()
	return strings.Fields(s.docker("ps", "--quiet", "--filter", "label=com.docker.compose.project="+s.project,
		"--filter", "label=com.docker.compose.service="+service))
}

// reloads is how often berth has reloaded nginx so far.
func (s *stack) reloads() int {
	s.t.Helper()
	return strings.Count(s.compose("logs", "--no-color", "templater"), `"msg":"proxy reloaded`)
}

var hostedBy = regexp.MustCompile(`Hosted by ([0-9a-zA-Z.-]+)`)

// hostOf is the host that a page says it is from.
func hostOf(resp *http.Response) (host, page string, err error) {
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", "", err
	}
	found := hostedBy.FindSubmatch(body)
	if resp.StatusCode != http.StatusOK || found == nil {
		return "", string(body), fmt.Errorf("%s: %.200s", resp.Status, body)
	}
	return string(found[1]), string(body), nil
}

// user is somebody's browser, more or less. It opens a connection for each request, so that all instances are met.
type user struct {
	s *stack
	*http.Client
}

func (s *stack) newUser() *user {
	s.t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return &user{s, &http.Client{Jar: jar, Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}}
}

// post sends a form and returns the page that comes of it.
func (u *user) post(path string, key, value string) (host, page string, err error) {
	resp, err := u.PostForm("http://"+u.s.web+path, url.Values{key: {value}})
	if err != nil {
		return "", "", err
	}
	return hostOf(resp)
}

// everywhere asks often enough for every instance to be asked, and returns the page of each by its host.
func (u *user) everywhere(path string) (map[string]string, error) {
	pages := map[string]string{}
	for range 20 {
		resp, err := u.Get("http://" + u.s.web + path)
		if err != nil {
			return nil, err
		}
		host, page, err := hostOf(resp)
		if err != nil {
			return nil, err
		}
		pages[host] = page
	}
	return pages, nil
}

// expectHosts waits until as many hosts answer, and they are the chat's containers.
func (s *stack) expectHosts(n int) {
	s.t.Helper()
	want := s.containers("chat")
	slices.Sort(want)
	if len(want) != n {
		s.t.Fatalf("there are %d containers of the chat, want %d", len(want), n)
	}
	u := s.newUser()
	testenv.Eventually(s.t, time.Minute, fmt.Sprintf("%d hosts answer", n), func() error {
		pages, err := u.everywhere("/")
		if err != nil {
			return err
		}
		if got := slices.Sorted(maps.Keys(pages)); !slices.Equal(got, want) {
			return fmt.Errorf("%v answer, the containers are %v", got, want)
		}
		return nil
	})
}

// expectPassing waits until Consul has as many instances of the chat that pass their checks, and no other.
func (s *stack) expectPassing(n int) {
	s.t.Helper()
	count := func(query string) (int, error) {
		resp, err := http.Get("http://" + s.consul + "/v1/health/service/chat" + query)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		var entries []struct {
			Checks []struct{ Name, Status string }
		}
		if err := json.NewDecoder(resp.Body).Decode(&entries); err != nil {
			return 0, err
		}
		for _, e := range entries {
			if len(e.Checks) < 2 {
				return 0, fmt.Errorf("an instance has no check of its own: %v", e.Checks)
			}
		}
		return len(entries), nil
	}
	testenv.Eventually(s.t, 30*time.Second, fmt.Sprintf("Consul has %d instances that pass", n), func() error {
		passing, err := count("?passing")
		if err != nil {
			return err
		}
		all, err := count("")
		if err == nil && (passing != n || all != n) {
			err = fmt.Errorf("of %d instances %d pass", all, passing)
		}
		return err
	})
}
