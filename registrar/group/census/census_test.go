package census

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/registrar/group/store"
)

// consul is a Consul without sockets: it answers known paths, and 404 elsewhere.
type consul struct {
	mu    sync.Mutex
	paths map[string]response
	calls map[string]int
	most  int // concurrent calls
	now   int
}

type response struct {
	code   int // 0 = 200
	body   any
	hidden bool          // Consul says that something is hidden
	hangs  bool          // until the caller gives up
	takes  time.Duration // delay of the answer
}

func (c *consul) RoundTrip(req *http.Request) (*http.Response, error) {
	path := req.URL.EscapedPath()
	c.mu.Lock()
	r, known := c.paths[path]
	c.calls[path]++
	c.now++
	c.most = max(c.most, c.now)
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.now--
	}()
	if r.hangs {
		<-req.Context().Done()
		return nil, req.Context().Err()
	}
	if r.takes > 0 {
		select {
		case <-time.After(r.takes):
		case <-req.Context().Done():
			return nil, req.Context().Err()
		}
	}
	w := httptest.NewRecorder()
	w.Header().Set("X-Consul-Index", "1")
	w.Header().Set("X-Consul-LastContact", "0")
	if r.hidden {
		w.Header().Set("X-Consul-Results-Filtered-By-ACLs", "true")
	}
	if !known {
		r.code = http.StatusNotFound
	}
	w.WriteHeader(cmp.Or(r.code, http.StatusOK))
	if text, ok := r.body.(string); ok {
		_, _ = w.WriteString(text)
	} else if r.body != nil {
		_ = json.NewEncoder(w).Encode(r.body)
	}
	return w.Result(), nil
}

func (c *consul) set(path string, r response) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paths[path] = r
}

func (c *consul) asked(path string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls[path]
}

func pairs(p ...*api.KVPair) response { return response{body: p} }

func report(r store.Report) []byte {
	value, _ := json.Marshal(r)
	return value
}

func entry(id, status string, tags ...string) *api.ServiceEntry {
	return &api.ServiceEntry{
		Node:    &api.Node{Node: "node-1", Address: "10.0.0.1"},
		Service: &api.AgentService{ID: id, Port: 80, Tags: tags},
		Checks:  api.HealthChecks{{CheckID: "service:" + id, Status: status}},
	}
}

var since = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

const (
	catalogPath = "/v1/catalog/services"
	agentApp    = "/v1/agent/health/service/name/app"
	configApp   = "/v1/kv/berth/config/app"
)

// newConsul has the services app, with two reporting instances and the leader app-1, and redis.
func newConsul() *consul {
	text := []byte("greeting = \"Sup\"\n")
	header, _ := json.Marshal(store.Header{Version: 7, By: "ada@host", At: since, Format: "toml", Sum: store.Sum(text)})
	maintenance := entry("app-2", api.HealthPassing, "follower", "v2")
	maintenance.Checks = append(maintenance.Checks, &api.HealthCheck{CheckID: "_service_maintenance:app-2", Status: api.HealthCritical})
	return &consul{calls: map[string]int{}, paths: map[string]response{
		catalogPath:                {body: map[string][]string{"app": {"follower", "leader", "v2"}, "redis": {}, "no/service": {}}},
		"/v1/health/service/app":   {body: []*api.ServiceEntry{maintenance, entry("app-1", api.HealthWarning, "leader")}},
		"/v1/health/service/redis": {body: []*api.ServiceEntry{entry("redis", api.HealthPassing)}},
		"/v1/kv/berth/applied/app/": pairs(
			&api.KVPair{Key: "berth/applied/app/app-1", Value: report(store.Report{Version: 7, Sum: "s", Since: since, State: store.Applied})},
			&api.KVPair{Key: "berth/applied/app/app-2", Value: report(store.Report{Version: 6, Since: since, State: store.Failed, Reason: "redis://u:hush@h is away", FailedVersion: 7})},
			&api.KVPair{Key: "berth/applied/app/app%2F3", Value: []byte("\xff\xfe")},
		),
		"/v1/kv/service/app/leader":  pairs(&api.KVPair{Session: "s", Value: []byte(`{"id":"app-1","address":"10.0.0.1","port":80}`)}),
		agentApp:                     {code: http.StatusServiceUnavailable, body: []any{health("app-1", api.HealthWarning), health("app-2", api.HealthMaint)}},
		configApp:                    pairs(&api.KVPair{Key: "berth/config/app", Flags: 7, Value: text}),
		"/v1/kv/berth/history/app/7": pairs(&api.KVPair{Key: "berth/history/app/7", Value: []byte(string(header) + "\n" + string(text))}),
	}}
}

func health(id, status string) map[string]any {
	return map[string]any{"AggregatedStatus": status, "Service": map[string]any{"ID": id, "Port": 80, "Tags": []string{"v2"}}}
}

type standing struct {
	http.Handler
	*consul
	log *strings.Builder
}

// newHandler returns the handler of a berth with app-1 and app-2 of app, and one instance of my.app.
func newHandler(change func(*consul, *Options)) standing {
	s := standing{consul: newConsul(), log: new(strings.Builder)}
	client, err := api.NewClient(&api.Config{Address: "consul", HttpClient: &http.Client{Transport: s.consul}})
	if err != nil {
		panic(err)
	}
	o := Options{Consul: client, Store: store.New(client), Log: slog.New(slog.NewTextHandler(s.log, nil)), Local: func() []Local {
		return []Local{{"app", "app-2"}, {"app", "app-1"}, {"my.app", "my"}, {"cron-prod", "cron"}}
	}}
	if change != nil {
		change(s.consul, &o)
	}
	s.Handler = New(o)
	return s
}

func (s standing) do(method, target string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest(method, target, nil))
	return w
}

func TestAnswers(t *testing.T) {
	const (
		app1 = `{"id":"app-1","node":"node-1","address":"10.0.0.1","port":80,"status":"warning","tags":["leader"],"version":7,"sum":"s","since":"2026-01-02T03:04:05Z","state":"applied"}`
		app2 = `{"id":"app-2","node":"node-1","address":"10.0.0.1","port":80,"status":"maintenance","tags":["follower"],"version":6,"since":"2026-01-02T03:04:05Z",` +
			`"state":"failed","reason":"redis://***@h is away","failed_version":7}`
		app3   = `{"id":"app/3","status":"unregistered","version":0,"state":"unknown","reason":"its report cannot be read: invalid character 'ÿ' looking for beginning of value"}`
		redis  = `{"service":"redis","members":[{"id":"redis","node":"node-1","address":"10.0.0.1","port":80,"status":"passing"}]}`
		leader = `"leader":{"id":"app-1","address":"10.0.0.1","port":80}`

		here1   = `{"id":"app-1","port":80,"status":"warning"`
		here2   = `{"id":"app-2","port":80,"status":"maintenance"`
		applied = `"sum":"SUM","applied_by":"ada@host","applied_at":"2026-01-02T03:04:05Z","format":"toml"`
		paths   = `{"error":"use /census, /services, /services/NAME, /services/NAME/config and /services/NAME/health"}`
	)
	for _, tt := range []struct {
		name, target string
		change       func(*consul, *Options)
		code         int
		want         string
	}{
		{"census", "/census", nil, 200, `{"groups":[{"service":"app",` + leader + `,"members":[` + app1 + `,` + app2 + `,` + app3 + `]},` + redis + `],"omitted":1}`},
		{"a leader's lock that is free", "/census", func(c *consul, _ *Options) {
			c.paths["/v1/kv/service/app/leader"] = pairs(&api.KVPair{Value: []byte(`{"id":"app-1"}`)})
			delete(c.paths, "/v1/kv/berth/applied/app/")
			c.paths["/v1/health/service/app"] = response{body: []any{&api.ServiceEntry{}, entry("app-1", "odd")}}
		}, 200, `{"groups":[{"service":"app","members":[{"id":"app-1","node":"node-1","address":"10.0.0.1","port":80,"status":"critical"}]},` + redis + `],"omitted":1}`},
		{"hidden things", "/census", func(c *consul, _ *Options) {
			c.paths[catalogPath] = response{body: map[string][]string{"app": {"leader"}}, hidden: true}
			c.paths["/v1/health/service/app"] = response{body: []any{entry("app-1", api.HealthPassing)}, hidden: true}
			c.paths["/v1/kv/berth/applied/app/"] = response{code: 403, body: "Permission denied: key list"}
			c.paths["/v1/kv/service/app/leader"] = response{code: 403, body: "Permission denied"}
		}, 200, `{"groups":[{"service":"app","members":[{"id":"app-1","node":"node-1","address":"10.0.0.1","port":80,"status":"passing"}]}],` +
			`"hidden":["berth/applied/app/","service/app/leader","some of the instances of app","some of the services in the catalog"]}`},
		{"no leader of Consul", "/census", func(c *consul, _ *Options) {
			c.paths["/v1/kv/berth/applied/redis/"] = response{code: 500, body: "No cluster leader"}
		}, 503, `{"error":"read berth/applied/redis/: Unexpected response code: 500 (No cluster leader)"}`},

		{"services", "/services", nil, 200, `{"services":[{"service":"app","instances":["app-1","app-2"]},{"service":"cron-prod","instances":["cron"]},{"service":"my.app","instances":["my"]}]}`},
		{"none", "/services", func(_ *consul, o *Options) { o.Local = func() []Local { return nil } }, 200, `{"services":[]}`},
		{"a service", "/services/app", nil, 200, `{"service":"app","status":"maintenance","wanted":{"version":7,"sum":"SUM"},"instances":[` + here1 +
			`,"version":7,"sum":"s","since":"2026-01-02T03:04:05Z","state":"applied"},` + here2 +
			`,"version":6,"since":"2026-01-02T03:04:05Z","state":"failed","reason":"redis://***@h is away","failed_version":7}]}`},
		{"a service, partly hidden", "/services/app", func(c *consul, _ *Options) {
			c.paths[configApp] = response{code: 403}
			c.paths["/v1/kv/berth/applied/app/"] = response{code: 404, hidden: true}
		}, 200, `{"service":"app","status":"maintenance","instances":[` + here1 + `},` + here2 + `}],"hidden":["berth/config/app","some of berth/applied/app/"]}`},
		{"the default group", "/services/app.default/health", nil, 503, `{"service":"app","status":"maintenance","instances":[` + here1 + `},` + here2 + `}]}`},
		{"a group", "/services/cron.prod/health", nil, 503, `{"service":"cron-prod","status":"unregistered","instances":[{"id":"cron","status":"unregistered"}]}`},
		{"a dot in the name", "/services/my.app/health", nil, 503, `{"service":"my.app","status":"unregistered","instances":[{"id":"my","status":"unregistered"}]}`},
		{"unknown", "/services/redis/health", nil, 404, `{"error":"redis has no instance here"}`},
		{"hostile", "/services/%ff%3Cb%3E%22/health", nil, 404, `{"error":"` + "\\ufffd" + `\u003cb\u003e\" has no instance here"}`},
		{"no name", "/services//health", nil, 404, `{"error":" has no instance here"}`},
		{"a slash at the end", "/services/app/health/", nil, 503, `{"service":"app","status":"maintenance","instances":[` + here1 + `},` + here2 + `}]}`},
		{"nothing there", "/services/app/x", nil, 404, paths},
		{"too deep", "/services/app/health/x", nil, 404, paths},
		{"elsewhere", "/", nil, 404, paths},

		{"warning", "/services/app/health", func(c *consul, _ *Options) {
			c.paths[agentApp] = response{code: 429, body: []any{health("app-1", api.HealthWarning), health("app-2", api.HealthPassing)}}
		}, 200, `{"service":"app","status":"warning","instances":[` + here1 + `},{"id":"app-2","port":80,"status":"passing"}]}`},
		{"passing", "/services/app/health", func(c *consul, o *Options) {
			o.Local = func() []Local { return []Local{{"app", "app-2"}} }
			c.paths[agentApp] = response{body: []any{health("app-1", api.HealthCritical), health("app-2", api.HealthPassing)}}
		}, 200, `{"service":"app","status":"passing","instances":[{"id":"app-2","port":80,"status":"passing"}]}`},
		{"one is critical", "/services/app/health", func(c *consul, _ *Options) {
			c.paths[agentApp] = response{code: 503, body: []any{health("app-1", api.HealthCritical), health("app-2", api.HealthPassing)}}
		}, 503, `{"service":"app","status":"critical","instances":[{"id":"app-1","port":80,"status":"critical"},{"id":"app-2","port":80,"status":"passing"}]}`},
		{"the agent refuses", "/services/app/health", func(c *consul, _ *Options) {
			c.paths[agentApp] = response{code: 403, body: "Permission denied"}
		}, 503, `{"error":"the token may not read the health of app"}`},
		{"the agent is busy", "/services/app/health", func(c *consul, _ *Options) {
			c.paths[agentApp] = response{code: 503, body: "try again"}
		}, 503, `{"error":"read the health of app: Unexpected response code: 503 (try again)"}`},

		{"a configuration", "/services/app/config", nil, 200, `{"service":"app","version":7,` + applied + `,"text":"greeting = \"Sup\"\n"}`},
		{"merged", "/services/app/config", func(_ *consul, o *Options) {
			o.Merged = func(s string) (map[string]any, bool) { return map[string]any{"greeting": s, "token": "hush"}, true }
		}, 200, `{"service":"app","version":7,` + applied + `,"text":"greeting = \"Sup\"\n","merged":{"greeting":"app","token":"***"}}`},
		{"not merged here", "/services/app/config", func(_ *consul, o *Options) {
			o.Merged = func(string) (map[string]any, bool) { return nil, false }
		}, 200, `{"service":"app","version":7,` + applied + `,"text":"greeting = \"Sup\"\n"}`},
		{"none was applied", "/services/app/config", func(c *consul, _ *Options) { delete(c.paths, configApp) }, 200, `{"service":"app","version":0}`},
		{"by hand, with a secret", "/services/app/config", withText("db:\n  Password: hush\n"), 200,
			`{"service":"app","version":0,"sum":"SUM","by_hand":true,"format":"yaml","text_omitted":"it may hold secrets: see table","table":{"db":{"Password":"***"}}}`},
		{"a secret in a comment", "/services/app/config", withText("# password = hush\na = 1\n"), 200,
			`{"service":"app","version":0,"sum":"SUM","by_hand":true,"format":"toml","text_omitted":"it may hold secrets: see table","table":{"a":1}}`},
		{"no table", "/services/app/config", withText("hush\n"), 200,
			`{"service":"app","version":0,"sum":"SUM","by_hand":true,"text_omitted":"it is neither TOML nor YAML nor JSON, and may hold secrets"}`},
		{"binary", "/services/app/config", withText("\xff"), 200, `{"service":"app","version":0,"sum":"SUM","by_hand":true,"text_omitted":"it is not UTF-8"}`},
		{"all is shown", "/services/app/config", func(c *consul, o *Options) {
			withText("password = 'hush'\n")(c, o)
			o.ShowSecrets, o.Merged = true, func(string) (map[string]any, bool) { return map[string]any{"token": "hush"}, true }
		}, 200, `{"service":"app","version":0,"sum":"SUM","by_hand":true,"text":"password = 'hush'\n","merged":{"token":"hush"}}`},
		{"refused", "/services/app/config", func(c *consul, _ *Options) { c.paths[configApp] = response{code: 403, body: "Permission denied"} }, 503,
			`{"error":"read berth/config/app: Consul refuses it: Permission denied"}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newHandler(tt.change)
			w := s.do("GET", tt.target)
			if config, ok := s.paths[configApp].body.([]*api.KVPair); ok {
				tt.want = strings.ReplaceAll(tt.want, "SUM", store.Sum(config[0].Value))
			}
			if w.Code != tt.code || strings.TrimSpace(w.Body.String()) != tt.want {
				t.Errorf("%d\n%s\nwant %d\n%s", w.Code, w.Body, tt.code, tt.want)
			}
			if got := w.Header().Get("Content-Type"); got != "application/json" {
				t.Errorf("it is %s", got)
			}
			head := s.do("HEAD", tt.target)
			if head.Code != w.Code || head.Body.Len() > 0 || head.Header().Get("Content-Length") != fmt.Sprint(w.Body.Len()) {
				t.Errorf("HEAD: %d %v %s", head.Code, head.Header(), head.Body)
			}
		})
	}
}

// withText is a configuration written by another program.
func withText(text string) func(*consul, *Options) {
	return func(c *consul, _ *Options) {
		c.paths[configApp] = pairs(&api.KVPair{Key: "berth/config/app", Value: []byte(text)})
	}
}

func TestReadOnly(t *testing.T) {
	s := newHandler(nil)
	for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT"} {
		w := s.do(method, "/services/app/config")
		if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "GET, HEAD" || !json.Valid(w.Body.Bytes()) {
			t.Errorf("%s: %d %v %s", method, w.Code, w.Header(), w.Body)
		}
	}
	if len(s.calls) > 0 {
		t.Errorf("Consul was asked: %v", s.calls)
	}
}

// However Consul hangs, each answer comes in time and says what is missing; then Consul is asked again.
func TestHangs(t *testing.T) {
	for target, hangs := range map[string]string{
		"/census":              catalogPath,
		"/census?x=1":          "/v1/kv/service/app/leader",
		"/services/app":        agentApp,
		"/services/app/health": agentApp,
		"/services/app/config": configApp,
	} {
		synctest.Test(t, func(t *testing.T) {
			s := newHandler(nil)
			was := s.paths[hangs]
			s.set(hangs, response{hangs: true})
			start := time.Now()
			w := s.do("GET", target)
			if took := time.Since(start); w.Code != http.StatusGatewayTimeout || took != deadline || !strings.Contains(w.Body.String(), "does not answer") {
				t.Errorf("%s: after %v: %d %s", target, took, w.Code, w.Body)
			}
			if strings.Count(s.log.String(), "level=WARN") != 1 {
				t.Errorf("%s: the log is %s", target, s.log)
			}
			s.set(hangs, was)
			time.Sleep(2 * fresh)
			if w := s.do("GET", target); w.Code == http.StatusGatewayTimeout || !strings.Contains(s.log.String(), "again") {
				t.Errorf("%s: %d %s, and the log is %s", target, w.Code, w.Body, s.log)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		s := newHandler(func(c *consul, _ *Options) { c.paths[catalogPath] = response{hangs: true} })
		if w := s.do("GET", "/services"); w.Code != http.StatusOK {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	})
}

// Many simultaneous requests cost as much as one. They get the same answer, even if the first client has gone.
func TestShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newHandler(func(c *consul, _ *Options) {
			services := map[string][]string{}
			for n := range maxGroups + 10 {
				services[fmt.Sprintf("s%03d", n)] = nil
				c.paths[fmt.Sprintf("/v1/health/service/s%03d", n)] = response{body: []any{}, takes: time.Millisecond}
			}
			c.paths[catalogPath] = response{body: services, takes: time.Second}
		})
		gone, leave := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() {
			s.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(gone, "GET", "/census", nil))
		})
		synctest.Wait()
		leave()
		for range 200 {
			all.Go(func() {
				var got struct {
					Groups  []group
					Omitted int
				}
				w := s.do("GET", "/census")
				if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || len(got.Groups) != maxGroups || got.Omitted != 10 {
					t.Errorf("%d %.100s: %v", w.Code, w.Body, err)
				}
			})
		}
		all.Wait()
		s.do("GET", "/census")
		if asked := s.asked(catalogPath); asked != 1 || s.most > maxReads {
			t.Errorf("Consul was asked %d times, and up to %d calls at a time", asked, s.most)
		}
		time.Sleep(2 * fresh)
		s.do("GET", "/census")
		if asked := s.asked(catalogPath); asked != 2 {
			t.Errorf("later, Consul was asked %d times", asked)
		}
	})
}

// While Consul hangs, requests for other things do not wait longer either, and no more calls are made.
func TestNoPile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newHandler(func(c *consul, o *Options) {
			var local []Local
			for n := range 50 {
				local = append(local, Local{fmt.Sprint("s", n), fmt.Sprint("s", n)})
				c.paths[fmt.Sprint("/v1/agent/health/service/name/s", n)] = response{hangs: true}
			}
			o.Local = func() []Local { return local }
		})
		start := time.Now()
		var all sync.WaitGroup
		for n := range 500 {
			all.Go(func() {
				w := s.do("GET", fmt.Sprintf("/services/s%d/health", n%50))
				if took := time.Since(start); w.Code != http.StatusGatewayTimeout || took > patience {
					t.Errorf("after %v: %d %s", took, w.Code, w.Body)
				}
			})
		}
		all.Wait()
		if s.most > maxReads {
			t.Errorf("%d calls at a time", s.most)
		}
	})
}

// Data that a neighbour sends without limits is passed on only within limits.
func TestBounds(t *testing.T) { synctest.Test(t, testBounds) } // independent of the machine's speed

func testBounds(t *testing.T) {
	long := strings.Repeat("\x01", 20_000)
	s := newHandler(func(c *consul, _ *Options) {
		var entries []*api.ServiceEntry
		var reports []*api.KVPair
		for n := range 5 {
			id := fmt.Sprint(n, long)
			e := entry(id, api.HealthPassing, long)
			e.Node.Node, e.Service.Address = long, long
			entries = append(entries, e)
			reports = append(reports, &api.KVPair{Key: "berth/applied/app/" + id, Value: report(store.Report{State: long, Reason: long, Sum: long})})
		}
		c.paths["/v1/health/service/app"], c.paths["/v1/kv/berth/applied/app/"] = response{body: entries}, pairs(reports...)
	})
	if w := s.do("GET", "/census"); w.Code != http.StatusOK || w.Body.Len() > 300_000 || !json.Valid(w.Body.Bytes()) {
		t.Errorf("%d, %d bytes", w.Code, w.Body.Len())
	}

	s = newHandler(func(c *consul, _ *Options) {
		var entries []*api.ServiceEntry
		for n := range maxMembers + 1 {
			entries = append(entries, entry(fmt.Sprint(n), api.HealthPassing))
		}
		c.paths["/v1/health/service/app"] = response{body: entries}
	})
	if w := s.do("GET", "/census"); !strings.Contains(w.Body.String(), `{"groups":[],"omitted":3}`) {
		t.Errorf("%d %.100s", w.Code, w.Body)
	}
	s = newHandler(func(c *consul, o *Options) {
		o.Merged = func(string) (map[string]any, bool) {
			return map[string]any{"a": strings.Repeat("\x01", maxTable-100)}, true
		}
	})
	if w := s.do("GET", "/services/app/config"); w.Code != http.StatusInsufficientStorage || w.Body.Len() > 1000 {
		t.Errorf("%d, %d bytes", w.Code, w.Body.Len())
	}
}
