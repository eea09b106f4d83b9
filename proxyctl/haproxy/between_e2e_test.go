//go:build e2e

package haproxy

import (
	"os"
	"slices"
	"strings"
	"testing"

	"berth/deploy/testenv"
	"berth/proxyctl"
)

// If berth is killed between the writes of a text with maps, a HAProxy that then starts answers as before or as after.
func TestE2EKilledBetween(t *testing.T) {
	h := startHAProxy(t, os.Getenv("IMAGE_HAPROXY"))
	for _, tt := range killed {
		text := func(r routing) string { return r.text(h.driver.opts.File, "127.0.0.1:"+h.port) }
		all := states(h.driver, text(tt.before), text(tt.after))
		answers := map[string][]string{}
		for _, files := range all {
			for path, content := range files {
				write(t, path, content)
			}
			h.restart()
			for path := range strings.FieldsSeq(tt.asked) {
				answers[path] = append(answers[path], testenv.Answer("http://127.0.0.1:"+h.port+path))
			}
		}
		for n, path := range strings.Fields(tt.asked) {
			got := answers[path]
			for i, is := range got {
				want := answered(h.driver, all[i], path)
				if is != want && !(want == "none" && strings.HasPrefix(is, "404")) {
					t.Errorf("%s: after %d writes HAProxy answers %s with %q, the other test assumes %q", tt.name, i, path, is, want)
				}
				if !slices.Contains([]string{got[0], got[len(got)-1]}, is) && (n > 0 || tt.between == "") {
					t.Errorf("%s: after %d writes %s is answered by %q: %q", tt.name, i, path, is, got)
				}
			}
		}
		t.Logf("%s: %v", tt.name, answers)

		// The next berth finds this state.
		for path, content := range all[len(all)-2] {
			write(t, path, content)
		}
		h.restart()
		h.berth()
		if res, err := h.Apply(t.Context(), onlyText(Unmarked(text(tt.after))), true); err != nil || res.Action == proxyctl.Reload {
			t.Errorf("%s: the next berth: %+v, %v", tt.name, res, err)
		}
		h.Close()
		for path := range strings.FieldsSeq(tt.asked) {
			if got := testenv.Answer("http://127.0.0.1:" + h.port + path); got != answers[path][len(all)-1] {
				t.Errorf("%s: after the next berth has come %s is answered by %q", tt.name, path, got)
			}
		}
		for path, content := range all[len(all)-1] {
			if got := onDisk(t, path); got != content {
				t.Errorf("%s: the next berth leaves %q in %s", tt.name, got, path)
			}
		}
	}
}
