//go:build e2e

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/deploy/testenv"
)

// A port that another program has costs the service that asks for it, and nobody else: before the first configuration, and
// when it comes later.
func TestE2EPortInUse(t *testing.T) {
	web, http := testenv.FreeAddress(t, "127.0.0.1"), testenv.FreeAddress(t, "127.0.0.1")
	consul := testenv.StartConsul(t, testenv.ConsulOptions{
		Name: testenv.Name(t) + "-consul", Address: http,
		Docker: []string{"--publish", web + ":8080", "--publish", http + ":8500"},
		Args:   []string{"-dev", "-client=0.0.0.0"},
	})
	consul.Answers(t)
	register := func(name string, port int, meta ...string) {
		t.Helper()
		s := &api.AgentServiceRegistration{Name: name, Address: "127.0.0.1", Port: port, Meta: map[string]string{meta[0]: meta[1]}}
		if err := consul.Agent().ServiceRegister(s); err != nil {
			t.Fatal(err)
		}
	}
	register("web", 8500, "route_path", "/")
	register("taken", 8500, "route_port", "8600") // by Consul's DNS

	dir := testenv.Dir(t)
	id := testenv.Run(t, "--network", "container:"+consul.Name, "--user", fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid()),
		"--volume", dir+":/etc/haproxy", "--volume", testenv.Dir(t)+":/run/haproxy", testenv.WithBerth(t, testenv.Image(t, "IMAGE_HAPROXY")),
		"berth", "templater", "--listen", "none", "--tcp-ports", "5432,8300,8600", "--", "haproxy", "-W", "-db")
	expect := func(has, lacks []string) {
		t.Helper()
		testenv.Eventually(t, 20*time.Second, "web is served, and what has a free port", func() error {
			if _, err := testenv.Get("http://" + web + "/v1/status/leader"); err != nil {
				return err
			}
			file, err := os.ReadFile(filepath.Join(dir, "haproxy.cfg"))
			for _, line := range has {
				if !strings.Contains(string(file), line) {
					err = errors.Join(err, fmt.Errorf("no %s", line))
				}
			}
			for _, line := range lacks {
				if strings.Contains(string(file), line) {
					err = errors.Join(err, fmt.Errorf("there is %s", line))
				}
			}
			return err
		})
	}
	expect(nil, []string{"bind :8600"})
	register("free", 8500, "route_port", "5432")
	expect([]string{"bind :5432"}, []string{"bind :8600"})
	register("taken-too", 8500, "route_port", "8300") // by Consul's servers
	testenv.Eventually(t, 20*time.Second, "both are said to be left out", func() error {
		logs, err := testenv.Docker("logs", id)
		for _, says := range []string{`service \"taken\": port 8600: another program listens there`, `service \"taken-too\": port 8300: another program listens there`} {
			if !strings.Contains(logs, says) {
				err = errors.Join(err, errors.New("it does not say "+says))
			}
		}
		return err
	})
	expect([]string{"bind :5432"}, []string{"bind :8300", "bind :8600"})
}
