package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"berth/proxyctl"
	"berth/templater"
	"berth/templates/route"
)

// proxyKind is a kind of proxy with its options. It covers the differences between HAProxy and nginx.
type proxyKind interface {
	common() *proxyOptions
	command(args []string) ([]string, error) // completes the command line that runs the proxy as berth's child
	running() (pid int, err error)           // returns the process that listens on the socket, 0 if there is none
	text(templater.Published) string         // returns a text as it is handed to the driver
	unmarked(text string) string             // returns the text of a configuration file as it was handed over
	validate(ctx context.Context, binary, text string, files map[string]string) error
	driver(p *process, o driverOptions) proxyctl.Proxy
	versionHere(ctx context.Context, binary string) string // returns the version that a text must suit, "" if it is not known
}

// versionTime is how long the proxy is asked for its version before the first text.
const versionTime = 2 * time.Second

const (
	kindHAProxy = "haproxy"
	kindNginx   = "nginx"
)

// proxyOptions are the options that every kind has. Their names begin with the name of the kind.
type proxyOptions struct {
	name           string         // of the kind, its options, its program, and its template
	title          string         // in messages
	stopSignal     syscall.Signal // makes the proxy finish its connections and end
	checkArguments []string       // make the program check its configuration and end
	template       string         // the one that berth ships
	maps           bool           // it has maps that change while it runs
	version        *proxyVersion

	File, Socket, Binary           string // "" is none
	Timeout, StopTimeout           time.Duration
	ReloadCommand, ReloadContainer string
	ReloadSignal                   string // for ReloadContainer
}

func (o *proxyOptions) common() *proxyOptions { return o }

// flags declares the options. socket and container are help texts; insteadOf is what a reload command replaces.
func (o *proxyOptions) flags(f *pflag.FlagSet, socket, insteadOf, container string) {
	f.StringVar(&o.File, o.name+"-config", o.File, o.title+"'s configuration file, in a directory that berth can write to, or none")
	f.StringVar(&o.Socket, o.name+"-socket", o.Socket, socket)
	f.StringVar(&o.ReloadCommand, o.name+"-reload-command", "", "shell command that makes "+o.title+" load its file, instead of "+insteadOf)
	f.StringVar(&o.ReloadContainer, o.name+"-reload-container", "", container)
	f.StringVar(&o.Binary, o.name+"-binary", o.name, "program that validates a configuration before it is loaded, if installed; none disables this")
	f.DurationVar(&o.Timeout, o.name+"-timeout", 10*time.Second, "how long "+o.title+" may take to answer or to reload")
	f.DurationVar(&o.StopTimeout, o.name+"-stop-timeout", 8*time.Second, "if berth runs "+o.title+": how long it may take to finish its connections when berth stops")
}

// optionError puts the name of an option before an error.
func (o *proxyOptions) optionError(option string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s-%s: %w", o.name, option, err)
}

// driverOptions are the options of a driver that do not come from the configuration.
type driverOptions struct {
	binary      string
	env         []string                    // of that program; nil if berth does not run the proxy
	reload      func(context.Context) error // nil if the driver reloads by itself
	prepared    func()                      // nil if berth does not run the proxy
	portRefused func(port int, reason string)
	waiting     *proxyctl.Waiting
}

// kindOf returns the kind of proxy set by the option proxy; the default is the kind that the command behind -- runs.
func kindOf(asked string, command []string) (string, error) {
	switch asked {
	case kindHAProxy, kindNginx:
		return asked, nil
	case "":
		if programIn(command, kindNginx) != "" {
			return kindNginx, nil
		}
		return kindHAProxy, nil
	}
	return "", fmt.Errorf("proxy must be %s or %s, not %q", kindHAProxy, kindNginx, asked)
}

// proxyTemplate returns the template of the proxy's configuration, from the option or built in. It learns the proxy's version,
// because the first text must suit it. binary is the proxy's program, if any.
func (p *process) proxyTemplate(ctx context.Context, binary string) (templater.Template, error) {
	o := p.proxy.common()
	path, err := filepath.Abs(o.File)
	o.version.learn(p.proxy.versionHere(ctx, binary))
	t := templater.Template{Name: o.name, Destination: path, FilePrefix: path + "."}
	if o.maps {
		t.MapPrefix = path + "."
	}
	if t.File = p.config.Template; t.File == "" {
		t.Source, t.Text = "the built-in template", o.template
	}
	return t, err
}

// validator returns the path of the proxy's program, "" if berth does not find it and no option sets it.
func (p *process) validator() (string, error) {
	o := p.proxy.common()
	if o.Binary == "" {
		return "", nil
	}
	path, err := exec.LookPath(o.Binary)
	if err != nil && o.Binary != o.name {
		return "", o.optionError("binary", err)
	}
	if err != nil {
		p.log.Debug("no "+o.name+" program found: "+o.title+" itself validates a configuration when it loads it", "err", err)
	}
	return path, nil
}

// proxyOutput returns the output that applies texts to the proxy and, if berth runs the proxy with this command, the proxy as a
// child. Ports that the proxy cannot open are added to refused. stopping is called just before the child is told to end.
func (p *process) proxyOutput(ctx context.Context, command []string, refused *route.Refused, report *reporter, stopping func()) (output, *proxyChild, error) {
	command, err := p.childCommand(command)
	if err != nil {
		return output{}, nil, asUsageError(err)
	}
	o := driverOptions{portRefused: refused.Refuse, waiting: proxyctl.NewWaiting(p.metrics, p.log)}
	if o.binary, err = p.validator(); err != nil {
		return output{}, nil, err
	}
	if o.reload, err = p.proxy.common().reloader(); err != nil {
		return output{}, nil, asUsageError(err)
	}
	tmpl, err := p.proxyTemplate(ctx, o.binary)
	if err != nil {
		return output{}, nil, err
	}
	var ctl *proxyctl.Controller
	child := p.newChild(command, func() { ctl.Check() }, stopping)
	if child != nil {
		o.prepared, o.env = child.configure, child.env
	}
	proxy := p.proxy.driver(p, o)
	ctl = proxyctl.New(proxyctl.Options{
		Proxy: proxy, Interval: p.config.ReloadInterval, Socket: p.proxy.common().Socket, Log: p.log, Metrics: p.metrics,
		Live: report.live.changed, Changed: report.proxyChanged,
	})
	set := func(t templater.Published) { ctl.Set(proxyctl.Config{Text: p.proxy.text(t), Files: t.Files}, t.Since) }
	return output{runner: ctl, template: tmpl, set: set, proxy: proxy, ctl: ctl, waiting: o.waiting}, child, nil
}
