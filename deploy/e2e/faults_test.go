//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/deploy/consul/policies"
	"berth/deploy/testenv"
	"berth/deploy/testenv/traffic"
)

// lasts waits while a fault lasts and the load goes on.
func (s *stack) lasts(since time.Time, d time.Duration) {
	s.Helper()
	testenv.Until(s, d+5*time.Second, fmt.Sprintf("it lasts for %s", d), func() bool { return time.Since(since) >= d })
}

// ended ends a load and checks that no request failed.
func (s *stack) ended(l *traffic.Load, during string) {
	s.Helper()
	r := l.Finish()
	s.Logf("%s: %s", during, r)
	r.ExpectNoneFailed(s, during)
}

// up starts the stack with three apps.
func (s *stack) up() {
	s.Helper()
	s.Do("up", "-d", "--scale", "app=3")
	s.Eventually(time.Minute, "three apps answer", func() error { return s.expectHosts(3) })
}

// A Consul that accepts connections and never answers, as in a paused virtual machine, delays no stop signal: a container
// that drains first is stopped as quickly as with a working Consul.
func TestE2EConsulPaused(t *testing.T) {
	s := newStack(t, `
  registrar:
    environment: { BERTH_RESYNC: 2s } # several while Consul is paused
`)
	s.up()
	drains := s.runApps(2, 3, drainFirst...)
	l := startLoad(t, s)
	consul := s.Containers("consul")[0]
	s.Docker("pause", consul)
	t.Cleanup(func() { _, _ = testenv.Docker("unpause", consul) }) // compose could not stop it
	s.lasts(time.Now(), 15*time.Second)
	for _, id := range drains {
		if took := s.stop(id)[0]; took > 5*time.Second {
			t.Errorf("docker stop took %s, want little more than the 2 s of the drain", took)
		}
	}
	s.Docker("unpause", consul)
	s.Eventually(20*time.Second, "Consul has the three that run", func() error { return s.expectCatalog(s.Containers("app")) })
	s.Eventually(20*time.Second, "HAProxy has three servers", func() error { return s.expectServers(3) })
	s.ended(l, "Consul paused, two containers stopped")
}

// guarded makes the registrar and the templater use a secured Consul, with tokens from files.
const guarded = `
  registrar:
    environment: %[1]s
    volumes: ["%[3]s:%[3]s:ro"]
  templater:
    environment: %[2]s
    volumes: ["%[3]s:%[3]s:ro"]
networks:
  default: { external: true, name: %[4]s }
`

// startGuarded starts the stack with a secured Consul, whose Dir has the token files.
func startGuarded(t *testing.T, ttl time.Duration) (s *stack, consul *testenv.Secured, registrar *api.ACLToken) {
	t.Helper()
	consul = testenv.StartSecured(t)
	registrar = testenv.NewToken(t, consul.Client, policies.Registrar)
	templater := testenv.NewToken(t, consul.Client, policies.Templater)
	environment := func(role string, token *api.ACLToken, more ...string) []byte {
		file := testenv.File(t, consul.Dir, role, token.SecretID)
		list, err := json.Marshal(append(consul.ContainerEnv(""), append(more, "CONSUL_HTTP_TOKEN_FILE="+file)...))
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	s = newStack(t, fmt.Sprintf(guarded, environment("registrar", registrar, "BERTH_TTL="+ttl.String()),
		environment("templater", templater, "BERTH_LISTEN=0.0.0.0:9652"), consul.Dir, consul.Network))
	s.Do("up", "-d", "--no-deps", "--scale", "app=3", "registrar", "templater", "haproxy", "app")
	s.Eventually(time.Minute, "three apps answer", func() error { return s.expectHosts(3) })
	return s, consul, registrar
}

// A templater that starts with a token that sees nothing removes no server from a working HAProxy: it names the fault, and
// continues when the token sees the data.
func TestE2ETokenSeesNothing(t *testing.T) {
	s, consul, _ := startGuarded(t, 0)
	l := startLoad(t, s)
	seeing, err := os.ReadFile(filepath.Join(consul.Dir, "templater"))
	if err != nil {
		t.Fatal(err)
	}
	testenv.File(t, consul.Dir, "templater", testenv.NewToken(t, consul.Client).SecretID)
	s.Do("restart", "--timeout", "5", "templater")
	restarted := time.Now()
	templater := s.Docker("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", s.Containers("templater")[0])
	s.Eventually(20*time.Second, "/readyz says so", func() error {
		body, err := testenv.Get("http://" + templater + ":9652/readyz")
		if err == nil || !strings.Contains(body, "sees nothing") {
			return fmt.Errorf("%v: %s", err, body)
		}
		return nil
	})
	s.Logged("templater", "sees nothing")
	s.lasts(restarted, 15*time.Second)
	if err := s.expectServers(3); err != nil {
		t.Error(err)
	}
	s.ended(l, "the templater restarted with a token that sees nothing")
	testenv.File(t, consul.Dir, "templater", string(seeing))
	s.scale(4)
	s.Eventually(30*time.Second, "four answer", func() error { return s.expectHosts(4) })
	if log := s.Logs("registrar"); strings.Contains(log, "403") || strings.Contains(log, "node_prefix") {
		t.Errorf("the registrar lacks a right:\n%s", log)
	}
}

// Consul loses its state and the templater its memory: HAProxy's servers count for more than the first, empty list.
func TestE2EConsulAndTemplaterRecreated(t *testing.T) {
	s := newStack(t, `
  consul:
    command: [agent, -dev, -client=0.0.0.0, -node=consul, -log-level=warn, "-hcl=limits { http_max_conns_per_client = -1 }"]
`)
	s.up()
	l := startLoad(t, s)
	for range 2 {
		s.Do("up", "-d", "--no-deps", "--force-recreate", "--timeout", "5", "consul", "templater")
		s.Eventually(30*time.Second, "Consul has them again", func() error { return s.expectCatalog(s.Containers("app")) })
		s.Logged("templater", "berth started")
	}
	s.scale(4)
	s.Eventually(30*time.Second, "four answer", func() error { return s.expectHosts(4) })
	s.ended(l, "Consul and templater recreated")
}

// theirs is the template of a user who trusts label values.
const theirs = `global
    log stdout format raw local0
    stats socket /run/haproxy/admin.sock mode 660 level admin
    fd-hard-limit 65536
defaults
    mode http
    timeout connect 300ms
    timeout client 60s
    timeout server 60s
    retries 50
    retry-on conn-failure empty-response
    option redispatch 1
    option idle-close-on-response
frontend http.in
    bind :8080
    use_backend other if { path_beg /other }
    default_backend app
frontend stats.in
    bind :8404
    stats enable
    stats uri /stats
{{- define "backend" }}
backend {{ . }}
{{- range service . }}
    server {{ .ID | replaceAll ":" "-" }} {{ .Address }}:{{ .Port }} {{ .ServiceMeta.options }}
{{- end }}
{{- end }}
{{ partial "backend" "app" }}
{{ partial "backend" "other" }}
`

// HAProxy refuses the whole text because of one service's line. Servers of other services still come and go.
func TestE2EOneBadFragment(t *testing.T) {
	dir := testenv.Dir(t)
	testenv.File(t, dir, "haproxy.ctmpl", theirs)
	s := newStack(t, fmt.Sprintf(`
  templater:
    command: templater --template /templates/haproxy.ctmpl
    volumes: ["%s:/templates:ro"]
`, dir))
	s.up()
	bad := s.Run("-e", "SERVICE_NAME=other", "--label", "SERVICE_OPTIONS=bogus", os.Getenv("IMAGE_APP"))
	s.Logged("templater", "unknown keyword 'bogus'")

	l := startLoad(t, s)
	old := s.Containers("app")
	var replaced []string
	for range old {
		replaced = append(replaced, s.Run("-e", "SERVICE_NAME=app", os.Getenv("IMAGE_APP")))
	}
	s.Eventually(20*time.Second, "the new ones answer", func() error { return l.ExpectAnswers(l.Began, replaced...) })
	s.stop(old...)
	s.Eventually(20*time.Second, "only the new ones answer", func() error { return s.expectHosts(len(replaced)) })
	s.ended(l, "instances replaced next to a bad fragment")

	s.Docker("rm", "--force", bad)
	s.Run("-e", "SERVICE_NAME=other", os.Getenv("IMAGE_APP"))
	s.Eventually(20*time.Second, "the other service answers without the bad line", func() error {
		_, err := testenv.AskApp("http://" + s.web + "/other")
		return err
	})
}

// A registrar that may no longer deregister one instance still passes the checks of all others.
func TestE2EDeregisterForbidden(t *testing.T) {
	const ttl = 5 * time.Second
	s, consul, registrar := startGuarded(t, ttl)
	gone := testenv.Run(t, "--network", consul.Network, "-e", "SERVICE_NAME=gone", os.Getenv("IMAGE_APP"))
	passing := func(service string, n int) error {
		entries, _, err := consul.Health().Service(service, "", true, nil)
		if err == nil && len(entries) != n {
			err = fmt.Errorf("%d instances of %s pass, want %d", len(entries), service, n)
		}
		return err
	}
	s.Eventually(20*time.Second, "it is registered", func() error { return passing("gone", 1) })
	l := startLoad(t, s)
	policy, _, err := consul.ACL().PolicyRead(registrar.Policies[0].ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	policy.Rules += ` service "gone" { policy = "read" }`
	if _, _, err := consul.ACL().PolicyUpdate(policy, nil); err != nil {
		t.Fatal(err)
	}
	s.Docker("stop", gone)
	s.Logged("registrar", "403")
	forbidden := time.Now()
	for time.Since(forbidden) < 4*ttl {
		s.lasts(time.Now(), ttl/10)
		if err := passing("app", 3); err != nil {
			t.Errorf("%s after the stop: %v", time.Since(forbidden).Round(time.Second), err)
			break
		}
	}
	s.scale(4)
	s.Eventually(20*time.Second, "a new one answers as well", func() error { return s.expectHosts(4) })
	s.ended(l, "a deregistration forbidden")
}
