package haproxy

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/proxyctl"
)

// A HAProxy built without Lua refuses to load any. berth hears of it, even from 2.6, which gives no reason, and only then.
func TestWithoutLua(t *testing.T) {
	const (
		plain = "global\n  nbthread 1\nfrontend f\n  bind :80\n"
		lua   = "global\n  nbthread 1\n  lua-load /x.lua\nfrontend f\n  bind :80\n"
		bogus = "global\n  nbthread 1\n  lua-load /x.lua\nfrontend f\n  bind :80\n  bogus\n"
	)
	for _, tt := range []struct {
		name    string
		silent  bool
		has     bool // Lua
		before  string
		text    string
		refused bool
		want    []string
	}{
		{"with Lua", false, true, plain, lua, false, nil},
		{"without", false, false, plain, lua, true, []string{"it says: unknown keyword 'lua-load'"}},
		{"2.6 without", true, false, plain, lua, true, []string{"it refused a configuration that loads Lua, without saying why"}},
		{"2.6 with, that has loaded some before", true, true, lua, bogus, true, nil},
		{"something else is wrong", false, true, plain, bogus, true, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			m := startMaster(t, dir)
			m.silent = tt.silent
			refuse := m.refuse
			m.refuse = func(text string) string {
				if !tt.has && strings.Contains(text, "lua-load") {
					return "config : parsing [/etc/haproxy/haproxy.cfg:3] : unknown keyword 'lua-load' in 'global' section"
				}
				return refuse(text)
			}
			var heard []string
			p := newProxy(dir)
			p.driver.opts.WithoutLua = func(reason string) { heard = append(heard, reason) }
			t.Cleanup(func() { p.Close() })
			if _, err := p.Apply(t.Context(), onlyText(tt.before), true); err != nil {
				t.Fatal(err)
			}
			if _, err := p.Apply(t.Context(), onlyText(tt.text), true); errors.Is(err, proxyctl.ErrRefused) != tt.refused {
				t.Error(err)
			}
			if !slices.Equal(heard, tt.want) {
				t.Errorf("%q, want %q", heard, tt.want)
			}
		})
	}
}

// The program reports what it was built with.
func TestLuaHere(t *testing.T) {
	program := filepath.Join(t.TempDir(), "haproxy")
	for says, want := range map[string]bool{"+EPOLL +LUA +NS": true, "+EPOLL -LUA +NS": false} {
		script := fmt.Sprintf("#!/bin/sh\n[ \"$1\" = -vv ] && echo 'Feature list : %s'\n", says)
		if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		if got := LuaHere(t.Context(), program, 10*time.Second); got != want {
			t.Errorf("%s: %v", says, got)
		}
	}
	if !LuaHere(t.Context(), "", time.Second) || !LuaHere(t.Context(), program+"-gone", time.Second) {
		t.Error("what is not known counts as with Lua")
	}
}
