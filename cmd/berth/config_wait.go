package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"berth/registrar/group/store"
)

// order is what every instance of a service should do: run a version of its configuration, or restart.
type order struct {
	version uint64
	sum     string // of the version's text
	restart uint64
	before  *store.Halt // the halt that was there before the order and says nothing of it
}

func (o order) String() string {
	if o.restart > 0 {
		return "the restart"
	}
	return numbered(store.Header{Version: o.version})
}

// did describes an instance that has carried out the order.
func (o order) did() string {
	if o.restart > 0 {
		return "has restarted"
	}
	return "runs " + o.String()
}

// verdict says how far an instance is with an order.
type verdict struct {
	done bool
	text string // what the instance does instead
	runs string // what it runs meanwhile
}

// of returns how far an instance is.
func (o order) of(m store.Member) verdict {
	r := m.Report
	if r == nil {
		text := "does not report: no berth manages its configuration"
		if m.Err != "" {
			text = "its report cannot be read: " + visible(m.Err, "")
		}
		return verdict{text: text, runs: text}
	}
	runs, has := "runs "+numbered(store.Header{Version: r.Version}), r.Version == o.version && r.Sum == o.sum
	switch {
	case r.Version == 0 && r.Sum == "":
		runs = "runs no version"
	case r.Version == o.version && !has && o.restart == 0:
		runs += " with another text"
	}
	v := verdict{runs: runs}
	if o.restart > 0 {
		v.runs, has = "has not restarted", r.Restart >= o.restart
	}
	reason := visible(r.Reason, "")
	switch {
	case r.State == store.Failed && (has || o.restart > 0):
		v.text = "failed: " + reason
	case r.State == store.Failed:
		v.text = fmt.Sprintf("version %d failed: %s; it %s", r.FailedVersion, reason, runs)
	case r.State == store.Applying:
		v.text = "is applying it"
	case r.State == store.Waiting:
		v.text = cmp.Or(reason, "waits") + "; it " + runs
	case !has:
		v.text = v.runs
	case r.State != store.Applied: // of a version of berth to come
		v.text = runs + ", and reports the state " + strconv.Quote(r.State)
	case !m.Registered:
		v.text = runs + ", but is not registered in Consul"
	case !m.Ready:
		v.text = runs + ", but is not ready: a check in Consul does not pass"
	default:
		v.done, v.text = true, "applied"
	}
	return v
}

// halted returns the halt that an order has caused, or nil.
func (o order) halted(s store.Status) *store.Halt {
	h := s.Roll.Halted
	if h == nil || o.before != nil && *h == *o.before || o.restart == 0 && h.Version != o.version {
		return nil
	}
	return h
}

// undone returns a line for each instance that has not carried out the order, with the reason.
func (o order) undone(s store.Status) (lines []error) {
	halt := o.halted(s)
	seen := false
	for _, m := range s.Members {
		v := o.of(m)
		switch {
		case halt != nil && m.ID == halt.Instance:
			seen = true
			lines = append(lines, fmt.Errorf("%s: %s failed: %s", visible(m.ID, ""), o, visible(halt.Reason, "")))
		case v.done:
		case halt != nil:
			lines = append(lines, fmt.Errorf("%s: %s; the change was halted at %s", visible(m.ID, ""), v.runs, visible(halt.Instance, "")))
		default:
			lines = append(lines, fmt.Errorf("%s: %s", visible(m.ID, ""), v.text))
		}
	}
	if halt != nil && !seen {
		lines = append(lines, fmt.Errorf("%s (gone): %s failed: %s", visible(halt.Instance, ""), o, visible(halt.Reason, "")))
	}
	if len(s.Members) == 0 {
		lines = append(lines, errors.New("no instance is registered"))
	}
	return lines
}

// wait returns when every instance has carried out the order. When time runs out or nothing more will happen, it returns an error
// that names the rest. It prints each instance that is done.
func (g *groupStore) wait(ctx context.Context, o order, within time.Duration) error {
	limited, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	var last *store.Status
	var replaced error
	told := map[string]bool{}
	err := g.Watch(limited, g.service, func(s store.Status) bool {
		last = &s
		if w := s.Wanted; o.restart == 0 && (w.Version != o.version || w.Sum != o.sum) {
			replaced = fmt.Errorf("%s: %s was replaced by %s of %s", g.service, o, numbered(w.Header), cmp.Or(w.By, "somebody"))
			return true
		}
		done := 0
		for _, m := range s.Members {
			if o.of(m).done {
				done++
			}
		}
		for _, m := range s.Members {
			if o.of(m).done && !told[m.ID] {
				told[m.ID] = true
				fmt.Fprintf(g.stderr, "%s %s (%d of %d)\n", visible(m.ID, ""), o.did(), done, len(s.Members))
			}
		}
		return done > 0 && done == len(s.Members) || o.halted(s) != nil
	})
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s: stopped waiting for %s; its instances carry on", g.service, o)
	case replaced != nil:
		return replaced
	case err != nil && limited.Err() == nil:
		return fmt.Errorf("waiting for the instances of %s: %w", g.service, err)
	case last == nil:
		return fmt.Errorf("waiting for the instances of %s: Consul has not answered within %s: %w", g.service, within, err)
	}
	undone := o.undone(*last)
	if len(undone) == 0 {
		_, err := fmt.Fprintf(g.out, "%s: every instance %s (%d)\n", g.service, o.did(), len(last.Members))
		return err
	}
	if limited.Err() != nil {
		undone = append([]error{fmt.Errorf("%s: after %s not every instance %s", g.service, within, o.did())}, undone...)
	}
	return errors.Join(undone...)
}
