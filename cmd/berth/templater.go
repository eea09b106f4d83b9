package main

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/spf13/cobra"

	"berth/proxyctl"
	"berth/proxyctl/nginx"
	"berth/templater"
	"berth/templates"
)

func templaterCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "templater [-- haproxy -W -db ...]",
		Short: "Render the proxy's configuration from Consul and bring the running proxy to it",
		Long: `Watch the Consul catalog, render the configuration from a template, and bring HAProxy to it over its master
socket (haproxy -W -S <socket>): servers that come, go or change do so in the running HAProxy, and for
anything else it is reloaded. What HAProxy refuses never replaces what it runs. Runs beside HAProxy and
shares two directories with it: that of the configuration file and that of the socket. Or runs HAProxy itself,
by the command behind --, as in berth run.

With --proxy nginx the same for nginx, which is reloaded by SIGHUP for every change, or takes servers at run
time through a balancer in Lua (--nginx-lua).`,
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := newProcess(cmd)
			if err != nil {
				return err
			}
			if err := p.addChild(args); err != nil {
				return err
			}
			if err := p.addTemplater(); err != nil {
				return err
			}
			return p.run(cmd.Context())
		},
	}
	takesChild(cmd)
	commonFlags(cmd.Flags(), "127.0.0.1:9652")
	templaterFlags(cmd.Flags())
	return cmd
}

// addTemplater adds what renders, and who takes the texts: the proxy's controller, if there is one to look after, and the
// plain files.
func (p *process) addTemplater() error {
	opts, set, err := p.templaterOptions()
	if err != nil {
		return err
	}
	if p.proxy.file != "" {
		ctl, err := p.controller()
		if err != nil {
			return err
		}
		p.check = ctl.Check
		p.parts = append(p.parts, ctl)
		set[p.proxy.name] = func(text string, files map[string]string, since time.Time) {
			ctl.Set(proxyctl.Config{Text: text, Files: files}, since)
		}
	}
	published := map[string]string{}
	opts.Publish = func(r templater.Rendered) {
		for name, text := range r.Texts {
			if old, had := published[name]; !had || old != text {
				set[name](text, r.Files[name], r.Since)
			}
		}
		published = r.Texts
	}
	t, err := templater.New(opts)
	if err != nil {
		return err
	}
	p.reread, p.rerender = t.Reread, t.Rerender
	p.parts = append(p.parts, t)
	return nil
}

// setter takes a new text, and what the files hold that it names.
type setter = func(text string, files map[string]string, since time.Time)

// templaterOptions are all but Publish, with the plain files' setters, by the names of their templates.
func (p *process) templaterOptions() (templater.Options, map[string]setter, error) {
	var none templater.Options
	consul, err := consulConfig(p.config)
	if err != nil {
		return none, nil, err
	}
	ports, err := templates.ParsePorts(p.config.TCPPorts)
	if err != nil {
		return none, nil, fmt.Errorf("tcp-ports: %w", err)
	}
	if _, port, err := net.SplitHostPort(p.config.Listen); err == nil {
		if n, err := net.LookupPort("tcp", port); err == nil {
			ports = ports.Without(n)
		}
	}
	list, files, err := p.addFiles()
	if err != nil {
		return none, nil, err
	}
	set := map[string]setter{}
	for name, setFile := range files {
		set[name] = func(text string, _ map[string]string, since time.Time) { setFile(text, since) }
	}
	only, err := p.filesOnly()
	if err != nil {
		return none, nil, err
	}
	if !only {
		tmpl, err := p.proxy.template(p.config.Template)
		if err != nil {
			return none, nil, err
		}
		list = append(list, tmpl)
		if p.proxy.needsSocket { // it is nginx: the first text is to be the one for its version
			binary, _ := p.validator()
			p.nginxVersion.set(nginx.VersionHere(context.Background(), binary, p.proxy.socket, 2*time.Second))
		}
	}
	return templater.Options{
		Consul:      consul,
		Connections: p.config.ConsulConnections,
		Library:     libraryConfig(),
		Templates:   list,
		Programs:    p.config.TemplatePrograms,
		Funcs: templates.Funcs(templates.Options{
			TLSDirectory: p.config.TLSDirectory,
			TCPPorts:     ports,
			NginxSocket:  p.config.controlSocket(),
			NginxClosing: p.config.closingFile(),
			Lua:          p.config.NginxLua,
			NginxAtLeast: p.nginxVersion.atLeast,
		}),
		Grace:       max(p.config.ConsulGrace, time.Nanosecond), // 0 is a default there
		VanishLimit: p.config.VanishLimit,
		Log:         p.log,
		Metrics:     p.metrics,
	}, set, nil
}
