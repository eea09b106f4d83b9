//go:build e2e

package testenv

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

// Secured is a Consul as recommended for production: no access without a token, encrypted gossip, and mutual TLS for HTTPS
// and RPC. The embedded Consul is its only server.
type Secured struct {
	*Consul
	Network string // its own Docker network, where an agent is found by its container name
	Dir     string // has ca.pem, client.pem and client-key.pem for clients
	CA      *CA    // writes to Dir

	name   string // prefix of all container names
	args   []string
	agents int
}

// httpsPort is the only port of a secured agent's HTTP API.
const httpsPort = "8501"

// StartSecured starts a server and waits until it answers. Its Client has all rights. Further arguments go to consul agent,
// for all of its agents.
func StartSecured(t testing.TB, args ...string) *Secured {
	t.Helper()
	dir, name := Dir(t), Name(t)
	s := &Secured{Network: name + "-net", Dir: dir, CA: NewCA(t, dir), name: name}
	MustDocker(t, "network", "create", s.Network)
	s.CA.Issue(t, "client")
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	s.args = append([]string{
		"-client=0.0.0.0", `-advertise={{ GetInterfaceIP "eth0" }}`, "-data-dir=/consul/data",
		fmt.Sprintf(`-hcl=encrypt = %q`, base64.StdEncoding.EncodeToString(key)),
		`-hcl=ports { http = -1, https = ` + httpsPort + ` }`,
		`-hcl=acl { enabled = true, default_policy = "deny" }`,
		`-hcl=tls {
			defaults { ca_file = "` + dir + `/ca.pem", verify_incoming = true, verify_outgoing = true }
			internal_rpc { verify_server_hostname = true }
		}`,
	}, args...)
	management := newUUID()
	s.Consul = s.start(t, "server", management, "server.dc1.consul", "-server", "-bootstrap-expect=1",
		fmt.Sprintf(`-hcl=acl { tokens { initial_management = %q, agent = %[1]q } }`, management))
	s.Answers(t)
	return s
}

// StartAgent starts a client agent, which joins the server with the token of its node. Its Client has all rights. The agent
// may need a moment to answer. Further arguments go to consul agent.
func (s *Secured) StartAgent(t testing.TB, args ...string) *Consul {
	t.Helper()
	s.agents++
	node := fmt.Sprintf("agent-%d", s.agents)
	var token *api.ACLToken
	Eventually(t, time.Minute, "Consul makes a token for an agent", func() (err error) {
		token, _, err = s.ACL().TokenCreate(&api.ACLToken{NodeIdentities: []*api.ACLNodeIdentity{{NodeName: node, Datacenter: "dc1"}}}, nil)
		return err
	})
	return s.start(t, node, s.Token, "client.dc1.consul", append([]string{"-retry-join=" + s.Name, "-retry-interval=1s",
		fmt.Sprintf(`-hcl=acl { tokens { agent = %q } }`, token.SecretID)}, args...)...)
}

// start starts the agent of a node with its own certificate, valid for its role.
func (s *Secured) start(t testing.TB, node, token, role string, args ...string) *Consul {
	t.Helper()
	name, port := s.name+"-"+node, FreePort(t)
	s.CA.Issue(t, node, role, name, "localhost", "127.0.0.1")
	certificate := fmt.Sprintf(`-hcl=tls { defaults { cert_file = "%[1]s.pem", key_file = "%[1]s-key.pem" } }`, filepath.Join(s.Dir, node))
	return StartConsul(t, ConsulOptions{
		Name:    name,
		Address: "127.0.0.1:" + port,
		Docker: []string{"--network", s.Network, "--publish", "127.0.0.1:" + port + ":" + httpsPort,
			"--volume", s.Dir + ":" + s.Dir + ":ro"},
		Args:  slices.Concat(s.args, []string{"-node=" + node, certificate}, args),
		Token: token,
		TLS: api.TLSConfig{CAFile: s.Dir + "/ca.pem", CertFile: s.Dir + "/client.pem",
			KeyFile: s.Dir + "/client-key.pem"},
	})
}

// Env returns the variables for a process on this host to talk to the agent.
func (c *Consul) Env(token string) []string { return c.env(c.Address, token) }

// ContainerEnv returns the variables for a container on a Secured's Network to talk to the agent. The directory of the
// certificates must have the same path in the container: --volume DIR:DIR:ro.
func (c *Consul) ContainerEnv(token string) []string { return c.env(c.Name+":"+httpsPort, token) }

func (c *Consul) env(address, token string) []string {
	return []string{
		"CONSUL_HTTP_ADDR=" + address, "CONSUL_HTTP_SSL=true", "CONSUL_HTTP_TOKEN=" + token,
		"CONSUL_CACERT=" + c.TLS.CAFile, "CONSUL_CLIENT_CERT=" + c.TLS.CertFile, "CONSUL_CLIENT_KEY=" + c.TLS.KeyFile,
	}
}

func newUUID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b)
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
