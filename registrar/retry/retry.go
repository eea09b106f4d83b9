// Package retry decides how long to wait between attempts, and when to log that they keep failing.
package retry

import (
	"context"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// Delays returns the pauses between attempts: exponential, with jitter, forever.
func Delays() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.RandomizationFactor = 100*time.Millisecond, 5*time.Second, 0.5
	b.Reset()
	return b
}

// Pause waits, at most until ctx is done, and reports whether ctx is still alive.
func Pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
	return ctx.Err() == nil
}
