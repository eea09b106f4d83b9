package rollout

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"strconv"

	"github.com/hashicorp/consul/api"

	"berth/registrar"
	"berth/registrar/agent"
	"berth/registrar/label"
)

// Instance is an instance of a container in Consul.
type Instance struct {
	ID, Service string
	Address     string // IP and port, as in the proxy
	Passing     bool
	Why         string // why it does not pass
	Maintenance string // reason of its maintenance mode, or ""
}

// Catalog is Consul's view of containers.
type Catalog interface {
	// Instances returns the instances of each container.
	Instances(ctx context.Context, containers []string) (map[string][]Instance, error)
	// Maintain sets or ends the maintenance mode of an instance.
	Maintain(ctx context.Context, id string, on bool, reason string) error
}

// AgentCatalog is a Catalog of the local agent's instances, with their addresses from the catalog.
type AgentCatalog struct {
	registrar.Finder
	Consul *api.Client
}

// Instances implements Catalog. An instance that is not yet in the catalog does not pass.
func (c AgentCatalog) Instances(ctx context.Context, containers []string) (map[string][]Instance, error) {
	wanted := map[string]bool{}
	for _, id := range containers {
		wanted[id] = true
	}
	held, err := c.Agent.Read(ctx, "")
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for _, r := range held {
		if wanted[r.Container()] {
			names[r.Service] = true
		}
	}
	entries := map[string]*api.ServiceEntry{}
	for name := range names {
		ctx, cancel := context.WithTimeout(ctx, agent.Timeout)
		list, _, err := c.Consul.Health().Service(name, "", false, (&api.QueryOptions{Near: "_agent"}).WithContext(ctx))
		cancel()
		if err != nil {
			return nil, fmt.Errorf("read the instances of %s: %w", name, err)
		}
		for _, e := range list {
			entries[e.Service.ID+" "+e.Service.Meta[label.MetaContainer]] = e
		}
	}
	out := map[string][]Instance{}
	for _, r := range held {
		container := r.Container()
		if !wanted[container] {
			continue
		}
		in := Instance{ID: r.ID, Service: r.Service, Why: "it is not in Consul's catalog yet"}
		if reason, on := r.Maintenance(); on {
			in.Maintenance = cmp.Or(reason, "by hand")
		}
		if e := entries[r.ID+" "+container]; e != nil {
			in.Address = net.JoinHostPort(cmp.Or(e.Service.Address, e.Node.Address), strconv.Itoa(e.Service.Port))
			in.Passing, in.Why = passes(e)
		}
		out[container] = append(out[container], in)
	}
	return out, nil
}

// passes reports whether all checks of an instance and of its node pass, and otherwise which one does not.
func passes(e *api.ServiceEntry) (ok bool, why string) {
	for _, c := range e.Checks {
		if c.Status != api.HealthPassing {
			return false, fmt.Sprintf("its check %q in Consul is %s", c.Name, c.Status)
		}
	}
	return true, ""
}
