package catalog

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"

	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul/api"

	"berth/templater/leftout"
)

// Instances is the dependency on all instances of a service, in any state of health, as Consul describes them: a
// []*api.ServiceEntry, sorted by node and ID. The function service of consul-template accepts fewer names, and lacks the index
// at which an instance was registered.
type Instances struct{ service, datacenter string }

// instancesRe splits web@dc2. It accepts any other name, because a catalog can hold services with any name.
var instancesRe = regexp.MustCompile(`(?s)\A(.+?)(?:@([\w.-]+))?\z`)

// NewInstances returns the dependency on a service, such as web or web@dc2.
func NewInstances(name string) (*Instances, error) {
	m := instancesRe.FindStringSubmatch(name)
	if m == nil || path.Clean("/"+m[1]) != "/"+m[1] {
		return nil, errors.New(leftout.Sentence(name, "", "Consul's API cannot query a name like this; register it under another"))
	}
	return &Instances{service: m[1], datacenter: m[2]}, nil
}

// Service returns the service, followed by @ and its datacenter if the template names one.
func (i *Instances) Service() string {
	if i.datacenter == "" {
		return i.service
	}
	return i.service + "@" + i.datacenter
}

// Fetch asks Consul.
func (i *Instances) Fetch(clients *dependency.ClientSet, o *dependency.QueryOptions) (any, *dependency.ResponseMetadata, error) {
	o = o.Merge(&dependency.QueryOptions{Datacenter: i.datacenter})
	list, meta, err := clients.Consul().Health().Service(i.service, "", false, o.ToConsulOpts())
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", i, err)
	}
	if list == nil {
		list = []*api.ServiceEntry{}
	}
	list = slices.DeleteFunc(list, func(e *api.ServiceEntry) bool { return e == nil || e.Node == nil || e.Service == nil })
	slices.SortStableFunc(list, func(a, b *api.ServiceEntry) int {
		return cmp.Or(cmp.Compare(a.Node.Node, b.Node.Node), cmp.Compare(a.Service.ID, b.Service.ID))
	})
	return list, &dependency.ResponseMetadata{LastIndex: meta.LastIndex, LastContact: meta.LastContact}, nil
}

// CanShare returns true: the answer is the same for all templates.
func (i *Instances) CanShare() bool { return true }

// String returns the call as in a template.
func (i *Instances) String() string { return "instances(" + i.Service() + ")" }

// Stop does nothing: the query's context ends the query.
func (i *Instances) Stop() {}

// Type returns the location of the data.
func (i *Instances) Type() dependency.Type { return dependency.TypeConsul }

// Entries returns instances as Consul describes them, with the fields that consul-template's own functions keep.
func Entries(list []*dependency.HealthService) []*api.ServiceEntry {
	entries := make([]*api.ServiceEntry, len(list))
	for n, s := range list {
		entries[n] = &api.ServiceEntry{
			Node: &api.Node{
				ID: s.NodeID, Node: s.Node, Address: s.NodeAddress, TaggedAddresses: s.NodeTaggedAddresses, Meta: s.NodeMeta,
			},
			Service: &api.AgentService{
				ID: s.ID, Service: s.Name, Address: s.Address, TaggedAddresses: s.ServiceTaggedAddresses, Port: s.Port,
				Tags: s.Tags, Meta: s.ServiceMeta, Weights: s.Weights,
			},
			Checks: s.Checks,
		}
	}
	return entries
}

// ofService reports whether a dependency is the list of a service's instances.
func ofService(d dependency.Dependency) bool {
	switch d.(type) {
	case *Instances, *dependency.HealthServiceQuery:
		return true
	default:
		return false
	}
}
