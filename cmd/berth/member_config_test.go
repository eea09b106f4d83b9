package main

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"berth/deploy/testenv"
	"berth/registrar/group"
	"berth/registrar/group/store"
)

// goodMember is a configuration that understand takes.
func goodMember() memberConfig {
	return memberConfig{OnChange: "restart", Strategy: group.Rolling, BindingMode: bindingRelaxed, Topology: topologyNone}
}

// A wrong value names its option and what to do.
func TestMemberOptions(t *testing.T) {
	dir := t.TempDir()
	tmpl := testenv.File(t, dir, "app.ctmpl", "")
	bad := testenv.File(t, dir, "bad.toml", "a = 1\nb = = 2\n")
	for _, tt := range []struct {
		change func(c *memberConfig)
		says   string // "" = it is right
	}{
		{func(c *memberConfig) {}, ""},
		{func(c *memberConfig) { c.Render = []string{tmpl + ":" + dir + "/a", tmpl + ":" + dir + "/b"} }, ""},
		{func(c *memberConfig) { c.Render = []string{tmpl} }, `render must be template:destination, not "` + tmpl + `"`},
		{func(c *memberConfig) { c.Render = []string{":b"} }, `render must be template:destination, not ":b"`},
		{func(c *memberConfig) { c.Render = []string{tmpl + ":"} }, `render must be template:destination`},
		{func(c *memberConfig) { c.Render = []string{tmpl + ":b:kill -HUP 1"} }, `set the reaction to a change with --on-change`},
		{func(c *memberConfig) { c.Render = []string{tmpl + ":b", tmpl + ":./b"} }, `/b is the destination of two templates`},
		{func(c *memberConfig) { c.Render = []string{dir + "/none:b"} }, `render: cannot read the template: open ` + dir + `/none: no such file or directory`},
		{func(c *memberConfig) { c.Render = []string{tmpl + ":" + dir + "/./app.ctmpl"} }, `is both the template and its destination: write to another file`},
		{func(c *memberConfig) { c.OnChange = "reload" }, `on-change must be restart, signal:NAME, exec:COMMAND or none, not "reload"`},
		{func(c *memberConfig) { c.OnChange = "" }, `on-change must be restart, signal:NAME, exec:COMMAND or none, not ""`},
		{func(c *memberConfig) { c.OnChange = "signal:HUPP" }, `on-change: the signal must be one like HUP, not "HUPP"`},
		{func(c *memberConfig) { c.OnChange = "signal:" }, `on-change: the signal must be one like HUP, not ""`},
		{func(c *memberConfig) { c.OnChange = "exec: " }, `on-change must be`},
		{func(c *memberConfig) { c.OnChange = "signal:SIGUSR2" }, ""},
		{func(c *memberConfig) { c.OnFile = "none" }, `on-file needs --files`},
		{func(c *memberConfig) { c.Files, c.OnFile = dir, "never" }, `on-file must be restart, signal:NAME, exec:COMMAND or none, not "never"`},
		{func(c *memberConfig) { c.Files, c.OnFile = dir, "exec:true" }, ""},
		{func(c *memberConfig) { c.Bind = []string{"redis"} }, `bind "redis" must be name:service, such as redis:redis`},
		{func(c *memberConfig) { c.Bind = []string{"redis:"} }, `bind "redis:" must be name:service`},
		{func(c *memberConfig) { c.Bind = []string{"1:redis"} }, `bind "1:redis": its name`},
		{func(c *memberConfig) { c.Bind = []string{"redis:a b"} }, `bind "redis:a b": "a b" is not a service name`},
		{func(c *memberConfig) { c.Bind = []string{"redis:redis.a b"} }, `bind "redis:redis.a b": "a b" is not a group name`},
		{func(c *memberConfig) { c.Bind = []string{"redis:redis@d c"} }, `cannot be a service in Consul`},
		{func(c *memberConfig) { c.Bind = []string{"a-b:x", "a.b:y"} }, `would both be A_B_HOST: choose another name`},
		{func(c *memberConfig) { c.Strategy = "canary" }, `strategy must be rolling, at-once or none, not "canary"`},
		{func(c *memberConfig) { c.BindingMode = "lax" }, `binding-mode must be strict or relaxed, not "lax"`},
		{func(c *memberConfig) { c.Topology = "ring" }, `topology must be leader or standalone, not "ring"`},
		{func(c *memberConfig) { c.Priority = 3 }, `priority needs --topology leader`},
		{func(c *memberConfig) { c.Priority, c.Topology = 3, topologyLeader }, ""},
		{func(c *memberConfig) { c.Defaults = dir + "/none.toml" }, `defaults: open ` + dir + `/none.toml: no such file or directory`},
		{func(c *memberConfig) { c.Defaults = bad }, `defaults: ` + bad + `: TOML: line 2, column 5`},
		{func(c *memberConfig) { c.UserConfig = bad }, `user-config: ` + bad + `: TOML: line 2, column 5`},
	} {
		c := goodMember()
		tt.change(&c)
		_, err := c.understand()
		if tt.says == "" && err != nil || tt.says != "" && (err == nil || !strings.Contains(err.Error(), tt.says)) {
			t.Errorf("%+v:\n%v\nwant %q", c, err, tt.says)
		}
	}
	t.Setenv(serviceConfigVariable, "a = = 1")
	if _, err := goodMember().understand(); err == nil || !strings.HasPrefix(err.Error(), "BERTH_SERVICE_CONFIG: TOML: line 1, column 5") {
		t.Errorf("the variable: %v", err)
	}
	t.Setenv("PATH", dir)
	c := goodMember()
	c.OnChange = "exec:true"
	if _, err := c.understand(); err == nil || !strings.Contains(err.Error(), "on-change: a command needs a shell, and there is none") {
		t.Errorf("without a shell: %v", err)
	}
}

func TestMemberGroup(t *testing.T) {
	for _, tt := range []struct{ name, group, service, says string }{
		{"app", "", "app", ""},
		{"app", "default", "app", ""},
		{"app", "prod", "app-prod", ""},
		{"app.web", "prod", "app.web-prod", ""},
		{"app.web", "default", "app.web", ""},
		{"app.web", "", "app.web", ""},
		{"app", "pro.d", "", `group must be letters, digits, - and _, not "pro.d"`},
		{"app", "a b", "", `group: "a b" is not a group name: use letters, digits, - and _`},
		{"app", "-", "app--", "group"},
		{strings.Repeat("a", 198), "prod", "", "group: "},
		{"a b", "prod", "a b", ""}, // label.Process says what is wrong
	} {
		c := Config{Member: memberConfig{Group: tt.group}}
		c.Process.Name = tt.name
		in, err := c.instance("vm")
		if tt.says != "" && err != nil && strings.Contains(err.Error(), tt.says) {
			continue
		}
		if err != nil || tt.says != "" || in.Name != tt.service {
			t.Errorf("group %q of %q: %q, %v; want %q, %q", tt.group, tt.name, in.Name, err, tt.service, tt.says)
		}
	}
}

func TestMemberBindings(t *testing.T) {
	c := memberConfig{Bind: []string{"a:redis", "b:redis.prod", "c:redis.default", "d:redis.prod@dc2", "e:redis@dc2", "f:my.redis.prod"}}
	binds, err := c.bindings()
	if got, want := fmt.Sprint(binds), "[a:redis b:redis-prod c:redis d:redis-prod@dc2 e:redis@dc2 f:my.redis-prod]"; err != nil || got != want {
		t.Errorf("%s, %v; want %s", got, err, want)
	}
}

// What counts more is merged over what counts less, table by table.
func TestMemberOrder(t *testing.T) {
	dir := t.TempDir()
	c := memberConfig{
		Defaults:   testenv.File(t, dir, "default.yml", "by: defaults\nall: {a: defaults, b: defaults, c: defaults, d: defaults}\n"),
		UserConfig: testenv.File(t, dir, "user.toml", "by = \"user\"\n[all]\nc = \"user\"\nd = \"user\"\n"),
	}
	applied := []byte("by: applied\nall: {d: applied}\n")
	for _, variable := range []string{
		"by = \"variable\"\n[all]\nb = \"variable\"\nc = \"variable\"\nd = \"variable\"",
		`{"by": "variable", "all": {"b": "variable", "c": "variable", "d": "variable"}}`,
	} {
		t.Setenv(serviceConfigVariable, variable)
		m := member{config: c, told: map[string]bool{}}
		v := store.Version{Header: store.Header{Version: 1, Format: "yaml"}, Text: applied}
		if err := m.merge(v); err != nil {
			t.Fatal(err)
		}
		got := *m.table.Load()
		want := map[string]any{"a": "defaults", "b": "variable", "c": "user", "d": "applied"}
		if all, _ := got["all"].(map[string]any); got["by"] != "applied" || !maps.Equal(all, want) {
			t.Errorf("merged: %v, want %v", got, want)
		}
		base, defaults, err := c.base()
		if err != nil || base["by"] != "user" || defaults["by"] != "defaults" {
			t.Errorf("without what was applied: %v, the defaults: %v, %v", base, defaults, err)
		}
	}
}

// The templater's list of plain files and the directory of berth service have the same key.
func TestFilesOfWhom(t *testing.T) {
	const list = "files: [{template: a, file: /b}]\n"
	for _, tt := range []struct {
		cmd         *cobra.Command
		yaml        string
		flags       []string
		entries     int
		files, says string
	}{
		{templaterCommand(), list, nil, 1, "", ""},
		{registrarCommand(), list, nil, 1, "", ""},
		{serviceCommand(), list, nil, 1, "", ""},
		{serviceCommand(), list, []string{"--files", "/d"}, 1, "/d", ""},
		{serviceCommand(), "files: /d\n", nil, 0, "/d", ""},
		{templaterCommand(), "files: /d\n", nil, 0, "", "files must be a list of entries"},
	} {
		if err := tt.cmd.ParseFlags(tt.flags); err != nil {
			t.Fatal(err)
		}
		c, err := configOf(t, tt.cmd, tt.yaml)
		if tt.says != "" {
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%s %s: %v", tt.cmd.Name(), tt.yaml, err)
			}
			continue
		}
		if err != nil || len(c.Files) != tt.entries || c.Member.Files != tt.files {
			t.Errorf("%s %s %v: %d entries, directory %q, %v", tt.cmd.Name(), tt.yaml, tt.flags, len(c.Files), c.Member.Files, err)
		}
	}
}
