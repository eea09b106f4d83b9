package catalog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul/api"
)

// scripted is a dependency whose queries return the scripted results in turn. After the last result it hangs until it is
// stopped.
type scripted struct {
	mu      sync.Mutex
	watch   *Watch
	queries []query
	asked   []string // index and wait of each query
	stopped chan struct{}
}

type query struct {
	index    uint64
	data     string
	filtered bool
	err      error
	takes    time.Duration
}

func (s *scripted) Fetch(_ *dependency.ClientSet, o *dependency.QueryOptions) (any, *dependency.ResponseMetadata, error) {
	q := s.next(o)
	select {
	case <-time.After(q.takes):
		s.watch.transport.filtered = q.filtered
		return q.data, &dependency.ResponseMetadata{LastIndex: q.index}, q.err
	case <-s.watch.transport.ctx.Done():
		return nil, nil, context.Cause(s.watch.transport.ctx)
	case <-s.stopped:
		return nil, nil, errors.New("too late")
	}
}

func (s *scripted) next(o *dependency.QueryOptions) query {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := fmt.Sprint(o.WaitIndex, " ", o.WaitTime)
	if o.AllowStale {
		asked += " stale"
	}
	s.asked = append(s.asked, asked)
	if len(s.queries) == 0 {
		return query{takes: 1000 * time.Hour}
	}
	q := s.queries[0]
	s.queries = s.queries[1:]
	return q
}

func (s *scripted) CanShare() bool        { return true }
func (s *scripted) String() string        { return "scripted" }
func (s *scripted) Stop()                 { close(s.stopped) }
func (s *scripted) Type() dependency.Type { return dependency.TypeConsul }

// scriptedWatch is a watch of a scripted dependency. Both end with the test.
func scriptedWatch(t *testing.T, queries []query, tell chan Update) (*Watch, *scripted) {
	t.Helper()
	consul, err := NewClient(&api.Config{Address: "127.0.0.1:1"}, 0, time.Minute, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	d := &scripted{queries: queries, stopped: make(chan struct{})}
	policy := Policy{Grace: 30 * time.Second, VanishLimit: 100, Strict: true}
	w := NewWatch(d, Options{Wait: time.Minute, Updates: tell, Consul: consul, Policy: policy})
	d.watch = w
	return w, d
}

func TestWatch(t *testing.T) {
	const sees = "the token sees nothing of scripted: give it service:read and node:read"
	down := errors.New("down")
	tests := []struct {
		name    string
		queries []query
		asked   []string
		told    []string
		tookMax time.Duration
	}{
		{"an answer, and a change", []query{{index: 7, data: "a"}, {index: 8, data: "b", takes: time.Second}},
			[]string{"0 1m0s", "7 1m0s", "8 1m0s"}, []string{"a, well", "b"}, time.Second},
		{"nothing new", []query{{index: 7, data: "a"}, {index: 7, data: "a", takes: time.Minute}, {index: 8, data: "a"}},
			[]string{"0 1m0s", "7 1m0s", "7 1m0s", "8 1m0s"}, []string{"a, well"}, time.Minute + time.Second},
		{"an error asks again with index 0", []query{{index: 7, data: "a"}, {err: down}, {index: 8, data: "b"}},
			[]string{"0 1m0s", "7 1m0s", "0 1m0s", "8 1m0s"}, []string{"a, well", "down", "b, well"}, 400 * time.Millisecond},
		{"the last index is remembered across errors", []query{{index: 7, data: "a"}, {err: down}, {index: 3, data: ""}},
			[]string{"0 1m0s", "7 1m0s", "0 1m0s", "3 29.9s"}, []string{"a, well", "down", "well"}, 400 * time.Millisecond},
		{"what was lost is let go in the end", []query{{index: 7, data: "a"}, {index: 3, data: ""}, {index: 3, data: "", takes: 30 * time.Second}},
			[]string{"0 1m0s", "7 1m0s", "3 29.9s", "3 1m0s"}, []string{"a, well", ""}, 31 * time.Second},
		{"any server's word while there was none", []query{{err: down}, {err: down}, {index: 9, data: "a"}},
			[]string{"0 1m0s", "0 1m0s stale", "0 1m0s stale", "9 1m0s"}, []string{"down", "down", "a, well"}, 500 * time.Millisecond},
		{"nothing at first because of the token", []query{{index: 8, filtered: true}, {index: 8, filtered: true}, {index: 9, data: "a"}, {index: 9, filtered: true}},
			[]string{"0 1m0s", "0 1m0s stale", "0 1m0s stale", "9 1m0s", "9 1m0s"},
			[]string{sees, sees, "a, well"}, 700 * time.Millisecond},
		{"no answer", []query{{index: 8, data: "a"}, {takes: time.Hour}, {index: 8, data: "a"}},
			[]string{"0 1m0s", "8 1m0s", "0 1m0s", "8 1m0s"}, []string{"a, well", "scripted: no answer in 1m13.75s", "well"}, 75 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tell := make(chan Update, 10)
				w, d := scriptedWatch(t, tt.queries, tell)
				start := time.Now()
				go w.Run()
				for len(tell) < len(tt.told) || len(d.asking()) < len(tt.asked) {
					time.Sleep(time.Millisecond)
					synctest.Wait()
					if time.Since(start) > time.Hour {
						break
					}
				}
				if took := time.Since(start); took > tt.tookMax+time.Millisecond {
					t.Errorf("took %s, want at most %s", took, tt.tookMax)
				}
				w.Stop()
				synctest.Wait()
				if got := told(tell); !slices.Equal(got, tt.told) {
					t.Errorf("told %q, want %q", got, tt.told)
				}
				if got := d.asking(); !slices.Equal(got, tt.asked) {
					t.Errorf("asked with %q, want %q", got, tt.asked)
				}
			})
		})
	}
}

func (s *scripted) asking() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

func told(tell chan Update) []string {
	close(tell)
	var all []string
	for n := range tell {
		switch {
		case n.Err != nil:
			all = append(all, n.Err.Error())
		case n.New && n.Well:
			all = append(all, n.Data.(string)+", well")
		case n.New:
			all = append(all, n.Data.(string))
		default:
			all = append(all, "well")
		}
	}
	return all
}

func TestRetriesGoOnForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		queries := make([]query, 1000)
		for n := range queries {
			queries[n] = query{err: errors.New("down")}
		}
		tell := make(chan Update)
		w, _ := scriptedWatch(t, queries, tell)
		go w.Run()
		start, last, most := time.Now(), time.Now(), time.Duration(0)
		for range queries {
			<-tell
			most = max(most, time.Since(last))
			last = time.Now()
		}
		if most > 7500*time.Millisecond { // 5 s and its jitter
			t.Errorf("%s between two queries", most)
		}
		if time.Since(start) < 10*time.Minute {
			t.Errorf("%d queries in %s", len(queries), time.Since(start))
		}
		w.Stop()
		synctest.Wait()
	})
}

func TestWatchStops(t *testing.T) {
	for _, tt := range []struct {
		name    string
		queries []query
		heard   int // updates that are received
		leases  int
	}{
		{"while a query blocks", nil, 0, 1},
		{"while nobody listens", []query{{err: errors.New("down")}}, 0, 1},
		{"while it has no lease", []query{{index: 7, data: "a"}}, 1, 0},
		{"while it waits to try again", []query{{err: errors.New("down")}}, 1, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tell := make(chan Update, tt.heard)
				w, _ := scriptedWatch(t, tt.queries, tell)
				w.lease.of.most = tt.leases
				ended := make(chan struct{})
				go func() { defer close(ended); w.Run() }()
				synctest.Wait()
				w.Stop()
				<-ended
			})
		})
	}
}

// An unreadable certificate of Consul is no reason to give up.
func TestWatchWhoseClientCannotBeMade(t *testing.T) {
	tell := make(chan Update)
	w, _ := scriptedWatch(t, []query{{index: 7, data: "a"}}, tell)
	t.Setenv(api.HTTPCAFile, t.TempDir()+"/missing")
	ended := make(chan struct{})
	go func() { defer close(ended); w.Run() }()
	if u := <-tell; u.Err == nil {
		t.Errorf("told %+v, want an error", u)
	}
	t.Setenv(api.HTTPCAFile, "")
	for u := range tell {
		if u.Err == nil {
			if u.Data != "a" {
				t.Errorf("told %+v, want a", u)
			}
			break
		}
	}
	w.Stop()
	<-ended
}
