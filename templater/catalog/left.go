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

// leftTime is how long it may take to find out whether a node is still in the catalog.
const leftTime = 2 * time.Second

// servicePath begins the path of a query for the instances of a service.
const servicePath = "/v1/health/service/"

// nodes knows on which nodes each service has instances that nobody has drained. The list of services does not tell.
type nodes struct {
	mu sync.Mutex
	of map[queried][]string

	told map[string]time.Time // when it was last said that a node has left
}

type queried struct {
	path string
	scope
}

// note takes in the instances of a service.
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

// tells says whether it is news that a node has left: every list with instances of it finds out.
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
	serves   bool   // neither failing by a check of its own nor in maintenance
	created  uint64 // the index at which its node was put into the catalog; 0 = not known
}

// placedIn returns the instances in a list of them; lists is false for other data.
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

// drained says whether an instance was taken out of service before it vanished. What fails by its node's check alone was not:
// that is how a node looks that is cut off.
func drained(checks api.HealthChecks) bool {
	return slices.ContainsFunc(checks, func(c *api.HealthCheck) bool {
		return c.Status == api.HealthCritical && (c.ServiceID != "" || c.CheckID == api.NodeMaint) || c.Status == api.HealthMaint
	})
}

// left says whether an answer lacks instances of a node because the node has left the catalog with all that it had, though it
// may be back by now with some of it. A Consul agent that is stopped to be restarted leaves like this, and one that was cut
// off from its servers for a while is removed by them; its containers go on in either case.
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

// vanishedFrom returns the nodes of which a list of instances lacks one that served, unless the node is listed and was in the
// catalog before an index.
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

// hasLeft says whether a node is in the catalog no more, as far as the token may know, or has come back after an index: at
// first without its services. An error is no reason to believe that it was emptied on purpose.
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

// errEarlier says that a server answers from an earlier catalog: it has lost its state, or was started and has not read all of it
// yet. A node that such a catalog lacks has not left.
var errEarlier = errors.New("the catalog is an earlier one")
