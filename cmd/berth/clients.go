package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	docker "github.com/fsouza/go-dockerclient"
	"github.com/hashicorp/consul-template/config"
	"github.com/hashicorp/consul/api"

	registrardocker "berth/registrar/docker"
	"berth/registrar/label"
	"berth/templater/catalog"
)

// consulConfig returns the configuration from berth's own options and the standard CONSUL_* variables; options come first. Its
// http.Client follows changes of the token and certificate files, and speaks HTTP/2 if Consul does (over TLS).
func consulConfig(c Config) (*api.Config, error) {
	conf := api.DefaultConfig()
	if err := useAddress(conf, c); err != nil {
		return nil, err
	}
	if c.ConsulTokenFile != "" {
		conf.TokenFile = c.ConsulTokenFile
	}
	explainConsul(conf.Transport, c.ConsulAddress == "" && os.Getenv(api.HTTPAddrEnvName) == "")
	catalog.Tune(conf.Transport, cmp.Or(c.ConsulConnections, catalog.DefaultConnections))
	if path, ok := strings.CutPrefix(conf.Address, "unix://"); ok {
		// The client would open a connection for each request.
		conf.Address = "localhost"
		conf.Transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
	}
	if _, err := api.NewClient(conf); err != nil { // fills in the rest
		return nil, err
	}
	if cert, key := conf.TLSConfig.CertFile, conf.TLSConfig.KeyFile; cert != "" && key != "" {
		conf.Transport.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(cert, key)
			return &pair, err
		}
	}
	conf.HttpClient.Transport = catalog.ExplainTLS(conf.HttpClient.Transport, conf)
	if conf.TokenFile != "" {
		conf.HttpClient.Transport = catalog.FollowToken(conf.HttpClient.Transport, conf)
	}
	return conf, nil
}

// consulToken returns a function that returns the current token of Consul's client.
func consulToken(c Config) func() string {
	conf := api.DefaultConfig()
	if c.ConsulTokenFile != "" {
		conf.TokenFile = c.ConsulTokenFile
	}
	last := conf.Token
	return func() string {
		if conf.TokenFile != "" {
			content, _ := os.ReadFile(conf.TokenFile) // the last token is good until there is another one
			last = cmp.Or(strings.TrimSpace(string(content)), last)
		}
		return last
	}
}

func consulClient(c Config) (*api.Client, error) {
	conf, err := consulConfig(c)
	if err != nil {
		return nil, err
	}
	return api.NewClient(conf)
}

// libraryConfig returns consul-template's configuration from the standard VAULT_* and NOMAD_* variables, nil if neither has
// an address.
func libraryConfig() *config.Config {
	if os.Getenv("VAULT_ADDR") == "" && os.Getenv("NOMAD_ADDR") == "" {
		return nil
	}
	c := config.DefaultConfig()
	c.Finalize()
	return c
}

// dockerClient returns a client for the Docker that the standard DOCKER_* variables name.
func dockerClient() (*docker.Client, error) {
	if os.Getenv("DOCKER_TLS_VERIFY") != "" {
		dir := os.Getenv("DOCKER_CERT_PATH")
		if dir == "" {
			home, _ := os.UserHomeDir()
			dir = filepath.Join(home, ".docker")
		}
		// The client would go on without verification.
		if _, err := os.Stat(filepath.Join(dir, "ca.pem")); err != nil {
			return nil, fmt.Errorf("DOCKER_TLS_VERIFY is set, but the CA cannot be read: %w", err)
		}
	}
	if err := checkDockerHost(); err != nil {
		return nil, err
	}
	client, err := docker.NewClientFromEnv()
	if err != nil {
		return nil, fmt.Errorf("docker client: %w", err)
	}
	registrardocker.NoticeVanished(client)
	explainDocker(client)
	return client, nil
}

// hostDescription returns a function that describes the Docker host and its Consul agent's node. The agent has a second to
// answer, since it may hang; when it does not, its last answer counts.
func hostDescription(client *docker.Client, consul *api.Client, configured label.Host) func(ctx context.Context) (label.Host, error) {
	describe := registrardocker.Host(client, configured)
	var node label.Host
	return func(ctx context.Context) (label.Host, error) {
		var self struct {
			Member      struct{ Addr string }
			DebugConfig struct {
				EnableRemoteScriptChecks bool
				TaggedAddresses          map[string]string
			}
		}
		second, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := consul.Raw().Query("/v1/agent/self", &self, new(api.QueryOptions).WithContext(second)); err == nil {
			node = label.Host{NodeAddress: self.Member.Addr, Scripts: configured.Scripts && self.DebugConfig.EnableRemoteScriptChecks}
			for _, tag := range slices.Sorted(maps.Keys(self.DebugConfig.TaggedAddresses)) {
				if a, err := netip.ParseAddr(self.DebugConfig.TaggedAddresses[tag]); err == nil {
					node.Addresses = append(node.Addresses, a)
				}
			}
		}
		h, err := describe(ctx)
		h.NodeAddress, h.Addresses, h.Scripts = node.NodeAddress, node.Addresses, node.Scripts
		return h, err
	}
}
