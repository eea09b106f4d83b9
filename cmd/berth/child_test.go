package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/deploy/testenv"
)

func TestProgramIn(t *testing.T) {
	for command, want := range map[string]string{
		"/opt/haproxy/sbin/haproxy -W":  "/opt/haproxy/sbin/haproxy",
		"setpriv --reuid 99 haproxy -W": "haproxy",
		"hapee-lb -W":                   "",
	} {
		if got := programIn(strings.Fields(command), "haproxy"); got != want {
			t.Errorf("%s: %q, want %q", command, got, want)
		}
	}
}

// fakeHAProxy writes a program that says whether a configuration is good by this exit code, and otherwise writes its
// environment to a file and runs until SIGUSR1.
func fakeHAProxy(t *testing.T, dir string, good int) (program string) {
	t.Helper()
	program = filepath.Join(dir, "haproxy")
	script := fmt.Sprintf("#!/bin/sh\nfor a; do [ $a = -c ] && exit %d; [ $a = -v ] && exit; [ $a = -vv ] && exit; done\ntrap 'exit 0' USR1\nenv >%[2]s/env.new\nmv %[2]s/env.new %[2]s/env\nwhile :; do sleep 0.01; done\n", good, dir)
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return program
}

// While Consul is away, the proxy starts with the configuration that is there if that is good.
func TestHeadStart(t *testing.T) {
	t.Setenv("VAULT_TOKEN", "secret")
	t.Setenv("HAPROXY_STATS_PASSWORD", "for the proxy")
	for name, tt := range map[string]struct {
		code int // of the check
		says string
		runs bool
	}{
		"good": {code: 0, says: "starting HAProxy with the existing one", runs: true},
		"bad":  {code: 1, says: "HAProxy refuses the existing one", runs: false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := testenv.Dir(t)
			file := testenv.File(t, dir, "haproxy.cfg", "global\n")
			out := start(t, "templater", "--consul-address", "127.0.0.1:1", "--haproxy-config", file,
				"--haproxy-socket", filepath.Join(dir, "master.sock"), "--", fakeHAProxy(t, dir, tt.code), "-W")
			out.Wait(t, tt.says)
			env := filepath.Join(dir, "env")
			if !tt.runs {
				if _, err := os.Stat(env); err == nil {
					t.Error("it runs with a bad configuration")
				}
				return
			}
			testenv.Eventually(t, 10*time.Second, "the proxy runs", func() error {
				_, err := os.Stat(env)
				return err
			})
			text, err := os.ReadFile(env)
			if err != nil {
				t.Fatal(err)
			}
			if got := string(text); strings.Contains(got, "VAULT_TOKEN") || !strings.Contains(got, "HAPROXY_STATS_PASSWORD=for the proxy\n") {
				t.Errorf("its environment is\n%s", got)
			}
		})
	}
}
