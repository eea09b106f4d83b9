//go:build e2e

package templater_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/deploy/testenv"
	"berth/templater"
)

// A server without a disk comes back empty. No instance vanishes while instances return one by one; one that never returns
// is removed after the grace; a new one is served at once.
func TestE2EConsulLosesItsState(t *testing.T) {
	for _, tt := range []struct {
		name          string
		writes, after int // advance of the indexes before and after
	}{
		{"with a large index", 500, 0},
		{"with a small index, soon exceeded", 0, 500},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := startConsul(t, "-dev")
			c.age(tt.writes)
			c.put("web", "a", "b", "c")
			w := run(t, &api.Config{Address: c.Address}, web, templater.Options{Grace: grace})
			w.await(soon, "a b c")
			w.ready(soon)
			before := c.index("web")

			c.Do(t, "restart", "--time", "5")
			restarted := time.Now()
			c.Answers(t)
			w.ready(soon) // it has Consul's first answer
			c.age(tt.after)
			c.put("web", "a")
			c.put("web", "d")
			w.await(soon, "a b c d")
			after := c.index("web")
			c.put("web", "b")
			c.age(1)
			if past := time.Since(restarted); past >= grace {
				t.Fatalf("this machine is too slow: %s have passed, the grace is %s", past, grace)
			}
			w.await(grace+soon, "a b d")
			if past := time.Since(restarted); past < grace {
				t.Errorf("c went %s after the restart, within the grace of %s", past, grace)
			}
			w.want("a b c", "a b c d", "a b d")
			t.Logf("index of the list of web: %d before, %d after", before, after)
			if tt.after == 0 && after >= before || tt.after > 0 && after <= before {
				t.Errorf("the index went from %d to %d: that is not what this is to test", before, after)
			}

			// From now on Consul is trusted at once again.
			c.remove("a", "b", "d")
			w.await(grace/2, "")
		})
	}
}

// age moves Consul's index forward.
func (c *consul) age(writes int) {
	c.t.Helper()
	for i := range writes {
		if _, err := c.KV().Put(&api.KVPair{Key: "age", Value: fmt.Append(nil, i)}, nil); err != nil {
			c.t.Fatal(err)
		}
	}
}

// The list of services is lost as well, including everything a template finds through it.
func TestE2EConsulLosesEveryService(t *testing.T) {
	c := startConsul(t, "-dev")
	c.put("api", "x", "y")
	c.put("web", "a", "b")
	w := run(t, &api.Config{Address: c.Address}, every, templater.Options{Grace: grace})
	w.await(soon, "a b x y")
	w.ready(soon)

	c.Do(t, "restart", "--time", "5")
	c.Answers(t)
	w.ready(soon)
	c.put("new", "n")
	w.await(soon, "a b n x y")
	c.put("web", "b")
	w.await(grace+soon, "b n")
	c.put("api", "x")
	w.await(soon, "b n x")
	// api and web have separate queries, so they need not disappear at the same time.
	for _, line := range w.history()[2:] {
		if !contains(line, "b", "n") {
			t.Errorf("the servers were %q: b and n are there all the time", line)
		}
	}
}

const guarded = `acl {
  enabled = true
  default_policy = "deny"
  tokens { initial_management = "` + root + `" }
}`

const (
	root     = "11111111-1111-1111-1111-111111111111"
	seesAll  = `service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }`
	seesWeb  = `service_prefix "web" { policy = "read" } node_prefix "" { policy = "read" }`
	seesNone = `node_prefix "" { policy = "read" }`
)

// startGuarded starts a Consul that requires tokens.
func startGuarded(t testing.TB, args ...string) *consul {
	t.Helper()
	args = append([]string{"-dev", "-hcl=" + guarded}, args...)
	c := newConsul(t, testenv.Name(t)+"-consul", freeIP(t), testenv.ConsulOptions{Args: args, Token: root})
	c.Answers(t)
	return c
}

// policy makes a policy.
func (c *consul) policy(rules string) *api.ACLPolicy {
	c.t.Helper()
	var p *api.ACLPolicy
	testenv.Eventually(c.t, soon, "Consul makes a policy", func() (err error) {
		p, _, err = c.ACL().PolicyCreate(&api.ACLPolicy{Name: "templater", Rules: rules}, nil)
		return err
	})
	return p
}

func (c *consul) change(p *api.ACLPolicy, rules string) {
	c.t.Helper()
	p.Rules = rules
	if _, _, err := c.ACL().PolicyUpdate(p, nil); err != nil {
		c.t.Fatal(err)
	}
}

// token makes a token with a policy. The secret may be "", for a new one.
func (c *consul) token(p *api.ACLPolicy, secret string) *api.ACLToken {
	c.t.Helper()
	token, _, err := c.ACL().TokenCreate(&api.ACLToken{SecretID: secret, Policies: []*api.ACLLink{{ID: p.ID}}}, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	return token
}

func (c *consul) revoke(token *api.ACLToken) {
	c.t.Helper()
	if _, err := c.ACL().TokenDelete(token.AccessorID, nil); err != nil {
		c.t.Fatal(err)
	}
}

func hidden(path string) func(told) bool {
	return func(a told) bool { return a.path == path && a.filtered }
}

func forbidden(a told) bool { return a.status == http.StatusForbidden }

// A token that sees less hides servers but does not remove them, as long as that lasts. What it still sees is followed.
func TestE2ETokenSeesLess(t *testing.T) {
	c := startGuarded(t)
	c.put("api", "x")
	c.put("web", "a", "b")
	p := c.policy(seesAll)
	f := c.newFront()
	w := run(t, &api.Config{Address: f.URL, Token: c.token(p, "").SecretID}, every,
		templater.Options{Grace: time.Second, WaitTime: time.Second})
	w.await(soon, "a b x")
	w.ready(soon)

	when := time.Now()
	c.change(p, seesNone)
	f.await(t, when, "lists are filtered", hidden("/v1/catalog/services"))
	f.await(t, when, "web is filtered", hidden("/v1/health/service/web"))
	// Changes of hidden instances are not seen.
	c.remove("b")
	when = time.Now()
	f.await(t, when, "web is filtered still", hidden("/v1/health/service/web"))

	when = time.Now()
	c.change(p, seesWeb)
	c.put("web", "c")
	w.await(soon, "a c x")
	f.await(t, when, "the list of services is filtered still", hidden("/v1/catalog/services"))
	c.put("web", "d")
	w.await(soon, "a c d x")

	c.change(p, seesAll)
	c.put("api", "y")
	w.await(soon, "a c d x y")
	c.remove("x", "y")
	w.await(soon, "a c d")
	for _, line := range w.history() {
		if !contains(line, "a") {
			t.Errorf("the servers were %q: a is there all the time", line)
		}
	}
	w.want("a b x", "a c x", "a c d x", "a c d x y", "a c d")
}

// A token that sees nothing at the start is an error, not an empty catalog: nothing is rendered.
func TestE2ETokenSeesNothingAtTheStart(t *testing.T) {
	for _, tt := range []struct{ name, rules string }{
		{"no service", seesNone},
		{"no node", `service_prefix "" { policy = "read" }`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := startGuarded(t)
			c.put("api", "x")
			c.put("web", "a", "b")
			p := c.policy(tt.rules)
			w := run(t, &api.Config{Address: c.Address, Token: c.token(p, "").SecretID}, every, templater.Options{Grace: time.Second})
			const want = "the token sees nothing of catalog.services: give it service:read and node:read"
			w.eventually(soon, want, func() error {
				if why := w.Ready(); why == nil || !strings.HasSuffix(why.Error(), want) {
					return fmt.Errorf("it says %v", why)
				}
				if n := strings.Count(w.log.String(), "the token sees nothing"); n != 1 {
					return fmt.Errorf("%d lines in the log", n)
				}
				return nil
			})
			w.want()
			c.change(p, seesAll)
			w.await(soon, "a b x")
			w.ready(soon)
			w.want("a b x")
			if n := strings.Count(w.log.String(), "the token sees nothing"); n != 1 {
				t.Errorf("%d lines in the log", n)
			}
		})
	}
}

// A deleted token is refused, and nothing changes until it is restored.
func TestE2ETokenRevoked(t *testing.T) {
	c := startGuarded(t)
	c.put("web", "a", "b")
	p := c.policy(seesAll)
	token := c.token(p, "")
	f := c.newFront()
	w := run(t, &api.Config{Address: f.URL, Token: token.SecretID}, web, templater.Options{Grace: grace, WaitTime: time.Second})
	w.await(soon, "a b")
	w.ready(soon)

	when := time.Now()
	c.revoke(token)
	w.notReady(soon)
	f.await(t, when, "queries are refused", forbidden)
	c.put("web", "c")
	c.remove("a")
	when = time.Now()
	f.await(t, when, "queries are refused still", forbidden)

	c.token(p, token.SecretID)
	w.await(soon, "a b c") // after an outage, missing entries are kept for the grace
	w.ready(soon)
	w.await(grace+soon, "b c")
	w.want("a b", "a b c", "b c")
}

// The token file may be replaced while the templater runs.
func TestE2ETokenFileRenewed(t *testing.T) {
	c := startGuarded(t)
	c.put("web", "a", "b")
	p := c.policy(seesAll)
	old := c.token(p, "")
	dir := t.TempDir()
	file := testenv.File(t, dir, "token", old.SecretID+"\n")
	w := run(t, &api.Config{Address: c.Address, TokenFile: file}, web, templater.Options{Grace: grace, WaitTime: time.Second})
	w.await(soon, "a b")
	w.ready(soon)

	testenv.File(t, dir, "token", c.token(p, "").SecretID+"\n")
	c.revoke(old)
	c.put("web", "c")
	w.await(soon, "a b c")
	w.ready(soon)

	// Vice versa: the old token is refused for a while.
	tokens, _, err := c.ACL().TokenList(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, listed := range tokens {
		if len(listed.Policies) == 1 && listed.Policies[0].ID == p.ID {
			c.revoke(&api.ACLToken{AccessorID: listed.AccessorID})
		}
	}
	w.notReady(soon)
	testenv.File(t, dir, "token", c.token(p, "").SecretID)
	w.ready(soon)
	c.put("web", "d")
	w.await(soon, "a b c d")
	w.want("a b", "a b c", "a b c d")
}
