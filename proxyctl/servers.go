package proxyctl

import "net/netip"

// Server is a server as a running proxy has it.
type Server struct {
	Backend, Name string
	Address       netip.AddrPort // not valid for one without an IP address
	Usable        bool           // it gets new requests
	InFlight      int            // requests and tunnels that it has; UnknownInFlight if the proxy does not say
}

// UnknownInFlight is the Server.InFlight of a proxy that does not say.
const UnknownInFlight = -1
