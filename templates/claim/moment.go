package claim

import (
	"strings"
	"time"
)

// MetaReadyAt is the Meta key under which berth's registrar says when the instance was found ready, as Stamp writes it. It stays
// the same over registrations, until another process is found ready.
const MetaReadyAt = "berth-ready-at"

// stampLayout is RFC 3339 with milliseconds.
const stampLayout = "2006-01-02T15:04:05.000Z07:00"

// Before and after the time in the reason of a maintenance mode.
const (
	beforeStop = " (at "
	afterStop  = ")"
)

// Stamp returns a time as it is written into Consul: RFC 3339 in UTC with milliseconds.
func Stamp(at time.Time) string { return at.UTC().Format(stampLayout) }

// ReadyAt returns when an instance was found ready, by its metadata, and whether that says so.
func ReadyAt(meta map[string]string) (time.Time, bool) { return parseStamp(meta[MetaReadyAt]) }

// WithStop returns the reason of a maintenance mode followed by the time at which the instance was told to stop.
func WithStop(reason string, at time.Time) string {
	return reason + beforeStop + Stamp(at) + afterStop
}

// StoppedAt returns when an instance was told to stop, by the notes of its maintenance mode, and whether these say so.
func StoppedAt(notes string) (time.Time, bool) {
	_, at, is := cutStop(notes)
	return at, is
}

// WithoutStop returns the reason to which WithStop added a time. A reason without one stays as it is.
func WithoutStop(notes string) string {
	reason, _, _ := cutStop(notes)
	return reason
}

func cutStop(notes string) (reason string, at time.Time, is bool) {
	n := strings.LastIndex(notes, beforeStop)
	stamp, closed := strings.CutSuffix(notes[max(n, 0):], afterStop)
	if n < 0 || !closed {
		return notes, time.Time{}, false
	}
	if at, is = parseStamp(stamp[len(beforeStop):]); !is {
		return notes, time.Time{}, false
	}
	return notes[:n], at, true
}

// parseStamp reads what Stamp has written, and nothing else.
func parseStamp(s string) (time.Time, bool) {
	at, err := time.Parse(stampLayout, s)
	if err != nil || Stamp(at) != s {
		return time.Time{}, false
	}
	return at, true
}
