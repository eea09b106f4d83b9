// Package catalog watches what templates depend on, in Consul above all: over a bounded number of connections, with a
// token that may change, and through a guard that keeps what Consul has lost or hides.
package catalog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul/api"
)

// filteredHeader is "true" if a list lacks entries that the token may not see.
const filteredHeader = "X-Consul-Results-Filtered-By-ACLs"

const indexHeader = "X-Consul-Index"

var errNoIndex = errors.New("this is not Consul's answer, its X-Consul-Index is not a number: is something else listening at Consul's address, or does a proxy answer in its place?")

// hasIndex says whether Consul's answers at a path have an index, as all do that can be waited for.
func hasIndex(path string) bool {
	for _, prefix := range []string{"/v1/health/", "/v1/catalog/service", "/v1/catalog/node", "/v1/kv/"} {
		if strings.HasPrefix(path, prefix) {
			return true
		}
	}
	return false
}

// Client reaches Consul for all watches.
type Client struct {
	config    api.Config
	transport http.RoundTripper
	limiter   *limiter
	shared    *api.Client // for what is no watch's own query
	nodes     nodes
	anew      anew
}

// NewClient returns a Client that has not dialled yet. The standard CONSUL_* variables fill the empty fields of config. It
// opens at most so many connections, 0 = DefaultConnections; a query blocks for at most wait.
func NewClient(config *api.Config, connections int, wait time.Duration, log *slog.Logger) (*Client, error) {
	connections = cmp.Or(connections, DefaultConnections)
	c := &Client{config: *config, limiter: newLimiter(connections, wait, log)}
	c.nodes.of, c.nodes.told = map[queried][]string{}, map[string]time.Time{}
	// api.NewClient fills the empty fields, HttpClient among them.
	if _, err := api.NewClient(&c.config); err != nil {
		return nil, fmt.Errorf("create Consul client: %w", err)
	}
	c.transport = c.config.HttpClient.Transport
	if t, ok := c.transport.(*http.Transport); ok {
		Tune(t, connections)
		c.transport = ExplainTLS(t, &c.config)
	}
	if _, follows := c.transport.(*tokenFile); c.config.TokenFile != "" && !follows {
		c.transport = FollowToken(c.transport, &c.config)
	}
	c.config.TokenFile = "" // only the transport reads it
	var err error
	c.shared, err = c.apiClient(c.transport)
	return c, err
}

// Run tells the watches that have no connection of their own of changes, and all of another leader, until ctx is done.
func (c *Client) Run(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { followLeader(ctx, c.shared, c.anew.ask) })
	c.limiter.run(ctx, c.shared, &c.anew)
}

// Tune prepares a transport for so many connections at a time, on which most queries wait: the connections are kept, and
// cost little memory. Compression is off, because to an agent that is near it costs more time than it saves: a quarter
// of the time from a change of a service of 1,000 instances to its text. Tune is for a caller that wraps the transport of
// NewClient's config; on an http.Transport NewClient calls it.
func Tune(t *http.Transport, connections int) {
	open := mostOpen(connections)
	t.MaxConnsPerHost, t.MaxIdleConnsPerHost, t.MaxIdleConns = open, open, 0
	t.ReadBufferSize, t.WriteBufferSize = 2<<10, 1<<10
	t.DisableCompression = true
}

func (c *Client) apiClient(t http.RoundTripper) (*api.Client, error) {
	config := c.config
	config.HttpClient = &http.Client{Transport: t}
	return api.NewClient(&config)
}

// clientSet returns the library's clients, with one for Consul that uses t. The library's own Consul client hides the headers
// that say how far an answer can be trusted, has no deadline, and opens a connection for each query even over HTTP/2.
func (c *Client) clientSet(t *transport) (*dependency.ClientSet, error) {
	client, err := c.apiClient(t)
	if err != nil {
		return nil, err
	}
	set := dependency.NewClientSet()
	if err := set.CreateConsulClient(&dependency.CreateConsulClientInput{}); err != nil {
		return nil, err
	}
	// The library takes no client from outside, so its new one is overwritten. Nobody uses either yet: the lock that is
	// copied with the rest is open. TestQueriesUseTheTransport fails if this stops working.
	reflect.ValueOf(set.Consul()).Elem().Set(reflect.ValueOf(client).Elem())
	return set, nil
}

// transport is the http.RoundTripper of one watch, whose queries come one after the other.
type transport struct {
	base  http.RoundTripper
	lease *lease

	// Of the query that runs:
	ctx      context.Context // ends the query
	filtered bool            // the answer is filtered by ACLs
}

// RoundTrip notes the query and what the headers of the answer say.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	t.lease.asks(req.URL)
	res, err := t.base.RoundTrip(req.WithContext(t.ctx))
	if err != nil {
		return nil, err
	}
	if to, err := res.Location(); err == nil && res.StatusCode/100 == 3 && !strings.HasSuffix(to.Path, req.URL.Path) {
		res.Body.Close()
		return nil, fmt.Errorf("this is not Consul's answer, it redirects to %s: is something else listening at Consul's address?", to)
	}
	if _, err := strconv.ParseUint(res.Header.Get(indexHeader), 10, 64); err != nil && res.StatusCode == http.StatusOK && hasIndex(req.URL.Path) {
		res.Body.Close()
		return nil, errNoIndex // Consul's library takes it for 0, and an empty list of somebody else's would be believed in the end
	}
	t.filtered = t.filtered || res.Header.Get(filteredHeader) == "true"
	t.lease.of.observe(res)
	return res, nil
}
