package proxyctl

import "net/netip"

// Server is a server as a running proxy has it.
type Server struct {
	Backend, Name string
	Address       netip.AddrPort // not valid for one without an IP address
	Usable        bool           // it gets new requests
	State         string         // in the proxy's own words: UP, DOWN 1/2, MAINT, no check; "" if it does not say
	Weight        int            // UnknownWeight if the proxy does not say
	Check         string         // what its last check said, of one that its checks have found dead
	InFlight      int            // requests and tunnels that it has; UnknownInFlight if the proxy does not say
}

// UnknownWeight is the Server.Weight of a proxy that does not say.
const UnknownWeight = -1

// UnknownInFlight is the Server.InFlight of a proxy that does not say.
const UnknownInFlight = -1
