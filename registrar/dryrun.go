package registrar

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/hashicorp/consul/api"

	"berth/registrar/agent"
	"berth/registrar/label"
	"berth/registrar/ready"
	"berth/templates/claim"
)

// Report says what a registrar does with the containers of its host. docs/operate/dry-run.md documents its JSON.
type Report struct {
	Host       string    `json:"host,omitempty"`     // its name
	Containers []Planned `json:"containers"`         // by age; registrations of removed containers come last
	Problems   []string  `json:"problems,omitempty"` // why the rest may be incomplete or out of date
}

// Planned says what a container registers, and why parts of it are not registered.
type Planned struct {
	Container      string            `json:"container"` // its name; "" if the container is gone
	ID             string            `json:"id"`        // full ID
	ComposeService string            `json:"compose_service,omitempty"`
	Started        time.Time         `json:"started,omitzero"`
	Image          string            `json:"image,omitempty"`
	Networks       []string          `json:"networks,omitempty"` // each with the container's address there: front 172.18.0.5; or host
	Asks           map[string]string `json:"asks,omitempty"`     // SERVICE_* labels and variables; shortened, without secrets
	Meant          bool              `json:"meant,omitempty"`    // it has SERVICE_* keys, so somebody meant to register it
	Health         string            `json:"health,omitempty"`   // status of Docker's HEALTHCHECK; "" = it has none
	Instances      []PlannedInstance `json:"instances"`
	Group          string            `json:"group,omitempty"`   // what it takes from the group of its first instance's service
	Replace        string            `json:"replace,omitempty"` // "start-first": it starts before the container that it replaces stops
	Reasons        []string          `json:"reasons"`           // what is not registered or ignored, and why
}

// PlannedInstance is an instance as it is, or will be, registered.
type PlannedInstance struct {
	Service      string    `json:"service"`
	ID           string    `json:"id"`
	Endpoint     string    `json:"endpoint"` // host:port given to clients, and why
	Tags         []string  `json:"tags,omitempty"`
	ReadyWhen    string    `json:"ready_when"`
	ReadyAt      time.Time `json:"ready_at,omitzero"`      // when it became ready; zero = not ready
	Address      string    `json:"address,omitempty"`      // host:port of the registration; no host = the node's address
	RegisteredAt time.Time `json:"registered_at,omitzero"` // when this registrar registered it; zero = not by this one, or before its start
	Probe        string    `json:"probe,omitempty"`        // result of the last probe, and for how long it is probed; "" = not probed
	Routes       []string  `json:"routes"`                 // asked for by its labels
	NoRoute      string    `json:"no_route,omitempty"`     // why it takes part in no route
	State        State     `json:"state"`
	Reason       string    `json:"reason,omitempty"` // of the state
}

// State is what an instance is in Consul.
type State string

// The states of an instance. All but the last five are registered.
const (
	Registered     State = "registered"
	Warning        State = "warning"          // it gets requests if no instance passes, or fewer of them
	Critical       State = "critical"         // it gets no requests: a check fails
	OutOfService   State = "out of service"   // it gets no new requests: maintenance mode
	ToBeChanged    State = "to be changed"    // its registration differs from what the container asks for
	ToBeRegistered State = "to be registered" // when it is ready
	Waiting        State = "waiting"          // until it is ready
	NotRegistered  State = "not registered"
	Unwanted       State = "to be deregistered"
	LeftAlone      State = "left alone"
)

// String returns the state and its reason.
func (i PlannedInstance) String() string {
	if i.Reason == "" {
		return string(i.State)
	}
	return string(i.State) + ": " + i.Reason
}

// Verdicts returns the reasons in the words of the registrar's log.
func (p Planned) Verdicts() []string {
	var out []string
	for _, reason := range p.Reasons {
		out = append(out, verdict(reason, len(p.Instances) > 0))
	}
	return out
}

// Only returns the report on the named containers, in the order of the names. A name is a container's name, the beginning of
// its ID, or a compose service, which may have several containers. The error lists the names that match nothing.
func (r Report) Only(names ...string) (Report, error) {
	if len(names) == 0 {
		return r, nil
	}
	out := Report{Host: r.Host, Problems: r.Problems}
	var errs []error
	for _, name := range names {
		found, err := r.find(strings.TrimPrefix(name, "/"))
		if err != nil {
			errs = append(errs, err)
		}
		for _, p := range found {
			if !slices.ContainsFunc(out.Containers, func(q Planned) bool { return q.ID == p.ID }) {
				out.Containers = append(out.Containers, p)
			}
		}
	}
	return out, errors.Join(errs...)
}

func (r Report) find(name string) (found []Planned, err error) {
	for _, is := range []func(Planned) bool{
		func(p Planned) bool { return p.Container == name || p.ID == name },
		func(p Planned) bool { return p.ComposeService == name },
		func(p Planned) bool { return strings.HasPrefix(p.ID, name) },
	} {
		for _, p := range r.Containers {
			if name != "" && is(p) {
				found = append(found, p)
			}
		}
		if len(found) > 0 {
			break
		}
	}
	switch {
	case len(found) == 0:
		return nil, fmt.Errorf("no container that runs here has the name, the ID or the compose service %q: see docker ps --all", name)
	case len(found) > 1 && found[0].ComposeService != name:
		return nil, fmt.Errorf("the IDs of %d containers begin with %s: give more digits", len(found), name)
	}
	return found, nil
}

// asked asks the loop for a report.
type asked struct{ answer chan<- Report }

// Report says what a running registrar does with its containers. It does not ask Docker or Consul.
func (r *Registrar) Report(ctx context.Context) (Report, error) {
	answer := make(chan Report, 1)
	r.updates.add(asked{answer})
	select {
	case report := <-answer:
		return report, nil
	case <-ctx.Done():
		return Report{}, ctx.Err()
	}
}

// Plan asks Docker and Consul what a registrar would register for each container, and changes nothing. An error means that
// Docker or Consul could not be asked.
func (r *Registrar) Plan(ctx context.Context) (Report, error) {
	var err error
	r.loop(ctx, true, func(p plan) bool {
		err = errors.Join(p.docker, p.consul)
		return err != nil || p.known
	})
	if err := cmp.Or(err, ctx.Err()); err != nil {
		return Report{}, err
	}
	return r.report(time.Now()), nil
}

// report describes the containers, as far as they are known now.
func (r *Registrar) report(now time.Time) (out Report) {
	out.Host = r.host.Name
	p := r.planner(now)
	place := map[string]int{}
	for n, t := range slices.Concat(r.sorted(), r.uninspected()) {
		place[t.id] = n
		out.Containers = append(out.Containers, Planned{
			Container: cmp.Or(t.Name, fmt.Sprintf("%.12s", t.id)), ID: t.id, ComposeService: t.Labels["com.docker.compose.service"],
			Started: t.Started, Image: t.Image, Networks: r.networks(t), Asks: t.asked.Values, Meant: t.asked.Meant, Health: t.health(),
			Instances: []PlannedInstance{}, Reasons: []string{},
		})
	}
	for _, i := range p.instances {
		c := &out.Containers[place[i.desired.Container]]
		if len(c.Instances) == 0 {
			c.Group = i.desired.Group.String()
			c.Replace = r.replaces(r.containers[c.ID])
		}
		c.Instances = append(c.Instances, p.report(i))
	}
	for _, f := range p.plan.rejections {
		c := &out.Containers[place[f.container]]
		c.Reasons = append(c.Reasons, f.reason)
	}
	for n := range out.Containers {
		if c := &out.Containers[n]; len(c.Instances)+len(c.Reasons) == 0 {
			c.Meant = c.Meant && r.last(key{kind: inspecting, id: c.ID}).err != nil // SERVICE_IGNORE says that it is not
			c.Reasons = append(c.Reasons, r.silent(r.containers[c.ID]))
		}
	}
	out.Containers = append(out.Containers, r.leftovers(p.plan)...)
	return out
}

// networks names the networks on which a container is reached, with its addresses.
func (r *Registrar) networks(t *tracked) (out []string) {
	c := r.within(t)
	if c.HostNetwork {
		return []string{"host"}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Networks)) {
		for _, address := range c.Networks[name] {
			out = append(out, name+" "+address.String())
		}
	}
	return out
}

// health returns the status and output of Docker's HEALTHCHECK on one line.
func (t *tracked) health() string {
	if t.Health == "" || t.HealthOutput == "" {
		return t.Health
	}
	return t.Health + ": " + oneLine(t.HealthOutput)
}

// replaces says how a container replaces another, unless it simply starts after it.
func (r *Registrar) replaces(t *tracked) string {
	if asked, why := label.StartsFirst(t.Container, r.host.Policy); !asked || why != "" {
		return ""
	}
	return label.StartFirst
}

// problems returns what keeps a running registrar from working.
func (r *Registrar) problems() []string {
	if err := r.Ready(); err != nil {
		return strings.Split(err.Error(), "\n")
	}
	return nil
}

// uninspected returns the containers that Docker has listed but not described yet.
func (r *Registrar) uninspected() (out []*tracked) {
	for _, id := range slices.Sorted(maps.Keys(r.containers)) {
		if t := r.containers[id]; !t.inspected() {
			out = append(out, t)
		}
	}
	return out
}

// silent says why a container registers nothing when it gave no reason.
func (r *Registrar) silent(t *tracked) string {
	switch err := r.last(key{kind: inspecting, id: t.id}).err; {
	case err != nil:
		return err.Error()
	case !t.inspected():
		return "Docker has not described it yet"
	case !r.enoughKnown(t):
		return fmt.Sprintf("it uses the network of container %.12s, which Docker has not described yet", t.NetworkOf)
	}
	return "SERVICE_IGNORE is set"
}

// report describes an instance.
func (p *planner) report(i *instance) PlannedInstance {
	d, t := p.chosen(i), p.containers[i.desired.Container]
	in := d.Instance
	out := PlannedInstance{Service: in.Name, ID: in.ID, Endpoint: in.Endpoint(t.Container), Tags: in.Tags, ReadyWhen: in.Ready.String()}
	out.Routes, out.NoRoute = append([]string{}, in.Routes()...), in.NoRoute()
	out.State, out.Reason = p.standing(i, d, t)
	out.Probe = i.met(p.now, t)
	out.Address = net.JoinHostPort(in.Address, strconv.Itoa(in.Port))
	if i.ready {
		out.ReadyAt = toTheMillisecond(i.readyAt)
	}
	if p.consul[d.ID].Container() == t.id {
		out.RegisteredAt = toTheMillisecond(p.entries[d.ID].since)
	}
	return out
}

func toTheMillisecond(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

// met returns the result of the last probe of an instance that is not ready, and for how long it is probed. It returns "" if
// nothing probes it.
func (i *instance) met(now time.Time, t *tracked) string {
	how, said, at := i.desired.Ready, "", ""
	switch {
	case i.ready:
		return ""
	case how.Kind == label.ReadyHealthcheck:
		said = t.health()
	case i.cancel == nil:
		return ""
	default:
		at = " " + cmp.Or(how.URL, how.Address)
		said = "no answer yet"
		if last := i.last.Load(); last != nil && *last != nil {
			said = oneLine(ready.Reason(*last, how))
		}
	}
	return fmt.Sprintf("%s%s: %s, for %v", how.Kind, at, said, now.Sub(i.since).Round(time.Second))
}

// standing returns the state of an instance in Consul, with the reason.
func (p *planner) standing(i *instance, d agent.Desired, t *tracked) (State, string) {
	have := p.consul[d.ID]
	why, maintained := have.Maintenance()
	refused := p.refused[d.ID].why
	reason := strings.TrimPrefix(cmp.Or(why, t.outOfService()), agent.Automatic)
	switch {
	case !have.Held() && refused != "":
		return NotRegistered, "Consul refuses it: " + refused
	case !have.Held() && reason != "":
		return NotRegistered, reason
	case !have.Held() && i.cancel != nil: // a registrar probes it
		return Waiting, fmt.Sprintf("for %v; not ready: %s", p.now.Sub(i.since).Round(time.Second), cmp.Or(i.late, "waiting until "+d.Ready.String()))
	case !have.Held() && d.Ready.Kind == label.ReadyHealthcheck && !i.ready:
		return Waiting, fmt.Sprintf("Docker's HEALTHCHECK says %s", t.Health)
	case !have.Held():
		return ToBeRegistered, ""
	case maintained:
		return OutOfService, reason
	case reason != "":
		return ToBeChanged, "it will be taken out of service: " + reason
	}
	late := d
	late.NotReady = "late" // an instance that was not ready in time is registered with one more check
	if !d.Same(have) && !late.Same(have) {
		if refused != "" {
			return Registered, "as it was before: Consul refuses the change: " + refused
		}
		if have.Meta[label.MetaOwner] == "" {
			return ToBeChanged, "it is Registrator's and will be taken over"
		}
		return ToBeChanged, difference(d, have)
	}
	if d.Meta[claim.KeyWeight] == "0" {
		reason = "its weight is 0, so it gets no new requests"
	}
	for _, status := range []string{api.HealthCritical, api.HealthWarning} {
		if said := saidBy(have, status); said != "" {
			return State(status), said
		}
	}
	return Registered, reason
}

// saidBy returns the output of the checks with a status.
func saidBy(have agent.Registered, status string) string {
	var said []string
	for _, id := range slices.Sorted(maps.Keys(have.Checks)) {
		c := have.Checks[id]
		if c.Status != status {
			continue
		}
		output := oneLine(cmp.Or(c.Output, c.Notes, "no output yet"))
		name := c.Name
		if !have.WasReady() && id == have.ID+":ready" {
			name = "not ready in time"
		}
		said = append(said, name+": "+output)
	}
	return strings.Join(said, "; ")
}

// oneLine shortens the output of a check to one line.
func oneLine(s string) string {
	const most = 200
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }), " ")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// difference says what will change in a registration.
func difference(d agent.Desired, have agent.Registered) string {
	switch {
	case have.Service != d.Name:
		return fmt.Sprintf("its service is %s", have.Service)
	case have.Address != d.Address || have.Port != d.Port:
		return fmt.Sprintf("its address is %s port %d", cmp.Or(have.Address, "the node's"), have.Port)
	case have.Container() != d.Container:
		return fmt.Sprintf("it belongs to container %.12s", have.Container())
	case !slices.Equal(have.Tags, d.Tags):
		return "its tags differ"
	}
	for _, key := range slices.Sorted(maps.Keys(d.Meta)) {
		if have.Meta[key] != d.Meta[key] {
			return fmt.Sprintf("its metadata %s differs", key)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(have.Meta)) {
		if _, wanted := d.Meta[key]; !wanted && key != label.MetaChecks && key != label.MetaStarted && key != claim.MetaReadyAt {
			return fmt.Sprintf("its metadata %s will be removed", key)
		}
	}
	return "its weight or its checks differ"
}

// leftovers describes the registrations of removed containers, grouped by container.
func (r *Registrar) leftovers(p plan) (out []Planned) {
	add := func(have agent.Registered, state State, reason string) {
		n := slices.IndexFunc(out, func(p Planned) bool { return p.ID == have.Container() })
		if n < 0 {
			n, out = len(out), append(out, Planned{ID: have.Container(), Reasons: []string{}})
		}
		readyAt, _ := claim.ReadyAt(have.Meta)
		out[n].Instances = append(out[n].Instances, PlannedInstance{
			Service: have.Service, ID: have.ID, Endpoint: endpoint(have.Address, have.Port), Routes: []string{}, State: state, Reason: reason,
			ReadyAt: readyAt, RegisteredAt: toTheMillisecond(r.entries[have.ID].since),
		})
	}
	for _, c := range p.calls {
		if have := r.consul[c.id]; c.change.Deregister && have.Held() {
			add(have, Unwanted, "no container registers it any more")
		}
	}
	for _, id := range p.orphans {
		add(r.consul[id], LeftAlone, "it has this host's name and belongs to another Docker engine: if that engine is gone, deregister it")
	}
	return out
}
