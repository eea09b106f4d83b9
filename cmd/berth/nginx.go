package main

import (
	"context"
	"errors"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"berth/proxyctl"
	"berth/proxyctl/nginx"
	"berth/templater"
	"berth/templates"
)

// nginxKind is nginx with its options.
type nginxKind struct {
	proxyOptions
	ClosingTime time.Duration
	Lua         bool
}

func newNginx() *nginxKind {
	return &nginxKind{proxyOptions: proxyOptions{
		name: kindNginx, title: "nginx", stopSignal: syscall.SIGQUIT, checkArguments: []string{"-t", "-q"},
		template: templates.Nginx(),
		File:     "/etc/nginx/nginx.conf", Socket: "/run/nginx/berth.sock", ReloadSignal: "HUP",
		version: newProxyVersion(),
	}}
}

func (k *nginxKind) flags(f *pflag.FlagSet) {
	k.proxyOptions.flags(f, "control socket that nginx listens on, in a directory only for nginx and berth",
		"a signal to its master process", "nginx's container, to reload it by SIGHUP through Docker")
	f.DurationVar(&k.ClosingTime, "nginx-closing-time", 0, "how long before a reload nginx older than 1.27.4 closes keep-alive connections, in addition to 100ms after it")
	f.BoolVar(&k.Lua, "nginx-lua", false, "change servers without a reload, with a Lua balancer in the built-in template (needs lua-nginx-module)")
}

// checkSocket refuses an nginx without a usable control socket: berth has no other way to see what nginx runs.
func (k *nginxKind) checkSocket() error {
	if k.File == "" {
		return nil
	}
	if k.Socket == "" {
		return errors.New("nginx-socket is none: berth needs the control socket to see what nginx runs")
	}
	return k.optionError("socket", nginx.CheckPath(k.Socket))
}

func (k *nginxKind) command(args []string) ([]string, error) { return nginx.Command(args, k.File) }

func (k *nginxKind) running() (pid int, err error) { return nginx.Running(k.Socket) }

func (k *nginxKind) text(p templater.Published) string { return p.Text }

func (k *nginxKind) unmarked(text string) string { return nginx.Unmarked(text) }

func (k *nginxKind) validate(ctx context.Context, binary, text string, files map[string]string) error {
	return nginx.Check(ctx, binary, k.File, k.Socket, text, files)
}

func (k *nginxKind) driver(p *process, o driverOptions) proxyctl.Proxy {
	return nginx.New(nginx.Options{
		File:        k.File,
		Socket:      k.Socket,
		Binary:      o.binary,
		Env:         o.env,
		Timeout:     k.Timeout,
		ReloadOnly:  !p.config.Runtime,
		Reload:      o.reload,
		Prepared:    o.prepared,
		PortRefused: o.portRefused,
		Grace:       p.config.ConsulGrace,
		TakeOver:    p.config.TakeOver,
		Log:         p.log,
		ClosingTime: k.ClosingTime,
		Version:     k.version.learn,
		Waiting:     o.waiting,
	})
}

func (k *nginxKind) versionHere(ctx context.Context, binary string) string {
	return nginx.VersionHere(ctx, binary, k.Socket, versionTime)
}

// controlSocket returns the absolute path of the socket: nginx would resolve a relative path against its prefix.
func (k *nginxKind) controlSocket() string {
	path, err := filepath.Abs(k.Socket)
	if err != nil || k.Socket == "" {
		return ""
	}
	return path
}

// closingFile returns the path of the file that announces a reload of nginx, "" if the configuration cannot name it.
func (k *nginxKind) closingFile() string {
	file := nginx.ClosingFile(k.File)
	if nginx.CheckPath(file) != nil {
		return ""
	}
	return file
}
