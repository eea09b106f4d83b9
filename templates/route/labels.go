// Package route turns the labels of services into routes, ports, settings and servers, the same for every proxy, and
// decides which instances serve which route.
package route

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/templater/leftout"
	"berth/templates/claim"
)

// Instance is an instance of a service, as Consul describes it.
type Instance = api.ServiceEntry

// The labels among the Meta keys of an instance.
const (
	KeyHost      = claim.KeyHost
	KeyPath      = claim.KeyPath
	KeyPort      = claim.KeyPort
	KeyStrip     = claim.KeyStrip
	KeyRedirect  = claim.KeyRedirect
	KeyBalance   = claim.KeyBalance
	KeySticky    = claim.KeySticky
	KeyCheck     = claim.KeyCheck
	KeyMaxConn   = claim.KeyMaxConn
	KeySlowStart = claim.KeySlowStart
	KeyFallback  = claim.KeyFallback
	KeyTo        = claim.KeyTo
	KeyHold      = claim.KeyHold
)

// The tags of instances in a service with a leader.
const (
	tagLeader   = "leader"
	tagFollower = "follower"
)

// instance is a parsed instance.
type instance struct {
	*claim.Claim // shared by instances with the same claim
	id, node     string
	address      string // ip:port
	name         string // of its server; "" = it cannot be a server
	problem      string // why it cannot be a server although it is healthy
	status       string // of its own checks, as in Consul
	weights      api.AgentWeights
	drained      bool // gets no new requests
	started      time.Time
	created      uint64 // Consul index of its registration
	meta         map[string]string
	leads        bool // it is the service's leader
}

// reader reads the instances of a service.
type reader struct {
	service   string
	instances []*instance // in order
	hasRoles  bool        // an instance has a tag for its role
	report    func(string)
}

// newReader reads the instances of a service, except those for UDP or SCTP. It reports nothing twice.
func newReader(service string, entries []*Instance, report func(string)) *reader {
	reported := map[string]bool{}
	r := &reader{service: service, instances: make([]*instance, 0, len(entries)), report: func(reason string) {
		if !reported[reason] {
			reported[reason] = true
			report(reason)
		}
	}}
	list := slices.DeleteFunc(slices.Clone(entries), func(e *Instance) bool {
		return e == nil || e.Service == nil || slices.Contains(e.Service.Tags, "udp") || slices.Contains(e.Service.Tags, "sctp")
	})
	all := make([]instance, len(list))
	leader := leaderOf(list)
	for n, e := range list {
		s, i := e.Service, &all[n]
		*i = instance{
			id: s.ID, weights: s.Weights, created: s.CreateIndex, meta: s.Meta,
			status:  ownStatus(e.Checks),
			drained: s.Meta[claim.KeyWeight] == "0",
			leads:   e == leader,
		}
		r.hasRoles = r.hasRoles || i.leads || slices.Contains(s.Tags, tagFollower)
		if i.weights == (api.AgentWeights{}) { // registered without weights
			i.weights = api.AgentWeights{Passing: 1, Warning: 1}
		}
		if started := s.Meta[claim.KeyStarted]; started != "" {
			i.started, _ = time.Parse(time.RFC3339, started)
		}
		host := s.Address
		if e.Node != nil {
			i.node, host = e.Node.Node, cmp.Or(host, e.Node.Address)
		}
		i.address, i.problem = addressOf(host, s.Port)
		r.instances = append(r.instances, i)
	}
	slices.SortFunc(r.instances, func(a, b *instance) int {
		return cmp.Or(cmp.Compare(a.id, b.id), cmp.Compare(a.node, b.node), cmp.Compare(a.address, b.address), cmp.Compare(a.problem, b.problem))
	})
	nameServers(r.instances)
	return r
}

// leaderOf returns the instance that leads a service, nil if none leads. When the lead changes, the old leader may keep its
// tag until its own agent has replaced it. Then the instance whose registration changed last leads, whatever its health:
// two instances must never get requests at once, and one that lost the lead must not get it back because the new leader is
// unhealthy.
func leaderOf(entries []*Instance) (leader *Instance) {
	for _, e := range entries {
		if slices.Contains(e.Service.Tags, tagLeader) && (leader == nil || compareLeaders(e, leader) < 0) {
			leader = e
		}
	}
	return leader
}

func compareLeaders(a, b *Instance) int {
	node := func(e *Instance) string {
		if e.Node == nil {
			return ""
		}
		return e.Node.Node
	}
	return cmp.Or(
		cmp.Compare(b.Service.ModifyIndex, a.Service.ModifyIndex),
		cmp.Compare(b.Service.CreateIndex, a.Service.CreateIndex),
		cmp.Compare(a.Service.ID, b.Service.ID),
		cmp.Compare(node(a), node(b)),
	)
}

// ownStatus returns the status of the instance's own checks, as in Consul. Checks of its node do not count: when a node's
// agent is cut off, Consul marks the node as failed while all its instances may run on. The proxy's own checks detect a
// dead node. Maintenance is set on purpose and counts, also for the node.
func ownStatus(checks api.HealthChecks) string {
	own := slices.DeleteFunc(slices.Clone(checks), func(c *api.HealthCheck) bool {
		return c == nil || c.ServiceID == "" && c.CheckID != api.NodeMaint
	})
	return own.AggregatedStatus()
}

func (r *reader) leaveOut(i *instance, why string) {
	r.report(leftout.Sentence(r.service, i.id, why))
}

// parse reads the instances' claims and reports each problem once: replicas share their labels and the mistakes in them.
// Shared labels are read once.
func (r *reader) parse(allowed Ports) {
	seen := map[string]bool{}
	var distinct []*instance
	for _, i := range r.instances {
		if n := slices.IndexFunc(distinct, func(d *instance) bool { return claim.Same(d.meta, i.meta) }); n >= 0 {
			i.Claim = distinct[n].Claim
			continue
		}
		i.Claim = r.claim(i.meta, allowed)
		if len(distinct) < mostDistinct {
			distinct = append(distinct, i)
		}
		for _, problem := range i.Problems {
			if !seen[problem] {
				seen[problem] = true
				r.leaveOut(i, problem)
			}
		}
	}
}

// mostDistinct limits the claims that an instance's claim is compared with: beyond it, parsing is cheaper.
const mostDistinct = 4

// claim reads the claim in metadata, without parts that this service may not have.
func (r *reader) claim(meta map[string]string, allowed Ports) *claim.Claim {
	c := claim.Parse(meta)
	c.Routes = slices.DeleteFunc(c.Routes, func(route claim.Route) bool {
		problem := allowed.problem(route.Port)
		if problem != "" {
			c.Problems = append(c.Problems, problem)
		}
		return problem != ""
	})
	if c.Settings.Fallback == r.service {
		c.Settings.Fallback = ""
		c.Says = slices.DeleteFunc(c.Says, func(key string) bool { return key == KeyFallback })
		c.Problems = append(c.Problems, fmt.Sprintf("its %s %.100q is not the name of another service; set %s", KeyFallback, r.service, claim.Label(KeyFallback)))
	}
	return &c
}
