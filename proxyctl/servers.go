package proxyctl

import "net/netip"

// Server is a server of a running proxy.
type Server struct {
	Backend, Name string
	Address       netip.AddrPort // invalid if the server has no IP address
	Usable        bool           // it gets new requests
	State         string         // in the proxy's own words: UP, DOWN 1/2, MAINT, no check; "" if unknown
	Weight        int            // UnknownWeight if the proxy does not report it
	Check         string         // what its last check said, if the checks have marked it as down
	InFlight      int            // its requests and tunnels; UnknownInFlight if the proxy does not report them
}

// UnknownWeight is the Server.Weight if the proxy does not report it.
const UnknownWeight = -1

// UnknownInFlight is the Server.InFlight if the proxy does not report it.
const UnknownInFlight = -1
