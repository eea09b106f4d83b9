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
	last     map[string]string // newest action of each container that something happened to
	order    []string          // its keys, as they came
	accepted []endpoint        // probes that succeeded
	resync   bool              // the event stream was connected anew
}

// endpoint is what is probed: one start of a container. After a restart it has to be ready anew.
type endpoint struct {
	instance, container, address string
	started                      time.Time
}

func (in Instance) endpoint() endpoint {
	return endpoint{in.ID, in.Container, in.Probe, in.Started}
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

func (m *mail) happened(container, action string) {
	if m.last == nil {
		m.last = map[string]string{}
	}
	if _, seen := m.last[container]; !seen {
		m.order = append(m.order, container)
	}
	m.last[container] = action
}
