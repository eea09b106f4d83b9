package catalog

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul/api"
	"golang.org/x/sync/errgroup"
)

// leftTime limits the query whether a node is still in the catalog.
const leftTime = 2 * time.Second

// servicePath is the prefix of a query's path for the instances of a service.
const servicePath = "/v1/health/service/"

// nodes records the nodes on which each service has instances that are not drained. The list of services lacks this.
type nodes struct {
	mu sync.Mutex
	of map[queried][]string

	told map[string]time.Time // when the departure of a node was last logged
}

type queried struct {
	path string
	scope
}

// note records the instances of a service.
func (n *nodes) note(q queried, data any) {
	all, lists := placedIn(data)
	if !lists {
		return
	}
	serving := map[string]bool{}
	for _, i := range all {
		if i.serves {
			serving[i.node] = true
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.of[q] = slices.Collect(maps.Keys(serving))
}

func (n *nodes) forget(q queried) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.of, q)
}

func (n *nodes) get(q queried) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.of[q]
}

// tells reports whether the departure of a node is news: every list with its instances detects it.
func (n *nodes) tells(node string, now time.Time) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	maps.DeleteFunc(n.told, func(_ string, last time.Time) bool { return now.Sub(last) > time.Minute })
	_, told := n.told[node]
	n.told[node] = now
	return !told
}

// placed is an instance in a list.
type placed struct {
	node, id string
	serves   bool   // neither failing its own checks nor in maintenance
	created  uint64 // the index at which its node was added to the catalog; 0 = unknown
}

// placedIn returns the instances in a list; lists is false if data is no list of instances.
func placedIn(data any) (all []placed, lists bool) {
	switch list := data.(type) {
	case []*dependency.HealthService:
		for _, s := range list {
			all = append(all, placed{s.Node, s.ID, !drained(s.Checks), 0})
		}
	case []*api.ServiceEntry:
		for _, e := range list {
			all = append(all, placed{e.Node.Node, e.Service.ID, !drained(e.Checks), e.Node.CreateIndex})
		}
	default:
		return nil, false
	}
	return all, true
}

// drained reports whether an instance was taken out of service before it vanished. An instance that fails only through its node's
// check was not: a node that is cut off looks like this.
func drained(checks api.HealthChecks) bool {
	return slices.ContainsFunc(checks, func(c *api.HealthCheck) bool {
		return c.Status == api.HealthCritical && (c.ServiceID != "" || c.CheckID == api.NodeMaint) || c.Status == api.HealthMaint
	})
}

// left reports whether an answer lacks instances because their node left the catalog with everything on it. The node may be back
// by now with part of it. A Consul agent leaves like this when it is stopped for a restart, and the servers remove an agent that
// was cut off for a while. Its containers run on in both cases.
func (w *Watch) left(s state, a answer) bool {
	if s.mode != trusting && s.mode != keeping || w.lease == nil {
		return false
	}
	consul, in := w.options.Consul, w.lease.asked().scope
	var gone []string
	switch list := s.last().(type) {
	case []*dependency.CatalogSnippet:
		listed := map[string]bool{}
		now, _ := a.data.([]*dependency.CatalogSnippet)
		for _, c := range now {
			listed[c.Name] = true
		}
		for _, c := range list {
			if !listed[c.Name] {
				gone = append(gone, consul.nodes.get(queried{servicePath + c.Name, in})...)
			}
		}
	default:
		gone = vanishedFrom(list, a.data, s.index)
	}
	slices.Sort(gone)
	gone = slices.Compact(gone)
	if len(gone) == 0 {
		return false
	}
	ctx, cancel := context.WithTimeout(w.ctx, leftTime)
	defer cancel()
	var g errgroup.Group
	g.SetLimit(spare / 2)
	for _, node := range gone {
		g.Go(func() error {
			left, err := consul.hasLeft(ctx, node, in, s.index)
			if err == nil && !left {
				return nil
			}
			if left && consul.nodes.tells(node, time.Now()) {
				consul.limiter.log.Warn("node "+node+" left Consul with all its services, keeping them for now: if its agent was only restarted, "+
					"set leave_on_terminate = false there", "node", node)
			}
			return errLeft
		})
	}
	return g.Wait() != nil
}

// vanishedFrom returns the nodes with an instance that served and is missing from the new list, except nodes that are listed and
// were in the catalog before an index.
func vanishedFrom(before, now any, index uint64) (nodes []string) {
	listed, _ := placedIn(now)
	there, created := map[[2]string]bool{}, map[string]uint64{}
	for _, i := range listed {
		there[[2]string{i.node, i.id}], created[i.node] = true, i.created
	}
	all, _ := placedIn(before)
	for _, i := range all {
		if at := created[i.node]; i.serves && !there[[2]string{i.node, i.id}] && (at == 0 || at > index) {
			nodes = append(nodes, i.node)
		}
	}
	return nodes
}

var errLeft = errors.New("a node has left")

// hasLeft reports whether a node is no longer in the catalog, as far as the token can see, or came back after an index: it has no
// services at first. An error does not prove that the node was emptied on purpose.
func (c *Client) hasLeft(ctx context.Context, node string, in scope, after uint64) (bool, error) {
	if strings.Contains(node, "/") {
		return false, nil
	}
	query := in.options()
	query.Near = "_agent"
	var found *api.CatalogNode
	var denied bool
	meta, err := c.shared.Raw().Query("/v1/catalog/node/"+node, &found, query.WithContext(ctx))
	if status := (api.StatusError{}); errors.As(err, &status) {
		denied = status.Code == http.StatusForbidden || status.Code == http.StatusNotFound
	}
	switch {
	case denied || meta != nil && meta.ResultsFilteredByACLs:
		return false, nil
	case err != nil:
		return false, err
	case found != nil && found.Node != nil:
		return found.Node.CreateIndex > after, nil
	case meta.LastIndex <= after:
		return false, errEarlier
	default:
		return true, nil
	}
}

// errEarlier means that a server answers from an earlier catalog: it lost its state, or has just started and not read all of it.
// A node missing from such a catalog has not left.
var errEarlier = errors.New("the catalog is an earlier one")
