package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"

	"berth/registrar/docker"
	"berth/registrar/label"
	"berth/templater/catalog"
)

// Config is the whole configuration. A key of the YAML file is the name of a flag. The environment variable is BERTH_ and
// the name in capitals with _ for -.
type Config struct {
	ConsulAddress   string
	ConsulTokenFile string
	Listen          string
	LogFormat       string
	LogLevel        string

	Host         label.Host // Policy is in the file only
	Tags         string
	Deregister   string
	Adopt        string
	Owner        string
	Resync       time.Duration
	ReadyTimeout time.Duration
	DrainTime    time.Duration

	Process     label.Process // Tags and TTL are above
	StopTimeout time.Duration

	ConsulConnections int
	ConsulGrace       time.Duration
	VanishLimit       int

	Template         string
	TemplatePrograms bool
	TLSDirectory     string
	TCPPorts         string
	File             []string
	Files            []fileEntry // including the ones of File
	Proxy            string      // kindHAProxy or kindNginx
	HAProxy          *haproxyKind
	Nginx            *nginxKind
	Runtime          bool
	ReloadInterval   time.Duration
}

func newConfig() Config { return Config{HAProxy: newHAProxy(), Nginx: newNginx()} }

// proxy returns the kind of proxy that the configuration has chosen.
func (c *Config) proxy() proxyKind {
	if c.Proxy == kindNginx {
		return c.Nginx
	}
	return c.HAProxy
}

func (c *Config) commonFlags(f *pflag.FlagSet, listen string) {
	f.String("config", "", "YAML file with further options")
	f.StringVar(&c.ConsulAddress, "consul-address", "", "Consul agent, like http://127.0.0.1:8500 or unix:///run/consul.sock (default $CONSUL_HTTP_ADDR)")
	f.StringVar(&c.ConsulTokenFile, "consul-token-file", "", "file that holds the Consul ACL token (default $CONSUL_HTTP_TOKEN_FILE)")
	f.StringVar(&c.Listen, "listen", listen, "address of /healthz, /readyz and /metrics, or none")
	f.StringVar(&c.LogFormat, "log-format", "auto", "text, json, or auto: text on a terminal")
	f.StringVar(&c.LogLevel, "log-level", "info", "debug, info, warn or error")
}

func (c *Config) registrarFlags(f *pflag.FlagSet) {
	f.StringSliceVar(&c.Host.Networks, "network", nil, "networks on which the load balancer reaches containers, best first (default: those of berth's own container)")
	f.BoolVar(&c.Host.Internal, "internal", false, "register containers' own addresses and exposed ports, whatever the network")
	f.BoolVar(&c.Host.Explicit, "explicit", false, "register only what has a SERVICE_NAME")
	f.StringVar(&c.Host.IP, "ip", "", "address to register for published ports (default: none, so that Consul uses its node's)")
	f.StringVar(&c.Tags, "tags", "", "tags for everything, separated by commas; a Go template over what docker inspect says")
	f.StringVar(&c.Deregister, "deregister", "always", "always, or on-success: what ended with an error stays registered, in maintenance mode")
	f.DurationVar(&c.Host.TTL, "ttl", 0, "let registrations turn critical when the registrar is away for so long (default: never)")
	f.BoolVar(&c.Host.Scripts, "scripts", false, "allow SERVICE_CHECK_SCRIPT and SERVICE_CHECK_CMD, if the Consul agent does, too")
	f.StringVar(&c.Adopt, "adopt", "", "host name in the service IDs of a Registrator whose registrations to take over")
	f.StringVar(&c.Owner, "owner", "", "a name of its own for each of several registrars on one Docker host")
	f.DurationVar(&c.Resync, "resync", time.Minute, "how often to compare everything, whatever the events said")
	f.DurationVar(&c.ReadyTimeout, "ready-timeout", 30*time.Second, "how long an instance may take to be ready before it is registered as critical")
	f.DurationVar(&c.DrainTime, "drain-time", 2*time.Second, "from the sign to stop to the signal that SERVICE_STOP_SIGNAL names")
}

// serviceFlags declares the options that only berth service has.
func (c *Config) serviceFlags(f *pflag.FlagSet) {
	f.StringVar(&c.Process.Name, "name", "", "name of the service")
	f.IntVar(&c.Process.Port, "port", 0, "port that the command listens on, over TCP")
	f.StringVar(&c.Process.ID, "id", "", "ID of this instance, which must be its own (default <host>:<name>:<port>)")
	f.StringVar(&c.Process.Address, "address", "", "IP address that it listens on and is registered with (default: none, so that Consul uses its node's)")
	f.StringArrayVar(&c.Process.Meta, "meta", nil, "service metadata as key=value, any number of times")
	f.IntVar(&c.Process.Weight, "weight", 0, "weight of this instance, 1 to 256 (default 1)")
	f.StringVar(&c.Process.Ready, "ready", "tcp", "register when: tcp its port accepts, http:/path or https:/path that answers 2xx, none at once")
	f.DurationVar(&c.StopTimeout, "stop-timeout", 10*time.Second, "from the command's SIGTERM to its SIGKILL")
}

func (c *Config) templaterFlags(f *pflag.FlagSet) {
	f.StringVar(&c.Template, "template", "", "consul-template file to render (default: the built-in template)")
	f.BoolVar(&c.TemplatePrograms, "template-programs", false, "allow the template functions plugin and writeToFile, which run programs and write files")
	f.StringVar(&c.TLSDirectory, "tls-directory", "", "directory of certificates (PEM files with their keys) for the built-in template (default: no TLS)")
	f.StringVar(&c.TCPPorts, "tcp-ports", "none", "ports that SERVICE_ROUTE_PORT may ask the built-in template for, like 5432,6000-6099, or none")
	f.IntVar(&c.ConsulConnections, "consul-connections", catalog.DefaultConnections, "connections to Consul that may be open at a time (Consul's own limit is 200)")
	f.DurationVar(&c.ConsulGrace, "consul-grace", 30*time.Second, "how long to keep what a Consul that failed or lost its state no longer lists")
	f.IntVar(&c.VanishLimit, "vanish-limit", 100, "percentage of a list that may vanish at once; if it is more, what is gone is kept for consul-grace")
	f.StringArrayVar(&c.File, "file", nil, "template:destination[:command], a plain file to render, and a shell command to run when it has changed")
	f.StringVar(&c.Proxy, "proxy", "", "haproxy or nginx (default: the one behind --, else haproxy)")
	c.HAProxy.flags(f)
	c.Nginx.flags(f)
	f.BoolVar(&c.Runtime, "runtime", true, "change servers in the running HAProxy, or in nginx's Lua balancer; if false, every change is a reload")
	f.DurationVar(&c.ReloadInterval, "reload-interval", 200*time.Millisecond, "least time between two reloads; the first is done at once")
}

// allFlags declares the options of all commands: registrar and templater may share a file and an environment.
func (c *Config) allFlags() *pflag.FlagSet {
	all := pflag.NewFlagSet("", pflag.ContinueOnError)
	c.commonFlags(all, "")
	c.registrarFlags(all)
	c.templaterFlags(all)
	c.serviceFlags(all)
	return all
}

const (
	envPrefix = "BERTH_"

	// leastConnections leaves enough queries that block beside those that share some.
	leastConnections = 40
)

// readConfig joins a command's flags, environment, file and defaults, in this order.
func readConfig(flags *pflag.FlagSet) (Config, error) {
	c := newConfig()
	all := c.allFlags()
	if err := checkEnvironment(all, flags.Name()); err != nil {
		return Config{}, err
	}
	v := viper.New()
	v.SetEnvPrefix(strings.TrimSuffix(envPrefix, "_"))
	v.SetEnvKeyReplacer(strings.NewReplacer("-", "_"))
	v.AutomaticEnv()
	if err := v.BindPFlags(flags); err != nil {
		return Config{}, err
	}
	if file := v.GetString("config"); file != "" {
		if err := readFile(v, file, all); err != nil {
			return Config{}, err
		}
	}
	var errs []error
	all.VisitAll(func(f *pflag.Flag) { errs = append(errs, setOption(f, v)) })
	if err := errors.Join(errs...); err != nil {
		return Config{}, err
	}
	only := viper.New()
	only.Set("policy", v.Get("policy"))
	err := only.UnmarshalExact(&struct {
		Policy *[]label.Rule `mapstructure:"policy"` // the name in errors
	}{&c.Host.Policy})
	if err != nil {
		return Config{}, fmt.Errorf("configuration: %s", oneLine(err))
	}
	if c.Files, err = fileEntries(v.Get("files"), c.File); err != nil {
		return Config{}, err
	}
	h, n := c.HAProxy, c.Nginx
	for _, s := range []*string{&c.Listen, &h.File, &h.Socket, &h.Binary, &n.File, &n.Socket, &n.Binary} {
		if *s == "none" {
			*s = ""
		}
	}
	if c.Proxy, err = kindOf(c.Proxy, flags.Args()); err != nil {
		return Config{}, err
	}
	c.ConsulGrace = max(c.ConsulGrace, time.Nanosecond) // to those who take it, 0 is the default
	return c, c.validate()
}

// checkEnvironment returns an error that names a variable that looks like an option and is none. An empty variable counts
// as not given, as in a compose file.
func checkEnvironment(all *pflag.FlagSet, command string) error {
	for _, kv := range os.Environ() {
		name, value, _ := strings.Cut(kv, "=")
		key, ours := strings.CutPrefix(name, envPrefix)
		if ours && value != "" && all.Lookup(strings.ToLower(strings.ReplaceAll(key, "_", "-"))) == nil {
			return fmt.Errorf("environment variable %s is no option of berth: see berth %s --help", name, command)
		}
	}
	return nil
}

func readFile(v *viper.Viper, file string, all *pflag.FlagSet) error {
	v.SetConfigFile(file)
	v.SetConfigType("yaml")
	if err := v.ReadInConfig(); err != nil {
		return fmt.Errorf("configuration file %s: %s", file, oneLine(err))
	}
	for _, key := range slices.Sorted(slices.Values(v.AllKeys())) {
		if v.InConfig(key) && all.Lookup(key) == nil && key != "policy" && key != "files" {
			return fmt.Errorf("configuration file %s: unknown key %q: the keys are the names of the flags, see berth run --help", file, key)
		}
	}
	return nil
}

// setOption sets an option to its value in v, if there is one. A text of several values is separated by commas. The option
// file is separated by line ends, because its commands may have commas.
func setOption(f *pflag.Flag, v *viper.Viper) error {
	value := v.Get(f.Name)
	text := fmt.Sprint(value)
	list, isList := f.Value.(pflag.SliceValue)
	_, several := value.([]any)
	kind := f.Value.Type()
	switch d, _ := time.ParseDuration(text); {
	case value == nil:
		return nil
	case isList:
		if text, one := value.(string); one && f.Name == "file" {
			return list.Replace(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' }))
		} else if one {
			return list.Replace(strings.Split(text, ","))
		}
		return list.Replace(v.GetStringSlice(f.Name))
	case several:
		return fmt.Errorf("%s must be one value, not the list %v", f.Name, value)
	case kind == "duration" && d < 0:
		return fmt.Errorf("%s must not be negative, it is %s", f.Name, text)
	case f.Value.Set(text) != nil:
		what := map[string]string{"duration": "a duration like 200ms, 30s or 1m", "int": "a whole number", "bool": "true or false"}
		return fmt.Errorf("%s must be %s, not %q", f.Name, what[kind], text)
	}
	return nil
}

func (c *Config) validate() error {
	if !slices.Contains([]string{"auto", "text", "json"}, c.LogFormat) {
		return fmt.Errorf("log-format must be auto, text or json, not %q", c.LogFormat)
	}
	if _, err := parseLevel(c.LogLevel); err != nil {
		return err
	}
	if c.Deregister != "always" && c.Deregister != "on-success" {
		return fmt.Errorf("deregister must be always or on-success, not %q", c.Deregister)
	}
	if c.Host.IP != "" {
		if _, err := netip.ParseAddr(c.Host.IP); err != nil {
			return fmt.Errorf("ip must be an IP address, not %q", c.Host.IP)
		}
	}
	if _, err := docker.ParseTags(c.Tags); err != nil {
		return fmt.Errorf("tags: %w", err)
	}
	if c.TLSDirectory != "" && !filepath.IsAbs(c.TLSDirectory) {
		return fmt.Errorf("tls-directory must be an absolute path, as the proxy has it, not %q", c.TLSDirectory)
	}
	if c.VanishLimit < 0 || c.VanishLimit > 100 {
		return fmt.Errorf("vanish-limit is a percentage from 1 to 100, not %d", c.VanishLimit)
	}
	if c.ConsulConnections != 0 && c.ConsulConnections < leastConnections {
		return fmt.Errorf("consul-connections must be at least %d, not %d", leastConnections, c.ConsulConnections)
	}
	if c.Proxy == kindNginx {
		if err := c.Nginx.checkSocket(); err != nil {
			return err
		}
	}
	if err := label.ValidatePolicy(c.Host.Policy); err != nil {
		return fmt.Errorf("policy: %w", err)
	}
	return c.checkFiles()
}

func oneLine(err error) string {
	return strings.Join(strings.Fields(err.Error()), " ")
}
