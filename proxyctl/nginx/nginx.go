// Package nginx brings a running nginx to a configuration text: through its file and a reload, and, if the text has Lua
// balancers, by giving them their servers. It supports open-source nginx from 1.22 on.
package nginx

import (
	"context"
	"log/slog"
	"time"

	"berth/proxyctl"
)

// Options describe the nginx.
type Options struct {
	File    string        // its configuration file; the directory must be writable
	Socket  string        // control socket that nginx listens on; only nginx and berth may access its directory
	Binary  string        // nginx program that validates a candidate; "" leaves that to the running nginx
	Env     []string      // environment of that program: nginx's own, if berth runs it; nil = berth's
	Timeout time.Duration // of one exchange, of a validation, and of a reload; 0 = 10 s
	Log     *slog.Logger

	Grace    time.Duration // see proxyctl.EngineOptions
	TakeOver bool          // see proxyctl.EngineOptions

	// ClosingTime is how long before a reload the clients of an nginx before 1.27.4 are told to reconnect, if the configuration
	// supports that (see closing.go). If it is 0, they only have the 100 ms for which old workers go on after a reload.
	ClosingTime time.Duration

	// Reload tells nginx to reload its file. nil sends SIGHUP to its master process, which must be visible from here.
	Reload func(context.Context) error
	// ReloadOnly makes Lua balancers use the servers in the file.
	ReloadOnly bool
	// Waiting gets the counts of requests that wait for a server of a Lua balancer; may be nil.
	Waiting *proxyctl.Waiting
	// Version is Report of proxyctl.Version.
	Version func(version string) (rendered bool)
	// Prepared, if not nil, is called when nginx is down and a good configuration is in place for its start. It means that berth
	// starts nginx.
	Prepared func()
	// PortRefused, if not nil, is called when nginx refuses a text because of a port.
	PortRefused func(port int, reason string)
}

// Proxy is one nginx. It implements proxyctl.Proxy.
type Proxy struct {
	*proxyctl.Engine[config, balancerOp]
	driver *driver
}

// New returns a Proxy. It reads and dials nothing before Apply.
func New(opts Options) *Proxy {
	if opts.Timeout == 0 {
		opts.Timeout = 10 * time.Second
	}
	opts.Socket = absolute(opts.Socket)
	d := &driver{
		opts:       opts,
		control:    control{opts.Socket, opts.Timeout},
		log:        errorLog{path: errorLogPath(opts.Socket)},
		findMaster: findMaster,
		version: proxyctl.Version{
			Name: "nginx", Binary: opts.Binary, Timeout: opts.Timeout, Report: opts.Version, Log: opts.Log,
		},
	}
	if opts.Prepared != nil {
		d.findMaster = childMaster
	}
	return &Proxy{driver: d, Engine: proxyctl.NewEngine(d, proxyctl.EngineOptions{
		Name:        "nginx",
		File:        opts.File,
		Checks:      "-t",
		Timeout:     opts.Timeout,
		Grace:       opts.Grace,
		TakeOver:    opts.TakeOver,
		Inspect:     true,
		Prepared:    opts.Prepared,
		PortRefused: opts.PortRefused,
		Log:         opts.Log,
	})}
}

// Close waits until the configuration file matches the servers that nginx has.
func (p *Proxy) Close() {
	p.Engine.Close()
	p.driver.forgetClosing()
}
