package main

import (
	"net"
	"text/template"

	"github.com/spf13/cobra"

	"berth/templater"
	"berth/templates"
	"berth/templates/route"
)

func templaterCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "templater [flags] [-- haproxy -W -db ...]",
		Short: "Render the proxy's configuration from Consul and apply it to the running proxy",
		Long: `Watch the Consul catalog, render the proxy's configuration from a template, and apply it to HAProxy over its master socket
(haproxy -W -S <socket>). Servers are added, changed and removed in the running HAProxy; every other change is a reload.
A configuration that HAProxy refuses never replaces the running one.

The templater runs next to HAProxy and shares two directories with it: one for the configuration file, one for the socket.
It can also run HAProxy itself, with the command behind --, as in berth run.

With --proxy nginx, it does the same for nginx. Every change is a reload by SIGHUP, unless a Lua balancer changes the
servers at run time (--nginx-lua).`,
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := newProcess(cmd)
			if err != nil {
				return err
			}
			return p.run(cmd.Context(), parts{templater: true, proxyCommand: args})
		},
	}
	acceptsCommand(cmd)
	c := newConfig()
	c.commonFlags(cmd.Flags(), listenTemplater)
	c.pageFlags(cmd.Flags())
	c.templaterFlags(cmd.Flags())
	return cmd
}

// newTemplater returns the templater of the outputs. It skips the refused ports and informs report, unless these are nil.
func (p *process) newTemplater(outputs []output, refused *route.Refused, report *reporter) (*templater.Templater, error) {
	consul, err := consulConfig(p.config)
	if err != nil {
		return nil, err
	}
	told, err := p.config.templateOptions()
	if err != nil {
		return nil, err
	}
	told.Refused = refused
	if _, port, err := net.SplitHostPort(p.config.Listen); err == nil {
		if n, err := net.LookupPort("tcp", port); err == nil {
			told.TCPPorts = told.TCPPorts.Without(n)
		}
	}
	if report != nil {
		told.Expiries = report.expiries
	}
	var list []templater.Template
	set := map[string]func(templater.Published){}
	for _, o := range outputs {
		told.Ledger = o.ledger
		funcs := templates.Funcs(told)
		o.template.Funcs = func(report func(string), _ templater.Ask) template.FuncMap {
			return funcs(report)
		}
		list = append(list, o.template)
		set[o.template.Name] = o.set
	}
	o := templater.Options{
		Consul:      consul,
		Connections: p.config.ConsulConnections,
		Library:     libraryConfig(),
		Templates:   list,
		Programs:    p.config.TemplatePrograms,
		Grace:       p.config.ConsulGrace,
		VanishLimit: p.config.VanishLimit,
		Publish:     func(p templater.Published) { set[p.Name](p) },
		Log:         p.log,
		Metrics:     p.metrics,
	}
	if report != nil {
		o.Services, o.Instances, o.Changed = report.live.setServices, report.live.setInstances, report.changed
	}
	return templater.New(o)
}
