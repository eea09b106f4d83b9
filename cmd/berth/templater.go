package main

import (
	"fmt"
	"os"
	"os/exec"

	"github.com/spf13/cobra"

	"berth/proxyctl"
	"berth/proxyctl/haproxy"
	"berth/templater"
	"berth/templates"
)

func templaterCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "templater",
		Short: "Render HAProxy's configuration from Consul and bring the running HAProxy to it",
		Long: `Watch the Consul catalog, render the configuration from a template, and reload HAProxy over its master socket
(haproxy -W -S <socket>), so that it serves the new configuration or, if it refuses that, goes on with the
last good one. Runs beside HAProxy and shares two directories with it: that of the configuration file and
that of the socket.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := newProcess(cmd)
			if err != nil {
				return err
			}
			if err := p.addTemplater(); err != nil {
				return err
			}
			return p.run(cmd.Context())
		},
	}
	commonFlags(cmd.Flags(), "127.0.0.1:9652")
	templaterFlags(cmd.Flags())
	return cmd
}

func (p *process) addTemplater() error {
	tmpl := templater.Template{Name: "haproxy", Source: "the built-in template", Text: templates.HAProxy()}
	if p.config.Template != "" {
		text, err := os.ReadFile(p.config.Template)
		if err != nil {
			return fmt.Errorf("cannot read the template: %w", err)
		}
		tmpl.Source, tmpl.Text = p.config.Template, string(text)
	}
	binary, err := p.validator()
	if err != nil {
		return err
	}
	ctl := proxyctl.New(proxyctl.Options{
		Proxy: haproxy.New(haproxy.Options{
			File:    p.config.HAProxyConfig,
			Socket:  p.config.HAProxySocket,
			Binary:  binary,
			Timeout: p.config.HAProxyTimeout,
			Log:     p.log,
		}),
		Interval: p.config.ReloadInterval,
		Log:      p.log,
		Metrics:  p.metrics,
	})
	t, err := templater.New(templater.Options{
		Consul:    consulTemplateClient(consulConfig(p.config)),
		Templates: []templater.Template{tmpl},
		Funcs:     templates.Funcs,
		Publish:   func(r templater.Rendered) { ctl.Set(r.Texts[tmpl.Name], r.Since) },
		Log:       p.log,
		Metrics:   p.metrics,
	})
	if err != nil {
		return err
	}
	p.parts = append(p.parts, t, ctl)
	return nil
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
