package haproxy

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"time"

	"berth/proxyctl"
)

// noLua is HAProxy's complaint about a configuration that loads Lua if it was built without Lua.
const noLua = "unknown keyword 'lua-load'"

// LuaHere reports whether the haproxy program was built with Lua, according to its own output. If that is unknown, it returns
// true.
func LuaHere(ctx context.Context, binary string, timeout time.Duration) bool {
	if binary == "" {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "-vv")
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	return err != nil || !strings.Contains(string(out), "-LUA")
}

// judgeLua reports a refusal caused by Lua, and returns it. first means that the refused text is the first that loads Lua.
// HAProxy 2.6 gives no reason for a refusal, so Lua may be the cause, and berth continues without it.
func (d *driver) judgeLua(err error, first bool) error {
	switch {
	case d.opts.WithoutLua == nil || !errors.Is(err, proxyctl.ErrRefused):
	case strings.Contains(err.Error(), noLua):
		d.opts.WithoutLua("it says: " + noLua)
	case first && errors.Is(err, errSilent):
		d.opts.WithoutLua("it refused a configuration that loads Lua, without saying why")
	}
	return err
}

// loadsLua reports whether the configuration loads Lua.
func (c *config) loadsLua() bool { return c != nil && c.global("lua-load") }
