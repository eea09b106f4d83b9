// Package async has what loops share that never wait for a call: Updates, through which results come back, and Attempt,
// the state of a call that is made in another goroutine.
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

// Attempt is a call that is made again after a failure, later each time. The zero value is a call that was not made yet.
type Attempt struct {
	Busy bool      // it is being made
	Err  error     // how it ended last
	At   time.Time // not to be made before; zero = at any time

	delays *backoff.ExponentialBackOff
}

// Allowed says whether the call may be made now.
func (a *Attempt) Allowed(now time.Time) bool { return !a.Busy && !now.Before(a.At) }

// Start takes note that the call is being made.
func (a *Attempt) Start() { a.Busy = true }

// Done takes note of how the call ended.
func (a *Attempt) Done(err error) {
	a.Busy, a.Err = false, err
	if err == nil {
		a.At, a.delays = time.Time{}, nil
		return
	}
	if a.delays == nil {
		a.delays = Delays()
	}
	a.At = time.Now().Add(a.delays.NextBackOff())
}

// Delays returns the pauses between attempts: exponential, with jitter, for ever.
func Delays() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.RandomizationFactor = 100*time.Millisecond, 5*time.Second, 0.5
	b.Reset()
	return b
}

// Earliest returns the earlier of two times, of which the zero time is none.
func Earliest(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}
