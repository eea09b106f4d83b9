package store

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
	"golang.org/x/sync/errgroup"
)

// States of an instance.
const (
	Applied  = "applied"  // it runs Version
	Applying = "applying" // it drains, writes, restarts
	Waiting  = "waiting"  // for its turn, or for a restart by the operator: Reason
	Failed   = "failed"   // it runs Version because FailedVersion did not work: Reason
)

// Report is what an instance reports about itself. Its key is held by the instance's session, and vanishes with it.
type Report struct {
	Instance      string            `json:"instance"` // service ID
	Version       uint64            `json:"version"`  // of the configuration that it runs; 0 = none
	Sum           string            `json:"sum,omitempty"`
	Since         time.Time         `json:"since"`
	State         string            `json:"state"`
	Reason        string            `json:"reason,omitempty"`
	FailedVersion uint64            `json:"failed_version,omitempty"`
	Files         map[string]uint64 `json:"files,omitempty"`
	Restart       uint64            `json:"restart,omitempty"` // newest restart order carried out
}

// Roll is the state of a group's rolling change. It is the value of the lock, and stays there when the lock is released.
type Roll struct {
	Holder string    `json:"holder,omitempty"` // service ID of the applying instance, if Held
	Held   bool      `json:"-"`
	Since  time.Time `json:"since"`
	Halted *Halt     `json:"halted,omitempty"`
	Err    string    `json:"-"` // why the value cannot be read
}

// Halt means that a change was stopped because it failed on one instance.
type Halt struct {
	Wanted   string    `json:"wanted"`         // identity of the wanted state: Wanted.ID of package group
	Version  uint64    `json:"version"`        // of the configuration that failed
	Good     uint64    `json:"good,omitempty"` // the version that works
	Instance string    `json:"instance"`
	Reason   string    `json:"reason"`
	At       time.Time `json:"at"`
}

// Member is an instance that is in the catalog or reports.
type Member struct {
	ID, Node, Address string
	Port              int
	Registered, Ready bool    // in the catalog; passing there, and not in maintenance
	Report            *Report // nil = no report: nothing applies a configuration there
	Err               string  // why its Report cannot be read: it is from another program, or a later version of berth
}

// Status is the state of a service's configuration.
type Status struct {
	Service string
	Wanted  Version // the zero Version = none
	Roll    Roll
	Members []Member // by ID
}

// Status reads the whole status. It fails if a part cannot be read, or the token may not see everything.
func (s *Store) Status(ctx context.Context, service string) (Status, error) {
	if err := ValidService(service); err != nil {
		return Status{}, err
	}
	out := Status{Service: service}
	var reports api.KVPairs
	var entries []*api.ServiceEntry
	all, ctx := errgroup.WithContext(ctx)
	all.Go(func() (err error) {
		if out.Wanted, err = s.Current(ctx, Item{Service: service}); errors.Is(err, ErrNone) {
			return nil
		}
		return err
	})
	all.Go(func() error {
		pair, err := s.get(ctx, RollingKey(service))
		if pair != nil {
			out.Roll = parseRoll(pair)
		}
		return err
	})
	all.Go(func() (err error) {
		reports, err = s.list(ctx, AppliedPrefix(service))
		return err
	})
	all.Go(func() (err error) {
		entries, err = read(ctx, "the instances of "+service, func(q *api.QueryOptions) ([]*api.ServiceEntry, *api.QueryMeta, error) {
			return s.consul.Health().Service(service, "", false, q)
		})
		return err
	})
	if err := all.Wait(); err != nil {
		return Status{}, err
	}
	out.Members = members(service, entries, reports)
	return out, nil
}

func parseRoll(pair *api.KVPair) (r Roll) {
	if len(pair.Value) > 0 {
		if err := json.Unmarshal(pair.Value, &r); err != nil {
			r = Roll{Err: err.Error()}
		}
	}
	r.Held = pair.Session != ""
	return r
}

// members joins the catalog and the reports.
func members(service string, entries []*api.ServiceEntry, reports api.KVPairs) []Member {
	reporting := map[string]Member{}
	for _, pair := range reports {
		id, err := url.PathUnescape(strings.TrimPrefix(pair.Key, AppliedPrefix(service)))
		if err != nil || id == "" {
			continue // no instance of berth has such a key
		}
		m := Member{ID: id}
		r := new(Report)
		if err := json.Unmarshal(pair.Value, r); err != nil {
			m.Err = err.Error()
		} else {
			m.Report = r
		}
		reporting[id] = m
	}
	var out []Member
	for _, e := range entries {
		m := reporting[e.Service.ID]
		m.ID, m.Node, m.Port = e.Service.ID, e.Node.Node, e.Service.Port
		m.Address = cmp.Or(e.Service.Address, e.Node.Address)
		m.Registered, m.Ready = true, e.Checks.AggregatedStatus() == api.HealthPassing
		out = append(out, m)
	}
	for id, m := range reporting {
		if !slices.ContainsFunc(entries, func(e *api.ServiceEntry) bool { return e.Service.ID == id }) {
			out = append(out, m)
		}
	}
	slices.SortFunc(out, func(a, b Member) int { return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Node, b.Node)) })
	return out
}

// Missing says, by ID, what each instance does that does not run the wanted configuration or is not ready. It is empty if
// all instances run it and are ready. A service without an instance is missing one. If no configuration is wanted, being
// ready is enough.
func (s Status) Missing() []string {
	if len(s.Members) == 0 {
		return []string{s.Service + " has no instance"}
	}
	var out []string
	for _, m := range s.Members {
		var parts []string
		if s.Wanted.Sum != "" {
			parts = m.misses(s.Wanted, s.Roll.Halted)
		}
		switch {
		case !m.Registered:
			parts = append(parts, "is not in Consul's catalog")
		case !m.Ready:
			parts = append(parts, "is not passing in Consul")
		}
		if len(parts) > 0 {
			out = append(out, m.ID+": "+strings.Join(parts, ", "))
		}
	}
	return out
}

// misses says what keeps an instance from running a version, or returns nothing if it runs it.
func (m Member) misses(wanted Version, halted *Halt) []string {
	r := m.Report
	switch {
	case m.Err != "":
		return []string{"its report cannot be read: " + m.Err}
	case r == nil:
		return []string{"does not report: nothing applies a configuration there"}
	}
	runs := fmt.Sprintf("runs version %d", r.Version)
	switch right := r.Version == wanted.Version && r.Sum == wanted.Sum; {
	case right && r.State == Applied:
		return nil
	case r.Sum == "" && r.Version == 0:
		runs = "runs none yet"
	case !right && r.Version == wanted.Version:
		runs = fmt.Sprintf("runs another text of version %d", r.Version)
	}
	switch r.State {
	case Applied:
		return []string{runs}
	case Applying:
		return []string{runs, "applies now"}
	case Waiting:
		why := "waits for its turn"
		if r.Reason != "" {
			why = "waits: " + r.Reason
		} else if halted != nil && halted.Version == wanted.Version {
			why = fmt.Sprintf("waits: the change was stopped because version %d failed on %s", halted.Version, halted.Instance)
		}
		return []string{runs, why}
	case Failed:
		return []string{fmt.Sprintf("failed with version %d: %s", r.FailedVersion, cmp.Or(r.Reason, "no reason given")), runs}
	}
	return []string{runs, "its state is " + quote(r.State)}
}
