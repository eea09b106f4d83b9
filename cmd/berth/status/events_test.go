package status

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// What the log tells is kept as events, whatever level is written.
func TestEventsKeepWhatTheLogTells(t *testing.T) {
	e := NewEvents()
	var out bytes.Buffer
	log := slog.New(e.Handler(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelWarn}))).With("service", "shop")
	log.Info("registered", "instance", "shop-1", "took", 1500*time.Millisecond)
	log.Debug("not told")
	log.Warn("left out\x1b[2J", "err", fmt.Errorf("no such host"))
	list, _ := e.After(0)
	if len(list) != 2 {
		t.Fatalf("%d events, want 2: %+v", len(list), list)
	}
	if ev := list[0].Event; ev.Message != "registered" || ev.Service != "shop" || ev.Instance != "shop-1" || ev.More["took"] != "1.5s" || ev.Level != "INFO" {
		t.Errorf("the first event is %+v", ev)
	}
	if ev := list[1].Event; ev.Message != "left out [2J" || ev.Reason != "no such host" {
		t.Errorf("the second event is %+v", ev)
	}
	if text := out.String(); strings.Contains(text, "registered") || !strings.Contains(text, "left out") {
		t.Errorf("the log has %q, want what is at least a warning", text)
	}
}

// The last ones are kept; those of others come in once, and are not told as this berth's own.
func TestEventsAreBoundedAndMerged(t *testing.T) {
	e := NewEvents()
	_, more := e.After(0)
	for n := range MostEvents + 10 {
		e.Add(Event{At: time.Unix(int64(n), 0), Message: fmt.Sprint(n)})
	}
	select {
	case <-more:
	default:
		t.Error("who waits for more is not told")
	}
	theirs := []Event{{At: time.Unix(9999, 0), Role: RoleRegistrar, Berth: "other", Message: "x"}}
	e.Merge(theirs)
	e.Merge(theirs)
	list, _ := e.After(0)
	if len(list) != MostEvents || list[0].Message != "11" || list[MostEvents-1].Message != "x" {
		t.Errorf("%d events from %q to %q, want %d from 11 to x", len(list), list[0].Message, list[len(list)-1].Message, MostEvents)
	}
	if last := e.Last(2); len(last) != 2 || last[1].Message != fmt.Sprint(MostEvents+9) {
		t.Errorf("its own last events are %+v", last)
	}
	after, _ := e.After(list[MostEvents-2].ID)
	if len(after) != 1 || after[0].Message != "x" {
		t.Errorf("after the one before the last come %+v", after)
	}
	if again, _ := e.After(1_000_000); len(again) != MostEvents {
		t.Errorf("after an ID from before a restart come %d events, want all", len(again))
	}
}
