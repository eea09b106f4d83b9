//go:build e2e

package e2e

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"testing"
	"time"

	"berth/deploy/testenv"
	"berth/deploy/testenv/traffic"
)

// A pause survives a restart of HAProxy and a restart of berth while requests wait: none is served before the pause ends,
// and then all are. Requests that wait in a restarted HAProxy are lost with it.
func TestE2EPauseOutlastsRestarts(t *testing.T) {
	s := startStack(t)
	berth := func(args ...string) {
		t.Helper()
		s.Do(append([]string{"exec", "-T", "templater", "berth"}, args...)...)
	}
	haproxy, templater := s.Containers("haproxy")[0], s.Containers("templater")[0]

	berth("pause", "app", "--max", "1m")
	s.Logged("templater", "add to map haproxy.cfg.paused.map: app 60000")
	paused := time.Now()
	get := traffic.Exchange{Method: http.MethodGet, Host: "app", Path: "/", Timeout: time.Minute}
	l := traffic.Send(t, s.web, 40, func(bool, int) traffic.Exchange { return get }, traffic.Kept, traffic.Fresh)
	// more waits until ten more requests have arrived, all of which wait. Their results are checked at the end.
	more := func(when string) {
		t.Helper()
		before := -1
		s.Eventually(10*time.Second, "requests come "+when, func() error {
			now, err := s.connections()
			if before < 0 && err == nil {
				before = now
			}
			if err != nil || now < before+10 {
				return cmp.Or(err, fmt.Errorf("%d connections, want %d", now, before+10))
			}
			return nil
		})
	}
	more("during the pause")

	s.Docker("restart", "--time", "1", haproxy)
	s.Eventually(20*time.Second, "HAProxy is back", func() error { return s.expectServers(1) })
	back := time.Now()
	more("after the restart of HAProxy")

	s.Docker("restart", "--time", "1", templater)
	s.Eventually(20*time.Second, "berth is back", func() error {
		_, err := s.Try("exec", "-T", "templater", "berth", "healthcheck")
		return err
	})
	restarted := time.Now()
	more("after the restart of berth")

	resumed := time.Now()
	berth("resume", "app")
	s.Eventually(10*time.Second, "the app answers", func() error { return s.expectHosts(1) })
	r := l.Finish()

	counted := r.Where(func(q traffic.Request) bool { return q.Sent.After(back) })
	during := counted.Where(func(q traffic.Request) bool { return q.Sent.Before(resumed) })
	last := counted.Where(func(q traffic.Request) bool { return q.Sent.After(restarted) && q.Sent.Before(resumed) })
	t.Logf("since HAProxy was back: %s; %d of them while paused, %d since berth was back%s", counted, len(during), len(last), counted.Failures())
	if counted.Failed() > 0 || len(during) < 20 || len(last) < 10 {
		t.Errorf("%d of %d requests failed, want 0 of some dozens", counted.Failed(), len(counted))
	}
	for _, q := range r.Requests {
		if q.Err == nil && q.Sent.After(paused) && q.Done.Before(resumed) {
			t.Errorf("a request of %s was served %v before the end of the pause", q.Sent.Format("15:04:05.000"), resumed.Sub(q.Done))
		}
	}
}

// connections returns the number of connections at HAProxy's frontend.
func (s *stack) connections() (int, error) {
	rows, err := testenv.HAProxyStats("http://" + s.stats + "/stats;csv")
	for _, row := range rows {
		if row["pxname"] == "http.in" && row["svname"] == "FRONTEND" {
			return strconv.Atoi(row["scur"])
		}
	}
	return 0, cmp.Or(err, errors.New("HAProxy has no frontend"))
}
