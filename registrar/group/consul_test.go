package group

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/registrar/group/session/sessiontest"
)

// consul extends sessiontest with what a store and the group's lock need: lists of keys, and transactions.
type consul struct {
	*sessiontest.Consul
	plain  http.RoundTripper // a link without faults
	writes sync.Mutex        // one write at a time, so that none interrupts a transaction
}

func newConsul() *consul {
	c := &consul{Consul: sessiontest.New()}
	c.plain, _ = c.Consul.Link()
	return c
}

// wire is a link to a consul.
type wire struct {
	*sessiontest.Link
	c     *consul
	mu    sync.Mutex
	fault sessiontest.Fault // of writes
	puts  map[string]int    // by key
}

func (c *consul) wire() (*wire, *api.Client) {
	l, _ := c.Link()
	w := &wire{Link: l, c: c, puts: map[string]int{}}
	client, err := api.NewClient(&api.Config{Address: "consul", HttpClient: &http.Client{Transport: w}})
	if err != nil {
		panic(err)
	}
	return w, client
}

// Break makes the wire treat all requests from now on with one fault.
func (w *wire) Break(f sessiontest.Fault) {
	w.Set(f)
	w.breakWrites(f)
}

func (w *wire) breakWrites(f sessiontest.Fault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fault = f
}

func (w *wire) RoundTrip(req *http.Request) (*http.Response, error) {
	isKey := strings.HasPrefix(req.URL.Path, "/v1/kv/")
	switch {
	case req.URL.Path == "/v1/txn":
		return w.txn(req)
	case isKey && req.Method == http.MethodGet:
		return w.get(req)
	case isKey:
		return w.write(req, func() (*http.Response, error) { return w.c.put(req) })
	}
	return w.Link.RoundTrip(req)
}

// write makes f write, or applies the wire's fault.
func (w *wire) write(req *http.Request, f func() (*http.Response, error)) (*http.Response, error) {
	w.mu.Lock()
	fault := w.fault
	w.puts[strings.TrimPrefix(req.URL.Path, "/v1/kv/")]++
	w.mu.Unlock()
	switch fault {
	case sessiontest.Hang:
		<-req.Context().Done()
		return nil, req.Context().Err()
	case sessiontest.Refuse:
		return nil, errors.New("dial tcp: connection refused")
	}
	answer, err := f()
	switch fault {
	case sessiontest.Lost:
		<-req.Context().Done()
		return nil, req.Context().Err()
	case sessiontest.Late:
		time.Sleep(2 * time.Second)
	}
	return answer, err
}

func (c *consul) put(req *http.Request) (*http.Response, error) {
	c.writes.Lock()
	defer c.writes.Unlock()
	return c.plain.RoundTrip(req)
}

func (w *wire) putsOf(key string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.puts[key]
}

func (w *wire) get(req *http.Request) (*http.Response, error) {
	query := req.URL.Query()
	if !query.Has("keys") {
		return w.Link.RoundTrip(req)
	}
	query.Set("recurse", "")
	req = req.Clone(req.Context())
	req.URL.RawQuery = query.Encode()
	resp, err := w.Link.RoundTrip(req)
	if err != nil || resp.StatusCode != http.StatusOK {
		return resp, err
	}
	var pairs []*api.KVPair
	if err := json.NewDecoder(resp.Body).Decode(&pairs); err != nil {
		return nil, err
	}
	var names []string
	prefix := strings.TrimPrefix(req.URL.Path, "/v1/kv/")
	for _, p := range pairs {
		name := p.Key
		if rest := strings.TrimPrefix(name, prefix); query.Get("separator") != "" && strings.Contains(rest, "/") {
			name = prefix + rest[:strings.IndexByte(rest, '/')+1]
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	text, err := json.Marshal(names)
	resp.Body = io.NopCloser(bytes.NewReader(text))
	return resp, err
}

func (w *wire) txn(req *http.Request) (*http.Response, error) {
	var ops []struct{ KV *api.KVTxnOp }
	if err := json.NewDecoder(req.Body).Decode(&ops); err != nil {
		return nil, err
	}
	return w.write(req, func() (*http.Response, error) { return w.c.carryOut(req, ops) })
}

func (c *consul) carryOut(req *http.Request, ops []struct{ KV *api.KVTxnOp }) (*http.Response, error) {
	c.writes.Lock()
	defer c.writes.Unlock()
	var failed api.TxnErrors
	for i, op := range ops {
		have := c.Key(op.KV.Key)
		bad := ""
		switch op.KV.Verb {
		case api.KVCheckNotExists:
			if have != nil {
				bad = "key exists"
			}
		case api.KVCheckIndex, api.KVCAS:
			if have == nil && (op.KV.Index != 0 || op.KV.Verb == api.KVCheckIndex) || have != nil && have.ModifyIndex != op.KV.Index {
				bad = "index is stale"
			}
		}
		if bad != "" {
			failed = append(failed, &api.TxnError{OpIndex: i, What: bad})
		}
	}
	var results []map[string]*api.KVPair
	for i, op := range slices.Backward(ops) { // so that a reader of the current version finds its entry in the history
		if failed != nil {
			break
		}
		path, method := fmt.Sprintf("http://consul/v1/kv/%s?flags=%d", op.KV.Key, op.KV.Flags), http.MethodPut
		switch op.KV.Verb {
		case api.KVCheckNotExists, api.KVCheckIndex:
			continue
		case api.KVGet:
			if have := c.Key(op.KV.Key); have != nil {
				results = append(results, map[string]*api.KVPair{"KV": have})
			} else {
				failed = append(failed, &api.TxnError{OpIndex: i, What: "key \"" + op.KV.Key + "\" doesn't exist"})
			}
			continue
		case api.KVLock:
			path += "&acquire=" + op.KV.Session
		case api.KVDelete, api.KVDeleteCAS:
			method = http.MethodDelete
		case api.KVSet, api.KVCAS:
		default:
			panic("not made for " + string(op.KV.Verb))
		}
		put, err := http.NewRequestWithContext(req.Context(), method, path, bytes.NewReader(op.KV.Value))
		if err != nil {
			return nil, err
		}
		resp, err := c.plain.RoundTrip(put)
		if err != nil {
			return nil, err
		}
		text, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusOK || strings.TrimSpace(string(text)) == "false" {
			failed = append(failed, &api.TxnError{OpIndex: i, What: "failed: " + string(text)})
			break
		}
		if p := c.Key(op.KV.Key); p != nil {
			results = append(results, map[string]*api.KVPair{"KV": p})
		}
	}
	status := http.StatusOK
	if failed != nil {
		status = http.StatusConflict
	}
	text, err := json.Marshal(map[string]any{"Results": results, "Errors": failed})
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(text))}, err
}
