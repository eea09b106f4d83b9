package registrar

import (
	"context"
	"time"

	docker "github.com/fsouza/go-dockerclient"

	"berth/registrar/label"
)

// draining is a container that was told to stop and has not died yet.
type draining struct {
	reason string
	until  time.Time          // when it is taken for one that does not stop after all
	cancel context.CancelFunc // of the signal that is to follow; nil = none is
}

// keep keeps the signal from being sent.
func (d draining) keep() {
	if d.cancel != nil {
		d.cancel()
	}
}

// stopping begins the reason for which a container that was told to stop is out of service.
const stopping = "the container is being stopped by "

// survives is how long a container may run on after the time that Docker gives it to stop.
const survives = 30 * time.Second

// killed takes note of a signal that Docker has sent to a container. One that ends it takes it out of service: its stop
// signal, and SIGKILL. If that signal is only a sign, and the real one is in SERVICE_STOP_SIGNAL, that one follows when
// the container is drained.
func (r *Registrar) killed(ctx context.Context, c Container, signal int) {
	if signal != c.StopSignal && signal != sigkill {
		return
	}
	if d, already := r.draining[c.ID]; already {
		if signal == sigkill {
			d.keep()
		}
		return
	}
	now := time.Now()
	d := draining{
		reason: stopping + label.SignalName(signal),
		until:  now.Add(c.StopTimeout + survives),
	}
	if real := label.StopSignal(c, r.host.Policy); signal == c.StopSignal && real != 0 && real != signal {
		// Well inside the time after which Docker kills the container.
		d.cancel = r.send(ctx, c, real, min(r.opts.DrainTime, c.StopTimeout/2))
	}
	r.draining[c.ID] = d
}

// expireDrains puts containers that did not stop back to where they have to show that they are ready. It says when it
// wants to be called again.
func (r *Registrar) expireDrains(now time.Time) (next time.Time) {
	for id, d := range r.draining {
		c, runs := r.containers[id]
		switch {
		case !runs:
			d.keep()
			delete(r.draining, id)
			continue
		case !d.until.After(now):
			r.opts.Log.Warn("back in service when it is ready: it was told to stop and runs on", "container", c.Name)
			delete(r.draining, id)
			for e := range r.ready {
				if e.container == id {
					delete(r.ready, e)
				}
			}
			continue
		}
		next = earliest(next, d.until)
	}
	return next
}

// send has Docker send a signal to a container after a while. It does that in the background: neither Docker nor a
// Consul that hangs may hold it up. If it fails, Docker's own stop timeout ends the container all the same.
func (r *Registrar) send(ctx context.Context, c Container, signal int, after time.Duration) context.CancelFunc {
	ctx, cancel := context.WithCancel(ctx)
	r.background.Go(func() {
		defer cancel()
		select {
		case <-ctx.Done():
			return
		case <-time.After(after):
		}
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		err := r.opts.Docker.KillContainer(docker.KillContainerOptions{Context: ctx, ID: c.ID, Signal: docker.Signal(signal)})
		if err != nil {
			r.opts.Log.Error("cannot send the stop signal; Docker's stop timeout will end the container", "container", c.Name, "signal", label.SignalName(signal), "err", err)
			return
		}
		r.opts.Log.Info("drained, stop signal sent", "container", c.Name, "signal", label.SignalName(signal))
	})
	return cancel
}

// earliest is the earlier of two times, of which the zero time is none.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}
