package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"berth/proxyctl"
	"berth/proxyctl/haproxy"
	"berth/proxyctl/nginx"
	"berth/proxyctl/unixcred"
	"berth/templater"
	"berth/templates"
)

// proxy is the proxy that berth looks after, and what differs between the kinds of them. Its options are those that begin
// with its name.
type proxy struct {
	name  string // of the program, of the template, and of the options
	title string // in messages

	file, socket, binary           string
	timeout, stopTimeout           time.Duration
	reloadCommand, reloadContainer string
	reloadSignal                   string
	builtin                        func() string                                              // the template that berth ships
	needsSocket                    bool                                                       // there is no other way to see what it runs
	command                        func(args []string, file, socket string) ([]string, error) // completes one behind --
	checks                         []string                                                   // arguments that have the command check its configuration
	stopSignal                     syscall.Signal                                             // has it finish its connections and end
	running                        func(socket string) (pid int, err error)                   // the process that listens on the socket
	unmarked                       func(text string) string                                   // a file as it was rendered
	validate                       func(ctx context.Context, binary, text string, files map[string]string) error
	create                         func(p *process, binary string, reload func(context.Context) error) proxyctl.Proxy
}

const (
	kindHAProxy = "haproxy"
	kindNginx   = "nginx"
)

// proxyKind is the kind of proxy that is asked for, or that a command behind -- is.
func proxyKind(asked string, command []string) (string, error) {
	switch asked {
	case kindHAProxy, kindNginx:
		return asked, nil
	case "":
		if _, found := programIn(command, kindNginx); found {
			return kindNginx, nil
		}
		return kindHAProxy, nil
	}
	return "", fmt.Errorf("proxy must be %s or %s, not %q", kindHAProxy, kindNginx, asked)
}

// proxy is the one that the configuration is about.
func (c Config) proxy() *proxy {
	if c.Proxy == kindNginx {
		return c.nginx()
	}
	return c.haproxy()
}

func (c Config) haproxy() *proxy {
	return &proxy{
		name: kindHAProxy, title: "HAProxy",
		file: c.HAProxyConfig, socket: c.HAProxySocket, binary: c.HAProxyBinary,
		timeout: c.HAProxyTimeout, stopTimeout: c.HAProxyStopTimeout,
		reloadCommand: c.HAProxyReloadCommand, reloadContainer: c.HAProxyReloadContainer, reloadSignal: c.HAProxyReloadSignal,
		builtin:    templates.HAProxy,
		command:    haproxyCommand,
		checks:     []string{"-c"},
		stopSignal: syscall.SIGUSR1,
		running:    unixcred.Running,
		unmarked:   haproxy.Unmarked,
		validate:   haproxy.Check,
		create: func(p *process, binary string, reload func(context.Context) error) proxyctl.Proxy {
			return haproxy.New(haproxy.Options{
				File:          c.HAProxyConfig,
				Socket:        c.HAProxySocket,
				Binary:        binary,
				Timeout:       c.HAProxyTimeout,
				DrainTimeout:  c.HAProxyDrainTimeout,
				TunnelTimeout: c.HAProxyTunnelTimeout,
				ReloadOnly:    !c.Runtime,
				Grace:         max(c.ConsulGrace, time.Nanosecond), // 0 is a default there
				Reload:        reload,
				Prepared:      p.prepared,
				Log:           p.log,
			})
		},
	}
}

func (c Config) nginx() *proxy {
	return &proxy{
		name: kindNginx, title: "nginx",
		file: c.NginxConfig, socket: c.NginxSocket, binary: c.NginxBinary,
		timeout: c.NginxTimeout, stopTimeout: c.NginxStopTimeout,
		reloadCommand: c.NginxReloadCommand, reloadContainer: c.NginxReloadContainer, reloadSignal: "HUP",
		builtin:     templates.Nginx,
		needsSocket: true,
		command:     nginxCommand,
		checks:      []string{"-t", "-q"},
		stopSignal:  syscall.SIGQUIT,
		running:     nginx.Running,
		unmarked:    func(text string) string { return nginx.Unmarked(text, c.NginxSocket) },
		validate: func(ctx context.Context, binary, text string, files map[string]string) error {
			return nginx.Check(ctx, binary, c.NginxConfig, c.NginxSocket, text, files)
		},
		create: func(p *process, binary string, reload func(context.Context) error) proxyctl.Proxy {
			return nginx.New(nginx.Options{
				File:       c.NginxConfig,
				Socket:     c.NginxSocket,
				Binary:     binary,
				Timeout:    c.NginxTimeout,
				ReloadOnly: !c.Runtime,
				Reload:     reload,
				Prepared:   p.prepared,
				Log:        p.log,

				ClosingTime: c.NginxClosingTime,
				Version: func(version string) bool {
					differs := p.nginxVersion.set(version)
					if differs {
						p.rerender()
					}
					return differs
				},
			})
		},
	}
}

// controlSocket is the path of nginx's in its configuration, where another one would be one from nginx's prefix.
func (c Config) controlSocket() string {
	path, err := filepath.Abs(c.NginxSocket)
	if err != nil || c.NginxSocket == "" {
		return ""
	}
	return path
}

// closingFile is what announces a reload of nginx, "" if nothing does.
func (c Config) closingFile() string {
	file := nginx.ClosingFile(c.NginxConfig)
	if nginx.CheckPath(file) != nil {
		return ""
	}
	return file
}

// check says what is wrong with its options.
func (x *proxy) check() error {
	if !x.needsSocket || x.file == "" {
		return nil
	}
	if x.socket == "" {
		return fmt.Errorf("%s-socket is none: berth needs a path for the control socket by which it sees what %s runs", x.name, x.title)
	}
	if err := nginx.CheckPath(x.socket); err != nil {
		return fmt.Errorf("%s-socket: %w", x.name, err)
	}
	return nil
}

// template is that of its configuration.
func (x *proxy) template(file string) (templater.Template, error) {
	path, err := filepath.Abs(x.file)
	t := templater.Template{Name: x.name, Destination: path, FilePrefix: path + "."}
	if file != "" {
		t.File = file
	} else {
		t.Source, t.Text = "the built-in template", x.builtin()
	}
	return t, err
}

// validator is the path of its program, "" if there is none here and none was asked for.
func (p *process) validator() (string, error) {
	if p.proxy.binary == "" {
		return "", nil
	}
	path, err := exec.LookPath(p.proxy.binary)
	if err != nil && p.proxy.binary != p.proxy.name {
		return "", fmt.Errorf("%s-binary: %w", p.proxy.name, err)
	}
	if err != nil {
		p.log.Debug("no "+p.proxy.name+" program here: the running "+p.proxy.title+" judges a configuration when it loads it", "err", err)
	}
	return path, nil
}

func (p *process) controller() (*proxyctl.Controller, error) {
	binary, err := p.validator()
	if err != nil {
		return nil, err
	}
	reload, err := p.proxy.reloader()
	if err != nil {
		return nil, err
	}
	return proxyctl.New(proxyctl.Options{
		Proxy:    p.proxy.create(p, binary, reload),
		Interval: p.config.ReloadInterval,
		Log:      p.log,
		Metrics:  p.metrics,
	}), nil
}
