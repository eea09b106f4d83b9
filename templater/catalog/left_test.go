package catalog

import (
	"bytes"
	"cmp"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul/api"
)

// checked is an instance on a node with checks like "critical service" or "critical serfHealth".
func checked(node, id string, checks ...string) *api.ServiceEntry {
	e := &api.ServiceEntry{Node: &api.Node{Node: node}, Service: &api.AgentService{ID: id}}
	for _, c := range checks {
		status, of, _ := strings.Cut(c, " ")
		check := &api.HealthCheck{CheckID: of, Status: status}
		if of == "service" {
			check.ServiceID = id
		}
		e.Checks = append(e.Checks, check)
	}
	return e
}

// since sets the index at which an instance's node was added to the catalog.
func since(index uint64, e *api.ServiceEntry) *api.ServiceEntry {
	e.Node.CreateIndex = index
	return e
}

// Consul is asked for a node only if something that served is missing from it and the list does not prove that the node was
// always there. Then the meaning of its answer.
func TestLeft(t *testing.T) {
	const gone, there = "null", `{"Node": {"Node": "n1"}, "Services": {}}`
	const back, before = `{"Node": {"Node": "n1", "CreateIndex": 6}}`, `{"Node": {"Node": "n1", "CreateIndex": 5}}`
	for _, tt := range []struct {
		name     string
		before   []*api.ServiceEntry
		now      []*api.ServiceEntry
		answer   string
		status   int
		filtered bool
		asked    []string
		left     bool
		told     string // nodes logged as departed
		index    string // of the answer; "" = a newer one
	}{
		{"nothing has vanished", []*api.ServiceEntry{checked("n1", "a")}, []*api.ServiceEntry{checked("n1", "a"), checked("n1", "b")}, gone, 200, false, nil, false, "", ""},
		{"one of two", []*api.ServiceEntry{checked("n1", "a"), checked("n1", "b")}, []*api.ServiceEntry{since(5, checked("n1", "a"))}, back, 200, false, nil, false, "", ""},
		{"one of two, of a node that is back with the other", []*api.ServiceEntry{checked("n1", "a"), checked("n1", "b")}, []*api.ServiceEntry{since(6, checked("n1", "a"))}, back, 200, false, []string{"n1"}, true, "n1", ""},
		{"drained, of a node that is back", []*api.ServiceEntry{checked("n1", "a"), checked("n1", "b", "critical service")}, []*api.ServiceEntry{since(6, checked("n1", "a"))}, back, 200, false, nil, false, "", ""},
		{"all of a node that is there", []*api.ServiceEntry{checked("n1", "a"), checked("n2", "b")}, []*api.ServiceEntry{checked("n2", "b")}, there, 200, false, []string{"n1"}, false, "", ""},
		{"all of a node that is gone", []*api.ServiceEntry{checked("n1", "a"), checked("n2", "b")}, []*api.ServiceEntry{checked("n2", "b")}, gone, 200, false, []string{"n1"}, true, "n1", ""},
		{"all of a node that is back, without them", []*api.ServiceEntry{checked("n1", "a")}, nil, back, 200, false, []string{"n1"}, true, "n1", ""},
		{"all of a node that was there before", []*api.ServiceEntry{checked("n1", "a")}, nil, before, 200, false, []string{"n1"}, false, "", ""},
		{"of two nodes", []*api.ServiceEntry{checked("n1", "a"), checked("n2", "b")}, nil, gone, 200, false, []string{"n1", "n2"}, true, "n1 n2", ""},
		{"drained first", []*api.ServiceEntry{checked("n1", "a", "passing service", "critical service")}, nil, gone, 200, false, nil, false, "", ""},
		{"in maintenance", []*api.ServiceEntry{checked("n1", "a", "critical _node_maintenance")}, nil, gone, 200, false, nil, false, "", ""},
		{"one drained, the other not", []*api.ServiceEntry{checked("n1", "a", "critical service"), checked("n1", "b", "passing service")}, nil, gone, 200, false, []string{"n1"}, true, "n1", ""},
		{"cut off first", []*api.ServiceEntry{checked("n1", "a", "critical serfHealth", "passing service")}, nil, gone, 200, false, []string{"n1"}, true, "n1", ""},
		{"the token may not see it", []*api.ServiceEntry{checked("n1", "a")}, nil, gone, 200, true, []string{"n1"}, false, "", ""},
		{"the token may not ask", []*api.ServiceEntry{checked("n1", "a")}, nil, "Permission denied", 403, false, []string{"n1"}, false, "", ""},
		{"Consul cannot say", []*api.ServiceEntry{checked("n1", "a")}, nil, "No cluster leader", 500, false, []string{"n1"}, true, "", ""},
		{"the catalog is an earlier one", []*api.ServiceEntry{checked("n1", "a")}, nil, gone, 200, false, []string{"n1"}, true, "", "5"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			asked := make(chan string, 10)
			base := roundTrip(func(r *http.Request) (*http.Response, error) {
				asked <- strings.TrimPrefix(r.URL.Path, "/v1/catalog/node/")
				header := http.Header{"X-Consul-Index": {cmp.Or(tt.index, "7")}, "X-Consul-Lastcontact": {"0"}}
				if tt.filtered {
					header.Set(filteredHeader, "true")
				}
				return &http.Response{StatusCode: tt.status, Header: header, Body: io.NopCloser(strings.NewReader(tt.answer)), Request: r}, nil
			})
			var log bytes.Buffer
			c, err := NewClient(&api.Config{HttpClient: &http.Client{Transport: base}}, 0, time.Minute, slog.New(slog.NewTextHandler(&log, nil)))
			if err != nil {
				t.Fatal(err)
			}
			d, err := NewInstances("web")
			if err != nil {
				t.Fatal(err)
			}
			w := NewWatch(d, Options{Wait: time.Minute, Consul: c})
			defer w.Stop()
			if got := w.left(state{mode: trusting, believed: tt.before, index: 5}, answer{data: tt.now}); got != tt.left {
				t.Errorf("left is %v", got)
			}
			for _, node := range []string{"n1", "n2"} {
				said, want := strings.Contains(log.String(), "node="+node), strings.Contains(tt.told, node)
				if said != want {
					t.Errorf("said that %s has left: %v, want %v", node, said, want)
				}
			}
			close(asked)
			if got := slices.Sorted(func(yield func(string) bool) {
				for node := range asked {
					yield(node)
				}
			}); !slices.Equal(got, tt.asked) {
				t.Errorf("asked for %q, want %q", got, tt.asked)
			}
		})
	}
}

// The lists of consul-template's functions lack the index at which a node was added.
func TestVanishedFromALibrarysList(t *testing.T) {
	a, b := &dependency.HealthService{Node: "n1", ID: "a"}, &dependency.HealthService{Node: "n1", ID: "b"}
	if got := vanishedFrom([]*dependency.HealthService{a, b}, []*dependency.HealthService{a}, 5); !slices.Equal(got, []string{"n1"}) {
		t.Errorf("%q", got)
	}
	if got := vanishedFrom([]*dependency.HealthService{a}, []*dependency.HealthService{a, b}, 5); got != nil {
		t.Errorf("nothing has vanished: %q", got)
	}
}

// A node's departure is logged once a minute, and remembered no longer.
func TestTells(t *testing.T) {
	n := nodes{told: map[string]time.Time{}}
	now := time.Unix(0, 0)
	for _, step := range []struct {
		after time.Duration
		node  string
		want  bool
	}{
		{0, "a", true}, {time.Second, "a", false}, {0, "b", true}, {time.Minute, "b", false}, {2 * time.Minute, "a", true}, {0, "a", false},
	} {
		now = now.Add(step.after)
		if got := n.tells(step.node, now); got != step.want {
			t.Errorf("%s after %s: %v", step.node, now.Sub(time.Unix(0, 0)), got)
		}
	}
	if len(n.told) != 1 {
		t.Errorf("%v are remembered", n.told)
	}
}
