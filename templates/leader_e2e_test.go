//go:build e2e

package templates

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"

	"berth/deploy/testenv"
	"berth/proxyctl"
	haproxyctl "berth/proxyctl/haproxy"
	"berth/templates/route"
)

// succession is a service whose requests go to its leader, while the leader changes.
type succession struct {
	*echoes
	t     *testing.T
	apply func(rendered) // applies a configuration to the proxy without a reload

	lost   [3]atomic.Int64 // time since when an instance gets nothing, in Unix nanoseconds; 0 = it may get requests
	served [3]atomic.Int64
	astray atomic.Int64
}

func newSuccession(t *testing.T, k *kind) *succession {
	s := &succession{echoes: newEchoes(k), t: t}
	for n := range s.lost {
		s.lost[n].Store(1)
		s.withServer(t, "db", func(_ http.ResponseWriter, r *http.Request) {
			sent, err := strconv.ParseInt(r.Header.Get("Sent"), 10, 64)
			if err != nil {
				t.Error(err)
			}
			s.served[n].Add(1)
			if lost := s.lost[n].Load(); lost != 0 && sent > lost {
				s.astray.Add(1)
			}
		}, route.KeyPath, "/", route.KeyTo, "leader")
	}
	return s
}

// lead makes an instance the leader in the catalog; -1 = none.
func (s *succession) lead(leader int) rendered {
	for n, i := range s.catalog["db"] {
		i.Tags = []string{"follower"}
		if n == leader {
			s.lost[n].Store(0)
			i.Tags = []string{"leader"}
		}
	}
	return s.render(s.t, Options{})
}

// follow applies the new leader to the proxy. Former leaders get no later requests.
func (s *succession) follow(leader int) {
	s.t.Helper()
	r := s.lead(leader)
	began := time.Now()
	s.apply(r)
	now := time.Now()
	s.t.Logf("to %d in %v", leader, now.Sub(began).Round(100*time.Microsecond))
	for n := range s.lost {
		if n != leader {
			s.lost[n].CompareAndSwap(0, now.UnixNano())
		}
	}
}

// ask sends a request and returns its status, or 0.
func (s *succession) ask(client *http.Client, method, address string) int {
	req, err := http.NewRequest(method, "http://"+address, strings.NewReader("x"))
	if err != nil {
		s.t.Error(err)
		return 0
	}
	req.Header.Set("Sent", strconv.FormatInt(time.Now().UnixNano(), 10))
	resp, err := client.Do(req)
	if err != nil {
		s.t.Error(err)
		return 0
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// load sends requests from several clients until its func is called, which returns their number.
func (s *succession) load(address string) (stop func() int64) {
	var all atomic.Int64
	var running sync.WaitGroup
	end := make(chan struct{})
	for n := range 6 {
		running.Go(func() {
			transport := &http.Transport{DisableKeepAlives: n%3 == 0}
			defer transport.CloseIdleConnections()
			client := &http.Client{Transport: transport, Timeout: 20 * time.Second}
			for {
				select {
				case <-end:
					return
				default:
				}
				method := [...]string{"GET", "POST"}[all.Add(1)%2]
				if status := s.ask(client, method, address); status != 200 {
					s.t.Errorf("%s: %d", method, status)
				}
			}
		})
	}
	stop = sync.OnceValue(func() int64 {
		close(end)
		running.Wait()
		return all.Load()
	})
	s.t.Cleanup(func() { stop() })
	return stop
}

// test transfers the lead under load.
func (s *succession) test(address string) {
	s.follow(0)
	stop := s.load(address)
	for _, leader := range []int{0, 1, 2, 0, 2, 1} {
		s.follow(leader)
		before := s.served[leader].Load()
		testenv.Until(s.t, 30*time.Second, "the leader serves", func() bool { return s.served[leader].Load() > before+50 })
	}
	requests := stop()
	s.t.Logf("%d requests, %d to followers", requests, s.astray.Load())
	client := &http.Client{Timeout: 20 * time.Second}
	for _, method := range []string{"GET", "POST"} {
		s.follow(-1)
		if status := s.ask(client, method, address); status != 503 {
			s.t.Errorf("%s without a leader: %d", method, status)
		}
		s.follow(0)
		if status := s.ask(client, method, address); status != 200 {
			s.t.Errorf("%s with a leader again: %d", method, status)
		}
	}
	if s.astray.Load() > 0 {
		s.t.Errorf("%d requests went to followers", s.astray.Load())
	}
}

func TestE2EHAProxyRouteToLeader(t *testing.T) {
	k, dir := theHAProxy(), testenv.Dir(t)
	socket := filepath.Join(dir, "master.sock")
	k.config = filepath.Join(dir, "haproxy.cfg")
	k.run = "exec haproxy -W -db -S " + socket + ",mode,666 -f " + k.config
	k.docker = func(testing.TB) []string { return []string{"-v", dir + ":" + dir} }
	image := k.images(t)[0]
	here := func(r rendered) rendered { // instead of the path of the tests' asFile
		move := func(s string) string { return strings.ReplaceAll(s, "/etc/haproxy/", dir+"/") }
		r.text = move(r.text)
		for name, path := range r.paths {
			r.paths[name] = move(path)
		}
		return r
	}
	s := newSuccession(t, k)
	address := k.start(t, image, here(s.lead(0)), Options{}, "").address(8080)

	proxy := haproxyctl.New(haproxyctl.Options{File: k.config, Socket: socket, Grace: -1, Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(proxy.Close)
	var tending sync.WaitGroup
	tending.Go(func() { proxy.Run(t.Context()) })
	t.Cleanup(tending.Wait)
	apply := func(r rendered, mayReload bool) (proxyctl.Result, error) {
		r = here(r)
		files, inMaps := map[string]string{}, map[string]string{}
		for name, path := range r.paths {
			if strings.HasSuffix(path, ".map") || strings.HasSuffix(path, ".crt-list") {
				inMaps[path] = r.files[name]
			} else {
				files[path] = r.files[name]
			}
		}
		c := proxyctl.Config{Text: haproxyctl.WithMaps(k.adapt(t, image, r.text), inMaps), Files: files}
		return proxy.Apply(t.Context(), c, mayReload)
	}
	// A reload gives the text berth's mark. The master listens shortly after its worker.
	testenv.Eventually(t, 30*time.Second, "HAProxy has berth's text", func() error {
		_, err := apply(s.lead(0), true)
		return err
	})
	s.apply = func(r rendered) {
		t.Helper()
		if res, err := apply(r, false); err != nil || res.Action == proxyctl.Reload {
			t.Errorf("%s, %s: %v", res.Action, res.Reason, err)
		}
	}
	s.test(address)
}

func TestE2ENginxLuaRouteToLeader(t *testing.T) {
	k := theNginxWithLua()
	s := newSuccession(t, k.kind)
	first := s.lead(0)
	address := s.start(t, k.images(t)[0], Options{}).address(8080)
	s.apply = func(r rendered) {
		t.Helper()
		k.started(t, r.text)
		none := func(text string) string {
			return serverLine.ReplaceAllString(strings.ReplaceAll(text, "127.0.0.1:1 down", "x max_fails=0"), "")
		}
		if diff := cmp.Diff(none(first.text), none(r.text)); diff != "" {
			t.Errorf("more than servers changed:\n%s", diff)
		}
	}
	s.test(address)
}

// Of two instances with the leader's tag, the one registered last in Consul leads. Repeated registrations by an agent do
// not matter.
func TestE2ELeaderOfTwo(t *testing.T) {
	address := testenv.FreeAddress(t, "127.0.0.1")
	consul := testenv.StartConsul(t, testenv.ConsulOptions{
		Name: testenv.Name(t) + "-consul", Address: address,
		Docker: []string{"--publish", address + ":8500"}, Args: []string{"-dev", "-client=0.0.0.0"},
	})
	consul.Answers(t)
	register := func(id, tag string) {
		t.Helper()
		if err := consul.Agent().ServiceRegister(&api.AgentServiceRegistration{
			ID: id, Name: "db", Address: "10.0.0." + id, Port: 80, Tags: []string{tag}, Meta: map[string]string{route.KeyPath: "/", route.KeyTo: "leader"},
		}); err != nil {
			t.Fatal(err)
		}
	}
	// want waits until the catalog has these tags of the instances, and then these servers.
	want := func(tags, servers string) {
		t.Helper()
		testenv.Eventually(t, 30*time.Second, "the tags are "+tags, func() error {
			entries, _, err := consul.Health().Service("db", "", false, nil)
			if err != nil {
				return err
			}
			var got []string
			for _, e := range entries {
				got = append(got, e.Service.ID+"="+e.Service.Tags[0])
			}
			slices.Sort(got)
			if all := strings.Join(got, " "); all != tags {
				return fmt.Errorf("they are %s", all)
			}
			groups := route.New("db", entries, nil, route.NewLedger(0), func(reason string) { t.Error(reason) })
			var names []string
			for _, s := range groups[0].Servers {
				names = append(names, s.Name)
			}
			if all := strings.Join(names, " "); all != servers {
				t.Errorf("%s: the servers are %s, want %s", tags, all, servers)
			}
			return nil
		})
	}
	register("1", "leader")
	register("2", "follower")
	want("1=leader 2=follower", "1")
	register("2", "leader")
	want("1=leader 2=leader", "2")
	register("1", "leader")
	register("3", "follower")
	want("1=leader 2=leader 3=follower", "2")
	register("1", "follower")
	want("1=follower 2=leader 3=follower", "2")
	register("1", "leader")
	want("1=leader 2=leader 3=follower", "1")
	register("1", "follower")
	register("2", "follower")
	want("1=follower 2=follower 3=follower", "")
}
