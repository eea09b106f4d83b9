package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/prometheus/client_golang/prometheus"

	"berth/cmd/berth/status"
)

// answering returns a server that tells what a berth knows, with a Consul that has nothing.
func answering(t *testing.T, a *actions) (*httptest.Server, *statusAnswers) {
	t.Helper()
	consul := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "[]") }))
	t.Cleanup(consul.Close)
	client, err := api.NewClient(&api.Config{Address: consul.URL})
	if err != nil {
		t.Fatal(err)
	}
	hub := status.NewHub()
	hub.Consul, hub.Events = client, status.NewEvents()
	hub.Catalog = func() (status.Catalog, bool) {
		return status.Catalog{"shop": {{Service: "shop", ID: "shop-1", Node: "n", Address: "10.0.0.1:80"}}}, true
	}
	hub.Own = func(context.Context) []status.Part { return nil }
	s := &statusAnswers{hub: hub, live: newLiveTimes(prometheus.NewRegistry()), actions: a}
	mux := http.NewServeMux()
	s.handle(mux)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server, s
}

func TestStatusAnswers(t *testing.T) {
	server, _ := answering(t, nil)
	get := func(path, tag string) (*http.Response, string) {
		t.Helper()
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+path, nil)
		r.Header.Set("If-None-Match", tag)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp, string(body)
	}
	resp, body := get("/v1/status", "")
	var doc status.Document
	if err := json.Unmarshal([]byte(body), &doc); err != nil || len(doc.Services) != 1 || len(doc.Services[0].Instances) != 1 || doc.At.IsZero() {
		t.Errorf("%s, %v: %s", resp.Status, err, body)
	}
	resp, body = get("/v1/status?instances=no", "")
	doc = status.Document{}
	if err := json.Unmarshal([]byte(body), &doc); err != nil || len(doc.Services[0].Instances) != 0 || doc.At.IsZero() {
		t.Errorf("without instances: %v: %s", err, body)
	}
	if again, _ := get("/v1/status?instances=no", resp.Header.Get("ETag")); again.StatusCode != http.StatusNotModified {
		t.Errorf("the same again: %s", again.Status)
	}
	if resp, body := get("/v1/status?service=shop", ""); resp.StatusCode != http.StatusOK || !strings.Contains(body, "shop-1") {
		t.Errorf("one service: %s: %s", resp.Status, body)
	}
	if resp, _ := get("/v1/status?service=nobody", ""); resp.StatusCode != http.StatusNotFound {
		t.Errorf("a service that is not there: %s", resp.Status)
	}
	resp, body = get("/", "")
	for header, want := range map[string]string{
		"Content-Security-Policy": "frame-ancestors 'none'", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
	} {
		if got := resp.Header.Get(header); !strings.Contains(got, want) {
			t.Errorf("%s is %q, want %q", header, got, want)
		}
	}
	if csp := resp.Header.Get("Content-Security-Policy"); strings.Contains(csp, "unsafe") || !strings.Contains(csp, "default-src 'none'") || !strings.Contains(body, "<title>berth") {
		t.Errorf("policy %q of %.100s", csp, body)
	}
	if resp, _ := get("/nothing", ""); resp.StatusCode != http.StatusNotFound {
		t.Errorf("a path that is not there: %s", resp.Status)
	}
	for _, path := range []string{"/v1/drain?instance=x", "/v1/pause?service=x"} {
		resp, err := http.Post(server.URL+path, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound && resp.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("%s without a token to compare with: %s", path, resp.Status)
		}
	}
}

// Changes come as they happen, and whoever was away gets those that it missed.
func TestEventsStream(t *testing.T) {
	server, s := answering(t, nil)
	s.hub.Events.Add(status.Event{Message: "before"})
	open := func(last string) (next func() string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		t.Cleanup(cancel)
		r, _ := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+"/v1/events", nil)
		r.Header.Set("Accept", "text/event-stream")
		if last != "" {
			r.Header.Set("Last-Event-ID", last)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		lines := bufio.NewScanner(resp.Body)
		lines.Scan() // it has begun
		return func() string {
			kind := ""
			for lines.Scan() {
				key, value, _ := strings.Cut(lines.Text(), ": ")
				if key == "event" {
					kind = value
				}
				if key == "data" && kind == "change" {
					var ev status.Event
					_ = json.Unmarshal([]byte(value), &ev)
					return ev.Message
				}
			}
			t.Fatalf("the stream ended: %v", lines.Err())
			return ""
		}
	}
	next := open("")
	s.hub.Events.Add(status.Event{Message: "one"})
	if got := next(); got != "one" {
		t.Errorf("the first change is %q", got)
	}
	again := open("1")
	if got := again(); got != "one" {
		t.Errorf("the change that was missed is %q", got)
	}
}

// Only who has the token acts, and a token that is easily guessed is none.
func TestActionsNeedTheToken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	var did []string
	act := func(what string) func(context.Context, string, bool) error {
		return func(_ context.Context, name string, on bool) error {
			if name == "fails" {
				return errors.New("it does not work")
			}
			did = append(did, what+" "+name)
			return nil
		}
	}
	server, _ := answering(t, &actions{tokenFile: file, drain: act("drain"), pause: act("pause")})
	post := func(path, token string) int {
		t.Helper()
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+path, nil)
		r.Header.Set("Authorization", "Bearer "+token)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	write := func(token string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const token = "0123456789abcdef"
	if got := post("/v1/drain?instance=a", ""); got != http.StatusForbidden {
		t.Errorf("without a file: %d", got)
	}
	write("short")
	if got := post("/v1/drain?instance=a", "short"); got != http.StatusForbidden {
		t.Errorf("with a short token: %d", got)
	}
	write(token)
	for _, bad := range []string{"", "wrong", token + "0"} {
		if got := post("/v1/drain?instance=a", bad); got != http.StatusForbidden {
			t.Errorf("with %q: %d", bad, got)
		}
	}
	if did != nil {
		t.Errorf("without the token, %v was done", did)
	}
	if got := post("/v1/drain?instance=a", token) + post("/v1/resume?service=shop", token); got != 2*http.StatusNoContent || strings.Join(did, ", ") != "drain a, pause shop" {
		t.Errorf("%d, %v", got, did)
	}
	if got := post("/v1/pause?service=fails", token); got != http.StatusBadGateway {
		t.Errorf("what fails: %d", got)
	}
	if resp, err := http.Get(server.URL + "/v1/drain?instance=b"); err != nil || resp.StatusCode == http.StatusNoContent || len(did) != 2 {
		t.Errorf("by GET: %v, %v", resp.Status, did)
	}
}
