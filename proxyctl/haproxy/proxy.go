// Package haproxy brings a running HAProxy to a configuration text through its master socket and its configuration file. It
// supports HAProxy 2.6 to 3.4 in master-worker mode.
package haproxy

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"berth/proxyctl"
)

// Options describe the HAProxy.
type Options struct {
	File          string            // its configuration file; the directory must be writable
	Socket        string            // its master socket (haproxy -S); "" if there is none, which requires Reload
	Binary        string            // haproxy program that validates a candidate; "" leaves that to the master
	Env           []string          // environment of that program: HAProxy's own, if berth runs it; nil = berth's
	Timeout       time.Duration     // of one command, of a validation, and of a reload; 0 = 10 s
	DrainTimeout  time.Duration     // for requests in flight on a removed server; 0 = 5 min
	TunnelTimeout time.Duration     // for tunnels (TCP, websockets) on a removed server; 0 = 1 h
	ReloadOnly    bool              // never change servers at run time
	RouteHold     time.Duration     // how long requests wait for a server, unless hold.map says otherwise; 0 = not at all
	Waiting       *proxyctl.Waiting // gets the counts of waiting requests; may be nil
	Log           *slog.Logger

	Grace    time.Duration // see proxyctl.EngineOptions
	TakeOver bool          // see proxyctl.EngineOptions

	// Reload tells HAProxy to reload its file; nil uses the socket. With a socket, the result is read back. Without one, only an
	// error of Reload indicates a failure.
	Reload func(context.Context) error
	// Version is Report of proxyctl.Version.
	Version func(version string) (rendered bool)
	// WithoutLua, if not nil, is called with HAProxy's answer when HAProxy refuses a text because it was built without Lua.
	WithoutLua func(reason string)
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

// New returns a Proxy. It reads and dials nothing before Apply.
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

// Run implements proxyctl.Proxy. It also reports waiting requests.
func (p *Proxy) Run(ctx context.Context) {
	var all sync.WaitGroup
	all.Go(func() { p.driver.counter.run(ctx) })
	p.Engine.Run(ctx)
	all.Wait()
}
