package haproxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"berth/proxyctl"
)

// bind is an address that a configuration listens on, as written there.
type bind struct {
	address string
	v6only  bool
}

// binds returns the addresses that the configuration listens on.
func (c *config) binds() []bind {
	var out []bind
	for _, s := range c.sections {
		if s.kind != "frontend" && s.kind != "listen" {
			continue
		}
		for _, l := range s.lines {
			if l[0] != "bind" || len(l) < 2 {
				continue
			}
			for address := range strings.SplitSeq(l[1], ",") {
				out = append(out, bind{address, slices.Contains(l[2:], "v6only")})
			}
		}
	}
	return out
}

// tcpAddress is what HAProxy binds for a bind address.
type tcpAddress struct {
	network string // for net.Listen: tcp4 or tcp6
	host    string // "" for all addresses of that network
	port    int
	v6only  bool // otherwise a socket for all IPv6 addresses also accepts IPv4
}

func (a tcpAddress) String() string { return net.JoinHostPort(a.host, strconv.Itoa(a.port)) }

// tcp returns the address as HAProxy binds it: IPv4 unless it is written as IPv6. It returns false for everything that cannot be
// tried that way: other socket families, port ranges, variables.
func (b bind) tcp() (tcpAddress, bool) {
	address, v4 := strings.CutPrefix(b.address, "ipv4@")
	address, v6 := strings.CutPrefix(address, "ipv6@")
	i := strings.LastIndexByte(address, ':')
	if i < 0 || strings.ContainsAny(address, "@/$") {
		return tcpAddress{}, false
	}
	port, err := strconv.Atoi(address[i+1:])
	if err != nil || port < 1 || port > 65535 {
		return tcpAddress{}, false
	}
	a := tcpAddress{network: "tcp4", host: strings.Trim(address[:i], "[]"), port: port, v6only: b.v6only}
	if a.host == "*" {
		a.host = ""
	}
	ip := net.ParseIP(a.host)
	if a.host != "" && ip == nil || v4 && strings.Contains(a.host, ":") {
		return tcpAddress{}, false
	}
	if v6 || strings.Contains(a.host, ":") {
		a.network = "tcp6"
	}
	if ip != nil && ip.IsUnspecified() {
		a.host = ""
	}
	return a, true
}

// claimed matches the frontend for a port that a service asks for, as named by the built-in template and by templates that began
// as a copy of it.
var claimed = regexp.MustCompile(`^tcp\.([0-9]{1,5})\.in$`)

// claimError refuses a port that a service asks for if another section listens on it as well: HAProxy would let both have it and
// split the connections between them.
func (c *config) claimError() error {
	claims := map[int]string{}
	for _, s := range c.sections {
		if m := claimed.FindStringSubmatch(s.name); s.kind == "frontend" && m != nil {
			port, _ := strconv.Atoi(m[1])
			claims[port] = s.name
		}
	}
	if len(claims) == 0 {
		return nil
	}
	for _, s := range c.sections {
		for _, address := range s.listens() {
			first, last := portsOf(address)
			for port := first; port > 0 && port <= last; port++ {
				if claim, asked := claims[port]; asked && claim != s.name {
					return &proxyctl.PortError{Port: port, Address: address, Reason: fmt.Sprintf("the configuration listens there itself, in section %q", s)}
				}
			}
		}
	}
	return nil
}

// listens returns the addresses of any kind that a section listens on.
func (s section) listens() (all []string) {
	for _, l := range s.lines {
		switch {
		case l[0] == "bind" && len(l) > 1:
			all = append(all, strings.Split(l[1], ",")...)
		case s.kind == "global" && l[0] == "stats" && len(l) > 2 && l[1] == "socket":
			all = append(all, l[2])
		}
	}
	return all
}

// notTCP matches the start of addresses of other kinds.
var notTCP = regexp.MustCompile(`^(?:(?:unix|abns|abnsz|fd|sockpair|udp[46]?|quic[46]|rhttp)@|.*/)`)

// portsOf returns the TCP ports of an address like :80, 10.0.0.1:80 or *:1000-1009, and 0 for an address without a port.
func portsOf(address string) (first, last int) {
	i := strings.LastIndexByte(address, ':')
	if i < 0 || notTCP.MatchString(address) {
		return 0, 0
	}
	return proxyctl.Ports(address[i+1:])
}

// newAddresses returns the TCP addresses that only after listens on. It leaves out ports that before has too, because HAProxy
// hands over its own listening sockets.
func newAddresses(before, after *config) []tcpAddress {
	var ports []int
	if before != nil {
		for _, b := range before.binds() {
			if a, ok := b.tcp(); ok {
				ports = append(ports, a.port)
			}
		}
	}
	var out []tcpAddress
	for _, b := range after.binds() {
		if a, ok := b.tcp(); ok && !slices.Contains(ports, a.port) {
			out = append(out, a)
		}
	}
	return out
}

// inUse tries to listen on an address as HAProxy does, with SO_REUSEPORT. What conflicts with this socket also conflicts with
// HAProxy's.
func (a tcpAddress) inUse(ctx context.Context) bool {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
			if a.network == "tcp6" && a.host == "" && !a.v6only {
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0)
			}
		})
	}}
	l, err := lc.Listen(ctx, a.network, a.String())
	if err == nil {
		l.Close()
	}
	return errors.Is(err, syscall.EADDRINUSE)
}

// refusedFor is how long an address that HAProxy could not listen on is not tried again, unless berth can see that it is free:
// each try closes all of HAProxy's listeners for two seconds.
const refusedFor = 5 * time.Minute

// refusedPort is an address that HAProxy could not listen on.
type refusedPort struct {
	at     time.Time
	reason string
}

// Precheck implements proxyctl.Driver. It refuses an address that another program listens on, or that HAProxy refused recently.
// HAProxy's own check does not notice that, and the reload would then close all listeners for two seconds.
func (d *driver) Precheck(ctx context.Context, last, to proxyctl.Marked[config]) error {
	addresses := newAddresses(last.Config, to.Config)
	if len(addresses) == 0 {
		return nil
	}
	visible := d.visible(ctx)
	for _, a := range addresses {
		refused, known := d.ports[a.port]
		switch {
		case visible && a.inUse(ctx):
			return &proxyctl.PortError{Port: a.port, Address: a.String(), Reason: "another program listens there"}
		case known && (visible || time.Since(refused.at) > refusedFor):
			delete(d.ports, a.port)
		case known:
			return &proxyctl.PortError{Port: a.port, Address: a.String(), Reason: refused.reason}
		}
	}
	return nil
}

var cannotBind = regexp.MustCompile(`cannot bind [^()]*\(([^()]*)\)(?: for)? \[([^\s\]]*):(\d+)\]`)

// portError turns the refusal of a reload into a PortError if a port is the cause. HAProxy 3.0 and later report it. HAProxy 2.6
// does not, but takes two seconds, and any of the new addresses may be the cause.
func (d *driver) portError(err error, last, to *config, took time.Duration) error {
	if !errors.Is(err, proxyctl.ErrRefused) {
		return err
	}
	maps.DeleteFunc(d.ports, func(_ int, p refusedPort) bool { return time.Since(p.at) > refusedFor })
	if m := cannotBind.FindStringSubmatch(err.Error()); m != nil {
		port, _ := strconv.Atoi(m[3])
		d.ports[port] = refusedPort{time.Now(), "HAProxy cannot listen there: " + m[1]}
		return &proxyctl.PortError{Port: port, Address: m[2] + ":" + m[3], Reason: d.ports[port].reason}
	}
	addresses := newAddresses(last, to)
	if took < time.Second || len(addresses) == 0 {
		return err
	}
	const reason = "HAProxy did not load a configuration with this address, most likely because another program listens there; see its log"
	for _, a := range addresses {
		d.ports[a.port] = refusedPort{time.Now(), reason}
	}
	return &proxyctl.PortError{Port: addresses[0].port, Address: addresses[0].String(), Reason: reason}
}
