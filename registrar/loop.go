package registrar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"berth/registrar/agent"
	"berth/registrar/docker"
	"berth/registrar/label"
	"berth/registrar/ready"
)

// What other goroutines tell the loop, beside Docker's updates.
type (
	// probed says that an instance is ready, or why it is not, though it should be.
	probed struct {
		*probe
		late error
	}
	// applied is the end of an operation.
	applied struct {
		lane
		agent.Change
		err error
	}
	// beaten is the end of a heartbeat.
	beaten struct {
		beat
		at  time.Time
		err error
	}
	// heldNow is what Consul holds.
	heldNow struct {
		agent.State
		err error
	}
	// nodeNow is what Consul's node is like.
	nodeNow struct {
		Node
		err error
	}
)

// Calls to Consul at the same time. Drains have theirs to themselves, and so have heartbeats.
const (
	parallel       = 8
	parallelDrains = 32
)

// slots limit how many calls are made at the same time.
type slots chan struct{}

// do calls f when a slot is free, unless ctx is done before.
func (s slots) do(ctx context.Context, f func() error) error {
	select {
	case s <- struct{}{}:
		defer func() { <-s }()
		return f()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// loop takes in updates, plans and carries out, until ctx is done or enough says so.
func (r *Registrar) loop(ctx context.Context, enough func(plan) bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer r.work.Wait()
	defer cancel()
	r.work.Go(func() { r.watcher.Run(ctx, r.updates.Add) })
	wake := time.NewTimer(0)
	defer wake.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.updates.Wake:
		case <-wake.C:
		}
		for _, u := range r.updates.Drain() {
			r.observe(u)
		}
		r.adopt()
		p := r.plan(time.Now())
		r.ask(ctx, p)
		if !r.dry {
			r.carryOut(ctx, p)
			r.explain(ctx, p)
		}
		if enough(p) {
			return
		}
		if !p.next.IsZero() {
			wake.Reset(time.Until(p.next))
		}
	}
}

// observe takes in one update.
func (r *Registrar) observe(u any) {
	switch u := u.(type) {
	case docker.Event:
		r.metrics.events.Inc()
		r.happened(u)
	case docker.Connected:
		r.settle("docker events", r.failed(u.Err))
	case docker.Described:
		if r.hostErr = r.failed(u.Err); u.Err == nil {
			r.base, r.described = u.Host, true
			r.describe()
		}
	case docker.Listed:
		if r.listErr = r.failed(u.Err); u.Err == nil {
			r.list(u.IDs)
		}
	case docker.Inspected:
		u.Err = r.failed(u.Err)
		r.inspected(u)
	case nodeNow:
		if r.asking.Done(u.err); u.err != nil {
			r.asked = r.asked || (r.consul != nil && r.reading.Err == nil)
			break
		}
		r.asked, r.outdated, r.node = true, false, u.Node
		r.describe()
	case probed:
		switch {
		case u.cancel == nil: // nobody waits for it any more
		case u.late != nil:
			u.probe.late = u.late.Error()
		default:
			u.probe.ready = true
		}
	case heldNow:
		r.read(u.State, r.failed(u.err))
	case applied:
		r.applied(u)
	case beaten:
		b := r.beat(u.instance, u.Check)
		if b.Done(r.failed(u.err)); u.err != nil {
			r.stale = true
			return
		}
		b.last = u.at
		if was := u.Said(r.consul[u.instance]); was != nil && was.Status != u.Status {
			r.opts.Log.Info("check is "+u.Status, "instance", u.instance, "check", was.Name, "was", was.Status)
		}
	}
}

// applied takes in the end of an operation. That Consul refuses one instance is no failure: it says so, and what was
// registered before stays.
func (r *Registrar) applied(u applied) {
	var refusal *agent.Refusal
	if !errors.As(u.err, &refusal) {
		r.done(u.lane, u.Change, r.failed(u.err))
		return
	}
	msg := "not registered: consul refuses it; berth asks again at the next resync"
	if r.consul[u.ID].Held() {
		msg = "stays registered as it was: consul refuses the change; berth asks again at the next resync"
	}
	r.opts.Log.Error(msg, "service", u.Desired.Name, "instance", u.ID, "err", errors.Unwrap(refusal.Err))
	r.refused[u.ID] = u.Desired.Instance
	delete(r.ops, u.lane)
}

// failed counts an error.
func (r *Registrar) failed(err error) error {
	if err != nil {
		r.metrics.errors.Inc()
	}
	return err
}

// ask asks Consul what is to be known.
func (r *Registrar) ask(ctx context.Context, p plan) {
	if p.read {
		r.startRead()
		r.work.Go(func() {
			have, err := r.agent.Read(ctx, "")
			r.updates.Add(heldNow{have, err})
		})
	}
	if p.ask {
		r.asking.Start()
		r.work.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, agent.Timeout)
			defer cancel()
			node, err := r.opts.Node(ctx)
			r.updates.Add(nodeNow{node, err})
		})
	}
}

// carryOut starts what is planned.
func (r *Registrar) carryOut(ctx context.Context, p plan) {
	for probe := range r.probing {
		if !p.waiting[probe] {
			probe.cancel()
			probe.cancel, probe.late = nil, ""
			delete(r.probing, probe)
		}
	}
	for _, i := range p.start {
		r.probe(ctx, i)
	}
	for _, t := range p.signals {
		r.signal(ctx, t)
	}
	for _, t := range p.revive {
		r.opts.Log.Warn("back in service when it is ready: it was told to stop and runs on", "container", t.Name)
		r.revive(t)
	}
	for _, l := range p.verified {
		delete(r.ops, l)
	}
	for _, l := range p.differs {
		r.start(l)
		r.done(l, agent.Change{}, r.failed(fmt.Errorf("%s: consul does not hold what was written", l.id)))
	}
	for _, c := range p.changes {
		r.apply(ctx, c)
	}
	for _, b := range p.beats {
		r.beat(b.instance, b.Check).Start()
		r.work.Go(func() {
			at := time.Now()
			err := r.beatSlots.do(ctx, func() error { return r.agent.Beat(ctx, b.Heartbeat) })
			r.updates.Add(beaten{b, at, err})
		})
	}
	// What was changed here may change the plan.
	if len(p.revive)+len(p.differs)+len(p.verified) > 0 {
		r.updates.Add(nil)
	}
}

// probe waits in the background until an instance is ready.
func (r *Registrar) probe(ctx context.Context, i *instance) {
	if i.cancel != nil {
		return // another instance has the same one
	}
	ctx, i.cancel = context.WithCancel(ctx)
	probe := i.probe
	r.probing[probe] = true
	r.work.Go(func() {
		late := func(err error) { r.updates.Add(probed{probe, err}) }
		if ready.Wait(ctx, r.try, i.desired.Ready, r.opts.ReadyTimeout, late) == nil {
			r.updates.Add(probed{probe, nil})
		}
	})
}

// signal has Docker send the signal of a container's drain. If that fails, Docker's own stop timeout ends the container
// all the same.
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

// apply makes a change in the background.
func (r *Registrar) apply(ctx context.Context, c agent.Change) {
	l, slots := lane{c.ID, c.Drain}, r.opSlots
	if c.Drain {
		slots = r.drainSlots
	}
	r.start(l)
	r.work.Go(func() {
		err := slots.do(ctx, func() error { return r.agent.Apply(ctx, c) })
		r.updates.Add(applied{l, c, err})
	})
}

// explain shows how things are, in the metrics, in what Ready says, and in the log when it changes. Nobody is bothered
// with containers that nobody meant to be registered; berth registrar --once --dry-run lists them all.
func (r *Registrar) explain(ctx context.Context, p plan) {
	running := 0
	for _, t := range r.containers {
		if t.inspected && t.failure == "" {
			running++
		}
	}
	r.metrics.containers.Set(float64(running))
	r.metrics.instances.Set(float64(p.instances))
	r.metrics.probing.Set(float64(len(p.waiting)))
	if ctx.Err() != nil {
		return
	}
	if p.docker != nil || (r.described && r.seen()) {
		r.settle("docker", p.docker)
	}
	if p.consul != nil || p.complete || r.synced {
		r.synced = r.synced || p.complete
		r.settle("consul", p.consul)
	}
	now := map[string]bool{}
	for _, f := range p.rejections {
		key := f.container + " " + f.reason
		now[key] = true
		if r.reasons[key] {
			continue
		}
		t := r.containers[f.container]
		level := slog.LevelDebug
		if t.MentionsService() {
			level = slog.LevelWarn
		}
		r.opts.Log.Log(ctx, level, verdict(f.reason, len(t.instances) > 0), "container", t.Name)
	}
	r.reasons = now
	if orphans := strings.Join(p.orphans, ", "); orphans != r.orphans {
		r.orphans = orphans
		if orphans != "" {
			r.opts.Log.Warn("registrations with this host's name belong to another Docker engine and are left alone: if that engine is gone, deregister them", "instances", orphans)
		}
	}
}

// seen says whether all containers were inspected, or cannot be.
func (s *state) seen() bool {
	for _, t := range s.containers {
		if !t.inspected && t.err == nil {
			return false
		}
	}
	return !s.listedAt.IsZero()
}

// verdict says what a reason means for a container that registers something, or nothing.
func verdict(reason string, registers bool) string {
	if registers {
		return "registered, but " + reason
	}
	return "not registered: " + reason
}
