package main

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rogpeppe/go-internal/testscript"

	"berth/deploy/testenv"
)

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard) // as main does
	testscript.Main(m, map[string]func(){"berth": main, "application": application})
}

// TestScript plays the files in testdata/script: what berth says to good and bad input, and how it exits.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script", Cmds: map[string]func(*testscript.TestScript, bool, []string){
		// exits CODE COMMAND... fails if the command does not exit with this code, or says more than a line about a failure.
		"exits": func(ts *testscript.TestScript, _ bool, args []string) {
			err := ts.Exec(args[1], args[2:]...)
			code := 0
			if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
				code = exit.ExitCode()
			}
			stderr := ts.ReadFile("stderr")
			if strconv.Itoa(code) != args[0] {
				ts.Fatalf("%s exits with %d, want %s\n%s", args[1:], code, args[0], stderr)
			}
			if n := strings.Count(stderr, "berth: "); code != 0 && n != 1 {
				ts.Fatalf("%s says %d lines:\n%s", args[1:], n, stderr)
			}
		},
	}})
}

// start runs berth in this process until the test ends, and fails the test if it ends by itself.
func start(t *testing.T, args ...string) *testenv.Log {
	var out testenv.Log
	cmd := rootCommand()
	cmd.SetArgs(append([]string{args[0], "--listen", "none"}, args[1:]...))
	cmd.SetErr(&out)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context())) // it is done before the clean-up
	done := make(chan error, 1)
	go func() { done <- cmd.ExecuteContext(ctx) }()
	t.Cleanup(func() {
		select {
		case err := <-done:
			t.Errorf("berth %s ended by itself: %v\n%s", strings.Join(args, " "), err, out.String())
			return
		default:
		}
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("berth %s: %v", strings.Join(args, " "), err)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("berth %s does not end", strings.Join(args, " "))
		}
	})
	return &out
}

// hang leaves a request unanswered until its client is gone. The server does not notice that before the body was read.
func hang(r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	<-r.Context().Done()
}

// What is not there is said, and waited for.
func TestGoesOnWithout(t *testing.T) {
	dir := t.TempDir()
	t.Run("docker", func(t *testing.T) {
		t.Setenv("DOCKER_HOST", "unix://"+filepath.Join(dir, "docker.sock"))
		out := start(t, "registrar")
		out.Wait(t, "Docker's event stream is broken; registrations stay as they are, trying again")
		out.Wait(t, filepath.Join(dir, "docker.sock"))
	})
	t.Run("consul", func(t *testing.T) {
		out := start(t, "templater", "--consul-address", "127.0.0.1:1")
		out.Wait(t, "requests to Consul fail, waiting for it")
		out.Wait(t, "127.0.0.1:1")
	})
	t.Run("haproxy", func(t *testing.T) {
		consul := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("index") != "" && r.URL.Query().Get("index") != "0" {
				hang(r)
				return
			}
			w.Header().Set("X-Consul-Index", "1")
			if strings.HasPrefix(r.URL.Path, "/v1/kv/") { // there are no keys
				w.WriteHeader(http.StatusNotFound)
				return
			}
			_, _ = w.Write([]byte("{}"))
		}))
		t.Cleanup(consul.CloseClientConnections)
		out := start(t, "templater", "--consul-address", consul.URL, "--haproxy-binary", "none",
			"--haproxy-config", filepath.Join(dir, "haproxy.cfg"), "--haproxy-socket", filepath.Join(dir, "master.sock"))
		out.Wait(t, "proxy not reachable")
		out.Wait(t, filepath.Join(dir, "master.sock"))
		if _, err := os.Stat(filepath.Join(dir, "haproxy.cfg")); err != nil {
			t.Errorf("without a file HAProxy cannot start: %v", err)
		}
	})
}

func TestStatus(t *testing.T) {
	var reason error
	h := statusHandler(prometheus.NewRegistry(), func() error { return reason })
	ask := func(path string) (int, string) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w.Code, w.Body.String()
	}
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		if code, body := ask(path); code != http.StatusOK {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	reason = context.DeadlineExceeded
	if code, body := ask("/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "deadline") {
		t.Errorf("/readyz: %d %s, want 503 and the reason", code, body)
	}
	if code, _ := ask("/healthz"); code != http.StatusOK {
		t.Errorf("/healthz: %d: a process that waits for something is alive", code)
	}
}

func TestOrderOfConfiguration(t *testing.T) {
	file := filepath.Join(t.TempDir(), "berth.yml")
	if err := os.WriteFile(file, []byte("resync: 10s\nready-timeout: 10s\nhaproxy-timeout: 7s\nnetwork: [a, b]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("BERTH_CONFIG", file)
	t.Setenv("BERTH_RESYNC", "20s")
	t.Setenv("BERTH_READY_TIMEOUT", "20s")
	cmd := registrarCommand()
	if err := cmd.ParseFlags([]string{"--resync", "30s"}); err != nil {
		t.Fatal(err)
	}
	c, err := readConfig(cmd.Flags())
	if err != nil {
		t.Fatal(err)
	}
	if c.Resync != 30*time.Second || c.ReadyTimeout != 20*time.Second || c.HAProxy.Timeout != 7*time.Second || c.LogLevel != "info" {
		t.Errorf("flag over environment over file over default: %+v", c)
	}
	if strings.Join(c.Host.Networks, " ") != "a b" {
		t.Errorf("network is %q", c.Host.Networks)
	}
	t.Setenv("BERTH_NETWORK", "c,d")
	if c, err = readConfig(cmd.Flags()); err != nil || strings.Join(c.Host.Networks, " ") != "c d" {
		t.Errorf("network from the environment is %q, %v", c.Host.Networks, err)
	}
}

func TestConsulVariables(t *testing.T) {
	var asked *http.Request
	consul := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked = r }))
	defer consul.Close()
	ask := func(c Config) {
		t.Helper()
		client, err := consulClient(c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Agent().Services(); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
	}
	t.Setenv("CONSUL_HTTP_ADDR", "http://127.0.0.1:1")
	t.Setenv("CONSUL_HTTP_TOKEN", "from-variable")
	t.Setenv("CONSUL_HTTP_AUTH", "me:pw")
	t.Setenv("CONSUL_NAMESPACE", "team")
	t.Setenv("CONSUL_PARTITION", "part")
	ask(Config{ConsulAddress: consul.URL})
	user, _, _ := asked.BasicAuth()
	if asked.Header.Get("X-Consul-Token") != "from-variable" || user != "me" || asked.FormValue("ns") != "team" || asked.FormValue("partition") != "part" {
		t.Errorf("asked %s %v", asked.URL, asked.Header)
	}

	t.Run("token file", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "token")
		write := func(token string) {
			t.Helper()
			if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write("one\n")
		client, err := consulClient(Config{ConsulAddress: consul.URL, ConsulTokenFile: file})
		if err != nil {
			t.Fatal(err)
		}
		for _, token := range []string{"one", "second", "third one"} {
			write(token)
			if _, err := client.Agent().Services(); err != nil && !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			if got := asked.Header.Get("X-Consul-Token"); got != token {
				t.Errorf("token %q, want %q", got, token)
			}
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if _, _ = client.Agent().Services(); asked.Header.Get("X-Consul-Token") != "third one" {
			t.Errorf("token %q once the file is gone", asked.Header.Get("X-Consul-Token"))
		}
		if _, err := consulClient(Config{ConsulAddress: consul.URL, ConsulTokenFile: file}); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("no token file: %v", err)
		}
	})
	t.Run("unix socket", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "consul.sock")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		server := &httptest.Server{Listener: l, Config: &http.Server{Handler: consul.Config.Handler}}
		server.Start()
		defer server.Close()
		asked = nil
		ask(Config{ConsulAddress: "unix://" + path})
		if asked == nil {
			t.Error("nobody asked")
		}
	})
}

// SIGHUP has the templates read again, and ends no part of berth, with templates or without.
func TestHangup(t *testing.T) {
	hangUp := func(out *testenv.Log, says string) {
		t.Helper()
		out.Wait(t, "berth started")
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		out.Wait(t, says)
	}
	t.Run("registrar", func(t *testing.T) {
		t.Setenv("DOCKER_HOST", "unix://"+filepath.Join(t.TempDir(), "docker.sock"))
		hangUp(start(t, "registrar"), "there are no templates to read again")
	})
	t.Run("templater", func(t *testing.T) {
		dir := t.TempDir()
		tmpl := filepath.Join(dir, "app.ctmpl")
		write := func(text string) {
			t.Helper()
			if err := os.WriteFile(tmpl, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		write("one")
		out := start(t, "templater", "--consul-address", smallCatalog(t), "--haproxy-config", "none", "--file", tmpl+":"+filepath.Join(dir, "app.conf"))
		out.Wait(t, "wrote "+filepath.Join(dir, "app.conf"))
		write("{{ broken")
		hangUp(out, "app.ctmpl:1")
	})
}
