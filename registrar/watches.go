package registrar

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"sync"
	"time"
)

// watchTime limits a shared query; the requests that share it have their own deadlines.
const watchTime = time.Minute

// ShareWatches returns a transport for Groups.Consul that lets containers of the same service share their blocking queries.
// Each blocking query takes a connection, and a Consul agent accepts 200 from one address.
func ShareWatches(next http.RoundTripper) http.RoundTripper {
	return &watches{next: next, under: map[string]*watch{}}
}

type watches struct {
	next http.RoundTripper

	mu    sync.Mutex
	under map[string]*watch // running queries, by URL
}

// watch is a query shared by several requests.
type watch struct {
	done   chan struct{}
	cancel context.CancelFunc
	wait   int // number of waiting requests; guarded by the mutex of watches

	// The answer, valid once done is closed.
	resp *http.Response
	body []byte
	err  error
}

// RoundTrip joins a running query if the request blocks.
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

// join returns the running query with the URL of a request, which has the same token, or starts one.
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
	if w.under[req.URL.String()] == q { // later requests need a later answer
		delete(w.under, req.URL.String())
	}
}

// leave ends a query that no request waits for.
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
