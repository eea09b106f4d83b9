package haproxy

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"berth/proxyctl"
)

// Replies of HAProxy 2.6 and 3.0.
func TestCountWaiting(t *testing.T) {
	const (
		waiting = "# table: hold.waiting, type: string, size:10240, used:3\n" +
			"0x55f6263d9528: key=app use=4 exp=598464 conn_cnt=14 conn_cur=4\n0x55f6263d9529: key=db.tcp use=4 exp=598464 conn_cnt=2 conn_cur=1\n" +
			"0x55f6263d9530: key=* use=5 exp=598464 conn_cnt=16 conn_cur=5\n\n"
		head = "# table: hold.released, type: string, size:10240, used:0\n"
	)
	for _, tt := range []struct {
		name, released string
		app, db        int
	}{
		{"none has gone on", "", 4, 1},
		{"3.0", "0x7f437c382808: key=app use=3 exp=599138 shard=0 conn_cnt=11 conn_cur=1\n0x7f437c382809: key=* use=3 exp=599138 shard=0 conn_cnt=11 conn_cur=1\n", 3, 1},
		{"2.6", "0x7f437c382809: key=* use=3 exp=599138 conn_cnt=11 conn_cur=2\n", 3, 1},
		{"2.6, all have", "0x7f437c382809: key=* use=3 exp=599138 conn_cnt=16 conn_cur=5\n", 0, 0},
		{"read in between", "0x7f437c382809: key=* use=3 exp=599138 conn_cnt=17 conn_cur=6\n", 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := map[string]proxyctl.WaitingCount{"app": {Now: tt.app, Total: 14}, "db.tcp": {Now: tt.db, Total: 2}}
			if diff := cmp.Diff(want, countWaiting(parseTables(waiting+head+tt.released+"\n"))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// Waiting requests are reported while the text counts them, whether or not HAProxy always answers.
func TestWaiting(t *testing.T) {
	var log strings.Builder
	l := startLingers(t, func(o *Options) {
		o.Waiting = proxyctl.NewWaiting(nil, slog.New(slog.NewTextHandler(&log, nil)))
	})
	says := func(n string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.says["show table hold.waiting"] = "# table: hold.waiting, type: string, size:10240, used:0\n0x1: key=app use=1 exp=1 conn_cnt=3 conn_cur=" + n + "\n\n"
		l.says["show table hold.released"] = "# table: hold.released, type: string, size:10240, used:0\n\n"
	}
	look := func(next time.Duration, has string) {
		t.Helper()
		if got := l.driver.counter.look(t.Context()); got != next {
			t.Errorf("the next look is in %v, want %v", got, next)
		}
		if !strings.Contains(log.String(), has) || has == "" && log.Len() > 0 {
			t.Errorf("the log has no %q:\n%s", has, &log)
		}
		log.Reset()
	}
	says("2")
	l.load(l.text(serverA))
	look(time.Second, "") // the text has no counters
	text := l.text(serverA) + "backend hold.waiting\nbackend hold.released\n"
	l.load(text)
	look(250*time.Millisecond, "requests for app wait: it has no server")
	hangs := "@1 show table hold.released"
	l.mu.Lock()
	l.hang[hangs] = true
	l.mu.Unlock()
	look(time.Second, "")
	l.mu.Lock()
	delete(l.hang, hangs)
	l.mu.Unlock()
	says("0")
	look(time.Second, "requests for app no longer wait: 3 waited")
	paused := strings.Replace(text, mapsBegin+l.file+".hold.map", mapsBegin+l.file+".paused.map\n"+mapsEntry+"app 30000\n"+mapsBegin+l.file+".hold.map", 1)
	l.load(paused)
	says("1")
	look(250*time.Millisecond, "requests for app wait: it is paused")
	l.load(l.text(serverA))
	look(time.Second, "requests for app no longer wait")
}

// What HAProxy counted before this berth started is not reported again, even if berth reads it before it knows the text.
func TestWaitingBeforeTheStart(t *testing.T) {
	var log strings.Builder
	reg := prometheus.NewRegistry()
	l := startLingers(t, func(o *Options) { o.Waiting = proxyctl.NewWaiting(reg, slog.New(slog.NewTextHandler(&log, nil))) })
	says := func(total, now int) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.says["show table hold.waiting"] = fmt.Sprintf("# table: hold.waiting, type: string, size:10240, used:0\n0x1: key=app use=1 exp=1 conn_cnt=%d conn_cur=%d\n\n", total, now)
		l.says["show table hold.released"] = "# table: hold.released, type: string, size:10240, used:0\n\n"
	}
	counted := func(want float64) {
		t.Helper()
		families, err := reg.Gather()
		got := 0.0
		for _, f := range families {
			if f.GetName() == "berth_held_requests_total" {
				got = f.GetMetric()[0].GetCounter().GetValue()
			}
		}
		if got != want || err != nil {
			t.Errorf("%v requests were held, want %v; %v\n%s", got, want, err, &log)
		}
	}
	says(100, 0)
	l.driver.counter.look(t.Context())
	l.load(l.text(serverA) + "backend hold.waiting\nbackend hold.released\n")
	l.driver.counter.look(t.Context())
	counted(0)
	says(103, 1)
	l.driver.counter.look(t.Context())
	counted(3)
}

// Run reads until its context is done.
func TestWaitingRuns(t *testing.T) {
	log := &lockedLog{}
	l := startLingers(t, func(o *Options) {
		o.Waiting = proxyctl.NewWaiting(nil, slog.New(slog.NewTextHandler(log, nil)))
	})
	l.says["show table hold.waiting"] = "# table: hold.waiting, type: string, size:10240, used:0\n0x1: key=app use=1 exp=1 conn_cnt=3 conn_cur=1\n\n"
	l.says["show table hold.released"] = "# table: hold.released, type: string, size:10240, used:0\n\n"
	l.load(l.text(serverA) + "backend hold.waiting\nbackend hold.released\n")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	log.seen = cancel
	l.Proxy.Run(ctx)
	if !strings.Contains(log.String(), "requests for app wait") {
		t.Errorf("the log has only\n%s", log)
	}
}

type lockedLog struct {
	mu   sync.Mutex
	b    strings.Builder
	seen func() // called on each write
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen()
	return l.b.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
