//go:build e2e

package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/deploy/testenv"
)

// stack is Consul, and in its network a container of a proxy that berth runs.
type stack struct {
	testing.TB
	consul  *testenv.Consul
	proxy   string   // its kind
	image   string   // has berth, too
	options []string // of docker run
	id      string   // of the container
}

// startStack starts Consul. publish are arguments of docker run.
func startStack(t testing.TB, proxy string, publish ...string) *stack {
	t.Helper()
	s := &stack{TB: t, proxy: proxy, image: testenv.WithBerth(t, testenv.Image(t, "IMAGE_"+strings.ToUpper(proxy)))}
	address := testenv.FreeAddress(t, "127.0.0.1")
	s.consul = testenv.StartConsul(t, testenv.ConsulOptions{
		Name: testenv.Name(t) + "-consul", Address: address,
		Docker: append(publish, "--publish", address+":8500"),
		Args:   []string{"-dev", "-client=0.0.0.0"},
	})
	s.consul.Answers(t)
	return s
}

// register registers a service's only instance, whose server is Consul's HTTP API, and whose metadata is a key and a value.
func (s *stack) register(name, key, value string) {
	s.Helper()
	s.registerAs(name, name, key, value)
}

func (s *stack) registerAs(id, name, key, value string) {
	s.Helper()
	i := &api.AgentServiceRegistration{ID: id, Name: name, Address: "127.0.0.1", Port: 8500, Meta: map[string]string{key: value}}
	if err := s.consul.Agent().ServiceRegister(i); err != nil {
		s.Fatal(err)
	}
}

// berth starts the templater with the proxy.
func (s *stack) berth(options ...string) {
	s.Helper()
	args := append([]string{"--network", "container:" + s.consul.Name, "--user", "0:0", "--tmpfs", "/run/" + s.proxy}, s.options...)
	if s.proxy == kindHAProxy {
		args = append(args, "--tmpfs", "/etc/haproxy") // nginx's directory has the modules
	}
	args = append(args, s.image, "berth", "templater", "--listen", "none")
	args = append(append(args, options...), "--", s.proxy)
	if s.proxy == kindHAProxy {
		args = append(args, "-W", "-db")
	}
	s.id = testenv.Run(s, args...)
}

// file returns the configuration file.
func (s *stack) file() (string, error) {
	path := newHAProxy().File
	if s.proxy == kindNginx {
		path = newNginx().File
	}
	return testenv.Docker("exec", s.id, "cat", path)
}

// says waits until berth's log has a text.
func (s *stack) says(text string) {
	s.Helper()
	testenv.Eventually(s, 20*time.Second, "it says "+text, func() error {
		logs, err := testenv.Docker("logs", s.id)
		if err == nil && !strings.Contains(logs, text) {
			err = errors.New("it does not")
		}
		return err
	})
}
