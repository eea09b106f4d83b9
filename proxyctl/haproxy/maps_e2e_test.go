//go:build e2e

package haproxy

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"berth/deploy/testenv"
	"berth/proxyctl"
)

// inMap is a configuration whose frontend answers with the value for the path in a map that changes at run time.
func (h *realHAProxy) inMap(content, more string) proxyctl.Config {
	path := h.driver.opts.File + ".routes.map"
	text := strings.Replace(h.text("WORD", more), "string WORD", fmt.Sprintf("lf-string %%[path,map_beg(%s,none)]", path), 1)
	return onlyText(WithMaps(text, map[string]string{path: content}))
}

// A map follows its content without a reload, and HAProxy would start with it at any time.
func TestE2EMaps(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		h := startHAProxy(t, r.image)
		app := "backend app\n  server a 127.0.0.1:9001\n"
		onDiskIs := func(want string) {
			t.Helper()
			h.Close()
			if got := onDisk(t, h.driver.opts.File+".routes.map"); got != want {
				t.Errorf("the map's file has %q, want %q", got, want)
			}
		}
		h.applied(h.inMap("/ one\n", app), proxyctl.Reload, "one")
		h.applied(h.inMap("/ two\n/x* y\n", app), proxyctl.Runtime, "two")
		h.applied(h.inMap("/x* y\n", app+"  server b 127.0.0.1:9002\n"), proxyctl.Runtime, "none")
		onDiskIs("/x* y\n")
		three := h.inMap("/ three\n/x* y\n", app)
		h.applied(three, proxyctl.Runtime, "three")
		onDiskIs("/ three\n/x* y\n")

		// berth and HAProxy are restarted.
		h.berth()
		h.applied(three, proxyctl.None, "three")
		h.restart()
		h.applied(three, proxyctl.None, "three")

		// Someone else changes it.
		if reply, err := ask(h.dir+"/master.sock", "show proc; @1 del map "+h.driver.opts.File+".routes.map /"); err != nil || strings.Contains(reply, "not found") {
			t.Fatalf("%s, %v", reply, err)
		}
		if got := h.answer(); got != "none" {
			t.Fatalf("HAProxy answers %q", got)
		}
		h.applied(three, proxyctl.Runtime, "three")
		os.Remove(h.driver.opts.File + ".routes.map")
		h.applied(three, proxyctl.None, "three")
		onDiskIs("/ three\n/x* y\n")

		// A refusal does not change what HAProxy would start with. The refused text's map is still applied.
		if _, err := h.Apply(t.Context(), h.inMap("/ four\n", app+"  bogus\n"), true); !errors.Is(err, proxyctl.ErrRefused) {
			t.Errorf("error %v, want a refusal", err)
		}
		onDiskIs("/ four\n")
		h.restart()
		if got := h.answer(); got != "four" {
			t.Errorf("refused and killed, HAProxy answers %q", got)
		}

		// While HAProxy is down, its file and the map are prepared for its start.
		testenv.MustDocker(t, "kill", h.id)
		if _, err := h.Apply(t.Context(), h.inMap("/ five\n", app), true); !errors.Is(err, proxyctl.ErrUnreachable) {
			t.Errorf("error %v", err)
		}
		testenv.MustDocker(t, "start", h.id)
		h.up("master.sock")
		h.applied(h.inMap("/ five\n", app), proxyctl.Runtime, "five")

		// Many at once.
		var many strings.Builder
		for n := range 3000 {
			fmt.Fprintf(&many, "/%d app\n", n)
		}
		h.applied(h.inMap(many.String()+"/ six\n", app), proxyctl.Runtime, "six")
		h.applied(h.inMap("/ seven\n", app), proxyctl.Runtime, "seven")
	})
}
