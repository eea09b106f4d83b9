package proxyctl

import (
	"errors"
	"time"
)

// costly is the least time of a refused reload that has kept listeners closed for a while.
const costly = time.Second

// refusal remembers the last text that was refused. The same text with other servers is not shown to the proxy and its
// program at every change: that costs a worker, which counts for mworker-max-reloads too, and a processor. A text that
// differs in more is tried at once.
type refusal struct {
	shape string
	err   error
	at    time.Time
	wait  time.Duration // until it is tried again
	slow  bool          // the proxy took its time for it
}

// note remembers an error if that is a refusal. The time until the next try is first, and doubles with each refusal of the
// same shape up to most. The error that note returns says when the next try is due.
func (r *refusal) note(shape string, err error, first, most time.Duration) error {
	var port *PortError
	switch {
	case !errors.Is(err, ErrRefused):
		return err
	case errors.As(err, &port): // the driver remembers it
		first, most = time.Second, 15*time.Second
	}
	wait := first
	if r.err != nil && r.shape == shape {
		wait = min(max(2*r.wait, first), most)
	}
	*r = refusal{shape: shape, err: err, at: time.Now(), wait: wait}
	return &retryError{err, wait}
}

// still returns the error of a text of this shape while it is too early to try that again.
func (r *refusal) still(shape string) error {
	if left := r.wait - time.Since(r.at); r.err != nil && r.shape == shape && left > 0 {
		return &retryError{r.err, left}
	}
	return nil
}

// retryError says in what time to try again.
type retryError struct {
	error
	after time.Duration
}

func (e *retryError) Unwrap() error { return e.error }
