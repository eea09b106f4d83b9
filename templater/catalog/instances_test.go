package catalog

import (
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

func TestInstances(t *testing.T) {
	for _, tt := range []struct{ name, asked, datacenter, key string }{
		{"web", "/v1/health/service/web", "", "instances(web)"},
		{"web@dc2", "/v1/health/service/web", "dc2", "instances(web@dc2)"},
		{"Web_App.v1", "/v1/health/service/Web_App.v1", "", "instances(Web_App.v1)"},
		{"v1.web@dc-2.eu", "/v1/health/service/v1.web", "dc-2.eu", "instances(v1.web@dc-2.eu)"},
		{"hc name", "/v1/health/service/hc%20name", "", "instances(hc name)"},
		{"a|b?c~d", "/v1/health/service/a%7Cb%3Fc~d", "", "instances(a|b?c~d)"},
		{"a@b c", "/v1/health/service/a@b%20c", "", "instances(a@b c)"},
		{"a\nb", "/v1/health/service/a%0Ab", "", "instances(a\nb)"},
	} {
		d, err := NewInstances(tt.name)
		if err != nil {
			t.Errorf("%q: %v", tt.name, err)
			continue
		}
		var got *http.Request
		base := roundTrip(func(r *http.Request) (*http.Response, error) {
			got = r
			body := `[{"Node": {"Node": "n2"}, "Service": {"ID": "a"}}, {"Node": {"Node": "n1"}, "Service": {"ID": "b"}},
				{"Node": {"Node": "n1"}, "Service": {"ID": "a", "CreateIndex": 5}, "Checks": [{"Status": "critical", "CheckID": "serfHealth"}]}, {}]`
			header := http.Header{"X-Consul-Index": {"7"}}
			return &http.Response{StatusCode: http.StatusOK, Header: header, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
		})
		c, err := NewClient(&api.Config{HttpClient: &http.Client{Transport: base}}, 0, time.Minute, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		w := NewWatch(d, Options{Wait: time.Minute, Consul: c})
		a, err := w.ask(state{}, false)
		if err != nil {
			t.Fatal(err)
		}
		if q := got.URL.Query(); got.URL.EscapedPath() != tt.asked || q.Get("dc") != tt.datacenter || q.Has("passing") || q.Get("near") != "_agent" || w.Key != tt.key {
			t.Errorf("%q: asked %s for %s, want %s", tt.name, got.URL, w.Key, tt.asked)
		}
		if !w.lease.shares {
			t.Errorf("%q cannot share a connection", tt.name)
		}
		list := a.data.([]*api.ServiceEntry)
		var all []string
		for _, e := range list {
			all = append(all, e.Node.Node+"/"+e.Service.ID)
		}
		if got := strings.Join(all, " "); got != "n1/a n1/b n2/a" || a.index != 7 {
			t.Fatalf("%s with index %d", got, a.index)
		}
		if e := list[0]; e.Service.CreateIndex != 5 || len(e.Checks) != 1 || e.Checks[0].CheckID != "serfHealth" {
			t.Errorf("%+v", e)
		}
		w.Stop()
	}
	for _, name := range []string{"", ".", "..", "a/../b", "a//b", "a/"} {
		if d, err := NewInstances(name); err == nil {
			t.Errorf("%q is asked for as %s", name, d)
		}
	}
}
