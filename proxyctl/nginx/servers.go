package nginx

import (
	"context"
	"fmt"
	"net/netip"
	"os"

	"berth/proxyctl"
)

// Servers implements proxyctl.Driver. It returns the servers in the file, which matches what nginx runs, or is a moment behind
// its Lua balancers. nginx does not report requests in flight.
func (d *driver) Servers(ctx context.Context) (servers []proxyctl.Server, err error) {
	text, err := os.ReadFile(d.opts.File)
	if err != nil {
		return nil, err
	}
	file := unmark(string(text), d.opts.Socket)
	if file.Config == nil {
		return nil, fmt.Errorf("%s is not an nginx configuration", d.opts.File)
	}
	now, err := d.control.status(ctx)
	if err != nil {
		return nil, err
	}
	if !now.generation.SameShape(file.Generation) || !file.Config.live && now.generation.Text != file.Generation.Text {
		return nil, fmt.Errorf("nginx does not run the configuration in %s yet", d.opts.File)
	}
	for name, u := range file.Config.upstreams {
		for _, s := range u.servers {
			address, _ := netip.ParseAddrPort(s.address)
			servers = append(servers, proxyctl.Server{Backend: name, Name: s.address, Address: address, Usable: true, Weight: s.weight, InFlight: proxyctl.UnknownInFlight})
		}
	}
	return servers, nil
}
