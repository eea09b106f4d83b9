//go:build e2e

package policies_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/deploy/consul/policies"
	"berth/deploy/testenv"
)

// roles are the rights of each token's owner.
var roles = map[string][]string{
	"registrar": {policies.Registrar},
	"templater": {policies.Templater},
	"service":   {policies.Service("app")},
	"operator":  {policies.Operator("app")},
	"narrow":    {strings.Replace(policies.Service("app"), `session_prefix ""`, `session "agent-1"`, 1)}, // as recommended in service.hcl
	"rollout":   {policies.Rollout("app")},
	"viewer":    {policies.Viewer},
	"nobody":    nil,
}

// keys lists who may read and write which key. All others must be refused.
var keys = []struct{ key, read, write string }{
	{"berth/config/app", "registrar service narrow operator", "operator"},
	{"berth/config/app2", "registrar", ""},
	{"berth/config/app/x", "registrar", ""},
	{"berth/history/app/7", "registrar service narrow operator", "operator"},
	{"berth/history/app/files/logo.png/7", "registrar service narrow operator", "operator"},
	{"berth/history/app2/7", "registrar", ""},
	{"berth/files/app/logo.png", "registrar service narrow operator", "operator"},
	{"berth/files/app2/logo.png", "registrar", ""},
	{"berth/restart/app", "registrar service narrow operator", "operator"},
	{"berth/restart/app2", "registrar", ""},
	{"berth/paused/app", "registrar templater operator viewer", "operator"},
	{"berth/paused/app2", "registrar templater viewer", ""},
	{"berth/status/registrar/host-1", "registrar templater viewer", "registrar"},
	{"berth/status/templater/lb-1", "registrar templater viewer", "templater"},
	{"berth/applied/app/host%3Aapp%3A80", "registrar service narrow operator", "registrar service narrow"},
	{"berth/applied/app2/host%3Aapp2%3A80", "registrar", "registrar"},
	{"berth/rolling/app", "registrar service narrow operator", "registrar service narrow"},
	{"berth/rolling/app2", "registrar", "registrar"},
	{"berth/leader/app/host%3Aapp%3A80", "registrar service narrow", "registrar service narrow"},
	{"berth/leader/app2/host%3Aapp2%3A80", "registrar", "registrar"},
	{"service/app/leader", "registrar service narrow", "registrar service narrow"},
	{"service/app2/leader", "registrar", "registrar"},
	{"berth/rollout/shop/app", "templater rollout", "rollout"},
	{"berth/serving/lb-1", "templater rollout", "templater"},
	{"berth/config", "", ""},
	{"somebody/else", "", ""},
}

// lists lists who gets every key under a prefix. Others get the keys that they may read, or are refused.
var lists = []struct{ prefix, who string }{
	{"berth/history/app/", "registrar service narrow operator"},
	{"berth/history/app2/", "registrar"},
	{"berth/history/", "registrar"},
	{"berth/files/app/", "registrar service narrow operator"},
	{"berth/files/app2/", "registrar"},
	{"berth/applied/app/", "registrar service narrow operator"},
	{"berth/applied/app2/", "registrar"},
	{"berth/paused/", "registrar templater viewer"},
	{"berth/status/", "registrar templater viewer"},
	{"berth/leader/app/", "registrar service narrow"},
	{"berth/leader/app2/", "registrar"},
	{"berth/rollout/", "templater rollout"},
	{"berth/serving/", "templater rollout"},
	{"berth/", ""},
	{"", ""},
}

// caller makes a call with limited rights, and its setup and cleanup with all rights.
type caller struct {
	*testing.T
	*api.Client
	all *api.Client
}

// calls lists who may do what else: "app" and "app2" are services on the node agent-1.
var calls = []struct {
	what string
	do   func(c caller) error
	who  string
}{
	{"register app", register("app-2", "app"), "registrar service narrow rollout"},
	{"register app2", register("app2-2", "app2"), "registrar"},
	{"take over the ID of app2", register("app2-1", "app"), "registrar"},
	{"deregister app", deregister("app"), "registrar service narrow rollout"},
	{"deregister app2", deregister("app2"), "registrar"},
	{"pass the check of app", pass("app-1"), "registrar service narrow rollout"},
	{"pass the check of app2", pass("app2-1"), "registrar"},
	{"app in maintenance", maintenance("app-1"), "registrar service narrow rollout"},
	{"app2 in maintenance", maintenance("app2-1"), "registrar"},
	{"put app into the catalog", publish("app"), "registrar service narrow rollout"},
	{"put app2 into the catalog", publish("app2"), "registrar"},
	{"see app on the agent", onAgent("app-1"), "registrar templater viewer service narrow operator rollout"},
	{"see app2 on the agent", onAgent("app2-1"), "registrar templater viewer"},
	{"see app in the catalog", inCatalog("app"), "registrar templater viewer service narrow operator rollout"},
	{"see app2 in the catalog", inCatalog("app2"), "registrar templater viewer"},
	{"see the node in the catalog", func(c caller) error {
		node, _, err := c.Catalog().NodeServiceList("agent-1", nil)
		if err == nil && (node == nil || node.Node == nil) {
			return errHidden
		}
		return err
	}, "registrar templater viewer service narrow operator rollout"},
	{"ask the agent for itself", func(c caller) error { _, err := c.Agent().Self(); return err }, "registrar service narrow"},
	{"have a session on the node", session("agent-1"), "registrar service narrow rollout templater"},
	{"have a session on another node", session("server"), "registrar service rollout templater"},
	{"end a session of the node", end("agent-1"), "registrar service narrow rollout templater"},
	{"end a session of another node", end("server"), "registrar service rollout templater"},
	{"report for app", report("app"), "registrar service narrow"},
	{"report for app2", report("app2"), "registrar"},
	{"apply to app", apply("app"), "operator"},
	{"apply to app2", apply("app2"), ""},

	{"write a node", func(c caller) error {
		_, err := c.Catalog().Register(&api.CatalogRegistration{Node: "stranger", Address: "192.0.2.1"}, nil)
		if err == nil {
			_, err = c.all.Catalog().Deregister(&api.CatalogDeregistration{Node: "stranger"}, nil)
		}
		return err
	}, ""},
	{"put the node in maintenance", func(c caller) error {
		err := c.Agent().EnableNodeMaintenance("test")
		c.must(c.all.Agent().DisableNodeMaintenance())
		return err
	}, ""},
	{"read the tokens", func(c caller) error { _, _, err := c.ACL().TokenList(nil); return err }, ""},
	{"make a policy", func(c caller) error {
		p, _, err := c.ACL().PolicyCreate(&api.ACLPolicy{Name: "mine"}, nil)
		if err == nil {
			_, err = c.all.ACL().PolicyDelete(p.ID, nil)
		}
		return err
	}, ""},
	{"read Consul's peers", func(c caller) error { _, err := c.Operator().RaftGetConfiguration(nil); return err }, ""},
	{"read the gossip keys", func(c caller) error { _, err := c.Operator().KeyringList(nil); return err }, ""},
	{"fire an event", func(c caller) error { _, _, err := c.Event().Fire(&api.UserEvent{Name: "e"}, nil); return err }, ""},
	{"delete all keys", func(c caller) error { _, err := c.KV().DeleteTree("", nil); c.seed(); return err }, ""},
}

var errHidden = errors.New("the answer lacks what was asked for")

// refused reports whether an error is Consul's refusal rather than another failure.
func refused(err error) bool {
	return errors.Is(err, errHidden) || err != nil && (strings.Contains(err.Error(), "403") || strings.Contains(err.Error(), "Permission denied"))
}

func (c caller) must(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

// seed writes all keys of the table.
func (c caller) seed() {
	c.Helper()
	var ops api.TxnOps
	for _, k := range keys {
		ops = append(ops, &api.TxnOp{KV: &api.KVTxnOp{Verb: api.KVSet, Key: k.key, Value: []byte("seed")}})
	}
	c.must(txn(c.all, ops...))
}

func txn(consul *api.Client, ops ...*api.TxnOp) error {
	ok, answer, _, err := consul.Txn().Txn(ops, nil)
	switch {
	case err != nil:
		return err
	case !ok:
		return errors.New(answer.Errors[0].What)
	case len(answer.Results) < len(ops):
		return errHidden
	}
	return nil
}

// reads are the ways to read a key.
var reads = map[string]func(c caller, key string) error{
	"get": func(c caller, key string) error {
		pair, _, err := c.KV().Get(key, nil)
		if err == nil && pair == nil {
			return errHidden
		}
		return err
	},
	"get in a transaction": func(c caller, key string) error {
		return txn(c.Client, &api.TxnOp{KV: &api.KVTxnOp{Verb: api.KVGet, Key: key}})
	},
}

// writes are the ways to write a key.
var writes = map[string]func(c caller, key string) error{
	"put": func(c caller, key string) error {
		_, err := c.KV().Put(&api.KVPair{Key: key, Flags: 7}, nil)
		return err
	},
	"check-and-set in a transaction": func(c caller, key string) error {
		pair, _, err := c.all.KV().Get(key, nil)
		c.must(err)
		return txn(c.Client, &api.TxnOp{KV: &api.KVTxnOp{Verb: api.KVCAS, Key: key, Index: pair.ModifyIndex}})
	},
	"delete": func(c caller, key string) error {
		_, err := c.KV().Delete(key, nil)
		return errors.Join(err, txn(c.all, &api.TxnOp{KV: &api.KVTxnOp{Verb: api.KVSet, Key: key}}))
	},
	"lock": func(c caller, key string) error {
		id, _, err := c.all.Session().Create(&api.SessionEntry{LockDelay: time.Millisecond}, nil)
		c.must(err)
		defer func() { _, err := c.all.Session().Destroy(id, nil); c.must(err) }()
		held, _, err := c.KV().Acquire(&api.KVPair{Key: key, Session: id}, nil)
		if err != nil || !held {
			return errors.Join(err, fmt.Errorf("held: %t", held))
		}
		released, _, err := c.KV().Release(&api.KVPair{Key: key, Session: id}, nil)
		if err == nil && !released {
			err = errors.New("not released")
		}
		return err
	},
}

// list returns an error unless the caller gets every key under a prefix. The caller must never get a key that it may not
// read.
func list(c caller, prefix, role string) error {
	got, _, err := c.KV().Keys(prefix, "", nil)
	if err != nil {
		return err
	}
	pairs, _, err := c.KV().List(prefix, nil)
	if err != nil {
		return err
	}
	if len(pairs) != len(got) {
		c.Errorf("%d keys and %d values", len(got), len(pairs))
	}
	for _, k := range keys {
		under, has := strings.HasPrefix(k.key, prefix), slices.Contains(got, k.key)
		switch {
		case has && !(under && may(role, k.read)):
			c.Errorf("the list has %s", k.key)
		case under && !has:
			err = errHidden
		}
	}
	return err
}

func register(id, service string) func(caller) error {
	return func(c caller) error {
		err := c.Agent().ServiceRegister(&api.AgentServiceRegistration{ID: id, Name: service, Port: 80})
		if strings.HasSuffix(id, "-1") {
			c.instance(id, strings.TrimSuffix(id, "-1"))
		} else if err == nil {
			c.must(c.all.Agent().ServiceDeregister(id))
		}
		return err
	}
}

// instance registers an instance with a check.
func (c caller) instance(id, service string) {
	c.Helper()
	c.must(c.all.Agent().ServiceRegister(&api.AgentServiceRegistration{ID: id, Name: service, Port: 80,
		Check: &api.AgentServiceCheck{CheckID: "check:" + id, TTL: "10m", Status: api.HealthPassing}}))
}

func deregister(service string) func(caller) error {
	return func(c caller) error {
		c.instance(service+"-3", service)
		err := c.Agent().ServiceDeregister(service + "-3")
		if err != nil {
			c.must(c.all.Agent().ServiceDeregister(service + "-3"))
		}
		return err
	}
}

func pass(id string) func(caller) error {
	return func(c caller) error { return c.Agent().UpdateTTL("check:"+id, "", api.HealthPassing) }
}

func maintenance(id string) func(caller) error {
	return func(c caller) error {
		err := c.Agent().EnableServiceMaintenance(id, "test")
		if err == nil {
			err = c.Agent().DisableServiceMaintenance(id)
		}
		return err
	}
}

func publish(service string) func(caller) error {
	return func(c caller) error {
		_, err := c.Catalog().Register(&api.CatalogRegistration{Node: "agent-1", SkipNodeUpdate: true,
			Service: &api.AgentService{ID: service + "-4", Service: service, Port: 80}}, nil)
		if err == nil {
			_, err := c.all.Catalog().Deregister(&api.CatalogDeregistration{Node: "agent-1", ServiceID: service + "-4"}, nil)
			c.must(err)
		}
		return err
	}
}

func onAgent(id string) func(caller) error {
	return func(c caller) error {
		services, err := c.Agent().Services()
		if err == nil && services[id] == nil {
			return errHidden
		}
		return err
	}
}

func inCatalog(service string) func(caller) error {
	return func(c caller) error {
		entries, _, err := c.Health().Service(service, "", false, nil)
		if err == nil && len(entries) == 0 {
			return errHidden
		}
		return err
	}
}

func session(node string) func(caller) error {
	return func(c caller) error {
		id, _, err := c.Session().Create(&api.SessionEntry{Node: node, TTL: "10s", Behavior: api.SessionBehaviorDelete}, nil)
		if err == nil {
			_, err = c.Session().Destroy(id, nil)
		}
		return err
	}
}

// end ends another's session.
func end(node string) func(caller) error {
	return func(c caller) error {
		id, _, err := c.all.Session().Create(&api.SessionEntry{Node: node}, nil)
		c.must(err)
		_, err = c.Session().Destroy(id, nil)
		if err != nil {
			_, err := c.all.Session().Destroy(id, nil)
			c.must(err)
		}
		return err
	}
}

// report writes an instance's report under the caller's session, with which the report expires.
func report(service string) func(caller) error {
	return func(c caller) error {
		id, _, err := c.Session().Create(&api.SessionEntry{Behavior: api.SessionBehaviorDelete, LockDelay: time.Millisecond}, nil)
		if err != nil {
			return err
		}
		key := "berth/applied/" + service + "/report"
		held, _, err := c.KV().Acquire(&api.KVPair{Key: key, Session: id}, nil)
		if err == nil && !held {
			err = errors.New("not held")
		}
		if _, gone := c.Session().Destroy(id, nil); gone != nil {
			return errors.Join(err, gone)
		}
		pair, _, gone := c.all.KV().Get(key, nil)
		c.must(gone)
		if pair != nil {
			c.Errorf("%s is still there", key)
		}
		return err
	}
}

// apply writes a version of a configuration and removes the oldest one from the history, in one transaction.
func apply(service string) func(caller) error {
	return func(c caller) error {
		pair, _, err := c.all.KV().Get("berth/config/"+service, nil)
		c.must(err)
		op := func(verb api.KVOp, key string, index uint64) *api.TxnOp {
			return &api.TxnOp{KV: &api.KVTxnOp{Verb: verb, Key: key, Index: index, Value: []byte("new"), Flags: 8}}
		}
		ok, answer, _, err := c.Txn().Txn(api.TxnOps{
			op(api.KVCAS, pair.Key, pair.ModifyIndex),
			op(api.KVCAS, "berth/history/"+service+"/8", 0),
			op(api.KVDelete, "berth/history/"+service+"/1", 0),
		}, nil)
		_, gone := c.all.KV().Delete("berth/history/"+service+"/8", nil)
		c.must(gone)
		if err == nil && !ok {
			err = errors.New(answer.Errors[0].What)
		}
		return err
	}
}

func may(role, who string) bool { return role == "all" || slices.Contains(strings.Fields(who), role) }

// Each role may do what it needs and nothing else, whether or not Consul requires the right to list keys.
func TestE2EPolicies(t *testing.T) {
	for _, listing := range []bool{false, true} {
		t.Run(fmt.Sprintf("enable_key_list_policy=%t", listing), func(t *testing.T) {
			consul := testenv.StartSecured(t, fmt.Sprintf("-hcl=acl { enable_key_list_policy = %t }", listing))
			agent := consul.StartAgent(t)
			agent.Answers(t)
			all := caller{t, agent.Client, agent.Client}
			all.seed()
			for _, service := range []string{"app", "app2"} {
				all.instance(service+"-1", service)
				testenv.Eventually(t, time.Minute, service+" is in the catalog", func() error { return inCatalog(service)(all) })
			}
			try := func(role string, client *api.Client) {
				t.Run(role, func(t *testing.T) {
					c := caller{t, client, agent.Client}
					check := func(what, who string, err error) {
						t.Helper()
						switch allowed := may(role, who); {
						case allowed && err != nil:
							t.Errorf("%s: %v", what, err)
						case !allowed && !refused(err):
							t.Errorf("%s: not refused: %v", what, err)
						}
					}
					for _, k := range keys {
						for way, read := range reads {
							check(way+" "+k.key, k.read, read(c, k.key))
						}
						for way, write := range writes {
							check(way+" "+k.key, k.write, write(c, k.key))
						}
					}
					for _, l := range lists {
						check("list "+l.prefix, l.who, list(c, l.prefix, role))
					}
					for _, call := range calls {
						check(call.what, call.who, call.do(c))
					}
				})
			}
			try("all", agent.Client)
			for role, rules := range roles {
				try(role, agent.As(t, testenv.NewToken(t, consul.Client, rules...).SecretID))
			}
		})
	}
}

// berth service needs no more than its policy: its instance comes and goes.
func TestE2EServicePolicy(t *testing.T) {
	consul := testenv.StartSecured(t)
	agent := consul.StartAgent(t)
	agent.Answers(t)
	args := []string{"--label", "SERVICE_IGNORE=1", "--network", consul.Network, "--volume", consul.Dir + ":" + consul.Dir + ":ro", "--entrypoint", "berth"}
	for _, variable := range agent.ContainerEnv(testenv.NewToken(t, consul.Client, policies.Service("app")).SecretID) {
		args = append(args, "--env", variable)
	}
	id := testenv.Run(t, append(args, testenv.WithBerth(t, testenv.Image(t, "IMAGE_APP")),
		"service", "--name", "app", "--port", "8080", "--", "/app")...)
	passing := func(n int) func() error {
		return func() error {
			entries, _, err := consul.Health().Service("app", "", true, nil)
			if err == nil && len(entries) != n {
				err = fmt.Errorf("%d instances pass, want %d", len(entries), n)
			}
			return err
		}
	}
	testenv.Eventually(t, time.Minute, "it passes", passing(1))
	testenv.MustDocker(t, "stop", "--time", "30", id)
	testenv.Eventually(t, time.Minute, "it is gone", passing(0))
	if log := testenv.MustDocker(t, "logs", id); strings.Contains(log, "403") || strings.Contains(log, "node_prefix") || strings.Contains(log, "level=ERROR") {
		t.Errorf("it lacks a right:\n%s", log)
	}
}

// A token without the credentials for TLS and gossip gives no access.
func TestE2EStrangers(t *testing.T) {
	consul := testenv.StartSecured(t)
	strangers := filepath.Join(consul.Dir, "strangers")
	if err := os.Mkdir(strangers, 0o755); err != nil {
		t.Fatal(err)
	}
	ca := testenv.NewCA(t, strangers)
	ca.Issue(t, "client")
	ca.Issue(t, "agent", "client.dc1.consul", "localhost", "127.0.0.1")

	t.Run("clients", func(t *testing.T) {
		ours := consul.TLS
		for _, tt := range []struct {
			name string
			tls  api.TLSConfig
			want string
		}{
			{"a stranger's CA", api.TLSConfig{CAFile: strangers + "/ca.pem", CertFile: ours.CertFile, KeyFile: ours.KeyFile}, "unknown authority"},
			{"a stranger's certificate", api.TLSConfig{CAFile: ours.CAFile, CertFile: strangers + "/client.pem", KeyFile: strangers + "/client-key.pem"}, "tls: "},
			{"no certificate", api.TLSConfig{CAFile: ours.CAFile}, "certificate required"},
			{"no TLS", api.TLSConfig{}, "HTTP request to an HTTPS server"},
		} {
			c := testenv.Consul{ConsulOptions: consul.ConsulOptions}
			c.TLS = tt.tls
			_, err := c.As(t, consul.Token).Catalog().Datacenters()
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
			}
		}
		for _, variable := range consul.Env(consul.Token) {
			name, value, _ := strings.Cut(variable, "=")
			t.Setenv(name, value)
		}
		client, err := api.NewClient(api.DefaultConfig())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Catalog().Datacenters(); err != nil {
			t.Errorf("with all that the others lack: %v", err)
		}
	})

	t.Run("agents", func(t *testing.T) {
		for _, tt := range []struct {
			name, hcl, log string
			joins          bool // only gossips
		}{
			{"no gossip key", `encrypt = ""`, "encryption is not configured", false},
			{"a stranger's gossip key", `encrypt = "` + strings.Repeat("A", 43) + `="`, "No installed keys could decrypt the message", false},
			{"a stranger's certificate", fmt.Sprintf(`tls { defaults { cert_file = "%[1]s/agent.pem", key_file = "%[1]s/agent-key.pem" } }`, strangers),
				"remote error: tls: unknown certificate authority", true},
		} {
			agent := consul.StartAgent(t, "-hcl="+tt.hcl)
			testenv.Eventually(t, time.Minute, tt.name+" is said", func() error {
				log, err := testenv.Docker("logs", agent.Name)
				if err == nil && !strings.Contains(log, tt.log) {
					err = errors.New(testenv.LastLines(log, 10))
				}
				return err
			})
			members, err := consul.Agent().Members(false)
			if err != nil {
				t.Fatal(err)
			}
			joined := slices.ContainsFunc(members, func(m *api.AgentMember) bool { return strings.HasSuffix(agent.Name, m.Name) })
			if joined != tt.joins {
				t.Errorf("%s: joined: %t", tt.name, joined)
			}
		}
	})
}
