package templater

import (
	"slices"
	"testing"
	"time"
)

func TestLasting(t *testing.T) {
	var l lasting
	now := time.Unix(0, 0)
	if say, _ := l.note(false, now); say {
		t.Error("it has not lasted yet")
	}
	now = now.Add(time.Second)
	if say, lasts := l.note(true, now); !say || lasts != 0 {
		t.Errorf("at the start it is said that all is well: %t, after %s", say, lasts)
	}
	if say, _ := l.note(true, now); say {
		t.Error("it is said again")
	}

	start := now
	var said []time.Duration
	for ; now.Sub(start) < 4*time.Hour; now = now.Add(time.Second) {
		if say, lasts := l.note(false, now); say {
			said = append(said, lasts)
		}
	}
	want := []time.Duration{time.Minute, 5 * time.Minute, 10 * time.Minute, 20 * time.Minute, 40 * time.Minute, 80 * time.Minute, 140 * time.Minute, 200 * time.Minute}
	if !slices.Equal(said, want) {
		t.Errorf("said after %v, want %v", said, want)
	}
	if say, lasts := l.note(true, now); !say || lasts != 4*time.Hour {
		t.Errorf("the end is said: %t, after %s", say, lasts)
	}
	l.note(false, now)
	if say, _ := l.note(true, now.Add(30*time.Second)); say {
		t.Error("what did not last has an end")
	}
	// A clock that jumps logs it once.
	l.note(false, now)
	if say, lasts := l.note(false, now.Add(9*time.Hour)); !say || lasts != 9*time.Hour {
		t.Errorf("said %t after %s", say, lasts)
	}
	if say, _ := l.note(false, now.Add(9*time.Hour+time.Second)); say {
		t.Error("it is said twice")
	}
}
