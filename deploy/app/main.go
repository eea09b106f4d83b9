// Command app is the demo's web application: it shows which container answered.
//
//	/                 "Hosted by <hostname>" and the number of requests this process has answered
//	/?delay=100ms     the same after a delay (10s at most): a request to watch during a change
//	/health           ok
//	/echo             upgrades to a websocket and echoes its bytes: a tunnel to watch
//
// Every other path answers like /. The response header Asked shows the request, and Received its body. PORT sets the port
// (8080). On SIGTERM it stops accepting at once, finishes requests in flight and exits 0. With EXIT_AT_ONCE=1 it exits 0 at
// once, as many programs do, and requests in flight are lost.
//
// For tests:
//
//	MISSING=/path       answers 404 at the path
//	READY_AFTER=3s      answers 503 at /health for this time
//	LOG_POSTS=1         logs each POST when its head has arrived
//	STOP_AFTER=100ms    goes on for this time after SIGTERM, until load balancers have noticed
//
// "app get URL" prints the first line of a page instead, for the demo's script on hosts without curl. "app --help" prints the
// usage.
package main

import (
	"bufio"
	"context"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	maxDelay = 10 * time.Second
	// drainTimeout leaves room for the longest delay.
	drainTimeout = maxDelay + 2*time.Second
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if len(os.Args) > 1 {
		os.Exit(command(ctx, os.Args[1:], os.Stdout, os.Stderr))
	}
	if os.Getenv("EXIT_AT_ONCE") == "1" {
		context.AfterFunc(ctx, func() { os.Exit(0) })
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := listenAndServe(ctx, log); err != nil {
		log.Error("app failed", "err", err)
		os.Exit(1)
	}
}

const usage = `Usage:
  berth-app          answer HTTP requests at $PORT (default 8080)
  berth-app get URL  print the first line of a page
`

// command runs the command in the arguments instead of serving, and returns the exit code.
func command(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	switch {
	case len(args) == 2 && args[0] == "get":
		if err := fetch(ctx, args[1], stdout); err != nil {
			fmt.Fprintln(stderr, err)
			return 1
		}
		return 0
	case len(args) == 1 && (args[0] == "--help" || args[0] == "-h" || args[0] == "help"):
		fmt.Fprint(stdout, usage)
		return 0
	}
	fmt.Fprintf(stderr, "unexpected arguments %q\n%s", args, usage)
	return 2
}

// fetch writes the first line of a page that answers 200 within two seconds.
func fetch(ctx context.Context, url string, w io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Transport{}).RoundTrip(req) // directly to this host, without a proxy
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	line, err := bufio.NewReader(resp.Body).ReadString('\n')
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, line)
	return err
}

func listenAndServe(ctx context.Context, log *slog.Logger) error {
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("read hostname: %w", err)
	}
	addr, err := listenAddr(os.Getenv("PORT"))
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	listening := time.Now()
	h := newHandler(host)
	if path := os.Getenv("MISSING"); path != "" {
		h = without(h, path)
	}
	if text := os.Getenv("READY_AFTER"); text != "" {
		after, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("READY_AFTER: %w", err)
		}
		h = readyAfter(h, after)
	}
	if os.Getenv("LOG_POSTS") == "1" {
		h = logPosts(h, log)
	}
	context.AfterFunc(ctx, func() { log.Info("told to stop") })
	if text := os.Getenv("STOP_AFTER"); text != "" {
		after, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("STOP_AFTER: %w", err)
		}
		ctx = later(ctx, after)
	}
	return serve(ctx, l, logFirst(h, listening, log), log)
}

// later returns a context that ends some time after another.
func later(ctx context.Context, after time.Duration) context.Context {
	later, end := context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() { time.AfterFunc(after, end) })
	return later
}

// without answers 404 at a path.
func without(h http.Handler, path string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == path {
			http.NotFound(w, r)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// readyAfter answers 503 at /health for the given time.
func readyAfter(h http.Handler, after time.Duration) http.Handler {
	ready := time.Now().Add(after)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/health" && time.Now().Before(ready) {
			http.Error(w, "not ready", http.StatusServiceUnavailable)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// logPosts logs each POST before its body is read.
func logPosts(h http.Handler, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			log.Info("received", "post", r.URL.String())
		}
		h.ServeHTTP(w, r)
	})
}

// logFirst logs the first request through a proxy. X-Forwarded-For distinguishes it from a health check.
func logFirst(h http.Handler, listening time.Time, log *slog.Logger) http.Handler {
	var first sync.Once
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Forwarded-For") != "" {
			first.Do(func() {
				log.Info("first request through a proxy", "after", time.Since(listening), "listening", listening.UnixNano())
			})
		}
		h.ServeHTTP(w, r)
	})
}

func listenAddr(port string) (string, error) {
	if port == "" {
		port = "8080"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", fmt.Errorf("PORT is %q: it must be a number from 1 to 65535", port)
	}
	return ":" + port, nil
}

// serve answers on l until ctx ends, then closes l at once and returns when all requests in flight are answered.
func serve(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()
	log.Info("listening", "address", l.Addr().String())

	select {
	case err := <-failed:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	log.Info("stopping: no new connections, finishing requests in flight")
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	if err := srv.Shutdown(drain); err != nil {
		return errors.Join(fmt.Errorf("finish requests in flight: %w", err), srv.Close())
	}
	log.Info("stopped")
	return nil
}

// newHandler returns the handler of a host.
func newHandler(host string) http.Handler {
	var answered atomic.Uint64
	mux := http.NewServeMux()
	mux.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/echo", echo)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		delay, err := parseDelay(r.URL.Query().Get("delay"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		sum := crc32.NewIEEE()
		length, err := io.Copy(sum, r.Body)
		if err != nil {
			return
		}
		select {
		case <-time.After(delay):
		case <-r.Context().Done():
			return
		}
		w.Header().Set("Asked", r.Method+" "+r.URL.Path)
		if length > 0 {
			w.Header().Set("Received", fmt.Sprintf("%d bytes, CRC-32 %08x", length, sum.Sum32()))
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		fmt.Fprintf(w, "Hosted by %s\nRequest %d of this process\n", host, answered.Add(1))
	})
	return mux
}

// echo upgrades a connection like a websocket, and echoes data until either side closes it.
func echo(w http.ResponseWriter, r *http.Request) {
	key := r.Header.Get("Sec-WebSocket-Key")
	if key == "" || !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		http.Error(w, "only for websockets", http.StatusUpgradeRequired)
		return
	}
	conn, in, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")) // RFC 6455, 4.2.2
	_, err = fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n\r\n",
		base64.StdEncoding.EncodeToString(sum[:]))
	if err == nil {
		_, _ = io.Copy(conn, in) // until either side closes
	}
}

func parseDelay(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("delay is %q: it must be a duration such as 100ms", s)
	}
	return min(d, maxDelay), nil
}
