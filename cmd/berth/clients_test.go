package main

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	docker "github.com/fsouza/go-dockerclient"
	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"

	"berth/registrar/label"
)

// A Consul agent that hangs does not keep the host from being described, with what the agent said last.
func TestHostDescription(t *testing.T) {
	path := filepath.Join(t.TempDir(), "docker.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	daemon := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"ID":"ENGINE","Name":"vm"}`)
	})}}
	daemon.Start()
	defer daemon.Close()
	client, err := docker.NewClient("unix://" + path)
	if err != nil {
		t.Fatal(err)
	}
	var hangs atomic.Bool
	agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if hangs.Load() {
			hang(r)
			return
		}
		fmt.Fprint(w, `{"Member":{"Addr":"192.0.2.1"},"DebugConfig":{"EnableRemoteScriptChecks":true}}`)
	}))
	defer agent.Close()
	consul, err := api.NewClient(&api.Config{Address: agent.URL})
	if err != nil {
		t.Fatal(err)
	}
	describe := hostDescription(client, consul, label.Host{Scripts: true, Networks: []string{"front"}})
	want := label.Host{Name: "vm", EngineID: "ENGINE", NodeAddress: "192.0.2.1", Networks: []string{"front"}, Scripts: true}
	for _, hang := range []bool{false, true} {
		hangs.Store(hang)
		start := time.Now()
		got, err := describe(t.Context())
		if err != nil || time.Since(start) > 5*time.Second {
			t.Errorf("error %v after %v", err, time.Since(start))
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("with a Consul that hangs: %v (-want +got):\n%s", hang, d)
		}
	}
}
