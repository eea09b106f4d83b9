//go:build e2e

package main

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/deploy/testenv"
)

// A service is paused under load, and nobody sees an error: what comes meanwhile waits until it is resumed. A pause lasts over a
// restart of berth and HAProxy, and who has waited for its max gets the page.
func TestE2EPause(t *testing.T) {
	address := testenv.FreeAddress(t, "127.0.0.1")
	s := startStack(t, kindHAProxy, "--publish", address+":8080")
	// Consul's API is its server, and takes 200 connections from one address.
	shop := &api.AgentServiceRegistration{Name: "shop", Address: "127.0.0.1", Port: 8500, Meta: map[string]string{"route_path": "/", "route_maxconn": "40"}}
	if err := s.consul.Agent().ServiceRegister(shop); err != nil {
		t.Fatal(err)
	}
	s.berth()
	const path = "/v1/status/leader"
	testenv.Eventually(t, 30*time.Second, "it serves", func() error { _, err := testenv.Get("http://" + address + path); return err })
	consul := "--consul-address=" + s.consul.Address
	say := func(want string, args ...string) {
		t.Helper()
		if out, err := berthCommand(t, append(args, consul)...); err != nil || !strings.HasPrefix(out, want) {
			t.Errorf("%s: %q, %v, want %s", args, out, err, want)
		}
	}
	for _, args := range [][]string{{"pause", "shp"}, {"pause", "nosuch", "shop", "--max", "20s"}} {
		if out, err := berthCommand(t, append(args, consul)...); err == nil || !strings.Contains(err.Error(), "Consul has no such service") {
			t.Errorf("%s: %q, %v", args, out, err)
		}
	}
	say("SERVICE  MAX  SINCE", "pause", "--list") // of those named, the one that there is
	say("shop: resumed\n", "resume", "shop")
	say("nothing is paused\n", "pause", "--list")
	say("shop: not paused\n", "resume", "shop")

	l := startLoad(t, "http://"+address+path)
	testenv.Until(t, 10*time.Second, "requests", func() bool { return l.sentAfter(time.Time{}) > 50 })
	say("shop: paused; requests wait up to 20s\n", "pause", "shop", "--max", "20s", "--reason", "move \"it\"")
	testenv.Until(t, 10*time.Second, "a request that waits", func() bool {
		client := http.Client{Timeout: time.Second}
		resp, err := client.Get("http://" + address + path)
		if err == nil {
			resp.Body.Close()
		}
		return err != nil
	})
	paused := time.Now()
	time.Sleep(3 * time.Second) // it is how long the pause is, and nothing is waited for
	resumed := time.Now()
	say("shop: resumed\n", "resume", "shop")
	testenv.Until(t, 20*time.Second, "requests after the pause", func() bool { return l.sentAfter(resumed.Add(time.Second)) > 20 })
	all := l.stop()
	waited, longest := 0, time.Duration(0)
	for _, a := range all {
		if a.err != nil {
			t.Error(a.err)
		}
		if a.sent.Before(paused) || a.sent.After(resumed) {
			continue
		}
		waited++
		if end := a.sent.Add(a.took); end.Before(resumed) {
			t.Errorf("one is served %v before the service is resumed", resumed.Sub(end))
		} else {
			longest = max(longest, end.Sub(resumed))
		}
	}
	t.Logf("%d requests, %d waited, the last was served %v after the end of the pause", len(all), waited, longest.Round(time.Millisecond))
	if waited < 300 {
		t.Errorf("%d requests waited", waited)
	}

	say("shop: paused; requests wait up to 1s\n", "pause", "shop", "--max", "1s")
	ask := func() error {
		begun := time.Now()
		resp, err := http.Get("http://" + address + path)
		if err != nil {
			return err
		}
		resp.Body.Close()
		took := time.Since(begun)
		if resp.StatusCode == 200 {
			t.Error("it is served while it is paused")
		}
		if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || took < time.Second || took > 1600*time.Millisecond {
			return fmt.Errorf("%s, Retry-After %q, after %v", resp.Status, resp.Header.Get("Retry-After"), took)
		}
		return nil
	}
	s.says("add to map haproxy.cfg.paused.map: shop 1000")
	if err := ask(); err != nil {
		t.Error(err)
	}
	testenv.MustDocker(t, "restart", "--time", "1", s.id)
	testenv.Eventually(t, 30*time.Second, "it is paused still", ask)
	say("shop: resumed\n", "resume", "shop")
	testenv.Eventually(t, 10*time.Second, "it serves again", func() error { _, err := testenv.Get("http://" + address + path); return err })
}

// load sends 200 requests per second, whatever becomes of those before.
type load struct {
	mu      sync.Mutex
	answers []exchange
	end     chan struct{}
	running sync.WaitGroup
}

type exchange struct {
	sent time.Time
	took time.Duration
	err  error // also of another status than 200
}

func startLoad(t *testing.T, url string) *load {
	l := &load{end: make(chan struct{})}
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 100}}
	l.running.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-l.end:
				return
			case <-tick.C:
			}
			l.running.Go(func() { l.send(client, url, n%2 == 0) })
		}
	})
	t.Cleanup(client.CloseIdleConnections)
	return l
}

func (l *load) send(client *http.Client, url string, keep bool) {
	a := exchange{sent: time.Now()}
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err == nil {
		req.Close = !keep
		var resp *http.Response
		if resp, err = client.Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode != 200 {
				err = errors.New(resp.Status)
			}
		}
	}
	a.took, a.err = time.Since(a.sent), err
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answers = append(l.answers, a)
}

// sentAfter counts the requests that were sent after a time, and answered.
func (l *load) sentAfter(when time.Time) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.answers {
		if a.sent.After(when) {
			n++
		}
	}
	return n
}

// stop ends the load, and returns what became of all requests.
func (l *load) stop() []exchange {
	close(l.end)
	l.running.Wait()
	return l.answers
}
