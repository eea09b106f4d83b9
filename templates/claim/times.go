package claim

import (
	"strings"
	"time"
)

// MetaReadyAt is the metadata by which a registration tells when its instance was ready, whatever was registered anew since.
const MetaReadyAt = "berth-ready-at"

// stamp is how a time travels through Consul: RFC 3339 with milliseconds.
const stamp = "2006-01-02T15:04:05.000Z07:00"

// Stamp returns a time as metadata has it.
func Stamp(at time.Time) string { return at.UTC().Format(stamp) }

// ReadyAt returns when an instance was ready, by its metadata; false if that does not tell.
func ReadyAt(meta map[string]string) (time.Time, bool) {
	at, err := time.Parse(time.RFC3339, meta[MetaReadyAt])
	return at, err == nil
}

// stopped stands between the reason of a maintenance mode and the time of the stop.
const stopped = " at "

// WithStop returns the reason of a maintenance mode with the time at which the instance was told to stop.
func WithStop(reason string, at time.Time) string { return reason + stopped + Stamp(at) }

// StoppedAt returns when an instance was told to stop, by the reason of its maintenance mode; false if that does not tell.
func StoppedAt(reason string) (time.Time, bool) {
	i := strings.LastIndex(reason, stopped)
	if i < 0 {
		return time.Time{}, false
	}
	at, err := time.Parse(time.RFC3339, reason[i+len(stopped):])
	return at, err == nil
}
