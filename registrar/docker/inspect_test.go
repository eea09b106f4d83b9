package docker

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	docker "github.com/fsouza/go-dockerclient"
	"github.com/google/go-cmp/cmp"

	"berth/registrar/label"
)

// inspected reads one of the recorded answers of `docker inspect` (Docker 20.10) in testdata/inspect.
func inspected(t *testing.T, name string) *docker.Container {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "inspect", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	in := new(docker.Container)
	if err := json.Unmarshal(b, in); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return in
}

// How real containers are described, and what they register.
func TestInspected(t *testing.T) {
	front := label.Host{Name: "vm", EngineID: "ENGINE", Networks: []string{"front"}}
	onNode := label.Host{Name: "vm", EngineID: "ENGINE", NodeAddress: "192.0.2.7"}
	internal := label.Host{Name: "vm", EngineID: "ENGINE", Internal: true}
	tests := []struct {
		name   string
		within string // the container whose network it uses
		h      label.Host
		want   string // of each instance: ID, name, address, readiness
		reason string
	}{
		{"plain", "", onNode, "", "port 8080/tcp: it is on no network that the load balancer reaches and the port is not published"},
		{"plain", "", internal, "vm:plain:8080 shop 172.17.0.3:8080 tcp 172.17.0.3:8080", ""},
		{"published", "", onNode, "vm:published:8080 shop :18080 tcp 172.17.0.4:8080", ""},
		{"loopback", "", onNode, "", "it is published on 127.0.0.1 only, which other hosts cannot reach"},
		{"all-ports", "", onNode, `
			vm:all-ports:53 app-53 :32774 tcp 172.17.0.11:53
			vm:all-ports:53:udp app-53 :32769
			vm:all-ports:8080 app-8080 :32773 tcp 172.17.0.11:8080
			vm:all-ports:9090 app-9090 :32772 tcp 172.17.0.11:9090`, ""},
		{"host-network", "", onNode, "vm:host-network:8080 shop :8080 tcp 192.0.2.7:8080", ""},
		{"shared-network", "", onNode, "", "it uses the network of container 667643dab8db, which is not running: start that container"},
		{"shared-network", "published", onNode, "vm:shared-network:8080 sidecar :18080 tcp 172.17.0.4:8080", ""},
		{"shared-network", "published", internal, "vm:shared-network:8080 sidecar 172.17.0.4:8080 tcp 172.17.0.4:8080", ""},
		{"two-networks", "", front, "vm:two-networks:8080 shop 192.168.32.2:8080 tcp 192.168.32.2:8080", ""},
		{"two-networks", "", label.Host{Name: "vm", EngineID: "ENGINE", Networks: []string{"back", "front"}}, "vm:two-networks:8080 shop 192.168.48.2:8080 tcp 192.168.48.2:8080", ""},
		{"two-networks", "", internal, "vm:two-networks:8080 shop 192.168.32.2:8080 tcp 192.168.32.2:8080", ""}, // started on front
		{"ipv6", "", internal, "vm:ipv6:8080 shop 192.168.64.2:8080 tcp 192.168.64.2:8080", ""},
		{"ipv6-published", "", onNode, "vm:ipv6-published:8080 shop :32771 tcp 192.168.64.3:8080", ""},
		{"starting", "", internal, "vm:starting:8080 app 172.17.0.6:8080 healthcheck", ""},
		{"healthy", "", internal, "vm:healthy:8080 app 172.17.0.7:8080 healthcheck", ""},
		{"unhealthy", "", internal, "vm:unhealthy:8080 app 172.17.0.8:8080 healthcheck", ""},
		{"paused", "", internal, "vm:paused:8080 shop 172.17.0.9:8080 tcp 172.17.0.9:8080", ""},
		{"stop-signal", "", internal, "vm:stop-signal:8080 shop 172.17.0.10:8080 tcp 172.17.0.10:8080", ""},
		{"no-network", "", internal, "", "the port is not published"},
		{"exited", "", internal, "", "the port is not published"},
		{"compose", "", label.Host{Name: "vm", EngineID: "ENGINE", Networks: []string{"shop_other"}}, "vm:shop_web_1:8080 shop 192.168.128.2:8080 http http://192.168.128.2:8080/health", ""},
		{"compose", "", onNode, "vm:shop_web_1:8080 shop :18085 http http://192.168.112.2:8080/health", ""},
		{"compose-service-network", "compose", onNode, "vm:shop_side_1:8080 side :18085 tcp 192.168.112.2:8080", ""},
	}
	for _, tt := range tests {
		t.Run(strings.TrimSpace(tt.name+" "+tt.within), func(t *testing.T) {
			c := FromInspect(inspected(t, tt.name), nil)
			if tt.within != "" {
				other := FromInspect(inspected(t, tt.within), nil)
				if c.NetworkOf != other.ID {
					t.Fatalf("it uses the network of %q, not of %s", c.NetworkOf, other.ID)
				}
				c = c.Within(other)
			}
			got, reasons := label.Instances(c, tt.h)
			var lines []string
			for _, in := range got {
				lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s %s %s:%d %s %s%s", in.ID, in.Name, in.Address, in.Port, in.Ready.Kind, in.Ready.Address, in.Ready.URL)))
			}
			if d := cmp.Diff(strings.Join(strings.Fields(tt.want), " "), strings.Join(lines, " ")); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			expectReason(t, reasons, tt.reason)
		})
	}
}

// Properties that the life of an instance depends on.
func TestInspectedState(t *testing.T) {
	const refused = "dial tcp 127.0.0.1:1: connect: connection refused"
	tests := []struct {
		name   string
		runs   bool
		change func(*label.Container) // from what most of them share
	}{
		{"plain", true, func(*label.Container) {}},
		{"paused", true, func(c *label.Container) { c.Paused = true }},
		{"exited", false, func(c *label.Container) { c.ExitCode = 1 }},
		{"starting", true, func(c *label.Container) { c.Health = "starting" }},
		{"healthy", true, func(c *label.Container) { c.Health, c.HealthOutput = "healthy", "ok" }},
		{"unhealthy", true, func(c *label.Container) { c.Health, c.HealthOutput = "unhealthy", refused }},
		{"stop-signal", true, func(c *label.Container) { c.StopSignal, c.StopTimeout = 37, 30*time.Second }},
		{"compose", true, func(c *label.Container) { c.StopSignal, c.Network = 18, "shop_default" }},
		{"two-networks", true, func(c *label.Container) { c.Network = "front" }},
		{"host-network", true, func(c *label.Container) { c.HostNetwork, c.Network = true, "host" }},
		{"no-network", true, func(c *label.Container) { c.Network = "none" }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := inspected(t, tt.name)
			if got := Running(in); got != tt.runs {
				t.Errorf("running: %v", got)
			}
			got := FromInspect(in, nil)
			want := label.Container{
				ID: in.ID, Name: in.Name[1:], Image: in.Config.Image, Created: in.Created, Started: in.State.StartedAt, Env: in.Config.Env, Labels: in.Config.Labels,
				Network: "bridge", Networks: got.Networks, Ports: got.Ports, StopSignal: 15, StopTimeout: 10 * time.Second,
			}
			tt.change(&want)
			if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// Cases that were not recorded: odd settings, and answers of other versions of Docker.
func TestFromInspect(t *testing.T) {
	tests := []struct {
		name string
		in   docker.Container
		want func(c label.Container) bool
	}{
		{"nothing", docker.Container{}, func(c label.Container) bool {
			return c.StopSignal == 15 && c.StopTimeout == 10*time.Second && c.Health == "" && c.NetworkOf == "" && len(c.Ports) == 0
		}},
		{"bad stop signal", docker.Container{Config: &docker.Config{StopSignal: "HALT"}}, func(c label.Container) bool { return c.StopSignal == 15 }},
		{"waits for ever", docker.Container{Config: &docker.Config{StopTimeout: -1}}, func(c label.Container) bool { return c.StopTimeout == noStopTimeout }},
		{"waits very long", docker.Container{Config: &docker.Config{StopTimeout: 1 << 40}}, func(c label.Container) bool { return c.StopTimeout == noStopTimeout }},
		{"healthcheck not run yet", docker.Container{Config: &docker.Config{Healthcheck: &docker.HealthConfig{Test: []string{"CMD", "x"}}}}, func(c label.Container) bool { return c.Health == "starting" }},
		{"healthcheck switched off", docker.Container{Config: &docker.Config{Healthcheck: &docker.HealthConfig{Test: []string{"NONE"}}}, State: docker.State{Health: docker.Health{Status: "none"}}}, func(c label.Container) bool { return c.Health == "" }},
		{"healthcheck without a test", docker.Container{Config: &docker.Config{Healthcheck: &docker.HealthConfig{}}}, func(c label.Container) bool { return c.Health == "" }},
		{"healthcheck of the image only", docker.Container{State: docker.State{Health: docker.Health{Status: "healthy"}}}, func(c label.Container) bool { return c.Health == "healthy" }},
		{"output", docker.Container{State: docker.State{Health: docker.Health{Status: "healthy", Log: []docker.HealthCheck{{Output: "old"}, {Output: " a\xffb\n"}}}}}, func(c label.Container) bool { return c.HealthOutput == "a\uFFFDb" }},
		{"long output", docker.Container{State: docker.State{Health: docker.Health{Status: "healthy", Log: []docker.HealthCheck{{Output: "x" + strings.Repeat("ä", 3000)}}}}}, func(c label.Container) bool {
			return c.HealthOutput == "x"+strings.Repeat("ä", 2047)
		}},
		{"a network by its ID", docker.Container{HostConfig: &docker.HostConfig{NetworkMode: "12ab"}, NetworkSettings: &docker.NetworkSettings{Networks: map[string]docker.ContainerNetwork{"a": {NetworkID: "34"}, "b": {NetworkID: "12ab"}}}}, func(c label.Container) bool { return c.Network == "b" }},
		{"IPv6 only", docker.Container{NetworkSettings: &docker.NetworkSettings{Networks: map[string]docker.ContainerNetwork{"a": {GlobalIPv6Address: "fd00::2"}}}}, func(c label.Container) bool { return fmt.Sprint(c.Networks) == "map[a:[fd00::2]]" }},
		{"IPv4 and IPv6", docker.Container{NetworkSettings: &docker.NetworkSettings{Networks: map[string]docker.ContainerNetwork{"a": {GlobalIPv6Address: "fd00::2", IPAddress: "10.0.0.2"}}}}, func(c label.Container) bool { return fmt.Sprint(c.Networks) == "map[a:[10.0.0.2 fd00::2]]" }},
		{"no address yet", docker.Container{NetworkSettings: &docker.NetworkSettings{Networks: map[string]docker.ContainerNetwork{"a": {}}}}, func(c label.Container) bool { return len(c.Networks) == 0 }},
		{"odd ports", docker.Container{Config: &docker.Config{ExposedPorts: map[docker.Port]struct{}{"0/tcp": {}, "99999/tcp": {}, "x/tcp": {}, "/tcp": {}, "80": {}, "80/tcp": {}}}}, func(c label.Container) bool { return len(c.Ports) == 1 && c.Ports[0].Number == 80 }},
		{"odd bindings", docker.Container{NetworkSettings: &docker.NetworkSettings{Ports: map[docker.Port][]docker.PortBinding{"80/tcp": {
			{HostIP: "127.0.0.1", HostPort: "1"}, {HostIP: "::", HostPort: "2"}, {HostIP: "", HostPort: "4"}, {HostIP: "0.0.0.0", HostPort: "3"},
			{HostIP: "x", HostPort: "5"}, {HostIP: "0.0.0.0", HostPort: ""}, {HostIP: "0.0.0.0", HostPort: "0"}, {HostIP: "192.0.2.1", HostPort: "6"}, {HostIP: "::1", HostPort: "7"},
		}}}}, func(c label.Container) bool {
			return fmt.Sprint(c.Ports[0].Published) == "[0.0.0.0:3 0.0.0.0:4 192.0.2.1:6 [::]:2 127.0.0.1:1 [::1]:7]"
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if c := FromInspect(&tt.in, nil); !tt.want(c) {
				t.Errorf("got %+v", c)
			}
		})
	}
}

// expectReason fails unless reasons is exactly one reason with this text, or empty if none is expected.
func expectReason(t *testing.T, reasons []string, want string) {
	t.Helper()
	if (want == "") != (len(reasons) == 0) || len(reasons) > 1 || !strings.Contains(strings.Join(reasons, ""), want) {
		t.Errorf("reasons %q, want one that says %q", reasons, want)
	}
}
