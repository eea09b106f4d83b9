// Command chat is a small chat for the browser. Several instances can run next to each other: the messages are in Redis, so every
// instance shows the same.
//
//	GET  /          login page
//	POST /login     stores a name in a cookie
//	POST /logout    removes it
//	GET  /chat      the messages, and a form for a new one
//	POST /messages  posts a message; the last 100 are kept
//	GET  /events    new messages, as server-sent events
//	GET  /health    ok while this process serves
//
// Every page names its host. PORT sets the port (8080), REDIS_ADDRESS the address of Redis (redis:6379). On SIGTERM it stops
// accepting at once, ends the event streams, which browsers then reopen at another instance, finishes other requests in flight
// and exits 0.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9/logging"
	"golang.org/x/sync/errgroup"
)

// drainTimeout leaves room for a request that waits for Redis.
const drainTimeout = 8 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	logging.Disable() // the Redis client logs many lines for what room logs in one
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := run(ctx, log); err != nil {
		log.Error("chat failed", "err", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, log *slog.Logger) error {
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("read hostname: %w", err)
	}
	port := cmp.Or(os.Getenv("PORT"), "8080")
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("PORT is %q: it must be a number from 1 to 65535", port)
	}
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	room := newRoom(cmp.Or(os.Getenv("REDIS_ADDRESS"), "redis:6379"), log)
	defer room.close()

	both, ctx := errgroup.WithContext(ctx)
	both.Go(func() error { room.follow(ctx); return nil })
	both.Go(func() error { return serve(ctx, l, newSite(host, room), log) })
	return both.Wait()
}

// serve answers on l until ctx ends, then closes l at once and returns when all requests in flight are answered.
func serve(ctx context.Context, l net.Listener, s *site, log *slog.Logger) error {
	srv := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 5 * time.Second}
	srv.RegisterOnShutdown(s.endStreams)
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
