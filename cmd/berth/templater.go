package main

import (
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"berth/proxyctl"
	"berth/proxyctl/haproxy"
	"berth/templater"
	"berth/templates"
)

func templaterCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "templater [-- haproxy -W -db ...]",
		Short: "Render HAProxy's configuration from Consul and bring the running HAProxy to it",
		Long: `Watch the Consul catalog, render the configuration from a template, and bring HAProxy to it over its master
socket (haproxy -W -S <socket>): servers that come, go or change do so in the running HAProxy, and for
anything else it is reloaded. What HAProxy refuses never replaces what it runs. Runs beside HAProxy and
shares two directories with it: that of the configuration file and that of the socket. Or runs HAProxy itself,
by the command behind --, as in berth run.`,
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

// addTemplater adds what renders, and who takes the texts: HAProxy's controller, if there is a HAProxy to look after, and
// the plain files.
func (p *process) addTemplater() error {
	opts, set, err := p.templaterOptions()
	if err != nil {
		return err
	}
	if p.config.HAProxyConfig != "" {
		ctl, err := p.controller()
		if err != nil {
			return err
		}
		p.check = ctl.Check
		p.parts = append(p.parts, ctl)
		set[proxyTemplate] = func(text string, files map[string]string, since time.Time) {
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
	p.reread = t.Reread
	p.parts = append(p.parts, t)
	return nil
}

// proxyTemplate is the name of the template for the proxy among all.
const proxyTemplate = "haproxy"

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
		tmpl, err := p.config.proxyTemplate()
		if err != nil {
			return none, nil, err
		}
		list = append(list, tmpl)
	}
	return templater.Options{
		Consul:      consul,
		Connections: p.config.ConsulConnections,
		Library:     libraryConfig(),
		Templates:   list,
		Programs:    p.config.TemplatePrograms,
		Funcs:       templates.Funcs(templates.Options{TLSDirectory: p.config.TLSDirectory, TCPPorts: ports}),
		Grace:       max(p.config.ConsulGrace, time.Nanosecond), // 0 is a default there
		VanishLimit: p.config.VanishLimit,
		Log:         p.log,
		Metrics:     p.metrics,
	}, set, nil
}

// proxyTemplate is the template of HAProxy's configuration.
func (c Config) proxyTemplate() (templater.Template, error) {
	path, err := filepath.Abs(c.HAProxyConfig)
	t := templater.Template{Name: proxyTemplate, Destination: path, FilePrefix: path + "."}
	if c.Template != "" {
		t.File = c.Template
	} else {
		t.Source, t.Text = "the built-in template", templates.HAProxy()
	}
	return t, err
}

func (p *process) controller() (*proxyctl.Controller, error) {
	binary, err := p.validator()
	if err != nil {
		return nil, err
	}
	reload, err := p.config.reloader()
	if err != nil {
		return nil, err
	}
	return proxyctl.New(proxyctl.Options{
		Proxy: haproxy.New(haproxy.Options{
			File:          p.config.HAProxyConfig,
			Socket:        p.config.HAProxySocket,
			Binary:        binary,
			Timeout:       p.config.HAProxyTimeout,
			DrainTimeout:  p.config.HAProxyDrainTimeout,
			TunnelTimeout: p.config.HAProxyTunnelTimeout,
			ReloadOnly:    !p.config.Runtime,
			Reload:        reload,
			Prepared:      p.prepared,
			Log:           p.log,
		}),
		Interval: p.config.ReloadInterval,
		Log:      p.log,
		Metrics:  p.metrics,
	}), nil
}

// validator is the path of the haproxy program, "" if there is none here and none was asked for.
func (p *process) validator() (string, error) {
	if p.config.HAProxyBinary == "" {
		return "", nil
	}
	path, err := exec.LookPath(p.config.HAProxyBinary)
	if err != nil && p.config.HAProxyBinary != defaultBinary {
		return "", fmt.Errorf("haproxy-binary: %w", err)
	}
	if err != nil {
		p.log.Debug("no haproxy program here: the running HAProxy judges a configuration when it loads it", "err", err)
	}
	return path, nil
}
