package claim

import (
	"strings"
	"time"
)

// MetaReadyAt is the Meta key with the time at which berth's registrar found the instance ready, as written by Stamp. It
// stays the same across registrations until another process is found ready.
const MetaReadyAt = "berth-ready-at"

// stampLayout is RFC 3339 with milliseconds.
const stampLayout = "2006-01-02T15:04:05.000Z07:00"

// The text before and after the time in a maintenance reason.
const (
	beforeStop = " (at "
	afterStop  = ")"
)

// Stamp formats a time for Consul: RFC 3339 in UTC with milliseconds.
func Stamp(at time.Time) string { return at.UTC().Format(stampLayout) }

// ReadyAt returns when an instance was found ready, according to its metadata; false if unknown.
func ReadyAt(meta map[string]string) (time.Time, bool) { return parseStamp(meta[MetaReadyAt]) }

// WithStop returns a maintenance reason followed by the time at which the instance was told to stop.
func WithStop(reason string, at time.Time) string {
	return reason + beforeStop + Stamp(at) + afterStop
}

// StoppedAt returns when an instance was told to stop, according to the notes of its maintenance mode; false if unknown.
func StoppedAt(notes string) (time.Time, bool) {
	_, at, is := cutStop(notes)
	return at, is
}

// WithoutStop removes the time added by WithStop. Other reasons are unchanged.
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

// parseStamp reads only the format of Stamp.
func parseStamp(s string) (time.Time, bool) {
	at, err := time.Parse(stampLayout, s)
	if err != nil || Stamp(at) != s {
		return time.Time{}, false
	}
	return at, true
}
