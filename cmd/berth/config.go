package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"

	"berth/registrar/docker"
	"berth/registrar/label"
	"berth/templater/catalog"
	"berth/templates"
	"berth/templates/claim"
	"berth/templates/route"
)

// Config is the whole configuration. A key of the YAML file is the name of a flag. The environment variable is BERTH_ and
// the name in capitals with _ for -.
type Config struct {
	ConsulAddress   string
	ConsulTokenFile string
	Listen          string
	AdminTokenFile  string
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
	ShowSecrets  bool

	Process     label.Process // Tags and TTL are above
	StopTimeout time.Duration
	Member      memberConfig

	ConsulConnections int
	ConsulGrace       time.Duration
	VanishLimit       int

	Template         string
	TemplatePrograms bool
	TLSDirectory     string
	TCPPorts         string
	IPv6             bool
	TrustedProxies   string
	ProxyProtocol    string
	ErrorDetails     bool
	RouteGrace       time.Duration
	RouteHold        time.Duration
	RouteHoldMax     int
	File             []string
	Files            []fileEntry // including the ones of File
	Proxy            string      // kindHAProxy or kindNginx
	HAProxy          *haproxyKind
	Nginx            *nginxKind
	Runtime          bool
	TakeOver         bool
	ReloadInterval   time.Duration

	origin func(option string) string // names an option by where its value is from, in errors
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
	f.String("config", "", "YAML file with more options")
	f.StringVar(&c.ConsulAddress, "consul-address", "", "Consul agent, e.g. http://127.0.0.1:8500 or unix:///run/consul.sock (default $CONSUL_HTTP_ADDR)")
	f.StringVar(&c.ConsulTokenFile, "consul-token-file", "", "file with the Consul ACL token (default $CONSUL_HTTP_TOKEN_FILE)")
	f.StringVar(&c.Listen, "listen", listen, "address of the status page, /healthz, /readyz and /metrics; none disables them")
	f.StringVar(&c.LogFormat, "log-format", "text", "log format: text or json; auto is text on a terminal and json elsewhere")
	f.StringVar(&c.LogLevel, "log-level", "info", "lowest level to log: debug, info, warn or error")
}

// pageFlags declares the options of the commands that serve the status page.
func (c *Config) pageFlags(f *pflag.FlagSet) {
	f.StringVar(&c.AdminTokenFile, "listen-admin-token-file", "", "file with the token that allows drain and pause on the status page; without it, the page is read-only")
}

func (c *Config) registrarFlags(f *pflag.FlagSet) {
	f.StringSliceVar(&c.Host.Networks, "network", nil, "networks on which the load balancer reaches containers, in order of preference (default: those of berth's own container)")
	f.BoolVar(&c.Host.Internal, "internal", false, "register container addresses and exposed ports, on any network")
	f.BoolVar(&c.Host.Explicit, "explicit", false, "register only containers and ports with a SERVICE_NAME")
	f.StringVar(&c.Host.IP, "ip", "", "IP address to register for published ports (default: the address of the Consul node)")
	f.StringVar(&c.Tags, "tags", "", "tags for every service, separated by commas; may be a Go template over the output of docker inspect")
	f.StringVar(&c.Deregister, "deregister", "always", "when to deregister: always, or on-success, which keeps failed containers registered in maintenance mode")
	f.DurationVar(&c.Host.TTL, "ttl", 0, "mark registrations critical when the registrar is away for this long (default: never)")
	f.BoolVar(&c.Host.Scripts, "scripts", false, "allow SERVICE_CHECK_SCRIPT and SERVICE_CHECK_CMD; the Consul agent must allow them too")
	f.BoolVar(&c.Host.PublishSecrets, "publish-secrets", false, "publish labels as metadata even if the keys look like secrets (PASSWORD, TOKEN, KEY...)")
	f.StringVar(&c.Adopt, "adopt", "", "take over the registrations of the Registrator with this host name in its service IDs")
	f.StringVar(&c.Owner, "owner", "", "unique name of this registrar if several run on one Docker host")
	f.DurationVar(&c.Resync, "resync", time.Minute, "interval of the full resync")
	f.DurationVar(&c.ReadyTimeout, "ready-timeout", 30*time.Second, "how long to wait until an instance is ready before registering it as critical")
	f.DurationVar(&c.DrainTime, "drain-time", 2*time.Second, "delay between Docker's stop signal and SERVICE_STOP_SIGNAL")
	f.BoolVar(&c.ShowSecrets, "show-secrets", false, showSecretsUsage)
}

const showSecretsUsage = "show values whose keys look like secrets (PASSWORD, TOKEN, KEY...) under /services and /census"

// serviceFlags declares the options that only berth service has.
func (c *Config) serviceFlags(f *pflag.FlagSet) {
	f.StringVar(&c.Process.Name, "name", "", "name of the service")
	f.IntVar(&c.Process.Port, "port", 0, "TCP port that the command listens on")
	f.StringVar(&c.Process.ID, "id", "", "unique ID of this instance (default <host>:<name>:<port>)")
	f.StringVar(&c.Process.Address, "address", "", "IP address that the command listens on and is registered with (default: the address of the Consul node)")
	f.StringArrayVar(&c.Process.Meta, "meta", nil, "service metadata as key=value; can be repeated")
	f.IntVar(&c.Process.Weight, "weight", 1, "weight of this instance, 1 to 256; 0 means no new requests")
	f.StringVar(&c.Process.Ready, "ready", "tcp", "when to register: tcp (its port accepts), http:/path or https:/path (answers 2xx), or none (at once)")
	f.DurationVar(&c.StopTimeout, "stop-timeout", 10*time.Second, "delay between the command's SIGTERM and SIGKILL")
}

func (c *Config) templaterFlags(f *pflag.FlagSet) {
	f.StringVar(&c.Template, "template", "", "consul-template file to render (default: the built-in template)")
	f.BoolVar(&c.TemplatePrograms, "template-programs", false, "allow the template functions plugin and writeToFile, which run programs and write files")
	f.StringVar(&c.TLSDirectory, "tls-directory", "", "directory of certificates (PEM files with keys) for the built-in template (default: no TLS)")
	f.StringVar(&c.TCPPorts, "tcp-ports", "none", "ports that SERVICE_ROUTE_PORT may claim in the built-in template, e.g. 5432,6000-6099, or none")
	f.BoolVar(&c.IPv6, "ipv6", templates.KernelHasIPv6(), "make the built-in template listen on IPv6 too (default: true if the kernel has IPv6)")
	f.StringVar(&c.TrustedProxies, "trusted-proxies", "", "networks of front proxies whose client information the built-in template trusts, e.g. 10.0.0.0/8,fd00::/8")
	f.StringVar(&c.ProxyProtocol, "proxy-protocol", "none", "ports on which trusted proxies speak the PROXY protocol, e.g. http,https,5432, or none")
	f.BoolVar(&c.ErrorDetails, "error-details", false, "make error pages name the services and labels involved; not for public sites")
	f.DurationVar(&c.RouteGrace, "route-grace", 5*time.Minute, "how long to keep the route of a service that is gone or has no serving instance; 0 disables this")
	f.DurationVar(&c.RouteHold, "route-hold", 10*time.Second, "how long requests and connections wait for a service without servers, up to 5m; 0 disables this; SERVICE_ROUTE_HOLD overrides it")
	f.IntVar(&c.RouteHoldMax, "route-hold-max", 2000, "how many requests may wait in the proxy at the same time; the rest get the 503 page immediately")
	f.IntVar(&c.ConsulConnections, "consul-connections", catalog.DefaultConnections, "maximum number of open connections to Consul (Consul's own limit is 200)")
	f.DurationVar(&c.ConsulGrace, "consul-grace", 30*time.Second, "how long to keep what Consul no longer lists after it failed or lost its state")
	f.IntVar(&c.VanishLimit, "vanish-limit", 100, "percentage of a list that may vanish at once; if more does, it is kept for --consul-grace")
	f.StringArrayVar(&c.File, "file", nil, "plain file to render, as template:destination[:command]; the shell command runs when the file changes")
	f.StringVar(&c.Proxy, "proxy", "", "haproxy or nginx (default: the proxy behind --, otherwise haproxy)")
	c.HAProxy.flags(f)
	c.Nginx.flags(f)
	f.BoolVar(&c.Runtime, "runtime", true, "change servers in the running HAProxy or in nginx's Lua balancer; if false, reload for every change")
	f.BoolVar(&c.TakeOver, "take-over", false, "replace a configuration that berth did not write even if its backends lose all servers")
	f.DurationVar(&c.ReloadInterval, "reload-interval", 200*time.Millisecond, "minimum time between two reloads; the first one is immediate")
}

// options returns the options of all commands, at their defaults.
func options() *pflag.FlagSet {
	c := newConfig()
	return c.allFlags()
}

// allFlags declares the options of all commands: registrar and templater may share a file and an environment.
func (c *Config) allFlags() *pflag.FlagSet {
	all := pflag.NewFlagSet("", pflag.ContinueOnError)
	c.commonFlags(all, "")
	c.pageFlags(all)
	c.registrarFlags(all)
	c.templaterFlags(all)
	c.serviceFlags(all)
	c.Member.flags(all)
	return all
}

const (
	envPrefix = "BERTH_"

	// leastConnections leaves enough blocking queries in addition to the shared ones.
	leastConnections = 40
)

// readConfig joins a command's flags, environment, file and defaults, in this order.
func readConfig(flags *pflag.FlagSet) (Config, error) {
	c := newConfig()
	all := c.allFlags()
	v, inFile := viper.New(), viper.New()
	v.SetEnvPrefix(strings.TrimSuffix(envPrefix, "_"))
	v.SetEnvKeyReplacer(strings.NewReplacer("-", "_"))
	v.AutomaticEnv()
	if err := v.BindPFlags(flags); err != nil {
		return Config{}, err
	}
	file := v.GetString("config")
	if file != "" {
		if err := readFile(inFile, file, all); err != nil {
			return Config{}, err
		}
		if err := v.MergeConfigMap(inFile.AllSettings()); err != nil {
			return Config{}, err
		}
	}
	c.origin = func(option string) string {
		switch f := flags.Lookup(option); {
		case f != nil && f.Changed:
			return option
		case f != nil && os.Getenv(variableName(option)) != "":
			return variableName(option)
		case inFile.IsSet(option) && !fileOnly(option): // these exist only there
			return file + ": " + option
		}
		return option
	}
	var errs []error
	all.VisitAll(func(f *pflag.Flag) {
		from := v
		if flags.Lookup(f.Name) == nil {
			// An option of another command. Its variable is not read: Docker's links may have set it for a container
			// called berth (BERTH_NAME, BERTH_PORT).
			from = inFile
		}
		errs = append(errs, setOption(f, from))
	})
	if err := errors.Join(errs...); err != nil {
		return Config{}, c.located(err)
	}
	only := viper.New()
	only.Set("policy", inFile.Get("policy"))
	err := only.UnmarshalExact(&struct {
		Policy *[]label.Rule `mapstructure:"policy"` // the name in errors
	}{&c.Host.Policy})
	if err != nil {
		return Config{}, fmt.Errorf("configuration: %s", oneLine(err))
	}
	entries := inFile.Get("files")
	if _, isText := entries.(string); isText && flags.Lookup("files") != nil {
		entries = nil // it is the directory of berth service
	}
	if c.Files, err = fileEntries(entries, c.File); err != nil {
		return Config{}, c.located(err)
	}
	h, n := c.HAProxy, c.Nginx
	for _, s := range []*string{&c.Listen, &h.File, &h.Socket, &h.Binary, &n.File, &n.Socket, &n.Binary} {
		if *s == "none" {
			*s = ""
		}
	}
	if c.Proxy, err = kindOf(c.Proxy, flags.Args()); err != nil {
		return Config{}, c.located(err)
	}
	c.ConsulGrace = max(c.ConsulGrace, time.Nanosecond) // 0 would select the default
	return c, c.located(c.validate())
}

// located rewrites errors that begin with the name of an option to begin with the variable or the file that sets it.
func (c *Config) located(err error) error {
	if err == nil || c.origin == nil {
		return err
	}
	var lines []string
	for line := range strings.Lines(err.Error()) {
		line = strings.TrimSpace(line)
		option := line[:cmp.Or(max(strings.IndexAny(line, ": "), 0), len(line))]
		lines = append(lines, c.origin(option)+line[len(option):])
	}
	return errors.New(strings.Join(lines, "; "))
}

// fileOnly reports whether an option is in the configuration file only.
func fileOnly(option string) bool { return option == "policy" || option == "files" }

// readFile reads a configuration file, which may have options of all commands.
func readFile(v *viper.Viper, file string, all *pflag.FlagSet) error {
	v.SetConfigFile(file)
	v.SetConfigType("yaml")
	if err := v.ReadInConfig(); err != nil {
		return fmt.Errorf("configuration file %s: %s", file, oneLine(err))
	}
	for _, key := range slices.Sorted(slices.Values(v.AllKeys())) {
		if all.Lookup(key) == nil && !fileOnly(key) {
			remedy := didYouMean(nearest("", key, all)...)
			if remedy == "" {
				remedy = ": keys are named like the flags, see 'berth run --help'"
			}
			return fmt.Errorf("configuration file %s: unknown key %q%s", file, key, remedy)
		}
	}
	return nil
}

// setOption sets an option to its value in v, if there is one.
func setOption(f *pflag.Flag, v *viper.Viper) error {
	value := v.Get(f.Name)
	text := fmt.Sprint(value)
	_, isText := value.(string)
	list, isList := f.Value.(pflag.SliceValue)
	_, several := value.([]any)
	if several && f.Name == "files" {
		return nil // the templater's plain files, in a configuration file that it shares with berth service
	}
	kind := f.Value.Type()
	switch d, _ := time.ParseDuration(text); {
	case value == nil:
		return nil
	case isList && isText:
		return list.Replace(split(f.Name, text))
	case isList:
		return list.Replace(v.GetStringSlice(f.Name))
	case several:
		return fmt.Errorf("%s must be a string, not the list %v: separate several values with commas", f.Name, value)
	case kind == "duration" && d < 0:
		return fmt.Errorf("%s must not be negative: %s", f.Name, text)
	case kind == "bool":
		text = boolean(text)
	}
	if f.Value.Set(text) != nil {
		return fmt.Errorf("%s %s", f.Name, unfit(f, text))
	}
	return nil
}

// split returns the values in a text, separated by commas or whitespace. Commands may contain both, so the values of the option
// file are lines, and metadata may contain blanks.
func split(option, text string) []string {
	values := strings.FieldsFunc(text, func(r rune) bool {
		return r == '\n' || option != "file" && (r == ',' || option != "meta" && unicode.IsSpace(r))
	})
	for n, value := range values {
		values[n] = strings.TrimSpace(value)
	}
	return slices.DeleteFunc(values, func(value string) bool { return value == "" })
}

// boolean maps the other spellings of true and false in compose files, and returns any other text unchanged.
func boolean(text string) string {
	switch strings.ToLower(text) {
	case "yes", "on", "enabled":
		return "true"
	case "no", "off", "disabled":
		return "false"
	}
	return text
}

func (c *Config) validate() error {
	if !slices.Contains([]string{"text", "json", "auto"}, c.LogFormat) {
		return fmt.Errorf("log-format must be text, json or auto, not %q", c.LogFormat)
	}
	if _, err := parseLevel(c.LogLevel); err != nil {
		return err
	}
	if c.Deregister != "always" && c.Deregister != "on-success" {
		return fmt.Errorf("deregister must be always or on-success, not %q", c.Deregister)
	}
	if c.Host.IP != "" {
		if err := label.ValidateIP(c.Host.IP); err != nil {
			return fmt.Errorf("ip: %w", err)
		}
	}
	if _, err := docker.ParseTags(c.Tags); err != nil {
		return fmt.Errorf("tags: %w", err)
	}
	if c.TLSDirectory != "" && !filepath.IsAbs(c.TLSDirectory) {
		return fmt.Errorf("tls-directory must be an absolute path as the proxy sees it, not %q", c.TLSDirectory)
	}
	if _, err := c.templateOptions(); err != nil {
		return err
	}
	if c.VanishLimit < 0 || c.VanishLimit > 100 {
		return fmt.Errorf("vanish-limit must be a percentage from 1 to 100, not %d", c.VanishLimit)
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

// templateOptions returns what the options tell the built-in templates.
func (c *Config) templateOptions() (o templates.Options, err error) {
	if o.TCPPorts, err = route.ParsePorts(c.TCPPorts); err != nil {
		return o, fmt.Errorf("tcp-ports: %w", err)
	}
	if o.TrustedProxies, err = templates.ParseNetworks(c.TrustedProxies); err != nil {
		return o, fmt.Errorf("trusted-proxies: %w", err)
	}
	if o.ProxyProtocol, err = templates.ParseListeners(c.ProxyProtocol); err != nil {
		return o, fmt.Errorf("proxy-protocol: %w", err)
	}
	if len(o.ProxyProtocol) > 0 && len(o.TrustedProxies) == 0 {
		return o, errors.New("proxy-protocol needs trusted-proxies: set the networks that may send it")
	}
	if c.RouteHold > claim.MaxHold {
		return o, fmt.Errorf("route-hold must be from 0 to 5m, not %s", c.RouteHold)
	}
	if c.RouteHoldMax < 0 || c.RouteHoldMax > templates.MostHeld {
		return o, fmt.Errorf("route-hold-max must be from 0 to %d, not %d", templates.MostHeld, c.RouteHoldMax)
	}
	o.Hold, o.HoldMax = c.RouteHold.Round(time.Millisecond), c.RouteHoldMax
	o.TLSDirectory, o.IPv6, o.ErrorDetails = c.TLSDirectory, c.IPv6, c.ErrorDetails
	o.NginxSocket, o.NginxClosing, o.Lua = c.Nginx.controlSocket(), c.Nginx.closingFile(), c.Nginx.Lua
	o.HAProxyLua = c.HAProxy.version.lua
	o.HAProxyAtLeast, o.NginxAtLeast = c.HAProxy.version.atLeast, c.Nginx.version.atLeast
	return o, nil
}

func oneLine(err error) string {
	return strings.Join(strings.Fields(err.Error()), " ")
}
