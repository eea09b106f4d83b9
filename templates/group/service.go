package group

import (
	"slices"

	"github.com/hashicorp/consul/api"
)

// Identity identifies this instance.
type Identity struct {
	Name, Group string // app, prod
	Service     string // in Consul: app-prod
	// Instance has what is known before registration: ID, Node, Port, Tags, Meta, and a chosen Host.
	Instance Instance
}

// Service is the group of this instance.
type Service struct {
	Name, Group string // app, prod
	Service     string // in Consul: app-prod
	Self        Instance
	// Instances are this instance and the other healthy ones, by ID. An instance in maintenance is included: it comes back,
	// and a rolling change should not change the members.
	Instances []Instance
	Leader    *Instance  // nil = none, or the group has no such topology
	Followers []Instance // by ID; none if the group has no leader and followers
}

func newService(self Identity, ask Ask) Service {
	isSelf := func(e *api.ServiceEntry) bool {
		return e.Service.ID == self.Instance.ID && (self.Instance.Node == "" || e.Node.Node == self.Instance.Node)
	}
	entries := slices.Clone(ask(self.Service))
	if !slices.ContainsFunc(entries, isSelf) {
		entries = append(entries, self.Instance.entry())
	}
	list := members(entries, func(e *api.ServiceEntry) bool {
		return isSelf(e) || isIn(e, api.HealthPassing, api.HealthWarning, api.HealthMaint)
	})
	s := Service{Name: self.Name, Group: self.Group, Service: self.Service}
	leads := leader(list)
	for _, e := range list {
		i := newInstance(e)
		if isSelf(e) {
			s.Self = i
		}
		s.Instances = append(s.Instances, i)
		switch {
		case e == leads:
			s.Leader = &i
		case slices.Contains(i.Tags, tagFollower), slices.Contains(i.Tags, tagLeader):
			s.Followers = append(s.Followers, i)
		}
	}
	return s
}

// entry returns an instance as Consul would describe it.
func (i Instance) entry() *api.ServiceEntry {
	return &api.ServiceEntry{
		Node:    &api.Node{Node: i.Node},
		Service: &api.AgentService{ID: i.ID, Address: i.Host, Port: i.Port, Tags: i.Tags, Meta: i.Meta},
	}
}
