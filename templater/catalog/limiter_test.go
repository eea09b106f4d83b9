package catalog

import (
	"log/slog"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

func response(proto, status int) *http.Response {
	return &http.Response{ProtoMajor: proto, StatusCode: status, Close: status == http.StatusTooManyRequests}
}

func TestLimiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter((8+spare)*5/4, time.Minute, slog.New(slog.DiscardHandler))
		// An eighth is for watches that nothing else notifies of changes.
		var services []*lease
		for n := range 8 {
			services = append(services, l.newLease(true))
			if got, want := services[n].acquire(), n < 7; got != want {
				t.Errorf("service %d has a lease: %v, want %v", n, got, want)
			}
		}
		key, other := l.newLease(false), l.newLease(false)
		if !key.acquire() || other.acquire() {
			t.Error("a key has no lease, or two have one")
		}
		if !services[0].acquire() {
			t.Error("a lease is lost")
		}

		// Consul holds a query that has ended here, and counts its connection.
		for _, s := range services[:2] {
			s.release()
		}
		time.Sleep(time.Minute)
		if services[7].acquire() {
			t.Error("a lease while two queries go on that nobody waits for")
		}
		time.Sleep(longest(time.Minute) - time.Minute)
		synctest.Wait()
		if !services[7].acquire() {
			t.Error("no lease once the ended queries are over at Consul")
		}
	})
}

func TestHTTP2HasALeaseForEach(t *testing.T) {
	l := newLimiter((1+spare)*5/4, time.Minute, slog.New(slog.DiscardHandler))
	all := []*lease{l.newLease(true), l.newLease(true)}
	if !all[0].acquire() || all[1].acquire() {
		t.Fatal("there is more or less than one lease")
	}
	l.observe(response(2, http.StatusOK))
	select {
	case <-all[1].wake:
	default:
		t.Fatal("nobody told the one without a lease")
	}
	if !all[1].acquire() {
		t.Error("no lease over HTTP/2")
	}
}

// A refusal does not count forever.
func TestLimiterAfterARefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(100, time.Minute, slog.New(slog.DiscardHandler))
		usual := l.limit()
		var all []*lease
		for range usual {
			all = append(all, l.newLease(false))
		}
		held := func() (n int) {
			for _, s := range all {
				if s.acquire() {
					n++
				}
			}
			return n
		}
		if n := held(); n != usual {
			t.Errorf("%d leases, want %d", n, usual)
		}
		l.observe(response(1, http.StatusTooManyRequests))
		if n := held(); n >= usual || n < fewest || n != l.limit() {
			t.Errorf("%d leases after a refusal, %d before", n, usual)
		}
		time.Sleep(recovery + time.Second)
		if n := held(); n != usual {
			t.Errorf("%d leases long after a refusal, want %d", n, usual)
		}
	})
}
