//go:build e2e

package census

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/deploy/testenv"
	"berth/registrar/group/store"
)

// TestE2ECensus asks for two groups at a real Consul, with instances in each status, over HTTP. A token that may read only
// one of the groups learns that something is hidden.
func TestE2ECensus(t *testing.T) {
	const management = "7b9a1b3e-9d0d-4a55-8f8e-2f1c0b3e4d5a"
	address := testenv.FreeAddress(t, "127.0.0.1")
	consul := testenv.StartConsul(t, testenv.ConsulOptions{
		Name: testenv.Name(t) + "-consul", Address: address, Token: management,
		Docker: []string{"--publish", address + ":8500"},
		Args: []string{"-dev", "-client=0.0.0.0", "-node=e2e",
			`-hcl=acl { enabled = true, default_policy = "deny", tokens { initial_management = "` + management + `", agent = "` + management + `" } }`},
	})
	consul.Answers(t)
	register := func(service, id, status string, tags ...string) {
		t.Helper()
		if err := consul.Agent().ServiceRegister(&api.AgentServiceRegistration{ID: id, Name: service, Port: 8080, Address: "10.0.0.9", Tags: tags,
			Check: &api.AgentServiceCheck{TTL: "1h", Status: status}}); err != nil {
			t.Fatal(err)
		}
	}
	register("app", "app-1", api.HealthPassing, "leader", "v2")
	register("app", "app-2", api.HealthCritical, "follower")
	register("app", "app-3", api.HealthPassing, "follower")
	register("app-prod", "prod-1", api.HealthWarning)
	if err := consul.Agent().EnableServiceMaintenance("app-3", "test"); err != nil {
		t.Fatal(err)
	}
	s := store.New(consul.Client)
	if _, err := s.Apply(t.Context(), store.Item{Service: "app"}, store.Change{By: "ada@host", Format: "toml", Text: []byte("greeting = \"Sup\"\n[redis]\nurl = \"redis://u:hush@redis\"\n")}); err != nil {
		t.Fatal(err)
	}
	session, _, err := consul.Session().Create(&api.SessionEntry{TTL: "1h", Behavior: api.SessionBehaviorDelete}, nil)
	if err != nil {
		t.Fatal(err)
	}
	hold := func(key string, value any) {
		t.Helper()
		text, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		if ok, _, err := consul.KV().Acquire(&api.KVPair{Key: key, Value: text, Session: session}, nil); err != nil || !ok {
			t.Fatal(key, ok, err)
		}
	}
	hold(store.AppliedKey("app", "app-1"), store.Report{Instance: "app-1", Version: 1, State: store.Applied, Since: time.Now()})
	hold(store.AppliedKey("app", "app-2"), store.Report{Instance: "app-2", State: store.Failed, FailedVersion: 1, Reason: "not ready"})
	hold(store.AppliedKey("app", "app-4"), store.Report{Instance: "app-4", State: store.Waiting})
	hold(store.AppliedKey("app-prod", "prod-1"), store.Report{Instance: "prod-1", State: store.Applied})
	hold(store.LeaderKey("app"), leader{"app-1", "10.0.0.9", 8080})

	serve := func(client *api.Client) func(path string, out any) (code int) {
		server := httptest.NewServer(New(Options{Consul: client, Store: store.New(client), Log: slog.Default(), Local: func() []Local {
			return []Local{{"app", "app-1"}, {"app-prod", "prod-1"}}
		}}))
		t.Cleanup(server.Close)
		return func(path string, out any) int {
			t.Helper()
			r, err := server.Client().Get(server.URL + path)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Body.Close()
			if err := json.NewDecoder(r.Body).Decode(out); err != nil {
				t.Fatal(path, err)
			}
			return r.StatusCode
		}
	}
	type seen struct {
		Groups []group
		Hidden []string
	}
	all, some := serve(consul.Client), serve(consul.As(t, testenv.NewToken(t, consul.Client, `
		service "app-prod" { policy = "read" }
		node_prefix "" { policy = "read" }
		key_prefix "berth/applied/app-prod/" { policy = "list" }`).SecretID))

	var census seen
	testenv.Until(t, 30*time.Second, "the catalog has all", func() bool {
		census = seen{}
		code := all("/census", &census)
		return code == http.StatusOK && len(census.Groups) == 3 && len(census.Groups[0].Members) == 4 && census.Groups[0].Members[2].Status == api.HealthMaint
	})
	type row struct {
		id, status, state string
		version           int // -1 = it does not report
	}
	rows := map[string][]row{}
	for _, g := range census.Groups {
		for _, m := range g.Members {
			r := row{m.ID, m.Status, m.State, -1}
			if m.Version != nil {
				r.version = int(*m.Version)
			}
			rows[g.Service] = append(rows[g.Service], r)
		}
	}
	delete(rows, "consul")
	if want := map[string][]row{
		"app":      {{"app-1", "passing", "applied", 1}, {"app-2", "critical", "failed", 0}, {"app-3", "maintenance", "", -1}, {"app-4", "unregistered", "waiting", 0}},
		"app-prod": {{"prod-1", "warning", "applied", 0}},
	}; !reflect.DeepEqual(rows, want) || census.Hidden != nil {
		t.Errorf("%+v, hidden %q, want %+v", rows, census.Hidden, want)
	}
	if g := census.Groups[0]; !reflect.DeepEqual(g.Leader, &leader{"app-1", "10.0.0.9", 8080}) || !reflect.DeepEqual(g.Members[0].Tags, []string{"leader"}) {
		t.Errorf("%+v", g)
	}

	var part seen
	if code := some("/census", &part); code != http.StatusOK || len(part.Groups) != 1 || part.Groups[0].Members[0].State != store.Applied ||
		!reflect.DeepEqual(part.Hidden, []string{"some of the services in the catalog"}) {
		t.Errorf("%d %+v", code, part)
	}
	var answer map[string]any
	for _, tt := range []struct {
		ask  func(string, any) int
		path string
		code int
		want string
	}{
		{all, "/services/app.default/health", 200, `{"instances":[{"address":"10.0.0.9","id":"app-1","port":8080,"status":"passing","tags":["leader"]}],"service":"app","status":"passing"}`},
		{all, "/services/app.prod/health", 200, `{"instances":[{"address":"10.0.0.9","id":"prod-1","port":8080,"status":"warning"}],"service":"app-prod","status":"warning"}`},
		{all, "/services/consul/health", 404, `{"error":"consul has no instance here"}`},
		{some, "/services/app/health", 503, `{"error":"the token may not read the health of app"}`},
		{some, "/services/app-prod", 200, `{"hidden":["berth/config/app-prod"],"instances":[{"address":"10.0.0.9","id":"prod-1","port":8080,"state":"applied","status":"warning","version":0}],` +
			`"service":"app-prod","status":"warning"}`},
		{all, "/services/app/config", 200, `"greeting":"Sup","redis":{"url":"redis://***@redis"}`},
		{some, "/services/app/config", 503, `berth/config/app: Consul refuses it`},
	} {
		answer = nil
		code := tt.ask(tt.path, &answer)
		if got, _ := json.Marshal(answer); code != tt.code || !strings.Contains(string(got), tt.want) {
			t.Errorf("%s: %d %s, want %d %s", tt.path, code, got, tt.code, tt.want)
		}
	}
	// Critical, deregistered, and an agent that is away.
	for _, step := range []struct {
		do   func() error
		code int
		want string
	}{
		{func() error { return consul.Agent().UpdateTTL("service:app-1", "", api.HealthCritical) }, 503, api.HealthCritical},
		{func() error { return consul.Agent().ServiceDeregister("app-1") }, 503, unregistered},
		{func() error { consul.Do(t, "pause"); return nil }, 504, ""},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		testenv.Until(t, 30*time.Second, "the health is "+step.want, func() bool {
			var s service
			start := time.Now()
			code := all("/services/app/health", &s)
			if took := time.Since(start); took > patience+time.Second {
				t.Errorf("the answer came after %v", took)
			}
			return code == step.code && s.Status == step.want
		})
	}
	consul.Do(t, "unpause")
}
