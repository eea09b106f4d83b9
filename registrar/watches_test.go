package registrar

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"berth/deploy/testenv"
)

// Requests for the same key share one query; it ends when the last of them leaves, and the next one makes a new query.
func TestShareWatches(t *testing.T) {
	var asked, under atomic.Int32
	answer := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if r.URL.Query().Has("index") {
			under.Add(1)
			defer under.Add(-1)
			select {
			case <-answer:
			case <-r.Context().Done():
			}
		}
		fmt.Fprint(w, "text")
	}))
	defer srv.Close()
	client := &http.Client{Transport: ShareWatches(&http.Transport{})}
	ask := func(ctx context.Context, path string) (string, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		return string(text), err
	}
	waiting := func(want int32) {
		t.Helper()
		testenv.Eventually(t, 5*time.Second, fmt.Sprint(want, " queries under way"), func() error {
			if n := under.Load(); n != want {
				return fmt.Errorf("%d are", n)
			}
			return nil
		})
	}
	var all sync.WaitGroup
	hurried, leave := context.WithCancel(t.Context())
	for n := range 10 {
		all.Go(func() {
			if n == 0 {
				if _, err := ask(hurried, "/kv?index=7"); err == nil {
					t.Error("one that left got an answer")
				}
			} else if text, err := ask(t.Context(), "/kv?index=7"); text != "text" || err != nil {
				t.Errorf("got %q, %v", text, err)
			}
		})
	}
	all.Go(func() { _, _ = ask(t.Context(), "/kv?index=8") })
	waiting(2)
	leave()
	for range 3 {
		if _, err := ask(t.Context(), "/kv"); err != nil { // does not block
			t.Error(err)
		}
	}
	waiting(2)
	close(answer)
	all.Wait()
	if n := asked.Load(); n < 5 || n > 8 { // a request after the answer makes a new query
		t.Errorf("%d requests", n)
	}

	answer = make(chan struct{})
	last, end := context.WithCancel(t.Context())
	all.Go(func() { _, _ = ask(last, "/kv?index=9") })
	waiting(1)
	end()
	waiting(0)
	all.Wait()
}
