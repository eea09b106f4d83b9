package census

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
	"golang.org/x/sync/errgroup"

	"berth/registrar/group/store"
)

const (
	maxReads   = 8     // from Consul, at a time
	maxGroups  = 500   // in the census
	maxMembers = 10000 // in the census
)

// unregistered is the status of an instance that Consul does not list; all others are Consul's own.
const unregistered = "unregistered"

// group is a service with its instances.
type group struct {
	Service string   `json:"service"`
	Leader  *leader  `json:"leader,omitempty"` // of a group with the topology leader, if an instance leads
	Members []member `json:"members"`
}

type leader struct {
	ID      string `json:"id"`
	Address string `json:"address"`
	Port    int    `json:"port"`
}

// member is an instance that is in the catalog or reports.
type member struct {
	ID            string     `json:"id"`
	Node          string     `json:"node,omitempty"`
	Address       string     `json:"address,omitempty"`
	Port          int        `json:"port,omitempty"`
	Status        string     `json:"status"`            // passing, warning, critical, maintenance or unregistered
	Tags          []string   `json:"tags,omitempty"`    // leader or follower
	Version       *uint64    `json:"version,omitempty"` // configuration version that it runs, 0 = none; nil = it does not report
	Sum           string     `json:"sum,omitempty"`     // checksum of the configuration's text
	Since         *time.Time `json:"since,omitempty"`
	State         string     `json:"state,omitempty"` // as in its store.Report
	Reason        string     `json:"reason,omitempty"`
	FailedVersion uint64     `json:"failed_version,omitempty"`
}

// hidden is embedded in answers that may be incomplete.
type hidden struct {
	Hidden []string `json:"hidden,omitempty"` // what the token may not read
}

// reading tracks the reads of an answer.
type reading struct {
	mu     sync.Mutex
	hidden []string
}

// named returns what the token may not read, as far as Consul said so.
func (r *reading) named() hidden {
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.Sort(r.hidden)
	return hidden{slices.Compact(r.hidden)}
}

func (r *reading) hide(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hidden = append(r.hidden, what)
}

// turn waits until fewer than maxReads are running.
func (h *handler) turn(ctx context.Context) (done func(), err error) {
	select {
	case h.reads <- struct{}{}:
		return func() { <-h.reads }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for other reads: Consul does not answer: %w", ctx.Err())
	}
}

// get reads something from Consul. If the token may not read it, the result is empty, and what is hidden is recorded.
func get[T any](ctx context.Context, h *handler, r *reading, what string, f func(*api.QueryOptions) (T, *api.QueryMeta, error)) (T, error) {
	var none T
	done, err := h.turn(ctx)
	if err != nil {
		return none, err
	}
	defer done()
	out, meta, err := f(new(api.QueryOptions).WithContext(ctx))
	var status api.StatusError
	var failed *url.Error
	switch {
	case errors.As(err, &status) && status.Code == http.StatusForbidden:
		r.hide(what)
		return none, nil
	case errors.As(err, &failed): // its text contains the whole URL
		return none, fmt.Errorf("read %s: Consul does not answer: %w", what, failed.Err)
	case err != nil:
		return none, fmt.Errorf("read %s: %w", what, err)
	case meta != nil && meta.ResultsFilteredByACLs:
		r.hide("some of " + what)
	}
	return out, nil
}

func (h *handler) census(ctx context.Context, r *reading) (int, any, error) {
	services, err := get(ctx, h, r, "the services in the catalog", func(q *api.QueryOptions) (map[string][]string, *api.QueryMeta, error) {
		return h.Consul.Catalog().Services(q)
	})
	if err != nil {
		return 0, nil, err
	}
	var names []string
	for name := range services {
		if store.ValidService(name) == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	names = names[:min(len(names), maxGroups)]
	groups := make([]group, len(names))
	all, ctx := errgroup.WithContext(ctx)
	all.SetLimit(maxReads)
	for i, name := range names {
		all.Go(func() (err error) {
			groups[i], err = h.group(ctx, r, name, services[name])
			return err
		})
	}
	if err := all.Wait(); err != nil {
		return 0, nil, err
	}
	members := 0
	for i, g := range groups {
		if members += len(g.Members); members > maxMembers {
			groups = groups[:i]
			break
		}
	}
	return http.StatusOK, struct {
		Groups  []group `json:"groups"`
		Omitted int     `json:"omitted,omitempty"` // services beyond the limits, or with names that berth does not use
		hidden
	}{groups, len(services) - len(groups), r.named()}, nil
}

// group reads a group. The tags are those of all its instances.
func (h *handler) group(ctx context.Context, r *reading, service string, tags []string) (group, error) {
	entries, err := get(ctx, h, r, "the instances of "+service, func(q *api.QueryOptions) ([]*api.ServiceEntry, *api.QueryMeta, error) {
		return h.Consul.Health().Service(service, "", false, q)
	})
	if err != nil {
		return group{}, err
	}
	reports, err := h.reports(ctx, r, service)
	if err != nil {
		return group{}, err
	}
	g := group{Service: service, Members: []member{}}
	for _, e := range entries {
		if e.Service == nil || e.Node == nil {
			continue
		}
		m := member{ID: e.Service.ID, Status: status(e.Checks.AggregatedStatus()), Node: clip(e.Node.Node), Port: e.Service.Port}
		m.Address, m.Tags = clip(cmp.Or(e.Service.Address, e.Node.Address)), roles(e.Service.Tags)
		m.add(reports[m.ID], h.ShowSecrets)
		g.Members = append(g.Members, m)
	}
	for id, report := range reports {
		if !slices.ContainsFunc(g.Members, func(m member) bool { return m.ID == id }) {
			m := member{ID: id, Status: unregistered}
			m.add(report, h.ShowSecrets)
			g.Members = append(g.Members, m)
		}
	}
	slices.SortFunc(g.Members, func(a, b member) int { return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Node, b.Node)) })
	for i := range g.Members {
		g.Members[i].ID = clip(g.Members[i].ID)
	}
	if roles(tags) != nil {
		g.Leader, err = h.leader(ctx, r, service)
	}
	return g, err
}

// roles returns the tags that name an instance's role.
func roles(tags []string) (out []string) {
	for _, tag := range []string{"leader", "follower"} {
		if slices.Contains(tags, tag) {
			out = append(out, tag)
		}
	}
	return out
}

// leader returns the leader of a group, or nil if it has none or none is known.
func (h *handler) leader(ctx context.Context, r *reading, service string) (*leader, error) {
	key := store.LeaderKey(service)
	lock, err := get(ctx, h, r, key, func(q *api.QueryOptions) (*api.KVPair, *api.QueryMeta, error) { return h.Consul.KV().Get(key, q) })
	if err != nil || lock == nil || lock.Session == "" {
		return nil, err
	}
	l := new(leader)
	if json.Unmarshal(lock.Value, l) != nil { // written by another program
		return nil, nil
	}
	return &leader{clip(l.ID), clip(l.Address), l.Port}, nil
}

// reports reads the reports of a service's instances, by service ID.
func (h *handler) reports(ctx context.Context, r *reading, service string) (map[string]store.Report, error) {
	prefix := store.AppliedPrefix(service)
	pairs, err := get(ctx, h, r, prefix, func(q *api.QueryOptions) (api.KVPairs, *api.QueryMeta, error) { return h.Consul.KV().List(prefix, q) })
	out := map[string]store.Report{}
	for _, pair := range pairs {
		id, bad := url.PathUnescape(strings.TrimPrefix(pair.Key, prefix))
		if bad != nil || id == "" {
			continue // no instance of berth has such a key
		}
		var report store.Report
		if err := json.Unmarshal(pair.Value, &report); err != nil {
			report = store.Report{State: "unknown", Reason: "its report cannot be read: " + err.Error()}
		}
		out[id] = report
	}
	return out, err
}

// add adds the instance's report. Missing and empty reports have no state.
func (m *member) add(r store.Report, showSecrets bool) {
	if r.State == "" {
		return
	}
	m.Version, m.Sum, m.State, m.FailedVersion = &r.Version, clip(r.Sum), clip(r.State), r.FailedVersion
	if !showSecrets {
		r.Reason = maskText(r.Reason[:min(len(r.Reason), 10*maxText)])
	}
	m.Reason = clip(r.Reason)
	if !r.Since.IsZero() {
		m.Since = &r.Since
	}
}
