package group

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/registrar/group/session"
	"berth/registrar/group/store"
	"berth/registrar/retry"
)

// owed is the group's lock, to be released.
type owed struct {
	session *session.Session
	halted  *store.Halt // to leave in the lock
}

// lost reports whether another instance may have the lock by now.
func (o *owed) lost() bool {
	select {
	case <-o.session.Lost():
		return true
	default:
		return false
	}
}

// take tries to take the group's lock, which was free at the last read, and reports whether this instance has it. The
// transaction protects a Halt that another instance may have left there since.
func (a *Applier) take(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	s, err := a.opts.Sessions.Session(ctx)
	if err != nil {
		return false
	}
	now := lock{Roll: store.Roll{Holder: a.opts.Instance, Held: true, Since: time.Now().UTC(), Halted: a.lock.Halted}, session: s.ID}
	value, err := json.Marshal(now.Roll)
	if err != nil {
		panic(err) // cannot fail
	}
	same := &api.KVTxnOp{Verb: api.KVCheckIndex, Key: store.RollingKey(a.opts.Service), Index: a.lock.index}
	if a.lock.index == 0 {
		same = &api.KVTxnOp{Verb: api.KVCheckNotExists, Key: store.RollingKey(a.opts.Service)}
	}
	number, sent := a.asked.Add(1), time.Now()
	taken, answer, _, err := a.kv.Txn(api.KVTxnOps{same, {Verb: api.KVLock, Key: store.RollingKey(a.opts.Service), Value: value, Session: s.ID}},
		(&api.QueryOptions{}).WithContext(ctx))
	if !taken && err == nil { // another instance was faster, or the lock-delay after the end of a session applies
		for _, e := range answer.Errors {
			if strings.Contains(e.What, "invalid session") {
				a.opts.Sessions.Gone()
			}
		}
		return false
	}
	a.owed, a.mine = &owed{s, a.lock.Halted}, s             // after an error it may still have been taken
	if err != nil || time.Since(sent) > session.LockDelay { // a late answer may be outdated
		return false
	}
	a.known.lock, a.lock = number, now
	return true
}

// giveBack releases the group's lock, and reports whether that is settled. It has its own deadline, because ctx may be done.
func (a *Applier) giveBack(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTime)
	defer cancel()
	value, err := json.Marshal(store.Roll{Halted: a.owed.halted, Since: time.Now().UTC()})
	if err != nil {
		panic(err) // cannot fail
	}
	held, _, err := a.kv.Release(&api.KVPair{Key: store.RollingKey(a.opts.Service), Value: value, Session: a.owed.session.ID}, (&api.WriteOptions{}).WithContext(ctx))
	if err != nil {
		if tell, lasts := a.stuck.Tell(err.Error(), time.Now()); tell {
			a.log.Warn("cannot release the lock of the rolling change of "+a.opts.Service+"; trying again", append(retry.For(lasts), "err", err)...)
		}
		return false
	}
	if was, lasted := a.stuck.Over(time.Now()); was {
		a.log.Info("released the lock of the rolling change of "+a.opts.Service, retry.For(lasted)...)
	}
	if h := a.owed.halted; !held && h != nil && h.Instance == a.opts.Instance {
		a.unsaid = h
	}
	a.owed, a.gave = nil, a.asked.Add(1)
	return true
}
