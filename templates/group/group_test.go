package group

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/consul-template/template"
	"github.com/hashicorp/consul/api"
)

// in is an instance in the catalog, on the host in its ID.
type in struct {
	id      string
	index   uint64 // at which it was registered
	state   string // "" = passing
	tags    []string
	address string // of the service
	node    string // its address is 10.0.0.9
	port    int    // 0 = 80
	changed uint64 // the index; 0 = as registered
}

func (i in) entry() *api.ServiceEntry {
	checks := api.HealthChecks{{ServiceID: i.id, Status: api.HealthPassing}}
	switch i.state {
	case "":
	case api.HealthMaint:
		checks = append(checks, &api.HealthCheck{CheckID: "_service_maintenance:" + i.id, ServiceID: i.id, Status: api.HealthCritical})
	default:
		checks[0].Status = i.state
	}
	port := i.port
	if port == 0 {
		port = 80
	}
	node := i.node
	if node == "" {
		node = "n1"
	}
	return &api.ServiceEntry{
		Node: &api.Node{Node: node, Address: "10.0.0.9"},
		Service: &api.AgentService{
			ID: i.id, Service: "s", Address: i.address, Port: max(port, 0), Tags: i.tags, Meta: map[string]string{"zone": "a"},
			CreateIndex: i.index, ModifyIndex: max(i.index, i.changed),
		},
		Checks: checks,
	}
}

// catalog is the instances of services, and the recorded queries.
type catalog struct {
	services map[string][]in
	asked    []string
}

func (c *catalog) ask(service string) []*api.ServiceEntry {
	c.asked = append(c.asked, service)
	var list []*api.ServiceEntry
	for _, i := range c.services[service] {
		list = append(list, i.entry())
	}
	return list
}

// render executes a text in consul-template's language.
func render(text string, o Options, c *catalog) (string, error) {
	compiled, err := template.NewTemplate(&template.NewTemplateInput{
		Contents: text, ExtFuncMap: Funcs(o)(func(string) {}, c.ask),
	})
	if err != nil {
		return "", err
	}
	result, err := compiled.Execute(&template.ExecuteInput{Brain: template.NewBrain()})
	if err != nil {
		_, cause, _ := strings.Cut(err.Error(), "error calling ")
		return "", fmt.Errorf("%s", cause)
	}
	return string(result.Output), nil
}

func TestConfig(t *testing.T) {
	long := strings.Repeat("x", 10_000)
	o := Options{Config: func() map[string]any {
		return map[string]any{
			"greeting": `Sup "you"`, "port": int64(8080), "ratio": 0.5, "debug": false, "unset": nil,
			"hosts": []any{"a", "b"}, "mixed": []any{int64(1), "a", []any{"c"}}, "none": []any{},
			"db":              map[string]any{"host": "::1", "pool": map[string]any{"max": int64(5)}},
			"www.example.com": map[string]any{"a.b": "dotted"}, "dotted.key": map[string]any{"in": "it"},
			"servers": []any{map[string]any{"name": "one", "tags": []any{"x", "y"}}},
		}
	}}
	for _, tt := range []struct{ text, want, fails string }{
		{text: `{{ cfg "greeting" }} {{ cfg "port" }} {{ cfg "ratio" }} {{ cfg "debug" }}`, want: `Sup "you" 8080 0.5 false`},
		{text: `{{ if cfg "debug" }}on{{ else }}off{{ end }} {{ cfg "port" | add 1 }}`, want: "off 8081"},
		{text: `{{ cfg "db.host" }} {{ cfg "db" "host" }} {{ (cfg "db").host }} {{ (cfg).db.host }}`, want: "::1 ::1 ::1 ::1"},
		{text: `{{ cfg "db.pool.max" }} {{ cfg "db" "pool.max" }} {{ cfg "db" "pool" "max" }}`, want: "5 5 5"},
		{text: `{{ cfg "www.example.com" "a.b" }} {{ cfg "dotted.key" "in" }}`, want: "dotted it"},
		{text: `{{ range cfg "hosts" }}<{{ . }}>{{ end }} {{ cfg "hosts" | join "," }} {{ len (cfg "none") }}`, want: "<a><b> a,b 0"},
		{text: `{{ range cfg "servers" }}{{ .name }} {{ .tags | join "+" }}{{ end }}`, want: "one x+y"},
		{text: `{{ cfg "mixed" | toJSON }} {{ cfg "db" | toJSON }} {{ cfg "none" | toJSON }}`, want: `[1,"a",["c"]] {"host":"::1","pool":{"max":5}} []`},
		{text: `{{ cfg "db" | toTOML }}`, want: "host = \"::1\"\n\n[pool]\n  max = 5"},
		{text: `{{ cfg "db" | toYAML }}`, want: "host: ::1\npool:\n  max: 5"},
		{text: `{{ range $key, $value := cfg "db" }}{{ $key }} {{ end }}`, want: "host pool "},
		{text: `{{ cfg "greetng" }}`, fails: `cfg: there is no key "greetng" (did you mean "greeting"?)`},
		{text: `{{ cfg "Greeting" }}`, fails: `cfg: there is no key "Greeting" (did you mean "greeting"?)`},
		{text: `{{ cfg "db.hst" }}`, fails: `cfg: there is no key "db.hst" (did you mean "db.host"?)`},
		{text: `{{ cfg "db.pol.max" }}`, fails: `cfg: there is no key "db.pol" (did you mean "db.pool"?)`},
		{text: `{{ cfg "db" "pol" "max" }}`, fails: `cfg: there is no key "db.pol" (did you mean "db.pool"?)`},
		{text: `{{ cfg "colour" }}`, fails: `cfg: there is no key "colour": give it a default, or use cfgOrDefault`},
		{text: `{{ cfg "" }}`, fails: `cfg: there is no key "": give`},
		{text: `{{ cfg "unset" }}`, fails: `cfg: there is no key "unset": give`},
		{text: `{{ cfg "` + long + `" }}`, fails: `cfg: there is no key "xxxx`},
		{text: `{{ cfg "a\nb" }}`, fails: `cfg: there is no key "a\nb": give`},
		{text: `{{ cfg "db.host.name" }}`, fails: `cfg: there is no key "db.host.name", because "db.host" is a string, not a table`},
		{text: `{{ cfg "hosts" "0" }}`, fails: `cfg: there is no key "hosts.0", because "hosts" is a list, not a table`},
		{text: `{{ cfgOrDefault "db.host" "x" }} {{ cfgOrDefault "db.hst" "x" }} {{ cfgOrDefault "db" "user" "root" }} {{ cfgOrDefault "unset" 7 }}`, want: "::1 x root 7"},
		{text: `{{ cfgOrDefault "debug" true }}`, want: "false"},
		{text: `{{ cfgOrDefault "db" }}`, fails: `cfgOrDefault: a default is missing after the key "db"`},
		{text: `{{ cfgOrDefault "db" 1 "x" }}`, fails: `cfgOrDefault: keys are strings, and the last argument is the default: 1 is no key`},
		{text: `{{ cfgOrDefault "port.x" 1 }}`, fails: `cfgOrDefault: there is no key "port.x", because "port" is a single value, not a table`},
	} {
		got, err := render(tt.text, o, &catalog{})
		if fails := fmt.Sprint(err); got != tt.want || (err == nil) != (tt.fails == "") || err != nil && !strings.HasPrefix(fails, tt.fails) {
			t.Errorf("%.100s\n got %q %.300v\nwant %q %s", tt.text, got, err, tt.want, tt.fails)
		}
		if err != nil && len(err.Error()) > 500 {
			t.Errorf("%.100s: an error of %d bytes", tt.text, len(err.Error()))
		}
	}
	for _, none := range []Options{{}, {Config: func() map[string]any { return nil }}} {
		if got, err := render(`{{ len (cfg) }} {{ cfgOrDefault "a" 1 }}`, none, &catalog{}); got != "0 1" {
			t.Errorf("without a configuration: %q %v", got, err)
		}
	}
}

// A template cannot modify the configuration for others.
func TestConfigIsCopied(t *testing.T) {
	table := map[string]any{"db": map[string]any{"host": "a"}}
	o := Options{Config: func() map[string]any { return table }}
	got, err := render(`{{ $db := cfg "db" }}{{ sprig_set $db "host" "b" | len }} {{ cfg "db" "host" }}`, o, &catalog{})
	if got != "1 a" {
		t.Errorf("%q %v", got, err)
	}
}

func TestBind(t *testing.T) {
	const text = `{{ with bind "redis" }}{{ .Name }} {{ .Service }} {{ .Host }} {{ .Port }} {{ .Address }}:
	{{- range .Instances }} {{ .ID }}={{ .Address }}{{ end }}{{ else }}none{{ end }}`
	three := []in{{id: "a", index: 30, address: "10.0.0.1"}, {id: "b", index: 20, address: "10.0.0.2"}, {id: "c", index: 40, address: "10.0.0.3"}}
	with := func(more ...in) []in { return append(slices.Clone(three), more...) }
	for _, tt := range []struct {
		name string
		is   []in
		want string
	}{
		{"nobody", nil, "none"},
		{"the oldest", three, "redis redis-prod 10.0.0.2 80 10.0.0.2:80: a=10.0.0.1:80 b=10.0.0.2:80 c=10.0.0.3:80"},
		{"younger ones come", with(in{id: "0", index: 50, address: "10.0.0.0"}), "redis redis-prod 10.0.0.2 80 10.0.0.2:80: 0=10.0.0.0:80 a=10.0.0.1:80 b=10.0.0.2:80 c=10.0.0.3:80"},
		{"others go", three[1:2], "redis redis-prod 10.0.0.2 80 10.0.0.2:80: b=10.0.0.2:80"},
		{"the leader", []in{three[1], {id: "c", index: 40, address: "10.0.0.3", tags: []string{"x", "leader"}}}, "redis redis-prod 10.0.0.3 80 10.0.0.3:80: b=10.0.0.2:80 c=10.0.0.3:80"},
		{
			"two leaders", []in{{id: "a", index: 1, changed: 9, tags: []string{"leader"}, address: "10.0.0.1"}, {id: "b", index: 2, changed: 8, tags: []string{"leader"}, address: "10.0.0.2"}},
			"redis redis-prod 10.0.0.1 80 10.0.0.1:80: a=10.0.0.1:80 b=10.0.0.2:80",
		},
		{
			"a leader that is out of service", []in{three[0], {id: "c", index: 40, address: "10.0.0.3", tags: []string{"leader"}, state: api.HealthMaint}},
			"redis redis-prod 10.0.0.1 80 10.0.0.1:80: a=10.0.0.1:80",
		},
		{"critical and in maintenance", []in{{id: "a", state: api.HealthCritical}, {id: "b", state: api.HealthMaint}}, "none"},
		{"a warning", []in{{id: "a", state: api.HealthWarning, address: "10.0.0.1"}}, "redis redis-prod 10.0.0.1 80 10.0.0.1:80: a=10.0.0.1:80"},
		{"the node's address", []in{{id: "a"}}, "redis redis-prod 10.0.0.9 80 10.0.0.9:80: a=10.0.0.9:80"},
		{"IPv6", []in{{id: "a", address: "fd00::1", port: 6379}}, "redis redis-prod fd00::1 6379 [fd00::1]:6379: a=[fd00::1]:6379"},
		{"a name", []in{{id: "a", address: "redis.example.com"}}, "redis redis-prod redis.example.com 80 redis.example.com:80: a=redis.example.com:80"},
		{"no port", []in{{id: "a", address: "fd00::1", port: -1}}, "redis redis-prod fd00::1 0 fd00::1: a=fd00::1"},
		{
			"as old, and of one ID", []in{{id: "a", index: 1, node: "n2", address: "10.0.0.2"}, {id: "a", index: 1, node: "n1", address: "10.0.0.1"}},
			"redis redis-prod 10.0.0.1 80 10.0.0.1:80: a=10.0.0.1:80 a=10.0.0.2:80",
		},
		{"hostile", []in{{id: `"{{`, address: `" evil`}}, `redis redis-prod " evil 80 " evil:80: "{{=" evil:80`},
	} {
		c := &catalog{services: map[string][]in{"redis-prod": tt.is, "db": {{id: "db"}}}}
		for range 2 { // in any order of Consul's answer
			slices.Reverse(c.services["redis-prod"])
			got, err := render(text, Options{Binds: []Binding{{"redis", "redis-prod"}, {"db", "db"}}, Self: func() Identity { return Identity{Service: "app"} }}, c)
			if got != tt.want || err != nil {
				t.Errorf("%s:\n got %q %v\nwant %q", tt.name, got, err, tt.want)
			}
		}
		if slices.ContainsFunc(c.asked, func(s string) bool { return s != "redis-prod" }) {
			t.Errorf("%s: %q was asked for", tt.name, c.asked)
		}
	}
}

func TestBindThatNobodyDeclared(t *testing.T) {
	for _, tt := range []struct {
		binds []Binding
		want  string
	}{
		{nil, `bind: nothing is bound: declare it with --bind redsi:SERVICE`},
		{[]Binding{{"redis", "r"}, {"db", "d"}}, `bind: "redsi" is not bound, only redis, db: declare it with --bind`},
	} {
		c := &catalog{}
		if _, err := render(`{{ bind "redsi" }}`, Options{Binds: tt.binds}, c); fmt.Sprint(err) != tt.want || len(c.asked) > 0 {
			t.Errorf("%v: %v; asked %q; want %s", tt.binds, err, c.asked, tt.want)
		}
	}
}

func TestParseBinds(t *testing.T) {
	const name = "its name may contain only letters, digits, -, _ and dots, and must begin with a letter"
	for _, tt := range []struct{ binds, want string }{
		{"redis:redis", "[redis:redis]"},
		{"my-cache.v1:redis-prod@dc2 db:pg.main", "[my-cache.v1:redis-prod@dc2 db:pg.main]"},
		{"redis", `bind "redis" must be name:service, such as redis:redis`},
		{":redis", `bind ":redis" must be name:service, such as redis:redis`},
		{"redis:", `bind "redis:" must be name:service, such as redis:redis`},
		{"1st:redis", `bind "1st:redis": ` + name},
		{"a=b:redis", `bind "a=b:redis": ` + name},
		{"a$(b):redis", `bind "a$(b):redis": ` + name},
		{"redis:a/../b", `bind "redis:a/../b": "a/../b" cannot be a service in Consul`},
		{"redis:a:b", `bind "redis:a:b": "a:b" cannot be a service in Consul`},
		{"redis:a@b/c", `bind "redis:a@b/c": "a@b/c" cannot be a service in Consul`},
		{"redis:a@", `bind "redis:a@": "a@" cannot be a service in Consul`},
		{"a-b:x a.b:y", `bind "a-b:x" and "a.b:y" would both be A_B_HOST: choose another name`},
		{"a:x a:x", `bind "a:x" and "a:x" would both be A_HOST: choose another name`},
	} {
		binds, err := ParseBinds(strings.Fields(tt.binds))
		got := fmt.Sprint(binds)
		if err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%s:\n got %s\nwant %s", tt.binds, got, tt.want)
		}
	}
}

func TestEnvironmentAndUnbound(t *testing.T) {
	c := &catalog{services: map[string][]in{
		"redis": {{id: "r2", index: 2, address: "10.0.0.2"}, {id: "r1", index: 1, address: "fd00::1", port: 6379}},
		"sick":  {{id: "s", state: api.HealthCritical}},
		"nfs":   {{id: "n", port: -1}},
	}}
	binds := []Binding{{"my-cache.v1", "redis"}, {"sick", "sick"}, {"db", "nosuch"}, {"files", "nfs"}}
	if got, want := Environment(binds, c.ask), []string{"MY_CACHE_V1_HOST=fd00::1", "MY_CACHE_V1_PORT=6379", "FILES_HOST=10.0.0.9"}; !slices.Equal(got, want) {
		t.Errorf("environment %q, want %q", got, want)
	}
	if got, want := fmt.Sprint(Unbound(binds, c.ask)), "[sick:sick db:nosuch]"; got != want {
		t.Errorf("unbound %s, want %s", got, want)
	}
	if got := Unbound(binds[:1], c.ask); len(got) > 0 {
		t.Errorf("unbound %v", got)
	}
}

func TestService(t *testing.T) {
	const text = `{{ with svc }}{{ .Name }} {{ .Group }} {{ .Service }} self {{ .Self.ID }}@{{ .Self.Node }} {{ .Self.Address }} {{ .Self.Tags | join "+" }} all
	{{- range .Instances }} {{ .ID }}{{ end }} leader{{ with .Leader }} {{ .ID }}{{ end }} followers{{ range .Followers }} {{ .ID }}{{ end }}{{ end }}`
	self := Identity{Name: "app", Group: "prod", Service: "app-prod", Instance: Instance{ID: "b", Node: "n1", Host: "fd00::2", Port: 80, Tags: []string{"first"}}}
	follower, leads := []string{"follower"}, []string{"leader"}
	for _, tt := range []struct {
		name string
		is   []in
		want string
	}{
		{"alone, before it is registered", nil, "self b@n1 [fd00::2]:80 first all b leader followers"},
		{"not yet registered", []in{{id: "c"}, {id: "a"}}, "self b@n1 [fd00::2]:80 first all a b c leader followers"},
		{"registered", []in{{id: "b", address: "10.0.0.2", tags: follower}, {id: "a", tags: leads}}, "self b@n1 10.0.0.2:80 follower all a b leader a followers b"},
		{"it leads", []in{{id: "b", tags: leads}, {id: "c", tags: follower}, {id: "a", tags: follower}}, "self b@n1 10.0.0.9:80 leader all a b c leader b followers a c"},
		{"two say so", []in{{id: "b", index: 5, tags: leads}, {id: "c", index: 4, changed: 6, tags: leads}}, "self b@n1 10.0.0.9:80 leader all b c leader c followers b"},
		{"who is well", []in{{id: "a", state: api.HealthCritical}, {id: "c", state: api.HealthMaint}, {id: "d", state: api.HealthWarning}}, "self b@n1 [fd00::2]:80 first all b c d leader followers"},
		{"it is not well itself", []in{{id: "b", state: api.HealthCritical}, {id: "c"}}, "self b@n1 10.0.0.9:80  all b c leader followers"},
		{"a leader that is gone", []in{{id: "a", state: api.HealthCritical, tags: leads}, {id: "b", tags: follower}}, "self b@n1 10.0.0.9:80 follower all b leader followers b"},
		{"its ID on another node", []in{{id: "b", node: "n0"}}, "self b@n1 [fd00::2]:80 first all b b leader followers"},
	} {
		c := &catalog{services: map[string][]in{"app-prod": tt.is}}
		got, err := render(text, Options{Self: func() Identity { return self }, Binds: []Binding{{"redis", "redis"}}}, c)
		if want := "app prod app-prod " + tt.want; got != want || err != nil {
			t.Errorf("%s:\n got %q %v\nwant %q", tt.name, got, err, want)
		}
		if !slices.Equal(c.asked, []string{"app-prod"}) {
			t.Errorf("%s: %q was asked for", tt.name, c.asked)
		}
	}
}
