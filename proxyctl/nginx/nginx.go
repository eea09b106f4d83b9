// Package nginx brings a running nginx to a configuration text: by its file and a reload, and where the text has Lua
// balancers, by telling these their servers. It is for open-source nginx from 1.22 on.
package nginx

import (
	"context"
	"log/slog"
	"time"

	"berth/proxyctl"
)

// Options say where the nginx is.
type Options struct {
	File    string        // its configuration file; the directory must be writable
	Socket  string        // control socket that nginx listens on; its directory is for nginx and berth alone
	Binary  string        // nginx program for validating a candidate; "" leaves that to the running nginx
	Env     []string      // environment of that program: the one nginx has, if berth runs it; nil = berth's own
	Timeout time.Duration // of one exchange, of a validation, and of a reload; 0 = 10 s
	Log     *slog.Logger

	Grace    time.Duration // of proxyctl.EngineOptions
	TakeOver bool          // of proxyctl.EngineOptions

	// ClosingTime is how long before a reload the clients of an nginx before 1.27.4 are told to come back over new
	// connections, where the configuration can do that (see closing.go). Without it, the 100 ms in which old workers go on
	// after a reload are the time for that.
	ClosingTime time.Duration

	// Reload tells nginx to load its file anew. nil sends SIGHUP to its master process, which must be one that can be
	// seen from here.
	Reload func(context.Context) error
	// ReloadOnly leaves Lua balancers alone: they use the servers in the file.
	ReloadOnly bool
	// Waiting is told of requests that wait for a server of a Lua balancer; nil = nobody is.
	Waiting *proxyctl.Waiting
	// Version is Report of proxyctl.Version.
	Version func(version string) (rendered bool)
	// Prepared, if not nil, is called when nginx is down and a good configuration is in place for its start. nginx is then
	// started by berth.
	Prepared func()
	// PortRefused, if not nil, is called when nginx refuses a text because of a port.
	PortRefused func(port int, reason string)
}

// Proxy is one nginx. It implements proxyctl.Proxy.
type Proxy struct {
	*proxyctl.Engine[config, balancerOp]
	driver *driver
}

// New returns a Proxy; nothing is read or dialled before Apply.
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

// Close returns when the configuration file is in step with the servers that nginx has.
func (p *Proxy) Close() {
	p.Engine.Close()
	p.driver.forgetClosing()
}
