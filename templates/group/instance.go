package group

import (
	"cmp"
	"net"
	"slices"
	"strconv"

	"github.com/hashicorp/consul/api"
)

// The tags of an instance's role in a group that has a leader.
const (
	tagLeader   = "leader"
	tagFollower = "follower"
)

// Instance is an instance of a service.
type Instance struct {
	ID, Node string
	Host     string // the address of the service, or else of its node: an IP address, or a name if registered with one
	Port     int    // 0 = none
	Address  string // host:port, [host]:port for IPv6; the host alone if there is no port
	Tags     []string
	Meta     map[string]string
}

// newInstance returns the instance of an entry with a service and a node.
func newInstance(e *api.ServiceEntry) Instance {
	i := Instance{
		ID: e.Service.ID, Node: e.Node.Node, Host: cmp.Or(e.Service.Address, e.Node.Address), Port: e.Service.Port,
		Tags: e.Service.Tags, Meta: e.Service.Meta,
	}
	i.Address = i.Host
	if i.Port != 0 {
		i.Address = net.JoinHostPort(i.Host, strconv.Itoa(i.Port))
	}
	return i
}

// isIn reports whether an entry is in one of the states of health.
func isIn(e *api.ServiceEntry, states ...string) bool {
	return slices.Contains(states, e.Checks.AggregatedStatus())
}

// members returns the entries that f accepts, by ID and node.
func members(entries []*api.ServiceEntry, f func(*api.ServiceEntry) bool) []*api.ServiceEntry {
	var list []*api.ServiceEntry
	for _, e := range entries {
		if f(e) {
			list = append(list, e)
		}
	}
	slices.SortFunc(list, func(a, b *api.ServiceEntry) int {
		return cmp.Or(cmp.Compare(a.Service.ID, b.Service.ID), cmp.Compare(a.Node.Node, b.Node.Node))
	})
	return list
}

// leader returns the leading instance, nil if none leads. While the lead changes, two instances may have the tag: then the
// one whose registration changed last counts.
func leader(list []*api.ServiceEntry) *api.ServiceEntry {
	var last *api.ServiceEntry
	for _, e := range list {
		if slices.Contains(e.Service.Tags, tagLeader) && (last == nil || e.Service.ModifyIndex > last.Service.ModifyIndex) {
			last = e
		}
	}
	return last
}

// oldest returns the instance that was registered first.
func oldest(list []*api.ServiceEntry) *api.ServiceEntry {
	return slices.MinFunc(list, func(a, b *api.ServiceEntry) int {
		return cmp.Compare(a.Service.CreateIndex, b.Service.CreateIndex) // the first among equals
	})
}
