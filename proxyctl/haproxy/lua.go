package haproxy

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"time"

	"berth/proxyctl"
)

// noLua is what HAProxy says of a configuration that loads Lua, if it was built without.
const noLua = "unknown keyword 'lua-load'"

// LuaHere reports whether the haproxy program was built with Lua, by what it says of itself: what is not known has it.
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

// judgeLua reports a refusal that is due to Lua, and returns it. first says that the refused text is the first that loads
// Lua: HAProxy 2.6 does not say why it refused one, so that may be why, and berth goes on without.
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

// loadsLua says whether the configuration does.
func (c *config) loadsLua() bool { return c != nil && c.global("lua-load") }
