//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/deploy/testenv"
)

func TestE2EScale(t *testing.T) {
	s := startStack(t)

	l := startLoad(t, s)
	s.scale(5)
	took := s.Eventually(10*time.Second, "five hosts answer", func() error { return s.expectHosts(5) })
	up := l.Finish()
	t.Logf("scale 1 → 5: %s; all five answered %v after compose was done", up, took.Round(time.Millisecond))
	up.ExpectNoneFailed(t, "scaling up")
	if err := s.expectCatalog(s.Containers("app")); err != nil {
		t.Error(err)
	}

	l = startLoad(t, s)
	s.scale(2)
	took = s.Eventually(10*time.Second, "two hosts answer", func() error { return s.expectHosts(2) })
	down := l.Finish()
	t.Logf("scale 5 → 2: %s; only two answered %v after compose was done", down, took.Round(time.Millisecond))
	down.ExpectNoneFailed(t, "scaling down")
	s.Eventually(10*time.Second, "two in Consul", func() error { return s.expectCatalog(s.Containers("app")) })

	// A container unknown to compose joins as well, and leaves.
	id := s.Run("-e", "SERVICE_NAME=app", os.Getenv("IMAGE_APP"))
	s.Eventually(10*time.Second, "it answers, too", func() error { return s.expectHosts(3) })
	if hosts, err := testenv.Hosts(s.web); err != nil || !slices.Contains(hosts, id[:12]) {
		t.Errorf("%.12s is not among %v (%v)", id, hosts, err)
	}
	s.Docker("kill", id)
	s.Eventually(10*time.Second, "it is gone", func() error { return s.expectHosts(2) })
	s.Logged("templater", "app: 2 → 3 servers, live after ")
}

// Clients notice nothing of Consul's downtime, and changes during it are caught up on.
func TestE2EConsulRestart(t *testing.T) {
	s := startStack(t)
	s.scale(2)
	s.Eventually(10*time.Second, "two hosts answer", func() error { return s.expectHosts(2) })

	l := startLoad(t, s)
	s.Do("stop", "consul")
	s.Logged("templater", "requests to Consul fail, keeping the last good configuration")
	id := s.Run("-e", "SERVICE_NAME=app", os.Getenv("IMAGE_APP"))
	s.Logged("registrar", "requests to Consul fail; registrations stay as they are")
	if err := s.expectHosts(2); err != nil {
		t.Errorf("while Consul is down: %v", err)
	}
	s.Do("start", "consul")
	took := s.Eventually(time.Minute, "the one started meanwhile answers", func() error { return s.expectHosts(3) })
	r := l.Finish()
	t.Logf("Consul stopped and started: %s; what started meanwhile answered %v after its start", r, took.Round(time.Millisecond))
	r.ExpectNoneFailed(t, "Consul stopped and started")
	s.Eventually(10*time.Second, "three in Consul", func() error { return s.expectCatalog(append(s.Containers("app"), id)) })
}

// Both halves of berth are killed; changes in the meantime are repaired when they are back.
func TestE2EBerthKilled(t *testing.T) {
	s := startStack(t)
	s.scale(3)
	s.Eventually(10*time.Second, "three hosts answer", func() error { return s.expectHosts(3) })

	l := startLoad(t, s)
	for _, service := range []string{"registrar", "templater"} {
		for _, id := range s.Containers(service) {
			// A container killed by hand is not restarted by its policy, so it stays down.
			s.Docker("kill", id)
		}
	}
	before := s.Containers("app")
	id := s.Run("-e", "SERVICE_NAME=app", os.Getenv("IMAGE_APP")) // first, or it would get the other's address
	s.Docker("kill", before[0])
	if err := s.expectHosts(2); err != nil {
		t.Errorf("while berth is down: %v", err)
	}
	s.Do("start", "registrar", "templater")
	took := s.Eventually(20*time.Second, "the new one answers", func() error { return s.expectHosts(3) })
	r := l.Finish()
	t.Logf("berth killed and started: %s; repaired %v after its start", r, took.Round(time.Millisecond))
	r.ExpectNoneFailed(t, "berth killed and started")
	s.Eventually(10*time.Second, "Consul has what runs", func() error {
		return s.expectCatalog(append(slices.Clone(before[1:]), id))
	})
}

// HAProxy is killed: it comes back with the last good configuration, and keeps following.
func TestE2EHAProxyKilled(t *testing.T) {
	s := startStack(t)
	s.scale(2)
	s.Eventually(10*time.Second, "two hosts answer", func() error { return s.expectHosts(2) })
	s.Docker("kill", s.Containers("haproxy")[0])
	id := s.Run("-e", "SERVICE_NAME=app", os.Getenv("IMAGE_APP"))
	s.Logged("templater", "proxy not reachable")
	s.Do("start", "haproxy")
	s.Eventually(20*time.Second, "the one started meanwhile answers, too", func() error { return s.expectHosts(3) })
	s.Docker("kill", id)
	s.Eventually(10*time.Second, "it is gone", func() error { return s.expectHosts(2) })
}

func TestE2EBrokenTemplate(t *testing.T) {
	s := startStack(t)
	s.Do("stop", "templater")

	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	sidecar := func(text string) []string {
		if err := os.WriteFile(filepath.Join(dir, "my.ctmpl"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return []string{
			"--network", s.Project + "_default", "-e", "CONSUL_HTTP_ADDR=http://consul:8500",
			"-v", s.Project + "_haproxy-config:/etc/haproxy", "-v", s.Project + "_haproxy-run:/run/haproxy", "-v", dir + ":/templates:ro",
			os.Getenv("IMAGE_BERTH"), "templater", "--template", "/templates/my.ctmpl",
		}
	}
	config := func() string {
		id := s.Containers("haproxy")[0]
		return s.Docker("exec", id, "cat", "/etc/haproxy/haproxy.cfg")
	}
	before := config()

	t.Run("syntax error", func(t *testing.T) {
		out, code := output(t, time.Minute, "docker", append([]string{"run", "--rm"}, sidecar("frontend f\n  bind :8080\n{{ range services }")...)...)
		if code == 0 || !strings.Contains(out, "my.ctmpl") || !strings.Contains(out, ":3") || strings.Count(out, "\n") != 1 {
			t.Errorf("exit code %d and these words, want one line that names file and line:\n%s", code, out)
		}
	})
	t.Run("missing", func(t *testing.T) {
		args := sidecar("")
		args[len(args)-1] = "/templates/nosuch.ctmpl"
		out, code := output(t, time.Minute, "docker", append([]string{"run", "--rm"}, args...)...)
		if code == 0 || !strings.Contains(out, "/templates/nosuch.ctmpl") {
			t.Errorf("exit code %d:\n%s", code, out)
		}
	})
	for name, tt := range map[string]struct{ text, says string }{
		"HAProxy refuses it": {"frontend f\n  bind :8080\n  bogus keyword\n{{ range service \"app\" }}# {{ .Address }}\n{{ end }}", "unknown keyword 'bogus'"},
		"nothing to serve":   {"global\n  maxconn 10\n", "would serve nothing"},
		"fails when run":     {"{{ range service \"app\" }}{{ .NoSuchField }}{{ end }}", "NoSuchField"},
	} {
		t.Run(name, func(t *testing.T) {
			args := sidecar(tt.text)
			l := startLoad(t, s)
			id := s.Run(args[2:]...) // s.run names the network
			s.Eventually(20*time.Second, "it says why", func() error {
				if out := s.Docker("logs", id); !strings.Contains(out, tt.says) {
					return fmt.Errorf("its log:\n%s", out)
				}
				return nil
			})
			r := l.Finish()
			t.Log(r)
			r.ExpectNoneFailed(t, name)
			if state := s.Docker("inspect", "--format", "{{.State.Running}}", id); state != "true" {
				t.Errorf("berth ended; it should wait for better input")
			}
			// It may be retrying at this moment. Stopped rather than killed, it restores the good file first.
			s.Docker("stop", id)
			if got := config(); got != before {
				t.Errorf("haproxy.cfg has become\n%s", got)
			}
			s.Docker("rm", id)
		})
	}

	// A restarted HAProxy comes up with the good configuration, and the built-in template takes over again.
	s.Do("restart", "haproxy")
	s.Eventually(10*time.Second, "the app answers", func() error { return s.expectHosts(1) })
	s.Do("start", "templater")
	s.scale(2)
	s.Eventually(10*time.Second, "two hosts answer", func() error { return s.expectHosts(2) })
}
