package route

import (
	"maps"
	"sync"
	"time"
)

// A port that was refused is left alone for this long: at first, and at most, after many refusals in a row.
const (
	firstRefusal   = time.Minute
	longestRefusal = 10 * time.Minute
)

// Refused remembers the TCP ports that the proxy could not open lately. Any goroutine may call its methods. A nil Refused has
// no port.
type Refused struct {
	// Changed receives a value when the answers of Reason may have changed.
	Changed chan struct{}

	mu    sync.Mutex
	ports map[int]refusal
}

type refusal struct {
	reason string
	until  time.Time
	wait   time.Duration
}

// NewRefused returns an empty set. Each refusal of a port in a row lasts twice as long as the one before.
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
		return // said of a configuration from before
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

// Reason returns why a port was refused, "" if it may be asked for.
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
