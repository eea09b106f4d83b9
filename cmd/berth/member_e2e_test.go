//go:build e2e

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/deploy/consul/policies"
	"berth/deploy/testenv"
	"berth/registrar/group/store"
)

// ring is a Consul as it should be run, with berth service around applications.
type ring struct {
	testing.TB
	consul *testenv.Secured
	dir    string
	n      int
}

// within is the most that anything here takes.
const within = 40 * time.Second

func startRing(t *testing.T) *ring {
	consul := testenv.StartSecured(t, "-hcl=limits { http_max_conns_per_client = 0 }")
	return &ring{t, consul, t.TempDir(), 0}
}

func (r *ring) in(t *testing.T) *ring { return &ring{t, r.consul, t.TempDir(), 0} }

// environment is that of a process which has these rights.
func (r *ring) environment(rules ...string) []string {
	r.Helper()
	return append(os.Environ(), r.consul.Env(testenv.NewToken(r, r.consul.Client, rules...).SecretID)...)
}

// runningMember is an application under berth service.
type runningMember struct {
	*ring
	id, dir, address string
	cmd              *exec.Cmd
	out              *testenv.Log
	ended            chan struct{}
}

const readsRedis = "service \"redis\" { policy = \"read\" }"

const appTemplate = `{{ cfg "greeting" }}{{ if eq (cfg "greeting") "explode" }}{{ cfg "nosuch" }}{{ end }}`

// start runs an application as an instance of a service, with the rights of one.
func (r *ring) start(service string, args ...string) *runningMember {
	r.Helper()
	return r.startAs([]string{policies.Service(service), readsRedis}, service, args...)
}

// prepare makes the directory of an instance.
func (r *ring) prepare(service string) *runningMember {
	r.Helper()
	r.n++
	id := fmt.Sprint(service, "-", r.n)
	m := &runningMember{ring: r, id: id, dir: filepath.Join(r.dir, id), address: testenv.FreeAddress(r, "127.0.0.1"),
		out: new(testenv.Log), ended: make(chan struct{})}
	if err := os.Mkdir(m.dir, 0o755); err != nil {
		r.Fatal(err)
	}
	testenv.File(r, m.dir, "app.ctmpl", appTemplate)
	testenv.File(r, m.dir, "default.toml", "greeting = \"Hi\"\n")
	return m
}

func (r *ring) startAs(rules []string, service string, args ...string) *runningMember {
	r.Helper()
	m := r.prepare(service)
	m.run(rules, service, append([]string{"--render", m.path("app.ctmpl") + ":" + m.path("app.conf"), "--defaults", m.path("default.toml")}, args...)...)
	return m
}

// run starts berth.
func (m *runningMember) run(rules []string, service string, args ...string) {
	m.Helper()
	m.runWith(m.environment(rules...), service, args...)
}

func (m *runningMember) runWith(environment []string, service string, args ...string) {
	m.Helper()
	for n := range args {
		args[n] = strings.ReplaceAll(args[n], "DIR", m.dir)
	}
	args = append([]string{"service", "--name", service, "--id", m.id, "--address", "127.0.0.1", "--port", testenv.Port(m.address),
		"--drain-time", "50ms", "--ready-timeout", "5s", "--log-format", "text"}, args...)
	m.cmd = exec.Command("berth", append(args, "--", "application", m.address, m.path("app.conf"))...)
	m.cmd.Env = environment
	m.cmd.Stdout, m.cmd.Stderr, m.cmd.WaitDelay = m.out, m.out, time.Second
	if err := m.cmd.Start(); err != nil {
		m.Fatal(err)
	}
	go func() { _ = m.cmd.Wait(); close(m.ended) }()
	m.Cleanup(func() {
		if pid := m.answer().PID; m.hasEnded() && pid > 0 {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		_ = m.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-m.ended:
		case <-time.After(within):
			m.Errorf("%s does not end", m.id)
			_ = m.cmd.Process.Kill()
		}
		if m.Failed() {
			m.Logf("log of %s:\n%s", m.id, m.out)
		}
	})
}

func (m *runningMember) hasEnded() bool {
	select {
	case <-m.ended:
		return true
	default:
		return false
	}
}

func (m *runningMember) path(name string) string { return filepath.Join(m.dir, name) }

// answer is what the application says, the zero value if it does not.
func (m *runningMember) answer() (a answered) {
	_ = testenv.GetJSON("http://"+m.address, &a)
	return a
}

// says waits until the application serves a configuration, and returns its answer.
func (m *runningMember) says(config string) (a answered) {
	m.Helper()
	testenv.Eventually(m, within, m.id+" says "+config, func() error {
		if a = m.answer(); a.Config != config {
			return fmt.Errorf("it says %+v\n%s", a, m.out)
		}
		return nil
	})
	return a
}

// logs waits until berth has logged a text.
func (m *runningMember) logs(text string) {
	m.Helper()
	testenv.Eventually(m, within, m.id+" logs "+text, func() error {
		if all := m.out.String(); !strings.Contains(all, text) {
			return errors.New(all)
		}
		return nil
	})
}

// passing waits until so many instances pass.
func (r *ring) passing(service string, n int) {
	r.Helper()
	testenv.Eventually(r, within, fmt.Sprint(n, " of ", service, " pass"), func() error {
		entries, _, err := r.consul.Health().Service(service, "", true, nil)
		if err == nil && len(entries) != n {
			err = fmt.Errorf("%d do", len(entries))
		}
		return err
	})
}

// operate runs a command with the rights of the service's operator.
func (r *ring) operate(service, stdin string, args ...string) outcome {
	r.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.Command("berth", args...)
	cmd.Env = r.environment(policies.Operator(service))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	_ = cmd.Run()
	return outcome{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// expect runs a command that has to exit with a code and to say these texts.
func (r *ring) expect(code int, service, stdin string, args []string, says ...string) {
	r.Helper()
	got := r.operate(service, stdin, args...)
	if got.code != code {
		r.Fatalf("berth %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), got.code, code, got.out, got.err)
	}
	for _, text := range says {
		if !strings.Contains(got.out+got.err, text) {
			r.Errorf("berth %s does not say %q:\n%s%s", strings.Join(args, " "), text, got.out, got.err)
		}
	}
}

// apply applies a greeting and waits until all run it.
func (r *ring) apply(service, greeting string, more ...string) {
	r.Helper()
	r.expect(0, service, fmt.Sprintf("greeting = %q\n", greeting), append([]string{"config", "apply", service, "-", "--wait", "40s"}, more...))
}

func (r *ring) report(m *runningMember, service string) *api.KVPair {
	r.Helper()
	pair, _, err := r.consul.KV().Get(store.AppliedKey(service, m.id), nil)
	if err != nil {
		r.Fatal(err)
	}
	return pair
}

func TestE2EMember(t *testing.T) {
	r := startRing(t)
	for _, tt := range []struct {
		name string
		test func(*ring)
	}{
		{"rolling", (*ring).rolling},
		{"reactions", (*ring).reactions},
		{"strategy none", (*ring).strategyNone},
		{"restart policy", (*ring).restartPolicy},
		{"files", (*ring).files},
		{"binds", (*ring).binds},
		{"leader", (*ring).leader},
		{"killed", (*ring).killed},
		{"failing", (*ring).failing},
		{"older policy", (*ring).olderPolicy},
		{"consul away", (*ring).away},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.test(r.in(t)) })
	}
}

// rolling applies good and bad configurations to three.
func (r *ring) rolling() {
	var all []*runningMember
	pids := func() (out []int) {
		for _, m := range all {
			out = append(out, m.answer().PID)
		}
		return out
	}
	for range 3 {
		all = append(all, r.start("roll", "--user-config", testenv.File(r, r.dir, "user.toml", "")))
	}
	r.passing("roll", 3)
	first := pids()
	r.apply("roll", "Sup")
	for _, m := range all {
		m.says("Sup")
	}
	second := pids()
	for n := range all {
		if first[n] == second[n] {
			r.Errorf("%s was not restarted", all[n].id)
		}
	}
	r.apply("roll", "Yo")
	r.expect(0, "roll", "", []string{"config", "rollback", "roll", "--wait", "40s"})
	r.expect(0, "roll", "", []string{"config", "status", "roll"}, "version 3")
	for _, m := range all {
		m.says("Sup")
	}

	// One that keeps it from starting is taken back on the first, and reaches no other.
	before := pids()
	began := time.Now()
	r.expect(1, "roll", "greeting = \"broken\"\n", []string{"config", "apply", "roll", "-", "--wait", "40s"}, "ended with code 3")
	r.Logf("apply --wait of a broken configuration: %v", time.Since(began).Round(time.Millisecond))
	r.expect(1, "roll", "", []string{"config", "status", "roll"}, "version 4 failed", "halted")
	r.passing("roll", 3)
	same := 0
	for n, pid := range pids() {
		all[n].says("Sup")
		if pid == before[n] {
			same++
		}
	}
	if same != 2 {
		r.Errorf("%d of 3 were left alone, want 2", same)
	}
	r.apply("roll", "Ahoy")
	for _, m := range all {
		m.says("Ahoy")
	}

	// An order to restart takes up what was edited.
	before = pids()
	testenv.File(r, r.dir, "user.toml", "greeting = \"user\"\n") // what was applied counts more
	for _, m := range all {
		testenv.File(r, m.dir, "app.ctmpl", appTemplate+" again")
	}
	r.expect(0, "roll", "", []string{"restart", "roll", "--wait", "40s"})
	for n, m := range all {
		if m.says("Ahoy again").PID == before[n] {
			r.Errorf("%s was not restarted", m.id)
		}
	}
}

// reactions have each command notice a change in another way.
func (r *ring) reactions() {
	signal := r.start("react", "--on-change", "signal:HUP")
	executed := r.start("react", "--on-change", "exec:cp DIR/app.conf DIR/copy")
	none := r.start("react", "--on-change", "none")
	all := []*runningMember{signal, executed, none}
	r.passing("react", 3)
	var before []int
	for _, m := range all {
		before = append(before, m.says("Hi").PID)
	}
	r.apply("react", "Sup")
	r.apply("react", "Yo", "--strategy", "at-once")
	for n, m := range all {
		if pid := m.answer().PID; pid != before[n] {
			r.Errorf("%s was restarted: %d, %d", m.id, before[n], pid)
		}
		if got := contentOf(m.path("app.conf")); got != "Yo" {
			r.Errorf("the file of %s is %q", m.id, got)
		}
	}
	if a := signal.says("Yo"); a.Hangups != 2 {
		r.Errorf("%d hangups", a.Hangups)
	}
	if got := contentOf(executed.path("copy")); got != "Yo" {
		r.Errorf("the command has left %q", got)
	}
	none.says("Hi")

	// SIGHUP kills it: then it is started with what it had.
	r.expect(1, "react", "greeting = \"broken\"\n", []string{"config", "apply", "react", "-", "--wait", "40s"})
	r.passing("react", 3)
	signal.says("Yo")
}

// strategyNone leaves it to a restart.
func (r *ring) strategyNone() {
	m := r.start("later", "--strategy", "none")
	r.passing("later", 1)
	pid := m.says("Hi").PID
	r.expect(0, "later", "greeting = \"Sup\"\n", []string{"config", "apply", "later", "-"})
	testenv.Eventually(r, within, "it waits for a restart", func() error {
		if got := r.operate("later", "", "config", "status", "later"); got.code != 1 || !strings.Contains(got.out, "waits for a restart") {
			return errors.New(got.out + got.err)
		}
		return nil
	})
	if a := m.answer(); a.PID != pid || a.Config != "Hi" || contentOf(m.path("app.conf")) != "Hi" {
		r.Errorf("it did not wait: %+v", a)
	}
	r.expect(0, "later", "", []string{"restart", "later", "--wait", "40s"})
	if m.says("Sup").PID == pid {
		r.Error("it was not restarted")
	}
	r.expect(0, "later", "", []string{"config", "status", "later"})
}

// restartPolicy has a command that ends started again.
func (r *ring) restartPolicy() {
	m := r.start("again", "--restart", "on-failure")
	r.passing("again", 1)
	for range 2 {
		pid := m.says("Hi").PID
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			r.Fatal(err)
		}
		took := testenv.Until(r, within, "it is started again", func() bool { a := m.answer(); return a.PID != 0 && a.PID != pid })
		r.Logf("started again after %v", took.Round(time.Millisecond))
	}
	m.logs("is started again")
	r.passing("again", 1)
	once := r.start("once")
	r.passing("once", 1)
	_ = syscall.Kill(once.says("Hi").PID, syscall.SIGKILL)
	<-once.ended
	if code := once.cmd.ProcessState.ExitCode(); code != 137 {
		r.Errorf("exit code %d", code)
	}
}

// files puts, changes and removes one.
func (r *ring) files() {
	m := r.start("files", "--files", "DIR/files", "--on-file", "exec:echo >>DIR/noticed")
	r.passing("files", 1)
	pid := m.says("Hi").PID
	logo, noticed := m.path("files/logo.png"), 0
	for _, text := range []string{"one", "two", ""} {
		if text != "" {
			r.expect(0, "files", "", []string{"file", "put", "files", testenv.File(r, r.dir, "logo.png", text)})
		} else {
			r.expect(0, "files", "", []string{"file", "rm", "files", "logo.png"})
		}
		noticed++
		testenv.Until(r, within, "the file is "+text, func() bool { return contentOf(logo) == text })
		testenv.Until(r, within, "it is noticed", func() bool { return strings.Count(contentOf(m.path("noticed")), "\n") == noticed })
	}
	if _, err := os.Stat(logo); err == nil {
		r.Error("the file is still there")
	}
	if m.says("Hi").PID != pid {
		r.Error("it was restarted")
	}
}

// binds have the command follow Redis.
func (r *ring) binds() {
	redis := func(address string, port int) {
		r.Helper()
		if err := r.consul.Agent().ServiceRegister(&api.AgentServiceRegistration{ID: "redis", Name: "redis", Address: address, Port: port}); err != nil {
			r.Fatal(err)
		}
	}
	const template = `{{ with bind "redis" }}{{ .Address }}{{ else }}nothing{{ end }}`
	start := func(args ...string) *runningMember {
		m := r.prepare("bound")
		testenv.File(r, m.dir, "app.ctmpl", template)
		m.run([]string{policies.Service("bound"), readsRedis}, "bound",
			append([]string{"--render", m.path("app.ctmpl") + ":" + m.path("app.conf"), "--bind", "redis:redis"}, args...)...)
		return m
	}
	strict, relaxed := start("--binding-mode", "strict"), start()
	strict.logs("waiting for a healthy instance of each service")
	strict.logs("redis:redis")
	if a := relaxed.says("nothing"); a.RedisHost != "" {
		r.Errorf("without Redis: %+v", a)
	}
	if a := strict.answer(); a.PID != 0 {
		r.Errorf("it has not waited: %+v", a)
	}
	for n, at := range []string{"10.1.1.1", "10.1.1.2"} {
		redis(at, 6379+n)
		for _, m := range []*runningMember{strict, relaxed} {
			want := fmt.Sprintf("%s:%d", at, 6379+n)
			if a := m.says(want); a.RedisHost+":"+a.Redis != want {
				r.Errorf("%s: %+v", m.id, a)
			}
		}
		r.passing("bound", 2)
	}

	// Its end is for the templates to tell of; the variables stay.
	if err := r.consul.Agent().ServiceDeregister("redis"); err != nil {
		r.Fatal(err)
	}
	for _, m := range []*runningMember{strict, relaxed} {
		if a := m.says("nothing"); a.RedisHost != "10.1.1.2" || a.Redis != "6380" {
			r.Errorf("%s: %+v", m.id, a)
		}
	}
}

// leader has one of two lead, and the other one when it is gone.
func (r *ring) leader() {
	leads := func(m *runningMember) func() bool {
		return func() bool {
			entries, _, err := r.consul.Health().Service("db", "leader", true, nil)
			return err == nil && len(entries) == 1 && entries[0].Service.ID == m.id
		}
	}
	var all []*runningMember
	for range 3 {
		all = append(all, r.start("db", "--topology", "leader"))
	}
	r.passing("db", 3)
	var first *runningMember
	testenv.Until(r, within, "one leads, and the others follow", func() bool {
		followers, _, err := r.consul.Health().Service("db", "follower", true, nil)
		n := slices.IndexFunc(all, func(m *runningMember) bool { return leads(m)() })
		if n >= 0 {
			first = all[n]
		}
		return err == nil && len(followers) == 2 && n >= 0
	})
	next := func(what string, was *runningMember) (now *runningMember) {
		took := testenv.Until(r, within, "another one leads", func() bool {
			n := slices.IndexFunc(all, func(m *runningMember) bool { return m != was && leads(m)() })
			if n >= 0 {
				now = all[n]
			}
			return n >= 0
		})
		r.Logf("%s: another one has the tag after %v", what, took.Round(time.Millisecond))
		return now
	}
	if err := syscall.Kill(first.answer().PID, syscall.SIGKILL); err != nil {
		r.Fatal(err)
	}
	second := next("the process was killed", first)
	_ = second.cmd.Process.Signal(syscall.SIGTERM)
	next("berth got SIGTERM", second)
	<-second.ended
	if code := second.cmd.ProcessState.ExitCode(); code != 0 {
		r.Errorf("exit code %d", code)
	}
}

// killed has the report of a berth that was killed vanish.
func (r *ring) killed() {
	m := r.start("victim")
	r.passing("victim", 1)
	testenv.Until(r, within, "it reports", func() bool { return r.report(m, "victim") != nil })
	_ = m.cmd.Process.Kill()
	<-m.ended
	took := testenv.Until(r, within, "its report is gone", func() bool { return r.report(m, "victim") == nil })
	r.Logf("berth was killed: its report is gone after %v", took.Round(time.Millisecond))
}

// failing has the reason be told of what cannot be rendered or written.
func (r *ring) failing() {
	m := r.start("fail")
	r.passing("fail", 1)
	pid := m.says("Hi").PID
	r.expect(1, "fail", "greeting = \"explode\"\n", []string{"config", "apply", "fail", "-", "--wait", "3s"}, `there is no key "nosuch"`)
	r.expect(1, "fail", "", []string{"config", "status", "fail"}, `there is no key "nosuch"`)
	if a := m.says("Hi"); a.PID != pid {
		r.Error("it was restarted")
	}
	if err := errors.Join(os.Rename(m.path("app.conf"), m.path("old")), os.Mkdir(m.path("app.conf"), 0o755)); err != nil {
		r.Fatal(err)
	}
	r.expect(1, "fail", "greeting = \"Sup\"\n", []string{"config", "apply", "fail", "-", "--wait", "3s"}, "it is a directory: name the file in it")
	r.expect(1, "fail", "", []string{"config", "status", "fail"}, "it is a directory: name the file in it")
	if err := errors.Join(os.Remove(m.path("app.conf")), os.Rename(m.path("old"), m.path("app.conf"))); err != nil {
		r.Fatal(err)
	}
	r.apply("fail", "Sup again")
	m.says("Sup again")
}

// olderPolicy is that of a token which may only register.
func (r *ring) olderPolicy() {
	m := r.prepare("old")
	testenv.File(r, m.dir, "app.conf", "Hi")
	m.run([]string{`service "old" { policy = "write" } agent_prefix "" { policy = "read" } node_prefix "" { policy = "read" }`}, "old")
	r.passing("old", 1)
	m.says("Hi")
	began := time.Now()
	testenv.Until(r, within, "time for many attempts", func() bool { return time.Since(began) > 5*time.Second })
	log := m.out.String()
	r.Logf("the log of a token that may only register:\n%s", log)
	if n := strings.Count(log, "level=WARN") + strings.Count(log, "level=ERROR"); n > 1 {
		r.Errorf("%d warnings", n)
	}
	_ = m.cmd.Process.Signal(syscall.SIGTERM)
	<-m.ended
	if code := m.cmd.ProcessState.ExitCode(); code != 0 {
		r.Errorf("exit code %d", code)
	}
}

// away stops Consul and starts it again.
func (r *ring) away() {
	rules := []string{policies.Service("off"), readsRedis}
	m := r.start("off")
	r.passing("off", 1)
	r.apply("off", "Sup")
	m.says("Sup")
	earlier, none := r.prepare("off"), r.prepare("off")
	testenv.File(r, earlier.dir, "app.conf", "Earlier")
	args := func(m *runningMember) []string {
		return []string{"--render", m.path("app.ctmpl") + ":" + m.path("app.conf"), "--defaults", m.path("default.toml")}
	}
	environment := r.environment(rules...)
	r.consul.Do(r, "stop", "--time", "2")
	earlier.runWith(environment, "off", args(earlier)...)
	none.runWith(environment, "off", args(none)...)
	earlier.logs("with the files of an earlier run")
	none.logs("waiting for Consul before writing the first files")
	earlier.says("Earlier")
	if a := none.answer(); a.PID != 0 {
		r.Errorf("it has not waited: %+v", a)
	}
	m.says("Sup")
	r.consul.Do(r, "start")
	r.consul.Answers(r)
	for _, m := range []*runningMember{m, earlier, none} {
		m.says("Sup")
	}
	r.passing("off", 3)
	r.apply("off", "Yo")
	for _, m := range []*runningMember{m, earlier, none} {
		m.says("Yo")
	}
}
