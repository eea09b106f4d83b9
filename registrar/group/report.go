package group

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"time"

	"golang.org/x/time/rate"

	"berth/registrar/group/session"
	"berth/registrar/group/store"
	"berth/registrar/retry"
)

const (
	// Reports are written at once, but on average not more often than reportEvery.
	reportEvery, reportBurst = time.Second, 10
	// acknowledgeTime is how long the next instance waits at most for the report of this one.
	acknowledgeTime = 500 * time.Millisecond
)

// report is a store.Report to write.
type report struct {
	value   []byte
	written chan struct{} // closed when it is written
}

// say reports and logs the standing of the instance if it has changed. It does not wait.
func (a *Applier) say(s standing) (written <-chan struct{}) {
	r := store.Report{Instance: a.opts.Instance, Since: a.since, State: s.state, Reason: s.reason, FailedVersion: s.failed, Restart: a.carried}
	if a.have != nil {
		r.Version, r.Sum = a.have.Config.Version, a.have.Config.Sum
		if len(a.have.Files) > 0 {
			r.Files = map[string]uint64{}
		}
		for name, h := range a.have.Files {
			r.Files[name] = h.Version
		}
	}
	value, err := json.Marshal(r)
	if err != nil {
		panic(err) // cannot fail
	}
	if bytes.Equal(value, a.said) {
		return nil
	}
	a.said = value
	if s != a.logged {
		a.tell(s)
	}
	next := report{value, make(chan struct{})}
	a.reports.put(next)
	return next.written
}

// tell logs the standing of the instance.
func (a *Applier) tell(s standing) {
	a.logged = s
	args := []any{"version", a.wanted.Config.Version, "why", s.reason}
	switch s.state {
	case store.Applying:
		a.log.Info("applying a change to "+a.opts.Instance, args...)
	case store.Waiting:
		a.log.Info("a change is not applied to "+a.opts.Instance+" yet", args...)
	case store.Failed:
		a.log.Warn("a change is not applied to "+a.opts.Instance+", which keeps what it ran", args...)
	}
}

// acknowledge reports the standing after a change. The next instance gets the lock once the report is written, or a moment
// later.
func (a *Applier) acknowledge(ctx context.Context, p plan, s standing) {
	written := a.say(s)
	if p.how != Rolling || written == nil {
		return
	}
	select {
	case <-ctx.Done():
	case <-written:
	case <-time.After(acknowledgeTime):
	}
}

// write keeps the last report in Consul, held by the current session.
func (a *Applier) write(ctx context.Context) {
	var (
		r       report
		s       *session.Session
		key     = store.AppliedKey(a.opts.Service, a.opts.Instance)
		limit   = rate.NewLimiter(rate.Every(reportEvery), reportBurst)
		delays  = retry.Delays()
		lasting retry.Lasting
	)
	select {
	case <-ctx.Done():
		return
	case r = <-a.reports:
	}
	for {
		if s == nil {
			var err error
			if s, err = a.opts.Sessions.Session(ctx); err != nil {
				return
			}
		}
		if limit.Wait(ctx) != nil {
			return
		}
		select {
		case r = <-a.reports:
		default:
		}
		err := put(ctx, a, s, key, r.value)
		var retried <-chan time.Time
		if err == nil {
			if r.written != nil {
				close(r.written)
				r.written = nil
			}
			delays.Reset()
			if was, lasted := lasting.Over(time.Now()); was {
				a.log.Info(a.opts.Instance+" reports to Consul again", retry.For(lasted)...)
			}
		} else {
			if ctx.Err() != nil {
				return
			}
			if tell, lasts := lasting.Tell(err.Error(), time.Now()); tell && !errors.Is(err, session.ErrLost) {
				a.log.Warn(a.opts.Instance+" cannot report to Consul; trying again", append(retry.For(lasts), "key", key, "err", err)...)
			}
			retried = time.After(delays.NextBackOff())
		}
		select {
		case <-ctx.Done():
			return
		case r = <-a.reports:
		case <-s.Lost():
			s = nil
		case <-retried:
		}
	}
}

func put(ctx context.Context, a *Applier, s *session.Session, key string, value []byte) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	return a.opts.Sessions.Put(ctx, s, key, value)
}
