package registrar

import (
	"cmp"
	"slices"

	"berth/registrar/agent"
)

// route decides which port of a container gets the route asked for on the whole container: the first one, in the order of
// RouteChoice, that is ready or still has time to become so. A ready one keeps the route when its checks fail. If all are
// late, the first choice gets it.
func (p *planner) route() {
	p.plan.routed = map[*tracked]routed{}
	contenders := map[*tracked][]*instance{}
	for _, i := range p.instances {
		if i.desired.RouteChoice > 0 {
			t := p.containers[i.desired.Container]
			contenders[t] = append(contenders[t], i)
		}
	}
	for t, list := range contenders {
		slices.SortFunc(list, func(a, b *instance) int { return cmp.Compare(a.desired.RouteChoice, b.desired.RouteChoice) })
		n := max(0, slices.IndexFunc(list, func(i *instance) bool { return !p.isLate(i, t) }))
		p.plan.routed[t] = routed{list, list[n]}
	}
}

// routed says which of several instances of a container has the route.
type routed struct {
	contenders []*instance // in the order of RouteChoice
	holder     *instance
}

// isLate reports whether an instance was not ready in time. After a restart of the registrar, its registration may say so.
func (p *planner) isLate(i *instance, t *tracked) bool {
	why := p.notReady(i, t)
	have := p.consul[i.desired.ID]
	return why != "" && (why != tooEarly || (have.Serves(i.desired.Instance) && t.begun(have) && !have.WasReady()))
}

// chosen returns an instance as it will be registered: without routes if another port of its container has them.
func (p *planner) chosen(i *instance) agent.Desired {
	d := i.desired
	if holder := p.plan.routed[p.containers[d.Container]].holder; d.RouteChoice > 0 && holder != i {
		d.Instance = d.Instance.WithoutRoutes(holder.desired.Instance)
	}
	return p.containers[d.Container].member.withRole(d)
}
