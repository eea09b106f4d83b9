package templater

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"reflect"
	"sync"
	"time"

	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul/api"
)

// filteredHeader says that a list lacks what the token may not see.
const filteredHeader = "X-Consul-Results-Filtered-By-ACLs"

// consul is the way to Consul that all watches share.
type consul struct {
	config    api.Config
	transport http.RoundTripper
	slots     *slots
}

func newConsul(config *api.Config, connections int, wait time.Duration, log *slog.Logger) (*consul, error) {
	connections = cmp.Or(connections, DefaultConnections)
	c := &consul{config: *config, slots: newSlots(connections, wait, log)}
	// NewClient fills in what is not said, an http.Client among it.
	if _, err := api.NewClient(&c.config); err != nil {
		return nil, fmt.Errorf("create Consul client: %w", err)
	}
	c.transport = c.config.HttpClient.Transport
	if t, ok := c.transport.(*http.Transport); ok {
		Tune(t, connections)
	}
	if _, follows := c.transport.(*tokenFile); c.config.TokenFile != "" && !follows {
		c.transport = FollowToken(c.transport, &c.config)
	}
	c.config.TokenFile = "" // no more reading of it
	return c, nil
}

// Tune prepares a transport for so many connections at a time, on which most queries wait: they are kept, and cost little
// memory. Compression is off, because to an agent that is near it costs more time than it saves: a quarter of that from a
// change of a service of 1,000 instances to its text. For who wraps the transport of Options.Consul; without that, New
// does it.
func Tune(t *http.Transport, connections int) {
	open, _ := share(connections)
	t.MaxConnsPerHost, t.MaxIdleConnsPerHost, t.MaxIdleConns = open, open, 0
	t.ReadBufferSize, t.WriteBufferSize = 2<<10, 1<<10
	t.DisableCompression = true
}

// clients is what a dependency asks with, by way of l. The library's own client says nothing of the headers that tell
// how far an answer is to be believed, has no deadline, and opens a connection for each query even over HTTP/2.
func (c *consul) clients(l *line) (*dependency.ClientSet, error) {
	config := c.config
	config.HttpClient = &http.Client{Transport: l}
	client, err := api.NewClient(&config)
	if err != nil {
		return nil, err
	}
	set := dependency.NewClientSet()
	if err := set.CreateConsulClient(&dependency.CreateConsulClientInput{}); err != nil {
		return nil, err
	}
	// The library takes no client of ours. Both are new: the lock that is copied with the rest is open.
	reflect.ValueOf(set.Consul()).Elem().Set(reflect.ValueOf(client).Elem())
	return set, nil
}

// line is the http.RoundTripper of one watch. Its queries end with the context of the one that runs.
type line struct {
	base  http.RoundTripper
	slots *slots

	mu       sync.Mutex
	ctx      context.Context
	cancel   context.CancelFunc
	evicted  bool
	asked    *http.Request // the last query
	filtered bool          // an answer since begin was
}

// begin sets the context of the queries to come. The func says whether they were cancelled by evict.
func (l *line) begin(ctx context.Context, cancel context.CancelFunc) (evicted func() bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ctx, l.cancel, l.evicted, l.filtered = ctx, cancel, false, false
	return func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.evicted
	}
}

// evict ends the query that runs, so that its connection is free for another watch.
func (l *line) evict() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cancel != nil {
		l.evicted = true
		l.cancel()
	}
}

// RoundTrip notes what the headers of the answer say.
func (l *line) RoundTrip(req *http.Request) (*http.Response, error) {
	l.mu.Lock()
	l.asked = req
	ctx := l.ctx
	l.mu.Unlock()
	res, err := l.base.RoundTrip(req.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	if res.Header.Get(filteredHeader) == "true" {
		l.mu.Lock()
		l.filtered = true
		l.mu.Unlock()
	}
	l.slots.saw(res)
	return res, nil
}

// lastAsked is the URL of the last query without what makes it block, and its header; nil if there was none.
func (l *line) lastAsked() (url.URL, http.Header) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.asked == nil {
		return url.URL{}, nil
	}
	u := *l.asked.URL
	q := u.Query()
	q.Del("index")
	q.Del("wait")
	u.RawQuery = q.Encode()
	return u, l.asked.Header
}
