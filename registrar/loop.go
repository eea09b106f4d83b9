package registrar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strconv"
	"strings"
	"time"

	"berth/registrar/agent"
	"berth/registrar/docker"
	"berth/registrar/label"
	"berth/registrar/ready"
	"berth/registrar/retry"
)

// Updates from other goroutines to the loop, in addition to docker.Event.
type (
	// connected reports that Docker's event stream is open, or why it is not.
	connected struct{ err error }
	// probed reports that an instance is ready, or why it is late.
	probed struct {
		*probe
		late error
		at   time.Time
	}
	// ended carries the answer or the error of a finished call.
	ended struct {
		planned
		*call
		answer any
		err    error
	}
	// listed is the answer to a list: the IDs, and for containers to start before others the first digits of the others'
	// IDs.
	listed struct {
		ids       []string
		replacing map[string]string
	}
	// held is the answer to a read: what the agent holds, and a hash of the token used.
	held struct {
		agent.State
		token string
	}
)

// rest limits the pause between two plans. The loop pauses for as long as the last plan took, so it plans a burst of updates
// once.
const rest = 5 * time.Millisecond

// loop observes updates, plans, and carries out the plan until ctx is done or enough returns true. A dry loop only asks.
func (r *Registrar) loop(ctx context.Context, dry bool, enough func(plan) bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer r.work.Wait()
	defer cancel()
	r.work.Go(func() {
		docker.Follow(ctx, r.opts.Events, r.opts.Resync, func(err error) { r.updates.add(connected{err}) }, func(ev docker.Event) { r.updates.add(ev) })
	})
	wake := time.NewTimer(0)
	defer wake.Stop()
	for {
		news := false
		select {
		case <-ctx.Done():
			return
		case <-r.updates.wake:
		case <-wake.C:
			news = true
		}
		began := time.Now()
		for _, u := range r.updates.drain() {
			news = r.observe(u) || news
		}
		if !news {
			continue
		}
		r.adopt()
		r.overdue(began)
		for _, container := range r.revive(began) {
			r.opts.Log.Warn(container+" was told to stop but still runs: back in service when it is ready", "container", container)
		}
		p := r.plan(began)
		if !dry && r.handOver(p.handovers, began) {
			p = r.plan(began)
		}
		if enough(p) {
			return
		}
		for _, c := range p.calls {
			if !dry || !(c.writes() || c.kind == publishing || c.kind == launching) {
				r.make(ctx, c)
			}
		}
		if !dry {
			r.carryOut(ctx, p)
			r.explain(ctx, p)
			select {
			case r.changed <- struct{}{}:
			default: // the listener has not looked yet
			}
		}
		if !p.next.IsZero() {
			wake.Reset(time.Until(p.next))
		}
		time.Sleep(min(time.Since(began), rest)) // the rest of a burst arrives meanwhile
	}
}

// observe records one update, and reports whether it can change the plan. Events of unknown containers cannot.
func (r *Registrar) observe(u any) bool {
	switch u := u.(type) {
	case docker.Event:
		r.metrics.events.Inc()
		return r.event(u)
	case wish:
		r.wishes(u)
	case filled:
		delete(r.placing, u.container)
	case elected:
		u.member.role = u.role
	case asked:
		report := r.report(time.Now())
		report.Problems = r.problems()
		u.answer <- report
		return false
	case connected:
		if u.err == nil || r.firstAt.IsZero() {
			r.resync() // events before this moment may have been missed
		}
		r.setStatus("docker events", r.failed(u.err))
	case probed:
		switch {
		case u.cancel == nil: // the probe was canceled
		case u.late != nil:
			u.probe.late, u.probe.readyAt = u.late.Error(), time.Time{}
		default:
			u.probe.found(u.at)
		}
	case ended:
		if r.calls[u.key] == u.call { // otherwise its container is gone
			r.ended(u)
		}
	}
	return true
}

// ended records the end of a call.
func (r *Registrar) ended(u ended) {
	u.call.ended = r.tick()
	var refused *agent.Refusal
	if errors.As(u.err, &refused) {
		r.isRefused(u, refused)
		return
	}
	if u.kind.writes() && agent.IsNotFound(u.err) { // already gone; the next read will show it
		u.err, r.read.wanted = nil, r.tick()
	}
	if u.err != nil && (u.kind == comparing || u.kind == publishing) {
		r.notPublished(u)
		return
	}
	if u.err != nil {
		if u.done(r.failed(u.err)); u.kind.writes() {
			r.read.wanted = r.tick()
		}
		return
	}
	u.succeeded = time.Now()
	switch u.kind {
	case changing, draining:
		r.applied(u.key, u.call, u.change, u.token)
		if u.change.Deregister {
			delete(r.lacking, u.id)
		}
		if u.change.Register {
			r.isAccepted(u)
		}
		return // earlier failures count until a read confirms the change
	case describing:
		r.describe(u.answer.(label.Host), u.began)
	case listing:
		maps.DeleteFunc(r.refusals, func(id string, _ *retry.Lasting) bool { // the instance is gone, or has changed its labels
			return r.refused[id].why == "" && r.last(key{kind: changing, id: id}).began == 0
		})
		listed := u.answer.(listed)
		r.list(listed.ids, u.began)
		for id, old := range listed.replacing {
			r.succeed(id, old, true)
		}
	case inspecting:
		r.inspected(r.containers[u.id], u.answer.(docker.Inspected), u.began)
	case judging, launching:
		delete(r.calls, u.key)
		if t := r.replacedBy(u.id); t != nil && u.kind == judging {
			r.judge(t, u.answer.(docker.Inspected), u.succeeded)
		} else if t != nil {
			r.launched(t, u.answer.(string))
		}
		return
	case reading:
		if u.call.err != nil {
			r.dueAgain(changing, draining)
		}
		held := u.answer.(held)
		r.token = held.token
		r.metrics.errors.Add(float64(r.consulHolds(held.State, u.began)))
	case comparing:
		if u.call.err != nil {
			r.dueAgain(publishing)
		}
		r.catalog, r.blind = u.answer.(agent.View), false
	case publishing:
		if have := u.answer.(agent.Registered); have.Held() {
			msg := "put " + u.id + " into Consul's catalog, which lacked it although the agent holds it"
			if u.view.Services[u.id] {
				msg = "put " + u.id + " into Consul's catalog again: its entry there may date from another token"
			}
			r.opts.Log.Info(msg, "service", have.Service, "instance", u.id)
		} else {
			r.read.wanted = r.tick() // an agent that hung may carry out late what it was told earlier
		}
		delete(r.lacking, u.id)
		e := r.entries[u.id]
		e.published, e.stale = u.succeeded, false
		r.entries[u.id] = e
	case beating:
		if was := u.beat.Said(r.consul[u.id]); was != nil && was.Status != u.beat.Status {
			r.opts.Log.Info(fmt.Sprintf("check %q of %s is %s", was.Name, u.id, u.beat.Status), "instance", u.id, "check", was.Name, "was", was.Status)
		}
	}
	u.done(nil)
}

// isRefused records that Consul refuses to register an instance. A refusal does not count as a failure: it is logged, and
// the previous registration stays.
func (r *Registrar) isRefused(u ended, refused *agent.Refusal) {
	msg := fmt.Sprintf("cannot register %s as %s: Consul refuses it; berth tries again at the next resync", u.change.Of, u.change.Name)
	if r.consul[u.id].Held() {
		msg = fmt.Sprintf("%s of %s stays registered as it was: Consul refuses the change; berth tries again at the next resync", u.change.Name, u.change.Of)
	}
	lasting := r.refusals[u.id]
	if lasting == nil {
		lasting = &retry.Lasting{}
		r.refusals[u.id] = lasting
	}
	r.inStep = false
	r.metrics.refusals.Inc()
	why := errors.Unwrap(refused.Err)
	if tell, lasts := lasting.Tell(why.Error(), time.Now()); tell {
		r.opts.Log.Error(msg, append(retry.For(lasts), "service", u.change.Name, "instance", u.id, "container", u.change.Of, "err", why)...)
	}
	r.refused[u.id] = refusal{u.change.Instance, why.Error()}
	delete(r.calls, u.key)
}

// isAccepted records that Consul has registered an instance.
func (r *Registrar) isAccepted(u ended) {
	delete(r.refused, u.id)
	if lasting := r.refusals[u.id]; lasting != nil {
		_, lasted := lasting.Over(time.Now())
		r.opts.Log.Info(fmt.Sprintf("Consul no longer refuses %s of %s", u.change.Name, u.change.Of), append(retry.For(lasted), "service", u.change.Name, "instance", u.id, "container", u.change.Of)...)
		delete(r.refusals, u.id)
	}
}

// notPublished records that the catalog could not be read or written. That harms nothing, because the agent itself passes on
// what the catalog lacks, only later. A missing right of the token is logged once, and retried rarely.
func (r *Registrar) notPublished(u ended) {
	r.catalog.Index = 0
	u.done(u.err)
	if !agent.IsRefused(u.err) {
		r.read.wanted = r.tick() // perhaps the agent itself went away and comes back empty
		return
	}
	u.retry = time.Now().Add(reread)
	switch {
	case u.kind == comparing && !r.blind:
		r.blind = true
		r.opts.Log.Info("Consul's catalog is not compared with its agent, so an entry that the servers lose returns only after minutes: give berth's token agent_prefix and node_prefix \"\" { policy = \"read\" }", "err", u.err)
	case u.kind == publishing && r.lacking[u.id] != u.err.Error():
		r.lacking[u.id] = u.err.Error()
		r.opts.Log.Warn("cannot put "+u.id+" into Consul's catalog, which lacks it; the agent does so within minutes", "instance", u.id, "err", u.err)
	}
}

// failed counts an error and returns it.
func (r *Registrar) failed(err error) error {
	if err != nil {
		r.metrics.errors.Inc()
	}
	return err
}

// make makes a call in the background once its lane has a free place.
func (r *Registrar) make(ctx context.Context, p planned) {
	c := r.begin(p.key)
	slots := r.slots[lane{p.kind, c.err != nil}]
	r.work.Go(func() {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		case <-ctx.Done():
			return
		}
		answer, err := r.call(ctx, p)
		r.updates.add(ended{p, c, answer, err})
	})
}

func (r *Registrar) call(ctx context.Context, p planned) (answer any, err error) {
	switch p.kind {
	case describing:
		ctx, cancel := context.WithTimeout(ctx, hostTimeout)
		defer cancel()
		return r.opts.Host(ctx)
	case listing:
		var l listed
		if l.ids, err = docker.List(ctx, r.opts.Docker, r.opts.KeepFailed); err == nil && r.opts.Start != nil {
			l.replacing, err = docker.Replacements(ctx, r.opts.Docker)
		}
		return l, err
	case inspecting:
		return docker.Inspect(ctx, r.opts.Docker, p.id, r.opts.Tags)
	case judging:
		return docker.InspectCreated(ctx, r.opts.Docker, p.id)
	case launching:
		return r.launch(ctx, p.id)
	case reading:
		token := agent.Mark(r.opts.Token)
		have, err := r.agent.Read(ctx, "")
		return held{have, token}, err
	case comparing:
		return r.opts.Catalog.Look(ctx, p.view)
	case publishing:
		all, err := r.agent.Read(ctx, p.id)
		have := all[p.id]
		if have.Held() {
			err = r.opts.Catalog.Publish(ctx, p.view, have)
		}
		return have, err
	case beating:
		return nil, r.agent.Beat(ctx, p.beat)
	default:
		return nil, r.agent.Apply(ctx, p.change)
	}
}

// carryOut ends and starts probes, and sends signals.
func (r *Registrar) carryOut(ctx context.Context, p plan) {
	for probe := range r.probing {
		if _, waits := p.waiting[probe]; !waits {
			probe.cancel()
			probe.cancel, probe.late = nil, ""
			delete(r.probing, probe)
		}
	}
	for probe, ready := range p.waiting {
		if probe.cancel == nil && ready.Kind != label.ReadyHealthcheck {
			r.probe(ctx, probe, ready)
		}
	}
	for _, t := range p.signals {
		r.signal(ctx, t)
	}
	r.carryOutGroups(ctx, p)
}

// probe probes an instance in the background until it is ready.
func (r *Registrar) probe(ctx context.Context, probe *probe, how label.Ready) {
	ctx, probe.cancel = context.WithCancel(ctx)
	r.probing[probe] = true
	r.work.Go(func() {
		try := func(ctx context.Context, how label.Ready) error {
			err := r.try(ctx, how)
			if ctx.Err() == nil {
				probe.last.Store(&err)
			}
			return err
		}
		late := func(err error) { r.updates.add(probed{probe: probe, late: err}) }
		if ready.Wait(ctx, try, how, r.opts.ReadyTimeout, late) == nil {
			r.updates.add(probed{probe: probe, at: time.Now()})
		}
	})
}

// signal tells Docker to send the signal that ends a drained container. If that fails, Docker's own stop timeout ends the
// container.
func (r *Registrar) signal(ctx context.Context, t *tracked) {
	signal := t.drain.signal
	t.drain.signal = 0
	name, log := t.Name, r.opts.Log.With("container", t.Name, "signal", label.SignalName(signal))
	r.work.Go(func() {
		if err := docker.Kill(ctx, r.opts.Docker, t.id, signal); err != nil {
			log.Error("cannot send "+label.SignalName(signal)+" to "+name+"; Docker ends it when its stop timeout is over", "err", err)
			return
		}
		log.Info("drained " + name + " and sent it " + label.SignalName(signal))
	})
}

// explain reports the state in metrics, in Ready, and in the log when it changes. Containers that were not meant to be
// registered are logged at debug level only; berth registrar --dry-run lists them all.
func (r *Registrar) explain(ctx context.Context, p plan) {
	running := 0
	for _, t := range r.containers {
		if t.inspected() && t.failure == "" {
			running++
		}
	}
	r.metrics.containers.Set(float64(running))
	r.metrics.instances.Set(float64(p.instances))
	r.metrics.probing.Set(float64(len(p.waiting)))
	if ctx.Err() != nil {
		return
	}
	if p.docker != nil || (r.described.got > 0 && r.known(true)) {
		r.setStatus("docker", p.docker)
	}
	if p.consul != nil || p.complete || r.synced {
		r.synced = r.synced || p.complete
		r.setStatus("consul", p.consul)
	}
	r.explainStep(p)
	r.explainDisputes()
	r.explainRejections(ctx, p)
	r.explainRoutes(p.routed)
	if orphans := strings.Join(p.orphans, ", "); orphans != r.orphans {
		r.orphans = orphans
		if orphans != "" {
			r.opts.Log.Warn("registrations with this host's name belong to another Docker engine, so berth does not touch them: if that engine is gone, deregister them", "instances", orphans)
		}
	}
}

// explainRejections logs what is not registered or ignored, when that changes, and counts it for containers that were meant
// to be registered.
func (r *Registrar) explainRejections(ctx context.Context, p plan) {
	now, meant := map[rejection]bool{}, 0
	for _, f := range p.rejections {
		t := r.containers[f.container]
		level := slog.LevelDebug
		if t.asked.Meant {
			level = slog.LevelWarn
			meant++
		}
		if now[f] = true; r.rejections[f] {
			continue
		}
		says := verdict(f.reason, p.registers[f.container])
		msg, attrs := t.Name+" is "+says, []any{"container", t.Name}
		if key, misspelt := t.asked.MisspeltIn(f.reason); misspelt {
			msg, attrs = fmt.Sprintf("ignored %s of %s: unknown key, did you mean %s?", key.Label, t.Name, key.Meant), append(attrs, "reason", says)
		}
		r.opts.Log.Log(ctx, level, msg, attrs...)
	}
	r.rejections = now
	r.metrics.leftOut.Set(float64(meant))
}

// explainStep logs once, after the start and after each failure, that all registrations are in step. Instances that may
// still become ready in time, refused ones and disputed ones do not count as in step; late ones, registered as critical, do.
func (r *Registrar) explainStep(p plan) {
	if r.inStep || !p.complete || p.unready > 0 || len(r.refused) > 0 || len(r.disputes.instances()) > 0 || r.Ready() != nil {
		return
	}
	r.inStep = true
	instances, containers := 0, map[string]bool{}
	for _, have := range r.consul {
		if r.own.Owns(have.AgentService) {
			instances++
			containers[have.Container()] = true
		}
	}
	r.opts.Log.Info("all registrations are in step with Docker and Consul", "instances", instances, "containers", len(containers))
}

// explainDisputes warns if another program undoes what this registrar does.
func (r *Registrar) explainDisputes() {
	ids := r.disputes.instances()
	if len(ids) == 0 {
		if was, lasted := r.undone.Over(time.Now()); was {
			r.opts.Log.Info("no other program undoes registrations any more", retry.For(lasted)...)
		}
		return
	}
	const most = 5
	list := strings.Join(ids[:min(len(ids), most)], ", ")
	if n := len(ids) - most; n > 0 {
		list += fmt.Sprintf(" and %d more", n)
	}
	if tell, lasts := r.undone.Tell("undone", time.Now()); tell {
		r.opts.Log.Warn("another program undoes what this registrar does, so it holds back: is there a second registrar with the same owner? "+
			"On one Docker host, stop one of the two or give each its own --owner. On one of two cloned machines, stop Docker, remove /etc/docker/key.json and /var/lib/docker/engine-id, and start it again",
			append(retry.For(lasts), "instances", list, "owner", r.own.Owner)...)
	}
}

// explainRoutes logs, when it changes, which port of a container has the route asked for on the whole container.
func (r *Registrar) explainRoutes(all map[*tracked]routed) {
	before := r.routes
	r.routes = map[string]uint16{}
	for t, c := range all {
		in := c.holder.desired.Instance
		if !c.holder.ready {
			if port, was := before[in.Container]; was {
				r.routes[in.Container] = port
			}
			continue
		}
		r.routes[in.Container] = in.Inside
		if before[in.Container] == in.Inside {
			continue
		}
		level, msg := slog.LevelInfo, fmt.Sprintf("the route of %s goes to port %d, one of several", t.Name, in.Inside)
		if c.holder != c.contenders[0] {
			level, msg = slog.LevelWarn, msg+", as the ports before it are not ready in time"
		}
		var others []string
		for _, o := range c.contenders {
			if o.desired.Inside != in.Inside {
				others = append(others, strconv.Itoa(int(o.desired.Inside)))
			}
		}
		r.opts.Log.Log(context.Background(), level, msg+": to choose another, set SERVICE_<port>_ROUTE_HOST instead of SERVICE_ROUTE_HOST",
			"container", t.Name, "port", in.Inside, "others", strings.Join(others, ","))
	}
}

// verdict prefixes a reason with its consequence for the container.
func verdict(reason string, registers bool) string {
	if registers {
		return "registered, but " + reason
	}
	return "not registered: " + reason
}
