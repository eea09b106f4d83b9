package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

const (
	stream       = "chat:messages" // key in Redis
	keep         = 100             // messages
	redisTimeout = 2 * time.Second // for a complete request to Redis
	// redisWait is how long one query for news waits at Redis. The process does not end sooner.
	redisWait = time.Second
)

// message is a message of a user.
type message struct {
	ID   string `json:"id"` // assigned by Redis, ascending
	Name string `json:"name"`
	Text string `json:"text"`
	Host string `json:"host"` // the instance that received it
}

// room is the chat's only room, a stream in Redis.
type room struct {
	redis *redis.Client
	log   *slog.Logger

	mu   sync.Mutex
	news chan struct{} // closed when there is news
}

// newRoom returns a room without connecting. Redis may come and go.
func newRoom(address string, log *slog.Logger) *room {
	return &room{log: log, news: make(chan struct{}), redis: redis.NewClient(&redis.Options{
		Addr:                  address,
		DialTimeout:           time.Second,
		DialerRetries:         1,
		ContextTimeoutEnabled: true,
		// A failed request may have arrived, and must not be repeated.
		MaxRetries:               -1,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})}
}

func (r *room) close() {
	if err := r.redis.Close(); err != nil {
		r.log.Warn("close connections to Redis", "err", err)
	}
}

// say adds a message and removes the oldest beyond the limit.
func (r *room) say(ctx context.Context, m message) error {
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	err := r.redis.XAdd(ctx, &redis.XAddArgs{
		Stream: stream,
		MaxLen: keep,
		Values: []string{"name", m.Name, "text", m.Text, "host", m.Host},
	}).Err()
	if err != nil {
		return fmt.Errorf("add a message in Redis: %w", err)
	}
	return nil
}

// since returns the messages after the message with this ID, or all messages if the ID is invalid, oldest first.
func (r *room) since(ctx context.Context, id string) ([]message, error) {
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	from := "-"
	if isID(id) {
		from = "(" + id
	}
	entries, err := r.redis.XRange(ctx, stream, from, "+").Result()
	if err != nil {
		return nil, fmt.Errorf("read the messages in Redis: %w", err)
	}
	said := make([]message, 0, len(entries))
	for _, e := range entries {
		field := func(key string) string { s, _ := e.Values[key].(string); return s }
		said = append(said, message{ID: e.ID, Name: field("name"), Text: field("text"), Host: field("host")})
	}
	return said, nil
}

// isID reports whether a text is a message ID for Redis: two numbers.
func isID(s string) bool {
	ms, n, ok := strings.Cut(s, "-")
	_, err1 := strconv.ParseUint(ms, 10, 64)
	_, err2 := strconv.ParseUint(n, 10, 64)
	return ok && err1 == nil && err2 == nil
}

// next returns a channel that is closed when there may be new messages or Redis is away. To miss nothing, call next before
// reading the messages.
func (r *room) next() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.news
}

func (r *room) tell() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.news)
	r.news = make(chan struct{})
}

// follow waits for messages until ctx ends, over one connection to Redis for all callers of next.
func (r *room) follow(ctx context.Context) {
	last, away := "", false
	for ctx.Err() == nil {
		newest, err := r.wait(ctx, last)
		if ctx.Err() != nil {
			return
		}
		if failed := err != nil; failed != away {
			away = failed
			if away {
				r.log.Warn("Redis is away: the chat answers 503 until it is back", "err", err)
			} else {
				r.log.Info("Redis is back")
			}
		}
		if newest != last || err != nil {
			r.tell()
		}
		last = newest
		if err != nil {
			select {
			case <-time.After(redisWait):
			case <-ctx.Done():
			}
		}
	}
}

// wait returns the ID of the newest message: at once if it is not last, otherwise when another one arrives or after
// redisWait. On an error it returns last.
func (r *room) wait(ctx context.Context, last string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, redisWait+redisTimeout)
	defer cancel()
	if last == "" {
		newest, err := r.redis.XRevRangeN(ctx, stream, "+", "-", 1).Result()
		if err != nil {
			return last, err
		}
		if len(newest) == 0 {
			return "0-0", nil
		}
		return newest[0].ID, nil
	}
	got, err := r.redis.XRead(ctx, &redis.XReadArgs{Streams: []string{stream, last}, Block: redisWait}).Result()
	if errors.Is(err, redis.Nil) {
		return last, nil
	}
	if err != nil {
		return last, err
	}
	entries := got[0].Messages
	return entries[len(entries)-1].ID, nil
}
