//go:build e2e

package templater_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/deploy/testenv"
)

// stack is a HAProxy under load, berth's templater, and applications in this process.
type stack struct {
	t      testing.TB
	consul *consul
	dir    string // shared by the two
	web    string // address of HAProxy's frontend
	status string // address of berth's
	apps   map[string]*httptest.Server

	mu       sync.Mutex
	servers  []string // HAProxy's servers over time, as in a watch's history
	requests int
	slowest  time.Duration
	failed   []error
}

// proxyTemplate routes everything to one service. A request is sent to a server once; another server is tried only if no
// connection is possible.
const proxyTemplate = `global
    log stderr local0 warning
defaults
    mode http
    timeout connect 1s
    timeout client 10s
    timeout server 10s
frontend http.in
    bind %s
    default_backend web
backend web
{{ range service "web" }}    server {{ .ID }} {{ .Address }}:{{ .Port }}
{{ end }}`

// startStack starts everything, with Consul at an address and environment variables for berth, and waits until HAProxy has
// these servers.
func startStack(c *consul, address string, env []string, ids ...string) *stack {
	t := c.t
	t.Helper()
	dir := testenv.Dir(t)
	s := &stack{t: t, consul: c, dir: dir, web: c.ip + ":8080", status: c.ip + ":9652", apps: map[string]*httptest.Server{}}
	for _, id := range ids {
		s.put(id)
	}
	template := fmt.Sprintf(proxyTemplate, s.web)
	testenv.File(t, dir, "haproxy.ctmpl", template)
	head, _, _ := strings.Cut(template, "{{")
	testenv.File(t, dir, "haproxy.cfg", head)
	name := strings.TrimSuffix(c.Name, "-consul")
	user := fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid())
	common := []string{"run", "--detach", "--network", "host", "--user", user, "--volume", dir + ":" + dir, "--name"}
	socket, file := dir+"/master.sock", dir+"/haproxy.cfg"
	haproxy := []string{name + "-haproxy", testenv.Image(t, "IMAGE_HAPROXY"), "haproxy", "-W", "-db", "-S", socket, "-f", file}
	berth := slices.Concat([]string{name + "-berth"}, env, []string{testenv.Image(t, "IMAGE_BERTH"), "templater",
		"--consul-address", address, "--listen", s.status, "--template", dir + "/haproxy.ctmpl",
		"--haproxy-config", file, "--haproxy-socket", socket})
	for _, args := range [][]string{haproxy, berth} {
		if _, err := testenv.Docker(append(common, args...)...); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			out, err := testenv.Docker("logs", "--tail", "100", name+"-berth")
			t.Logf("log of berth: %s%v", out, err)
		}
	})
	s.until("berth is ready", func() error { return s.ready() })

	stop := make(chan struct{})
	var running sync.WaitGroup
	for _, keep := range []bool{true, true, false, false} {
		running.Go(func() { s.ask(stop, keep) })
	}
	running.Go(func() { s.look(stop) })
	end := sync.OnceFunc(func() { close(stop); running.Wait() })
	t.Cleanup(end)
	s.await(strings.Join(ids, " "))
	return s
}

// put starts an application if it is not running, and registers it.
func (s *stack) put(id string) {
	s.t.Helper()
	if s.apps[id] == nil {
		s.apps[id] = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, id) }))
		s.t.Cleanup(s.apps[id].Close)
	}
	op := set("web", id)
	a := s.apps[id].Listener.Addr().(*net.TCPAddr)
	op.Service.Service.Address, op.Service.Service.Port = a.IP.String(), a.Port
	s.consul.txn(api.TxnOps{op})
}

func (s *stack) until(what string, f func() error) {
	s.t.Helper()
	testenv.Eventually(s.t, 2*soon, what, f)
}

// ready asks berth whether it is ready.
func (s *stack) ready() error {
	why, err := testenv.Get("http://" + s.status + "/readyz")
	if err != nil {
		return fmt.Errorf("%w: %s", err, why)
	}
	return nil
}

// notReady waits until berth reports that Consul does not answer properly.
func (s *stack) notReady() {
	s.t.Helper()
	s.until("berth notices", func() error {
		if s.ready() == nil {
			return errors.New("it is ready")
		}
		return nil
	})
}

// ask sends consecutive requests until stop is closed.
func (s *stack) ask(stop chan struct{}, keep bool) {
	transport := &http.Transport{DisableKeepAlives: !keep}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		began := time.Now()
		err := func() error {
			res, err := client.Get("http://" + s.web)
			if err != nil {
				return err
			}
			defer res.Body.Close()
			if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusOK {
				return fmt.Errorf("%s %w", res.Status, err)
			}
			return nil
		}()
		s.mu.Lock()
		s.requests++
		s.slowest = max(s.slowest, time.Since(began))
		if err != nil {
			s.failed = append(s.failed, err)
		}
		s.mu.Unlock()
		select {
		case <-stop:
			return
		case <-tick.C:
		}
	}
}

// look records HAProxy's servers until stop is closed.
func (s *stack) look(stop chan struct{}) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if line, err := s.has(); err == nil {
			s.mu.Lock()
			if len(s.servers) == 0 || s.servers[len(s.servers)-1] != line {
				s.servers = append(s.servers, line)
			}
			s.mu.Unlock()
		}
		select {
		case <-stop:
			return
		case <-tick.C:
		}
	}
}

// has asks HAProxy for its usable servers.
func (s *stack) has() (string, error) {
	conn, err := net.Dial("unix", filepath.Join(s.dir, "master.sock"))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, "@1 show servers state web\n"); err != nil {
		return "", err
	}
	if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
		return "", err
	}
	reply, err := io.ReadAll(conn)
	if err != nil {
		return "", err
	}
	if !strings.HasPrefix(string(reply), "1\n# be_id") {
		return "", fmt.Errorf("HAProxy says %q", reply)
	}
	var names []string
	for line := range strings.Lines(string(reply)) {
		// 4 name, 6 operational state, 7 administrative state
		if f := strings.Fields(line); len(f) > 7 && f[0] != "#" && f[5] == "2" && f[6] == "0" {
			names = append(names, f[3])
		}
	}
	slices.Sort(names)
	return strings.Join(names, " "), nil
}

func (s *stack) await(want string) {
	s.t.Helper()
	s.until(fmt.Sprintf("HAProxy's servers are %q", want), func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if n := len(s.servers); n == 0 || s.servers[n-1] != want {
			return fmt.Errorf("they were %q", s.servers)
		}
		return nil
	})
}

// history returns HAProxy's servers over time, and checks that no request failed.
func (s *stack) history() []string {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.t.Logf("%d requests, %d failed, the slowest took %s", s.requests, len(s.failed), s.slowest.Round(time.Millisecond))
	if len(s.failed) > 0 || s.requests < 20 {
		s.t.Errorf("%d of %d requests failed: %v", len(s.failed), s.requests, errors.Join(s.failed[:min(3, len(s.failed))]...))
	}
	return slices.Clone(s.servers)
}

// Consul comes back empty while HAProxy serves: no request fails.
func TestE2EHAProxyWhileConsulLosesItsState(t *testing.T) {
	c := startConsul(t, "-dev")
	s := startStack(c, c.Address, nil, "a", "b", "c")
	c.Do(t, "restart", "--time", "5")
	c.Answers(t)
	s.until("berth has Consul's first answer", s.ready)
	for _, id := range []string{"c", "d", "a", "b"} {
		s.put(id)
	}
	s.await("a b c d")
	if got := s.history(); !slices.Equal(got, []string{"a b c", "a b c d"}) {
		t.Errorf("HAProxy's servers were, one after the other, %q", got)
	}
}

// The token first loses its rights and is then deleted while HAProxy serves: no request fails.
func TestE2EHAProxyWhileTokenIsRevoked(t *testing.T) {
	c := startGuarded(t)
	p := c.policy(seesAll)
	token := c.token(p, "")
	f := c.newFront()
	s := startStack(c, f.URL, []string{"--env", "CONSUL_HTTP_TOKEN=" + token.SecretID}, "a", "b")

	// A blocking query keeps the rights it began with. So a change has to end it before the next query has none.
	when := time.Now()
	c.change(p, seesNone)
	s.put("c")
	s.until("berth is told of nothing", func() error {
		if len(f.since(when, hidden("/v1/health/service/web"))) == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	c.change(p, seesAll)
	s.put("d")
	s.await("a b c d")

	c.revoke(token)
	s.put("e")
	s.notReady()
	c.token(p, token.SecretID)
	s.put("f")
	s.await("a b c d e f")
	s.until("berth is ready", s.ready)
	for _, line := range s.history() {
		if !contains(line, "a", "b") {
			t.Errorf("HAProxy's servers were %q: a and b are there all the time", line)
		}
	}
}
