package templater

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul-template/dependency"
)

// scripted is a dependency whose queries end as the test says, one after the other.
// After the last it hangs until it is stopped.
type scripted struct {
	mu      sync.Mutex
	queries []query
	asked   []uint64 // the index of each query
	stopped chan struct{}
}

type query struct {
	index uint64
	err   error
	takes time.Duration
}

func (s *scripted) Fetch(_ *dependency.ClientSet, o *dependency.QueryOptions) (any, *dependency.ResponseMetadata, error) {
	q := s.next(o.WaitIndex)
	select {
	case <-time.After(q.takes):
		return "data", &dependency.ResponseMetadata{LastIndex: q.index}, q.err
	case <-s.stopped:
		return nil, nil, errors.New("too late")
	}
}

func (s *scripted) next(index uint64) query {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, index)
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

func TestWatchedFetch(t *testing.T) {
	down := errors.New("down")
	tests := []struct {
		name     string
		queries  []query
		answered bool
		asked    []uint64
		told     []string
		tookMax  time.Duration
	}{
		{"first answer", []query{{index: 7}}, false, []uint64{7}, []string{"ok"}, 0},
		{"later answers are not told", []query{{index: 8}}, true, []uint64{7}, nil, 0},
		{"an error asks again with index 0", []query{{err: down}, {index: 7}}, true, []uint64{7, 0}, []string{"down", "ok"}, 200 * time.Millisecond},
		{"retries", []query{{err: down}, {err: down}, {err: down}, {index: 9}}, true, []uint64{7, 0, 0, 0}, []string{"down", "down", "down", "ok"}, 1100 * time.Millisecond},
		{"a lower index after an error is waited out", []query{{err: down}, {index: 3}, {index: 3, takes: 30 * time.Second}}, true, []uint64{7, 0, 7}, []string{"down", "ok"}, 31 * time.Second},
		{"no answer", []query{{index: 8, takes: time.Hour}, {index: 8}}, true, []uint64{7, 0}, []string{"scripted: no answer in 1m13.75s", "ok"}, 75 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				outcomes := make(chan outcome, 10)
				d := &scripted{queries: tt.queries, stopped: make(chan struct{})}
				w := newWatched(d, outcomes)
				w.answered = tt.answered
				start := time.Now()
				defer w.Stop()
				data, _, err := w.Fetch(nil, &dependency.QueryOptions{WaitIndex: 7, WaitTime: time.Minute})
				if data != "data" || err != nil {
					t.Errorf("Fetch: %v, %v", data, err)
				}
				if took := time.Since(start); took > tt.tookMax {
					t.Errorf("took %s, want at most %s", took, tt.tookMax)
				}
				if !slices.Equal(d.asked, tt.asked) {
					t.Errorf("asked with %v, want %v", d.asked, tt.asked)
				}
				if got := told(outcomes); !slices.Equal(got, tt.told) {
					t.Errorf("told %q, want %q", got, tt.told)
				}
			})
		})
	}
}

func told(outcomes chan outcome) []string {
	close(outcomes)
	var all []string
	for o := range outcomes {
		if o.err == nil {
			all = append(all, "ok")
			continue
		}
		all = append(all, o.err.Error())
	}
	return all
}

func TestWatchedBackoffHasACap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		outcomes := make(chan outcome)
		d := &scripted{stopped: make(chan struct{})}
		for range 100 {
			d.queries = append(d.queries, query{err: errors.New("down")})
		}
		w := newWatched(d, outcomes)
		fetched := make(chan error)
		go func() {
			_, _, err := w.Fetch(nil, &dependency.QueryOptions{})
			fetched <- err
		}()
		last := time.Now()
		for range 100 {
			<-outcomes
			if gap := time.Since(last); gap > 7500*time.Millisecond { // 5 s and its jitter
				t.Errorf("%s between two queries", gap)
			}
			last = time.Now()
		}
		w.Stop()
		if err := <-fetched; err != dependency.ErrStopped {
			t.Errorf("Fetch: %v", err)
		}
	})
}

func TestWatchedStop(t *testing.T) {
	for name, queries := range map[string][]query{
		"while a query blocks":       nil,
		"while nobody takes outcome": {{err: errors.New("down")}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWatched(&scripted{queries: queries, stopped: make(chan struct{})}, make(chan outcome))
				fetched := make(chan error)
				go func() {
					_, _, err := w.Fetch(nil, &dependency.QueryOptions{})
					fetched <- err
				}()
				synctest.Wait()
				w.Stop()
				if err := <-fetched; err != dependency.ErrStopped {
					t.Errorf("Fetch: %v", err)
				}
			})
		})
	}
}
