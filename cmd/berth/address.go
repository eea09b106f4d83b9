package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"

	docker "github.com/fsouza/go-dockerclient"
	"github.com/hashicorp/consul/api"
)

// useAddress sets Consul's address from any common spelling: with a trailing slash, with user and password, or only a host. Its
// errors do not show a password.
func useAddress(conf *api.Config, c Config) error {
	option, text := "consul-address", c.ConsulAddress
	if text == "" {
		option, text = api.HTTPAddrEnvName, os.Getenv(api.HTTPAddrEnvName)
	} else if c.origin != nil {
		option = c.origin(option)
	}
	text = strings.TrimSpace(text)
	for _, name := range []string{api.HTTPSSLEnvName, api.HTTPSSLVerifyEnvName} {
		if value := os.Getenv(name); value != "" {
			if _, err := strconv.ParseBool(value); err != nil {
				return usageError{error: fmt.Errorf("%s must be true or false, not %q", name, value)}
			}
		}
	}
	if text == "" {
		return nil
	}
	if strings.HasPrefix(text, "unix://") {
		conf.Address = text
		return nil
	}
	scheme, rest, found := strings.Cut(text, "://")
	if !found {
		scheme, rest = conf.Scheme, text
		if host, _, _ := strings.Cut(rest, "/"); !strings.Contains(host, ":") {
			rest = host + ":8500" + rest[len(host):]
		}
	}
	u, err := url.Parse(scheme + "://" + rest)
	if err != nil || u.Hostname() == "" || (scheme != "http" && scheme != "https") || strings.HasSuffix(u.Host, ":") || u.RawQuery != "" {
		shown := text
		if at := strings.LastIndex(text, "@"); at >= 0 {
			shown = "...@" + text[at+1:]
		}
		return usageError{error: fmt.Errorf("%s must be like http://127.0.0.1:8500 or unix:///run/consul.sock, not %q", option, shown)}
	}
	if u.User != nil {
		password, _ := u.User.Password()
		conf.HttpAuth = &api.HttpBasicAuth{Username: u.User.Username(), Password: password}
	}
	conf.Address = scheme + "://" + u.Host + strings.TrimRight(u.Path, "/")
	return nil
}

// explainConsul adds a remedy to connection errors where one is obvious, and resolves localhost in a container without
// /etc/hosts.
func explainConsul(t *http.Transport, nobodySaidWhere bool) {
	dial := t.DialContext
	t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		var unknown *net.DNSError
		if host, port, _ := net.SplitHostPort(address); host == "localhost" && errors.As(err, &unknown) {
			conn, err = dial(ctx, network, net.JoinHostPort("127.0.0.1", port))
		}
		if err != nil && nobodySaidWhere && ctx.Err() == nil {
			err = fmt.Errorf("%w: set Consul's address with --consul-address or %s", err, api.HTTPAddrEnvName)
		}
		return conn, err
	}
}

// checkDockerHost refuses values that the client would misinterpret.
func checkDockerHost() error {
	host := os.Getenv("DOCKER_HOST")
	scheme, rest, _ := strings.Cut(host, "://")
	switch {
	case host == "", rest != "" && (scheme == "unix" || scheme == "tcp" || scheme == "http" || scheme == "https"):
		return nil
	case scheme == "ssh":
		return usageError{error: errors.New("DOCKER_HOST: berth does not support ssh: run it on that host, or forward the socket (ssh -L)")}
	}
	return usageError{error: fmt.Errorf("DOCKER_HOST must be like unix:///var/run/docker.sock or tcp://127.0.0.1:2375, not %q", host)}
}

// explainDocker makes connections to a Docker socket fail with the remedy.
func explainDocker(client *docker.Client) {
	path, isUnix := strings.CutPrefix(client.Endpoint(), "unix://")
	t, ok := client.HTTPClient.Transport.(*http.Transport)
	if !ok || !isUnix {
		return
	}
	dial := t.DialContext
	t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		switch {
		case errors.Is(err, fs.ErrPermission):
			err = fmt.Errorf("%w: %s", err, groupRemedy(path))
		case errors.Is(err, fs.ErrNotExist):
			err = fmt.Errorf("%w: mount Docker's socket there (-v /var/run/docker.sock:/var/run/docker.sock), or set DOCKER_HOST", err)
		}
		return conn, err
	}
}

// groupRemedy says which group berth needs to use a socket.
func groupRemedy(path string) string {
	if info, err := os.Stat(path); err == nil {
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			return fmt.Sprintf(`give berth the group of the socket (docker run --group-add %[1]d, in compose group_add: ["%[1]d"])`, stat.Gid)
		}
	}
	return fmt.Sprintf("give berth the group of the socket, which stat -c %%g %s says (docker run --group-add, in compose group_add)", path)
}
