//go:build e2e

package testenv

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

// ConsulOptions say how to start a Consul agent.
type ConsulOptions struct {
	Name    string   // of the container; it begins with a Name
	Address string   // at which tests reach the HTTP API
	Docker  []string // arguments of docker run: the network it is on, the port it publishes
	Args    []string // arguments of consul agent: -dev or -server, addresses, configuration
	Token   string   // for the Client
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
	transport := &http.Transport{MaxIdleConnsPerHost: 10}
	t.Cleanup(transport.CloseIdleConnections)
	client, err := api.NewClient(&api.Config{Address: o.Address, Token: o.Token, Transport: transport})
	if err != nil {
		t.Fatal(err)
	}
	return &Consul{client, o}
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
