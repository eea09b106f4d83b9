// Package catalog watches the dependencies of templates, mostly in Consul. It uses a bounded number of connections and a token
// that may change, and a guard keeps entries that Consul has lost or hides.
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

// filteredHeader is "true" if Consul removed entries from a list that the token may not see.
const filteredHeader = "X-Consul-Results-Filtered-By-ACLs"

const indexHeader = "X-Consul-Index"

var errNoIndex = errors.New("this is not Consul's answer, its X-Consul-Index is not a number: is something else listening at Consul's address, or does a proxy answer in its place?")

// hasIndex reports whether Consul's answers at a path have an index, as do all that support blocking queries.
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
	shared    *api.Client // for queries that belong to no watch
	nodes     nodes
	anew      anew
}

// NewClient returns a Client, without dialling. The standard CONSUL_* variables fill the empty fields of config. The Client opens
// at most the given number of connections, 0 = DefaultConnections; a query blocks for at most wait.
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

// Run notifies watches without their own connection of changes, and all watches of a new leader, until ctx is done.
func (c *Client) Run(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { followLeader(ctx, c.shared, c.anew.ask) })
	c.limiter.run(ctx, c.shared, &c.anew)
}

// Tune prepares a transport for the given number of connections, on which most queries wait: it keeps connections open and uses
// little memory for each. Compression is off, because with a nearby agent it costs more time than it saves: a quarter of the time
// from a change of a service of 1,000 instances to its text. Call Tune before wrapping the transport of NewClient's config; for a
// plain http.Transport NewClient calls it.
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

// clientSet returns the library's clients, with a Consul client that uses t. The library's own Consul client hides the headers
// that show how far an answer can be trusted, has no deadline, and opens a connection for each query even over HTTP/2.
func (c *Client) clientSet(t *transport) (*dependency.ClientSet, error) {
	client, err := c.apiClient(t)
	if err != nil {
		return nil, err
	}
	set := dependency.NewClientSet()
	if err := set.CreateConsulClient(&dependency.CreateConsulClientInput{}); err != nil {
		return nil, err
	}
	// The library accepts no external client, so overwrite its own. Neither is in use yet, so the lock that is copied with it
	// is open. TestQueriesUseTheTransport fails if this stops working.
	reflect.ValueOf(set.Consul()).Elem().Set(reflect.ValueOf(client).Elem())
	return set, nil
}

// transport is the http.RoundTripper of one watch, whose queries come one after the other.
type transport struct {
	base  http.RoundTripper
	lease *lease

	// For the current query:
	ctx      context.Context // ends the query
	filtered bool            // ACLs filtered the answer
}

// RoundTrip records the query and the headers of the answer.
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
		return nil, errNoIndex // Consul's library would read it as 0, and an empty list from another server would finally be trusted
	}
	t.filtered = t.filtered || res.Header.Get(filteredHeader) == "true"
	t.lease.of.observe(res)
	return res, nil
}
