package claim

import (
	"testing"
	"time"
)

func TestStopTravelsWithItsReason(t *testing.T) {
	at := time.Date(2026, 2, 3, 4, 5, 6, 789_000_000, time.FixedZone("", 3600))
	reason := WithStop("stopped at last by SIGTERM", at)
	if got, is := StoppedAt(reason); !is || !got.Equal(at) {
		t.Errorf("%q: %v, %v, want %v", reason, got, is, at)
	}
	for _, without := range []string{"", "drained by hand", "look at it", "at"} {
		if got, is := StoppedAt(without); is {
			t.Errorf("%q: %v", without, got)
		}
	}
}

func TestReadyAt(t *testing.T) {
	at := time.Date(2026, 2, 3, 4, 5, 6, 789_000_000, time.UTC)
	if got, is := ReadyAt(map[string]string{MetaReadyAt: Stamp(at)}); !is || !got.Equal(at) {
		t.Errorf("%v, %v, want %v", got, is, at)
	}
	if got, is := ReadyAt(map[string]string{MetaReadyAt: "now"}); is {
		t.Errorf("%v", got)
	}
	if got, is := ReadyAt(nil); is {
		t.Errorf("%v", got)
	}
}
