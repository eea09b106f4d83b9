package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/deploy/testenv"
	"berth/registrar"
)

// running is what a running registrar says in the tests.
func running(context.Context) (registrar.Report, error) {
	return registrar.Report{
		Containers: []registrar.Planned{
			{Container: "shop_web_1", ID: "aaa1", ComposeService: "web", Replace: "start-first", Reasons: []string{"its tag is left out"}, Instances: []registrar.PlannedInstance{
				{Service: "web", ID: "vm:shop_web_1:80", Endpoint: "10.0.0.1:80", ReadyWhen: "at once", Routes: []string{"shop.example.com/"}, State: registrar.Registered},
			}},
			{Container: "shop_web_2", ID: "aaa2", ComposeService: "web", Instances: []registrar.PlannedInstance{
				{Service: "web", ID: "vm:shop_web_2:80", State: registrar.Critical, Reason: "HTTP GET: 500"},
				{Service: "db", ID: "vm:shop_web_2:90", NoRoute: "its path is empty", State: registrar.Registered},
			}},
			{Container: "db", ID: "bbb1", Reasons: []string{"SERVICE_IGNORE is set"}},
		},
		Problems: []string{"read services and checks: connection refused"},
	}, nil
}

// dryRunOf runs berth registrar --dry-run in this process. Neither Docker nor Consul can be asked.
func dryRunOf(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	t.Setenv("DOCKER_HOST", "unix://"+filepath.Join(t.TempDir(), "no.sock"))
	t.Setenv("CONSUL_HTTP_ADDR", "127.0.0.1:1")
	var out, log bytes.Buffer
	cmd := rootCommand()
	cmd.SetArgs(append([]string{"registrar", "--dry-run"}, args...))
	cmd.SetOut(&out)
	cmd.SetErr(&log)
	err = cmd.ExecuteContext(t.Context())
	return out.String(), log.String(), err
}

// The dry run asks the registrar that runs, so that its options need not be repeated.
func TestDryRunAsksTheRunningRegistrar(t *testing.T) {
	mux := http.NewServeMux()
	mux.Handle("GET "+reportPath, reportHandler(running))
	server := httptest.NewServer(mux)
	defer server.Close()
	address := strings.TrimPrefix(server.URL, "http://")

	out, said, err := dryRunOf(t, "--listen", address)
	want := `CONTAINER   SERVICE  INSTANCE          ADDRESS      READY WHEN  ROUTES             STATE
shop_web_1  web      vm:shop_web_1:80  10.0.0.1:80  at once     shop.example.com/  registered
shop_web_1  web      -                 -            -           -                  replaces others: start-first
shop_web_1  -        -                 -            -           -                  registered, but its tag is left out
shop_web_2  web      vm:shop_web_2:80               -           its service's      critical: HTTP GET: 500
shop_web_2  db       vm:shop_web_2:90               -           no route           registered
shop_web_2  -        vm:shop_web_2:90  -            -           -                  no route: its path is empty
db          -        -                 -            -           -                  not registered: SERVICE_IGNORE is set
`
	if out != want {
		t.Errorf("%s\nwant:\n%s", out, want)
	}
	if err == nil || err.Error() != "this may be out of date: read services and checks: connection refused" {
		t.Errorf("error: %v", err)
	}
	if said != "as the registrar that runs at "+address+" sees it\n" {
		t.Errorf("said: %q", said)
	}

	// An instance serves the routes of its service, whoever else is asked about.
	if out, _, _ = dryRunOf(t, "--listen", address, "shop_web_2"); !strings.Contains(out, " its service's ") || strings.Contains(out, "shop_web_1") {
		t.Errorf("of one container:\n%s", out)
	}

	out, _, err = dryRunOf(t, "--listen", address, "--format", "json", "web", "nosuch")
	if err == nil || !strings.Contains(err.Error(), `the compose service "nosuch"`) {
		t.Errorf("error: %v", err)
	}
	var names []string
	for decoder := json.NewDecoder(strings.NewReader(out)); decoder.More(); {
		var p registrar.Planned
		if err := decoder.Decode(&p); err != nil {
			t.Fatal(err)
		}
		names = append(names, p.Container)
	}
	if strings.Join(names, " ") != "shop_web_1 shop_web_2" || strings.Count(out, "\n") != 2 {
		t.Errorf("JSON: %s", out)
	}
}

// Where none runs, or options say what one is to do, Docker and Consul are read, and it is said.
func TestDryRunReadsAfresh(t *testing.T) {
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	failing := httptest.NewServer(reportHandler(func(context.Context) (registrar.Report, error) { return registrar.Report{}, errors.New("it is over") }))
	defer failing.Close()
	nobody := testenv.FreeAddress(t, "127.0.0.1")
	for _, tt := range []struct {
		name string
		args []string
		said string
	}{
		{"nobody", []string{"--listen", nobody}, "no registrar runs at " + nobody + ": read from Docker and Consul with these options"},
		{"a templater", []string{"--listen", strings.TrimPrefix(other.URL, "http://")}, "is not a registrar that answers (404 Not Found)"},
		{"one that is ending", []string{"--listen", strings.TrimPrefix(failing.URL, "http://")}, "is not a registrar that answers (503 "},
		{"options", []string{"--network", "front", "--internal"}, "with the given options (--internal, --network)"},
		{"none", []string{"--listen", "none"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, said, err := dryRunOf(t, tt.args...)
			if err == nil || !(strings.Contains(err.Error(), "no.sock") || strings.Contains(err.Error(), "127.0.0.1:1")) {
				t.Errorf("neither Docker nor Consul was asked: %v", err)
			}
			if first, _, _ := strings.Cut(said, "\n"); tt.said != "" && !strings.Contains(first, tt.said) {
				t.Errorf("said %q, want %q", first, tt.said)
			}
		})
	}
}

// A registrar that hangs is not waited for.
func TestDryRunOfAHangingRegistrar(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // it takes connections, and nobody answers
	began := time.Now()
	_, said, _ := dryRunOf(t, "--listen", l.Addr().String())
	if !strings.Contains(said, "the registrar at "+l.Addr().String()+" does not answer: read from Docker and Consul") {
		t.Errorf("said %q", said)
	}
	if took := time.Since(began); took > 10*reportTimeout {
		t.Errorf("it took %v", took)
	}
}

// A registrar that runs serves its report beside its metrics.
func TestRegistrarServesItsReport(t *testing.T) {
	address := testenv.FreeAddress(t, "127.0.0.1")
	t.Setenv("DOCKER_HOST", "unix://"+filepath.Join(t.TempDir(), "docker.sock"))
	start(t, "registrar", "--listen", address)
	testenv.Eventually(t, 10*time.Second, "the registrar says why it knows of no container", func() error {
		report, err := runningReport(t.Context(), address)
		if all := strings.Join(report.Problems, "\n"); err == nil && (!strings.Contains(all, "docker.sock") || len(report.Containers) > 0) {
			err = fmt.Errorf("%+v", report)
		}
		return err
	})
}

func TestDryRunBadInput(t *testing.T) {
	cmd := rootCommand()
	cmd.SetArgs([]string{"registrar", "web"})
	if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "web: a registrar registers all containers; name containers only with --dry-run") {
		t.Errorf("a name without --dry-run: %v", err)
	}
	if _, _, err := dryRunOf(t, "--format", "yaml"); err == nil || err.Error() != `format must be table or json, not "yaml"` {
		t.Errorf("%v", err)
	}
}
