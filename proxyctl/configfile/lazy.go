package configfile

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// LazyWriter keeps the configuration file in step with servers that were changed at run time, off their path: writing
// takes milliseconds, and validating far more. The newest text wins. Its methods may be called from any goroutine.
type LazyWriter struct {
	Proxy string                                       // what the proxy is called in messages
	Write func(ctx context.Context, text string) error // writes the file, unless the proxy's program refuses the text

	mu    sync.Mutex
	next  *lazyText     // what to write when the write in work is done
	hurry chan struct{} // closed to end the pause after a write; nil while there is none in work
	done  chan struct{} // closed when all is written
	last  Generation    // of the newest text that was written
	err   error         // of that write
}

type lazyText struct {
	text       string
	generation Generation
}

// least is the time between two writes while change follows change: a file a little late costs nothing but a stale
// server or two after a crash of the proxy.
const least = 100 * time.Millisecond

// Put hands over a text, and does not wait.
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

// Idle says whether all is written.
func (w *LazyWriter) Idle() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.hurry == nil
}

// Flush waits until all is written.
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

// Problem is why the file is not in step with a text, nil if that is not known yet.
func (w *LazyWriter) Problem(g Generation) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil || w.last != g {
		return nil
	}
	return fmt.Errorf("%s has the newest servers, but a restart would bring back earlier ones: %w", w.Proxy, w.err)
}
