//go:build e2e

package templater_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	texttemplate "text/template"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul-template/config"
	"github.com/hashicorp/consul-template/manager"
	"github.com/hashicorp/consul/api"

	"berth/deploy/testenv"
	"berth/templater"
	"berth/templates"
)

// compat is the environment of both renderers.
type compat struct {
	*consul       // a real one, with a second datacenter
	t             *testing.T
	consulAddress string // in front of it is what answers for a Consul Enterprise
	vault         *fakeVault
	nomad         *fakeNomad
	bare          bool // for berth neither Vault nor Nomad is configured, and programs are off
}

func newCompat(t *testing.T) *compat {
	t.Helper()
	ip := freeIP(t)
	name := testenv.Name(t)
	c := &compat{t: t, consul: newConsul(t, name+"-east", ip, testenv.ConsulOptions{Args: []string{"-dev"}})}
	west := newConsul(t, name+"-west", freeIP(t), testenv.ConsulOptions{
		Args: []string{"-dev", "-datacenter=dc2", "-retry-join-wan=" + ip},
	})
	c.Answers(t)
	west.Answers(t)
	c.vault, c.nomad = newFakeVault(t), newFakeNomad(t)
	c.consulAddress = strings.TrimPrefix(newEnterprise(t, c.Address).URL, "http://")
	c.fill()
	for key, value := range map[string]string{"app/name": "west shop", "app/city/name": "Köln"} {
		if _, err := west.KV().Put(&api.KVPair{Key: key, Value: []byte(value)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	west.must(west.Catalog().Register(&api.CatalogRegistration{
		Node: "w1", Address: "10.2.0.1", Service: &api.AgentService{ID: "web-west", Service: "web", Port: 8000},
	}, nil))
	testenv.Eventually(t, 30*time.Second, "the datacenters know each other", func() error {
		dcs, err := c.Catalog().Datacenters()
		if err == nil && len(dcs) < 2 {
			err = fmt.Errorf("known: %q", dcs)
		}
		if err == nil {
			_, _, err = c.KV().Get("app/name", &api.QueryOptions{Datacenter: "dc2"})
		}
		return err
	})
	file := testenv.File(t, t.TempDir(), "file.json", `{"name": "file", "lines": ["a", "b"]}`+"\n")
	t.Setenv("COMPAT_FILE", file)
	t.Setenv("COMPAT_SET", "a value")
	t.Setenv("COMPAT_EMPTY", "")
	// consul-template itself provides these to its templates.
	t.Setenv("CONSUL_HTTP_ADDR", c.consulAddress)
	t.Setenv("VAULT_ADDR", c.vault.URL)
	return c
}

// fill puts data of every kind into Consul.
func (c *compat) fill() {
	c.t.Helper()
	for n := range 3 {
		_, err := c.Catalog().Register(&api.CatalogRegistration{
			ID:   fmt.Sprintf("00000000-0000-0000-0000-00000000000%d", n+1),
			Node: fmt.Sprint("n", n+1), Address: fmt.Sprint("10.0.0.", n+1),
			TaggedAddresses: map[string]string{"lan": fmt.Sprint("10.0.0.", n+1), "wan": fmt.Sprint("192.0.2.", n+1)},
			NodeMeta:        map[string]string{"rack": fmt.Sprint("r", n%2), "owner": "Jürgen & Söhne"},
		}, nil)
		if err != nil {
			c.t.Fatal(err)
		}
	}
	c.instance("n1", "web-1", api.HealthPassing, nil)
	c.instance("n2", "web-2", api.HealthPassing, func(s *api.AgentService) {
		s.Tags, s.Meta = []string{"green", "a=b"}, map[string]string{"version": "2.0/beta", "rank": "12"}
	})
	c.instance("n3", "web-3", api.HealthWarning, nil)
	c.instance("n4", "web-4", api.HealthCritical, func(s *api.AgentService) { s.Meta, s.Tags = nil, nil })
	c.instance("n5", "web-5", api.HealthMaint, nil)
	c.instance("n1", "plain", api.HealthPassing, func(s *api.AgentService) {
		s.Service, s.Address, s.Tags, s.Meta, s.Weights = "plain", "", nil, nil, api.AgentWeights{}
	})
	c.instance("n2", "native-1", api.HealthPassing, func(s *api.AgentService) {
		s.Service, s.Connect = "native", &api.AgentServiceConnect{Native: true}
	})
	c.instance("n1", "web-1-proxy", api.HealthPassing, func(s *api.AgentService) {
		s.Service, s.Port, s.Kind = "web-proxy", 21000, api.ServiceKindConnectProxy
		s.Proxy = &api.AgentServiceConnectProxyConfig{DestinationServiceName: "web", DestinationServiceID: "web-1"}
	})
	for key, value := range map[string]string{
		"app/name": "shop", "app/port": "8080", "app/nothing": "", "app/db/host": "db.example.com", "app/db/user": `"root"`,
		"app/db/pool/size": "10", "app/db/pool/idle": "2", "app/empty/": "", "app/ümlaut": "ä",
		"bytes/utf-8": "Grüße, 日本語, 🚀\u2028", "bytes/invalid": "\xff\xfe\xe9", "bytes/zeros": "a\x00b\x01\x7f\x1b",
		"bytes/crlf": "one\r\ntwo\rthree\n\n", "bytes/spaces": " \t x \n", "bytes/template": `{{ key "app/name" }}`,
		"bytes/html": `<a href="x">&'</a>`, "bytes/a key's": "found",
		"config/json": `{"name":"j<son>","port":8080,"big":12345678901234567890,"ratio":0.1,"nothing":null,"list":[1,"two"],` +
			`"nested":{"b":true,"a":"x","c":1.5}}`,
		"config/yaml":   "name: yaml\non: yes\nlist:\n  - id: 1\n  - id: \"2\"\n",
		"config/tree/a": "1", "config/tree/b/c": "2", "config/tree/b/d": "3",
		"collide/a": "1", "collide/a/b": "2",
		"haproxy/log": "127.0.0.1", "haproxy/web/balance": "leastconn", "haproxy/web/options/option": "httpchk GET /health",
		"haproxy/web/options/retries": "2",
	} {
		c.set(key, value)
	}
	c.set("app/name", "shop") // a second time
	_, _, err := c.Peerings().GenerateToken(context.Background(),
		api.PeeringGenerateTokenRequest{PeerName: "partner", Meta: map[string]string{"of": "us"}}, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	_, _, err = c.ConfigEntries().Set(&api.ExportedServicesConfigEntry{Name: "default", Services: []api.ExportedService{
		{Name: "web", Consumers: []api.ServiceConsumer{{Peer: "partner"}}},
	}}, nil)
	if err != nil {
		c.t.Fatal(err)
	}
}

// instance registers an instance of web, as modified by edit, on a node.
func (c *compat) instance(node, id, status string, edit func(*api.AgentService)) {
	c.t.Helper()
	n := strings.TrimPrefix(node, "n")
	port, _ := strconv.Atoi("800" + n)
	s := &api.AgentService{
		ID: id, Service: "web", Address: "10.0.0." + n, Port: port, Tags: []string{"blue", "a=b", "canary"},
		Meta:            map[string]string{"version": "1." + n, "rank": n, "weight-hint": "x"},
		Weights:         api.AgentWeights{Passing: 7, Warning: 2},
		TaggedAddresses: map[string]api.ServiceAddress{"wan": {Address: "192.0.2." + n, Port: 80}},
	}
	if edit != nil {
		edit(s)
	}
	check := &api.HealthCheck{
		Node: node, CheckID: "service:" + id, Name: "Service '" + id + "' check", Status: status, ServiceID: id,
		Output: "GET /: 200 OK\nfine", Notes: "every second",
	}
	if status == api.HealthMaint {
		check.CheckID, check.Status = api.ServiceMaintPrefix+id, api.HealthCritical
	}
	_, err := c.Catalog().Register(&api.CatalogRegistration{
		Node: node, Address: "10.0.0." + n, SkipNodeUpdate: n <= "3", // which fill has put there
		Service: s, Checks: api.HealthChecks{check},
	}, nil)
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *compat) deregister(node, id string) {
	c.t.Helper()
	c.must(c.Catalog().Deregister(&api.CatalogDeregistration{Node: node, ServiceID: id}, nil))
}

func (c *compat) set(key, value string) {
	c.t.Helper()
	c.must(c.KV().Put(&api.KVPair{Key: key, Value: []byte(value), Flags: uint64(len(key))}, nil))
}

func (c *compat) delete(key string) {
	c.t.Helper()
	c.must(c.KV().Delete(key, nil))
}

func (c *consul) must(_ *api.WriteMeta, err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// library is consul-template's finalized configuration, as cmd/berth makes it from the environment.
func (c *compat) library() *config.Config {
	conf := config.DefaultConfig()
	conf.Consul.Address = config.String(c.consulAddress)
	conf.Vault.Address = config.String(c.vault.URL)
	conf.Vault.Token = config.String("root")
	conf.Vault.RenewToken = config.Bool(false) // its renewal never ends
	conf.Nomad.Address = config.String(c.nomad.URL)
	conf.Nomad.Namespace = config.String("team")
	conf.Finalize()
	return conf
}

// same renders texts with berth and consul-template, and fails for each difference.
func (c *compat) same(texts map[string]string) map[string]string {
	c.t.Helper()
	dir := c.t.TempDir()
	c.t.Setenv("COMPAT_OUT", filepath.Join(dir, "berth"))
	ours := c.byBerth(texts)
	c.t.Setenv("COMPAT_OUT", filepath.Join(dir, "consul-template"))
	theirs := c.byRunner(texts)
	for name := range texts {
		if diff := cmp.Diff([]byte(theirs[name]), []byte(ours[name])); diff != "" {
			c.t.Errorf("%s: consul-template (-), berth (+):\n%s", name, diff)
		}
	}
	written, _ := os.ReadFile(filepath.Join(dir, "berth"))
	wanted, err := os.ReadFile(filepath.Join(dir, "consul-template"))
	if diff := cmp.Diff(wanted, written); diff != "" {
		c.t.Errorf("writeToFile: consul-template (-), berth (+):\n%s", diff)
	}
	if _, ok := texts["programs"]; ok && (err != nil || len(wanted) == 0) {
		c.t.Errorf("writeToFile: %q, %v", wanted, err)
	}
	return ours
}

func (c *compat) byBerth(texts map[string]string) map[string]string {
	c.t.Helper()
	rendered, err := c.tryBerth(texts)
	if err != nil {
		c.t.Fatalf("berth: %v", err)
	}
	return rendered
}

func (c *compat) byRunner(texts map[string]string) map[string]string {
	c.t.Helper()
	rendered, err := c.tryRunner(texts)
	if err != nil {
		c.t.Fatalf("consul-template: %v", err)
	}
	return rendered
}

// tryBerth returns berth's text or error.
func (c *compat) tryBerth(texts map[string]string) (map[string]string, error) {
	c.t.Helper()
	dir := c.t.TempDir()
	log := &testenv.Log{}
	c.t.Cleanup(func() {
		if c.t.Failed() {
			c.t.Logf("log of the templater:\n%s", log)
		}
	})
	opts := templater.Options{
		Consul: &api.Config{Address: c.consulAddress},
		Log:    slog.New(slog.NewTextHandler(log, nil)),
	}
	if !c.bare {
		opts.Library, opts.Programs = c.library(), true
	}
	shipped := func(report func(string), _ templater.Ask) texttemplate.FuncMap {
		return templates.Funcs(templates.Options{})(report)
	}
	for name, text := range texts {
		file := testenv.File(c.t, dir, name+".ctmpl", text)
		opts.Templates = append(opts.Templates, templater.Template{
			Name: name, File: file, Destination: filepath.Join(dir, name), Funcs: shipped,
		})
	}
	tmpl, err := templater.New(opts)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	rendered, err := tmpl.Once(ctx)
	if err == nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	out := map[string]string{}
	for name, p := range rendered {
		out[name] = p.Text
	}
	return out, err
}

// tryRunner returns consul-template's text or error.
func (c *compat) tryRunner(texts map[string]string) (map[string]string, error) {
	c.t.Helper()
	return c.startRunner(texts, true).result()
}

// runner is a running consul-template.
type runner struct {
	*manager.Runner
	dir   string
	texts map[string]string
}

func (c *compat) startRunner(texts map[string]string, once bool) *runner {
	c.t.Helper()
	r := &runner{dir: c.t.TempDir(), texts: texts}
	conf := c.library()
	conf.Once = once
	for _, t := range []*config.TransportConfig{conf.Consul.Transport, conf.Vault.Transport, conf.Nomad.Transport} {
		t.DisableKeepAlives = config.Bool(true) // it does not close its connections
	}
	for name, text := range texts {
		file := testenv.File(c.t, r.dir, name+".ctmpl", text)
		*conf.Templates = append(*conf.Templates, &config.TemplateConfig{
			Source: config.String(file), Destination: config.String(filepath.Join(r.dir, name)),
		})
	}
	conf.Finalize()
	var err error
	if r.Runner, err = manager.NewRunner(conf, false); err != nil {
		c.t.Fatal(err)
	}
	go r.Start()
	c.t.Cleanup(r.Stop)
	return r
}

// result waits until everything is rendered.
func (r *runner) result() (map[string]string, error) {
	timeout := time.After(soon)
	for {
		select {
		case err := <-r.ErrCh:
			return nil, err
		case <-r.ServerErrCh: // it tries again
		case <-timeout:
			return nil, errors.New("nothing is rendered")
		case <-r.DoneCh:
			rendered := map[string]string{}
			for name := range r.texts {
				text, err := os.ReadFile(filepath.Join(r.dir, name))
				if err != nil {
					return nil, err
				}
				rendered[name] = string(text)
			}
			return rendered, nil
		}
	}
}
