//go:build e2e

package testenv

import (
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

// ConsulOptions configure a Consul agent.
type ConsulOptions struct {
	Name    string        // name of the container; begins with a Name
	Address string        // address of the HTTP API for tests
	Docker  []string      // arguments of docker run: network, published port
	Args    []string      // arguments of consul agent: -dev or -server, addresses, configuration
	Token   string        // for the Client
	TLS     api.TLSConfig // with a CA, the Address is for HTTPS
}

// Consul is an agent in its own container.
type Consul struct {
	*api.Client
	ConsulOptions
}

// StartConsul starts an agent with quick elections and its data in a volume. The agent may need a moment to answer.
func StartConsul(t testing.TB, o ConsulOptions) *Consul {
	t.Helper()
	// Hide it from the registrars of other tests.
	args := append([]string{"run", "--detach", "--name", o.Name, "--label", "SERVICE_IGNORE=1"}, o.Docker...)
	args = append(args, "--user", "100:1000", "--env", "CONSUL_DISABLE_PERM_MGMT=1", Image(t, "IMAGE_CONSUL"),
		"agent", "-log-level=warn", "-hcl=disable_update_check = true", "-hcl=performance { raft_multiplier = 1 }")
	MustDocker(t, append(args, o.Args...)...)
	t.Cleanup(func() {
		if t.Failed() {
			out, err := Docker("logs", "--tail", "30", o.Name)
			t.Logf("log of %s: %v\n%s", o.Name, err, out)
		}
	})
	c := &Consul{ConsulOptions: o}
	c.Client = c.As(t, o.Token)
	return c
}

// As returns a client of the agent with another token.
func (c *Consul) As(t testing.TB, token string) *api.Client {
	t.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: 10}
	t.Cleanup(transport.CloseIdleConnections)
	conf := &api.Config{Address: c.Address, Token: token, Transport: transport, TLSConfig: c.TLS}
	if c.TLS.CAFile != "" {
		conf.Scheme = "https"
	}
	client, err := api.NewClient(conf)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// NewToken makes a token with exactly the rights of these rules, and a policy for each rule. The client's own token needs
// the right to do so, at the latest when Consul has set up its ACLs.
func NewToken(t testing.TB, consul *api.Client, rules ...string) *api.ACLToken {
	t.Helper()
	token := &api.ACLToken{}
	for _, r := range rules {
		var policy *api.ACLPolicy
		Eventually(t, time.Minute, "Consul makes a policy", func() (err error) {
			policy, _, err = consul.ACL().PolicyCreate(&api.ACLPolicy{Name: fmt.Sprintf("policy-%d", names.Add(1)), Rules: r}, nil)
			return err
		})
		token.Policies = append(token.Policies, &api.ACLLink{ID: policy.ID})
	}
	Eventually(t, time.Minute, "Consul makes a token", func() (err error) {
		made, _, err := consul.ACL().TokenCreate(token, nil)
		if err == nil {
			token = made
		}
		return err
	})
	return token
}

// ConsulClient returns a client of the agent at an address that adds the current token to each request.
func ConsulClient(t testing.TB, address string, token func() string) *api.Client {
	t.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: 10}
	t.Cleanup(transport.CloseIdleConnections)
	client, err := api.NewClient(&api.Config{Address: address, HttpClient: &http.Client{Transport: withToken{transport, token}}})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// withToken is an http.RoundTripper that adds a token.
type withToken struct {
	http.RoundTripper
	token func() string
}

func (w withToken) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set("X-Consul-Token", w.token())
	return w.RoundTripper.RoundTrip(req)
}

// Answers waits until the agent knows a leader and the catalog has a node, and returns how long that took.
func (c *Consul) Answers(t testing.TB) time.Duration {
	t.Helper()
	return Eventually(t, 30*time.Second, "Consul answers", func() error {
		nodes, _, err := c.Catalog().Nodes(nil)
		if err == nil && len(nodes) == 0 {
			err = errors.New("its catalog is empty")
		}
		return err
	})
}

// Do runs a docker command on the agent's container: Do(t, "restart", "--time", "5").
func (c *Consul) Do(t testing.TB, command string, args ...string) {
	t.Helper()
	MustDocker(t, append(append([]string{command}, args...), c.Name)...)
}
