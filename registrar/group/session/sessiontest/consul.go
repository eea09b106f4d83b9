// Package sessiontest is a Consul without sockets, for tests with testing/synctest. It has sessions, keys, blocking queries
// and the health of services, over links that fail as a test demands.
package sessiontest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
)

// Consul is the state of the servers. A session expires at the earliest moment that Consul's documentation allows: its TTL
// after the last renewal.
type Consul struct {
	mu       sync.Mutex
	index    uint64
	changed  chan struct{}
	keys     map[string]*api.KVPair
	free     map[string]time.Time // end of each key's lock-delay
	sessions map[string]*session
	services map[string]string // status by ID
	history  map[string][]Holding
}

// Holding records that a session held a key.
type Holding struct {
	Session  string
	From, To time.Time // To is zero while it holds the key
}

type session struct {
	link         *Link // it was created over this link
	id, behavior string
	checks       []string
	ttl, delay   time.Duration
	expires      *time.Timer
}

// New returns an empty Consul.
func New() *Consul {
	return &Consul{index: 1, changed: make(chan struct{}), keys: map[string]*api.KVPair{}, free: map[string]time.Time{},
		sessions: map[string]*session{}, services: map[string]string{}, history: map[string][]Holding{}}
}

// Fault is what a Link does to a request.
type Fault int

// Faults of a Link.
const (
	None     Fault = iota
	Hang           // the request does not arrive, and no answer comes
	Lost           // the request arrives, but the answer is lost
	Refuse         // the connection is refused
	Deny           // the token lacks the right
	Late           // the answer takes two seconds
	NoLeader       // the answer is that the servers have no leader
)

// Link is one client's connection to Consul.
type Link struct {
	Consul  *Consul
	mu      sync.Mutex
	fault   func(*http.Request) Fault
	latency time.Duration
	calls   map[string]int
}

// Link returns a connection to Consul, and a client that uses it.
func (c *Consul) Link() (*Link, *api.Client) {
	l := &Link{Consul: c, calls: map[string]int{}}
	l.Set(None)
	client, err := api.NewClient(&api.Config{Address: "consul", HttpClient: &http.Client{Transport: l}})
	if err != nil {
		panic(err)
	}
	return l, client
}

// Set makes the link treat all requests from now on with one fault.
func (l *Link) Set(f Fault) { l.SetFunc(func(*http.Request) Fault { return f }) }

// SetFunc makes the link ask f how to treat a request.
func (l *Link) SetFunc(f func(*http.Request) Fault) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fault = f
}

// Slow delays each request.
func (l *Link) Slow(latency time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.latency = latency
}

// Calls returns the number of requests that began with a method and a path: "PUT /v1/session/renew".
func (l *Link) Calls(prefix string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for call, calls := range l.calls {
		if strings.HasPrefix(call, prefix) {
			n += calls
		}
	}
	return n
}

// RoundTrip answers a request, or applies the link's fault to it.
func (l *Link) RoundTrip(req *http.Request) (*http.Response, error) {
	l.mu.Lock()
	latency := l.latency
	l.mu.Unlock()
	time.Sleep(latency)
	l.mu.Lock()
	l.calls[req.Method+" "+req.URL.Path]++
	fault := l.fault(req)
	l.mu.Unlock()
	hang := func() (*http.Response, error) {
		<-req.Context().Done()
		return nil, req.Context().Err()
	}
	switch fault {
	case Hang:
		return hang()
	case Refuse:
		return nil, errors.New("dial tcp: connection refused")
	case Deny:
		return answer(http.StatusForbidden, "Permission denied: token lacks permission 'session:write'"), nil
	case NoLeader:
		return answer(http.StatusInternalServerError, "No cluster leader"), nil
	}
	resp := l.Consul.serve(l, req)
	// A blocking query hangs if the link has begun to hang meanwhile.
	l.mu.Lock()
	if fault == None {
		fault = l.fault(req)
	}
	l.mu.Unlock()
	switch fault {
	case Lost, Hang:
		return hang()
	case Late:
		select {
		case <-time.After(2 * time.Second):
		case <-req.Context().Done():
			return nil, req.Context().Err()
		}
	}
	return resp, nil
}

func answer(status int, body any) *http.Response {
	text, ok := body.(string)
	if !ok {
		raw, err := json.Marshal(body)
		if err != nil {
			panic(err)
		}
		text = string(raw)
	}
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(text))}
}

func (c *Consul) serve(l *Link, req *http.Request) *http.Response {
	body := &bytes.Buffer{}
	if req.Body != nil {
		_, _ = body.ReadFrom(req.Body)
	}
	if key, is := strings.CutPrefix(req.URL.Path, "/v1/kv/"); is {
		if req.Method == http.MethodGet {
			return c.get(req, key)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.put(req, key, body.Bytes())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if req.URL.Path == "/v1/txn" {
		return c.txn(body)
	}
	dir, id := req.URL.Path[:strings.LastIndexByte(req.URL.Path, '/')], req.URL.Path[strings.LastIndexByte(req.URL.Path, '/')+1:]
	switch dir {
	case "/v1/session":
		return c.create(l, body)
	case "/v1/session/renew":
		s := c.sessions[id]
		if s == nil {
			return answer(http.StatusNotFound, "Session id not found")
		}
		s.expires.Reset(s.ttl)
		return answer(http.StatusOK, []api.SessionEntry{{ID: id}})
	case "/v1/session/destroy":
		c.invalidate(id)
		return answer(http.StatusOK, true)
	case "/v1/agent":
		return c.agent(id, req.URL.Query().Get("filter"))
	}
	panic("not made for " + req.URL.Path)
}

func (c *Consul) create(l *Link, body io.Reader) *http.Response {
	var entry struct {
		Behavior, TTL, LockDelay string
		ServiceChecks            []api.ServiceCheck
	}
	if err := json.NewDecoder(body).Decode(&entry); err != nil {
		panic(err)
	}
	c.index++
	s := &session{id: fmt.Sprintf("session-%d", c.index), link: l, behavior: entry.Behavior}
	for _, check := range entry.ServiceChecks {
		switch c.services[strings.TrimSuffix(check.ID, ":check")] {
		case "":
			return answer(http.StatusInternalServerError, fmt.Sprintf("Missing check '%s' registration", check.ID))
		case api.HealthCritical:
			return answer(http.StatusInternalServerError, fmt.Sprintf("Check '%s' is in critical state", check.ID))
		}
		s.checks = append(s.checks, check.ID)
	}
	s.ttl, _ = time.ParseDuration(entry.TTL)
	s.delay, _ = time.ParseDuration(entry.LockDelay)
	s.expires = time.AfterFunc(s.ttl, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.invalidate(s.id)
	})
	c.sessions[s.id] = s
	return answer(http.StatusOK, map[string]string{"ID": s.id})
}

// agent answers with the services or checks whose ID a filter names.
func (c *Consul) agent(what, filter string) *http.Response {
	services, checks := map[string]*api.AgentService{}, map[string]*api.AgentCheck{}
	for id, status := range c.services {
		if strings.Contains(filter, strconv.Quote(id)) {
			services[id] = &api.AgentService{ID: id, Address: "10.0.0.1", Port: 80}
			checks[check(id)] = &api.AgentCheck{CheckID: check(id), ServiceID: id, Status: status}
		}
	}
	if what == "checks" {
		return answer(http.StatusOK, checks)
	}
	return answer(http.StatusOK, services)
}

func check(service string) string { return service + ":check" }

// Close stops the timers of the remaining sessions.
func (c *Consul) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.sessions {
		s.expires.Stop()
	}
}

// Invalidate ends a session, as an operator can.
func (c *Consul) Invalidate(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.invalidate(id)
}

// Fail declares the node of the link failed: sessions created over the link are gone.
func (l *Link) Fail() {
	c := l.Consul
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range slices.Collect(maps.Values(c.sessions)) {
		if s.link == l {
			c.invalidate(s.id)
		}
	}
}

func (c *Consul) invalidate(id string) {
	s := c.sessions[id]
	if s == nil {
		return
	}
	s.expires.Stop()
	delete(c.sessions, id)
	for _, key := range slices.Sorted(maps.Keys(c.keys)) {
		pair := c.keys[key]
		if pair.Session != id {
			continue
		}
		c.free[key] = time.Now().Add(s.delay)
		if s.behavior == api.SessionBehaviorDelete {
			c.write(key, nil)
		} else {
			c.write(key, &api.KVPair{Key: key, Value: pair.Value, Flags: pair.Flags, LockIndex: pair.LockIndex})
		}
	}
}

// Sessions returns the number of sessions.
func (c *Consul) Sessions() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.sessions)
}

// Service makes the agent hold a service with one check and its status; "" removes it.
func (c *Consul) Service(id, status string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.services[id] = status; status == "" {
		delete(c.services, id)
	}
	if status == "" || status == api.HealthCritical {
		for _, s := range slices.Collect(maps.Values(c.sessions)) {
			if slices.Contains(s.checks, check(id)) {
				c.invalidate(s.id)
			}
		}
	}
}

// Key returns a key, or nil if it does not exist.
func (c *Consul) Key(key string) *api.KVPair {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.keys[key]
}

// Holders returns the holders of a key, in order.
func (c *Consul) Holders(key string) []Holding {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.history[key])
}

// write stores a key, or with nil removes it.
func (c *Consul) write(key string, pair *api.KVPair) {
	c.index++
	was, is := "", ""
	if before := c.keys[key]; before != nil {
		was = before.Session
	}
	if pair == nil {
		delete(c.keys, key)
	} else {
		is, pair.ModifyIndex = pair.Session, c.index
		c.keys[key] = pair
	}
	if was != is {
		if all := c.history[key]; was != "" {
			all[len(all)-1].To = time.Now()
		}
		if is != "" {
			c.history[key] = append(c.history[key], Holding{Session: is, From: time.Now()})
		}
	}
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *Consul) put(req *http.Request, key string, value []byte) *http.Response {
	q, have := req.URL.Query(), c.keys[key]
	pair := &api.KVPair{Key: key, Value: value}
	pair.Flags, _ = strconv.ParseUint(q.Get("flags"), 10, 64)
	if have != nil {
		pair.Session, pair.LockIndex = have.Session, have.LockIndex
	}
	switch acquire, release := q.Get("acquire"), q.Get("release"); {
	case req.Method == http.MethodDelete:
		if q.Has("cas") && (have == nil || q.Get("cas") != strconv.FormatUint(have.ModifyIndex, 10)) {
			return answer(http.StatusOK, false)
		}
		if have != nil {
			c.write(key, nil)
		}
		return answer(http.StatusOK, true)
	case acquire != "":
		if time.Now().Before(c.free[key]) {
			return answer(http.StatusOK, false)
		}
		if c.sessions[acquire] == nil {
			return answer(http.StatusInternalServerError, fmt.Sprintf("invalid session %q", acquire))
		}
		if pair.Session != "" && pair.Session != acquire {
			return answer(http.StatusOK, false)
		}
		if pair.Session == "" {
			pair.Session, pair.LockIndex = acquire, pair.LockIndex+1
		}
	case release != "":
		if pair.Session != release {
			return answer(http.StatusOK, false)
		}
		pair.Session = ""
	}
	c.write(key, pair)
	return answer(http.StatusOK, true)
}

// txn locks a key if it is unchanged.
func (c *Consul) txn(body io.Reader) *http.Response {
	var ops api.TxnOps
	if err := json.NewDecoder(body).Decode(&ops); err != nil || len(ops) != 2 {
		panic(fmt.Sprint("not made for this transaction: ", err))
	}
	refuse := func(what string) *http.Response {
		return answer(http.StatusConflict, api.TxnResponse{Errors: api.TxnErrors{{What: what}}})
	}
	check, lock := ops[0].KV, ops[1].KV
	have := c.keys[check.Key]
	switch {
	case time.Now().Before(c.free[lock.Key]):
		return refuse("failed to lock key due to lock delay")
	case check.Verb == api.KVCheckNotExists && have != nil:
		return refuse("key exists")
	case check.Verb == api.KVCheckIndex && (have == nil || have.ModifyIndex != check.Index):
		return refuse("failed index check for key")
	case c.sessions[lock.Session] == nil:
		return refuse("invalid session")
	case have != nil && have.Session != "" && have.Session != lock.Session:
		return refuse("failed to lock key, lock is already held")
	}
	c.write(lock.Key, &api.KVPair{Key: lock.Key, Value: lock.Value, Session: lock.Session})
	return answer(http.StatusOK, api.TxnResponse{})
}

// get answers a read, also of a prefix. A blocking query of one key is answered when that key changes.
func (c *Consul) get(req *http.Request, key string) *http.Response {
	q := req.URL.Query()
	index, _ := strconv.ParseUint(q.Get("index"), 10, 64)
	wait, _ := time.ParseDuration(q.Get("wait"))
	over := time.After(wait)
	if index == 0 {
		over = nil
	}
	read := func() (pairs []*api.KVPair, at uint64, changed chan struct{}) {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, k := range slices.Sorted(maps.Keys(c.keys)) {
			if k == key || (q.Has("recurse") && strings.HasPrefix(k, key)) {
				pairs, at = append(pairs, c.keys[k]), max(at, c.keys[k].ModifyIndex)
			}
		}
		if at == 0 {
			at = c.index
		}
		return pairs, at, c.changed
	}
	reply := func(pairs []*api.KVPair, at uint64) *http.Response {
		resp := answer(http.StatusOK, pairs)
		if len(pairs) == 0 {
			resp = answer(http.StatusNotFound, "")
		}
		resp.Header.Set("X-Consul-Index", strconv.FormatUint(at, 10))
		return resp
	}
	for {
		pairs, at, changed := read()
		if at > index {
			return reply(pairs, at)
		}
		select {
		case <-changed:
		case <-over:
			return reply(pairs, at)
		case <-req.Context().Done():
			return answer(http.StatusInternalServerError, "canceled")
		}
	}
}
