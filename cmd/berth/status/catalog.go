package status

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/templates/claim"
)

// Entry is an instance as Consul's catalog has it.
type Entry struct {
	Service, ID, Node, Address string // Address is host:port at which it is reached
	Meta                       map[string]string
	Checks                     []Check // those that do not pass
}

// Check is a check that does not pass.
type Check struct{ ID, Name, Status, Output, Notes string }

// Catalog holds the instances in Consul's catalog by service name. A service without instances has an empty list.
type Catalog map[string][]Entry

// notAsked are the services to ignore: Consul's own.
var notAsked = []string{"consul"}

// Sort sorts the instances of each service by ID, then node.
func (c Catalog) Sort() {
	for _, list := range c {
		slices.SortFunc(list, func(a, b Entry) int { return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Node, b.Node)) })
	}
}

// NewEntry returns the entry of an instance as the health endpoint describes it.
func NewEntry(e *api.ServiceEntry) Entry {
	out := Entry{
		Service: e.Service.Service, ID: e.Service.ID, Node: e.Node.Node, Meta: e.Service.Meta,
		Address: net.JoinHostPort(cmp.Or(e.Service.Address, e.Node.Address), strconv.Itoa(e.Service.Port)),
	}
	for _, check := range e.Checks {
		if check.Status != api.HealthPassing {
			out.Checks = append(out.Checks, Check{check.CheckID, check.Name, check.Status, check.Output, check.Notes})
		}
	}
	return out
}

// ReadCatalog asks Consul for all instances, with one call for each node and each status: many services cost little. The error says
// what is missing.
func ReadCatalog(ctx context.Context, consul *api.Client) (Catalog, error) {
	q := new(api.QueryOptions).WithContext(ctx)
	nodes, meta, err := consul.Catalog().Nodes(q)
	if err != nil {
		return nil, fmt.Errorf("read the nodes in Consul's catalog: %w", err)
	}
	hidden := meta.ResultsFilteredByACLs
	out := Catalog{}
	at := map[[2]string]*Entry{}
	for _, n := range nodes {
		var of struct {
			Services []struct {
				ID, Service, Address string
				Port                 int
				Meta                 map[string]string
			}
		}
		meta, err := consul.Raw().Query("/v1/catalog/node-services/"+n.Node, &of, q)
		if err != nil {
			return nil, fmt.Errorf("read the services of node %s: %w", n.Node, err)
		}
		hidden = hidden || meta.ResultsFilteredByACLs
		for _, s := range of.Services {
			if slices.Contains(notAsked, s.Service) {
				continue
			}
			out[s.Service] = append(out[s.Service], Entry{
				Service: s.Service, ID: s.ID, Node: n.Node, Meta: s.Meta,
				Address: net.JoinHostPort(cmp.Or(s.Address, n.Address), strconv.Itoa(s.Port)),
			})
		}
	}
	for _, list := range out {
		for i := range list {
			at[[2]string{list[i].Node, list[i].ID}] = &list[i]
		}
	}
	for _, status := range []string{api.HealthCritical, api.HealthWarning} {
		checks, meta, err := consul.Health().State(status, q)
		if err != nil {
			return nil, fmt.Errorf("read the checks that are %s: %w", status, err)
		}
		hidden = hidden || meta.ResultsFilteredByACLs
		for _, c := range checks {
			check := Check{c.CheckID, c.Name, c.Status, c.Output, c.Notes}
			if c.ServiceID != "" {
				if e := at[[2]string{c.Node, c.ServiceID}]; e != nil {
					e.Checks = append(e.Checks, check)
				}
				continue
			}
			for key, e := range at { // the node's own: maintenance mode, or the whole node is gone
				if key[0] == c.Node {
					e.Checks = append(e.Checks, check)
				}
			}
		}
	}
	out.Sort()
	if hidden {
		return out, errors.New("the token does not see the whole catalog: give it service_prefix \"\" and node_prefix \"\" { policy = \"read\" }")
	}
	return out, nil
}

// maintenance returns the reason of an instance's maintenance mode, or of its node's.
func (e *Entry) maintenance() (reason string, is bool) {
	for _, c := range e.Checks {
		if c.ID == api.NodeMaint || strings.HasPrefix(c.ID, api.ServiceMaintPrefix) {
			return c.Notes, true
		}
	}
	return "", false
}

// failing returns the outputs of the critical checks.
func (e *Entry) failing() string {
	var said []string
	for _, c := range e.Checks {
		if c.Status == api.HealthCritical {
			said = append(said, c.Name+": "+oneLine(cmp.Or(c.Output, c.Notes, "no output yet")))
		}
	}
	return strings.Join(said, "; ")
}

// oneLine shortens the output of a check to one line.
func oneLine(s string) string {
	const most = 200
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// Stopped returns when the instance was told to stop; false if it was not, or if the time is unknown.
func (e *Entry) Stopped() (time.Time, bool) {
	reason, is := e.maintenance()
	if !is {
		return time.Time{}, false
	}
	return claim.StoppedAt(reason)
}

// Passing reports whether the instance should get requests: no check is critical.
func (e *Entry) Passing() bool {
	return !slices.ContainsFunc(e.Checks, func(c Check) bool { return c.Status == api.HealthCritical })
}

// metaTime reads a time in an instance's metadata.
func (e *Entry) metaTime(key string) time.Time {
	at, _ := time.Parse(time.RFC3339, e.Meta[key])
	return at
}
