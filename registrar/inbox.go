package registrar

import (
	"sync"
	"time"
)

// inbox takes what other goroutines have to tell the loop. Putting something in never blocks, so that Docker's event
// stream is always drained.
type inbox struct {
	wake chan struct{}

	mu   sync.Mutex
	mail mail
}

// mail is what came since the loop looked last.
type mail struct {
	events   []containerEvent
	accepted []endpoint          // probes that succeeded
	late     map[endpoint]string // probes that take longer than they should, and why
	resync   bool                // the event stream was connected anew
}

// containerEvent is what happened to a container.
type containerEvent struct {
	id     string
	action action
	signal int // of killed
	exit   int // of gone, -1 if it is not known
}

type action string

const (
	arrived action = "arrived" // it runs: to be inspected
	changed action = "changed" // to be inspected if it is known
	killed  action = "killed"  // it was sent a signal
	gone    action = "gone"    // it died, which is certain without asking
	removed action = "removed" // there is nothing left of it
)

// endpoint is what is probed: one start of a container. After a restart it has to be ready anew, after a change of its
// service's name or ID not.
type endpoint struct {
	container string
	ready     Ready
	started   time.Time
}

func endpointOf(in Instance) endpoint {
	return endpoint{in.Container, in.Ready, in.Started}
}

func newInbox() *inbox { return &inbox{wake: make(chan struct{}, 1)} }

func (b *inbox) put(f func(*mail)) {
	b.mu.Lock()
	f(&b.mail)
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

func (b *inbox) take() mail {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := b.mail
	b.mail = mail{}
	return m
}
