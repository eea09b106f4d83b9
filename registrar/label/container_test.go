package label

import (
	"net/netip"
	"slices"
	"testing"
)

func TestWithin(t *testing.T) {
	other := web(ports(tcp(80, "0.0.0.0:8080"), udp(80, "0.0.0.0:8081"), tcp(443)), func(c *Container) { c.Network = "front" })
	c := web(networks(), ports(tcp(80), tcp(81)), func(c *Container) { c.NetworkOf, c.ID = other.ID, "side" })
	got := c.Within(other)
	if got.NetworkOf != "" || got.Network != "front" || got.HostNetwork || !slices.Equal(got.Networks["front"], []netip.Addr{netip.MustParseAddr("10.0.0.2")}) {
		t.Errorf("its network is %+v", got)
	}
	if want := []Port{tcp(80, "0.0.0.0:8080"), tcp(81)}; !slices.EqualFunc(got.Ports, want, func(a, b Port) bool { return a.String() == b.String() && slices.Equal(a.Published, b.Published) }) {
		t.Errorf("its ports are %v, want %v", got.Ports, want)
	}
	if c.NetworkOf == "" || len(c.Ports[0].Published) != 0 {
		t.Error("the container itself has changed")
	}
	if got := c.Within(web(hostNetwork)); !got.HostNetwork {
		t.Error("a host network is not shared")
	}
}
