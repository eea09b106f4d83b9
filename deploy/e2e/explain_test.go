//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"berth/deploy/testenv"
	"berth/templates"
)

// mistake is a user error, with the expected output of berth explain.
type mistake struct {
	what   string
	run    []string // arguments of docker run
	says   []string // all have to appear
	remedy string   // part of the line with the remedy
}

const elsewhere = "elsewhere" // placeholder for a network without the load balancer

var mistakes = []mistake{
	{"a misspelt label", []string{"-l", "SERVICE_NAME=m1", "-l", "SERVICE_ROUTE_HOSTS=m1.example.com"},
		[]string{"SERVICE_ROUTE_HOSTS is an unknown key", "down"}, "did you mean SERVICE_ROUTE_HOST?"},
	{"no route", []string{"-l", "SERVICE_NAME=m2"}, []string{"no proxy has a route for service m2"}, "set SERVICE_ROUTE_HOST, SERVICE_ROUTE_PATH or SERVICE_ROUTE_PORT"},
	{"a route that another service has", []string{"-l", "SERVICE_NAME=m3", "-l", "SERVICE_ROUTE_PATH=/"},
		[]string{`the route */ belongs to service "app"`, "down"}, "set another SERVICE_ROUTE_HOST or SERVICE_ROUTE_PATH"},
	{"on none of the load balancer's networks", []string{"--network", elsewhere, "-l", "SERVICE_NAME=m4", "-l", "SERVICE_ROUTE_HOST=m4.example.com"},
		[]string{"it is not on", "not served"}, "attach it to such a network"},
	{"a port on which nothing listens", []string{"-l", "SERVICE_8080_IGNORE=1", "-l", "SERVICE_9999_NAME=m5", "-l", "SERVICE_9999_ROUTE_HOST=m5.example.com"},
		[]string{":9999 accepts", "starting"}, "make it listen on that port"},
	{"an unhealthy HEALTHCHECK", []string{"--health-cmd", "false", "--health-interval", "1s", "--health-retries", "1", "-l", "SERVICE_NAME=m6", "-l", "SERVICE_ROUTE_HOST=m6.example.com"},
		[]string{"Docker's HEALTHCHECK says unhealthy", "down"}, "docker inspect"},
	{"refused by the policy", []string{"-l", "SERVICE_NAME=secret", "-l", "SERVICE_ROUTE_HOST=m7.example.com"},
		[]string{"policy", "not served"}, ""},
	{"an ID that another one has", []string{"-l", "SERVICE_ID=taken", "-l", "SERVICE_NAME=m8", "-l", "SERVICE_ROUTE_HOST=m8.example.com"},
		[]string{"service ID taken is held by container", "not served"}, "choose another SERVICE_ID"},
	{"a bad value", []string{"-l", "SERVICE_NAME=m9", "-l", "SERVICE_ROUTE_HOST=m9.example.com", "-l", "SERVICE_ROUTE_BALANCE=fastest"},
		[]string{`its route_balance "fastest" is not one of`, "it takes requests, but"}, "set SERVICE_ROUTE_BALANCE"},
	{"a check in Consul that fails", []string{"-e", "MISSING=/nope", "-l", "SERVICE_NAME=m10", "-l", "SERVICE_ROUTE_HOST=m10.example.com", "-l", "SERVICE_READY=tcp",
		"-l", "SERVICE_CHECK_HTTP=/nope", "-l", "SERVICE_CHECK_INTERVAL=1s"}, []string{"its check in Consul is critical", "404"}, "SERVICE_CHECK"},
	{"down in the proxy, though it passes in Consul", []string{"-e", "MISSING=/nope", "-l", "SERVICE_NAME=m12", "-l", "SERVICE_ROUTE_HOST=m12.example.com", "-l", "SERVICE_ROUTE_CHECK=/nope"},
		[]string{"DOWN: L7STS/404: Not Found"}, "SERVICE_ROUTE_CHECK is the path"},
}

// One command finds each user error and says what to do.
func TestE2EExplain(t *testing.T) {
	dir := testenv.Dir(t)
	policy := testenv.File(t, dir, "berth.yml", "policy:\n  - services: [app, 'm*', taken]\n")
	s := newStack(t, fmt.Sprintf(`
  registrar:
    environment: { BERTH_CONFIG: /etc/berth.yml }
    volumes: ["%s:/etc/berth.yml:ro"]
`, policy))
	s.Do("up", "-d")
	s.Eventually(time.Minute, "one app answers", func() error { return s.expectHosts(1) })
	network := s.Project + "-elsewhere"
	s.Docker("network", "create", network)
	t.Cleanup(func() { _, _ = testenv.Docker("network", "rm", network) })
	image := testenv.Image(t, "IMAGE_APP")
	names := map[string]string{}
	start := func(n int, args ...string) string {
		name := fmt.Sprintf("%s-m%d", s.Project, n)
		all := []string{"run", "-d", "--name", name}
		if args[0] != "--network" {
			all = append(all, "--network", s.Project+"_default")
		}
		for _, a := range args {
			all = append(all, strings.Replace(a, elsewhere, network, 1))
		}
		s.Docker(append(all, image)...)
		t.Cleanup(func() { _, _ = testenv.Docker("rm", "--force", name) })
		return name
	}
	start(0, "-l", "SERVICE_ID=taken", "-l", "SERVICE_NAME=taken", "-l", "SERVICE_ROUTE_HOST=taken.example.com")
	for i, m := range mistakes {
		names[m.what] = start(i+1, m.run...)
	}
	for _, m := range mistakes {
		t.Run(m.what, func(t *testing.T) {
			s := s.in(t)
			s.Eventually(30*time.Second, "berth explain finds it", func() error {
				said, err := s.Try("exec", "-T", "registrar", "berth", "explain", names[m.what])
				if err != nil {
					return fmt.Errorf("%w: %s", err, said)
				}
				return finds(said, m)
			})
		})
	}
	t.Run("a URL", func(t *testing.T) {
		s := s.in(t)
		s.Eventually(10*time.Second, "it says who answers", func() error {
			said, err := s.Try("exec", "-T", "templater", "berth", "explain", "http://m12.example.com/cart")
			if err == nil && !strings.Contains(said, "m12.example.com/ of service m12 takes it, with backend m12") {
				err = fmt.Errorf("it says\n%s", said)
			}
			return err
		})
	})
	t.Run("exit codes", func(t *testing.T) {
		s := s.in(t)
		for want, args := range map[string][]string{
			"2":   {"explain", "nobody"},
			"2 ":  {"status", "nobody"},
			"2  ": {"status", "--check"}, // m1 is down
			"0":   {"status", "app"},
			"3":   {"status", "--listen", "127.0.0.1:1", "--consul-address", "http://127.0.0.1:1"},
		} {
			said, err := s.Try(append([]string{"exec", "-T", "registrar", "berth"}, args...)...)
			code := "0"
			if err != nil {
				code = exitStatus.FindStringSubmatch(err.Error())[1]
			}
			if code != strings.TrimSpace(want) {
				t.Errorf("berth %v exits with %s (%v), want %s:\n%s", args, code, err, want, said)
			}
		}
	})
	t.Run("status fits 100 columns", func(t *testing.T) {
		for _, args := range [][]string{{"status"}, {"status", "app"}, {"status", "m1"}} {
			said := s.in(t).Do(append([]string{"exec", "-T", "templater", "berth"}, args...)...)
			for line := range strings.Lines(said) {
				if n := len([]rune(strings.TrimRight(line, "\n"))); n > 100 {
					t.Errorf("berth %v: a line has %d characters: %s", args, n, line)
				}
			}
		}
	})
}

var exitStatus = regexp.MustCompile(`exit status (\d+)`)

// finds returns nil if an explanation has everything expected for a mistake.
func finds(said string, m mistake) error {
	text := strings.Join(strings.Fields(said), " ") // the output is wrapped
	for _, want := range m.says {
		if !strings.Contains(text, want) {
			return fmt.Errorf("it does not say %q:\n%s", want, said)
		}
	}
	if i := strings.Index(text, "do: "); i < 0 || !strings.Contains(text[i:], m.remedy) {
		return fmt.Errorf("it does not say what to do, %q:\n%s", m.remedy, said)
	}
	return nil
}

// A configuration refused by the proxy is reported with the service at fault, and the rest is served.
func TestE2EExplainRefusal(t *testing.T) {
	bad := `{{- if eq .Name "broken" }}    bogus keyword` + "\n" + `{{ end }}`
	text := strings.Replace(templates.HAProxy(), `{{- range .Servers }}`, bad+`{{- range .Servers }}`, 1)
	if text == templates.HAProxy() {
		t.Fatal("the template has no place for a mistake")
	}
	file := testenv.File(t, testenv.Dir(t), "haproxy.ctmpl", text)
	if err := os.Chmod(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	s := newStack(t, fmt.Sprintf(`
  templater:
    environment: { BERTH_TEMPLATE: /etc/berth/haproxy.ctmpl }
    volumes: ["%s:/etc/berth/haproxy.ctmpl:ro"]
`, file))
	s.Do("up", "-d")
	s.Eventually(time.Minute, "one app answers", func() error { return s.expectHosts(1) })
	name := s.Project + "-broken"
	s.Docker("run", "-d", "--name", name, "--network", s.Project+"_default", "-l", "SERVICE_NAME=broken", "-l", "SERVICE_ROUTE_HOST=broken.example.com", testenv.Image(t, "IMAGE_APP"))
	t.Cleanup(func() { _, _ = testenv.Docker("rm", "--force", name) })
	s.Eventually(30*time.Second, "berth explain finds it", func() error {
		said, err := s.Try("exec", "-T", "registrar", "berth", "explain", name)
		if err != nil {
			return err
		}
		return finds(said, mistake{says: []string{"does not run the newest configuration", "bogus", "the part for broken is at fault"}, remedy: "berth render --validate"})
	})
}
