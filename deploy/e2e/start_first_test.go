//go:build e2e

package e2e

import (
	"bufio"
	"cmp"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/deploy/testenv"
	"berth/deploy/testenv/traffic"
)

const soon = 20 * time.Second

// replacing is a compose v2 stack whose application wants to be started before the one it replaces. It dies at once on
// SIGTERM.
type replacing struct {
	*stack
	file    string // compose file with the changes between versions
	metrics string // address of the templater's

	mu     sync.Mutex
	events []event
}

// event is a Docker event about a container of the app.
type event struct {
	at             time.Time
	id, what       string
	number, signal string // of the container, of a kill
}

func startReplacing(t *testing.T, grace string) *replacing {
	t.Helper()
	metrics := testenv.FreePort(t)
	r := &replacing{file: testenv.File(t, testenv.Dir(t), "version.yml", ""), metrics: "127.0.0.1:" + metrics}
	r.write(t, "VERSION: one")
	r.stack = newStackOf(t, testenv.ComposeOptions{Files: []string{r.file}}.V2(t), `
  app:
    stop_signal: SIGCONT
    stop_grace_period: `+grace+`
    labels: {SERVICE_STOP_SIGNAL: SIGTERM, SERVICE_REPLACE: start-first}
  templater:
    environment: {BERTH_LISTEN: "0.0.0.0:9652"}
    ports: ["${BIND_ADDRESS}:`+metrics+`:9652"]
`)
	r.follow()
	r.Do("up", "-d")
	r.Eventually(time.Minute, "the app answers", func() error { return r.expectHosts(1) })
	return r
}

// follow records Docker's events about the app until the test ends.
func (r *replacing) follow() {
	r.Helper()
	cmd := exec.Command("docker", "events", "--filter", "type=container", "--filter", "label=com.docker.compose.project="+r.Project,
		"--filter", "label=com.docker.compose.service=app", "--format",
		`{{.TimeNano}} {{.ID}} {{.Action}} {{index .Actor.Attributes "com.docker.compose.container-number"}} {{index .Actor.Attributes "signal"}}`)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		r.Fatal(err)
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var nano int64
			var e event
			if n, _ := fmt.Sscan(lines.Text(), &nano, &e.id, &e.what, &e.number, &e.signal); n < 4 {
				continue
			}
			e.at = time.Unix(0, nano)
			r.mu.Lock()
			r.events = append(r.events, e)
			r.mu.Unlock()
		}
	})
	r.Cleanup(func() {
		_ = cmd.Process.Kill()
		reading.Wait()
		_ = cmd.Wait()
	})
}

// first is the first event of a kind about a container.
func (r *replacing) first(id, what string) (event, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.id == id && e.what == what {
			return e, nil
		}
	}
	return event{}, fmt.Errorf("no %s of %.12s", what, id)
}

// happened is first for a past event that Docker may be about to report.
func (r *replacing) happened(id, what string) (e event) {
	r.Helper()
	r.Eventually(soon, fmt.Sprintf("%s of %.12s", what, id), func() (err error) {
		e, err = r.first(id, what)
		return err
	})
	return e
}

// held returns how many requests for a service had to wait, according to the templater's metrics.
func (r *replacing) held(service string) (n int, err error) {
	text, err := testenv.Get("http://" + r.metrics + "/metrics")
	if err != nil {
		return 0, fmt.Errorf("metrics of the templater: %w", err)
	}
	for line := range strings.Lines(text) {
		if value, is := strings.CutPrefix(line, `berth_held_requests_total{service="`+service+`"} `); is {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, nil // a service whose requests never waited has no line
}

// heldByNow is held for the app, including all requests that have waited until now. The metric is read from HAProxy's table
// only now and then. So a request for a service without an instance waits: once it is counted, so are all earlier ones.
func (r *replacing) heldByNow() (n int) {
	r.Helper()
	const service = "nobody"
	before, err := r.held(service)
	if err != nil {
		r.Fatal(err)
	}
	r.Eventually(soon, "a request for a service without an instance waits, and is counted", func() error {
		req, err := http.NewRequest(http.MethodGet, "http://"+r.web+"/", nil)
		if err != nil {
			return err
		}
		req.Host = service
		resp, err := testenv.Client.Do(req)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if after, err := r.held(service); err != nil || after <= before {
			return cmp.Or(err, fmt.Errorf("%s, and %d have waited as before", resp.Status, after))
		}
		n, err = r.held("app")
		return err
	})
	return n
}

// addNobody registers the service without a serving instance, for heldByNow.
func (r *replacing) addNobody() {
	r.Helper()
	err := testenv.ConsulClient(r, r.consul, func() string { return "" }).Agent().ServiceRegister(&api.AgentServiceRegistration{
		Name: "nobody", Address: "127.0.0.1", Port: 9, Meta: map[string]string{"route_host": "nobody", "route_hold": "20ms"},
		Check: &api.AgentServiceCheck{TTL: "1h", Status: api.HealthCritical},
	})
	if err != nil {
		r.Fatal(err)
	}
}

// write writes the next version of the app: environment variables and other keys of its service.
func (r *replacing) write(t testing.TB, variables string, keys ...string) {
	t.Helper()
	text := fmt.Sprintf("services:\n  app:\n    environment: {EXIT_AT_ONCE: \"1\", %s}\n", variables)
	for _, key := range keys {
		text += "    " + key + "\n"
	}
	testenv.File(t, filepath.Dir(r.file), filepath.Base(r.file), text)
}

// up brings the project to the version in the file, and returns the app's containers before and after.
func (r *replacing) up(args ...string) (before, after []string) {
	r.Helper()
	before = r.Containers("app")
	r.Do(append([]string{"up", "-d"}, args...)...)
	return before, r.Containers("app")
}

// startsFirst is up, and checks that each new container answered before the one it replaced died.
func (r *replacing) startsFirst(l *traffic.Load, args ...string) {
	r.Helper()
	before, after := r.up(args...)
	if len(before) != len(after) || len(after) == 0 {
		r.Fatalf("%d containers were replaced by %d", len(before), len(after))
	}
	numbers := map[string]string{}
	for _, id := range before {
		numbers[r.happened(id, "create").number] = id
	}
	for _, id := range after {
		created := r.happened(id, "create")
		old := numbers[created.number]
		if old == "" || slices.Contains(before, id) {
			r.Errorf("%.12s, number %s, replaced %.12s", id, created.number, before)
			continue
		}
		started, died, first := r.happened(id, "start"), r.happened(old, "die"), l.Of(id).First
		r.Logf("%.12s: started %v after it was created, answered %v later, and the old one ended %v after that", id,
			started.at.Sub(created.at).Round(time.Millisecond), first.Sub(started.at).Round(time.Millisecond), died.at.Sub(first).Round(time.Millisecond))
		if first.IsZero() || !first.Before(died.at) {
			r.Errorf("the first answer of %.12s came at %v, and the old one died at %v", id, first, died.at)
		}
	}
}

// Plain docker compose up -d of compose v2 replaces the only instance, and then each of three, without a failed or waiting
// request, although the application dies at once on SIGTERM. It also repairs the remains of an interrupted run.
func TestE2EComposeStartsFirst(t *testing.T) {
	s := startReplacing(t, "25s") // a busy machine may need most of it for a start
	s.addNobody()
	held := s.heldByNow()
	noneHeld := func() {
		t.Helper()
		if now := s.heldByNow(); now > held {
			t.Errorf("%d requests had to wait, want 0: there was an instance all the time", now-held)
		}
	}
	l, p := traffic.ToApp(t, s.web, 120, traffic.Kept, traffic.Fresh), startPosts(t, s.stack)
	image := s.Docker("image", "inspect", "--format", "{{.Id}}", os.Getenv("IMAGE_APP"))
	for _, keys := range [][]string{nil, {"image: " + image}} {
		s.write(t, "VERSION: two", keys...)
		s.startsFirst(l)
	}
	s.Scale("app", 3)
	s.Eventually(soon, "three answer", func() error { return s.expectHosts(3) })
	s.write(t, "VERSION: three")
	s.startsFirst(l, "--scale", "app=3")
	s.Do("up", "-d", "--scale", "app=1")
	s.Eventually(soon, "one answers", func() error { return s.expectHosts(1) })

	noneHeld()
	s.cutOff()
	s.startsFirst(l, "--force-recreate", "--no-deps", "app")
	noneHeld()

	r := l.Finish()
	t.Logf("replaced: %s; %s", r, p.finish())
	r.ExpectNoneFailed(t, "replaced")
	if p.failed > 0 || p.sent == 0 {
		t.Errorf("%d of %d slow POSTs failed, want 0 of some", p.failed, p.sent)
	}
	if log := s.Logs("registrar"); strings.Contains(log, "drained all the same") || strings.Contains(log, "starts only after") {
		t.Error("the registrar gave up once")
	}
	if err := s.expectCatalog(s.Containers("app")); err != nil {
		t.Error(err)
	}
}

// cutOff interrupts compose while the old container waits for the new one. The new one still takes over, and the next
// docker compose up -d makes it the only one.
func (r *replacing) cutOff() {
	r.Helper()
	old := r.Containers("app")
	r.write(r, "VERSION: five")
	up := r.Command("up", "-d")
	if err := up.Start(); err != nil {
		r.Fatal(err)
	}
	r.happened(old[0], "kill")
	if err := up.Process.Signal(syscall.SIGINT); err != nil {
		r.Fatal(err)
	}
	if err := up.Wait(); err == nil {
		r.Error("compose was not cut off")
	}
	r.happened(old[0], "die")
	var next []string
	r.Eventually(soon, "the new one runs alone", func() error {
		if next = r.Containers("app"); len(next) != 1 || next[0] == old[0] {
			return fmt.Errorf("%.12s run, the old one was %.12s", next, old)
		}
		return nil
	})
	if _, after := r.up(); !slices.Equal(after, next) {
		r.Errorf("compose up has replaced %.12s by %.12s", next, after)
	}
	all := r.Docker("ps", "--all", "--quiet", "--filter", "label=com.docker.compose.project="+r.Project, "--filter", "label=com.docker.compose.service=app")
	if len(strings.Fields(all)) != 1 {
		r.Errorf("these are left: %s", all)
	}
}

// A new version that never becomes ready does not displace the old one until its grace period is nearly over, and the log
// says so. A version with a fixed host port is not started first, and the log says why. In both cases the service has no
// instance for a while, and its requests wait as intended.
func TestE2EComposeCannotStartFirst(t *testing.T) {
	s := startReplacing(t, "8s")
	held, err := s.held("app")
	if err != nil {
		t.Fatal(err)
	}
	l := traffic.ToApp(t, s.web, 120, traffic.Kept, traffic.Fresh)
	s.write(t, "PORT: \"9\"") // nobody listens on 8080
	began := time.Now()
	before, after := s.up()
	killed, died, started := s.happened(before[0], "kill"), s.happened(before[0], "die"), s.happened(after[0], "start")
	r := l.Finish()
	// Of eight seconds, the old one waits 4.4, and has two to drain.
	if waited := died.at.Sub(killed.at); waited < 6*time.Second || waited >= 8*time.Second || !started.at.Before(died.at.Add(-time.Second)) {
		t.Errorf("the old one died %v after its stop signal, the new one was started %v before", waited, died.at.Sub(started.at))
	}
	served, _ := r.During(began, killed.at.Add(4*time.Second))
	t.Logf("while the old one waits: %s; it died %v after its stop signal", served, died.at.Sub(killed.at).Round(time.Millisecond))
	if served.Failed() > 0 || len(served) == 0 {
		t.Errorf("%d of %d requests failed while the old one waits, want 0 of some", served.Failed(), len(served))
	}
	s.Logged("registrar", "is drained all the same, because Docker kills it")
	s.Eventually(soon, "requests had to wait since the old one died, and are counted", func() error {
		if now, err := s.held("app"); err != nil || now <= held {
			return cmp.Or(err, fmt.Errorf("%d have waited as before", now))
		}
		return nil
	})

	s.write(t, "VERSION: two")
	s.up()
	s.Eventually(soon, "the next version answers", func() error { return s.expectHosts(1) })

	s.write(t, "VERSION: three", fmt.Sprintf("ports: [\"127.0.0.1:%s:8080\"]", testenv.FreePort(t)))
	before, after = s.up()
	if died, started := s.happened(before[0], "die"), s.happened(after[0], "start"); !died.at.Before(started.at) {
		t.Errorf("the one with a port of its own was started %v before the old one died", died.at.Sub(started.at))
	}
	s.Logged("registrar", " has stopped: two containers cannot have the host port")
	s.Eventually(soon, "it answers", func() error { return s.expectHosts(1) })
}
