package proxyctl

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestWaiting(t *testing.T) {
	type counts = map[string]WaitingCount
	for _, tt := range []struct {
		name  string
		seen  []counts // one per second
		log   string
		now   string // samples at the end
		total string
	}{
		{name: "nobody waits", seen: []counts{{}, nil}},
		{
			name: "begins and ends",
			seen: []counts{{"shop": {Now: 2, Total: 2, Longest: time.Second}}, {"shop": {Now: 3, Total: 34, Longest: 3 * time.Second}},
				{"shop": {Total: 34, Longest: 3200 * time.Millisecond}}, {"shop": {Total: 34, Longest: 3200 * time.Millisecond}}},
			log:   "requests for shop wait: it has no server\nrequests for shop no longer wait: 34 waited, 3.2s at most\n",
			now:   "shop 0",
			total: "shop 34",
		},
		{
			name:  "the proxy does not say how long",
			seen:  []counts{{"shop": {Now: 1, Total: 1}}, {"shop": {Now: 1, Total: 1}}, {"shop": {Total: 1}}},
			log:   "requests for shop wait: it has no server\nrequests for shop no longer wait: 1 waited, 2.0s at most\n",
			now:   "shop 0",
			total: "shop 1",
		},
		{
			name:  "between two looks",
			seen:  []counts{{}, {"shop": {Total: 5, Longest: 100 * time.Millisecond}}},
			log:   "requests for shop no longer wait: 5 waited, 0.1s at most\n",
			now:   "shop 0",
			total: "shop 5",
		},
		{
			name:  "what the proxy has counted before the start is not told again",
			seen:  []counts{{"shop": {Total: 5, Longest: 3 * time.Second}}, {"shop": {Total: 7}}},
			log:   "requests for shop no longer wait: 2 waited, 1.0s at most\n",
			now:   "shop 0",
			total: "shop 2",
		},
		{
			name:  "some wait at the start",
			seen:  []counts{{"shop": {Now: 2, Total: 9}}, {"shop": {Total: 9}}},
			log:   "requests for shop wait: it has no server\nrequests for shop no longer wait: 2 waited, 1.0s at most\n",
			now:   "shop 0",
			total: "shop 2",
		},
		{
			name:  "twice",
			seen:  []counts{{}, {"shop": {Now: 1, Total: 7}}, {"shop": {Total: 7}}, {"shop": {Now: 2, Total: 9}}, {"shop": {Total: 9}}},
			log:   "requests for shop wait: it has no server\nrequests for shop no longer wait: 7 waited, 1.0s at most\nrequests for shop wait: it has no server\nrequests for shop no longer wait: 2 waited, 1.0s at most\n",
			now:   "shop 0",
			total: "shop 9",
		},
		{
			name:  "paused",
			seen:  []counts{{"shop": {Now: 1, Total: 1, Paused: true}}},
			log:   "requests for shop wait: it is paused\n",
			now:   "shop 1",
			total: "shop 1",
		},
		{
			name:  "the proxy was restarted while they waited",
			seen:  []counts{{}, {"shop": {Now: 4, Total: 10}}, {"shop": {Now: 2, Total: 2}}, {"shop": {Total: 3}}},
			log:   "requests for shop wait: it has no server\nrequests for shop no longer wait: 3 waited, 2.0s at most\n",
			now:   "shop 0",
			total: "shop 13",
		},
		{
			name:  "the service is gone",
			seen:  []counts{{"b": {Now: 1, Total: 1}, "a": {Now: 1, Total: 1}}, {"a": {Now: 1, Total: 1}}},
			log:   "requests for a wait: it has no server\nrequests for b wait: it has no server\nrequests for b no longer wait: 1 waited, 1.0s at most\n",
			now:   "a 1",
			total: "a 1,b 1",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log strings.Builder
				reg := prometheus.NewRegistry()
				w := NewWaiting(reg, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{ReplaceAttr: onlyMessage})))
				for n, c := range tt.seen {
					if n > 0 {
						time.Sleep(time.Second)
					}
					w.Observe(c)
				}
				if got := strings.NewReplacer("msg=", "", `"`, "").Replace(log.String()); got != tt.log {
					t.Errorf("log:\n%swant:\n%s", got, tt.log)
				}
				if got := samples(t, reg, "berth_waiting_requests"); got != tt.now {
					t.Errorf("now %q, want %q", got, tt.now)
				}
				if got := samples(t, reg, "berth_held_requests_total"); got != tt.total {
					t.Errorf("total %q, want %q", got, tt.total)
				}
			})
		})
	}
	(*Waiting)(nil).Observe(map[string]WaitingCount{"shop": {Now: 1}})
}

func onlyMessage(_ []string, a slog.Attr) slog.Attr {
	if a.Key != slog.MessageKey {
		return slog.Attr{}
	}
	return a
}

// samples returns the values of a metric as "service value", in order.
func samples(t *testing.T, reg *prometheus.Registry, name string) string {
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name {
				all = append(all, fmt.Sprint(m.GetLabel()[0].GetValue(), " ", m.GetGauge().GetValue()+m.GetCounter().GetValue()))
			}
		}
	}
	return strings.Join(all, ",")
}
