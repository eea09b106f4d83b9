//go:build e2e

package registrar_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/deploy/testenv"
	"berth/registrar"
	"berth/registrar/agent"
	watch "berth/registrar/docker"
	"berth/registrar/label"
)

// A container whose network another one uses is restarted while Consul hangs: the container in the removed network is
// critical, and the reason says what helps.
func TestE2ENetworkOfOneThatRestarts(t *testing.T) {
	l := newHarness(t)
	r := l.registrar(func(o *registrar.Options, _ *label.Host) { o.ReadyTimeout = 2 * time.Second })
	vpn := l.web("vpn", "", "--env", "SERVICE_IGNORE=1")
	app := l.app("app", "--network", "container:"+vpn.id)
	l.expect(soon, app.instance(8080), "passing")
	for range 2 {
		l.docker("pause", l.consul.Name)
		l.docker("restart", "--time", "0", vpn.id)
		paused := time.Now()
		l.eventually(soon, "Consul has hung for three seconds", func() error {
			if time.Since(paused) < 3*time.Second {
				return errors.New("not yet")
			}
			return nil
		})
		l.docker("unpause", l.consul.Name)
		took := l.expect(2*soon, app.instance(8080), "critical")
		t.Logf("critical %s after Consul went on", ms(took))
		l.eventually(soon, "the reason says what helps", func() error {
			in, err := l.instance(app.instance(8080))
			if err != nil {
				return err
			}
			if c := in.checks["ready"]; c == nil || !strings.Contains(c.Notes, "was started after it: restart this one") {
				return fmt.Errorf("%+v", c)
			}
			return nil
		})
		l.docker("restart", "--time", "0", app.id)
		l.expect(2*soon, app.instance(8080), "passing")
	}
	l.docker("rm", "--force", vpn.id)
	l.expect(soon, app.instance(8080), "")
	l.web("vpn", "", "--env", "SERVICE_IGNORE=1")
	l.eventually(soon, "the reason says what helps", func() error {
		if !strings.Contains(r.log.String(), "recreate this one") {
			return errors.New("it does not")
		}
		return nil
	})
}

// follower keeps asking an instance at the address in Consul, as a proxy does.
type follower struct {
	asked, failed atomic.Int64
	failures      sync.Map
	end           func()
}

func (l *harness) follower(service string) *follower {
	f := &follower{}
	ctx, cancel := context.WithCancel(context.Background())
	var address atomic.Value
	address.Store("")
	var all sync.WaitGroup
	all.Go(func() {
		for index := uint64(0); ctx.Err() == nil; {
			entries, meta, err := l.consul.Health().Service(service, "", true, (&api.QueryOptions{WaitIndex: index, WaitTime: 5 * time.Second}).WithContext(ctx))
			if err != nil {
				continue
			}
			index = meta.LastIndex
			address.Store("")
			for _, e := range entries {
				address.Store(net.JoinHostPort(e.Service.Address, strconv.Itoa(e.Service.Port)))
			}
		}
	})
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	all.Go(func() {
		for ctx.Err() == nil {
			f.asked.Add(1)
			at := address.Load().(string)
			resp, err := client.Get("http://" + at + "/")
			if err != nil {
				f.failed.Add(1)
				f.failures.Store(fmt.Sprintf("%q: %v", at, err), true)
			} else {
				resp.Body.Close()
			}
			select {
			case <-ctx.Done():
			case <-time.After(2 * time.Millisecond):
			}
		}
	})
	f.end = sync.OnceFunc(func() { cancel(); all.Wait() })
	l.t.Cleanup(f.end)
	return f
}

// A container joins a network that takes precedence over the one it is registered on, and the registrar is started with
// other networks. The registration changes, and every request is answered.
func TestE2EAnotherAddress(t *testing.T) {
	l := newHarness(t)
	second := l.name + "-second"
	l.docker("network", "create", second)
	networks := func(names ...string) func(*registrar.Options, *label.Host) {
		return func(_ *registrar.Options, h *label.Host) { h.Networks = names }
	}
	r := l.registrar(networks(second, l.network))
	h := l.watch("app")
	c := l.app("app")
	l.expectAt(c, 8080, l.addressOn(c, l.network)+":8080")
	h.expect(soon, "docker start", "passing")
	f := l.follower("app")
	l.eventually(soon, "it is asked", func() error {
		if f.asked.Load() < 100 {
			return errors.New("not yet")
		}
		return nil
	})
	f.failed.Store(0)
	f.failures.Clear()
	for range 2 {
		l.docker("network", "connect", second, c.id)
		l.expectAt(c, 8080, l.addressOn(c, second)+":8080")
		r.stop()
		r = l.registrar(networks(l.network, second))
		l.expectAt(c, 8080, l.addressOn(c, l.network)+":8080")
		l.docker("network", "disconnect", second, c.id)
		r.stop()
		r = l.registrar(networks(second, l.network))
	}
	f.end()
	h.expect(soon, "docker start", "passing")
	t.Logf("%d of %d requests failed", f.failed.Load(), f.asked.Load())
	f.failures.Range(func(failure, _ any) bool { t.Error(failure); return true })

	// The address itself goes: the registration changes at once.
	l.docker("network", "connect", second, c.id)
	l.expectAt(c, 8080, l.addressOn(c, second)+":8080")
	l.docker("network", "disconnect", second, c.id)
	l.expectAt(c, 8080, l.addressOn(c, l.network)+":8080")
	h.expect(soon, "docker start", "passing")
}

// A Docker daemon that is reached over the network vanishes silently.
func TestE2EDockerHostVanishes(t *testing.T) {
	l := newHarness(t)
	subnet, path := netip.MustParsePrefix(freeSubnet(t)).Masked(), l.name+"-path" // an address is kept only in a network with a given subnet
	l.docker("network", "create", "--subnet", subnet.String(), path)
	proxy := l.run("proxy", "--network", path, "--env", "SERVICE_IGNORE=1", "--user", "0", "--volume", "/var/run/docker.sock:/docker.sock", "--entrypoint", "sh", os.Getenv("IMAGE_HAPROXY"),
		"-c", `printf '%s\n' 'global' ' fd-hard-limit 4096' 'defaults' ' mode tcp' ' timeout client 1h' ' timeout server 1h' ' timeout connect 5s' 'listen docker' ' bind :2375' ' server d unix@/docker.sock' >/tmp/c.cfg; exec haproxy -f /tmp/c.cfg`)
	address := l.addressOn(proxy, path)
	client := dockerClient(t, "tcp://"+address+":2375")
	watch.NoticeVanished(client)
	l.eventually(soon, "Docker answers over the network", func() error { return client.Ping() })
	r := l.registrar(func(o *registrar.Options, _ *label.Host) {
		o.Docker, o.Events = restrained{client, l}, watch.Events(client)
	})
	l.app("stays")
	l.expectOf(soon, "stays passing")
	for range 2 {
		l.docker("network", "disconnect", path, proxy.id)
		took := l.eventually(20*time.Second, "the registrar notices", func() error {
			if r.Ready() == nil {
				return errors.New("it does not")
			}
			return nil
		})
		t.Logf("noticed after %s", ms(took))
		l.expectOf(0, "stays passing")
		l.docker("network", "connect", "--ip", address, path, proxy.id)
		l.eventually(20*time.Second, "the registrar is ready", r.Ready)
	}
	l.app("new")
	l.expectOf(soon, "new passing", "stays passing")
}

// An agent that left and came back, or lost its whole state, has everything again in less than a second.
func TestE2EAgentComesBack(t *testing.T) {
	l := newHarness(t)
	l.registrar(nil)
	var want []string
	for i := range 5 {
		want = append(want, fmt.Sprintf("web%d passing", i))
		l.app(fmt.Sprintf("web%d", i))
	}
	l.expectOf(soon, want...)
	for range 3 {
		l.docker("rm", "--force", "--volumes", l.consul.Name)
		gone := time.Now()
		l.eventually(20*time.Second, "it is away for some seconds", func() error {
			if time.Since(gone) < 5*time.Second {
				return errors.New("not yet")
			}
			return nil
		})
		l.startConsul()
		took := l.expectOf(soon, want...)
		t.Logf("an agent without state: everything is registered %s after it answers", ms(took))
		if took > 3*time.Second {
			t.Errorf("everything is registered %s after the agent answers, want about a second", ms(took))
		}
	}
}

// cluster starts three servers, and returns once they have a leader.
func (l *harness) cluster() (servers []*testenv.Consul) {
	for i := range 3 {
		port := testenv.FreePort(l.t)
		servers = append(servers, testenv.StartConsul(l.t, testenv.ConsulOptions{
			Name: fmt.Sprintf("%s-s%d", l.name, i), Address: "127.0.0.1:" + port,
			Docker: []string{"--network", l.network, "--publish", "127.0.0.1:" + port + ":8500"},
			Args: []string{"-server", "-bootstrap-expect=3", fmt.Sprintf("-node=s%d", i), "-client=0.0.0.0", `-bind={{ GetInterfaceIP "eth0" }}`,
				"-data-dir=/consul/data", "-retry-join=" + l.name + "-s0"},
		}))
	}
	for _, s := range servers {
		s.Answers(l.t)
	}
	return servers
}

// The leader is cut off, and the election of another takes longer than an agent tries to pass on what is new (seven
// seconds). What is registered meanwhile is in the catalog soon after the election, and not only at the agent's next full
// sync.
func TestE2ELeaderCutOff(t *testing.T) {
	l := newHarness(t)
	servers := l.cluster()
	leader, err := servers[0].Status().Leader()
	if err != nil {
		t.Fatal(err)
	}
	var follower *testenv.Consul
	var others []*testenv.Consul // the last one is the leader
	for _, s := range servers {
		host, _, _ := net.SplitHostPort(leader)
		if l.docker("inspect", "--format", fmt.Sprintf("{{(index .NetworkSettings.Networks %q).IPAddress}}", l.network), s.Name) == host {
			others = append(others, s)
		} else if follower == nil {
			follower = s
		} else {
			others = slices.Insert(others, 0, s)
		}
	}
	l.consul = follower
	l.registrar(func(o *registrar.Options, _ *label.Host) {
		o.Agent, o.Catalog = follower.Agent(), agent.NewCatalog(follower.Client)
	})
	l.app("before")
	l.inCatalog(soon, "before", "passing", 0)
	for _, s := range others {
		l.docker("pause", s.Name)
		t.Cleanup(func() { _, _ = testenv.Docker("unpause", s.Name) })
	}
	// Before that, the agent passes changes to the server that is cut off, and waits until it considers the connection dead.
	l.eventually(soon, "the agent misses its leader", func() error {
		if is, err := follower.Status().Leader(); err != nil || is != "" {
			return fmt.Errorf("%q, %v", is, err)
		}
		return nil
	})
	// The change being passed on may still wait for an answer, and the agent locks its registrations until it gives up.
	l.eventually(time.Minute, "the agent takes registrations", func() error {
		_, err := l.instances()
		return err
	})
	c, began := l.app("new"), time.Now()
	l.expect(soon, c.instance(8080), "passing") // at the agent
	l.eventually(20*time.Second, "the agent has given up", func() error {
		if time.Since(began) < 12*time.Second {
			return errors.New("not yet")
		}
		return nil
	})
	l.docker("unpause", others[0].Name)
	began = time.Now()
	l.eventually(time.Minute, "there is another leader", func() error {
		is, err := follower.Status().Leader()
		if err == nil && (is == leader || is == "") {
			err = errors.New("there is none")
		}
		return err
	})
	elected := time.Now()
	l.inCatalog(time.Minute, "new", "passing", 0)
	t.Logf("leader cut off: another one after %s, the new app in the catalog %s after that", ms(elected.Sub(began)), ms(time.Since(elected)))
	if took := time.Since(elected); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
}
