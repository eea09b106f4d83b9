package store

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

// fakeConsul has a KV in memory. It calls hooks before and after each write, which may make the answer fail.
type fakeConsul struct {
	t  *testing.T
	mu sync.Mutex

	index uint64
	kv    map[string]*api.KVPair
	// before is called before a write of a key or, with the key of the current text, a transaction; after is called when it
	// is done. A missing answer is lost: the connection breaks.
	before, after func(key string) (lost bool)
	away          bool // no answers
	refuse        int  // status of every answer to a write, unless it is 0
	writes        int
	hang          func(write int) bool // whether that write is never answered; nil = all are
}

func newFake(t *testing.T) (*fakeConsul, *Store) {
	never := func(string) bool { return false }
	f := &fakeConsul{t: t, index: 10, kv: map[string]*api.KVPair{}, before: never, after: never}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	client, err := api.NewClient(&api.Config{Address: server.URL, Transport: &http.Transport{}})
	if err != nil {
		t.Fatal(err)
	}
	return f, New(client)
}

func (f *fakeConsul) set(locked func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	locked()
}

func (f *fakeConsul) indexOf(key string) uint64 {
	if p := f.kv[key]; p != nil {
		return p.ModifyIndex
	}
	return 0
}

func (f *fakeConsul) put(key string, value []byte, flags uint64) {
	f.index++
	f.kv[key] = &api.KVPair{Key: key, Value: value, Flags: flags, ModifyIndex: f.index}
}

const maxBody = 512 << 10

func (f *fakeConsul) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	lose := func() { panic(http.ErrAbortHandler) }
	body, _ := io.ReadAll(r.Body)
	q := r.URL.Query()
	key := strings.TrimPrefix(r.URL.Path, "/v1/kv/")
	var ops api.TxnOps
	if r.URL.Path == "/v1/txn" {
		if err := json.Unmarshal(body, &ops); err != nil || len(ops) == 0 {
			f.t.Errorf("transaction: %v", err)
			return
		}
		key = ops[0].KV.Key
	} else if !strings.HasPrefix(r.URL.Path, "/v1/kv/") {
		f.t.Errorf("%s %s is not expected", r.Method, r.URL)
		return
	}
	f.mu.Lock()
	away, refuse, hang := f.away, f.refuse, false
	if r.Method != http.MethodGet {
		f.writes++
		hang = f.hang != nil && f.hang(f.writes)
	} else {
		refuse = 0
	}
	f.mu.Unlock()
	if hang {
		<-r.Context().Done()
		return
	}
	if away {
		lose()
	}
	if refuse != 0 {
		http.Error(w, "Permission denied", refuse)
		return
	}
	if len(body) > maxBody {
		http.Error(w, "Request body too large", http.StatusRequestEntityTooLarge)
		return
	}
	if r.Method != http.MethodGet && f.before(key) {
		lose()
	}
	status, answer := f.do(r.Method, key, q.Get("separator"), q.Has("keys"), q.Get("cas"), q.Get("flags"), body, ops)
	if r.Method != http.MethodGet && f.after(key) {
		lose()
	}
	w.Header().Set("X-Consul-Index", "1")
	w.WriteHeader(status)
	if answer != nil {
		_ = json.NewEncoder(w).Encode(answer)
	}
}

func (f *fakeConsul) do(method, key, separator string, keys bool, cas, flags string, body []byte, ops api.TxnOps) (int, any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	index, _ := strconv.ParseUint(cas, 10, 64)
	number, _ := strconv.ParseUint(flags, 10, 64)
	switch {
	case ops != nil:
		for i, op := range ops {
			if (op.KV.Verb == api.KVCAS || op.KV.Verb == api.KVDeleteCAS) && f.indexOf(op.KV.Key) != op.KV.Index {
				return http.StatusConflict, api.TxnResponse{Errors: api.TxnErrors{{OpIndex: i, What: "failed to set key: index is stale"}}}
			}
		}
		for _, op := range ops {
			if op.KV.Verb == api.KVCAS {
				f.put(op.KV.Key, op.KV.Value, op.KV.Flags)
			} else {
				delete(f.kv, op.KV.Key)
			}
		}
		return 200, api.TxnResponse{}
	case method == http.MethodPut:
		if cas != "" && f.indexOf(key) != index {
			return 200, false
		}
		f.put(key, body, number)
		return 200, true
	case method == http.MethodDelete:
		if cas != "" && f.indexOf(key) != index {
			return 200, false
		}
		delete(f.kv, key)
		return 200, true
	case keys:
		out := []string{}
		for k := range f.kv {
			if rest, ok := strings.CutPrefix(k, key); ok && !strings.Contains(rest, separator) {
				out = append(out, k)
			}
		}
		return 200, out
	case f.kv[key] == nil:
		return 404, nil
	}
	return 200, api.KVPairs{f.kv[key]}
}

// once returns a hook that calls f and loses the answer at the first call for a key.
func once(key string, f func()) func(string) bool {
	var did atomic.Bool
	return func(k string) bool {
		if k != key || did.Swap(true) {
			return false
		}
		f()
		return true
	}
}

const soon = 10 * time.Second
