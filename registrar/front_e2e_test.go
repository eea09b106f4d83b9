//go:build e2e

package registrar_test

import (
	"bytes"
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"path/filepath"
	"strings"
	"sync"
)

// front stands between a registrar and Docker. It counts requests, and breaks or silences the event stream.
type front struct {
	socket string

	mu       sync.Mutex
	calls    []string // "list", "inspect ID", "kill ID", "events", or the path
	refuses  bool     // refuses events
	harmless bool     // sends no signals
	events   int      // number passed on
	silent   bool
	streams  map[*stream]bool
}

func newFront(l *harness) *front {
	l.t.Helper()
	real, ok := strings.CutPrefix(dockerClient(l.t, "").Endpoint(), "unix://")
	if !ok {
		l.t.Skip("Docker is not on a unix socket")
	}
	f := &front{socket: filepath.Join(l.t.TempDir(), "docker.sock"), streams: map[*stream]bool{}}
	listener, err := net.Listen("unix", f.socket)
	if err != nil {
		l.t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", "docker" },
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", real)
		}, MaxIdleConnsPerHost: 20},
		FlushInterval: -1, // events as they come
		ModifyResponse: func(r *http.Response) error {
			if call(r.Request) == "events" {
				r.Body = f.stream(r.Body)
			}
			return nil
		},
		ErrorLog: log.New(io.Discard, "", 0), // it breaks on purpose
	}
	server := &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		what := call(r)
		f.mu.Lock()
		f.calls = append(f.calls, what)
		refuses := f.refuses && what == "events" || strings.HasPrefix(what, "kill ") && f.harmless
		f.mu.Unlock()
		if refuses {
			http.Error(w, "not today", http.StatusServiceUnavailable)
			return
		}
		proxy.ServeHTTP(w, r)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }()
	l.t.Cleanup(func() { server.Close(); <-done })
	return f
}

// call names the call of a request.
func call(r *http.Request) string {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	switch n := len(parts); {
	case parts[n-1] == "events":
		return "events"
	case n >= 2 && parts[n-2] == "containers" && parts[n-1] == "json":
		return "list"
	case n >= 3 && parts[n-3] == "containers" && parts[n-1] == "json":
		return "inspect " + parts[n-2]
	case n >= 3 && parts[n-3] == "containers":
		return parts[n-1] + " " + parts[n-2]
	}
	return r.URL.Path
}

// count returns how often something was asked for: "list", "inspect", "inspect ID".
func (f *front) count(what string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		if c == what || strings.HasPrefix(c, what+" ") {
			n++
		}
	}
	return n
}

// heard returns the number of events passed on.
func (f *front) heard() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.events
}

// cut breaks the open event streams.
func (f *front) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for s := range f.streams {
		s.ReadCloser.Close()
		delete(f.streams, s)
	}
}

// streaming reports whether an event stream is open.
func (f *front) streaming() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.streams) > 0
}

// refuse answers further requests for events with an error.
func (f *front) refuse(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuses = on
}

// silence drops the events of all streams.
func (f *front) silence(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.silent = on
}

// stream is the body of Docker's answer to a request for events.
type stream struct {
	io.ReadCloser
	f *front
}

func (f *front) stream(body io.ReadCloser) *stream {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := &stream{body, f}
	f.streams[s] = true
	return s
}

func (s *stream) Read(p []byte) (int, error) {
	for {
		n, err := s.ReadCloser.Read(p)
		s.f.mu.Lock()
		silent := s.f.silent
		if !silent {
			s.f.events += bytes.Count(p[:n], []byte("\n"))
		}
		s.f.mu.Unlock()
		if err != nil || !silent {
			return n, err
		}
	}
}
