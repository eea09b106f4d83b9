package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// What an agent answers is said in a line, without what a terminal would obey.
func TestDrainRefused(t *testing.T) {
	t.Setenv("DOCKER_HOST", "unix:///nosuch.sock")
	for name, tt := range map[string]struct {
		read, drain int
		body, says  string
	}{
		"no agent":    {404, 0, "<html>\n<h1>no such page</h1>\n</html>", "read services and checks: something other than Consul answers there; check Consul's address and any proxy in front of it"},
		"a proxy":     {502, 0, "<html>\n<h1>bad gateway</h1>\n</html>", "read services and checks: Consul cannot do it now: <html> <h1>bad gateway</h1> </html>"},
		"no right":    {403, 0, "Permission denied: \x1b[2J", `read services and checks: Consul refuses it: Permission denied: \x1b[2J`},
		"not to all":  {200, 403, "Permission denied: lacks 'service:write'\non web", "drain web: Consul refuses it: Permission denied: lacks 'service:write' on web"},
		"gone by now": {200, 404, `Unknown service ID "web"`, `drain web: Consul refuses it: Unknown service ID "web"`},
	} {
		consul := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			code, body := tt.read, tt.body
			switch {
			case strings.HasPrefix(r.URL.Path, "/v1/agent/service/maintenance/"):
				code = tt.drain
			case code == 200 && r.URL.Path == "/v1/agent/services":
				body = `{"web": {"ID": "web", "Service": "web"}}`
			case code == 200:
				body = "{}"
			}
			w.WriteHeader(code)
			_, _ = w.Write([]byte(body))
		}))
		out, err := berthCommand(t, "drain", "web", "--consul-address", consul.URL)
		consul.Close()
		if err == nil || out != "" || err.Error() != tt.says {
			t.Errorf("%s: %q, %v, want %s", name, out, err, tt.says)
		}
	}
}
