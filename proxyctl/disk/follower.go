package disk

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Follower keeps the configuration file in step with servers that were changed at run time, off their path: writing
// takes milliseconds, and validating far more. The newest text wins.
type Follower struct {
	Proxy string                                       // what the proxy is called in messages
	Write func(ctx context.Context, text string) error // writes the file, unless the proxy's program refuses the text

	mu    sync.Mutex
	next  *follow       // what to write when the one in work is done
	hurry chan struct{} // closed to end the pause after a write; nil while there is none in work
	done  chan struct{} // closed when all is written
	last  Generation    // of the last one that was written
	err   error         // of that
}

type follow struct {
	text       string
	generation Generation
}

// least is the time between two writes while change follows change: a file a little late costs nothing but a stale
// server or two after a crash of the proxy.
const least = 100 * time.Millisecond

// Put hands over a text.
func (f *Follower) Put(ctx context.Context, text string, g Generation) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.next = &follow{text, g}
	if f.hurry != nil {
		return
	}
	f.hurry, f.done = make(chan struct{}), make(chan struct{})
	go f.run(context.WithoutCancel(ctx), f.hurry, f.done)
}

func (f *Follower) run(ctx context.Context, hurry, done chan struct{}) {
	defer close(done)
	for {
		f.mu.Lock()
		m := f.next
		f.next = nil
		if m == nil {
			f.hurry = nil
			f.mu.Unlock()
			return
		}
		f.mu.Unlock()
		began := time.Now()
		err := f.Write(ctx, m.text)
		f.mu.Lock()
		f.last, f.err = m.generation, err
		f.mu.Unlock()
		select {
		case <-hurry:
		case <-time.After(max(least, 4*time.Since(began))): // a fifth of one core at most
		}
	}
}

// Settle waits until all is written.
func (f *Follower) Settle() {
	f.mu.Lock()
	hurry, done := f.hurry, f.done
	if hurry != nil {
		select {
		case <-hurry:
		default:
			close(hurry)
		}
	}
	f.mu.Unlock()
	if hurry != nil {
		<-done
	}
}

// Problem is why the file is not in step with a text, nil if that is not known yet.
func (f *Follower) Problem(g Generation) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil || f.last != g {
		return nil
	}
	return fmt.Errorf("%s has the newest servers, but a restart would bring earlier ones back: %w", f.Proxy, f.err)
}
