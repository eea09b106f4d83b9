package nginx

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"berth/proxyctl"
)

// claimError refuses a port that a service asks for if another server listens on it as well. The port of a service is that of a
// server in the stream block that passes connections to an upstream <service>.tcp, as in the built-in template and in templates
// that began as a copy of it.
func (c *config) claimError() error {
	claims := map[int]*directive{}
	type listener struct {
		server      *directive
		block       string
		first, last int // ports
		address     string
	}
	var all []listener
	for _, block := range c.all.block {
		for _, s := range block.block {
			if !s.is("server") {
				continue
			}
			asked, own := false, 0
			for _, d := range s.block {
				switch {
				case len(d.words) < 2:
				case d.name() == "listen":
					if first, last := portsOf(d.words); first > 0 {
						all = append(all, listener{s, block.name(), first, last, d.words[1]})
						own = cmp.Or(own, first)
					}
				case block.is("stream") && d.name() == "proxy_pass" && strings.HasSuffix(d.words[1], ".tcp"):
					asked = true
				}
			}
			if asked {
				claims[own] = s
			}
		}
	}
	for _, l := range all {
		for port := l.first; port <= l.last; port++ {
			if claim, asked := claims[port]; asked && claim != l.server {
				return &proxyctl.PortError{Port: port, Address: l.address, Reason: fmt.Sprintf("the configuration listens there itself, in a server of block %q", l.block)}
			}
		}
	}
	return nil
}

// portsOf returns the TCP ports of a listen directive with an address like 80, *:80, [::]:80 or 1000-1009. An address without a
// port means 80. It returns 0 for a unix socket, UDP and QUIC.
func portsOf(listen []string) (first, last int) {
	if strings.HasPrefix(listen[1], "unix:") || slices.Contains(listen, "udp") || slices.Contains(listen, "quic") {
		return 0, 0
	}
	port := listen[1]
	if i := strings.LastIndexByte(port, ':'); i >= 0 && !strings.HasSuffix(port, "]") {
		port = port[i+1:]
	}
	if first, last = proxyctl.Ports(port); first == 0 {
		return 80, 80
	}
	return first, last
}
