package docker

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	docker "github.com/fsouza/go-dockerclient"
	"github.com/google/go-cmp/cmp"
)

func TestEventsThatMatter(t *testing.T) {
	event := func(kind, action string, attributes ...string) Message {
		e := Message{Type: kind, Action: action}
		e.Actor.ID = "c"
		e.Actor.Attributes = map[string]string{}
		for i := 0; i < len(attributes); i += 2 {
			e.Actor.Attributes[attributes[i]] = attributes[i+1]
		}
		return e
	}
	replacement := func(attributes ...string) Message {
		return event("container", "create", append([]string{"com.docker.compose.replace", "app-1", "SERVICE_REPLACE", "start-first"}, attributes...)...)
	}
	ev := func(a Action) Event { return Event{ID: "c", Action: a, Exit: -1} }
	for _, tt := range []struct {
		in   Message
		want Event
	}{
		{event("container", "start"), ev(Started)},
		{event("container", "kill", "signal", "15"), Event{ID: "c", Action: Killed, Signal: 15, Exit: -1}},
		{event("container", "die", "exitCode", "137"), Event{ID: "c", Action: Died, Exit: 137}},
		{event("container", "die"), ev(Died)},
		{event("container", "destroy"), ev(Removed)},
		{event("container", "pause"), ev(Changed)},
		{event("container", "unpause"), ev(Changed)},
		{event("container", "rename"), ev(Changed)},
		{event("container", "health_status: healthy"), ev(Changed)},
		{event("network", "disconnect", "container", "c"), ev(Changed)},
		{event("container", "create", "image", "app", "service_config", "/etc/c"), Event{ID: "c", Action: Created, Files: true, Exit: -1}},
		{event("container", "create", "SERVICE_FILES", "/etc"), Event{ID: "c", Action: Created, Files: true, Exit: -1}},
		{replacement("name", "0123456789ab_shop-app-1"), Event{ID: "c", Action: Created, Old: "0123456789ab", Exit: -1}},
		{replacement("name", "0123456789ab_shop-app-1", "SERVICE_FILES", "/etc"), Event{ID: "c", Action: Created, Files: true, Old: "0123456789ab", Exit: -1}},
	} {
		if got, relevant := tt.in.event(); !relevant || got != tt.want {
			t.Errorf("%s %s: %+v, %v; want %+v", tt.in.Type, tt.in.Action, got, relevant, tt.want)
		}
	}
	for _, e := range []Message{
		event("container", "create"), replacement("name", "shop-app-1"), replacement("name", "0123456789ab_a", "SERVICE_REPLACE", "stop-first"), event("container", "create", "SERVICE_CONFIG_ON_CHANGE", "none"), event("container", "stop"), event("container", "exec_create: sh"), event("container", "attach"),
		event("network", "create"), event("network", "connect"), event("volume", "mount"), {Type: "container", Action: "start"},
	} {
		if got, relevant := e.event(); relevant {
			t.Errorf("%s %s is taken for %+v", e.Type, e.Action, got)
		}
	}
}

// daemon answers like Docker's, on a unix socket.
func daemon(t *testing.T, h http.HandlerFunc) *docker.Client {
	path := filepath.Join(t.TempDir(), "docker.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: h}}
	srv.Start()
	t.Cleanup(srv.Close)
	client, err := docker.NewClient("unix://" + path)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func TestEvents(t *testing.T) {
	client := daemon(t, func(w http.ResponseWriter, r *http.Request) {
		if got := r.URL.Query().Get("filters"); got != filters {
			t.Errorf("filters are %s", got)
		}
		for i := range 5000 {
			fmt.Fprintf(w, `{"Type":"container","Action":"start","Actor":{"ID":"c%d","Attributes":{"name":"x"}}}`+"\n", i)
		}
	})
	var got []string
	connected := 0
	err := Events(client)(t.Context(), func() { connected++ }, func(e Message) { got = append(got, e.Actor.ID) })
	if err == nil || !strings.Contains(err.Error(), "the daemon closed the stream") {
		t.Errorf("error %v", err)
	}
	if connected != 1 || len(got) != 5000 || got[0] != "c0" || got[4999] != "c4999" {
		t.Errorf("connected %d times, %d events, the last of them in order up to the end of the stream: %v", connected, len(got), got[max(0, len(got)-2):])
	}
}

// A reopened stream begins after the last message, or where the first one began.
func TestEventsGoOn(t *testing.T) {
	var since []string
	client := daemon(t, func(w http.ResponseWriter, r *http.Request) {
		since = append(since, r.URL.Query().Get("since"))
		w.Header().Set("Date", time.Unix(1e9, 0).UTC().Format(http.TimeFormat))
		if len(since) == 2 {
			fmt.Fprintln(w, `{"Type":"container","Action":"start","Actor":{"ID":"c"},"timeNano":1000000005000000041}`)
		}
	})
	stream := Events(client)
	for range 3 {
		_ = stream(t.Context(), func() {}, func(Message) {})
	}
	if d := cmp.Diff([]string{"", "1000000001.000000000", "1000000005.000000042"}, since); d != "" {
		t.Errorf("since (-want +got):\n%s", d)
	}
}

// A message of any length costs a bounded amount of memory, and later ones are heard.
func TestEventsSkipsLongMessages(t *testing.T) {
	chunk := bytes.Repeat([]byte("x"), 1<<20)
	client := daemon(t, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, `{"Type":"container","Action":"start","Actor":{"ID":"before"}}`)
		fmt.Fprint(w, `{"Type":"container","Action":"start","Actor":{"ID":"long","Attributes":{"label":"`)
		for range 64 {
			_, _ = w.Write(chunk)
		}
		fmt.Fprintln(w, `"}}}`)
		fmt.Fprintln(w, `{"Type":"container","Action":"start","Actor":{"ID":"after"}}`)
	})
	var got []string
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	connected := 0
	err := Events(client)(t.Context(), func() { connected++ }, func(m Message) { got = append(got, m.Actor.ID) })
	runtime.ReadMemStats(&after)
	if err == nil || !strings.Contains(err.Error(), "the daemon closed the stream") || strings.Join(got, " ") != "before after" {
		t.Errorf("%v, %v", got, err)
	}
	if connected != 2 {
		t.Errorf("connected was told %d times, want 2: something was left out", connected)
	}
	if used := after.TotalAlloc - before.TotalAlloc; used > 16<<20 {
		t.Errorf("%d MB allocated for a message of 64 MB", used>>20)
	}
}

func TestEventsFails(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"500 Internal Server Error: no can do": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no can do", 500) },
		"read docker events: invalid":          func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "nonsense") },
	} {
		err := Events(daemon(t, h))(t.Context(), func() {}, func(Message) {})
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("error %v, want one that says %q", err, name)
		}
	}
}

func TestEventsEndsWithItsContext(t *testing.T) {
	release := make(chan struct{})
	client := daemon(t, func(w http.ResponseWriter, _ *http.Request) {
		w.(http.Flusher).Flush()
		<-release
	})
	defer close(release)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Events(client)(ctx, cancel, func(Message) {}) }() // ends itself once it is connected
	select {
	case err := <-done:
		if err == nil {
			t.Error("no error")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it does not end")
	}
}

func TestEngine(t *testing.T) {
	client := daemon(t, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"ID":"ENGINE","Name":"vm","Containers":3}`)
	})
	id, name, err := engine(t.Context(), client)
	if d := cmp.Diff([]any{"ENGINE", "vm", nil}, []any{id, name, err}); d != "" {
		t.Error(d)
	}
	client = daemon(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{}`) })
	if _, _, err := engine(t.Context(), client); err == nil || !strings.Contains(err.Error(), "no engine ID") {
		t.Errorf("error %v", err)
	}
}
