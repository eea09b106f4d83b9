package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

const (
	redisTimeout = 2 * time.Second // for a complete request to Redis

	keySeen = "hello:seen:" // and a name: how often it was seen
	keyNode = "hello:node:" // and a host: its number
	keyLast = "hello:nodes" // the highest number of a node
)

var errNoRedis = errors.New("there is no Redis at the moment")

// counter counts in Redis.
type counter struct{ redis *redis.Client } // nil = no Redis

// newCounter returns a counter. It does not connect yet.
func newCounter(address string) *counter {
	if address == "" {
		return &counter{}
	}
	return &counter{redis.NewClient(&redis.Options{
		Addr:                     address,
		DialTimeout:              time.Second,
		DialerRetries:            1,
		ContextTimeoutEnabled:    true,
		MaxRetries:               -1, // a failed request may have been counted
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})}
}

func (c *counter) close() {
	if c.redis != nil {
		_ = c.redis.Close()
	}
}

// count records that a host has seen a name. It returns how often the name was seen, and the host's number: 1 for the first
// host that ever counted. A host keeps its number.
func (c *counter) count(ctx context.Context, name, host string) (seen, node int64, err error) {
	if c.redis == nil {
		return 0, 0, errNoRedis
	}
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	if node, err = c.node(ctx, host); err == nil {
		seen, err = c.redis.Incr(ctx, keySeen+name).Result()
	}
	if err != nil {
		return 0, 0, fmt.Errorf("count in Redis: %w", err)
	}
	return seen, node, nil
}

// node returns the number of a host.
func (c *counter) node(ctx context.Context, host string) (int64, error) {
	node, err := c.redis.Get(ctx, keyNode+host).Int64()
	if !errors.Is(err, redis.Nil) {
		return node, err
	}
	if node, err = c.redis.Incr(ctx, keyLast).Result(); err != nil {
		return 0, err
	}
	if ours, err := c.redis.SetNX(ctx, keyNode+host, node, 0).Result(); err != nil || ours {
		return node, err
	}
	return c.redis.Get(ctx, keyNode+host).Int64() // another request to this host was faster
}
