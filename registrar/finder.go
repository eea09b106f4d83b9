package registrar

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"berth/registrar/agent"
	"berth/registrar/docker"
	"berth/registrar/label"
)

// Finder finds the instances that an operator names by container or ID, and sets their maintenance mode.
type Finder struct {
	Agent  agent.Agent
	Docker docker.Client // looks up container names; it need not answer
}

// Find returns the service IDs of the instance with this ID, or of the container with this name, ID or beginning of an ID.
// If nothing matches, the error says what to do.
func (f Finder) Find(ctx context.Context, name string) ([]string, error) {
	if name == "" { // an empty variable would match the beginning of every ID
		return nil, errors.New("the name is empty: give a container or a service ID")
	}
	services, err := f.Agent.Read(ctx, "")
	if err != nil {
		return nil, err
	}
	if services[name].Held() {
		return []string{name}, nil
	}
	container := name
	c, unasked := docker.Inspect(ctx, f.Docker, name, nil)
	if unasked == nil {
		container = cmp.Or(c.ID, name)
	}
	var ids []string
	owners := map[string]bool{}
	for _, id := range slices.Sorted(maps.Keys(services)) {
		if is := services[id].Container(); is != "" && strings.HasPrefix(is, container) {
			ids = append(ids, id)
			owners[is] = true
		}
	}
	switch {
	case len(ids) == 0 && unasked != nil:
		return nil, fmt.Errorf("%s is not a service ID at this Consul agent, and berth cannot ask Docker for a container: %w", name, unasked)
	case len(ids) == 0 && c.ID != "":
		return nil, fmt.Errorf("%s is a container with no registered service: berth registrar --dry-run %s says why", name, name)
	case len(ids) == 0:
		return nil, fmt.Errorf("%s is neither a container here nor a service ID at this Consul agent: berth registrar --dry-run lists both", name)
	case len(owners) > 1:
		return nil, fmt.Errorf("%s begins the IDs of %d containers: give more digits", name, len(owners))
	}
	return ids, nil
}

// MaintainInstance is Maintain for an instance that the agent may not hold: the error then says where to do it.
func (f Finder) MaintainInstance(ctx context.Context, id string, on bool, reason string) error {
	all, err := f.Agent.Read(ctx, id)
	if err != nil {
		return err
	}
	if !all[id].Held() {
		return fmt.Errorf("%s is not registered at the Consul agent of this berth: do it on the instance's host, with berth drain %[1]s", id)
	}
	return f.Maintain(ctx, id, on, reason)
}

// Maintain sets or ends the maintenance mode of an instance. The registrar does not touch a mode set this way, because its
// own reasons begin with other words.
func (f Finder) Maintain(ctx context.Context, id string, on bool, reason string) error {
	return f.Agent.Apply(ctx, agent.Change{Desired: agent.Desired{Instance: label.Instance{ID: id}, Drain: "berth drain: " + reason}, Maintain: on, Resume: !on})
}
