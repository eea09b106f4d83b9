package status

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

// hubWith returns a hub whose Consul answers by a function, and whose catalog has one instance.
func hubWith(t *testing.T, consul http.HandlerFunc) *Hub {
	t.Helper()
	server := httptest.NewServer(consul)
	t.Cleanup(server.Close)
	client, err := api.NewClient(&api.Config{Address: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	h := NewHub()
	h.Consul, h.Events = client, NewEvents()
	h.Own = func(context.Context) []Part { return []Part{balancer(nil)} }
	h.Catalog = func() (Catalog, bool) { return Catalog{"app": {entry("app", "app-1", "10.0.0.1:80")}}, true }
	return h
}

// A document is put together once for all who ask at a time, and again when something has changed.
func TestHubMakesADocumentWhenItIsWorthIt(t *testing.T) {
	var asked atomic.Int64
	h := hubWith(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "paused") {
			asked.Add(1)
		}
		_, _ = w.Write([]byte("[]"))
	})
	first, err := h.Document(t.Context())
	if err != nil || len(first.Services) != 1 || first.Services[0].State != Serving {
		t.Fatalf("%+v, %v", first, err)
	}
	for range 100 {
		if again, err := h.Document(t.Context()); err != nil || again != first {
			t.Fatalf("%p, %v, want the same", again, err)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("Consul was asked %d times, want once", n)
	}
	h.Own = func(context.Context) []Part {
		return []Part{balancer(func(p *Part) {
			p.Servers = []PartServer{{"10.0.0.1:80", Server{Backend: "app", Name: "app-1", Weight: 1, State: "DOWN"}}}
		})}
	}
	changed := h.Watch()
	h.Changed()
	<-changed
	deadline := time.Now().Add(10 * time.Second)
	for {
		now, err := h.Document(t.Context())
		if err == nil && now.Tag != first.Tag && now.Services[0].State == Down {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v, %v: the change is not seen", now, err)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// What this berth knows is told though Consul hangs, soon, and with what is missing.
func TestHubWithAConsulThatHangs(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	h := hubWith(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-hang:
		case <-r.Context().Done():
		}
	})
	began := time.Now()
	s, err := h.Document(t.Context())
	if took := time.Since(began); err != nil || s.Services[0].State != Serving || took > 4*time.Second {
		t.Errorf("after %v: %+v, %v", took, s, err)
	}
	if !strings.Contains(strings.Join(s.Incomplete, "; "), "paused") {
		t.Errorf("missing are %v", s.Incomplete)
	}
}

// What other berths say is listened to while somebody asks, and this berth's own part is not taken from Consul.
func TestHubListensToOthers(t *testing.T) {
	h := hubWith(t, func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/v1/kv/"+Prefix) {
			_, _ = w.Write([]byte("[]"))
			return
		}
		w.Header().Set("X-Consul-Index", "7")
		// {"berth":{"version":"v1"},"events":[{"msg":"registered","level":"INFO","at":"2026-01-01T00:00:00Z"}]}
		value := "eyJiZXJ0aCI6eyJ2ZXJzaW9uIjoidjEifSwiZXZlbnRzIjpbeyJtc2ciOiJyZWdpc3RlcmVkIiwibGV2ZWwiOiJJTkZPIiwiYXQiOiIyMDI2LTAxLTAxVDAwOjAwOjAwWiJ9XX0="
		_, _ = w.Write([]byte(`[{"Key":"berth/status/registrar/other","Session":"s","Value":"` + value + `"},
			{"Key":"berth/status/templater/lb","Session":"s","Value":"` + value + `"},
			{"Key":"berth/status/registrar/dead","Value":"` + value + `"},{"Key":"berth/status/registrar/bad","Session":"s","Value":"bm8="}]`))
	})
	h.IsOwn = func(role, name string) bool { return role == RoleTemplater && name == "lb" }
	s, err := h.Document(t.Context())
	if err != nil || len(s.Berths) != 2 || s.Berths[0].Name != "other" || s.Berths[0].Role != RoleRegistrar || s.Berths[0].Version != "v1" {
		t.Errorf("the berths are %+v, %v", s, err)
	}
	events, _ := h.Events.After(0)
	if len(events) != 1 || events[0].Berth != "other" || events[0].Message != "registered" {
		t.Errorf("the events are %+v", events)
	}
}
