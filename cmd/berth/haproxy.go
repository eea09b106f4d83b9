package main

import (
	"context"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"berth/proxyctl"
	"berth/proxyctl/haproxy"
	"berth/proxyctl/unixcred"
	"berth/templater"
	"berth/templates"
)

// haproxyKind is HAProxy with its options.
type haproxyKind struct {
	proxyOptions
	DrainTimeout, TunnelTimeout time.Duration
}

func newHAProxy() *haproxyKind {
	return &haproxyKind{proxyOptions: proxyOptions{
		name: kindHAProxy, title: "HAProxy", stopSignal: syscall.SIGUSR1, checkArguments: []string{"-c"},
		template: templates.HAProxy(), maps: true,
		File: "/etc/haproxy/haproxy.cfg", Socket: "/run/haproxy/master.sock",
		version: newProxyVersion(),
	}}
}

func (k *haproxyKind) flags(f *pflag.FlagSet) {
	k.proxyOptions.flags(f, "HAProxy's master socket (haproxy -W -S ...), or none", "the socket",
		"HAProxy's container, to reload it by a signal through Docker instead of the socket")
	f.StringVar(&k.ReloadSignal, "haproxy-reload-signal", "USR2", "signal for --haproxy-reload-container")
	f.DurationVar(&k.DrainTimeout, "haproxy-drain-timeout", 5*time.Minute, "how long requests may continue on a removed server")
	f.DurationVar(&k.TunnelTimeout, "haproxy-tunnel-timeout", time.Hour, "how long TCP connections and websockets may continue on a removed server")
}

func (k *haproxyKind) command(args []string) ([]string, error) {
	return haproxy.Command(args, k.File, k.Socket)
}

func (k *haproxyKind) running() (pid int, err error) { return unixcred.Running(k.Socket) }

func (k *haproxyKind) text(p templater.Published) string { return haproxy.WithMaps(p.Text, p.Maps) }

func (k *haproxyKind) unmarked(text string) string { return haproxy.Unmarked(text) }

func (k *haproxyKind) validate(ctx context.Context, binary, text string, files map[string]string) error {
	return haproxy.Check(ctx, binary, text, files)
}

func (k *haproxyKind) driver(p *process, o driverOptions) proxyctl.Proxy {
	return haproxy.New(haproxy.Options{
		File:          k.File,
		Socket:        k.Socket,
		Binary:        o.binary,
		Env:           o.env,
		Timeout:       k.Timeout,
		DrainTimeout:  k.DrainTimeout,
		TunnelTimeout: k.TunnelTimeout,
		ReloadOnly:    !p.config.Runtime,
		RouteHold:     p.config.RouteHold.Round(time.Millisecond),
		Waiting:       o.waiting,
		Reload:        o.reload,
		Prepared:      o.prepared,
		PortRefused:   o.portRefused,
		Version:       k.version.learn,
		WithoutLua: func(reason string) {
			if k.version.withoutLua() {
				p.log.Info("rendering the configuration again without Lua", "reason", reason)
			}
		},
		Grace:    p.config.ConsulGrace,
		TakeOver: p.config.TakeOver,
		Log:      p.log,
	})
}

func (k *haproxyKind) versionHere(ctx context.Context, binary string) string {
	if !haproxy.LuaHere(ctx, binary, versionTime) {
		k.version.withoutLua()
	}
	return haproxy.VersionHere(ctx, binary, k.Socket, versionTime)
}
