package census

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"

	"github.com/hashicorp/consul/api"

	"berth/registrar/group/store"
)

// service is a service with its instances here.
type service struct {
	Service   string   `json:"service"`
	Status    string   `json:"status,omitempty"` // the worst one
	Wanted    *wanted  `json:"wanted,omitempty"` // the configuration, if one was applied
	Instances []member `json:"instances"`
	hidden
}

type wanted struct {
	Version uint64 `json:"version"`
	Sum     string `json:"sum"`
}

// severity orders the statuses from best to worst.
var severity = []string{api.HealthPassing, api.HealthWarning, api.HealthCritical, api.HealthMaint, unregistered}

// status returns a status of Consul's. It is critical if a check has an unknown status.
func status(aggregated string) string {
	if !slices.Contains(severity, aggregated) {
		return api.HealthCritical
	}
	return aggregated
}

// services returns the services that have an instance here. It makes no calls.
func (h *handler) services() any {
	type entry struct {
		Service   string   `json:"service"`
		Instances []string `json:"instances"` // service IDs
	}
	ids := map[string][]string{}
	for _, l := range h.Local() {
		ids[l.Service] = append(ids[l.Service], l.ID)
	}
	entries := []entry{}
	for _, name := range slices.Sorted(maps.Keys(ids)) {
		slices.Sort(ids[name])
		entries = append(entries, entry{name, slices.Compact(ids[name])})
	}
	return struct {
		Services []entry `json:"services"`
	}{entries}
}

func (h *handler) service(ctx context.Context, r *reading, name string, ids []string) (int, any, error) {
	s, err := h.here(ctx, r, name, ids)
	if err != nil {
		return 0, nil, err
	}
	reports, err := h.reports(ctx, r, name)
	if err != nil {
		return 0, nil, err
	}
	for i := range s.Instances {
		s.Instances[i].add(reports[s.Instances[i].ID], h.ShowSecrets)
	}
	key := store.Item{Service: name}.Key()
	config, err := get(ctx, h, r, key, func(q *api.QueryOptions) (*api.KVPair, *api.QueryMeta, error) { return h.Consul.KV().Get(key, q) })
	if config != nil {
		s.Wanted = &wanted{config.Flags, store.Sum(config.Value)}
	}
	s.hidden = r.named()
	return http.StatusOK, s, err
}

func (h *handler) health(ctx context.Context, r *reading, name string, ids []string) (int, any, error) {
	s, err := h.here(ctx, r, name, ids)
	if s.Status != api.HealthPassing && s.Status != api.HealthWarning {
		return http.StatusServiceUnavailable, s, err
	}
	return http.StatusOK, s, err
}

// here reads the status of a service's instances here. The agent reports it even without Consul's servers.
func (h *handler) here(ctx context.Context, r *reading, name string, ids []string) (service, error) {
	what := "the health of " + name
	known, err := get(ctx, h, r, what, func(q *api.QueryOptions) ([]api.AgentServiceChecksInfo, *api.QueryMeta, error) {
		out, err := h.agentHealth(name, q)
		return out, nil, err
	})
	if err == nil && len(r.named().Hidden) > 0 {
		err = fmt.Errorf("the token may not read %s", what)
	}
	if err != nil {
		return service{}, err
	}
	s := service{Service: name}
	for _, id := range ids {
		m := member{ID: id, Status: unregistered}
		for _, k := range known {
			if k.Service != nil && k.Service.ID == id {
				m.Status, m.Tags = status(k.AggregatedStatus), roles(k.Service.Tags)
				m.Address, m.Port = clip(k.Service.Address), k.Service.Port
			}
		}
		if slices.Index(severity, m.Status) > slices.Index(severity, s.Status) {
			s.Status = m.Status
		}
		s.Instances = append(s.Instances, m)
	}
	return s, nil
}

// agentHealth reads the instances of a service at the agent. Its answers use the status codes of health checks.
func (h *handler) agentHealth(name string, q *api.QueryOptions) (out []api.AgentServiceChecksInfo, err error) {
	_, err = h.Consul.Raw().Query("/v1/agent/health/service/name/"+name, &out, q)
	if status, ok := errors.AsType[api.StatusError](err); ok {
		switch status.Code {
		case http.StatusNotFound: // none is registered
			return nil, nil
		case http.StatusTooManyRequests, http.StatusServiceUnavailable: // warning or critical, unless the body says otherwise
			if json.Unmarshal([]byte(status.Body), &out) == nil {
				return out, nil
			}
		}
	}
	return out, err
}
