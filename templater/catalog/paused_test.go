package catalog

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"
)

func TestPauseAsPair(t *testing.T) {
	want := Pause{"Shop_1.v2", 90 * time.Second, "migration of the \"orders\"\n", time.Date(2026, 11, 27, 5, 0, 0, 0, time.UTC), "ada@host"}
	pair := want.Pair()
	if pair.Key != "berth/paused/Shop_1.v2" {
		t.Error(pair.Key)
	}
	got, err := ParsePause(pair)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

// Whatever an untrusted writer stores in a key, the other pauses count.
func TestCleanPauses(t *testing.T) {
	for _, tt := range []struct{ key, value, problem string }{
		{"app", `{"max": "1s"}`, ""},
		{"app", `{"max": "5m", "reason": "x", "since": "2026-11-27T05:00:00Z", "by": "y", "more": [1]}`, ""},
		{"app", `{"max": "999ms"}`, `its max "999ms" is not a duration from 1s to 5m`},
		{"app", `{"max": "5m1ns"}`, `its max "5m1ns" is not`},
		{"app", `{"max": "-1s"}`, `its max "-1s" is not`},
		{"app", `{"max": "30"}`, `its max "30" is not`},
		{"app", `{"max": 30}`, "cannot unmarshal number"},
		{"app", `{}`, `its max "" is not`},
		{"app", ``, "unexpected end of JSON"},
		{"app", `30s`, "invalid character"},
		{"app", `{"max": "30s", "since": "yesterday"}`, "parsing time"},
		{"", `{"max": "30s"}`, "it does not name a service"},
		{"app/x", `{"max": "30s"}`, "it does not name a service"},
		{"app\n", `{"max": "no"}`, `the key "berth/paused/app\n" pauses nothing`},
	} {
		good := Pause{Service: "web", Max: time.Minute}
		data, leftOut := clean(pausedAnswer{pairs: api.KVPairs{good.Pair(), {Key: PausedPrefix + tt.key, Value: []byte(tt.value)}}})
		pauses := data.([]*Pause)
		want := 1
		if tt.problem == "" {
			want = 2
		}
		if len(pauses) != want || *pauses[len(pauses)-1] != good {
			t.Errorf("%q %s: %v", tt.key, tt.value, pauses)
		}
		if got := strings.Join(leftOut, "\n"); !strings.Contains(got, tt.problem) || (got == "") != (tt.problem == "") || strings.Contains(got, "\n") {
			t.Errorf("%q %s: %s, want %s", tt.key, tt.value, got, tt.problem)
		}
	}
	data, leftOut := clean(pausedAnswer{filtered: true})
	if len(data.([]*Pause)) != 0 || len(leftOut) != 1 || !strings.Contains(leftOut[0], `give it key_prefix "berth/paused/" { policy = "list" }`) {
		t.Error(data, leftOut)
	}
}

// The log line is short, however long a value is.
func TestLongPause(t *testing.T) {
	for _, value := range []string{`{"max": "30s", "since": "%s"}`, `{"max": "%s"}`, `{"max": %s}`, "%s"} {
		value = strings.Replace(value, "%s", strings.Repeat("9", 100000), 1)
		if _, err := ParsePause(&api.KVPair{Key: PausedPrefix + "app", Value: []byte(value)}); err == nil || len(err.Error()) > 1000 {
			t.Errorf("%.40s: %.300s", value, fmt.Sprint(err))
		}
	}
}

func TestIsRefusal(t *testing.T) {
	for code, want := range map[int]bool{403: true, 404: false, 500: false} {
		if got := IsRefusal(fmt.Errorf("x: %w", api.StatusError{Code: code})); got != want {
			t.Errorf("%d: %t", code, got)
		}
	}
	if IsRefusal(nil) {
		t.Error("nil")
	}
}
