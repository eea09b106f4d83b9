package configfile

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// LazyWriter brings the configuration file in step with servers that were changed at run time, without delaying them: writing
// takes milliseconds, and validating far more. The newest text wins. Its methods may be called from any goroutine.
type LazyWriter struct {
	Proxy string                                       // the proxy's name in messages
	Write func(ctx context.Context, text string) error // writes the file, unless the proxy's program refuses the text

	mu    sync.Mutex
	next  *lazyText     // what to write after the current write
	hurry chan struct{} // closed to end the pause after a write; nil if no write is running
	done  chan struct{} // closed when everything is written
	last  Generation    // of the text written last
	err   error         // of that write
}

type lazyText struct {
	text       string
	generation Generation
}

// least is the minimum time between two writes while changes follow each other. A file that lags a little costs at most a stale
// server or two after a crash of the proxy.
const least = 100 * time.Millisecond

// Put hands over a text without waiting.
func (w *LazyWriter) Put(ctx context.Context, text string, g Generation) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.next = &lazyText{text, g}
	if w.hurry != nil {
		return
	}
	w.hurry, w.done = make(chan struct{}), make(chan struct{})
	go w.run(context.WithoutCancel(ctx), w.hurry, w.done)
}

func (w *LazyWriter) run(ctx context.Context, hurry, done chan struct{}) {
	defer close(done)
	for {
		w.mu.Lock()
		next := w.next
		w.next = nil
		if next == nil {
			w.hurry = nil
			w.mu.Unlock()
			return
		}
		w.mu.Unlock()
		began := time.Now()
		err := w.Write(ctx, next.text)
		w.mu.Lock()
		w.last, w.err = next.generation, err
		w.mu.Unlock()
		select {
		case <-hurry:
		case <-time.After(max(least, 4*time.Since(began))): // a fifth of one core at most
		}
	}
}

// Idle reports whether everything is written.
func (w *LazyWriter) Idle() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.hurry == nil
}

// Flush waits until everything is written.
func (w *LazyWriter) Flush() {
	w.mu.Lock()
	hurry, done := w.hurry, w.done
	if hurry != nil {
		select {
		case <-hurry:
		default:
			close(hurry)
		}
	}
	w.mu.Unlock()
	if hurry != nil {
		<-done
	}
}

// Problem returns why the file does not have a text, nil if it has it or that is not known yet.
func (w *LazyWriter) Problem(g Generation) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil || w.last != g {
		return nil
	}
	return fmt.Errorf("%s has the newest servers, but a restart would bring back earlier ones: %w", w.Proxy, w.err)
}
