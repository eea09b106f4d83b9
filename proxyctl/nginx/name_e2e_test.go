//go:build e2e

package nginx

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"berth/deploy/testenv"
	"berth/proxyctl"
)

// A name that does not resolve delays what is new in its text, but no server of anything else: removed servers get no more
// requests. The reason is nginx's own, even with a template that logs elsewhere.
func TestE2ENameThatDoesNotResolve(t *testing.T) {
	h := startHarness(t, testenv.Image(t, "IMAGE_NGINX"), func(o *Options) { o.TakeOver = true })
	word := func(word string) string {
		app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, word) }))
		t.Cleanup(app.Close)
		return app.Listener.Addr().(*net.TCPAddr).AddrPort().String()
	}
	a, b := word("a"), word("b")
	text := func(more string, servers ...string) string {
		return "error_log " + h.dir + "/nginx.log notice;\nevents {}\nhttp {\n    upstream app {\n        server " + strings.Join(servers, ";\n        server ") + ";\n    }\n" +
			more + "    server {\n        listen " + h.web + ";\n        location / { proxy_pass http://app; }\n    }\n}\n"
	}
	const legacy = "    upstream legacy {\n        server legacy.invalid:3000;\n    }\n"
	answers := func(what string, want ...string) {
		t.Helper()
		testenv.Eventually(t, 5*time.Second, what, func() error { // old workers may accept a connection until they are told
			seen := map[string]bool{}
			for range 30 {
				seen[h.answer()] = true
			}
			for _, word := range want {
				if !seen[word] || len(seen) != len(want) {
					return fmt.Errorf("answered by %v, want %v", seen, want)
				}
			}
			return nil
		})
	}
	if _, err := h.Apply(t.Context(), proxyctl.Config{Text: text("", a, b)}, true); err != nil {
		t.Fatal(err)
	}
	answers("first", "a", "b")
	for i, servers := range [][]string{{a}, {b}, {a, b}} {
		res, err := h.Apply(t.Context(), proxyctl.Config{Text: text(legacy, servers...)}, true)
		if !errors.Is(err, proxyctl.ErrRefused) || !strings.Contains(err.Error(), `host not found in upstream "legacy.invalid:3000"`) || res.Action != proxyctl.Reload {
			t.Errorf("step %d: %+v, %v", i, res, err)
		}
		var want []string
		for _, s := range servers {
			want = append(want, map[string]string{a: "a", b: "b"}[s])
		}
		answers(fmt.Sprint("step ", i), want...)
	}
	if _, err := h.Apply(t.Context(), proxyctl.Config{Text: text("", b)}, true); err != nil {
		t.Error(err)
	}
	answers("without the name", "b")
}
