package claim

import (
	"testing"
	"time"
)

func TestReadyAt(t *testing.T) {
	zone := time.FixedZone("east", 2*3600)
	at := time.Date(2026, 11, 27, 14, 0, 0, 123456789, zone)
	if got := Stamp(at); got != "2026-11-27T12:00:00.123Z" {
		t.Errorf("written as %s", got)
	}
	for value, want := range map[string]bool{
		Stamp(at):                       true,
		"2026-11-27T12:00:00.000Z":      true,
		"":                              false,
		"2026-11-27T12:00:00Z":          false,
		"2026-11-27T14:00:00.123+02:00": false,
		"2026-13-27T12:00:00.123Z":      false,
		"now":                           false,
	} {
		got, told := ReadyAt(map[string]string{MetaReadyAt: value})
		if told != want || told && Stamp(got) != value || !told && !got.IsZero() {
			t.Errorf("%q: %v, %v", value, got, told)
		}
	}
	if _, told := ReadyAt(nil); told {
		t.Error("no metadata tells a time")
	}
}

func TestStoppedAt(t *testing.T) {
	at := time.Date(2026, 11, 27, 12, 0, 0, 123e6, time.UTC)
	for _, reason := range []string{"", "the container is being stopped by SIGTERM", "a (at b)", "it is gone (at 2026-11-27T12:00:00.000Z)"} {
		notes := WithStop(reason, at)
		if got, is := StoppedAt(notes); !is || !got.Equal(at) {
			t.Errorf("%q: %v, %v", notes, got, is)
		}
		if got := WithoutStop(notes); got != reason {
			t.Errorf("%q without the time is %q", notes, got)
		}
	}
	if got, want := WithStop("stopped", at), "stopped (at 2026-11-27T12:00:00.123Z)"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	for _, notes := range []string{"", ")", " (at ", " (at )", "new disk", "new disk (at noon)", "x (at 2026-11-27T12:00:00.123Z", "x (at 2026-11-27T12:00:00.123Z) y", "x(at 2026-11-27T12:00:00.123Z)"} {
		if got, is := StoppedAt(notes); is || !got.IsZero() || WithoutStop(notes) != notes {
			t.Errorf("%q: %v, %v", notes, got, is)
		}
	}
}
