//go:build e2e

package registrar_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/registrar"
	"berth/registrar/docker"
	"berth/registrar/group/store"
	"berth/registrar/label"
)

// groups lets containers of a harness's registrar take part in groups.
func (l *harness) groups(o *registrar.Options, _ *label.Host) {
	client := dockerClient(l.t, "")
	o.DrainTime = 200 * time.Millisecond
	o.ReadyTimeout = 10 * time.Second
	o.Groups = &registrar.Groups{Consul: l.consul.Client, Archive: client, Restart: func(ctx context.Context, id string) error {
		if l.inspect(id, fmt.Sprintf("index .Config.Labels %q", harnessLabel)) != l.name {
			return errors.New("it is not of this test")
		}
		return docker.Restart(client)(ctx, id)
	}}
}

// greeter starts a container that answers with the content of its configuration file as of its start or the last SIGHUP, and
// that ends if the file says so.
func (l *harness) greeter(service string, n int, args ...string) container {
	l.t.Helper()
	const script = `
load() {
	text=$(cat /etc/app.conf 2>/dev/null)
	case "$text" in *crash*) exit 7;; esac
	printf '%s\n' 'global' ' fd-hard-limit 4096' 'defaults' ' mode http' ' timeout client 5s' ' timeout server 5s' ' timeout connect 5s' \
		'frontend web' ' bind :8080' " http-request return status 200 content-type text/plain string greets-${text:-nobody}" >/tmp/app.cfg
	if [ -e /tmp/pid ]; then before="-sf $(cat /tmp/pid)"; fi
	haproxy -D -p /tmp/pid -f /tmp/app.cfg $before
}
rm -f /tmp/pid
trap load HUP
trap 'exit 0' TERM
load
while true; do sleep 0.05; done`
	c := container{name: fmt.Sprintf("%s-%s-%d", l.name, service, n), service: service}
	how := []string{"run", "--detach"}
	if n := slices.Index(args, "create"); n >= 0 {
		how, args = []string{"create"}, slices.Delete(args, n, n+1)
	}
	all := append(how, "--name", c.name, "--label", harnessLabel+"="+l.name, "--label", "SERVICE_NAME="+service,
		"--network", l.network, "--stop-signal", "SIGTERM", "--user", "0", "--expose", "8080", "--entrypoint", "sh")
	c.id = l.docker(append(append(all, args...), os.Getenv("IMAGE_HAPROXY"), "-c", script)...)
	return c
}

// greets waits until each of the containers answers with a text.
func (l *harness) greets(within time.Duration, want string, of ...container) {
	l.t.Helper()
	for _, c := range of {
		l.eventually(within, c.name+" greets "+want, func() error {
			resp, err := http.Get("http://" + l.addressOn(c, l.network) + ":8080/")
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			text := make([]byte, 100)
			n, _ := resp.Body.Read(text)
			if got := strings.TrimPrefix(string(text[:n]), "greets-"); got != want {
				return fmt.Errorf("it greets %q", got)
			}
			return nil
		})
	}
}

// reports waits until an instance of each container reports as expected.
func (l *harness) reports(within time.Duration, service string, want func(store.Report) error, of ...container) {
	l.t.Helper()
	for _, c := range of {
		l.eventually(within, c.name+" reports", func() error {
			status, err := store.New(l.consul.Client).Status(l.t.Context(), service)
			if err != nil {
				return err
			}
			for _, in := range status.Members {
				if in.ID == c.instance(8080) && in.Report != nil {
					return want(*in.Report)
				}
			}
			return errors.New("it does not report")
		})
	}
}

func runs(version uint64) func(store.Report) error {
	return func(r store.Report) error {
		if r.State != store.Applied || r.Version != version {
			return fmt.Errorf("%+v", r)
		}
		return nil
	}
}

func (l *harness) apply(service, text string) {
	l.t.Helper()
	h, err := store.New(l.consul.Client).Apply(l.t.Context(), store.Item{Service: service}, store.Change{Text: []byte(text), By: "test"})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Logf("applied version %d of %s", h.Version, service)
}

// mostOut tracks how many instances of a service are out of service or not passing at a time, once all were passing.
func (l *harness) mostOut(service string, all int) func() int {
	ctx, cancel := context.WithCancel(context.Background())
	most, done := 0, make(chan struct{})
	go func() {
		defer close(done)
		for index := uint64(0); ctx.Err() == nil; {
			entries, meta, err := l.consul.Health().Service(service, "", true, (&api.QueryOptions{WaitIndex: index, WaitTime: time.Second}).WithContext(ctx))
			if err == nil {
				index, most = meta.LastIndex, max(most, all-len(entries))
			}
		}
	}()
	return func() int { cancel(); <-done; return most }
}

func TestE2EGroupOfContainers(t *testing.T) {
	l := newHarness(t)
	r := l.registrar(l.groups)
	var all []container
	for n := range 3 {
		all = append(all, l.greeter("app", n, "--label", "SERVICE_CONFIG=/etc/app.conf"))
	}
	for _, c := range all {
		l.expect(20*time.Second, c.instance(8080), "passing")
	}
	l.greets(soon, "nobody", all...)

	out := l.mostOut("app", 3)
	l.apply("app", "one")
	began := time.Now()
	l.reports(40*time.Second, "app", runs(1), all...)
	l.greets(soon, "one", all...)
	if n := out(); n != 1 {
		t.Errorf("%d were out at a time, want 1", n)
	}
	t.Logf("three containers rolled in %v", time.Since(began).Round(time.Millisecond))

	// A configuration with which the first container cannot start.
	out = l.mostOut("app", 3)
	l.apply("app", "crash")
	var failed []string
	l.eventually(60*time.Second, "the roll is halted and the first is back", func() error {
		status, err := store.New(l.consul.Client).Status(t.Context(), "app")
		if err != nil {
			return err
		}
		failed = nil
		for _, in := range status.Members {
			if in.Report != nil && in.Report.State == store.Failed {
				failed = append(failed, in.Report.Reason)
			}
		}
		if len(failed) != 1 {
			return fmt.Errorf("%d failed", len(failed))
		}
		return nil
	})
	t.Logf("reason: %s", failed[0])
	if !strings.Contains(failed[0], "the container ended with exit code 7") {
		t.Errorf("the reason is %q", failed[0])
	}
	for _, c := range all {
		l.expect(soon, c.instance(8080), "passing")
	}
	l.greets(soon, "one", all...)
	if n := out(); n != 1 {
		t.Errorf("%d were out at a time, want 1", n)
	}

	// Containers created afterwards.
	l.apply("app", "two")
	l.reports(40*time.Second, "app", runs(3), all...)
	const tries = 3
	for n := range tries {
		c := l.greeter("app", 10+n, "--label", "SERVICE_CONFIG=/etc/app.conf")
		l.greets(20*time.Second, "two", c)
		l.reports(20*time.Second, "app", runs(3), c)
		l.docker("rm", "--force", c.id)
	}
	const before = " before its start"
	t.Logf("docker run: %d of %d had it before their start", strings.Count(r.log.String(), before), tries)
	created := l.greeter("app", 20, "--label", "SERVICE_CONFIG=/etc/app.conf", "create")
	l.eventually(soon, "a container that is only created has it", func() error {
		if !strings.Contains(r.log.String(), before+"\" container="+created.id[:12]) {
			return errors.New("not yet")
		}
		return nil
	})
	l.docker("start", created.id)
	l.greets(20*time.Second, "two", created)
	l.reports(20*time.Second, "app", runs(3), created)
	if log := r.log.String(); regexp.MustCompile(`msg="applying a change to \S+" container=` + regexp.QuoteMeta(created.name)).MatchString(log) {
		t.Error("it was changed after its start")
	}
	l.docker("rm", "--force", created.id)

	// A restart order.
	startedAt := l.inspect(all[0].id, ".State.StartedAt")
	if _, err := store.New(l.consul.Client).Restart(t.Context(), "app", "test", ""); err != nil {
		t.Fatal(err)
	}
	l.reports(40*time.Second, "app", func(r store.Report) error {
		if r.Restart != 1 || r.State != store.Applied {
			return fmt.Errorf("%+v", r)
		}
		return nil
	}, all...)
	if l.inspect(all[0].id, ".State.StartedAt") == startedAt {
		t.Error("it was not restarted")
	}
}

func TestE2EGroupReactions(t *testing.T) {
	l := newHarness(t)
	l.registrar(l.groups)
	config := "SERVICE_CONFIG=/etc/app.conf"
	hup := l.greeter("hup", 0, "--label", config, "--label", "SERVICE_CONFIG_ON_CHANGE=HUP")
	none := l.greeter("none", 0, "--label", config, "--label", "SERVICE_CONFIG_ON_CHANGE=none")
	missing := l.greeter("missing", 0, "--label", "SERVICE_CONFIG=/nowhere/app.conf")
	readOnly := l.greeter("readonly", 0, "--label", "SERVICE_CONFIG=/etc/app.conf", "--read-only", "--tmpfs", "/tmp")
	temporary := l.greeter("temporary", 0, "--label", "SERVICE_CONFIG=/run/app/app.conf", "--tmpfs", "/run/app")
	files := l.greeter("files", 0, "--label", "SERVICE_FILES=/etc", "--label", "SERVICE_ON_FILE=HUP")
	for _, c := range []container{hup, none, missing, readOnly, temporary, files} {
		l.expect(20*time.Second, c.instance(8080), "passing")
	}
	started := func(c container) string { return l.inspect(c.id, ".State.StartedAt") }
	before := []string{started(hup), started(none), started(files)}
	for _, service := range []string{"hup", "none", "missing", "readonly", "temporary"} {
		l.apply(service, "one")
	}
	l.reports(20*time.Second, "hup", runs(1), hup)
	l.greets(soon, "one", hup)
	l.reports(20*time.Second, "none", runs(1), none)
	l.greets(soon, "nobody", none)
	if text := l.docker("exec", none.id, "cat", "/etc/app.conf"); text != "one" {
		t.Errorf("the file has %q", text)
	}
	for c, reason := range map[container]string{
		missing:   "the directory does not exist: create it in the image, or mount a volume there",
		readOnly:  "it is read-only: mount a volume there that can be written",
		temporary: "/run/app/app.conf is in the tmpfs /run/app, where Docker cannot put files",
	} {
		l.reports(20*time.Second, c.service, func(r store.Report) error {
			if r.State != store.Failed || !strings.Contains(r.Reason, reason) {
				return fmt.Errorf("%+v", r)
			}
			return nil
		}, c)
		l.expect(soon, c.instance(8080), "passing")
	}
	if _, err := store.New(l.consul.Client).Apply(t.Context(), store.Item{Service: "files", File: "app.conf"}, store.Change{Text: []byte("file")}); err != nil {
		t.Fatal(err)
	}
	l.greets(20*time.Second, "file", files)
	if after := []string{started(hup), started(none), started(files)}; !slices.Equal(after, before) {
		t.Error("one was restarted")
	}
}

func TestE2EGroupLeader(t *testing.T) {
	l := newHarness(t)
	l.registrar(l.groups)
	var all []container
	for n := range 2 {
		all = append(all, l.greeter("db", n, "--label", "SERVICE_TOPOLOGY=leader"))
	}
	leads := func(of ...container) (who container) {
		l.eventually(20*time.Second, "one leads", func() error {
			roles := map[string]container{}
			for _, c := range of {
				in, err := l.instance(c.instance(8080))
				if err != nil || in.AgentService == nil || len(in.Tags) != 1 || in.status != "passing" {
					return fmt.Errorf("%s has no role (%v)", c.name, err)
				}
				roles[in.Tags[0]] = c
			}
			if who = roles["leader"]; len(roles) != len(of) || who.id == "" {
				return fmt.Errorf("roles: %v", roles)
			}
			return nil
		})
		return who
	}
	first := leads(all...)
	other := all[0]
	if first == all[0] {
		other = all[1]
	}
	began := time.Now()
	l.docker("stop", first.id)
	if leads(other) != other {
		t.Error("the other does not lead")
	}
	t.Logf("docker stop of the leader → the other has the tag leader: %v", time.Since(began).Round(time.Millisecond))
}
