package docker

import (
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"testing"

	docker "github.com/fsouza/go-dockerclient"
)

func TestStart(t *testing.T) {
	for _, tt := range []struct {
		name    string
		status  int
		body    string
		refused string // "" = it was started
	}{
		{"started", http.StatusNoContent, "", ""},
		{"it runs already", http.StatusNotModified, "", ""},
		{"refused", http.StatusInternalServerError, `{"message":"Address already in use"}`, "Address already in use"},
		{"removed", http.StatusNotFound, `{"message":"No such container: x"}`, "No such container: x"},
		{"by a proxy", http.StatusForbidden, "<h1>403</h1>\n", "<h1>403</h1>"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client := daemon(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodPost || r.URL.RequestURI() != "/containers/x/start" {
					t.Errorf("%s %s", r.Method, r.URL)
				}
				w.WriteHeader(tt.status)
				_, _ = w.Write([]byte(tt.body))
			})
			err := Start(client)(t.Context(), "x")
			var refused *Refusal
			if (tt.refused == "" && err != nil) || (tt.refused != "" && (!errors.As(err, &refused) || refused.Why != tt.refused)) {
				t.Errorf("err = %v, want %q", err, tt.refused)
			}
		})
	}
	client := daemon(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	var refused *Refusal
	if err := Start(client)(t.Context(), "x"); err == nil || errors.As(err, &refused) {
		t.Errorf("err = %v, want an error that is no answer", err)
	}
}

func TestReplacements(t *testing.T) {
	first := map[string]string{"com.docker.compose.replace": "app-1", "SERVICE_REPLACE": "start-first"}
	with := func(name, value string) map[string]string {
		labels := maps.Clone(first)
		labels[name] = value
		return labels
	}
	client := daemon(t, func(w http.ResponseWriter, r *http.Request) {
		if q := r.URL.Query(); q.Get("all") != "1" || q.Get("filters") != `{"label":["com.docker.compose.replace"],"status":["created","running"]}` {
			t.Errorf("asked for %s", r.URL)
		}
		_ = json.NewEncoder(w).Encode([]docker.APIContainers{
			{ID: "new", Names: []string{"/0123456789ab_shop-app-1"}, Labels: first},
			{ID: "renamed", Names: []string{"/shop-app-2"}, Labels: first},
			{ID: "stop first", Names: []string{"/0123456789ac_shop-app-3"}, Labels: with("SERVICE_REPLACE", "stop-first")},
		})
	})
	got, err := Replacements(t.Context(), client)
	if want := map[string]string{"new": "0123456789ab"}; err != nil || !maps.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
}

func TestHostPorts(t *testing.T) {
	got := hostPorts(map[docker.Port][]docker.PortBinding{
		"80/tcp": {{HostPort: "8080"}, {HostIP: "::", HostPort: "8080"}}, "81/tcp": {{HostPort: "80"}}, "82/tcp": {{HostPort: ""}, {HostPort: "0"}},
		"83/tcp": {{HostPort: "9000-9010"}}, "84/tcp": nil,
	})
	if len(got) != 2 || got[0] != 80 || got[1] != 8080 {
		t.Errorf("got %v, want 80 and 8080", got)
	}
}
