//go:build e2e

package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"berth/deploy/testenv"
	"berth/templates"
)

// A port that another program has costs the service that asks for it, and nobody else: before the first configuration, and
// when it comes later.
func TestE2EPortInUse(t *testing.T) {
	http := testenv.FreeAddress(t, "127.0.0.1")
	s := startStack(t, kindHAProxy, "--publish", http+":8080")
	s.register("web", "route_path", "/")
	s.register("taken", "route_port", "8600") // by Consul's DNS
	s.berth("--tcp-ports", "5432,8300,8600")
	expect := func(has, lacks []string) {
		t.Helper()
		testenv.Eventually(t, 20*time.Second, "web is served, and what has a free port", func() error {
			if _, err := testenv.Get("http://" + http + "/v1/status/leader"); err != nil {
				return err
			}
			file, err := s.file()
			for _, line := range has {
				if !strings.Contains(file, line) {
					err = errors.Join(err, fmt.Errorf("no %s", line))
				}
			}
			for _, line := range lacks {
				if strings.Contains(file, line) {
					err = errors.Join(err, fmt.Errorf("there is %s", line))
				}
			}
			return err
		})
	}
	expect(nil, []string{"bind :8600"})
	s.register("free", "route_port", "5432")
	expect([]string{"bind :5432"}, []string{"bind :8600"})
	s.register("taken-too", "route_port", "8300") // by Consul's servers
	s.says(`service \"taken\": port 8600: another program listens there`)
	s.says(`service \"taken-too\": port 8300: another program listens there`)
	expect([]string{"bind :5432"}, []string{"bind :8300", "bind :8600"})
}

// A port on which the operator's template listens itself stays the operator's, whoever asks for it: before the first
// configuration, and later.
func TestE2EPortOfTheTemplate(t *testing.T) {
	for _, tt := range []struct{ proxy, template string }{
		{kindHAProxy, templates.HAProxy() + `
frontend operator.in
    mode http
    timeout client 10s
    bind :9080
    bind :9081
    http-request return status 200 content-type text/plain string operator
`},
		{kindNginx, strings.Replace(templates.Nginx(), "\nhttp {\n", `
http {
    server {
        listen 9080;
        listen 9081;
        location / {
            return 200 operator;
        }
    }
`, 1)},
	} {
		t.Run(tt.proxy, func(t *testing.T) {
			first, second, db := testenv.FreeAddress(t, "127.0.0.1"), testenv.FreeAddress(t, "127.0.0.1"), testenv.FreeAddress(t, "127.0.0.1")
			s := startStack(t, tt.proxy, "--publish", first+":9080", "--publish", second+":9081", "--publish", db+":5432")
			dir := testenv.Dir(t)
			testenv.File(t, dir, "own.ctmpl", tt.template)
			s.options = append(s.options, "--volume", dir+":/etc/berth:ro")
			s.register("stranger", "route_port", "9080")
			s.berth("--template", "/etc/berth/own.ctmpl", "--tcp-ports", "5432,9080,9081")
			answers := func(address string) {
				t.Helper()
				for n := range 40 {
					if got := testenv.Answer("http://" + address + "/v1/status/leader"); got != "operator" {
						t.Fatalf("request %d to port %s is answered %q", n, address, got)
					}
				}
			}
			testenv.Eventually(t, 20*time.Second, "the operator's server answers", func() error {
				_, err := testenv.Get("http://" + first)
				return err
			})
			answers(first)
			s.says(`service \"stranger\": port 9080: the configuration listens there itself, in `)
			s.says("; free it or set another SERVICE_ROUTE_PORT")

			s.register("later", "route_port", "9081")
			s.says(`service \"later\": port 9081: the configuration listens there itself, in `)
			s.register("db", "route_port", "5432")
			testenv.Eventually(t, 20*time.Second, "a service with a port of its own is served", func() error {
				_, err := testenv.Get("http://" + db + "/v1/status/leader")
				return err
			})
			answers(first)
			answers(second)
		})
	}
}
