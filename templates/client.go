package templates

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"berth/templates/route"
)

// clientHeaders are headers in which a proxy describes the client and its request to a server. Values set by the client are
// not trustworthy. The X-Forwarded-… headers are listed for nginx, which accepts no pattern.
var clientHeaders = []string{
	// Who the client is.
	"Forwarded", "Forwarded-For", "X-Forwarded", "X-Forwarded-By", "X-Forwarded-Client-Ip", "X-Forwarded-For-Original", "X-Forwarded-Client-Port",
	"X-Original-Forwarded-For", "X-Real-Port", "X-Client-IP", "X-Client-Port", "Client-IP", "True-Client-IP", "X-True-Client-IP", "X-Cluster-Client-IP", "X-Originating-IP",
	"X-Remote-IP", "X-Remote-Addr", "Remote-Addr", "X-ProxyUser-IP", "Proxy-Client-IP", "WL-Proxy-Client-IP", "X-Envoy-External-Address",
	"X-Azure-ClientIP", "X-Azure-SocketIP", "X-Appengine-User-IP", "CF-Connecting-IP", "CF-Connecting-IPv6", "CF-Pseudo-IPv4",
	"Fastly-Client-IP", "Fly-Client-IP", "DO-Connecting-IP", "X-NF-Client-Connection-IP", "Incap-Client-IP", "Ali-CDN-Real-IP", "CDN-Src-IP",
	"CloudFront-Viewer-Address",
	// Who the client is, according to a proxy that asked for a password or certificate.
	"X-Forwarded-User", "X-Forwarded-Email", "X-Forwarded-Groups", "X-Forwarded-Preferred-Username", "X-Forwarded-Access-Token",
	"X-Forwarded-Client-Cert", "X-Forwarded-Tls-Client-Cert", "X-Forwarded-Tls-Client-Cert-Info", "X-Forwarded-Ssl-Client-Cert", "X-SSL-Client-Cert", "X-SSL-Client-Verify", "X-SSL-Client-DN", "X-SSL-Client-S-DN", "X-Client-Cert",
	"SSL-Client-Cert", "SSL-Client-Verify", "X-ARR-ClientCert", "Client-Cert", "Client-Cert-Chain", "Remote-User", "X-Remote-User",
	// How the request arrived.
	"X-Forwarded-Proto-Version", "X-Forwarded-Protocol", "X-Forwarded-Scheme", "X-Forwarded-Ssl", "X-Forwarded-Https", "X-Scheme", "X-Url-Scheme", "X-ARR-SSL",
	"Front-End-Https", "CloudFront-Forwarded-Proto", "CF-Visitor", "WL-Proxy-SSL", "Fastly-SSL",
	// What the client asked for.
	"X-Forwarded-Server", "X-Forwarded-Uri", "X-Forwarded-Url", "X-Forwarded-Path", "X-Forwarded-PathBase", "X-Forwarded-Method", "X-Forwarded-Script-Name",
	"X-Original-URL", "X-Original-URI", "X-Original-Host", "X-Original-Proto", "X-Original-Prefix", "X-Original-For", "X-Original-Method", "X-Rewrite-URL", "X-Host", "X-HTTP-Host-Override", "Host-Override",
	"X-Script-Name", "Script-Name", "X-Envoy-Original-Path", "X-MS-Original-URL",
	// CGI turns it into HTTP_PROXY, which programs use to find their proxy.
	"Proxy",
	// The connection to this proxy.
	"Proxy-Connection", "Keep-Alive",
}

// forwardedHeaders are the headers that the templates set.
var forwardedHeaders = []string{"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Prefix", "X-Real-IP"}

// clientHeaderPattern returns a regular expression for the names in lower case. Many servers treat x_real_ip as x-real-ip.
func clientHeaderPattern() string {
	names := []string{"x-forwarded-.*"}
	for _, name := range slices.Concat(clientHeaders, forwardedHeaders) {
		if name = strings.ToLower(name); !strings.HasPrefix(name, "x-forwarded-") {
			names = append(names, name)
		}
	}
	return "^(" + strings.ReplaceAll(strings.Join(names, "|"), "-", "[-_]") + ")$"
}

// maxHops is how many consecutive trusted proxies are followed to find the client.
const maxHops = 5

func hops() []int {
	var all []int
	for n := range maxHops {
		all = append(all, n+1)
	}
	return all
}

// ParseNetworks reads comma-separated networks and addresses: "10.0.0.0/8,fd00::/8,192.0.2.1"; "" = none.
func ParseNetworks(s string) ([]netip.Prefix, error) {
	if strings.TrimSpace(s) == "" {
		return nil, nil
	}
	var all []netip.Prefix
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimSpace(part)
		p, err := netip.ParsePrefix(part)
		if a, errAddr := netip.ParseAddr(part); errAddr == nil && a.Zone() == "" {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil || p.Addr().Is4In6() {
			return nil, fmt.Errorf("%q is neither a network like 10.0.0.0/8 or fd00::/8 nor an address", part)
		}
		if p != p.Masked() {
			return nil, fmt.Errorf("%q has bits after its /%d: the network is %s", part, p.Bits(), p.Masked())
		}
		all = append(all, p)
	}
	return all, nil
}

// ParseListeners reads the proxy's ports for the PROXY protocol: comma-separated numbers, ranges, http (8080) and https
// (8443); "" and "none" = none.
func ParseListeners(s string) (route.Ports, error) {
	if strings.TrimSpace(s) == "" {
		return nil, nil
	}
	parts := strings.Split(s, ",")
	for n, part := range parts {
		switch strings.TrimSpace(part) {
		case "http":
			parts[n] = strconv.Itoa(portHTTP)
		case "https":
			parts[n] = strconv.Itoa(portHTTPS)
		}
	}
	ports, err := route.ParsePorts(strings.Join(parts, ","))
	if err != nil {
		return nil, fmt.Errorf("%w, and not http or https", err)
	}
	return ports, nil
}

// The ports of the built-in templates.
const (
	portHTTP  = 8080
	portHTTPS = 8443
)

// KernelHasIPv6 reports whether the kernel supports IPv6 sockets. A proxy that shares a directory of sockets with berth has
// the same kernel. It does not matter whether an IPv6 network exists: listening works without.
func KernelHasIPv6() bool {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}
