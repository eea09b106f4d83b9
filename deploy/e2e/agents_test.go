//go:build e2e

package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/deploy/testenv"
	"berth/deploy/testenv/traffic"
)

// withAgent adds a client agent for the registrar; the templater asks the server. The agent has Consul's default settings:
// it leaves when it is stopped.
const withAgent = `
  agent:
    image: ${IMAGE_CONSUL}
    user: "100:1000"
    environment: { CONSUL_DISABLE_PERM_MGMT: "1" }
    command:
      - agent
      - -node=agent
      - -client=0.0.0.0
      - '-advertise={{ GetInterfaceIP "eth0" }}'
      - -data-dir=/consul/data
      - -retry-join=consul
      - -retry-interval=1s
      - -log-level=warn
      - -hcl=disable_update_check = true
    labels: { SERVICE_IGNORE: "true" }
  registrar:
    environment: { CONSUL_HTTP_ADDR: "http://agent:8500" }
`

// agentFault is a stack under load with three apps that are registered on a client agent.
type agentFault struct {
	*stack
	agent  string // its container
	server *api.Client
	load   *traffic.Load
}

func startAgentFault(t *testing.T) *agentFault {
	t.Helper()
	s := newStack(t, withAgent)
	s.up()
	server, err := api.NewClient(&api.Config{Address: s.consul})
	if err != nil {
		t.Fatal(err)
	}
	if list, _, err := server.Catalog().Service("app", "", nil); err != nil || len(list) == 0 || list[0].Node != "agent" {
		t.Fatalf("the agent has none of the apps: %v, %v", list, err)
	}
	return &agentFault{s, s.Containers("agent")[0], server, startLoad(t, s)}
}

// expectNode returns nil if the agent's node exists and its own check has the status, or if it does not exist and the
// status is "".
func (f *agentFault) expectNode(status string) error {
	checks, _, err := f.server.Health().Node("agent", nil)
	if err != nil {
		return err
	}
	is := ""
	for _, c := range checks {
		if c.CheckID == "serfHealth" {
			is = c.Status
		}
	}
	if is != status {
		return fmt.Errorf("the check of its node is %q, want %q", is, status)
	}
	return nil
}

// ends waits until the agent is back with everything and a new app answers, and then checks that no request failed.
func (f *agentFault) ends(during string) {
	f.Helper()
	f.Eventually(30*time.Second, "the node is well", func() error { return f.expectNode(api.HealthPassing) })
	f.Eventually(20*time.Second, "all are in the catalog", func() error { return f.expectCatalog(f.Containers("app")) })
	f.scale(4)
	f.Eventually(20*time.Second, "four answer", func() error { return f.expectHosts(4) })
	f.ended(f.load, during)
}

// A client agent leaves when it is stopped, and takes everything registered on it out of the catalog, although that still
// answers.
func TestE2EAgentRestarted(t *testing.T) {
	f := startAgentFault(t)
	restarted := make(chan error, 1)
	go func() {
		_, err := testenv.Docker("restart", f.agent)
		restarted <- err
	}()
	f.Eventually(20*time.Second, "the node is gone", func() error { return f.expectNode("") })
	if err := <-restarted; err != nil {
		t.Fatal(err)
	}
	f.ends("the agent restarted")
}

// An agent that is cut off from the servers turns its node's check critical, and with it all instances.
func TestE2EAgentCutOff(t *testing.T) {
	f := startAgentFault(t)
	since := time.Now()
	f.Docker("pause", f.agent)
	t.Cleanup(func() { _, _ = testenv.Docker("unpause", f.agent) }) // compose could not stop it
	f.Eventually(25*time.Second, "the node is critical", func() error { return f.expectNode(api.HealthCritical) })
	f.lasts(since, 30*time.Second)
	f.Docker("unpause", f.agent)
	f.ends("the agent paused")
}

// A killed agent does not leave: it looks cut off, and comes back as a new process.
func TestE2EAgentKilled(t *testing.T) {
	f := startAgentFault(t)
	since := time.Now()
	f.Docker("kill", f.agent)
	f.Eventually(25*time.Second, "the node is critical", func() error { return f.expectNode(api.HealthCritical) })
	f.lasts(since, 30*time.Second)
	f.Docker("start", f.agent)
	f.ends("the agent killed")
}
