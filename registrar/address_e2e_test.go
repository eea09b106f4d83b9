//go:build e2e

package registrar_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"berth/deploy/testenv"
	"berth/registrar"
	"berth/registrar/label"
)

// expectAt waits until an instance is registered as passing at this address and port.
func (l *harness) expectAt(c container, port int, want string) {
	l.t.Helper()
	l.eventually(soon, fmt.Sprintf("%s is at %s", c.instance(port), want), func() error {
		in, err := l.instance(c.instance(port))
		if err != nil || in.AgentService == nil {
			return errors.Join(err, errors.New("it is not registered"))
		}
		if got := fmt.Sprintf("%s:%d %s", in.Address, in.Port, in.status); got != want+" passing" {
			return fmt.Errorf("it is %s", got)
		}
		return nil
	})
}

// hostPort returns the host port that Docker publishes for port 8080 of a container at a host address.
func (l *harness) hostPort(c container, address string) string {
	l.t.Helper()
	for line := range strings.Lines(l.docker("port", c.id, "8080/tcp")) {
		if port, ok := strings.CutPrefix(strings.TrimSpace(line), address+":"); ok {
			return port
		}
	}
	l.t.Fatalf("%s is not published on %s", c.name, address)
	return ""
}

func TestE2ENetworks(t *testing.T) {
	l := newHarness(t)
	second, off := l.name+"-second", l.name+"-off"
	l.docker("network", "create", second)
	l.docker("network", "create", off)
	networks := func(_ *registrar.Options, h *label.Host) { h.Networks = []string{second, l.network} }
	l.registrar(networks)

	t.Run("two networks", func(t *testing.T) {
		l := l.in(t)
		one, both := l.app("one"), l.app("both")
		l.docker("network", "connect", second, both.id)
		l.docker("network", "connect", off, both.id)
		l.expectAt(one, 8080, l.addressOn(one, l.network)+":8080")
		l.expectAt(both, 8080, l.addressOn(both, second)+":8080") // the host's first network, not the container's
		l.docker("network", "disconnect", second, both.id)
		l.expectAt(both, 8080, l.addressOn(both, l.network)+":8080")
	})

	t.Run("a network that a label names", func(t *testing.T) {
		l := l.in(t)
		c := l.app("named", "--env", "SERVICE_NETWORK="+off)
		l.docker("network", "connect", off, c.id)
		l.expectAt(c, 8080, l.addressOn(c, off)+":8080")
	})

	t.Run("published only", func(t *testing.T) {
		l := l.in(t)
		c := l.app("published", "--network", off, "--publish", "127.0.0.1::8080", "--publish", "0.0.0.0::8080")
		// Consul's node address stands for an empty one.
		l.expectAt(c, 8080, ":"+l.hostPort(c, "0.0.0.0"))
	})

	t.Run("published, because a label says so", func(t *testing.T) {
		l := l.in(t)
		gateway := l.inspect(l.network, "(index .IPAM.Config 0).Gateway")
		c := l.app("chosen", "--publish", gateway+"::8080", "--env", "SERVICE_ADDRESS=published")
		l.expectAt(c, 8080, gateway+":"+l.hostPort(c, gateway))
	})

	t.Run("published on loopback only", func(t *testing.T) {
		l := l.in(t)
		c := l.app("hidden", "--network", off, "--publish", "127.0.0.1::8080")
		after := l.app("after") // once this one is registered, the other one has been refused
		l.expect(soon, after.instance(8080), "passing")
		l.expect(0, c.instance(8080), "")
		plan := planOf(t, l.newRegistrar(networks), c)[0]
		if len(plan.Reasons) != 1 || !strings.Contains(plan.Reasons[0], "published on 127.0.0.1 only") {
			t.Errorf("plan: %+v", plan)
		}
	})

	t.Run("the host's network", func(t *testing.T) {
		l := l.in(t)
		h := l.watch("host")
		port := testenv.FreePort(t)
		number, _ := strconv.Atoi(port)
		c := l.web("host", "await go; serve 200", "--network", "host", "--expose", port, "--env", "BIND=127.0.0.1:"+port)
		other := l.app("beside")
		l.expect(soon, other.instance(8080), "passing")
		opened := time.Now()
		l.touch(c, "go")
		l.expectAt(c, number, ":"+port)
		if at := h.expect(soon, "docker start", "passing"); at[1].Before(opened) {
			t.Error("it was registered before its port accepted")
		}
	})

	t.Run("another container's network", func(t *testing.T) {
		l := l.in(t)
		owner := l.web("owner", "", "--network", second, "--env", "SERVICE_IGNORE=1")
		c := l.app("guest", "--network", "container:"+owner.id)
		l.expectAt(c, 8080, l.addressOn(owner, second)+":8080")
		// Without its owner, the network does not exist.
		l.docker("kill", owner.id)
		l.expect(soon, c.instance(8080), "")
		l.docker("start", owner.id)
		l.docker("restart", "--time", "1", c.id)
		l.expectAt(c, 8080, l.addressOn(owner, second)+":8080")
	})
}

func TestE2EIPv6(t *testing.T) {
	l := newHarness(t)
	six := l.name + "-six"
	prefix := fmt.Sprintf("fd00:be:%x", os.Getpid()&0xffff)
	if _, err := l.try("network", "create", "--ipv6", "--subnet", prefix+"::/64", "--gateway", prefix+"::1", six); err != nil {
		t.Skipf("this Docker makes no IPv6 network: %v", err)
	}
	l.docker("network", "connect", six, l.name+"-consul")
	l.registrar(nil)

	// The container's own address, which Consul and the registrar also reach: the brackets are right.
	address := prefix + "::10"
	own := l.app("own", "--network", six, "--ip6", address, "--env", "SERVICE_ADDRESS="+address,
		"--env", "SERVICE_CHECK_HTTP=/health", "--env", "SERVICE_CHECK_INTERVAL=1s")
	l.expectAt(own, 8080, address+":8080")
	l.eventually(soon, "the agent's check was made", func() error {
		in, err := l.instance(own.instance(8080))
		if err != nil {
			return err
		}
		if c := in.checks["HTTP GET /health"]; c == nil || !strings.Contains(c.Output, "200 OK") || !strings.Contains(c.Output, "["+address+"]:8080") {
			return fmt.Errorf("the checks are %+v", c)
		}
		return nil
	})

	l.eventually(soon, "the host has the network's gateway address", func() error {
		listener, err := net.Listen("tcp6", "["+prefix+"::1]:0") // the address is tentative at first
		if err == nil {
			listener.Close()
		}
		return err
	})
	published := l.app("published", "--network", six, "--publish", "["+prefix+"::1]::8080")
	l.expectAt(published, 8080, prefix+"::1:"+l.hostPort(published, "["+prefix+"::1]"))
}
