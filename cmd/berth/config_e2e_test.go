//go:build e2e

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/deploy/testenv"
	"berth/registrar/group/store"
)

// groupLab is a Consul, and berth's commands.
type groupLab struct {
	testing.TB
	*testenv.Consul
}

func startGroupLab(t testing.TB, args ...string) *groupLab {
	t.Helper()
	address := testenv.FreeAddress(t, "127.0.0.1")
	c := testenv.StartConsul(t, testenv.ConsulOptions{
		Name: testenv.Name(t) + "-consul", Address: address, Docker: []string{"--publish", address + ":8500"},
		// The commands run in this process, and keep their connections.
		Args: append([]string{"-dev", "-client=0.0.0.0", "-hcl=limits { http_max_conns_per_client = 0 }"}, args...), Token: "root",
	})
	c.Answers(t)
	t.Setenv(api.HTTPAddrEnvName, address)
	return &groupLab{t, c}
}

// outcome is what a command has printed, and its exit code.
type outcome struct {
	out, err string
	code     int
}

// berth runs a command as main does.
func (l *groupLab) berth(stdin string, args ...string) outcome {
	var stderr testenv.Log
	return l.berthTo(&stderr, stdin, args...)
}

func (l *groupLab) berthTo(stderr *testenv.Log, stdin string, args ...string) outcome {
	var stdout bytes.Buffer
	cmd := rootCommand()
	cmd.SetArgs(args)
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SetOut(&stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(l.Context())
	code := exitCode(l.Context(), stderr, err)
	return outcome{stdout.String(), stderr.String(), code}
}

// ok runs a command that has to succeed without a warning, and returns what it prints.
func (l *groupLab) ok(stdin string, args ...string) string {
	l.Helper()
	got := l.berth(stdin, args...)
	if got.code != 0 || got.err != "" {
		l.Fatalf("berth %s: exit code %d\n%s%s", strings.Join(args, " "), got.code, got.out, got.err)
	}
	return got.out
}

// fails runs a command that has to exit with a code, and to say each of these texts.
func (l *groupLab) fails(code int, args []string, says ...string) outcome {
	l.Helper()
	got := l.berth("", args...)
	l.check(got, code, says...)
	return got
}

func (l *groupLab) check(got outcome, code int, says ...string) {
	l.Helper()
	if got.code != code {
		l.Errorf("exit code %d, want %d\n%s%s", got.code, code, got.out, got.err)
	}
	for _, text := range says {
		if !strings.Contains(got.out+got.err, text) {
			l.Errorf("it does not say %q:\n%s%s", text, got.out, got.err)
		}
	}
}

// instance is one that runs what a test says.
type instance struct {
	*groupLab
	service, id, session string
}

// start registers an instance, which runs no version yet.
func (l *groupLab) start(service, id string) *instance {
	l.Helper()
	if err := l.Agent().ServiceRegister(&api.AgentServiceRegistration{ID: id, Name: service, Address: "127.0.0.1", Port: 80}); err != nil {
		l.Fatal(err)
	}
	session, _, err := l.Session().CreateNoChecks(&api.SessionEntry{Name: id, Behavior: api.SessionBehaviorDelete}, nil)
	if err != nil {
		l.Fatal(err)
	}
	i := &instance{l, service, id, session}
	i.report(store.Report{State: store.Applied})
	return i
}

// report writes what the instance says of itself.
func (i *instance) report(r store.Report) {
	i.Helper()
	r.Instance, r.Since = i.id, time.Now()
	value, err := json.Marshal(r)
	if err != nil {
		i.Fatal(err)
	}
	key := "berth/applied/" + i.service + "/" + url.PathEscape(i.id)
	if held, _, err := i.KV().Acquire(&api.KVPair{Key: key, Value: value, Session: i.session}, nil); err != nil || !held {
		i.Fatalf("report of %s: %t, %v", i.id, held, err)
	}
}

// runs reports that the instance runs a version of a text.
func (i *instance) runs(version uint64, text string) {
	i.Helper()
	i.report(store.Report{Version: version, Sum: store.Sum([]byte(text)), State: store.Applied})
}

// halt leaves behind that a change was halted.
func (l *groupLab) halt(service string, h store.Halt) {
	l.Helper()
	value, err := json.Marshal(store.Roll{Halted: &h})
	if err != nil {
		l.Fatal(err)
	}
	if _, err := l.KV().Put(&api.KVPair{Key: "berth/rolling/" + service, Value: value}, nil); err != nil {
		l.Fatal(err)
	}
}

// applied waits until a version of a service's configuration is current.
func (l *groupLab) applied(service string, version uint64) {
	l.Helper()
	testenv.Eventually(l, 10*time.Second, "the version is applied", func() error {
		v, err := store.New(l.Client).Current(l.Context(), store.Item{Service: service})
		if err == nil && v.Version != version {
			err = fmt.Errorf("it is %d", v.Version)
		}
		return err
	})
}

func (l *groupLab) in(t *testing.T) *groupLab { return &groupLab{t, l.Consul} }

func TestE2EConfigCommands(t *testing.T) {
	lab := startGroupLab(t)
	dir := t.TempDir()
	t.Run("versions", func(t *testing.T) { lab.in(t).versions(dir) })
	t.Run("refused", func(t *testing.T) { lab.in(t).refused(dir) })
	t.Run("by hand", func(t *testing.T) { lab.in(t).byHand() })
	t.Run("files", func(t *testing.T) { lab.in(t).files(dir) })
	t.Run("wait", func(t *testing.T) { lab.in(t).waits() })
	t.Run("restart", func(t *testing.T) { lab.in(t).restarts() })
	t.Run("completion", func(t *testing.T) { completesGroups(t, lab.in(t)) })
}

// versions goes through the life of a configuration.
func (l *groupLab) versions(dir string) {
	one, two := l.start("app", "app-1"), l.start("app", "app-2")
	file := testenv.File(l, dir, "config.yml", "greeting: Hi\n")
	l.fails(1, []string{"config", "status", "app"}, "app has no configuration", "app-1", "app-2")
	if got := l.ok("", "config", "apply", "app", file, "--strategy", "rolling"); got != "app: version 1 applied: 2 instances follow, one at a time\n" {
		l.Errorf("%q", got)
	}
	if got := l.ok("greeting: Hi\n", "config", "apply", "app", "-"); got != "app: version 1 has this text already\n" {
		l.Errorf("the same text: %q", got)
	}
	l.ok("greeting: Hi\n", "config", "apply", "app", "-", "--version", "7")
	const text = "greeting = \"Sup\"\r\n"
	if got := l.ok(text, "config", "apply", "app.default", "-"); !strings.HasPrefix(got, "app: version 8 applied") {
		l.Errorf("the next version: %q", got)
	}
	if got := l.ok("", "config", "get", "app"); got != text {
		l.Errorf("byte for byte: %q", got)
	}
	if got := l.ok("", "config", "get", "app", "7"); got != "greeting: Hi\n" {
		l.Errorf("version 7: %q", got)
	}
	l.fails(1, []string{"config", "get", "app", "5"}, "berth: app has no version 5: versions 1 to 8 are kept")
	history := strings.Fields(l.ok("", "config", "history", "app"))
	if n := slices.Index(history, "8"); n < 0 || slices.Index(history, "1") < n || !slices.Contains(history, operator()) {
		l.Errorf("history: %q", history)
	}
	var newest store.Header
	if err := json.NewDecoder(strings.NewReader(l.ok("", "config", "history", "app", "--format", "json"))).Decode(&newest); err != nil ||
		newest.Version != 8 || newest.Replaces != 7 || newest.By != operator() || newest.Format != "toml" {
		l.Errorf("history as JSON: %+v, %v", newest, err)
	}

	// As diff does.
	l.check(l.berth("", "config", "diff", "app"), 1, "--- app version 7\n+++ app version 8\n", "-greeting: Hi\n", "+greeting = \"Sup\"\r\n")
	l.check(l.berth("", "config", "diff", "app", "1"), 1, "--- app version 1\n+++ app version 8\n")
	if got := l.ok("", "config", "diff", "app", "1", "7"); got != "" {
		l.Errorf("nothing differs: %q", got)
	}
	l.fails(2, []string{"config", "diff", "app", "5"}, "app has no version 5")

	// Which version do they run?
	one.runs(8, text)
	two.report(store.Report{Version: 7, State: store.Failed, FailedVersion: 8, Reason: "exit \x1b[31m1"})
	l.halt("app", store.Halt{Version: 8, Instance: "app-2", Reason: "exit \x1b[31m1", At: time.Now()})
	got := l.fails(1, []string{"config", "status", "app"}, "app: version 8, applied ", " by "+operator(), "halted ", " at app-2: exit ",
		"berth: app: 1 of 2 instances do not run version 8\n")
	if strings.Contains(got.out+got.err, "\x1b") || !strings.Contains(got.out, `version 8 failed: exit \x1b[31m1; it runs version 7`) {
		l.Errorf("status:\n%s", got.out)
	}
	two.runs(8, text)
	l.check(l.berth("", "config", "status", "app"), 0, "app-1", "app-2")
	var status statusJSON
	if err := json.Unmarshal([]byte(l.ok("", "config", "status", "app", "--format", "json")), &status); err != nil || !status.Applied ||
		status.Wanted.Version != 8 || len(status.Instances) != 2 || !status.Instances[1].Applied || status.Instances[1].Report.Version != 8 || status.Roll == nil || status.Roll.Halted.Instance != "app-2" {
		l.Errorf("status as JSON: %+v, %v", status, err)
	}

	if got := l.ok("", "config", "rollback", "app"); !strings.HasPrefix(got, "app: version 9 applied, the text of version 7") {
		l.Errorf("rollback: %q", got)
	}
	if got := l.ok("", "config", "rollback", "app", "1"); got != "app: version 9 has this text already\n" {
		l.Errorf("rollback to the same text: %q", got)
	}
	if got := l.ok("", "config", "rollback", "app", "8"); !strings.HasPrefix(got, "app: version 10 applied, the text of version 8") {
		l.Errorf("rollback to version 8: %q", got)
	}
	if got := l.ok("", "config", "get", "app"); got != text {
		l.Errorf("after the rollback: %q", got)
	}

	// The group is the service app-prod.
	l.start("app-prod", "app-prod-1")
	l.ok("a = 1", "config", "apply", "app.prod", "-")
	if got := l.ok("", "config", "get", "app-prod"); got != "a = 1" {
		l.Errorf("of the group: %q", got)
	}
}

// refused has nothing written that is wrong.
func (l *groupLab) refused(dir string) {
	l.start("shop", "shop-1")
	file := testenv.File(l, dir, "shop.toml", "a = 1\n")
	l.ok("", "config", "apply", "shop", file, "--version", "7")
	index := func() uint64 {
		l.Helper()
		pair, _, err := l.KV().Get("berth/config/shop", nil)
		if err != nil || pair == nil {
			l.Fatal(pair, err)
		}
		return pair.ModifyIndex
	}
	before := index()
	for _, version := range []string{"3", "7"} {
		l.fails(1, []string{"config", "apply", "shop", file, "--version", version}, "berth: shop: version "+version+" is not newer than 7, applied ", " by "+operator())
	}
	testenv.File(l, dir, "shop.toml", "a = 1\nb = = 2\n")
	l.fails(1, []string{"config", "apply", "shop", file}, "shop.toml", "line 2, column 5")
	testenv.File(l, dir, "shop.toml", "a = \""+strings.Repeat("x", store.Limit)+"\"")
	l.fails(1, []string{"config", "apply", "shop", file}, "shop.toml is too large: Consul takes up to 523264 bytes")
	if index() != before {
		l.Error("what was refused has changed the configuration")
	}
	large := strings.Repeat("x", store.Limit)
	l.ok(large, "config", "apply", "shop", "-", "--raw")
	if got := l.ok("", "config", "get", "shop"); got != large {
		l.Errorf("the largest text came back with %d bytes", len(got))
	}

	// Two operators at once: one of them wins, and the other one knows that he has not.
	var operators sync.WaitGroup
	outcomes := make([]outcome, 8)
	for n := range outcomes {
		operators.Go(func() {
			outcomes[n] = l.berth(fmt.Sprintf("n = %d", n), "config", "apply", "shop", "-", "--version", "20")
		})
	}
	operators.Wait()
	won := 0
	for n, o := range outcomes {
		switch {
		case o.code == 0:
			won++
			if got := l.ok("", "config", "get", "shop"); got != fmt.Sprintf("n = %d", n) {
				l.Errorf("operator %d was told to have won, the text is %q", n, got)
			}
		case !strings.Contains(o.err, "version 20 is not newer than 20"):
			l.Errorf("the one who lost: %s", o.err)
		}
	}
	if won != 1 {
		l.Errorf("%d have won", won)
	}

	// Nobody would apply it, but it is there.
	l.check(l.berth("a = 1", "config", "apply", "shpo", "-"), 0, "warning: no instance of shpo is registered in Consul, so none applies it (did you mean shop?)\n", "shpo: version 1 applied\n")
	l.fails(1, []string{"config", "status", "shpo"}, "berth: shpo: no instance is registered\n")
	l.fails(1, []string{"config", "get", "shpp"}, "berth: shpp has no configuration (did you mean ")
	l.fails(1, []string{"restart", "shoq"}, "no instance of shoq is registered in Consul, so none restarts (did you mean shop?)")
}

// byHand has somebody write the key by other means.
func (l *groupLab) byHand() {
	l.start("web", "web-1").runs(1, "a = 1")
	l.ok("a = 1", "config", "apply", "web", "-")
	l.check(l.berth("", "config", "status", "web"), 0)
	if _, err := l.KV().Put(&api.KVPair{Key: "berth/config/web", Value: []byte("a = 2"), Flags: 1}, nil); err != nil {
		l.Fatal(err)
	}
	l.fails(1, []string{"config", "status", "web"}, "web: version 1, not applied by berth", "runs version 1 with another text")
	l.check(l.berth("", "config", "diff", "web"), 1, "-a = 1", "+a = 2")
	if got := l.ok("a = 2", "config", "apply", "web", "-"); !strings.HasPrefix(got, "web: version 2 applied") {
		l.Errorf("the text that was written by hand: %q", got)
	}
	if _, err := l.KV().Put(&api.KVPair{Key: "berth/config/web", Value: []byte("a = 3")}, nil); err != nil {
		l.Fatal(err)
	}
	l.fails(1, []string{"config", "status", "web"}, "web: a text without a version, not applied by berth")
	l.check(l.berth("", "config", "rollback", "web"), 0, "the text of version 2")
	if got := l.ok("", "config", "get", "web"); got != "a = 2" {
		l.Errorf("after the rollback: %q", got)
	}
}

func (l *groupLab) files(dir string) {
	l.start("site", "site-1")
	if got := l.ok("", "file", "list", "site"); got != "site has no files\n" {
		l.Errorf("no files: %q", got)
	}
	const logo = "\x89PNG\r\n\x00\xff\x1b[2J"
	if err := os.WriteFile(filepath.Join(dir, "logo.png"), []byte(logo), 0o644); err != nil {
		l.Fatal(err)
	}
	if got := l.ok("", "file", "put", "site", filepath.Join(dir, "logo.png")); !strings.HasPrefix(got, "site: logo.png: version 1 applied") {
		l.Errorf("put: %q", got)
	}
	if got := l.ok(logo, "file", "put", "site", "-", "--name", "logo.png"); got != "site: logo.png: version 1 is this file already\n" {
		l.Errorf("put again: %q", got)
	}
	l.ok("other", "file", "put", "site", "-", "--name", "logo.png", "--version", "5")
	l.check(l.berth("x", "file", "put", "site", "-", "--name", "logo.png", "--version", "5"), 1, "site: logo.png: version 5 is not newer than 5, applied ")
	l.ok("", "file", "put", "site", filepath.Join(dir, "logo.png"), "--name", "b.png")
	if got := l.ok("", "file", "get", "site", "logo.png", "1"); got != logo {
		l.Errorf("version 1: %q", got)
	}
	if got := l.ok("", "file", "get", "site", "logo.png"); got != "other" {
		l.Errorf("the current version: %q", got)
	}
	if got := strings.Split(l.ok("", "file", "list", "site"), "\n"); len(got) != 4 || !strings.HasPrefix(got[0], "NAME ") ||
		!strings.HasPrefix(got[1], "b.png     1 ") || !strings.HasPrefix(got[2], "logo.png  5 ") {
		l.Errorf("list: %q", got)
	}
	if got := l.ok("", "file", "list", "site", "--format", "json"); !strings.HasPrefix(got, `{"name":"b.png","version":1,`) {
		l.Errorf("list as JSON: %q", got)
	}
	l.fails(1, []string{"file", "get", "site", "loog.png"}, "berth: site has no file loog.png (did you mean logo.png?)")
	l.fails(1, []string{"file", "get", "site", "logo.png", "3"}, "berth: site: logo.png has no version 3: versions 1 to 5 are kept")
	l.fails(2, []string{"file", "get", "site", "../logo.png"}, "../logo.png")
	if got := l.ok("", "file", "rm", "site", "logo.png"); got != "site: logo.png removed\n" {
		l.Errorf("rm: %q", got)
	}
	l.fails(1, []string{"file", "rm", "site", "logo.png"}, "site has no file logo.png")
	l.fails(1, []string{"file", "get", "site", "logo.png"}, "site has no file logo.png")
	if got := l.ok("", "file", "get", "site", "logo.png", "1"); got != logo {
		l.Errorf("the history stays: %q", got)
	}
	if got := l.ok("new", "file", "put", "site", "-", "--name", "logo.png"); !strings.Contains(got, "version 6 applied") && !strings.Contains(got, "version 7 applied") {
		l.Errorf("the numbers go on: %q", got)
	}
	l.ok("", "file", "history", "site", "logo.png")
}

func (l *groupLab) waits() {
	one, two := l.start("pay", "pay-1"), l.start("pay", "pay-2")
	const text = "a = 1"
	var stderr testenv.Log
	done := make(chan outcome, 1)
	apply := func(text, wait string) {
		stderr = testenv.Log{}
		go func() { done <- l.berthTo(&stderr, text, "config", "apply", "pay", "-", "--wait", wait) }()
	}
	ended := func() outcome {
		l.Helper()
		select {
		case o := <-done:
			return o
		case <-time.After(10 * time.Second):
			l.Fatalf("it still waits\n%s", stderr.String())
		}
		return outcome{}
	}
	apply(text, "60s")
	l.applied("pay", 1)
	one.runs(1, text)
	stderr.Wait(l, "pay-1 runs version 1 (1 of 2)\n")
	if err := l.Agent().EnableServiceMaintenance("pay-2", "drained"); err != nil {
		l.Fatal(err)
	}
	two.report(store.Report{State: store.Applying})
	two.runs(1, text) // and not ready
	three := l.start("pay", "pay-3")
	three.runs(1, text)
	stderr.Wait(l, "pay-3 runs version 1 (2 of 3)\n")
	select {
	case o := <-done:
		l.Fatalf("it does not wait until the instance is ready: %+v", o)
	default:
	}
	if err := l.Agent().DisableServiceMaintenance("pay-2"); err != nil {
		l.Fatal(err)
	}
	l.check(ended(), 0, "pay-2 runs version 1 (3 of 3)\n", "pay: version 1 applied", "pay: every instance runs version 1 (3)\n")

	// The same text: all run it, so it ends at once.
	apply(text, "60s")
	l.check(ended(), 0, "pay: version 1 has this text already\n", "pay: every instance runs version 1 (3)\n")

	// The time is over.
	apply("a = 2", "1s")
	l.applied("pay", 2)
	one.runs(2, "a = 2")
	two.report(store.Report{Version: 1, State: store.Waiting, Reason: "waits for a restart"})
	l.check(ended(), 1, "berth: pay: after 1s not every instance runs version 2\n",
		"berth: pay-2: waits for a restart; it runs version 1\n", "berth: pay-3: runs version 1\n")

	// Nothing more will happen.
	apply("a = 3", "60s")
	l.applied("pay", 3)
	one.report(store.Report{Version: 2, State: store.Failed, FailedVersion: 3, Reason: "exit code 1"})
	l.halt("pay", store.Halt{Version: 3, Instance: "pay-1", Reason: "exit code 1", At: time.Now()})
	l.check(ended(), 1, "berth: pay-1: version 3 failed: exit code 1\n", "berth: pay-3: runs version 1; the change was halted at pay-1\n")

	// Another one comes in between.
	apply("a = 4", "60s")
	l.applied("pay", 4)
	l.ok("a = 5", "config", "apply", "pay", "-")
	l.check(ended(), 1, "berth: pay: version 4 was replaced by version 5 of "+operator())

	// A signal ends the wait, not the change.
	cmd := exec.CommandContext(l.Context(), "berth", "config", "apply", "pay", "-", "--wait", "60s")
	cmd.Stdin = strings.NewReader("a = 6")
	var out testenv.Log
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		l.Fatal(err)
	}
	one.runs(6, "a = 6")
	out.Wait(l, "pay-1 runs version 6 (1 of 3)\n")
	_ = cmd.Process.Signal(syscall.SIGINT)
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 || !strings.Contains(out.String(), "berth: ended by interrupt (pay: stopped waiting for version 6; its instances carry on)\n") {
		l.Errorf("exit code %d: %s", code, out.String())
	}
}

func (l *groupLab) restarts() {
	one, two := l.start("db", "db-1"), l.start("db", "db-2")
	l.halt("db", store.Halt{Version: 0, Instance: "db-1", Reason: "of another change"})
	order := func() (*testenv.Log, chan outcome) {
		var stderr testenv.Log
		done := make(chan outcome, 1)
		go func() { done <- l.berthTo(&stderr, "", "restart", "db", "--wait", "30s") }()
		return &stderr, done
	}
	stderr, done := order()
	testenv.Eventually(l, 10*time.Second, "the order is there", func() error {
		pair, _, err := l.KV().Get("berth/restart/db", nil)
		if err == nil && (pair == nil || pair.Flags != 1) {
			err = fmt.Errorf("it is %v", pair)
		}
		return err
	})
	one.report(store.Report{State: store.Applied, Restart: 1})
	stderr.Wait(l, "db-1 has restarted (1 of 2)\n")
	two.report(store.Report{State: store.Applied, Restart: 1})
	l.check(<-done, 0, "db: restart ordered: 2 instances follow", "db: every instance has restarted (2)\n")

	_, done = order()
	testenv.Eventually(l, 10*time.Second, "the order is there", func() error {
		pair, _, err := l.KV().Get("berth/restart/db", nil)
		if err == nil && (pair == nil || pair.Flags != 2) {
			err = fmt.Errorf("it is %v", pair)
		}
		return err
	})
	l.halt("db", store.Halt{Version: 0, Instance: "db-1", Reason: "exit code 1", At: time.Now()})
	l.check(<-done, 1, "berth: db-1: the restart failed: exit code 1\n", "berth: db-2: has not restarted; the change was halted at db-1\n")
}

func completesGroups(t *testing.T, l *groupLab) {
	l.start("cache", "cache-1")
	l.ok("a = 1", "config", "apply", "cache", "-")
	l.ok("a = 2", "config", "apply", "cache", "-")
	l.ok("x", "file", "put", "cache", "-", "--name", "x.txt")
	l.berth("a = 1", "config", "apply", "later", "-")
	const files, nothingElse, inOrder = "0", "4", "36"
	for _, tt := range []struct{ words, offered, directive string }{
		{"config get cache ", "2 1", inOrder},
		{"config diff cache 1 ", "2 1", inOrder},
		{"config get cache 1 ", "", nothingElse},
		{"file rm cache ", "x.txt", nothingElse},
		{"file get cache x.txt ", "1", inOrder},
		{"file put cache ", "", files},
	} {
		offered, directive := completed(t, strings.Split(tt.words, " ")...)
		if got := strings.Join(offered, " "); got != tt.offered || directive != tt.directive {
			t.Errorf("%q: %q :%s, want %q :%s", tt.words, got, directive, tt.offered, tt.directive)
		}
	}
	for _, command := range []string{"config status", "restart", "file list"} {
		offered, _ := completed(t, strings.Split(command+" ", " ")...)
		if !slices.Contains(offered, "cache") || !slices.Contains(offered, "later") || !slices.IsSorted(offered) {
			t.Errorf("%s: %q", command, offered)
		}
	}
}

// While Consul is away a command tries for a while, and says so in a line; one that comes back in time is no failure.
func TestE2EConfigConsulAway(t *testing.T) {
	l := startGroupLab(t)
	l.ok("", "file", "list", "app")
	l.Do(t, "pause")
	paused := true
	t.Cleanup(func() {
		if paused {
			l.Do(t, "unpause")
		}
	})
	for _, args := range [][]string{{"config", "status", "app"}, {"file", "rm", "app", "x"}, {"restart", "app"}} {
		begun := time.Now()
		got := l.fails(1, append(args, "--timeout", "1s"), "gave up after 1s: ", "Consul at "+l.Address+" does not answer")
		if took := time.Since(begun); took > 3*time.Second || strings.Count(got.err, "\n") != 1 {
			t.Errorf("after %s:\n%s", took, got.err)
		}
	}
	done := make(chan outcome, 1)
	go func() { done <- l.berth("a = 1", "config", "apply", "app", "-", "--timeout", "30s") }()
	select {
	case o := <-done:
		t.Fatalf("it does not wait: %+v", o)
	case <-time.After(300 * time.Millisecond):
	}
	l.Do(t, "unpause")
	paused = false
	l.check(<-done, 0, "app: version 1 applied\n")
	if got := l.ok("", "config", "history", "app", "--format", "json"); strings.Count(got, "\n") != 1 {
		t.Errorf("it was applied more than once:\n%s", got)
	}
}

// What the token does not permit is said as such, at once.
func TestE2EConfigPermissions(t *testing.T) {
	l := startGroupLab(t, `-hcl=acl { enabled = true, default_policy = "deny", tokens { initial_management = "root", agent = "root" } }`)
	begun := time.Now()
	l.check(l.berth("a = 1", "config", "apply", "app", "-"), 1, "berth: app: ", "Consul refuses it: Permission denied: ", `berth/config/app`)
	l.fails(1, []string{"config", "get", "app"}, "Consul refuses it: ")
	l.fails(1, []string{"file", "get", "app", "x"}, "Consul refuses it: ")
	l.fails(1, []string{"restart", "app"}, "Consul refuses it: ")
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("it took %s to say so", took)
	}
	if keys, _, err := l.KV().Keys("", "", nil); err != nil || len(keys) > 0 {
		t.Errorf("keys: %q, %v", keys, err)
	}
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("root\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l.check(l.berth("a = 1", "config", "apply", "app", "-", "--consul-token-file", token), 0, "app: version 1 applied")
}
