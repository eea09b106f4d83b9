//go:build e2e

package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"berth/deploy/testenv"
	"berth/deploy/testenv/traffic"
)

// nginxStack is Consul, the registrar, nginx and the templater in separate containers; nginx and the templater share one
// where berth runs nginx itself.
type nginxStack struct {
	testing.TB
	name  string
	web   string // address of nginx
	proxy string // nginx's container
	berth string // berth's container, which may be the same
	apps  []string
}

// accesses are log lines of successful requests.
var accesses = regexp.MustCompile(`(?m)^.*" 200 .*\n`)

// The ways for berth to reach nginx.
const (
	superviseIt = "supervised"
	sharePIDs   = "process namespace"
	signalIt    = "Docker signal"
)

// startNginx starts a stack with one application.
func startNginx(t testing.TB, image, way string, options ...string) *nginxStack {
	t.Helper()
	withBerth := ""
	if way == superviseIt {
		withBerth = testenv.WithBerth(t, image) // removed after its containers
	}
	name := testenv.Name(t)
	consul := testenv.FreeAddress(t, "127.0.0.1")
	s := &nginxStack{TB: t, name: name, web: testenv.FreeAddress(t, "127.0.0.1")}
	s.Docker("network", "create", name+"-net")
	testenv.StartConsul(t, testenv.ConsulOptions{
		Name:    name + "-consul",
		Address: consul,
		Docker:  []string{"--network", name + "-net", "--publish", consul + ":8500"},
		Args:    []string{"-dev", "-client=0.0.0.0"},
	}).Answers(t)
	berth := testenv.Image(t, "IMAGE_BERTH")
	withDocker := []string{"--volume", "/var/run/docker.sock:/var/run/docker.sock"}
	s.start("registrar", berth, withDocker, "registrar", "--explicit", "--owner", name)

	shared := []string{"--volume", name + "-conf:/etc/nginx", "--volume", name + "-run:/run/nginx"}
	publish := append([]string{"--publish", s.web + ":8080"}, shared...)
	templater := append([]string{"templater", "--proxy", "nginx"}, options...)
	switch way {
	case superviseIt:
		s.proxy = s.start("nginx", withBerth, publish, append(append([]string{"berth"}, templater...), "--", "nginx")...)
		s.berth = s.proxy
	case sharePIDs:
		s.proxy = s.start("nginx", image, publish)
		s.berth = s.start("templater", berth, append([]string{"--pid", "container:" + s.proxy}, shared...), templater...)
	case signalIt:
		s.proxy = s.start("nginx", image, publish)
		s.berth = s.start("templater", berth, append(withDocker, shared...), append(templater, "--nginx-reload-container", s.proxy)...)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, id := range []string{name + "-registrar", s.berth, s.proxy} {
				out, _ := testenv.Docker("logs", "--tail", "200", id)
				t.Logf("log of %s:\n%s", id, testenv.LastLines(accesses.ReplaceAllString(out, ""), 60))
			}
		}
	})
	s.scaleApps(1)
	s.Eventually(time.Minute, "the application answers through nginx", func() error { return s.expectHosts(1) })
	return s
}

func (s *nginxStack) Docker(args ...string) string {
	s.Helper()
	return testenv.MustDocker(s, args...)
}

func (s *nginxStack) Eventually(within time.Duration, what string, f func() error) {
	s.Helper()
	testenv.Eventually(s, within, what, f)
}

// expectHosts returns nil if exactly n different hosts answer.
func (s *nginxStack) expectHosts(n int) error { return testenv.ExpectHosts(s.web, n) }

// start starts a container as root, the default in nginx's image.
func (s *nginxStack) start(name, image string, docker []string, command ...string) string {
	s.Helper()
	args := []string{"run", "--detach", "--name", s.name + "-" + name, "--network", s.name + "-net", "--user", "0:0",
		"--label", "SERVICE_IGNORE=1", "--env", "CONSUL_HTTP_ADDR=http://" + s.name + "-consul:8500"}
	return s.Docker(append(append(append(args, docker...), image), command...)...)
}

// scaleApps starts or stops applications, the oldest first.
func (s *nginxStack) scaleApps(n int) {
	s.Helper()
	for len(s.apps) < n {
		s.apps = append(s.apps, s.Docker("run", "--detach", "--name", fmt.Sprintf("%s-app%d", s.name, time.Now().UnixNano()), "--network", s.name+"-net",
			"--env", "SERVICE_NAME="+s.name, "--env", "SERVICE_ROUTE_PATH=/", testenv.Image(s, "IMAGE_APP")))
	}
	if gone := s.apps[:max(0, len(s.apps)-n)]; len(gone) > 0 {
		s.apps = s.apps[len(gone):]
		s.Docker(append([]string{"stop"}, gone...)...)
		s.Docker(append([]string{"rm", "--volumes"}, gone...)...)
	}
}

// expectPage returns nil if nginx answers with a status and a text.
func (s *nginxStack) expectPage(status int, text string) error {
	resp, err := testenv.Client.Get("http://" + s.web + "/")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != status || !strings.Contains(string(body), text) {
		return fmt.Errorf("%s, %q, %v", resp.Status, body, err)
	}
	return nil
}

// The same in each of the three ways: containers come and go, nginx is restarted and killed, berth is restarted.
func TestE2ENginxStack(t *testing.T) {
	image := testenv.Image(t, "IMAGE_NGINX")
	for _, way := range []string{superviseIt, sharePIDs, signalIt} {
		t.Run(way, func(t *testing.T) {
			s := startNginx(t, image, way)
			l := traffic.ToApp(t, s.web, 100, traffic.Fresh)
			s.scaleApps(5)
			s.Eventually(20*time.Second, "five answer", func() error { return s.expectHosts(5) })
			s.scaleApps(2)
			s.Eventually(20*time.Second, "two answer", func() error { return s.expectHosts(2) })
			s.Docker("kill", s.apps[0])
			s.Eventually(20*time.Second, "one answers", func() error { return s.expectHosts(1) })
			r := l.Finish()
			t.Logf("1 → 5 → 2 → 1: %v", r)
			r.ExpectNoneFailed(t, "1 → 5 → 2 → 1")
			s.apps = s.apps[1:]

			s.scaleApps(0)
			s.Eventually(20*time.Second, "nobody is there", func() error { return s.expectPage(http.StatusServiceUnavailable, "This service is not available") })
			s.scaleApps(2)
			s.Eventually(20*time.Second, "two are back", func() error { return s.expectHosts(2) })

			// An operator loads another configuration into nginx, which berth is not told.
			s.Docker("exec", s.proxy, "sh", "-c", `printf 'events {}\nhttp { server { listen 8081; } }\n' >/etc/nginx/nginx.conf && nginx -s reload`)
			s.Eventually(20*time.Second, "nobody answers on the port any more", func() error {
				if s.expectPage(http.StatusOK, "") == nil {
					return fmt.Errorf("somebody does")
				}
				return nil
			})
			s.Eventually(60*time.Second, "berth's configuration is back", func() error { return s.expectHosts(len(s.apps)) })

			if way == superviseIt {
				s.superviseEnds()
				return
			}
			if way == signalIt {
				l = traffic.ToApp(t, s.web, 100, traffic.Fresh)
				s.Docker("restart", "--time", "5", s.berth)
				s.scaleApps(3)
				s.Eventually(20*time.Second, "three answer", func() error { return s.expectHosts(3) })
				r = l.Finish()
				r.ExpectNoneFailed(t, "berth restarted")
			}
			// A killed nginx leaves its control socket behind and cannot start again with it: berth removes it. A container
			// whose processes berth shares is removed with it.
			for range 2 {
				s.Docker("kill", s.proxy)
				s.Docker("start", s.proxy)
				s.Eventually(30*time.Second, "nginx starts", func() error { return s.running(s.proxy, way) })
				s.Eventually(20*time.Second, "all answer", func() error { return s.expectHosts(len(s.apps)) })
				s.scaleApps(len(s.apps) + 1)
				s.Eventually(20*time.Second, "one more answers", func() error { return s.expectHosts(len(s.apps)) })
			}
		})
	}
}

// running restarts containers that Docker does not restart itself.
func (s *nginxStack) running(proxy, way string) error {
	if s.inspect(proxy, "{{.State.Running}}") != "true" {
		if _, err := testenv.Docker("start", proxy); err != nil {
			return err
		}
	}
	if way == sharePIDs && s.inspect(s.berth, "{{.State.Running}}") != "true" {
		if _, err := testenv.Docker("start", s.berth); err != nil {
			return err
		}
	}
	return s.expectHosts(len(s.apps))
}

func (s *nginxStack) inspect(id, format string) string {
	s.Helper()
	return s.Docker("inspect", "--format", format, id)
}

// superviseEnds kills an nginx that berth runs, and then stops its container with a request in flight.
func (s *nginxStack) superviseEnds() {
	s.Helper()
	top := s.Docker("top", s.proxy, "-eo", "pid,args")
	var master string
	for line := range strings.Lines(top) {
		if strings.Contains(line, "nginx: master process") {
			master = strings.Fields(line)[0]
		}
	}
	for range 2 {
		s.Docker("exec", s.proxy, "sh", "-c", "for p in /proc/[0-9]*; do if grep -q '^nginx: master' $p/cmdline; then kill -9 ${p#/proc/}; fi; done; true")
		s.Eventually(20*time.Second, "nginx is back, with its servers", func() error { return s.expectHosts(len(s.apps)) })
	}
	if again := s.Docker("top", s.proxy, "-eo", "pid,args"); master == "" || strings.Contains(again, "\n"+master+" ") {
		s.Errorf("the master process %q was not killed:\n%s", master, again)
	}
	var connections []string // files with the connections of each application
	for _, id := range s.apps {
		connections = append(connections, "/proc/"+s.inspect(id, "{{.State.Pid}}")+"/net/tcp6")
	}
	done := make(chan error, 1)
	go func() {
		_, err := testenv.AskApp("http://" + s.web + "/?delay=4s")
		done <- err
	}()
	s.Eventually(4*time.Second, "the request is in flight", func() error {
		for _, path := range connections {
			// Established connections to port 8080, in hexadecimal.
			out, err := os.ReadFile(path)
			if err == nil && regexp.MustCompile(`:1F90 [0-9A-F]+:[0-9A-F]+ 01 `).Match(out) {
				return nil
			}
		}
		return fmt.Errorf("no application has it")
	})
	began := time.Now()
	s.Docker("stop", "--time", "10", s.proxy)
	if err := <-done; err != nil {
		s.Errorf("a request in flight as the container was stopped: %v", err)
	}
	code := s.inspect(s.proxy, "{{.State.ExitCode}}")
	s.Logf("docker stop with a request of 4 s in flight: %v, exit code %s", time.Since(began).Round(time.Millisecond), code)
	if code != "0" {
		s.Errorf("exit code %s", code)
	}
	s.Docker("start", s.proxy)
	s.Eventually(20*time.Second, "all answer after a start", func() error { return s.expectHosts(len(s.apps)) })
}
