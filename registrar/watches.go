package registrar

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"sync"
	"time"
)

// watchTime is how long a shared query may take; those who share it have deadlines of their own.
const watchTime = time.Minute

// ShareWatches returns a transport for Groups.Consul, by which containers of the same service share their blocking queries: a
// Consul agent takes 200 connections from one address, and each such query has one.
func ShareWatches(next http.RoundTripper) http.RoundTripper {
	return &watches{next: next, under: map[string]*watch{}}
}

type watches struct {
	next http.RoundTripper

	mu    sync.Mutex
	under map[string]*watch // under way, by URL
}

// watch is a query that several wait for.
type watch struct {
	done   chan struct{}
	cancel context.CancelFunc
	wait   int // how many do; guarded by the mutex of watches

	// The answer, once done is closed.
	resp *http.Response
	body []byte
	err  error
}

// RoundTrip joins a query that is under way if the request blocks.
func (w *watches) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method != http.MethodGet || !req.URL.Query().Has("index") {
		return w.next.RoundTrip(req)
	}
	q := w.join(req)
	defer w.leave(req.URL.String(), q)
	select {
	case <-q.done:
	case <-req.Context().Done():
		return nil, req.Context().Err()
	}
	if q.err != nil {
		return nil, q.err
	}
	resp := *q.resp
	resp.Request, resp.Header, resp.Body = req, q.resp.Header.Clone(), io.NopCloser(bytes.NewReader(q.body))
	return &resp, nil
}

// join returns the query under way with a request's URL, which has the same token, or begins one.
func (w *watches) join(req *http.Request) *watch {
	w.mu.Lock()
	defer w.mu.Unlock()
	url := req.URL.String()
	q := w.under[url]
	if q == nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(req.Context()), watchTime)
		q = &watch{done: make(chan struct{}), cancel: cancel}
		w.under[url] = q
		go w.ask(req.Clone(ctx), q)
	}
	q.wait++
	return q
}

func (w *watches) ask(req *http.Request, q *watch) {
	defer close(q.done)
	defer q.cancel()
	if q.resp, q.err = w.next.RoundTrip(req); q.err == nil {
		q.body, q.err = io.ReadAll(q.resp.Body)
		_ = q.resp.Body.Close()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.under[req.URL.String()] == q { // who asks from now on wants news of later
		delete(w.under, req.URL.String())
	}
}

// leave ends a query that nobody waits for any more.
func (w *watches) leave(url string, q *watch) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if q.wait--; q.wait == 0 {
		q.cancel()
		if w.under[url] == q {
			delete(w.under, url)
		}
	}
}
