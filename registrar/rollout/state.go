package rollout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/registrar/group/session"
	"berth/registrar/retry"
)

// Prefix begins the keys of rollouts in Consul. They exist while a rollout runs, or after it was interrupted.
const Prefix = "berth/rollout/"

// Key returns the key of the rollout of a service. Its value is a State; the session of the running rollout holds it.
func Key(project, service string) string {
	return Prefix + url.PathEscape(project) + "/" + url.PathEscape(service)
}

// Phase is a step of a rollout.
type Phase string

// The phases of a batch. With stop-first, PhaseDrain and PhaseRemove come first.
const (
	PhaseCreate  Phase = "create"
	PhaseReady   Phase = "ready"
	PhaseMonitor Phase = "monitor"
	PhaseDrain   Phase = "drain"
	PhaseRemove  Phase = "remove"
	PhaseNext    Phase = "next" // the batch is done
)

// Who is the operator of a rollout, and where it runs.
type Who struct {
	By     string `json:"by"`               // user@host
	Engine string `json:"engine,omitempty"` // ID of the Docker Engine that has the containers
}

// State is the progress of a rollout. It is enough to continue it, or to roll its last batch back.
type State struct {
	Who
	Since time.Time `json:"since"`

	Options Options `json:"options"`
	Phase   Phase   `json:"phase"`

	Total int      `json:"total"` // containers to replace
	Todo  []string `json:"todo"`  // left for later batches
	// The batch: the containers before it, those of them that leave, and how many new ones exceed the leaving ones.
	Before []string `json:"before,omitempty"`
	Old    []string `json:"old,omitempty"`
	Extra  int      `json:"extra,omitempty"`
	// New are the batch's new containers, without failed ones that were removed.
	New []string `json:"new,omitempty"`

	Replaced int      `json:"replaced"`
	Failed   int      `json:"failed"`
	Reason   string   `json:"reason,omitempty"`   // why it paused
	Services []string `json:"services,omitempty"` // in Consul, of the old containers

	// Addresses are those of the service's instances, for the balancers' reports.
	Addresses []string `json:"addresses"`
}

// HeldError means that another rollout of the service is running.
type HeldError struct{ State }

func (e *HeldError) Error() string {
	return fmt.Sprintf("%s has been rolling it out since %s: wait for that to end", e.By, e.Since.Format(time.RFC3339))
}

// ErrNone means that no rollout was interrupted.
var ErrNone = errors.New("no rollout of it was interrupted")

// UnfinishedError means that a rollout was interrupted.
type UnfinishedError struct{ State }

func (e *UnfinishedError) Error() string {
	why := ""
	if e.Reason != "" {
		why = ": " + e.Reason
	}
	return fmt.Sprintf("the rollout that %s began at %s was interrupted%s: continue it with --resume, or undo its last step with --abort", e.By, e.Since.Format(time.RFC3339), why)
}

// ElsewhereError means that a rollout was interrupted whose containers another Docker Engine has.
type ElsewhereError struct {
	State
	Key string
}

func (e *ElsewhereError) Error() string {
	return fmt.Sprintf("the rollout that %s began at %s was interrupted on another Docker host: run --resume or --abort there, or, if that host is gone, 'consul kv delete %s'", e.By, e.Since.Format(time.RFC3339), e.Key)
}

// Lock is the right to roll a service out, and holds its State.
type Lock struct {
	Session *session.Session

	key    string
	consul *api.Client
	keeper *session.Keeper
}

// settled is how long attempts to take a seemingly free lock are repeated.
const settled = 3 * time.Second

// Take takes the lock of a service and writes the state there. The error is a *HeldError if another rollout holds the lock,
// and an *UnfinishedError or *ElsewhereError if an interrupted one has left its state.
func Take(ctx context.Context, consul *api.Client, keeper *session.Keeper, project, service string, begin State) (*Lock, error) {
	return take(ctx, consul, keeper, project, service, begin.Who, func(found *State) (State, error) {
		if found != nil {
			return State{}, &UnfinishedError{*found}
		}
		return begin, nil
	})
}

// TakeOver takes the lock of a service whose rollout was interrupted, and returns its State, or ErrNone if none was. It
// waits until the session of a killed berth has expired.
func TakeOver(ctx context.Context, consul *api.Client, keeper *session.Keeper, project, service string, who Who, waiting func(*HeldError)) (l *Lock, s State, err error) {
	deadline := time.Now().Add(2*session.TTL + session.LockDelay + settled)
	told := false
	for {
		l, err = take(ctx, consul, keeper, project, service, who, func(found *State) (State, error) {
			if found == nil {
				return State{}, ErrNone
			}
			s = *found
			s.Who, s.Reason = who, ""
			return s, nil
		})
		var held *HeldError
		if !errors.As(err, &held) || !time.Now().Before(deadline) {
			return l, s, err
		}
		if !told {
			told = true
			waiting(held)
		}
		if !retry.Pause(ctx, 200*time.Millisecond) {
			return nil, s, context.Cause(ctx)
		}
	}
}

// take takes a lock if decide accepts the present state; decide returns what to write.
func take(ctx context.Context, consul *api.Client, keeper *session.Keeper, project, service string, who Who, decide func(*State) (State, error)) (*Lock, error) {
	s, err := keeper.Session(ctx)
	if err != nil {
		return nil, err
	}
	l := &Lock{Session: s, key: Key(project, service), consul: consul, keeper: keeper}
	deadline := time.Now().Add(settled)
	for {
		pair, _, err := consul.KV().Get(l.key, new(api.QueryOptions).WithContext(ctx))
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", l.key, err)
		}
		var found *State
		same := &api.KVTxnOp{Verb: api.KVCheckNotExists, Key: l.key}
		if pair != nil {
			found = &State{}
			err := json.Unmarshal(pair.Value, found)
			if err == nil {
				err = found.Options.Validate()
			}
			if err != nil {
				return nil, fmt.Errorf("%s in Consul is not a rollout of this version of berth: %w", l.key, err)
			}
			found.By, found.Reason = strings.Map(printable, found.By), strings.Map(printable, found.Reason)
			if pair.Session != "" && pair.Session != s.ID {
				return nil, &HeldError{*found}
			}
			if found.Engine != "" && found.Engine != who.Engine { // containers of its state are none here
				return nil, &ElsewhereError{*found, l.key}
			}
			same = &api.KVTxnOp{Verb: api.KVCheckIndex, Key: l.key, Index: pair.ModifyIndex}
		}
		state, err := decide(found)
		if err != nil {
			return nil, err
		}
		value, err := json.Marshal(state)
		if err != nil {
			return nil, err
		}
		taken, answer, _, err := consul.KV().Txn(api.KVTxnOps{same, {Verb: api.KVLock, Key: l.key, Value: value, Session: s.ID}}, new(api.QueryOptions).WithContext(ctx))
		switch {
		case err != nil:
			return nil, fmt.Errorf("take %s: %w", l.key, err)
		case taken:
			return l, nil
		case time.Now().After(deadline):
			return nil, fmt.Errorf("take %s: %s", l.key, answer.Errors[0].What)
		}
		// Another rollout was faster, which the next look shows, or the lock-delay after the end of a session applies.
		if !retry.Pause(ctx, 100*time.Millisecond) {
			return nil, context.Cause(ctx)
		}
	}
}

// Save writes the state.
func (l *Lock) Save(ctx context.Context, s State) error {
	value, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return l.keeper.Acquire(ctx, l.Session, l.key, value)
}

// Leave releases the lock, and leaves the state for --resume and --abort.
func (l *Lock) Leave(ctx context.Context) error {
	return l.keeper.Release(ctx, l.Session, l.key, nil)
}

// Finish ends the rollout and removes its state, unless another rollout has taken it over.
func (l *Lock) Finish(ctx context.Context) error {
	pair, _, err := l.consul.KV().Get(l.key, new(api.QueryOptions).WithContext(ctx))
	switch {
	case err != nil:
		return fmt.Errorf("read %s: %w", l.key, err)
	case pair == nil:
		return nil
	case pair.Session != "" && pair.Session != l.Session.ID:
		return fmt.Errorf("delete %s: another rollout has it by now: %w", l.key, session.ErrLost)
	}
	deleted, _, err := l.consul.KV().DeleteCAS(pair, new(api.WriteOptions).WithContext(ctx))
	if err == nil && !deleted {
		err = errors.New("it has changed meanwhile")
	}
	if err != nil {
		return fmt.Errorf("delete %s: %w", l.key, err)
	}
	return nil
}
