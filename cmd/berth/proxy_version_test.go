package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestProxyVersion(t *testing.T) {
	v := newProxyVersion()
	if v.learn("1.26.3") {
		t.Error("templates that ask for no version would be told something else")
	}
	for _, step := range []struct {
		known      string
		differs    bool
		atLeast125 bool
		atLeast127 bool
	}{
		{known: "1.26.3", differs: false, atLeast125: true, atLeast127: false},
		{known: "1.26.9", differs: false, atLeast125: true, atLeast127: false},
		{known: "1.30.0", differs: true, atLeast125: true, atLeast127: true},
		{known: "", differs: true, atLeast125: false, atLeast127: false},
		{known: "1.22.1", differs: false, atLeast125: false, atLeast127: false},
	} {
		if got := v.learn(step.known); got != step.differs {
			t.Errorf("%q: templates would be told something else: %v", step.known, got)
		}
		if asked := len(v.rerender) > 0; asked != step.differs {
			t.Errorf("%q: templates are rendered again: %v", step.known, asked)
		}
		if step.differs {
			<-v.rerender
		}
		if got := v.atLeast("1.25.1"); got != step.atLeast125 {
			t.Errorf("%q is at least 1.25.1: %v", step.known, got)
		}
		if got := v.atLeast("1.27.4"); got != step.atLeast127 {
			t.Errorf("%q is at least 1.27.4: %v", step.known, got)
		}
	}
}

// Templates are rendered again once for a HAProxy without Lua, if one has asked.
func TestWithoutLua(t *testing.T) {
	v := newProxyVersion()
	if !v.withoutLua() || len(v.rerender) > 0 || v.lua() {
		t.Error("no template asked, and HAProxy has no Lua")
	}
	v = newProxyVersion()
	if !v.lua() || !v.withoutLua() || len(v.rerender) != 1 || v.lua() || v.withoutLua() {
		t.Error("a template asked: it is to be rendered again without Lua")
	}
}

// What is rendered suits the nginx whose program checks it.
func TestRenderForVersion(t *testing.T) {
	dir := t.TempDir()
	consul := smallCatalog(t)
	for version, newer := range map[string]bool{"1.22.1": false, "1.30.0": true} {
		program := filepath.Join(dir, "nginx-"+version)
		script := "#!/bin/sh\nif [ \"$1\" = -v ]; then echo \"nginx version: nginx/" + version + "\" >&2; exit; fi\n"
		if !newer {
			script += "if grep -q keepalive_min_timeout \"$4\"; then echo \"nginx: [emerg] unknown directive\" >&2; exit 1; fi\n"
		}
		if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		render := func(args ...string) (string, error) {
			return berthCommand(t, append([]string{"render", "--proxy", "nginx", "--consul-address", consul, "--nginx-binary", program,
				"--nginx-config", filepath.Join(dir, "nginx.conf"), "--nginx-socket", filepath.Join(dir, "berth.sock")}, args...)...)
		}
		if out, err := render("--validate"); err != nil {
			t.Errorf("nginx %s: %v\n%s", version, err, out)
		}
		if out, err := render(); err != nil || strings.Contains(out, "keepalive_min_timeout") != newer {
			t.Errorf("nginx %s: %v\n%s", version, err, out)
		}
	}
}
