//go:build e2e

package status_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/cmd/berth/status"
	"berth/deploy/consul/policies"
	"berth/deploy/testenv"
)

// A berth's part is in Consul while it runs, is written when it changes and not more often than once a second, and goes with it. A
// token needs no more than the policies give, and nobody speaks for another role.
func TestE2EPublish(t *testing.T) {
	s := testenv.StartSecured(t)
	consul := s.StartAgent(t)
	templater := consul.As(t, testenv.NewToken(t, s.Client, policies.Templater).SecretID)
	viewer := consul.As(t, testenv.NewToken(t, s.Client, policies.Viewer).SecretID)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var asked, version atomic.Int64
	changed := make(chan struct{}, 1)
	p := &status.Publisher{Consul: templater, Role: status.RoleTemplater, Name: "lb 1/a", Changed: changed, Log: slog.New(slog.DiscardHandler),
		Part: func(context.Context) (status.Part, error) {
			asked.Add(1)
			return status.Part{Berth: status.Berth{Version: fmt.Sprint(version.Load())}, Proxy: &status.Proxy{Kind: "haproxy"}}, nil
		}}
	done := make(chan struct{})
	go func() { defer close(done); p.Run(ctx) }()
	read := func() ([]status.Part, uint64, error) { return status.ReadParts(t.Context(), viewer, nil, nil) }
	says := func(want string) func() error {
		return func() error {
			parts, _, err := read()
			if err == nil && (len(parts) != 1 || parts[0].Berth.Version != want || parts[0].Berth.Name != "lb 1/a" || parts[0].Proxy.Name != "lb 1/a") {
				err = fmt.Errorf("the berths say %+v, want version %s", parts, want)
			}
			return err
		}
	}
	testenv.Eventually(t, 20*time.Second, "it is published", says("0"))
	pair, _, err := viewer.KV().Get(status.Key(status.RoleTemplater, "lb 1/a"), nil)
	if err != nil || pair == nil || pair.Session == "" {
		t.Fatalf("its key is %+v, %v", pair, err)
	}

	t.Run("once a second, and only what has changed", func(t *testing.T) {
		began, first := time.Now(), pair.ModifyIndex
		for n := range int64(100) {
			version.Store(n + 1)
			select {
			case changed <- struct{}{}:
			default:
			}
			<-time.After(20 * time.Millisecond)
		}
		testenv.Eventually(t, 10*time.Second, "the last one is published", says("100"))
		writes := asked.Load() - 1
		if most := int64(time.Since(began)/time.Second) + 2; writes > most {
			t.Errorf("%d writes in %v, want %d at most", writes, time.Since(began), most)
		}
		after, _, err := viewer.KV().Get(pair.Key, nil)
		if err != nil || after.ModifyIndex == first {
			t.Fatalf("%+v, %v", after, err)
		}
		changed <- struct{}{} // for nothing
		testenv.Eventually(t, 10*time.Second, "it looks again", func() error {
			if asked.Load() == writes+1 {
				return errors.New("it has not")
			}
			return nil
		})
		same, _, err := viewer.KV().Get(pair.Key, nil)
		if err != nil || same.ModifyIndex != after.ModifyIndex {
			t.Errorf("what is the same was written again: %+v, %v", same, err)
		}
	})
	t.Run("nobody speaks for another role", func(t *testing.T) {
		_, err := templater.KV().Put(&api.KVPair{Key: status.Key(status.RoleRegistrar, "x"), Value: []byte("{}")}, nil)
		if err == nil {
			t.Error("a templater's token may write a registrar's part")
		}
		if _, err := viewer.KV().Put(&api.KVPair{Key: pair.Key, Value: []byte("{}")}, nil); err == nil {
			t.Error("who only looks may write")
		}
	})
	t.Run("the session is lost", func(t *testing.T) {
		if _, err := s.Session().Destroy(pair.Session, nil); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, 20*time.Second, "it is published again", func() error {
			now, _, err := viewer.KV().Get(pair.Key, nil)
			if err == nil && (now == nil || now.Session == pair.Session) {
				err = fmt.Errorf("its key is %+v", now)
			}
			return err
		})
	})
	cancel()
	<-done
	testenv.Eventually(t, 10*time.Second, "its part goes with it", func() error {
		parts, _, err := read()
		if err == nil && len(parts) != 0 {
			err = fmt.Errorf("the berths say %+v", parts)
		}
		return err
	})
}

// A catalog is read with a few calls, whatever is in it, and what does not pass is told with what its checks say.
func TestE2EReadCatalog(t *testing.T) {
	address := testenv.FreeAddress(t, "127.0.0.1")
	consul := testenv.StartConsul(t, testenv.ConsulOptions{Name: testenv.Name(t) + "-consul", Address: address,
		Docker: []string{"--publish", address + ":8500"}, Args: []string{"-dev", "-client=0.0.0.0", "-node=e2e"}})
	consul.Answers(t)
	for _, r := range []*api.CatalogRegistration{
		{Node: "a", Address: "10.0.0.1", Service: &api.AgentService{ID: "shop-2", Service: "shop", Port: 80}},
		{Node: "a", Address: "10.0.0.1", Service: &api.AgentService{ID: "shop-1", Service: "shop", Address: "10.1.0.1", Port: 81},
			Check: &api.AgentCheck{CheckID: "c", ServiceID: "shop-1", Name: "http", Status: "critical", Output: "got 500"}},
		{Node: "b", Address: "fd00::1", Service: &api.AgentService{ID: "mail", Service: "mail", Port: 25},
			Check: &api.AgentCheck{CheckID: "serfHealth", Name: "Serf", Status: "critical", Output: "Agent not live"}},
	} {
		if _, err := consul.Catalog().Register(r, nil); err != nil {
			t.Fatal(err)
		}
	}
	c, err := status.ReadCatalog(t.Context(), consul.Client)
	if err != nil || len(c) != 2 || len(c["shop"]) != 2 || len(c["mail"]) != 1 {
		t.Fatalf("%+v, %v", c, err)
	}
	if e := c["shop"][0]; e.ID != "shop-1" || e.Address != "10.1.0.1:81" || e.Passing() || e.Checks[0].Output != "got 500" {
		t.Errorf("the first is %+v", e)
	}
	if e := c["shop"][1]; e.Address != "10.0.0.1:80" || !e.Passing() {
		t.Errorf("the second is %+v", e)
	}
	if e := c["mail"][0]; e.Address != "[fd00::1]:25" || e.Passing() {
		t.Errorf("that of a node that is gone is %+v", e)
	}
}
