package haproxy

import (
	"fmt"
	"strings"
	"time"

	"berth/templates/claim"
	"berth/templates/route"
)

// Pause is one of the pauses of a request or connection that waits for a server. HAProxy checks again after each.
type Pause struct {
	Milliseconds int
	After        int // milliseconds of all earlier pauses
}

// Pauses returns the pauses of the longest wait. Each is 4 % longer than the previous one. So requests wait only slightly
// longer than necessary, and a few configuration lines suffice.
func Pauses() []Pause {
	var all []Pause
	after := 0
	for next := 10.0; after < int(claim.MaxHold.Milliseconds()); next *= 1.04 {
		all = append(all, Pause{Milliseconds: int(next), After: after})
		after += int(next)
	}
	return all
}

// HoldMap returns the backends with a shorter or longer wait than usual, with the milliseconds: "shop 30000".
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
			hold = 0 // to HAProxy it has no server, but clients with a cookie stay with theirs
		}
		add(c.Group.Name, hold)
	}
	for _, p := range t.Ports() {
		add(tcpName(p.Group), p.Group.HoldOr(standard))
	}
	return text.String()
}

// InspectDelay returns how long a connection may wait at most: 35s if that is enough for the whole table, otherwise 6m.
func InspectDelay(t *route.Table, standard time.Duration) string {
	for _, p := range t.Ports() {
		if p.Group.HoldOr(standard) > 30*time.Second {
			return "6m"
		}
	}
	return "35s"
}

// PausedMap returns the backends paused by hand, with the milliseconds that requests and connections wait in them.
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
