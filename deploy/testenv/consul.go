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

// ConsulOptions say how to start a Consul agent.
type ConsulOptions struct {
	Name    string        // of the container; it begins with a Name
	Address string        // at which tests reach the HTTP API
	Docker  []string      // arguments of docker run: the network it is on, the port it publishes
	Args    []string      // arguments of consul agent: -dev or -server, addresses, configuration
	Token   string        // for the Client
	TLS     api.TLSConfig // if it has a CA, the Address is one of HTTPS
}

// Consul is an agent in a container of its own.
type Consul struct {
	*api.Client
	ConsulOptions
}

// StartConsul starts an agent. Elections are quick, and the data is in a volume. The agent may take a moment until it
// answers.
func StartConsul(t testing.TB, o ConsulOptions) *Consul {
	t.Helper()
	// No registrar of another test is to register it.
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

// NewToken makes a token that has the rights of these rules and no others, and a policy for each of them. The client's own
// token may do that, at the latest when Consul has set up its ACLs.
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

// ConsulClient returns a client of the agent at an address that makes each request with the token of that moment.
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

// Answers waits until the agent knows a leader and the catalog has a node, and says how long that took.
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
