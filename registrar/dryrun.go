package registrar

import (
	"cmp"
	"context"
	"errors"

	"berth/registrar/label"
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
	label.Instance
	Endpoint string // host:port that clients are given, and why that
	State    string // "registered", or what a running registrar would do
}

// Plan says for every container what it registers and what not, sorted by the containers' age. It changes nothing. An
// error means that Docker or Consul could not be asked.
func (r *Registrar) Plan(ctx context.Context) ([]Planned, error) {
	var err error
	r.loop(ctx, true, func(p plan) bool {
		err = errors.Join(p.docker, p.consul)
		return err != nil || p.known
	})
	if err := cmp.Or(err, ctx.Err()); err != nil {
		return nil, err
	}
	instances, rejections := r.all()
	var out []Planned
	for _, t := range r.sorted() {
		p := Planned{Container: t.Name}
		for _, i := range instances {
			if i.desired.Container == t.id {
				p.Instances = append(p.Instances, PlannedInstance{i.desired.Instance, i.desired.Endpoint(t.Container), r.standing(i)})
			}
		}
		for _, f := range rejections {
			if f.container == t.id {
				p.Reasons = append(p.Reasons, f.reason)
			}
		}
		if len(p.Instances)+len(p.Reasons) == 0 {
			p.Reasons = []string{"SERVICE_IGNORE is set"}
		}
		out = append(out, p)
	}
	return out, nil
}

// standing says how an instance stands with Consul.
func (r *Registrar) standing(i *instance) string {
	have := r.consul[i.desired.ID]
	reason, maintained := have.Maintenance()
	switch {
	case maintained:
		return "registered, out of service: " + reason
	case i.desired.Same(have) && have.Serves(i.desired.Instance):
		return "registered"
	case have.Held():
		return "to be registered anew"
	default:
		return "to be registered when ready"
	}
}
