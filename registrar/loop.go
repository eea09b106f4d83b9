package registrar

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"berth/registrar/agent"
	"berth/registrar/docker"
	"berth/registrar/label"
	"berth/registrar/ready"
)

// Updates from other goroutines to the loop; docker.Event is another.
type (
	// connected says that Docker's event stream is open, or why it is not.
	connected struct{ err error }
	// probed says that an instance is ready, or why it is late.
	probed struct {
		*probe
		late error
	}
	// ended carries the answer or the error of a call.
	ended struct {
		planned
		*call
		answer any
		err    error
	}
)

// rest limits the pause between two plans. The loop pauses for as long as the last plan took, so a burst is planned at once.
const rest = 5 * time.Millisecond

// loop observes updates, plans and carries out the plan until ctx is done or enough returns true. A dry loop only asks.
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
		for _, container := range r.revive(began) {
			r.opts.Log.Warn("back in service when it is ready: it was told to stop and runs on", "container", container)
		}
		p := r.plan(began)
		if enough(p) {
			return
		}
		for _, c := range p.calls {
			if !dry || !c.writes() {
				r.make(ctx, c)
			}
		}
		if !dry {
			r.carryOut(ctx, p)
			r.explain(ctx, p)
		}
		if !p.next.IsZero() {
			wake.Reset(time.Until(p.next))
		}
		time.Sleep(min(time.Since(began), rest)) // the rest of a burst arrives meanwhile
	}
}

// observe records one update, and reports whether it can change the plan: events of unknown containers cannot.
func (r *Registrar) observe(u any) bool {
	switch u := u.(type) {
	case docker.Event:
		r.metrics.events.Inc()
		return r.event(u)
	case connected:
		if u.err == nil || r.firstAt.IsZero() {
			r.resync() // events before this moment may be missing
		}
		r.setStatus("docker events", r.failed(u.err))
	case probed:
		switch {
		case u.cancel == nil: // the probe was ended
		case u.late != nil:
			u.probe.late = u.late.Error()
		default:
			u.probe.ready = true
		}
	case ended:
		if r.calls[u.key] == u.call { // else its container is gone
			r.ended(u)
		}
	}
	return true
}

// ended records the end of a call. A registration that Consul refuses does not count as a failure: it is logged, and the
// previous registration stays.
func (r *Registrar) ended(u ended) {
	u.call.ended = r.tick()
	var refusal *agent.Refusal
	if errors.As(u.err, &refusal) {
		msg := "not registered: consul refuses it; berth asks again at the next resync"
		if r.consul[u.id].Held() {
			msg = "stays registered as it was: consul refuses the change; berth asks again at the next resync"
		}
		r.opts.Log.Error(msg, "service", u.change.Name, "instance", u.id, "err", errors.Unwrap(refusal.Err))
		r.refused[u.id] = u.change.Instance
		delete(r.calls, u.key)
		return
	}
	if u.kind.writes() && agent.IsNotFound(u.err) { // gone in the meantime; the next read will show it
		u.err, r.read.wanted = nil, r.tick()
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
		r.applied(u.key, u.call, u.change)
		return // earlier failures count until a read confirms the change
	case describing:
		r.describe(u.answer.(label.Host), u.began)
	case listing:
		r.list(u.answer.([]string), u.began)
	case inspecting:
		r.inspected(r.containers[u.id], u.answer.(docker.Inspected), u.began)
	case reading:
		r.metrics.errors.Add(float64(r.consulHolds(u.answer.(agent.State), u.began)))
	case beating:
		if was := u.beat.Said(r.consul[u.id]); was != nil && was.Status != u.beat.Status {
			r.opts.Log.Info("check is "+u.beat.Status, "instance", u.id, "check", was.Name, "was", was.Status)
		}
	}
	u.done(nil)
}

// failed counts an error and returns it.
func (r *Registrar) failed(err error) error {
	if err != nil {
		r.metrics.errors.Inc()
	}
	return err
}

// make makes a call in the background, as soon as its lane has a free place.
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
		return docker.List(ctx, r.opts.Docker, r.opts.KeepFailed)
	case inspecting:
		return docker.Inspect(ctx, r.opts.Docker, p.id, r.opts.Tags)
	case reading:
		return r.agent.Read(ctx, "")
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
}

// probe probes an instance in the background until it is ready.
func (r *Registrar) probe(ctx context.Context, probe *probe, how label.Ready) {
	ctx, probe.cancel = context.WithCancel(ctx)
	r.probing[probe] = true
	r.work.Go(func() {
		late := func(err error) { r.updates.add(probed{probe, err}) }
		if ready.Wait(ctx, r.try, how, r.opts.ReadyTimeout, late) == nil {
			r.updates.add(probed{probe, nil})
		}
	})
}

// signal has Docker send the signal that ends a drained container. If that fails, Docker's own stop timeout ends the
// container.
func (r *Registrar) signal(ctx context.Context, t *tracked) {
	signal := t.drain.signal
	t.drain.signal = 0
	log := r.opts.Log.With("container", t.Name, "signal", label.SignalName(signal))
	r.work.Go(func() {
		if err := docker.Kill(ctx, r.opts.Docker, t.id, signal); err != nil {
			log.Error("cannot send the stop signal; Docker's stop timeout will end the container", "err", err)
			return
		}
		log.Info("drained, stop signal sent")
	})
}

// explain reports the state in metrics, in Ready, and in the log when it changes. Containers that nobody meant to register
// are logged at debug level only; berth registrar --once --dry-run lists them all.
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
	now := map[rejection]bool{}
	for _, f := range p.rejections {
		now[f] = true
		if r.rejections[f] {
			continue
		}
		t := r.containers[f.container]
		level := slog.LevelDebug
		if t.MentionsService() {
			level = slog.LevelWarn
		}
		r.opts.Log.Log(ctx, level, verdict(f.reason, len(t.instances) > 0), "container", t.Name)
	}
	r.rejections = now
	if orphans := strings.Join(p.orphans, ", "); orphans != r.orphans {
		r.orphans = orphans
		if orphans != "" {
			r.opts.Log.Warn("registrations with this host's name belong to another Docker engine and are left alone: if that engine is gone, deregister them", "instances", orphans)
		}
	}
}

// verdict prefixes a reason with its consequence for the container.
func verdict(reason string, registers bool) string {
	if registers {
		return "registered, but " + reason
	}
	return "not registered: " + reason
}
