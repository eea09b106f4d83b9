// Package agenttest is a Consul agent for tests.
package agenttest

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
)

// Agent behaves like a Consul agent (observed with Consul 1.20): a registration keeps the state of existing checks,
// maintenance mode is a check, and a service takes its checks with it. Use its fields within Do.
type Agent struct {
	mu       sync.Mutex
	Services map[string]*api.AgentService
	Checks   map[string]*api.AgentCheck
	Err      error            // error of every call
	Fail     map[string]error // by call, such as "services", or by call and ID, such as "drain vm:a:80"
	Hang     map[string]bool  // likewise: blocks until the caller gives up
	Lose     map[string]bool  // likewise: reports success without doing it
	Calls    map[string]int   // number of calls by name, with the total as "all"
	History  []string         // calls that register or deregister
	Lost     map[string]bool  // services that the catalog lacks
	NoNode   bool             // the catalog lacks the agent's node
	Hidden   bool             // the token may not read the node
}

// New returns an empty Agent.
func New() *Agent {
	return &Agent{
		Services: map[string]*api.AgentService{}, Checks: map[string]*api.AgentCheck{},
		Fail: map[string]error{}, Hang: map[string]bool{}, Calls: map[string]int{}, Lost: map[string]bool{},
	}
}

// Do calls f with exclusive access to the agent.
func (a *Agent) Do(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

// Forget makes the agent lose its state. Call it within Do.
func (a *Agent) Forget() {
	a.Services, a.Checks = map[string]*api.AgentService{}, map[string]*api.AgentCheck{}
}

// Called returns how often a call was made.
func (a *Agent) Called(what string) (n int) {
	a.Do(func() { n = a.Calls[what] })
	return n
}

// Check returns a check, the zero value without it.
func (a *Agent) Check(id string) (c api.AgentCheck) {
	a.Do(func() {
		if is := a.Checks[id]; is != nil {
			c = *is
		}
	})
	return c
}

// Registered returns the services' IDs, followed by ! in maintenance mode and by ? with a critical check.
func (a *Agent) Registered() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []string
	for _, id := range slices.Sorted(maps.Keys(a.Services)) {
		mark := ""
		for _, c := range a.Checks {
			switch {
			case c.ServiceID != id || c.Status != api.HealthCritical:
			case strings.HasPrefix(c.CheckID, api.ServiceMaintPrefix):
				mark = "!"
			case mark == "":
				mark = "?"
			}
		}
		out = append(out, id+mark)
	}
	return strings.Join(out, " ")
}

// Put registers a service. Call Put, Remove and Maintain within Do.
func (a *Agent) Put(r *api.AgentServiceRegistration) {
	a.Services[r.ID] = &api.AgentService{ID: r.ID, Service: r.Name, Tags: r.Tags, Meta: maps.Clone(r.Meta), Address: r.Address, Port: r.Port, Weights: *r.Weights}
	for _, c := range r.Checks {
		is := &api.AgentCheck{CheckID: c.CheckID, Name: c.Name, Status: c.Status, Notes: c.Notes, ServiceID: r.ID}
		if before := a.Checks[c.CheckID]; before != nil {
			is.Status, is.Output = before.Status, before.Output
		}
		a.Checks[c.CheckID] = is
	}
}

// Remove deregisters a service.
func (a *Agent) Remove(id string) {
	delete(a.Services, id)
	maps.DeleteFunc(a.Checks, func(_ string, c *api.AgentCheck) bool { return c.ServiceID == id })
}

// Maintain puts a service into maintenance mode.
func (a *Agent) Maintain(id, reason string) {
	check := api.ServiceMaintPrefix + id
	a.Checks[check] = &api.AgentCheck{CheckID: check, Status: api.HealthCritical, Notes: reason, ServiceID: id}
}

// call performs one call: it fails, hangs, or runs f.
func (a *Agent) call(ctx context.Context, name, id string, f func()) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.Calls["all"]++
	a.Calls[name]++
	if name == "register" || name == "deregister" {
		a.History = append(a.History, name)
	}
	if key := name + " " + id; a.Hang[name] || a.Hang[key] {
		a.mu.Unlock()
		<-ctx.Done()
		a.mu.Lock()
		return ctx.Err()
	} else if a.Fail[key] != nil {
		return a.Fail[key]
	}
	if a.Err != nil {
		return a.Err
	}
	if a.Fail[name] != nil {
		return a.Fail[name]
	}
	if !a.Lose[name+" "+id] {
		f()
	}
	return nil
}

// ServicesWithFilterOpts and the following methods are those of *api.Agent. Filters are ignored.
func (a *Agent) ServicesWithFilterOpts(_ string, q *api.QueryOptions) (out map[string]*api.AgentService, err error) {
	err = a.call(q.Context(), "services", "", func() { out = maps.Clone(a.Services) })
	return out, err
}

func (a *Agent) ChecksWithFilterOpts(_ string, q *api.QueryOptions) (out map[string]*api.AgentCheck, err error) {
	err = a.call(q.Context(), "checks", "", func() {
		out = map[string]*api.AgentCheck{}
		for id, c := range a.Checks {
			is := *c
			out[id] = &is
		}
	})
	return out, err
}

func (a *Agent) ServiceRegisterOpts(s *api.AgentServiceRegistration, _ api.ServiceRegisterOpts) error {
	// The options do not expose their context: use the usual deadline.
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	return a.call(ctx, "register", s.ID, func() { a.Put(s) })
}

func (a *Agent) ServiceDeregisterOpts(id string, q *api.QueryOptions) error {
	return a.call(q.Context(), "deregister", id, func() { a.Remove(id) })
}

func (a *Agent) CheckDeregisterOpts(id string, q *api.QueryOptions) error {
	return a.call(q.Context(), "check deregister", id, func() { delete(a.Checks, id) })
}

func (a *Agent) EnableServiceMaintenanceOpts(id, reason string, q *api.QueryOptions) error {
	held := true
	err := a.call(q.Context(), "enable", id, func() {
		if held = a.Services[id] != nil; held {
			a.Maintain(id, reason)
		}
	})
	return unlessHeld(held, id, err)
}

func (a *Agent) DisableServiceMaintenanceOpts(id string, q *api.QueryOptions) error {
	return a.call(q.Context(), "disable", id, func() { delete(a.Checks, api.ServiceMaintPrefix+id) })
}

func (a *Agent) UpdateTTLOpts(id, output, status string, q *api.QueryOptions) error {
	held := true
	err := a.call(q.Context(), "update", id, func() {
		is := a.Checks[id]
		if held = is != nil; held {
			is.Status, is.Output = status, output
		}
	})
	return unlessHeld(held, id, err)
}

// unlessHeld returns err, or an agent's error for an unknown object.
func unlessHeld(held bool, id string, err error) error {
	if !held {
		return api.StatusError{Code: 404, Body: "Unknown ID " + id}
	}
	return err
}

// NodeServiceList and Register are those of *api.Catalog. It has what the agent holds, except for what is lost.
func (a *Agent) NodeServiceList(_ string, q *api.QueryOptions) (list *api.CatalogNodeServiceList, meta *api.QueryMeta, err error) {
	for end := time.Now().Add(q.WaitTime); ; {
		list, meta = &api.CatalogNodeServiceList{}, &api.QueryMeta{LastIndex: 1}
		err = a.call(q.Context(), "catalog", "", func() {
			meta.ResultsFilteredByACLs = a.Hidden
			if a.NoNode || a.Hidden {
				return
			}
			list.Node = &api.Node{Node: "node"}
			for id, s := range a.Services {
				if meta.LastIndex++; !a.Lost[id] {
					list.Services = append(list.Services, s)
					meta.LastIndex += 1000
				}
			}
		})
		if err != nil || q.Context().Err() != nil || meta.LastIndex != q.WaitIndex || !time.Now().Before(end) {
			return list, meta, err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (a *Agent) Register(r *api.CatalogRegistration, q *api.WriteOptions) (*api.WriteMeta, error) {
	return nil, a.call(q.Context(), "put", r.Service.ID, func() {
		if r.SkipNodeUpdate && a.NoNode || r.SkipNodeUpdate == (r.Address != "") {
			panic("without its node a service cannot be put into the catalog")
		}
		a.NoNode = false
		delete(a.Lost, r.Service.ID)
	})
}
