package route

import (
	"maps"
	"sync"
	"time"
)

// A refused port is not opened for this long: after the first refusal, and at most after many in a row.
const (
	firstRefusal   = time.Minute
	longestRefusal = 10 * time.Minute
)

// Refused remembers the TCP ports that the proxy recently could not open. Its methods are safe for concurrent use. A nil
// Refused has no ports.
type Refused struct {
	// Changed receives a value when the results of Reason may have changed.
	Changed chan struct{}

	mu    sync.Mutex
	ports map[int]refusal
}

type refusal struct {
	reason string
	until  time.Time
	wait   time.Duration
}

// NewRefused returns an empty set. Each consecutive refusal of a port lasts twice as long as the previous one.
func NewRefused() *Refused {
	return &Refused{Changed: make(chan struct{}, 1), ports: map[int]refusal{}}
}

// Refuse keeps a port closed for a while. The reason is for the operator: "another program listens there".
func (r *Refused) Refuse(port int, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(r.ports, func(_ int, old refusal) bool { return now.After(old.until.Add(longestRefusal)) })
	old := r.ports[port]
	if now.Before(old.until) {
		return // concerns an earlier configuration
	}
	wait := min(max(2*old.wait, firstRefusal), longestRefusal)
	r.ports[port] = refusal{reason, now.Add(wait), wait}
	r.notify()
	time.AfterFunc(wait, r.notify)
}

func (r *Refused) notify() { notify(r.Changed) }

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Reason returns why a port was refused, "" if it may be used.
func (r *Refused) Reason(port int) string {
	if r == nil {
		return ""
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.ports[port]; time.Now().Before(p.until) {
		return p.reason
	}
	return ""
}
