package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"berth/deploy/testenv"
	"berth/templater"
)

// configured reads a configuration file with these lines, and flags.
func configured(t *testing.T, yaml string, flags ...string) (Config, error) {
	t.Helper()
	cmd := templaterCommand()
	if err := cmd.ParseFlags(flags); err != nil {
		t.Fatal(err)
	}
	return configOf(t, cmd, yaml)
}

func TestBadFiles(t *testing.T) {
	for _, tt := range []struct{ yaml, flag, says string }{
		{"files: /etc/app.conf", "", "files must be a list of entries, each with template and file"},
		{"files: [/etc/app.conf]", "", "files: entry 1 must have the keys template and file, not /etc/app.conf"},
		{"files: [{template: a, file: b}, {template: a, file: c, comand: x}]", "", `files: entry 2: unknown key "comand": the keys are template, file, mode, user, group, command, container, pid-file, signal, timeout`},
		{"files: [{file: b}]", "", "files: entry 1: template is missing: set a consul-template file"},
		{"files: [{template: a}]", "", "files: entry 1: file is missing: set the file to write"},
		{"files: [{template: a, file: b, mode: 0640}]", "", `files: entry 1: mode needs quotes, like mode: "0640"`},
		{"files: [{template: a, file: b, mode: rw}]", "", `files: entry 1: mode must be octal digits like "0640", not "rw"`},
		{`files: [{template: a, file: b, mode: "7777"}]`, "", `files: entry 1: mode must be octal digits like "0640", not "7777"`},
		{`files: [{template: a, file: b, mode: "000"}]`, "", `files: entry 1: mode must be octal digits like "0640", not "000"`},
		{"files: [{template: a, file: b, command: [x, y]}]", "", "files: entry 1: command must be a text, not [x y]"},
		{"files: [{template: a, file: b, command: x, container: y}]", "", "files: entry 1: command, container and pid-file exclude each other: choose one"},
		{"files: [{template: a, file: b, pid-file: x, container: y}]", "", "files: entry 1: command, container and pid-file exclude each other: choose one"},
		{"files: [{template: a, file: b, signal: HUP}]", "", "files: entry 1: signal needs a container or a pid-file to send it to"},
		{"files: [{template: a, file: b, container: x, signal: HUPP}]", "", `files: entry 1: signal must be a signal like HUP, not "HUPP"`},
		{"files: [{template: a, file: b, container: x, signal: 1}]", "", "files: entry 1: signal must be a text, not 1"},
		{"files: [{template: a, file: b, timeout: 5s}]", "", "files: entry 1: timeout needs a command or a signal"},
		{"files: [{template: a, file: b, command: x, timeout: 5}]", "", "files: entry 1: timeout must be a text, not 5"},
		{"files: [{template: a, file: b, command: x, timeout: soon}]", "", `files: entry 1: timeout must be a duration like 30s or 1m, not "soon"`},
		{"files: [{template: a, file: /etc/haproxy/../haproxy/haproxy.cfg}]", "", "files: entry 1: /etc/haproxy/../haproxy/haproxy.cfg is haproxy-config: set its template with the option template"},
		{"files: [{template: a, file: /x/b}, {template: c, file: /x//b}]", "", "files: entry 2: /x//b is also the file of entry 1: use different files"},
		{"files: [{template: a, file: /x/b}]", "a:/x/b", `file "a:/x/b": /x/b is also the file of entry 1: use different files`},
		{"files: [{template: a, file: b}, {template: c, file: a}]", "", "files: entry 2: a is a template: write to another file"},
		{"", "a", `file "a" must be template:destination or template:destination:command`},
		{"", "a:", `file "a:": file is missing: set the file to write`},
		{"", ":a:b", `file ":a:b": template is missing: set a consul-template file`},
	} {
		var flags []string
		if tt.flag != "" {
			flags = []string{"--file", tt.flag}
		}
		if _, err := configured(t, tt.yaml, flags...); err == nil || err.Error() != tt.says {
			t.Errorf("%s %s:\n got %v\nwant %s", tt.yaml, tt.flag, err, tt.says)
		}
	}
}

func TestFileOption(t *testing.T) {
	want := func(what string, c Config, err error, commands ...string) {
		t.Helper()
		var got []string
		for _, e := range c.Files {
			got = append(got, e.Template+" "+e.File+" "+e.Command)
		}
		if err != nil || strings.Join(got, "\n") != strings.Join(commands, "\n") {
			t.Errorf("%s: %q, %v; want %q", what, got, err, commands)
		}
	}
	c, err := configured(t, "files: [{template: x, file: y}]", "--file", "a:/a:kill -HUP $(cat /run/a.pid), then: rest", "--file", "b:/b")
	want("flags", c, err, "x y ", "a /a kill -HUP $(cat /run/a.pid), then: rest", "b /b ")
	c, err = configured(t, "file: ['a:/a:echo 1, 2', 'b:/b']")
	want("a list in the configuration file", c, err, "a /a echo 1, 2", "b /b ")
	c, err = configured(t, "file: 'a:/a:echo 1, 2'")
	want("one in the configuration file", c, err, "a /a echo 1, 2")
	c, err = configured(t, "")
	want("none", c, err)
	t.Setenv("BERTH_FILE", "a:/a:echo 1, 2\nb:/b\n")
	c, err = configured(t, "")
	want("environment", c, err, "a /a echo 1, 2", "b /b ")
}

// newTestProcess returns a process with these options, which logs to out.
func newTestProcess(c Config, out io.Writer) *process {
	return &process{config: c, proxy: c.proxy(), log: slog.New(slog.NewTextHandler(out, nil)), metrics: prometheus.NewRegistry()}
}

// filesProcess runs plain files until the end of the test.
func filesProcess(t *testing.T, entries ...fileEntry) (set func(path, text string), out *testenv.Log) {
	t.Helper()
	out = new(testenv.Log)
	c := newConfig()
	c.Files = entries
	files, err := newTestProcess(c, out).plainFiles()
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != len(entries) {
		t.Fatalf("%d files of %d entries", len(files), len(entries))
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error)
	sets := map[string]func(templater.Published){}
	for i, f := range files {
		if f.template.Name != entries[i].File || f.template.File != entries[i].Template {
			t.Errorf("%+v is the template of %+v", f.template, entries[i])
		}
		sets[f.template.Name] = f.set
		go func() { done <- f.Run(ctx) }()
	}
	t.Cleanup(func() {
		cancel()
		for range files {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
	return func(path, text string) { sets[path](templater.Published{Text: text, Since: time.Now()}) }, out
}

func TestFileActions(t *testing.T) {
	dir := t.TempDir()
	tmpl := filepath.Join(dir, "app.ctmpl")
	if err := os.WriteFile(tmpl, []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	sleep := exec.Command("sleep", "60")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sleep.Process.Kill() }()
	pid := filepath.Join(dir, "app.pid")
	if err := os.WriteFile(pid, []byte(strconv.Itoa(sleep.Process.Pid)+"\nmore\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	a, b, c := filepath.Join(dir, "a.conf"), filepath.Join(dir, "b.conf"), filepath.Join(dir, "c.conf")
	set, out := filesProcess(t,
		fileEntry{Template: tmpl, File: a, Command: "cat " + a + " >" + a + ".seen", Mode: "0600"},
		fileEntry{Template: tmpl, File: b, PIDFile: pid, Signal: "term"},
		fileEntry{Template: tmpl, File: c, Command: "exec sleep 60", Timeout: 100 * time.Millisecond},
	)
	set(a, "one\n")
	set(b, "two\n")
	set(c, "three\n")
	out.Wait(t, `msg="wrote `+a+`, live after`)
	out.Wait(t, "file="+a+` action="cat `+a)
	if seen, err := os.ReadFile(a + ".seen"); err != nil || string(seen) != "one\n" {
		t.Errorf("the command saw %q, %v", seen, err)
	}
	if info, err := os.Stat(a); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v; want mode 0600", info.Mode(), err)
	}
	if err := sleep.Wait(); err == nil || err.Error() != "signal: terminated" {
		t.Errorf("the process ended with %v, want the signal", err)
	}
	out.Wait(t, `action="TERM to the process in `+pid)
	out.Wait(t, "did not finish within 100ms")
}

func TestSignalByPIDFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app.pid")
	for text, says := range map[string]string{
		"":                        `its first line is not a process number: ""`,
		"abc\n":                   `its first line is not a process number: "abc"`,
		"-1\n":                    `its first line is not a process number: "-1"`,
		"0":                       `its first line is not a process number: "0"`,
		strconv.Itoa(os.Getpid()): "is berth itself",
		"4194305\n":               "process 4194305: no such process", // above what Linux numbers
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := signalByPIDFile(path, 0); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: error %v, want one that says %q", text, err, says)
		}
	}
	if err := signalByPIDFile(path+".none", 0); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestPlainFilesRefuses(t *testing.T) {
	tmpl := filepath.Join(t.TempDir(), "app.ctmpl")
	if err := os.WriteFile(tmpl, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		entry fileEntry
		says  string
	}{
		{fileEntry{Template: tmpl + ".none", File: "/x"}, "files: entry 1: cannot read the template: open " + tmpl + ".none: no such file or directory"},
		{fileEntry{Template: tmpl, File: "/x", User: "no such user"}, "files: entry 1: unknown user no such user, use its number: "},
		{fileEntry{Template: tmpl, File: "/x", Group: "no such group"}, "files: entry 1: unknown group no such group, use its number: "},
	} {
		c := newConfig()
		tt.entry.name = "files: entry 1"
		c.Files = []fileEntry{tt.entry}
		if _, err := newTestProcess(c, io.Discard).plainFiles(); err == nil || !strings.HasPrefix(err.Error(), tt.says) {
			t.Errorf("error %v, want %q", err, tt.says)
		}
	}
}

func TestOwner(t *testing.T) {
	for _, tt := range []struct {
		user, group string
		want        string
	}{
		{user: "", group: "", want: "<nil>"},
		{user: "0", group: "", want: "&{0 -1}"},
		{user: "root", group: "root", want: "&{0 0}"},
		{user: "", group: "7", want: "&{-1 7}"},
	} {
		owner, err := fileEntry{User: tt.user, Group: tt.group}.owner()
		if got := fmt.Sprint(owner); err != nil || got != tt.want {
			t.Errorf("user %q, group %q: %s, %v, want %s", tt.user, tt.group, got, err, tt.want)
		}
	}
}

func TestLooksAfterProxy(t *testing.T) {
	for _, tt := range []struct {
		name       string
		config     string // haproxy-config
		files      []fileEntry
		template   string
		supervised bool
		want       bool
		says       string // of the error
	}{
		{name: "with a proxy", config: "/x", want: true},
		{name: "both", config: "/x", files: []fileEntry{{}}, want: true},
		{name: "files only", files: []fileEntry{{}}},
		{name: "nothing", says: "nothing to render"},
		{name: "a template for nothing", files: []fileEntry{{}}, template: "x", says: "the option template has no effect"},
		{name: "an HAProxy to run", files: []fileEntry{{}}, supervised: true, says: "the HAProxy behind -- needs it"},
	} {
		c := newConfig()
		c.HAProxy.File, c.Files, c.Template = tt.config, tt.files, tt.template
		got, err := newTestProcess(c, io.Discard).looksAfterProxy(tt.supervised)
		if got != tt.want || (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, %v", tt.name, got, err)
		}
	}
}
