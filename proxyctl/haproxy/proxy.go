// Package haproxy brings a running HAProxy to a configuration text through its master socket and its configuration
// file, for HAProxy 2.6 to 3.4 in master-worker mode.
package haproxy

import (
	"context"
	"log/slog"
	"time"

	"berth/proxyctl"
)

// Options say where the HAProxy is.
type Options struct {
	File          string        // its configuration file; the directory must be writable
	Socket        string        // its master socket (haproxy -S); "" if there is none, and then Reload must be set
	Binary        string        // haproxy program for validating a candidate; "" leaves that to the master
	Env           []string      // environment of that program: the one HAProxy has, if berth runs it; nil = berth's own
	Timeout       time.Duration // of one command, of a validation, and of a reload; 0 = 10 s
	DrainTimeout  time.Duration // for requests in flight on a server that was removed; 0 = 5 min
	TunnelTimeout time.Duration // for tunnels (TCP, websockets) on a server that was removed; 0 = 1 h
	ReloadOnly    bool          // never change servers at run time
	Log           *slog.Logger

	Grace    time.Duration // of proxyctl.EngineOptions
	TakeOver bool          // of proxyctl.EngineOptions

	// Reload tells HAProxy to load its file anew; nil does so over the socket. With a socket the result is read back,
	// without one an error of Reload is all that tells of a failure.
	Reload func(context.Context) error
	// Version is Report of proxyctl.Version.
	Version func(version string) (rendered bool)
	// Prepared, if not nil, is called when HAProxy is down and a good configuration is in place for its start.
	Prepared func()
	// PortRefused, if not nil, is called when a text is refused because of an address that HAProxy cannot listen on.
	PortRefused func(port int, reason string)
}

// Proxy is one HAProxy. It implements proxyctl.Proxy.
type Proxy struct {
	*proxyctl.Engine[config, op]
	driver *driver
}

// New returns a Proxy; nothing is read or dialled before Apply.
func New(opts Options) *Proxy {
	for at, d := range map[*time.Duration]time.Duration{&opts.Timeout: 10 * time.Second, &opts.DrainTimeout: 5 * time.Minute, &opts.TunnelTimeout: time.Hour} {
		if *at == 0 {
			*at = d
		}
	}
	d := newDriver(opts)
	return &Proxy{driver: d, Engine: proxyctl.NewEngine(d, proxyctl.EngineOptions{
		Name: "HAProxy", File: opts.File, Checks: "-c", Timeout: opts.Timeout, Grace: opts.Grace, TakeOver: opts.TakeOver,
		Prepared: opts.Prepared, PortRefused: opts.PortRefused, Log: opts.Log,
	})}
}
