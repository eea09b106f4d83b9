// Command hello greets visitors and counts in Redis how often it has seen each of them. Several instances can run next to each
// other and share the counts.
//
//	GET /              which host this is, and the greeting
//	GET /NAME          Hello NAME! I have seen you 3 times! You are accessing node 2.
//	GET /?name=NAME    the same
//	GET /health        ok, as long as this process serves
//
// Its argument is its configuration file, in TOML:
//
//	greeting = "Hello"              must not be empty, or else hello does not start
//	redis = "172.20.0.5:6379"       "" = there is no Redis at the moment, and /NAME answers 503
//
// PORT sets the port (8080). On SIGTERM it stops accepting at once, finishes requests in flight and exits 0.
package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/redis/go-redis/v9/logging"
)

// drainTimeout leaves room for a request that waits for Redis.
const drainTimeout = 5 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	logging.Disable() // the Redis client logs many lines for what an answer says in one
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := run(ctx, log, os.Args[1:]); err != nil {
		log.Error("hello failed", "err", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, log *slog.Logger, args []string) error {
	if len(args) != 1 {
		return errors.New("usage: hello FILE")
	}
	text, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	conf, err := parse(text)
	if err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("read hostname: %w", err)
	}
	l, err := net.Listen("tcp", ":"+cmp.Or(os.Getenv("PORT"), "8080"))
	if err != nil {
		return err
	}
	c := newCounter(conf.Redis)
	defer c.close()
	return serve(ctx, l, (&site{greeting: conf.Greeting, host: host, counter: c}).handler(), log)
}

// config is the content of the configuration file.
type config struct {
	Greeting string `toml:"greeting"`
	Redis    string `toml:"redis"`
}

func parse(text []byte) (c config, err error) {
	decoder := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields()
	if err := decoder.Decode(&c); err != nil {
		return config{}, err
	}
	if strings.TrimSpace(c.Greeting) == "" {
		return config{}, errors.New("greeting is empty: how shall I greet?")
	}
	return c, nil
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
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	if err := srv.Shutdown(drain); err != nil {
		return errors.Join(fmt.Errorf("finish requests in flight: %w", err), srv.Close())
	}
	log.Info("stopped")
	return nil
}
