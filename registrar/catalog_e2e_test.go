//go:build e2e

package registrar_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/deploy/consul/policies"
	"berth/deploy/testenv"
	"berth/registrar"
	"berth/registrar/agent"
	"berth/registrar/label"
)

// inCatalog waits until the catalog has an instance with this status ("" for no instance) and this number of its own checks,
// and returns how long that took.
func (l *harness) inCatalog(within time.Duration, service, status string, checks int) time.Duration {
	l.t.Helper()
	return l.eventually(within, fmt.Sprintf("the catalog has %s as %q", service, status), func() error {
		entries, _, err := l.consul.Health().Service(service, "", false, nil)
		if err != nil {
			return err
		}
		is, n := "", 0
		for _, e := range entries {
			is = e.Checks.AggregatedStatus()
			for _, c := range e.Checks {
				if c.ServiceID != "" {
					n++
				}
			}
		}
		if is != status || n != checks {
			return fmt.Errorf("it is %q with %d checks", is, n)
		}
		return nil
	})
}

// Whatever is removed from the catalog while the agent holds it returns at once, unchanged: a service, a service with checks
// in maintenance mode, the whole node, and what was lost while no registrar ran.
func TestE2ELostInTheCatalog(t *testing.T) {
	l := newHarness(t)
	r := l.registrar(nil)
	plain, checked := l.app("plain"), l.app("checked", "--env", "SERVICE_CHECK_TTL=1m")
	l.expectOf(soon, "plain passing", "checked passing")
	l.inCatalog(soon, "plain", "passing", 0)
	l.inCatalog(soon, "checked", "passing", 1)
	lose := func(instance string) {
		t.Helper()
		if _, err := l.consul.Catalog().Deregister(&api.CatalogDeregistration{Node: "e2e", ServiceID: instance}, nil); err != nil {
			t.Fatal(err)
		}
	}
	// A new registration is left to the agent for as long as the agent may need.
	for n, within := range []time.Duration{soon, 2 * soon, 2 * soon} {
		lose(plain.instance(8080))
		lose(checked.instance(8080))
		t.Logf("lost, time %d: plain is back after %s", n+1, ms(l.inCatalog(within, "plain", "passing", 0)))
		l.inCatalog(soon, "checked", "passing", 1)
	}
	if err := l.consul.Agent().EnableServiceMaintenance(checked.instance(8080), "by hand"); err != nil {
		t.Fatal(err)
	}
	l.inCatalog(soon, "checked", "maintenance", 2)
	lose(checked.instance(8080))
	t.Logf("in maintenance mode: back after %s", ms(l.inCatalog(2*soon, "checked", "maintenance", 2)))
	lose("") // the node itself
	t.Logf("the node: back after %s", ms(l.inCatalog(again, "plain", "passing", 0)))
	l.inCatalog(soon, "checked", "maintenance", 2)

	r.stop()
	lose(plain.instance(8080))
	l.registrar(nil)
	t.Logf("while no registrar ran: back after %s", ms(l.inCatalog(soon, "plain", "passing", 0)))

	// An ended container is not put back.
	l.docker("rm", "--force", plain.id, checked.id)
	l.inCatalog(soon, "plain", "", 0)
	l.inCatalog(soon, "checked", "", 0)
}

const withACLs = `-hcl=acl { enabled = true default_policy = "deny" tokens { initial_management = "` + rootToken + `" agent = "` + rootToken + `" } }`

// withToken gives a registrar a client with the token that a file currently holds.
func withToken(l *harness, file string) func(*registrar.Options, *label.Host) {
	token := func() string {
		text, _ := os.ReadFile(file)
		return strings.TrimSpace(string(text))
	}
	return func(o *registrar.Options, _ *label.Host) {
		client := testenv.ConsulClient(l.t, l.consul.Address, token)
		o.Agent, o.Catalog, o.Token = client.Agent(), agent.NewCatalog(client), token
	}
}

// The registrar's token is replaced and deleted. Everything is registered again, and the checks work again, also after a
// restart of the registrar in between.
func TestE2ETokenReplaced(t *testing.T) {
	l := newHarness(t, withACLs)
	file := filepath.Join(t.TempDir(), "token")
	write := func(token *api.ACLToken) {
		t.Helper()
		if err := os.WriteFile(file, []byte(token.SecretID), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tokens := []*api.ACLToken{}
	for range 4 {
		tokens = append(tokens, testenv.NewToken(t, l.consul.Client, policies.Registrar))
	}
	write(tokens[0])
	r := l.registrar(withToken(l, file))
	c := l.web("web", "serve 200; await die; kill $(cat /tmp/pid)", "--env", "SERVICE_CHECK_HTTP=/", "--env", "SERVICE_CHECK_INTERVAL=1s")
	l.inCatalog(2*soon, "web", "passing", 1)

	replace := func(from, to *api.ACLToken) {
		t.Helper()
		write(to)
		if _, err := l.consul.ACL().TokenDelete(from.AccessorID, nil); err != nil {
			t.Fatal(err)
		}
	}
	replace(tokens[0], tokens[1])
	l.eventually(again, "it is registered with the new token", func() error {
		if n := strings.Count(r.log.String(), `msg="registered `); n < 2 {
			return fmt.Errorf("registered %d times", n)
		}
		return nil
	})
	l.touch(c, "die")
	l.inCatalog(soon, "web", "critical", 1)

	// The same again, while the registrar restarts and the check changes without a valid token.
	l.touch(c, "end")
	l.docker("rm", "--force", c.id)
	l.inCatalog(soon, "web", "", 0)
	c = l.web("web2", "serve 200; await die; kill $(cat /tmp/pid)", "--env", "SERVICE_CHECK_HTTP=/", "--env", "SERVICE_CHECK_INTERVAL=1s")
	l.inCatalog(soon, "web2", "passing", 1)
	r.stop()
	replace(tokens[1], tokens[2])
	l.touch(c, "die")
	l.expect(soon, c.instance(8080), "critical")
	l.inCatalog(0, "web2", "passing", 1) // the status must not change
	r = l.registrar(withToken(l, file))
	t.Logf("after the start with a new token the catalog is right within %s", ms(l.inCatalog(soon, "web2", "critical", 1)))
	replace(tokens[2], tokens[3])
	l.eventually(again, "the registrar is ready", r.Ready)
}

// Without the right to read the node, berth compares nothing, logs that once, and still works.
func TestE2ECatalogNotReadable(t *testing.T) {
	l := newHarness(t, withACLs)
	const registers = `service_prefix "" { policy = "write" }`
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(testenv.NewToken(t, l.consul.Client, registers).SecretID), 0o600); err != nil {
		t.Fatal(err)
	}
	r := l.registrar(withToken(l, file))
	c := l.app("web")
	l.inCatalog(soon, "web", "passing", 0)
	l.eventually(soon, "it is said", func() error {
		if !strings.Contains(r.log.String(), "node_prefix") {
			return errors.New("it is not")
		}
		return nil
	})
	l.docker("rm", "--force", c.id)
	l.inCatalog(soon, "web", "", 0)
	if n := strings.Count(r.log.String(), "node_prefix"); n != 1 || strings.Contains(r.log.String(), "level=ERROR") {
		t.Errorf("said %d times:\n%s", n, r.log.String())
	}
}
