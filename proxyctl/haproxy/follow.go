package haproxy

import (
	"context"
	"fmt"
	"sync"
	"time"

	"berth/proxyctl"
)

// follower keeps the configuration file in step with servers that were changed at run time, off their path: writing
// takes milliseconds, and validating far more. The newest text wins.
type follower struct {
	write func(context.Context, marked) error

	mu    sync.Mutex
	next  *marked       // what to write when the one in work is done
	hurry chan struct{} // closed to end the pause after a write; nil while there is none in work
	done  chan struct{} // closed when all is written
	last  generation    // of the last one that was written
	err   error         // of that
}

// least is the time between two writes while change follows change: a file a little late costs nothing but a stale
// server or two after a crash of HAProxy.
const least = 100 * time.Millisecond

// put hands over a text.
func (f *follower) put(ctx context.Context, m marked) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.next = &m
	if f.hurry != nil {
		return
	}
	f.hurry, f.done = make(chan struct{}), make(chan struct{})
	go f.run(context.WithoutCancel(ctx), f.hurry, f.done)
}

func (f *follower) run(ctx context.Context, hurry, done chan struct{}) {
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
		err := f.write(ctx, *m)
		f.mu.Lock()
		f.last, f.err = m.generation, err
		f.mu.Unlock()
		select {
		case <-hurry:
		case <-time.After(max(least, 4*time.Since(began))): // a fifth of one core at most
		}
	}
}

// settle waits until all is written.
func (f *follower) settle() {
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

// problem is why the file is not in step with m, nil if that is not known yet.
func (f *follower) problem(m marked) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil || f.last != m.generation {
		return nil
	}
	return fmt.Errorf("HAProxy has the newest servers, but a restart would bring earlier ones back: %w", f.err)
}

// follow writes the file for servers that HAProxy has already, unless its program refuses it.
func (p *Proxy) follow(ctx context.Context, m marked) error {
	if err := p.validate(ctx, m.text); err != nil {
		return err
	}
	p.forgetGood() // of an earlier berth that was killed; HAProxy has taken the file since
	return p.write(p.opts.File, m.text)
}

var errNoListener = fmt.Errorf("%w: it has no frontend or listen section with a bind line, so HAProxy would serve nothing", proxyctl.ErrRefused)
