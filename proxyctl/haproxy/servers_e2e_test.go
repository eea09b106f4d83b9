//go:build e2e

package haproxy

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"berth/deploy/testenv"
	"berth/proxyctl"
)

// HAProxy reports its servers and their requests in flight, including those in its old worker.
func TestE2EServers(t *testing.T) {
	for _, image := range testenv.Images(t, "IMAGES_HAPROXY") {
		t.Run(image, func(t *testing.T) {
			finish := make(chan struct{})
			app := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-finish }))
			defer app.Close()
			h := startHAProxy(t, image)
			address := strings.TrimPrefix(app.URL, "http://")
			text := func(servers string) string {
				return strings.Replace(h.text("first", "backend app\n"+servers), "  http-request return", "  default_backend app\n  http-request return", 1)
			}
			busy := strings.Replace(text(" server a "+address+"\n server b 127.0.0.1:1 disabled\n"), "string first", "string first if { path /first }", 1)
			expect := func(what string, want ...string) {
				t.Helper()
				testenv.Eventually(t, 10*time.Second, what, func() error {
					servers, err := h.Servers(t.Context())
					var got []string
					for _, s := range servers {
						got = append(got, fmt.Sprintf("%s/%s %s %t %d", s.Backend, s.Name, s.Address, s.Usable, s.InFlight))
					}
					if err == nil && strings.Join(got, "\n") != strings.Join(want, "\n") {
						err = errors.New(strings.Join(got, "\n"))
					}
					return err
				})
			}
			if _, err := h.Apply(t.Context(), proxyctl.Config{Text: busy}, true); err != nil {
				t.Fatal(err)
			}
			expect("two servers", "app/a "+address+" true 0", "app/b 127.0.0.1:1 false 0")
			done := make(chan struct{})
			go func() {
				defer close(done)
				_, _ = testenv.Get("http://127.0.0.1:" + h.port) // it only matters that it exists
			}()
			expect("a request", "app/a "+address+" true 1", "app/b 127.0.0.1:1 false 0")
			if res, err := h.Apply(t.Context(), proxyctl.Config{Text: text(" balance leastconn\n server b 127.0.0.1:1\n")}, true); err != nil || res.Action != proxyctl.Reload {
				t.Fatal(res, err)
			}
			expect("the old worker's request", "app/b 127.0.0.1:1 true 0", "app/a "+address+" false 1")
			close(finish)
			<-done
			expect("its end", "app/b 127.0.0.1:1 true 0")
		})
	}
}
