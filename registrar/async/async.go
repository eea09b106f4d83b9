// Package async has what loops share that leave waiting to other goroutines.
package async

import (
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// Updates is what other goroutines have to tell a loop. Adding never blocks.
type Updates[T any] struct {
	Wake chan struct{} // receives when there is something to Drain

	mu    sync.Mutex
	batch []T
}

// NewUpdates returns empty Updates.
func NewUpdates[T any]() *Updates[T] { return &Updates[T]{Wake: make(chan struct{}, 1)} }

// Add adds an update and wakes the loop.
func (u *Updates[T]) Add(update T) {
	u.mu.Lock()
	u.batch = append(u.batch, update)
	u.mu.Unlock()
	select {
	case u.Wake <- struct{}{}:
	default:
	}
}

// Drain returns what was added since the last Drain, in that order.
func (u *Updates[T]) Drain() []T {
	u.mu.Lock()
	defer u.mu.Unlock()
	batch := u.batch
	u.batch = nil
	return batch
}

// Delays returns the pauses between attempts: exponential, with jitter, for ever.
func Delays() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.RandomizationFactor = 100*time.Millisecond, 5*time.Second, 0.5
	b.Reset()
	return b
}
