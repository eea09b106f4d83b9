//go:build e2e

package haproxy

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"berth/deploy/testenv"
	"berth/proxyctl"
	"berth/proxyctl/configfile"
)

// mapped is a configuration whose frontend answers with the map's value for the path.
func (h *realHAProxy) mapped(content, more string) proxyctl.Config {
	path := beside(h.driver.opts.File, "routes.map", content)
	text := strings.Replace(h.text("WORD", more), "string WORD", fmt.Sprintf("lf-string %%[path,map_str(%s,none)]", path), 1)
	return proxyctl.Config{Text: text, Files: map[string]string{path: content}}
}

// applied applies a configuration, which must succeed, and expects HAProxy to answer with a word.
func (h *realHAProxy) applied(c proxyctl.Config, action proxyctl.Action, word string) {
	h.t.Helper()
	res, err := h.Apply(h.t.Context(), c, true)
	if err != nil || res.Action != action {
		h.t.Fatalf("%+v, %v; want %s", res, err, action)
	}
	if got := h.answer(); got != word {
		h.t.Errorf("HAProxy answers %q, want %q", got, word)
	}
	h.tend()
}

// has checks which map files exist.
func (h *realHAProxy) has(what string, others []string, configs ...proxyctl.Config) {
	h.t.Helper()
	want := slices.Clone(others)
	for _, c := range configs {
		for path := range c.Files {
			want = append(want, filepath.Base(path))
		}
	}
	slices.Sort(want)
	if got := besides(h.t, h.dir); !slices.Equal(got, want) {
		h.t.Errorf("%s: the files are %q, want %q", what, got, want)
	}
}

// A map follows its content by reloads, and the map that HAProxy would start with exists at any time.
func TestE2EAuxFiles(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		h := startHAProxy(t, r.image)
		others := []string{"haproxy.cfg.b.routes-0123456789abcdef.map", "haproxy.cfg.routes.map", "other.cfg.routes-0123456789abcdef.map", "routes-0123456789abcdef.map"}
		for _, name := range others {
			write(t, filepath.Join(h.dir, name), "theirs\n")
		}
		app := "backend app\n  server a 127.0.0.1:9001\n"
		one, two := h.mapped("/ one\n", app), h.mapped("/ two\n", app)
		h.applied(one, proxyctl.Reload, "one")
		h.applied(two, proxyctl.Reload, "two")
		h.has("another content", others, two)
		two = h.mapped("/ two\n", app+"  server b 127.0.0.1:9002\n")
		h.applied(two, proxyctl.Runtime, "two")
		h.Close()

		// HAProxy refuses the text, or the map itself.
		badText := h.mapped("/ three\n", app+"  bogus\n")
		badMap := h.mapped("no-address three\n", app)
		badMap.Text = strings.Replace(badMap.Text, "map_str(", "map_ip(", 1)
		for _, bad := range []proxyctl.Config{badText, badMap} {
			if _, err := h.Apply(t.Context(), bad, true); !errors.Is(err, proxyctl.ErrRefused) {
				t.Errorf("error %v, want a refusal", err)
			}
			h.tend()
			h.has("refused", others, two, bad)
			if got := h.answer(); got != "two" {
				t.Errorf("refused, HAProxy answers %q", got)
			}
			h.restart()
			if got := h.answer(); got != "two" {
				t.Errorf("refused and killed, HAProxy answers %q", got)
			}
		}
		four := h.mapped("/ four\n", app)
		h.applied(four, proxyctl.Reload, "four")
		h.has("good again", others, four)

		// The map is removed, which a restart needs, and berth is restarted.
		os.Remove(slices.Collect(maps.Keys(four.Files))[0])
		h.berth()
		h.applied(four, proxyctl.None, "four")
		h.restart()
		h.applied(four, proxyctl.None, "four")
		h.has("repaired", others, four)

		// While HAProxy is down, it would start with the last good one.
		five := h.mapped("/ five\n", app)
		testenv.MustDocker(t, "kill", h.id)
		if _, err := h.Apply(t.Context(), five, true); !errors.Is(err, proxyctl.ErrUnreachable) {
			t.Errorf("error %v", err)
		}
		h.tend()
		h.has("away", others, four, five)
		testenv.MustDocker(t, "start", h.id)
		h.up("master.sock")
		if got := h.answer(); got != "four" {
			t.Errorf("back, HAProxy answers %q", got)
		}
		h.applied(five, proxyctl.Reload, "five")
		h.has("back", others, five)

		// berth is killed while HAProxy judges a text, and the next berth gets another one.
		six := h.mapped("/ six\n", app)
		if err := (&configfile.File{Path: h.driver.opts.File}).WriteAux(six.Files, true); err != nil {
			t.Fatal(err)
		}
		write(t, h.driver.opts.File+".good", mark(five.Text, nil).Text)
		write(t, h.driver.opts.File, mark(six.Text, nil).Text)
		h.berth()
		if _, err := h.Apply(t.Context(), badText, true); !errors.Is(err, proxyctl.ErrRefused) {
			t.Errorf("error %v, want a refusal", err)
		}
		h.tend()
		h.has("killed, then refused", others, five, badText)
		h.restart()
		if got := h.answer(); got != "five" {
			t.Errorf("killed, then refused, then restarted, HAProxy answers %q", got)
		}
		h.applied(five, proxyctl.None, "five")
		h.has("in the end", others, five)
	})
}
