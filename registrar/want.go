package registrar

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"berth/registrar/ready"

	"berth/registrar/label"
)

// all is what the known containers register, with what keeps some of it from being registered.
func (r *Registrar) all() (instances []Instance, refusals []refusal) {
	for _, c := range r.sorted() {
		if c.NetworkOf != "" {
			delete(r.answers, c.ID) // it depends on the other container
			if other, known := r.containers[c.NetworkOf]; known {
				c = c.Within(other)
			}
		}
		a := r.answer(c)
		instances = append(instances, a.instances...)
		for _, reason := range a.reasons {
			refusals = append(refusals, refusal{c.ID, reason})
		}
	}
	maps.DeleteFunc(r.answers, func(id string, _ answer) bool { _, known := r.containers[id]; return !known })
	instances, more := unique(instances, *r.have, r.own)
	return instances, append(refusals, more...)
}

// answer is what Instances says of a container. It is kept until the container is inspected anew or the host changes:
// labels can be many, and every change of any container asks for all.
type answer struct {
	instances []Instance
	reasons   []string
}

func (r *Registrar) answer(c Container) answer {
	if a, kept := r.answers[c.ID]; kept {
		return a
	}
	var a answer
	a.instances, a.reasons = label.Instances(c, r.host)
	r.answers[c.ID] = a
	return a
}

// sorted are the known containers by their age, so that the oldest holder of a service ID keeps it.
func (r *Registrar) sorted() []Container {
	return slices.SortedFunc(maps.Values(r.containers), func(a, b Container) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID))
	})
}

// want is what should be registered now, and how. It starts probes for instances that are not ready yet and ends those
// that nobody waits for. next is when time alone changes the answer.
func (r *Registrar) want(ctx context.Context, now time.Time) (want []wanted, next time.Time) {
	all, refusals := r.all()
	r.explain(ctx, all, refusals)
	current, waiting := map[endpoint]bool{}, map[endpoint]bool{}
	for _, in := range all {
		e := endpointOf(in)
		current[e] = true
		if _, seen := r.seen[e]; !seen {
			r.seen[e] = now
		}
		w := r.describe(in)
		exists := registered(in, *r.have)
		if s := r.have.services[in.ID]; !r.adopted && (exists || (s != nil && s.Meta[metaOwner] == "" && r.own.mayHave(s, in))) {
			r.adopt(ctx, w)
			w = r.describe(in)
		}
		if !r.isReady(w, e) {
			if w.drain != "" {
				continue
			}
			waiting[e] = true
			if r.probing[e] == nil {
				r.probe(ctx, in, e)
			}
			if w.notReady = r.overdue(w, e, now); w.notReady == "" {
				if deadline := r.seen[e].Add(r.opts.ReadyTimeout); in.Ready.Kind == ReadyHealthcheck {
					next = earliest(next, deadline)
				}
				continue
			}
		}
		if (w.drain == "" || exists) && !r.refused(w) {
			want = append(want, w)
		}
	}
	r.adopted = true
	r.forget(current, waiting)
	return want, next
}

// describe says of an instance what its container says of itself.
func (r *Registrar) describe(in Instance) wanted {
	c := r.containers[in.Container]
	w := wanted{Instance: in, health: c.Health, output: c.HealthOutput}
	d, draining := r.draining[c.ID]
	failure, failed := r.failed[c.ID]
	switch {
	case failed:
		w.drain = automatic + failure
	case draining:
		w.drain = automatic + d.reason
	case c.Paused:
		w.drain = automatic + "the container is paused"
	}
	return w
}

// adopt takes over what is registered from before the registrar started: it was ready once and stays, so that a restart
// of the registrar takes nothing away; and a container that was being stopped then is so still.
func (r *Registrar) adopt(ctx context.Context, w wanted) {
	if r.have.checks[readyCheckID(w.ID)] == nil {
		r.ready[endpointOf(w.Instance)] = true
	}
	reason, _ := r.have.maintenance(w.ID)
	c := r.containers[w.Container]
	if !strings.HasPrefix(reason, automatic+stopping) || w.drain != "" {
		return
	}
	d := draining{reason: strings.TrimPrefix(reason, automatic), until: time.Now().Add(c.StopTimeout + survives)}
	if real := label.StopSignal(c, r.host.Policy); real != 0 {
		d.cancel = r.send(ctx, c, real, 0)
	}
	r.draining[c.ID] = d
}

// isReady says whether an instance may be registered as passing. Once it was, its checks tell.
func (r *Registrar) isReady(w wanted, e endpoint) bool {
	if w.Ready.Kind == ReadyNone || (w.Ready.Kind == ReadyHealthcheck && w.health == "healthy") {
		r.ready[e] = true
	}
	return r.ready[e]
}

// overdue is why an instance is not ready though it should be, "" while there is time.
func (r *Registrar) overdue(w wanted, e endpoint, now time.Time) string {
	if w.Ready.Kind != ReadyHealthcheck {
		return r.late[e]
	}
	switch {
	case w.health == "unhealthy":
		return "Docker's HEALTHCHECK says unhealthy: " + cmp.Or(w.output, "without a word")
	case now.Sub(r.seen[e]) >= r.opts.ReadyTimeout:
		return "Docker's HEALTHCHECK does not say healthy: " + cmp.Or(w.output, w.health)
	default:
		return ""
	}
}

// probe waits in the background until the instance is ready, and then wakes the loop. Docker probes for itself.
func (r *Registrar) probe(ctx context.Context, in Instance, e endpoint) {
	ctx, cancel := context.WithCancel(ctx)
	r.probing[e] = cancel
	if in.Ready.Kind == ReadyHealthcheck {
		return
	}
	r.background.Go(func() {
		late := func(err error) {
			r.inbox.put(func(m *mail) {
				if m.late == nil {
					m.late = map[endpoint]string{}
				}
				m.late[e] = err.Error()
			})
		}
		if ready.Wait(ctx, r.try, in.Ready, r.opts.ReadyTimeout, late) == nil {
			r.inbox.put(func(m *mail) { m.accepted = append(m.accepted, e) })
		}
	})
}

// forget ends probes that nobody waits for, and drops what is known of endpoints that are gone.
func (r *Registrar) forget(current, waiting map[endpoint]bool) {
	for e, cancel := range r.probing {
		if !waiting[e] {
			cancel()
			delete(r.probing, e)
			delete(r.late, e)
		}
	}
	isGone := func(e endpoint) bool { return !current[e] }
	maps.DeleteFunc(r.ready, func(e endpoint, _ bool) bool { return isGone(e) })
	maps.DeleteFunc(r.late, func(e endpoint, _ string) bool { return isGone(e) })
	maps.DeleteFunc(r.seen, func(e endpoint, _ time.Time) bool { return isGone(e) })
	r.metrics.probing.Set(float64(len(r.probing)))
}

// explain logs why something is not registered, or not as a label asks, once as long as it stays so. Nobody is bothered
// with containers that nobody meant to be registered; berth registrar --once --dry-run lists them all.
func (r *Registrar) explain(ctx context.Context, all []Instance, refusals []refusal) {
	has := map[string]bool{}
	for _, in := range all {
		has[in.Container] = true
	}
	now := map[string]bool{}
	for _, f := range refusals {
		key := f.container + " " + f.reason
		now[key] = true
		if r.reasons[key] {
			continue
		}
		c := r.containers[f.container]
		level := slog.LevelDebug
		if c.MentionsService() {
			level = slog.LevelWarn
		}
		r.opts.Log.Log(ctx, level, verdict(f.reason, has[c.ID]), "container", c.Name)
	}
	r.reasons = now
}

// verdict says what a reason means for a container that registers something, or nothing.
func verdict(reason string, registers bool) string {
	if registers {
		return "registered, but " + reason
	}
	return "not registered: " + reason
}
