package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestHandler(t *testing.T) {
	h := newHandler("web1")
	for _, step := range []struct {
		method, target string
		code           int
		body           string
	}{
		{"GET", "/", 200, "Hosted by web1\nRequest 1 of this process\n"},
		{"GET", "/health", 200, "ok\n"},
		{"GET", "/some/other/path?x=1", 200, "Hosted by web1\nRequest 2 of this process\n"},
		{"POST", "/", 200, "Hosted by web1\nRequest 3 of this process\n"},
		{"GET", "/?delay=soon", 400, "delay is \"soon\": it must be a duration such as 100ms\n"},
		{"GET", "/?delay=-1s", 400, "delay is \"-1s\": it must be a duration such as 100ms\n"},
		{"GET", "/?delay=1ms", 200, "Hosted by web1\nRequest 4 of this process\n"},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(step.method, step.target, nil))
		if w.Code != step.code || w.Body.String() != step.body {
			t.Errorf("%s %s: got %d %q, want %d %q", step.method, step.target, w.Code, w.Body, step.code, step.body)
		}
	}
}

func TestHeaders(t *testing.T) {
	h := newHandler("web1")
	for _, tt := range []struct{ method, target, body, asked, received string }{
		{"GET", "/a/b?c=d", "", "GET /a/b", ""},
		{"POST", "/", "123456789", "POST /", "9 bytes, CRC-32 cbf43926"},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(tt.method, tt.target, strings.NewReader(tt.body)))
		if asked, received := w.Header().Get("Asked"), w.Header().Get("Received"); asked != tt.asked || received != tt.received {
			t.Errorf("%s %s: asked %q, received %q, want %q and %q", tt.method, tt.target, asked, received, tt.asked, tt.received)
		}
	}
}

func TestForTests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		h := logPosts(readyAfter(without(newHandler("web1"), "/gone"), 3*time.Second), slog.New(slog.NewTextHandler(&out, nil)))
		expect := func(method, target string, code int) {
			t.Helper()
			w := httptest.NewRecorder()
			if h.ServeHTTP(w, httptest.NewRequest(method, target, nil)); w.Code != code {
				t.Errorf("%s %s: %d, want %d", method, target, w.Code, code)
			}
		}
		expect("GET", "/gone", 404)
		expect("GET", "/gone/not", 200)
		expect("GET", "/health", 503)
		expect("POST", "/?n=1", 200)
		time.Sleep(3 * time.Second)
		expect("GET", "/health", 200)
		if _, got, _ := strings.Cut(out.String(), "level=INFO "); got != "msg=received post=\"/?n=1\"\n" {
			t.Errorf("the log is %q", got)
		}
	})
}

func TestLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		start, end := time.Now(), later(ctx, time.Second)
		time.Sleep(time.Second)
		cancel()
		<-end.Done()
		if took := time.Since(start); took != 2*time.Second {
			t.Errorf("it ended after %s, want 2s", took)
		}
	})
}

func TestDelayIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		newHandler("web1").ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/?delay=1h", nil))
		if took := time.Since(start); took != maxDelay {
			t.Errorf("delay=1h took %s, want %s", took, maxDelay)
		}
	})
}

// Of a probe, a health check and two requests through a proxy, only the first proxied request is logged.
func TestLogFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		listening := time.Now()
		h := logFirst(newHandler("web1"), listening, slog.New(slog.NewTextHandler(&out, nil)))
		for _, forwardedFor := range []string{"", "", "192.0.2.1", "192.0.2.1"} {
			time.Sleep(5 * time.Millisecond)
			r := httptest.NewRequest("GET", "/", nil)
			if forwardedFor != "" {
				r.Header.Set("X-Forwarded-For", forwardedFor)
			}
			h.ServeHTTP(httptest.NewRecorder(), r)
		}
		want := fmt.Sprintf("msg=\"first request through a proxy\" after=15ms listening=%d\n", listening.UnixNano())
		if _, got, _ := strings.Cut(out.String(), "level=INFO "); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func TestListenAddr(t *testing.T) {
	for port, want := range map[string]string{"": ":8080", "80": ":80", "0": "", "http": "", "65536": "", "-1": ""} {
		got, err := listenAddr(port)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("PORT=%q: got %q, %v, want %q", port, got, err, want)
		}
	}
}

// A stopping server refuses connections at once, answers requests in flight, and only then returns.
func TestServeFinishesRequestsInFlight(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	arrived, release := make(chan struct{}), make(chan struct{})
	app := newHandler("web1")
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-release
		app.ServeHTTP(w, r)
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stopped := make(chan error, 1)
	go func() { stopped <- serve(ctx, l, h, slog.New(slog.DiscardHandler)) }()

	type answer struct {
		body string
		err  error
	}
	answered := make(chan answer, 1)
	go func() {
		body, err := get("http://" + l.Addr().String())
		answered <- answer{body, err}
	}()
	<-arrived
	cancel()
	waitRefused(t, l.Addr().String())
	select {
	case err := <-stopped:
		t.Fatalf("serve returned %v with a request in flight", err)
	default:
	}

	close(release)
	if a := <-answered; a.err != nil || a.body != "Hosted by web1\nRequest 1 of this process\n" {
		t.Errorf("the request in flight got %q, %v", a.body, a.err)
	}
	if err := <-stopped; err != nil {
		t.Errorf("serve returned %v, want nil", err)
	}
}

func TestServeReportsAListenerThatFails(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := serve(t.Context(), l, newHandler("web1"), slog.New(slog.DiscardHandler)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v, want %v", err, net.ErrClosed)
	}
}

func get(url string) (string, error) {
	res, err := http.Get(url)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return string(body), err
}

func waitRefused(t *testing.T, addr string) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for time.Now().Before(deadline) {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return
		}
		c.Close()
	}
	t.Fatalf("%s still accepts connections", addr)
}

func TestFetch(t *testing.T) {
	srv := httptest.NewServer(newHandler("web1"))
	defer srv.Close()
	var out strings.Builder
	if err := fetch(t.Context(), srv.URL, &out); err != nil || out.String() != "Hosted by web1\n" {
		t.Errorf("got %q, %v", out.String(), err)
	}
	if err := fetch(t.Context(), srv.URL+"/?delay=soon", &out); err == nil || err.Error() != "400 Bad Request" {
		t.Errorf("a bad answer gives %v", err)
	}
}

// A websocket is a tunnel: it echoes what is sent.
func TestEcho(t *testing.T) {
	server := httptest.NewServer(newHandler("web1"))
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// The key and its answer are the example of RFC 6455, 1.3.
	fmt.Fprint(conn, "GET /echo HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nhello\n")
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if accept := resp.Header.Get("Sec-WebSocket-Accept"); resp.StatusCode != http.StatusSwitchingProtocols || accept != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		t.Errorf("%s, accept %q", resp.Status, accept)
	}
	if line, err := in.ReadString('\n'); line != "hello\n" || err != nil {
		t.Errorf("%q, %v", line, err)
	}
	plain, err := http.Get(server.URL + "/echo")
	if err != nil {
		t.Fatal(err)
	}
	plain.Body.Close()
	if plain.StatusCode != http.StatusUpgradeRequired {
		t.Error(plain.Status)
	}
}

// With arguments, the app answers no requests: it runs the command or reports the error.
func TestCommand(t *testing.T) {
	page := httptest.NewServer(newHandler("web1"))
	defer page.Close()
	for args, want := range map[string]struct {
		code           int
		stdout, stderr string
	}{
		"--help":                        {0, usage, ""},
		"-h":                            {0, usage, ""},
		"help":                          {0, usage, ""},
		"get " + page.URL:               {0, "Hosted by web1\n", ""},
		"get":                           {2, "", "unexpected arguments [\"get\"]\n" + usage},
		"--port 80":                     {2, "", "unexpected arguments [\"--port\" \"80\"]\n" + usage},
		"get " + page.URL + "/?delay=x": {1, "", "400 Bad Request\n"},
	} {
		var stdout, stderr strings.Builder
		code := command(t.Context(), strings.Fields(args), &stdout, &stderr)
		if code != want.code || stdout.String() != want.stdout || stderr.String() != want.stderr {
			t.Errorf("%s: %d %q %q, want %+v", args, code, stdout.String(), stderr.String(), want)
		}
	}
}
