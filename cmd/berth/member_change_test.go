package main

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
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
	"berth/deploy/testenv/agenttest"
	"berth/registrar/group"
	"berth/registrar/group/store"
	"berth/registrar/label"
	service "berth/registrar/process"
)

// keys are what Consul's KV holds.
type keys struct {
	mu    sync.Mutex
	pairs map[string]*api.KVPair
	url   string
}

func startKeys(t *testing.T) *keys {
	k := &keys{pairs: map[string]*api.KVPair{}}
	consul := httptest.NewServer(http.HandlerFunc(k.serve))
	t.Cleanup(consul.Close)
	k.url = consul.URL
	return k
}

func (k *keys) serve(w http.ResponseWriter, r *http.Request) {
	k.mu.Lock()
	defer k.mu.Unlock()
	w.Header().Set("X-Consul-Index", "7")
	key, ok := strings.CutPrefix(r.URL.Path, "/v1/kv/")
	if pair := k.pairs[key]; ok && pair != nil {
		_ = json.NewEncoder(w).Encode(api.KVPairs{pair})
		return
	}
	if r.URL.Query().Has("keys") {
		var under []string
		for name := range k.pairs {
			if strings.HasPrefix(name, key) {
				under = append(under, name)
			}
		}
		_ = json.NewEncoder(w).Encode(under)
		return
	}
	w.WriteHeader(http.StatusNotFound)
}

// put puts a file as berth file put does, and returns what an instance reads of it.
func (k *keys) put(service, name, text string, version uint64) store.Header {
	k.mu.Lock()
	defer k.mu.Unlock()
	i := store.Item{Service: service, File: name}
	h := store.Header{Version: version, Replaces: version - 1, Sum: store.Sum([]byte(text)), Format: rawFormat}
	line, _ := json.Marshal(h)
	k.pairs[i.Key()] = &api.KVPair{Key: i.Key(), Value: []byte(text), Flags: version, ModifyIndex: version}
	k.pairs[i.HistoryKey(version)] = &api.KVPair{Key: i.HistoryKey(version), Value: fmt.Appendf(line, "\n%s", text)}
	return h
}

// memberLab is a member with a command that runs.
type memberLab struct {
	*member
	testing.TB
	dir  string
	keys *keys
	out  *testenv.Log
	want group.Wanted
}

const greeting = "greeting = %q\n"

// startMember runs a shell as an instance of app. It notes in the file events what happens to it.
func startMember(t *testing.T, change func(dir string, c *memberConfig)) *memberLab {
	t.Helper()
	l := &memberLab{TB: t, dir: t.TempDir(), keys: startKeys(t), out: new(testenv.Log)}
	c := newConfig()
	c.ConsulAddress = l.keys.url
	c.Member = memberConfig{
		Render:   []string{testenv.File(t, l.dir, "app.ctmpl", `{{ cfg "greeting" }}!`) + ":" + l.path("app.conf")},
		Defaults: testenv.File(t, l.dir, "default.toml", fmt.Sprintf(greeting, "Hi")),
		OnChange: reactionRestart, Strategy: group.Rolling, BindingMode: bindingRelaxed, Topology: topologyNone,
	}
	if change != nil {
		change(l.dir, &c.Member)
	}
	in := label.Process{Host: "vm", Name: "app", Port: 20001, Ready: "none", TTL: 15 * time.Second}
	p := &process{config: c, log: slog.New(slog.NewTextHandler(l.out, nil))}
	consul, err := consulClient(c)
	if err != nil {
		t.Fatal(err)
	}
	if l.member, err = p.newMember(consul, in, "app-1"); err != nil {
		t.Fatal(err)
	}
	if l.service, err = service.New(service.Options{
		Program: "sh", Process: in, ReadyTimeout: 10 * time.Second, StopTimeout: 10 * time.Second, RestartPolicy: service.RestartAlways,
		Start: func() (service.Running, error) {
			return startProcess([]string{"sh", "-c", "D=" + l.dir + `
				[ ! -e $D/broken ] || exit 1
				trap 'echo HUP $(cat $D/app.conf) >>$D/events' HUP; trap 'echo USR1 >>$D/events' USR1
				echo start $(cat $D/app.conf) $REDIS_HOST >>$D/events; while :; do sleep 0.01; done`}, *l.environment.Load())
		},
		Consul: agenttest.New(), Log: slog.New(slog.DiscardHandler),
	}); err != nil {
		t.Fatal(err)
	}
	var others sync.WaitGroup
	if l.templater != nil {
		others.Go(func() { _ = l.templater.Run(t.Context()) })
	}
	l.first()
	others.Go(func() { _, _ = l.service.Run(t.Context()) })
	t.Cleanup(others.Wait)
	testenv.Until(t, 10*time.Second, "the command runs", func() bool { return l.service.State().Ready && contentOf(l.path("events")) != "" })
	return l
}

func (l *memberLab) path(name string) string { return filepath.Join(l.dir, name) }

// first brings the files to what is wanted at first.
func (l *memberLab) first() {
	l.Helper()
	c, err := l.change(l.Context(), l.want)
	if err == nil {
		err = c.files.Apply()
	}
	if err != nil {
		l.Fatal(err)
	}
}

// config has a configuration be wanted.
func (l *memberLab) config(text, format string) {
	v := store.Version{Header: store.Header{Version: l.want.Config.Version + 1, Sum: store.Sum([]byte(text)), Format: format}, Text: []byte(text)}
	l.want.Config = v
}

// file has a file be wanted.
func (l *memberLab) file(name, text string) {
	files := map[string]store.Header{name: l.keys.put("app", name, text, l.want.Files[name].Version+1)}
	for other, h := range l.want.Files {
		if other != name {
			files[other] = h
		}
	}
	l.want.Files = files
}

// prepare prepares what is wanted.
func (l *memberLab) prepare() group.Change {
	l.Helper()
	c, err := l.Prepare(l.Context(), l.want)
	if err != nil {
		l.Fatal(err)
	}
	return c
}

// apply applies what is wanted, and returns what the command has noticed.
func (l *memberLab) apply() string {
	l.Helper()
	c := l.prepare()
	_ = os.Remove(l.path("events"))
	if err := c.Apply(l.Context()); err != nil {
		l.Fatal(err)
	}
	if again := l.prepare(); !again.Empty() {
		l.Error("the same is to be applied again")
	}
	return l.events(c)
}

// events waits until the command has noticed a change, and returns what.
func (l *memberLab) events(c group.Change) string {
	l.Helper()
	if !c.Disrupts() {
		return contentOf(l.path("events"))
	}
	testenv.Until(l, 10*time.Second, "the command notices", func() bool { return strings.Contains(contentOf(l.path("events")), "\n") })
	return strings.TrimSpace(contentOf(l.path("events")))
}

func contentOf(path string) string {
	text, _ := os.ReadFile(path)
	return string(text)
}

// has checks the content of a file, "" = there is none.
func (l *memberLab) has(name, want string) {
	l.Helper()
	if got := contentOf(l.path(name)); got != want {
		l.Errorf("%s is %q, want %q", name, got, want)
	}
}

// refuses checks that what is wanted cannot be applied, and that nothing is touched.
func (l *memberLab) refuses(says string) {
	l.Helper()
	before := l.tree()
	if _, err := l.Prepare(l.Context(), l.want); err == nil || !strings.Contains(err.Error(), says) {
		l.Errorf("Prepare: %v, want %q", err, says)
	}
	if after := l.tree(); after != before {
		l.Errorf("there is\n%s\nand was\n%s", after, before)
	}
}

// tree returns all files with their contents.
func (l *memberLab) tree() string {
	var all strings.Builder
	_ = filepath.WalkDir(l.dir, func(path string, e fs.DirEntry, _ error) error {
		if !e.IsDir() {
			fmt.Fprintf(&all, "%s %q\n", path, contentOf(path))
		}
		return nil
	})
	return all.String()
}

func TestMemberReacts(t *testing.T) {
	put := func(c *memberConfig, dir string) { c.Files = filepath.Join(dir, "files") }
	for _, tt := range []struct {
		name         string
		change       func(dir string, c *memberConfig)
		config, file bool // are new
		restart      bool
		want         string
	}{
		{"restart", nil, true, false, false, "start Sup!"},
		{"signal", func(_ string, c *memberConfig) { c.OnChange = "signal:HUP" }, true, false, false, "HUP Sup!"},
		{"exec", func(dir string, c *memberConfig) {
			c.OnChange = "exec:echo did $(cat " + dir + "/app.conf) >" + dir + "/events"
		}, true, false, false, "did Sup!"},
		{"none", func(_ string, c *memberConfig) { c.OnChange = "none" }, true, false, false, ""},
		{"ordered", func(_ string, c *memberConfig) { c.OnChange = "none" }, false, false, true, "start Hi!"},
		{"a file, and nothing is said of files", func(dir string, c *memberConfig) { put(c, dir) }, false, true, false, "start Hi!"},
		{"a file", func(dir string, c *memberConfig) { put(c, dir); c.OnFile = "signal:USR1" }, false, true, false, "USR1"},
		{"a file, none", func(dir string, c *memberConfig) { put(c, dir); c.OnFile = "none" }, false, true, false, ""},
		{"a file that does not matter and a template that does", func(dir string, c *memberConfig) { put(c, dir); c.OnFile = "none" }, true, true, false, "start Sup!"},
		{"restart comes before a signal", func(dir string, c *memberConfig) { put(c, dir); c.OnFile = "signal:USR1" }, true, true, false, "start Sup!"},
		{"restart on a file comes before a signal", func(dir string, c *memberConfig) { put(c, dir); c.OnChange, c.OnFile = "signal:HUP", "restart" }, true, true, false, "start Sup!"},
		{"an order comes before a signal", func(_ string, c *memberConfig) { c.OnChange = "signal:HUP" }, true, false, true, "start Sup!"},
		{"the same signal once", func(dir string, c *memberConfig) { put(c, dir); c.OnChange = "signal:HUP" }, true, true, false, "HUP Sup!"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := startMember(t, tt.change)
			if c := l.prepare(); !c.Empty() || c.Disrupts() {
				t.Error("there is something to do at first")
			}
			if tt.config {
				l.config(fmt.Sprintf(greeting, "Sup"), "toml")
			}
			if tt.file {
				l.file("logo.png", "logo")
			}
			if tt.restart {
				l.want.Restart++
			}
			pid := l.service.State().PID
			if c := l.prepare(); c.Disrupts() != (tt.want != "") || c.Empty() {
				t.Errorf("disrupts: %t", c.Disrupts())
			}
			if got := l.apply(); got != tt.want {
				t.Errorf("the command noticed %q, want %q", got, tt.want)
			}
			if same := l.service.State().PID == pid; same == strings.HasPrefix(tt.want, "start") {
				t.Errorf("the same process: %t", same)
			}
			if tt.config {
				l.has("app.conf", "Sup!")
			}
			if tt.file {
				l.has("files/logo.png", "logo")
			}
		})
	}
}

// A change that failed is taken back, with what the command has of it.
func TestMemberReverts(t *testing.T) {
	for _, onChange := range []string{"restart", "signal:HUP"} {
		t.Run(onChange, func(t *testing.T) {
			l := startMember(t, func(dir string, c *memberConfig) { c.Files, c.OnChange = filepath.Join(dir, "files"), onChange })
			l.file("old", "old")
			l.apply()
			l.config(fmt.Sprintf(greeting, "Sup"), "toml")
			l.want.Files = nil
			l.file("new", "new")
			l.environment.Store(&[]string{"REDIS_HOST=before"})
			c := l.prepare()
			_ = os.Remove(l.path("events"))
			if err := c.Apply(t.Context()); err != nil {
				t.Fatal(err)
			}
			l.has("files/new", "new")
			l.has("files/old", "")
			l.events(c)
			_ = os.Remove(l.path("events"))
			if err := c.Revert(t.Context()); err != nil {
				t.Fatal(err)
			}
			want := map[string]string{"restart": "start Hi! before", "signal:HUP": "HUP Hi!"}[onChange]
			if got := l.events(c); got != want {
				t.Errorf("the command noticed %q, want %q", got, want)
			}
			l.has("app.conf", "Hi!")
			l.has("files/new", "")
			l.has("files/old", "old")
			l.has("files/.berth-files", "[\"old\"]\n")
		})
	}

	t.Run("nothing was begun", func(t *testing.T) {
		l := startMember(t, nil)
		l.config(fmt.Sprintf(greeting, "Sup"), "toml")
		c := l.prepare()
		if err := os.Remove(l.path("app.conf")); err != nil { // a directory in its place: the write fails
			t.Fatal(err)
		}
		if err := os.MkdirAll(l.path("app.conf/x"), 0o755); err != nil {
			t.Fatal(err)
		}
		pid := l.service.State().PID
		if err := c.Apply(t.Context()); err == nil || !strings.Contains(err.Error(), "app.conf") {
			t.Errorf("Apply: %v", err)
		}
		if err := c.Revert(t.Context()); err != nil || l.service.State().PID != pid {
			t.Errorf("Revert: %v; the command had nothing to take back", err)
		}
	})
}

// A command that does not run is started, whatever it gets while it runs.
func TestMemberStartsWhatFailed(t *testing.T) {
	l := startMember(t, func(_ string, c *memberConfig) { c.OnChange = "signal:HUP" })
	testenv.File(t, l.dir, "broken", "")
	_ = l.service.Restart(t.Context()) // whether it is ready before it ends is chance
	testenv.Until(t, 10*time.Second, "it does not run", func() bool { return l.service.State().PID == 0 })
	if err := os.Remove(l.path("broken")); err != nil {
		t.Fatal(err)
	}
	l.config(fmt.Sprintf(greeting, "Sup"), "toml")
	if got := l.apply(); got != "start Sup!" {
		t.Errorf("it noticed %q", got)
	}
}

func TestMemberRefuses(t *testing.T) {
	withFiles := func(dir string, c *memberConfig) { c.Files = filepath.Join(dir, "files") }
	for _, tt := range []struct {
		name string
		do   func(l *memberLab)
		says string
	}{
		{"a template that fails", func(l *memberLab) {
			l.config("greeting = []", "toml")
			testenv.File(l, l.dir, "app.ctmpl", `{{ cfg "greetin" }}`)
		},
			`there is no key "greetin" (did you mean "greeting"?)`},
		{"a template with a syntax error", func(l *memberLab) { testenv.File(l, l.dir, "app.ctmpl", `{{ cfg`) }, "app.ctmpl:1"},
		{"a destination that is a directory", func(l *memberLab) {
			l.config(fmt.Sprintf(greeting, "Sup"), "toml")
			_ = os.Rename(l.path("app.conf"), l.path("old"))
			_ = os.Mkdir(l.path("app.conf"), 0o755)
		}, "app.conf: it is a directory: name the file in it"},
		{"a directory of files that is a file", func(l *memberLab) { l.file("a", "b"); testenv.File(l, l.dir, "files", "") }, "not a directory"},
		{"a text that is not what its format says", func(l *memberLab) { l.config("greeting = ", "toml") }, "version 1 of the configuration: TOML: line 1"},
		{"a text by other means", func(l *memberLab) { l.config("\x00", "") }, "version 1 of the configuration: "},
		{"defaults that became wrong", func(l *memberLab) { testenv.File(l, l.dir, "default.toml", "greeting") }, "default.toml: TOML: line 1"},
		{"a file in a directory", func(l *memberLab) { l.file("../evil", "x") }, `cannot put file "../evil"`},
		{"a file for the directory itself", func(l *memberLab) { l.file("..", "x") }, `cannot put file ".."`},
		{"a file with control characters", func(l *memberLab) { l.file("a\x1b[31m", "x") }, `cannot put file "a\x1b[31m"`},
		{"a file for the list", func(l *memberLab) { l.file(".berth-files", "[]") }, `cannot put file ".berth-files"`},
		{"a file that Consul does not have", func(l *memberLab) {
			l.want.Files = map[string]store.Header{"a": {Version: 3, Sum: "123456789abc"}}
		}, "file a, version 3: "},
		{"a list that cannot be read", func(l *memberLab) {
			_ = os.Mkdir(l.path("files"), 0o755)
			testenv.File(l, l.path("files"), ".berth-files", "no list")
			l.file("a", "b")
		}, "berth's list of files: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := startMember(t, withFiles)
			tt.do(l)
			l.refuses(tt.says)
		})
	}

	t.Run("a file in place of a rendered one", func(t *testing.T) {
		l := startMember(t, func(dir string, c *memberConfig) { c.Files = dir })
		l.file("app.conf", "x")
		l.refuses(`cannot put file "app.conf" into ` + l.dir + `: a template is rendered there`)
	})
}

// The directory has what was put, and keeps what berth has not put.
func TestMemberFiles(t *testing.T) {
	l := startMember(t, func(dir string, c *memberConfig) { c.Files, c.OnFile = filepath.Join(dir, "files"), "signal:USR1" })
	if err := os.Mkdir(l.path("files"), 0o755); err != nil {
		t.Fatal(err)
	}
	testenv.File(t, l.path("files"), "mine", "mine")
	if c := l.prepare(); !c.Empty() {
		t.Error("without a file there is something to do")
	}
	steps := []struct {
		do     func()
		a, b   string
		notice string
		list   string
	}{
		{func() { l.file("a", "1") }, "1", "", "USR1", "[\"a\"]\n"},
		{func() { l.file("b", ""); l.file("b", "2") }, "1", "2", "USR1", "[\"a\",\"b\"]\n"},
		{func() { l.file("a", "3") }, "3", "2", "USR1", "[\"a\",\"b\"]\n"},
		{func() { l.want.Files = map[string]store.Header{"b": l.want.Files["b"]} }, "", "2", "USR1", "[\"b\"]\n"},
		{func() { _ = os.Remove(l.path("files/.berth-files")) }, "", "2", "", "[\"b\"]\n"},         // the list alone is nothing to notice
		{func() { testenv.File(t, l.path("files"), "b", "edited") }, "", "2", "USR1", "[\"b\"]\n"}, // what somebody else did to it is taken back
		{func() { l.want.Files = nil }, "", "", "USR1", ""},
	}
	for n, s := range steps {
		s.do()
		if got := l.apply(); got != s.notice {
			t.Errorf("step %d: the command noticed %q", n, got)
		}
		l.has("files/a", s.a)
		l.has("files/b", s.b)
		l.has("files/mine", "mine")
		l.has("files/.berth-files", s.list)
	}
	l.config("# the template says the same\n", "toml")
	if c := l.prepare(); !c.Empty() {
		t.Error("a configuration that makes no difference makes one")
	}
}

// A text that is no longer the newest is still in the history.
func TestMemberFileGoesBack(t *testing.T) {
	l := startMember(t, func(dir string, c *memberConfig) { c.Files, c.OnFile = filepath.Join(dir, "files"), "none" })
	l.file("a", "1")
	before := l.want
	l.apply()
	l.file("a", "2")
	l.apply()
	l.want = before
	l.apply()
	l.has("files/a", "1")
	l.want.Files = map[string]store.Header{"a": {Version: 1, Sum: store.Sum([]byte("by hand"))}}
	l.refuses("file a, version 1: this text is no longer in Consul")
}

func TestMemberConfiguration(t *testing.T) {
	l := startMember(t, func(_ string, c *memberConfig) { c.OnChange = "none" })
	warned := func() int { return strings.Count(l.out.String(), "keys that the defaults lack") }
	l.config("greeting = \"Sup\"\nGreeting = 1\n[db]\nhost = 1\n", "toml")
	for range 3 {
		l.prepare()
	}
	if warned() != 1 || !strings.Contains(l.out.String(), `version=1 keys="Greeting, db"`) {
		t.Errorf("the log:\n%s", l.out)
	}
	bad := l.want
	l.config(fmt.Sprintf(greeting, "Yo"), "toml")
	l.apply()
	l.has("app.conf", "Yo!")
	l.want = bad // back, as after a failure
	l.apply()
	if l.has("app.conf", "Sup!"); warned() != 1 {
		t.Errorf("warned again:\n%s", l.out)
	}

	l.config("{{ nothing that can be parsed", rawFormat)
	l.apply()
	l.has("app.conf", "Hi!") // the text itself is for others
	l.config(`{"greeting": "by hand"}`, "")
	l.apply()
	l.has("app.conf", "by hand!")
	l.want.Config = store.Version{}
	l.apply()
	l.has("app.conf", "Hi!")
	testenv.File(t, l.dir, "default.toml", fmt.Sprintf(greeting, "Hello"))
	l.apply()
	l.has("app.conf", "Hello!")
}

// Binds without an instance keep their variables, and change them together.
func TestMemberBinds(t *testing.T) {
	var at []*api.ServiceEntry
	m := &member{addresses: make([][]string, 2)}
	var err error
	if m.binds, err = (memberConfig{Bind: []string{"redis:redis", "my-db:db"}}).bindings(); err != nil {
		t.Fatal(err)
	}
	binds := m.bindFuncs(nil, func(service string) []*api.ServiceEntry {
		return slices.DeleteFunc(slices.Clone(at), func(e *api.ServiceEntry) bool { return e.Service.Service != service })
	})["binds"].(func() string)
	entry := func(service, address string, port int) *api.ServiceEntry {
		return &api.ServiceEntry{Node: &api.Node{}, Service: &api.AgentService{ID: service, Service: service, Address: address, Port: port}}
	}
	texts := map[string]bool{}
	for n, tt := range []struct {
		at      []*api.ServiceEntry
		want    string
		missing int
	}{
		{nil, "", 2},
		{[]*api.ServiceEntry{entry("db", "10.0.0.1", 5432)}, "MY_DB_HOST=10.0.0.1 MY_DB_PORT=5432", 1},
		{[]*api.ServiceEntry{entry("db", "10.0.0.1", 5432), entry("redis", "10.0.0.2", 6379)},
			"REDIS_HOST=10.0.0.2 REDIS_PORT=6379 MY_DB_HOST=10.0.0.1 MY_DB_PORT=5432", 0},
		{[]*api.ServiceEntry{entry("db", "10.0.0.1", 5432)}, "REDIS_HOST=10.0.0.2 REDIS_PORT=6379 MY_DB_HOST=10.0.0.1 MY_DB_PORT=5432", 1},
		{[]*api.ServiceEntry{entry("redis", "10.0.0.3", 0)}, "REDIS_HOST=10.0.0.3 MY_DB_HOST=10.0.0.1 MY_DB_PORT=5432", 1},
	} {
		at = tt.at
		texts[binds()] = true
		b := m.bound.Load()
		if got := strings.Join(b.environment, " "); got != tt.want || len(b.missing) != tt.missing {
			t.Errorf("%d: %q, %v is missing; want %q", n, got, b.missing, tt.want)
		}
		if len(texts) != n+1 {
			t.Errorf("%d: its text is that of another", n)
		}
	}
}
