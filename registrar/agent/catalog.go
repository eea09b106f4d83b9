package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/hashicorp/consul/api"
)

// CatalogClient is the part of *api.Catalog that berth uses.
type CatalogClient interface {
	NodeServiceList(node string, q *api.QueryOptions) (*api.CatalogNodeServiceList, *api.QueryMeta, error)
	Register(reg *api.CatalogRegistration, q *api.WriteOptions) (*api.WriteMeta, error)
}

// Catalog is the catalog on Consul's servers. An agent passes its registrations on to them. If the servers lose one, or the
// agent could not pass it on, the agent notices only at its next full comparison, every one to two minutes.
type Catalog struct {
	Client CatalogClient
	Self   func(ctx context.Context) (Node, error) // the agent's own node
}

// Node is an agent's node as listed in the catalog.
type Node struct {
	ID, Name, Address     string
	TaggedAddresses, Meta map[string]string
}

// View is what the catalog holds for the agent's node. The zero value means that the catalog has not been read yet.
type View struct {
	Node     Node
	There    bool            // the catalog lists the node
	Services map[string]bool // by ID
	Index    uint64          // of the answer; 0 = ask for the present state
}

// Known reports whether the catalog has been read.
func (v View) Known() bool { return v.Services != nil }

// watchTime is how long Consul may wait for a change of the node's services.
const watchTime = 10 * time.Second

// NewCatalog returns the Catalog for the agent that consul talks to.
func NewCatalog(consul *api.Client) *Catalog {
	return &Catalog{Client: consul.Catalog(), Self: func(ctx context.Context) (Node, error) {
		var self struct {
			Config      struct{ NodeName, NodeID string }
			Member      struct{ Addr string }
			DebugConfig struct{ TaggedAddresses map[string]string }
			Meta        map[string]string
		}
		_, err := consul.Raw().Query("/v1/agent/self", &self, query(ctx))
		return Node{self.Config.NodeID, self.Config.NodeName, self.Member.Addr, self.DebugConfig.TaggedAddresses, self.Meta}, err
	}}
}

// Look returns the catalog's view of the agent's node once it differs from the last view, or after watchTime. It returns at
// once if the last view has no Index or lacks the node.
func (c *Catalog) Look(ctx context.Context, last View) (View, error) {
	ctx, cancel := context.WithTimeout(ctx, watchTime+watchTime/16+Timeout)
	defer cancel()
	next := View{Node: last.Node, Services: map[string]bool{}}
	if !last.There { // the node's name may have changed
		short, cancel := context.WithTimeout(ctx, Timeout)
		defer cancel()
		var err error
		if next.Node, err = c.Self(short); err != nil {
			return View{}, fmt.Errorf("ask for the agent's node: %w", err)
		}
		last.Index = 0
	}
	q := query(ctx)
	q.WaitIndex, q.WaitTime = last.Index, watchTime
	list, meta, err := c.Client.NodeServiceList(next.Node.Name, q)
	if err == nil && meta.LastIndex < last.Index { // the node was removed while Consul waited, and the answer is the earlier state
		q.WaitIndex = 0
		list, meta, err = c.Client.NodeServiceList(next.Node.Name, q)
	}
	switch {
	case err != nil:
		return View{}, fmt.Errorf("read the catalog of node %s: %w", next.Node.Name, err)
	case (list == nil || list.Node == nil) && meta.ResultsFilteredByACLs:
		return View{}, errHidden
	}
	next.Index = meta.LastIndex
	if next.There = list != nil && list.Node != nil; next.There {
		for _, s := range list.Services {
			next.Services[s.ID] = true
		}
	}
	return next, nil
}

var errHidden = errors.New("the token may not read the node")

// IsRefused reports whether Consul rejected a call, usually because the token lacks a right.
func IsRefused(err error) bool {
	status := statusOf(err)
	return errors.Is(err, errHidden) || (status >= 400 && status < 500 && status != http.StatusTooManyRequests)
}

// Publish makes the catalog hold a service and its checks as the agent holds them.
func (c *Catalog) Publish(ctx context.Context, v View, have Registered) error {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	s := *have.AgentService
	s.Datacenter, s.ContentHash = "", "" // Consul only returns these
	r := &api.CatalogRegistration{Node: v.Node.Name, Service: &s, SkipNodeUpdate: v.There}
	if !v.There {
		r.ID, r.Address, r.TaggedAddresses, r.NodeMeta = v.Node.ID, v.Node.Address, v.Node.TaggedAddresses, v.Node.Meta
	}
	for _, k := range have.Checks {
		r.Checks = append(r.Checks, &api.HealthCheck{
			Node: v.Node.Name, CheckID: k.CheckID, Name: k.Name, Status: k.Status, Notes: k.Notes, Output: k.Output,
			ServiceID: k.ServiceID, ServiceName: k.ServiceName, Type: k.Type, Definition: k.Definition,
		})
	}
	if _, err := c.Client.Register(r, new(api.WriteOptions).WithContext(ctx)); err != nil {
		return fmt.Errorf("put %s into the catalog: %w", have.ID, err)
	}
	return nil
}
