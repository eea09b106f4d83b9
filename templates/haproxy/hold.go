package haproxy

import (
	"fmt"
	"strings"
	"time"

	"berth/templates/claim"
	"berth/templates/route"
)

// Pause is one of the pauses by which a request or connection waits for a server. After each of them HAProxy looks again.
type Pause struct {
	Milliseconds int
	After        int // the milliseconds of all pauses before
}

// Pauses returns the pauses of the longest hold. Each is 4 % longer than the one before, so that nobody waits much longer than
// until there is a server, and yet few lines of the configuration are enough.
func Pauses() []Pause {
	var all []Pause
	after := 0
	for next := 10.0; after < int(claim.MaxHold.Milliseconds()); next *= 1.04 {
		all = append(all, Pause{Milliseconds: int(next), After: after})
		after += int(next)
	}
	return all
}

// HoldMap returns the backends in which requests or connections do not wait as long as in most, with the milliseconds for which
// they do: "shop 30000".
func HoldMap(t *route.Table, standard time.Duration) string {
	var text strings.Builder
	seen := map[string]bool{}
	add := func(backend string, hold time.Duration) {
		if hold != standard && !seen[backend] {
			seen[backend] = true
			fmt.Fprintf(&text, "%s %d\n", backend, hold.Milliseconds())
		}
	}
	for _, c := range t.Claims() {
		hold := c.Group.HoldOr(standard)
		if c.Group.Sticky && c.Group.Drained() {
			hold = 0 // to HAProxy there is no server, but clients that have a cookie stay with theirs
		}
		add(c.Group.Name, hold)
	}
	for _, p := range t.Ports() {
		add(tcpName(p.Group), p.Group.HoldOr(standard))
	}
	return text.String()
}

// InspectDelay returns how long a connection may wait at most: 35s, as long as that is enough for all of a table, else 6m.
func InspectDelay(t *route.Table, standard time.Duration) string {
	for _, p := range t.Ports() {
		if p.Group.HoldOr(standard) > 30*time.Second {
			return "6m"
		}
	}
	return "35s"
}

// PausedMap returns the backends that somebody has paused, with the milliseconds for which requests and connections wait in
// them.
func PausedMap(t *route.Table) string {
	var text strings.Builder
	for _, g := range t.Paused() {
		if len(g.Routes) > 0 {
			fmt.Fprintf(&text, "%s %d\n", g.Name, g.Paused.Milliseconds())
		}
		if len(g.Ports) > 0 {
			fmt.Fprintf(&text, "%s %d\n", tcpName(g), g.Paused.Milliseconds())
		}
	}
	return text.String()
}
