package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/hashicorp/consul/api"
)

// Addresses of Consul as people write them.
func TestConsulAddress(t *testing.T) {
	for _, tt := range []struct{ given, address, user, refused string }{
		{given: "http://consul:8500", address: "http://consul:8500"},
		{given: "http://consul:8500/", address: "http://consul:8500"},
		{given: " http://consul:8500\n", address: "http://consul:8500"},
		{given: "https://consul/base/", address: "https://consul/base"},
		{given: "consul:8500", address: "http://consul:8500"},
		{given: "consul:8500/", address: "http://consul:8500"},
		{given: "consul", address: "http://consul:8500"},
		{given: "http://consul", address: "http://consul"},
		{given: "[::1]:8500", address: "http://[::1]:8500"},
		{given: "http://me:s3cret@consul:8500", address: "http://consul:8500", user: "me:s3cret"},
		{given: "unix:///run/consul.sock", address: "unix:///run/consul.sock"},
		{given: "tcp://consul:8500", refused: `not "tcp://consul:8500"`},
		{given: "htp://consul:8500", refused: "consul-address must be like"},
		{given: "http:/consul:8500", refused: "consul-address must be like"},
		{given: "http://", refused: "consul-address must be like"},
		{given: "http://consul:", refused: "consul-address must be like"},
		{given: "http://me:s3 cret@consul:8500", refused: `not "...@consul:8500"`},
	} {
		conf := api.DefaultConfig()
		err := useAddress(conf, Config{ConsulAddress: tt.given})
		if tt.refused != "" {
			if err == nil || !strings.Contains(err.Error(), tt.refused) || strings.Contains(err.Error(), "cret@") || !errors.As(err, new(usageError)) {
				t.Errorf("%q: %v, want %q", tt.given, err, tt.refused)
			}
			continue
		}
		user := ""
		if conf.HttpAuth != nil {
			user = conf.HttpAuth.Username + ":" + conf.HttpAuth.Password
		}
		if err != nil || conf.Address != tt.address || user != tt.user {
			t.Errorf("%q: %q, %q, %v, want %q, %q", tt.given, conf.Address, user, err, tt.address, tt.user)
		}
	}
	t.Setenv("CONSUL_HTTP_ADDR", "htp://consul")
	if err := useAddress(api.DefaultConfig(), Config{}); err == nil || !strings.HasPrefix(err.Error(), "CONSUL_HTTP_ADDR must be like") {
		t.Error(err)
	}
	t.Setenv("CONSUL_HTTP_SSL", "maybe")
	if err := useAddress(api.DefaultConfig(), Config{ConsulAddress: "consul"}); err == nil || err.Error() != `CONSUL_HTTP_SSL must be true or false, not "maybe"` {
		t.Error(err)
	}
}

// A path before the API stays, whatever is at its end.
func TestConsulBehindPath(t *testing.T) {
	var paths []string
	consul := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		paths = append(paths, r.URL.Path)
		_, _ = w.Write([]byte("{}"))
	}))
	defer consul.Close()
	for _, path := range []string{"", "/", "/base", "/base/"} {
		client, err := consulClient(Config{ConsulAddress: consul.URL + path})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Agent().Services(); err != nil {
			t.Error(err)
		}
	}
	if got := strings.Join(paths, " "); got != "/v1/agent/services /v1/agent/services /base/v1/agent/services /base/v1/agent/services" {
		t.Errorf("asked %s", got)
	}
}

// Without /etc/hosts localhost is found all the same, and an address that nobody gave is not taken for granted.
func TestConsulRemedies(t *testing.T) {
	dialled := ""
	transport := &http.Transport{DialContext: func(_ context.Context, _, address string) (net.Conn, error) {
		dialled = address
		if address == "localhost:8500" {
			return nil, &net.DNSError{Err: "no such host", Name: "localhost"}
		}
		return nil, syscall.ECONNREFUSED
	}}
	explainConsul(transport, true)
	_, err := transport.DialContext(t.Context(), "tcp", "localhost:8500")
	if dialled != "127.0.0.1:8500" || !errors.Is(err, syscall.ECONNREFUSED) || !strings.Contains(err.Error(), "--consul-address or CONSUL_HTTP_ADDR") {
		t.Errorf("dialled %s: %v", dialled, err)
	}
}

func TestDockerHost(t *testing.T) {
	for host, refused := range map[string]string{
		"": "", "unix:///run/docker.sock": "", "tcp://10.0.0.1:2375": "", "https://10.0.0.1:2376": "",
		"127.0.0.1:2375": "must be like", "/var/run/docker.sock": "must be like", "unix://": "must be like", "ssh://me@host": "ssh -L",
	} {
		t.Setenv("DOCKER_HOST", host)
		if err := checkDockerHost(); (err == nil) != (refused == "") || err != nil && !strings.Contains(err.Error(), refused) {
			t.Errorf("%q: %v, want %q", host, err, refused)
		}
	}
}

// What keeps berth from Docker's socket is said with the remedy, by every call.
func TestDockerRemedies(t *testing.T) {
	ask := func(says string) {
		t.Helper()
		client, err := dockerClient()
		if err != nil {
			t.Fatal(err)
		}
		if err := client.Ping(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
	path := filepath.Join(t.TempDir(), "docker.sock")
	t.Setenv("DOCKER_HOST", "unix://"+path)
	ask("mount Docker's socket there")
	if got := groupRemedy(path); !strings.Contains(got, "which stat -c %g "+path+" says") || strings.Contains(got, "$") { // compose runs no commands
		t.Error(got)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Chown(path, -1, os.Getgid()); err != nil {
		t.Fatal(err)
	}
	if got, group := groupRemedy(path), strconv.Itoa(os.Getgid()); !strings.Contains(got, "--group-add "+group+",") {
		t.Error(got)
	}
	if os.Getuid() == 0 {
		return // root may open every socket
	}
	if err := os.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
	ask("give berth the group of the socket")
}
