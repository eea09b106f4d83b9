package catalog

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul/api"
)

// roundTrip is an http.RoundTripper.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// The library's client is overwritten with one that has our transport: otherwise Consul's headers would be invisible and
// queries would have no deadline.
func TestQueriesUseTheTransport(t *testing.T) {
	var got *http.Request
	base := roundTrip(func(r *http.Request) (*http.Response, error) {
		got = r
		body := `[{"Node": {"Node": "n"}, "Service": {"ID": "web-1", "Port": 80}, "Checks": []}]`
		header := http.Header{"X-Consul-Index": {"7"}}
		header.Set(filteredHeader, "true")
		return &http.Response{StatusCode: http.StatusOK, Header: header, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
	})
	config := &api.Config{
		Address: "consul.example:1234", Scheme: "https", Token: "s3cret", Namespace: "team", HttpClient: &http.Client{Transport: base},
	}
	c, err := NewClient(config, 0, time.Minute, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	d, err := dependency.NewHealthServiceQuery("web")
	if err != nil {
		t.Fatal(err)
	}
	w := NewWatch(d, Options{Wait: time.Minute, Consul: c})
	defer w.Stop()
	a, err := w.ask(state{}, false)
	if err != nil || got == nil {
		t.Fatalf("%v, request %v", err, got)
	}
	const url = "https://consul.example:1234/v1/health/service/web"
	if !strings.HasPrefix(got.URL.String(), url) || got.Header.Get("X-Consul-Token") != "s3cret" || got.URL.Query().Get("ns") != "team" {
		t.Errorf("asked %s with %v", got.URL, got.Header)
	}
	if _, limited := got.Context().Deadline(); !limited {
		t.Error("the query has no deadline")
	}
	if list, ok := a.data.([]*dependency.HealthService); !ok || len(list) != 1 || list[0].ID != "web-1" || a.index != 7 || !a.filtered {
		t.Errorf("answer %+v", a)
	}
}

func TestTokenFile(t *testing.T) {
	var got string
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.Header.Get("X-Consul-Token") }))
	defer server.Close()
	file := filepath.Join(t.TempDir(), "token")
	client := &http.Client{Transport: FollowToken(http.DefaultTransport, &api.Config{Token: "first", TokenFile: file})}
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	steps := []struct {
		name string
		do   func() error
		want string
	}{
		{"no file", func() error { return nil }, "first"},
		{"a file", func() error { return os.WriteFile(file, []byte("second\n"), 0o600) }, "second"},
		{"an empty one", func() error { return os.WriteFile(file, nil, 0o600) }, "second"},
		{"another", func() error { return os.WriteFile(file, []byte("the third"), 0o600) }, "the third"},
		{"none again", func() error { return os.Remove(file) }, "the third"},
	}
	for _, tt := range steps {
		if err := tt.do(); err != nil {
			t.Fatal(err)
		}
		res, err := client.Get(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if got != tt.want {
			t.Errorf("%s: token %q, want %q", tt.name, got, tt.want)
		}
	}
}
