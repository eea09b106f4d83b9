//go:build e2e

package nginx

import (
	"errors"
	"strings"
	"testing"

	"berth/proxyctl"
)

// The complaints of real nginx releases about a text lead to the upstream at fault.
func TestE2ENginxAtFault(t *testing.T) {
	eachImage(t, func(t *testing.T, image string) {
		h := startHarness(t, image)
		good := h.text("", to("127.0.0.1:1"))
		h.apply(good, proxyctl.Reload)
		for what, c := range map[string]struct{ old, new, section string }{
			"a directive of the upstream": {"keepalive 32;", "keepalive 32;\n        bad;", "app"},
			"a name":                      {"server 127.0.0.1:1;", "server nosuch.invalid:80;", "app"},
			"no server":                   {"        server 127.0.0.1:1;\n        keepalive 32;\n", "", "app"},
			"a directive of a location":   {"proxy_buffering off;", "proxy_buffering perhaps;", "app"},
			"a directive of http":         {"    upstream app {", "    bad;\n    upstream app {", ""},
		} {
			text := strings.Replace(good, c.old, c.new, 1)
			_, err := h.Apply(t.Context(), onlyText(text), true)
			var refused *proxyctl.RefusalError
			section := ""
			if errors.As(err, &refused) {
				section = refused.Section
			}
			if text == good || !errors.Is(err, proxyctl.ErrRefused) || section != c.section {
				t.Errorf("%s: %q, want %q; %v", what, section, c.section, err)
			}
		}
	})
}
