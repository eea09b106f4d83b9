package retry

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

func TestLasting(t *testing.T) {
	start := time.Unix(0, 0)
	var l Lasting
	if was, _ := l.Over(start); was {
		t.Error("nothing was wrong")
	}
	for range 2 { // a second problem is logged like the first
		var told []time.Duration
		for s := range 4 * 3600 {
			if tell, lasts := l.Tell("away", start.Add(time.Duration(s)*time.Second)); tell {
				told = append(told, lasts)
			}
		}
		want := []time.Duration{0, time.Minute, 5 * time.Minute, 10 * time.Minute, 20 * time.Minute, 40 * time.Minute,
			80 * time.Minute, 140 * time.Minute, 200 * time.Minute}
		if !slices.Equal(told, want) {
			t.Errorf("told after %v, want %v", told, want)
		}
		if was, lasted := l.Over(start.Add(4 * time.Hour)); !was || lasted != 4*time.Hour {
			t.Errorf("over: %v, %v", was, lasted)
		}
	}
	// A clock that jumps, and late attempts, are logged once, and delay no later line.
	l.Tell("away", start)
	for _, tt := range []struct {
		after time.Duration
		tell  bool
	}{{9*time.Minute + 50*time.Second, true}, {9*time.Minute + 55*time.Second, false}, {10 * time.Minute, true}, {9 * time.Hour, true}, {9*time.Hour + time.Second, false}} {
		if tell, _ := l.Tell("away", start.Add(tt.after)); tell != tt.tell {
			t.Errorf("after %v: told %t", tt.after, tell)
		}
	}
}

// Another text is news; one that always changes is not.
func TestLastingTexts(t *testing.T) {
	start := time.Unix(0, 0)
	var l Lasting
	told := 0
	for s := range 59 {
		now := start.Add(time.Duration(s) * time.Second)
		for _, text := range []string{"away", "refused", fmt.Sprint("port ", s)} {
			if tell, _ := l.Tell(text, now); tell {
				told++
			}
		}
	}
	if told != maxTexts {
		t.Errorf("told %d times in a minute, want %d", told, maxTexts)
	}
}
