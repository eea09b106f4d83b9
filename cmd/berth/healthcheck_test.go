package main

import (
	"context"
	"errors"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// Each is asked at the address that it listens on; one that does not answer is not well.
func TestHealthcheck(t *testing.T) {
	var reason error
	server := httptest.NewServer(statusHandler(prometheus.NewRegistry(), func() error { return reason }))
	defer server.Close()
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	address, port := u.Host, u.Port()
	check := func(args ...string) (string, error) {
		var out strings.Builder
		cmd := rootCommand()
		cmd.SetArgs(append([]string{"healthcheck"}, args...))
		cmd.SetOut(&out)
		err := cmd.ExecuteContext(t.Context())
		return out.String(), err
	}
	good := func(args ...string) {
		t.Helper()
		if out, err := check(args...); err != nil || out != "ok\n" {
			t.Errorf("%v: %q, %v", args, out, err)
		}
	}
	bad := func(says string, args ...string) {
		t.Helper()
		if out, err := check(args...); err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "\n") || out != "" {
			t.Errorf("%v: %q, %v, want an error that says %q", args, out, err, says)
		}
	}
	good("--listen", address)
	good("--listen", ":"+port)
	good("--listen", "0.0.0.0:"+port)
	good("--listen", "[::]:"+port)
	t.Setenv("BERTH_LISTEN", "0.0.0.0:"+port)
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	good()
	t.Setenv("BERTH_LISTEN", "none")
	bad("no berth to ask")
	bad("no berth listens at 127.0.0.1:1", "--listen", "127.0.0.1:1")

	reason = errors.Join(errors.New("consul: no answer"), errors.New("docker: no answer"))
	bad("not ready: consul: no answer; docker: no answer", "--listen", address)
	good("--live", "--listen", address)

	hangs := httptest.NewServer(statusHandler(prometheus.NewRegistry(), func() error { <-t.Context().Done(); return nil }))
	defer hangs.CloseClientConnections()
	bad("does not answer", "--listen", strings.TrimPrefix(hangs.URL, "http://"))
}

// Without an address, all that listen at the defaults have to be ready, and at least one has to be there.
func TestHealthcheckOfDefaults(t *testing.T) {
	ready := httptest.NewServer(statusHandler(prometheus.NewRegistry(), func() error { return nil }))
	defer ready.Close()
	not := httptest.NewServer(statusHandler(prometheus.NewRegistry(), func() error { return errors.New("waits") }))
	defer not.Close()
	const nobody = "127.0.0.1:1"
	at := func(s *httptest.Server) string { return strings.TrimPrefix(s.URL, "http://") }
	for _, tt := range []struct {
		addresses []string
		says      string
	}{
		{[]string{nobody, at(ready)}, ""},
		{[]string{at(ready), nobody}, ""},
		{[]string{at(ready), at(ready)}, ""},
		{[]string{at(ready), at(not)}, "not ready: waits"},
		{[]string{nobody, at(not)}, "not ready: waits"},
		{[]string{nobody, nobody}, "no berth listens"},
	} {
		err := askHealth(context.WithoutCancel(t.Context()), new(strings.Builder), tt.addresses, "/readyz")
		if (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%v: %v, want %q", tt.addresses, err, tt.says)
		}
	}
}
