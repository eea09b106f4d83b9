package group

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"berth/registrar/group/session"
	"berth/registrar/group/store"
)

// atOnceDrain is how long an instance drains when all instances change together, and none is left to serve.
const atOnceDrain = time.Second

// carry brings the instance to the plan's goal. If that fails, it brings the instance back to what it ran, and failed says
// why. Neither done nor failed means that the change did not begin and must be tried again, or that ctx is done.
func (a *Applier) carry(ctx context.Context, p plan) (done bool, failed string) {
	began := time.Now()
	log := a.log.With("version", p.goal.Config.Version, "why", p.why)
	if applying := (standing{state: store.Applying, reason: p.why}); p.how == calmly {
		a.tell(applying) // it is over before a report could be read
	} else {
		a.say(applying)
	}
	limited, cancel := context.WithTimeout(ctx, a.opts.Timeout)
	defer cancel()
	if p.how != calmly {
		if err := a.drain(limited, p); a.ends(ctx, err) {
			return false, ""
		} else if err != nil {
			reason := "cannot be taken out of service: " + err.Error()
			if err := a.resume(ctx); err != nil {
				reason += "; and cannot be put back: " + err.Error()
			}
			if !errors.Is(err, session.ErrLost) { // otherwise the next turn may be at once
				a.hold = hold{p.id, a.changes, time.Now().Add(prepareAgain), standing{state: store.Waiting, reason: reason}}
			}
			log.Warn("a change of "+a.opts.Instance+" cannot begin; trying again", "reason", reason)
			return false, ""
		}
	}
	err := p.change.Apply(limited)
	if err == nil && p.how != calmly {
		err = a.opts.Target.Resume(limited)
	}
	switch {
	case err == nil:
		a.done(p)
		log.Info("applied a change to "+a.opts.Instance, "duration", time.Since(began).Round(time.Millisecond))
		a.acknowledge(ctx, p, p.standing)
		return true, ""
	case a.ends(ctx, err):
		return false, ""
	case errors.Is(err, context.DeadlineExceeded) && limited.Err() != nil:
		err = errors.New("not finished after " + a.opts.Timeout.String())
	}
	failed = oneLine(err)
	if back := a.revert(ctx, p); a.ends(ctx, back) {
		return false, ""
	} else if back != nil {
		failed += "; and the way back failed: " + oneLine(back)
	}
	a.news()
	s := standing{store.Failed, failed, p.goal.Config.Version}
	if p.data {
		a.hold = hold{p.id, p.changes, time.Now().Add(dataHold), s}
	} else {
		a.failed.id, a.failed.standing = p.id, s
	}
	a.acknowledge(ctx, p, s)
	return false, failed
}

// ends reports whether the Applier or the instance is ending. An error then says nothing about the change.
func (a *Applier) ends(ctx context.Context, err error) bool {
	a.ending = a.ending || errors.Is(err, ErrStopping)
	return a.ending || ctx.Err() != nil
}

// drain takes the instance out of service. It gives up when the lock is lost, because another instance may be draining, too.
// After the drain, a change that has begun is finished.
func (a *Applier) drain(ctx context.Context, p plan) error {
	if p.how != AtOnce {
		held, cancel := a.owed.session.While(ctx)
		defer cancel()
		err := a.opts.Target.Drain(held, p.why)
		if errors.Is(context.Cause(held), session.ErrLost) {
			return session.ErrLost
		}
		return err
	}
	short, cancel := context.WithTimeout(ctx, atOnceDrain)
	defer cancel()
	if err := a.opts.Target.Drain(short, p.why); !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
		return err
	}
	return nil
}

// revert brings the instance back to what it ran, and back into service.
func (a *Applier) revert(ctx context.Context, p plan) error {
	limited, cancel := context.WithTimeout(ctx, a.opts.Timeout)
	defer cancel()
	err := p.change.Revert(limited)
	if p.how == calmly {
		return err
	}
	return errors.Join(err, a.opts.Target.Resume(limited))
}

func (a *Applier) resume(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, a.opts.Timeout)
	defer cancel()
	return a.opts.Target.Resume(limited)
}

// oneLine joins the messages of joined errors, each once.
func oneLine(err error) string {
	return strings.Join(slices.Compact(strings.Split(err.Error(), "\n")), "; ")
}
