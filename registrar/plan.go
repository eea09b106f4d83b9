package registrar

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	docker "github.com/fsouza/go-dockerclient"
	"github.com/hashicorp/consul/api"
)

// Planned is what a container registers, and why some of it, or nothing, is not registered.
type Planned struct {
	Container string // its name
	Instances []PlannedInstance
	Reasons   []string
}

// Verdicts are the reasons as an operator reads them, in the words of the registrar's log.
func (p Planned) Verdicts() []string {
	var out []string
	for _, reason := range p.Reasons {
		out = append(out, verdict(reason, len(p.Instances) > 0))
	}
	return out
}

// PlannedInstance is an instance as it would be registered.
type PlannedInstance struct {
	Instance
	Endpoint string // host:port that clients are given, and why that
	State    string // "registered", or what a running registrar would do
}

// Plan says for every container what it registers and what not, sorted by the containers' age. It changes nothing. An
// error means that Docker or Consul could not be asked.
func (r *Registrar) Plan(ctx context.Context) ([]Planned, error) {
	if err := r.lookOnce(ctx); err != nil {
		return nil, err
	}
	instances, refusals := r.all()
	var plan []Planned
	for _, c := range r.sorted() {
		p := Planned{Container: c.Name}
		for _, in := range instances {
			if in.Container == c.ID {
				p.Instances = append(p.Instances, PlannedInstance{in, in.Endpoint(c), r.state(in)})
			}
		}
		for _, f := range refusals {
			if f.container == c.ID {
				p.Reasons = append(p.Reasons, f.reason)
			}
		}
		if len(p.Instances)+len(p.Reasons) == 0 {
			p.Reasons = []string{"SERVICE_IGNORE is set"}
		}
		plan = append(plan, p)
	}
	return plan, nil
}

func (r *Registrar) state(in Instance) string {
	reason, maintained := r.have.maintenance(in.ID)
	w := r.describe(in)
	switch {
	case maintained:
		return "registered, out of service: " + reason
	case registered(in, *r.have) && same(w.registration(), *r.have):
		return "registered"
	case r.have.services[in.ID] != nil:
		return "to be registered anew"
	default:
		return "to be registered when ready"
	}
}

// Once brings Consul up to date one time, waiting for instances that are not ready as long as they have time for that.
func (r *Registrar) Once(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer r.background.Wait()
	defer cancel()
	if err := r.lookOnce(ctx); err != nil {
		return err
	}
	deadline := time.Now().Add(r.opts.ReadyTimeout)
	for {
		if _, err := r.Sync(ctx); err != nil {
			return err
		}
		wait := time.Until(deadline) + time.Second // the registrations as critical come at the deadline
		if len(r.probing) == 0 || wait <= 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.inbox.wake:
		case <-time.After(min(wait, reread)):
			// Docker's own health checks tell by events, which are not followed here.
			for id := range r.containers {
				r.unknown[id] = true
			}
			if err := r.inspect(ctx); err != nil {
				return err
			}
		}
		r.receive(r.inbox.take())
	}
}

func (r *Registrar) lookOnce(ctx context.Context) error {
	if partly, err := r.look(ctx); err != nil || partly != nil {
		return errors.Join(err, partly)
	}
	return r.read(ctx)
}

// Finder finds instances for an operator who names a container or an instance, and sets their maintenance mode.
type Finder struct {
	Agent interface {
		ServicesWithFilterOpts(filter string, q *api.QueryOptions) (map[string]*api.AgentService, error)
		EnableServiceMaintenanceOpts(id, reason string, q *api.QueryOptions) error
		DisableServiceMaintenanceOpts(id string, q *api.QueryOptions) error
	}
	Docker interface { // for names of containers; it need not answer
		InspectContainerWithOptions(docker.InspectContainerOptions) (*docker.Container, error)
	}
}

// Find returns the service IDs of the instance with this ID, or of the container with this name, ID or beginning of an
// ID. It is an error if there is none.
func (f Finder) Find(ctx context.Context, name string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	services, err := f.Agent.ServicesWithFilterOpts("", query(ctx))
	if err != nil {
		return nil, fmt.Errorf("read services: %w", err)
	}
	if services[name] != nil {
		return []string{name}, nil
	}
	container := name
	if c, err := f.Docker.InspectContainerWithOptions(docker.InspectContainerOptions{Context: ctx, ID: name}); err == nil {
		container = c.ID
	}
	var ids []string
	owners := map[string]bool{}
	for _, id := range slices.Sorted(maps.Keys(services)) {
		if is := services[id].Meta[metaContainer]; is != "" && strings.HasPrefix(is, container) {
			ids = append(ids, id)
			owners[is] = true
		}
	}
	switch {
	case len(ids) == 0:
		return nil, fmt.Errorf("%s is no container with a registered service and no service ID at this Consul agent", name)
	case len(owners) > 1:
		return nil, fmt.Errorf("%s is the beginning of the IDs of %d containers: give more of it", name, len(owners))
	}
	return ids, nil
}

// Maintain sets or ends the maintenance mode of an instance. The registrar leaves alone what was set so.
func (f Finder) Maintain(ctx context.Context, id string, on bool, reason string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if !on {
		if err := f.Agent.DisableServiceMaintenanceOpts(id, query(ctx)); err != nil {
			return fmt.Errorf("undrain %s: %w", id, err)
		}
		return nil
	}
	// Never the words by which the registrar knows its own.
	if err := f.Agent.EnableServiceMaintenanceOpts(id, "berth drain: "+reason, query(ctx)); err != nil {
		return fmt.Errorf("drain %s: %w", id, err)
	}
	return nil
}
