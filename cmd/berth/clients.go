package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	docker "github.com/fsouza/go-dockerclient"
	"github.com/hashicorp/consul-template/config"
	"github.com/hashicorp/consul/api"

	"berth/registrar"
	"berth/templater/catalog"
)

// consulConfig is what the standard CONSUL_* variables say, with berth's own options over it, ready to be used: with an
// http.Client that follows the files of token and certificate, and speaks HTTP/2 where Consul does (over TLS).
func consulConfig(c Config) (*api.Config, error) {
	conf := api.DefaultConfig()
	if c.ConsulAddress != "" {
		conf.Address = c.ConsulAddress
	}
	if c.ConsulTokenFile != "" {
		conf.TokenFile = c.ConsulTokenFile
	}
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
	if conf.TokenFile != "" {
		conf.HttpClient.Transport = catalog.FollowToken(conf.HttpClient.Transport, conf)
	}
	return conf, nil
}

func consulClient(c Config) (*api.Client, error) {
	conf, err := consulConfig(c)
	if err != nil {
		return nil, err
	}
	return api.NewClient(conf)
}

// libraryConfig is what consul-template makes of the standard VAULT_* and NOMAD_* variables; nil without any.
func libraryConfig() *config.Config {
	if os.Getenv("VAULT_ADDR") == "" && os.Getenv("NOMAD_ADDR") == "" {
		return nil
	}
	c := config.DefaultConfig()
	c.Finalize()
	return c
}

// dockerClient is a client for what the standard DOCKER_* variables say.
func dockerClient() (*docker.Client, error) {
	if os.Getenv("DOCKER_TLS_VERIFY") != "" {
		dir := os.Getenv("DOCKER_CERT_PATH")
		if dir == "" {
			home, _ := os.UserHomeDir()
			dir = filepath.Join(home, ".docker")
		}
		// The client would go on without verification.
		if _, err := os.Stat(filepath.Join(dir, "ca.pem")); err != nil {
			return nil, fmt.Errorf("DOCKER_TLS_VERIFY is set, but the CA to verify with cannot be read: %w", err)
		}
	}
	client, err := docker.NewClientFromEnv()
	if err != nil {
		return nil, fmt.Errorf("docker client: %w", err)
	}
	return client, nil
}

// hostDescription returns a function that describes the Docker host, for the registrar to ask at every resync. Without
// networks given, they are those of the container that berth runs in: whoever deploys it puts it on the networks that
// it shares with the load balancer. What the Consul agent says of itself is remembered for when it is away.
func hostDescription(client *docker.Client, consul *api.Client, c Config) func(ctx context.Context) (registrar.Host, error) {
	h := registrar.Host{Internal: c.Internal, Explicit: c.Explicit, IP: c.IP, TTL: c.TTL, Policy: c.Policy}
	return func(ctx context.Context) (registrar.Host, error) {
		var err error
		if h.EngineID, h.Name, err = registrar.Engine(ctx, client); err != nil {
			return h, err
		}
		h.Networks = c.Network
		if len(h.Networks) == 0 {
			if h.Networks, err = ownNetworks(ctx, client); err != nil {
				return h, err
			}
		}
		var self struct {
			Member      struct{ Addr string }
			DebugConfig struct{ EnableRemoteScriptChecks bool }
		}
		if _, err := consul.Raw().Query("/v1/agent/self", &self, new(api.QueryOptions).WithContext(ctx)); err == nil {
			h.NodeAddress = self.Member.Addr
			h.Scripts = c.Scripts && self.DebugConfig.EnableRemoteScriptChecks
		}
		return h, nil
	}
}

func ownNetworks(ctx context.Context, client *docker.Client) ([]string, error) {
	id := ownContainer()
	if id == "" {
		return nil, nil
	}
	c, err := client.InspectContainerWithOptions(docker.InspectContainerOptions{Context: ctx, ID: id})
	var none *docker.NoSuchContainer
	if errors.As(err, &none) {
		return nil, nil // in a container of another engine than the one it watches
	}
	if err != nil {
		return nil, fmt.Errorf("inspect berth's own container: %w", err)
	}
	var names []string
	for name := range c.NetworkSettings.Networks {
		if name != "host" && name != "none" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// Docker mounts these files of its own into every container; the source tells the container's ID.
var ownMount = regexp.MustCompile(`/containers/([0-9a-f]{64})/(?:hostname|hosts|resolv\.conf) `)

func ownContainer() string {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	if m := ownMount.FindSubmatch(mounts); m != nil {
		return string(m[1])
	}
	return ""
}
